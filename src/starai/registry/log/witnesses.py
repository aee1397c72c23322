"""Cosignatures of the log's checkpoints, from nodes and gateways.

A witness asks; it is answered with the newest checkpoint and a proof that leads there from what it
believed, and its next question brings its signature. So nothing ever waits for a witness: one that
is offline, slow or wrong only leaves its line out. A few witnesses of each side are asked for
every checkpoint, and others wait until one of those is gone. Knows nothing of how blocks are made.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

from starai.core.clock import Clock
from starai.core.errors import InvalidRequest, NotFound, SealBroken
from starai.core.logging import event
from starai.ledger.checkpoints import Note, open_checkpoint, verify_cosignature
from starai.ledger.merkle_log import MerkleLog
from starai.protocol.identity import PartyId, raw_public
from starai.protocol.log import WITNESS_ROLES, Witnessed, Witnessing, log_origin, witness_name
from starai.protocol.subjects import Role
from starai.registry.log.blocks import BlockTerms, StoredTiles
from starai.registry.parties import Parties
from starai.registry.schema import rows
from starai.registry.storage import Connection, Store

_LOG = logging.getLogger(__name__)

#: Witnesses of each side that are asked for every checkpoint: enough that a few may be away.
WITNESSES_A_SIDE: Final = 3
#: A witness that has been silent for this many blocks makes room for another.
SILENT_BLOCKS: Final = 4
#: When a witness that is not needed may ask again, in milliseconds.
NOT_NEEDED_MS: Final = 300_000
#: A cosignature may be this far ahead of our clock, in seconds.
_AHEAD_S: Final = 300


class Witnesses:
    """Answers witnesses, and keeps what they sign."""

    def __init__(
        self,
        store: Store,
        parties: Parties,
        network: str,
        account: bytes,
        clock: Clock,
        terms: BlockTerms,
    ) -> None:
        """Take the raw key by which the network signs its checkpoints."""
        self._store = store
        self._parties = parties
        self._network = network
        self._account = account
        self._clock = clock
        self._again_ms = max(1, int(terms.every_s * 1000))
        self._asked: dict[Role, dict[PartyId, float]] = {role: {} for role in WITNESS_ROLES}

    async def handle(self, sender: PartyId, said: Witnessing) -> Witnessed:
        """Keep the witness's signature if it brings one; what came after, if it is needed.

        Raises:
            PartyRefused: ``sender`` is neither node nor gateway.
            NotFound: its checkpoint is not in this log.
            MalformedFrame, SealBroken: its note or signature does not hold.
            StoreFailed: it could not be made durable.
        """
        role = self._parties.require(sender, *WITNESS_ROLES)
        if not self._is_needed(role, sender):
            return Witnessed(said.size, NOT_NEEDED_MS)
        if said.note:
            open_checkpoint(said.note, log_origin(self._network), self._account)
            await self._check_known(said)
        if said.line:
            await self._keep(witness_name(self._network, role, sender), sender, said)
        return await self._store.read(lambda connection: self._answer(connection, said))

    def _is_needed(self, role: Role, sender: PartyId) -> bool:
        """Whether ``sender`` is one of those who are asked; it becomes one if there is room."""
        now_s = self._clock.monotonic_s()
        silent_s = SILENT_BLOCKS * self._again_ms / 1000
        asked = {
            party: heard_s
            for party, heard_s in self._asked[role].items()
            if now_s - heard_s <= silent_s
        }
        if sender in asked or len(asked) < WITNESSES_A_SIDE:
            asked[sender] = now_s
        self._asked[role] = asked
        return sender in asked

    async def _check_known(self, said: Witnessing) -> None:
        """A checkpoint that we signed and do not have means that our database was set back."""
        known = await self._store.read(lambda connection: note_of(connection, said.size))
        if known is None or Note.parse(known).text != Note.parse(said.note).text:
            event(_LOG, "log_was_set_back", logging.ERROR, signed=said.size)
            raise NotFound(
                f"the network signed a checkpoint of {said.size} records that this database does "
                "not have: it is older than the log, so restore the newest copy"
            )

    async def _keep(self, name: str, sender: PartyId, said: Witnessing) -> None:
        if not said.note:
            raise InvalidRequest("a cosignature comes with its checkpoint", param="note")
        text = Note.parse(said.note).text
        signed_s = verify_cosignature(text, said.line, name, raw_public(sender))
        now_ms = self._clock.now_ms()
        if signed_s > now_ms // 1000 + _AHEAD_S:
            raise SealBroken("a cosignature is of a time that has not come")
        row = (said.size, name, said.line, now_ms)
        await self._store.write(lambda connection: _insert(connection, row))

    def _answer(self, connection: Connection, said: Witnessing) -> Witnessed:
        newest = newest_checkpoint(connection)
        if newest is None or newest[0] == said.size:
            return Witnessed(said.size, self._again_ms)
        size, note = newest
        # From a size that we do not have there is no proof; the witness judges by the note.
        proof: Sequence[bytes] = ()
        if said.size < size:
            proof = MerkleLog(StoredTiles(connection), size).consistency(said.size)
        return Witnessed(said.size, self._again_ms, note, tuple(proof))


def newest_checkpoint(connection: Connection) -> tuple[int, str] | None:
    """Size and note of the newest checkpoint, or None before the first."""
    found = rows(connection, "SELECT size, note FROM checkpoint ORDER BY size DESC LIMIT 1")
    return next(((int(size), str(note)) for size, note in found), None)


def note_of(connection: Connection, size: int) -> str | None:
    """The note of the checkpoint of ``size`` records, or None if there is none."""
    found = rows(connection, "SELECT note FROM checkpoint WHERE size = ?", size)
    return next((str(note) for (note,) in found), None)


def cosignatures(connection: Connection, size: int) -> list[str]:
    """The witnesses' lines under the checkpoint of ``size`` records."""
    found = rows(connection, "SELECT line FROM witness WHERE size = ? ORDER BY witness", size)
    return [str(line) for (line,) in found]


def _insert(connection: Connection, row: tuple[int, str, str, int]) -> None:
    connection.execute(
        "INSERT INTO witness (size, witness, line, at_ms) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (size, witness) DO NOTHING",
        row,
    )
