"""Confirmations as they arrive: who may say what, and whether it holds by itself.

`check_confirm` needs no database and no clock; `Confirmations` adds who sent it, and answers once
`starai.registry.tasks` has kept it durably.
"""

from __future__ import annotations

import struct
from typing import Final

from starai.core.clock import Clock
from starai.core.errors import ConfigurationRefused, Conflict, MalformedFrame, PartyRefused
from starai.core.limits import CONFIRM_RECORDS_MAX
from starai.protocol.identity import PartyId, raw_public, verify
from starai.protocol.records import RECORD_BYTES, TaskRecord, leaf_hash, set_root
from starai.protocol.registry import Acknowledged, Confirm, Side
from starai.protocol.subjects import Role
from starai.registry.parties import Parties
from starai.registry.schema import INTEGER_MAX
from starai.registry.storage import Store
from starai.registry.tasks import CheckedRecord, Outcome, apply

_ROLE_OF: Final = {Side.NODE: Role.NODE, Side.DISTRIBUTOR: Role.DISTRIBUTOR}


def check_confirm(confirm: Confirm, network: str, block_ms: int) -> list[CheckedRecord]:
    """The records of a confirmation, once everything that needs no database is seen to hold.

    Raises:
        ConfigurationRefused: it is for another network, or cut into blocks of another length.
        MalformedFrame: a record is not canonical, foreign to it, out of range, or twice in it.
        SealBroken: root or signature do not verify.
    """
    if confirm.network != network:
        raise ConfigurationRefused(f"this is the registry of network {network!r}")
    data = confirm.records
    count, rest = divmod(len(data), RECORD_BYTES)
    if rest or not 0 < count <= CONFIRM_RECORDS_MAX:
        raise MalformedFrame(f"a confirmation holds 1 to {CONFIRM_RECORDS_MAX} whole records")
    try:
        signed = confirm.signed_bytes()
    except struct.error as error:
        raise MalformedFrame("a confirmation has a number out of range") from error
    if confirm.block > INTEGER_MAX:
        raise MalformedFrame("a confirmation has a number out of range")
    checked = []
    for start in range(0, len(data), RECORD_BYTES):
        canonical = data[start : start + RECORD_BYTES]
        checked.append(CheckedRecord(leaf_hash(canonical), canonical, TaskRecord.parse(canonical)))
    leaves = {one.leaf for one in checked}
    if len(leaves) != count:
        raise MalformedFrame("a confirmation holds a record twice")
    if set_root(leaves) != confirm.root:
        raise MalformedFrame("a confirmation's root is not that of its records")
    verify(confirm.signer, signed, confirm.signature)
    _check_records(confirm, checked, block_ms)
    return checked


def _check_records(confirm: Confirm, checked: list[CheckedRecord], block_ms: int) -> None:
    node, signer = raw_public(confirm.node), raw_public(confirm.signer)
    if confirm.side is Side.NODE and node != signer:
        raise MalformedFrame("a node confirms its own records only")
    for record in (one.record for one in checked):
        if record.node != node:
            raise MalformedFrame("a record is of another node than its confirmation")
        if confirm.side is Side.DISTRIBUTOR and record.distributor != signer:
            raise MalformedFrame("a distributor confirms its own records only")
        if max(record.customer, record.charge_nano_usd, record.closed_ms) > INTEGER_MAX:
            raise MalformedFrame("a record has a number out of range")
        if record.block(block_ms) != confirm.block:
            raise ConfigurationRefused(f"blocks of this network last {block_ms} ms")


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
        ``ok`` nonetheless: they are kept, and sending them again helps nobody.

        Raises:
            PartyRefused: ``sender`` is not the signer, unknown, revoked, or of another role.
            ConfigurationRefused, MalformedFrame, SealBroken: see `check_confirm`.
            Conflict: see `apply`.
            StoreFailed: it could not be made durable.
        """
        if confirm.signer != sender:
            raise PartyRefused("a confirmation is sent by its signer")
        self._parties.require(sender, _ROLE_OF[confirm.side])
        checked = check_confirm(confirm, self._network, self._block_ms)
        now_ms = self._clock.now_ms()
        outcome = await self._store.write(
            lambda connection: apply(connection, confirm, checked, now_ms)
        )
        if not outcome.contradicting:
            return Acknowledged(ok=True), outcome
        return Acknowledged(
            ok=True,
            code=Conflict.code,
            message=f"{outcome.contradicting} records contradict what was confirmed before",
        ), outcome
