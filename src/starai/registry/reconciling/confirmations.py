"""Confirmations as they arrive: who may say what, and what is answered.

Whether one holds by itself, `checking.py` says; what follows from it, `tasks.py`.
"""

from __future__ import annotations

from typing import Final

import anyio

from starai.core.clock import Clock
from starai.core.errors import Conflict, PartyRefused
from starai.protocol.identity import PartyId
from starai.protocol.registry import RECORDS_WANTED, Acknowledged, Confirm, Side
from starai.protocol.subjects import Role
from starai.registry.parties import Parties
from starai.registry.reconciling.checking import Checks
from starai.registry.reconciling.tasks import apply
from starai.registry.reconciling.words import Outcome, Said
from starai.registry.storage import Store

#: Confirmations of more bytes than this (some sixty records) take turns: a parsed record holds six
#: times its bytes, and a thousand full ones would hold gigabytes.
LARGE_BYTES: Final = 16_384
LARGE_MAX: Final = 64
_ROLE_OF: Final = {Side.NODE: Role.NODE, Side.DISTRIBUTOR: Role.DISTRIBUTOR}


class Confirmations:
    """Hears confirmations and acknowledges them once they are durable."""

    def __init__(
        self, store: Store, parties: Parties, network: str, block_ms: int, clock: Clock
    ) -> None:
        """Take the network's name and the length of its blocks."""
        self._store = store
        self._parties = parties
        self._clock = clock
        self._checks = Checks(network, block_ms, store.beside)
        self._large = anyio.Semaphore(LARGE_MAX)

    async def handle(self, sender: PartyId, confirm: Confirm) -> tuple[Acknowledged, Outcome]:
        """Check, keep and match one confirmation of ``sender``.

        Returns only when it is durable; an acknowledgement that reports contradicting records is
        ``ok`` nonetheless: they are kept, and sending them again helps nobody. A node that said
        its root only may be asked for its records (`RECORDS_WANTED`): then nothing is kept.

        Raises:
            PartyRefused: ``sender`` is not the signer, unknown, revoked, or of another role.
            ConfigurationRefused, MalformedFrame, SealBroken: see `checking.check_confirm`.
            Conflict: see `apply`.
            StoreFailed: it could not be made durable.
        """
        if confirm.signer != sender:
            raise PartyRefused("a confirmation is sent by its signer")
        self._parties.require(sender, _ROLE_OF[confirm.side])
        if len(confirm.records) <= LARGE_BYTES:
            return await self._keep(confirm)
        async with self._large:
            return await self._keep(confirm)

    async def _keep(self, confirm: Confirm) -> tuple[Acknowledged, Outcome]:
        checked = await self._checks.check(confirm)
        unknown = bool(checked) and not self._is_known(confirm)
        said = Said(confirm, checked, self._clock.now_ms(), unknown)
        outcome = await self._store.write_each(apply, said, size=confirm.count)
        if outcome is None:
            return Acknowledged(ok=False, code=RECORDS_WANTED), Outcome()
        if not outcome.contradicting:
            return Acknowledged(ok=True), outcome
        return Acknowledged(
            ok=True,
            code=Conflict.code,
            message=f"{outcome.contradicting} records contradict what was confirmed before",
        ), outcome

    def close(self) -> None:
        """Stop checking; `handle` is not called any more."""
        self._checks.close()

    def _is_known(self, confirm: Confirm) -> bool:
        """Whether the other party of a confirmation is, or was, what it is said to be."""
        other = Side.NODE if confirm.side is Side.DISTRIBUTOR else Side.DISTRIBUTOR
        party = confirm.node if other is Side.NODE else confirm.distributor
        return self._parties.was(party, _ROLE_OF[other])
