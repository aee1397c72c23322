"""Confirmations as they arrive: who may say what, and whether it holds by itself.

`check_confirm` needs no database and no clock; `Confirmations` adds who sent it, and answers once
`starai.registry.reconciling.tasks` has kept it durably.
"""

from __future__ import annotations

import struct
from typing import Final

from starai.core.clock import Clock
from starai.core.errors import ConfigurationRefused, Conflict, MalformedFrame, PartyRefused
from starai.core.limits import CONFIRM_RECORDS_MAX
from starai.protocol.identity import PartyId, raw_public, verify
from starai.protocol.records import RECORD_BYTES, TaskRecord, leaf_hash, set_root
from starai.protocol.registry import RECORDS_WANTED, Acknowledged, Confirm, Side
from starai.protocol.subjects import Role
from starai.registry.parties import Parties
from starai.registry.reconciling.tasks import apply
from starai.registry.reconciling.words import CheckedRecord, Outcome, Said
from starai.registry.schema import INTEGER_MAX
from starai.registry.storage import Store

#: A SHA-256.
ROOT_BYTES: Final = 32
#: The highest price of a token that a task's header can name, in nano-USD.
_PRICE_MAX: Final = (1 << 32) - 1
_ROLE_OF: Final = {Side.NODE: Role.NODE, Side.DISTRIBUTOR: Role.DISTRIBUTOR}


def check_confirm(confirm: Confirm, network: str, block_ms: int) -> list[CheckedRecord]:
    """The records of a confirmation, once everything that needs no database is seen to hold.

    One by its root alone has none: what is under the root the distributor said.

    Raises:
        ConfigurationRefused: it is for another network, or cut into blocks of another length.
        MalformedFrame: a record is not canonical, foreign to it or out of range, or an attempt is
            twice in it.
        SealBroken: root or signature do not verify.
    """
    if confirm.network != network:
        raise ConfigurationRefused(f"this is the registry of network {network!r}")
    data = confirm.records
    count, rest = divmod(len(data), RECORD_BYTES)
    by_root = not data and confirm.side is Side.NODE
    if rest or not 0 < confirm.count <= CONFIRM_RECORDS_MAX or not (by_root or count):
        raise MalformedFrame(f"a confirmation holds 1 to {CONFIRM_RECORDS_MAX} whole records")
    if count != confirm.count and not by_root:
        raise MalformedFrame("a confirmation does not hold as many records as it says")
    if len(confirm.root) != ROOT_BYTES or max(confirm.block, confirm.charge_nano_usd) > INTEGER_MAX:
        raise MalformedFrame("a confirmation has a number or root out of range")
    try:
        signed = confirm.signed_bytes()
    except struct.error as error:
        raise MalformedFrame("a confirmation has a number out of range") from error
    checked = []
    for start in range(0, len(data), RECORD_BYTES):
        canonical = data[start : start + RECORD_BYTES]
        checked.append(CheckedRecord(leaf_hash(canonical), canonical, TaskRecord.parse(canonical)))
    if not by_root:
        _check_root(confirm, {one.leaf for one in checked})
    verify(confirm.signer, signed, confirm.signature)
    _check_records(confirm, [one.record for one in checked], block_ms)
    return checked


def _check_root(confirm: Confirm, leaves: set[bytes]) -> None:
    if len(leaves) != confirm.count:
        raise MalformedFrame("a confirmation holds a record twice")
    if set_root(leaves) != confirm.root:
        raise MalformedFrame("a confirmation's root is not that of its records")


def _check_records(confirm: Confirm, records: list[TaskRecord], block_ms: int) -> None:
    node, distributor = raw_public(confirm.node), raw_public(confirm.distributor)
    if len({(record.task_id, record.attempt) for record in records}) != len(records):
        raise MalformedFrame("a confirmation holds two records of one attempt")
    for record in records:
        if record.node != node:
            raise MalformedFrame("a record is of another node than its confirmation")
        if record.distributor != distributor:
            raise MalformedFrame("a record is of another distributor than its confirmation")
        if max(record.customer, record.charge_nano_usd, record.closed_ms) > INTEGER_MAX:
            raise MalformedFrame("a record has a number out of range")
        if record.charge_nano_usd > (record.prompt_tokens + record.answer_tokens) * _PRICE_MAX:
            raise MalformedFrame("a record charges more than any price makes of its tokens")
        if record.block(block_ms) != confirm.block:
            raise ConfigurationRefused(f"blocks of this network last {block_ms} ms")
    if records and sum(record.charge_nano_usd for record in records) != confirm.charge_nano_usd:
        raise MalformedFrame("a confirmation's charges do not add up to what it says")


class Confirmations:
    """Hears confirmations and acknowledges them once they are durable."""

    def __init__(
        self, store: Store, parties: Parties, network: str, block_ms: int, clock: Clock
    ) -> None:
        """Take the network's name and the length of its blocks."""
        self._store = store
        self._parties = parties
        self._network = network
        self._block_ms = block_ms
        self._clock = clock

    async def handle(self, sender: PartyId, confirm: Confirm) -> tuple[Acknowledged, Outcome]:
        """Check, keep and match one confirmation of ``sender``.

        Returns only when it is durable; an acknowledgement that reports contradicting records is
        ``ok`` nonetheless: they are kept, and sending them again helps nobody. A node that said
        its root only may be asked for its records (`RECORDS_WANTED`): then nothing is kept.

        Raises:
            PartyRefused: ``sender`` is not the signer, unknown, revoked, or of another role.
            ConfigurationRefused, MalformedFrame, SealBroken: see `check_confirm`.
            Conflict: see `apply`.
            StoreFailed: it could not be made durable.
        """
        if confirm.signer != sender:
            raise PartyRefused("a confirmation is sent by its signer")
        self._parties.require(sender, _ROLE_OF[confirm.side])
        # Beside the loop and the writer: a thousand records take long, and most of a signature's
        # check is arithmetic that leaves Python's lock to others.
        checked = await self._store.beside(
            lambda: check_confirm(confirm, self._network, self._block_ms)
        )
        unknown = bool(checked) and not self._is_known(confirm)
        said = Said(confirm, checked, self._clock.now_ms(), unknown)
        outcome = await self._store.write_each(apply, said)
        if outcome is None:
            return Acknowledged(ok=False, code=RECORDS_WANTED), Outcome()
        if not outcome.contradicting:
            return Acknowledged(ok=True), outcome
        return Acknowledged(
            ok=True,
            code=Conflict.code,
            message=f"{outcome.contradicting} records contradict what was confirmed before",
        ), outcome

    def _is_known(self, confirm: Confirm) -> bool:
        """Whether the other party of a confirmation is, or was, what it is said to be."""
        other = Side.NODE if confirm.side is Side.DISTRIBUTOR else Side.DISTRIBUTOR
        party = confirm.node if other is Side.NODE else confirm.distributor
        return self._parties.was(party, _ROLE_OF[other])
