"""Whether a confirmation holds by itself: its form, its root, its signature. No database, no clock.

`Checks` checks beside the event loop all that wait at the same time, and when many do, in a second
process: half of the work is signatures, which another core can verify. Knows nothing of who may
confirm what (`confirmations.py`).
"""

from __future__ import annotations

import struct
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import msgspec

from starai.core.errors import ConfigurationRefused, InternalFault, MalformedFrame, StarAIError
from starai.core.helping import Helper, serve
from starai.core.limits import CONFIRM_RECORDS_MAX
from starai.protocol.identity import raw_public, verify
from starai.protocol.records import RECORD_BYTES, TaskRecord, leaf_hash, set_root
from starai.protocol.registry import Confirm, Side
from starai.registry.reconciling.words import CheckedRecord
from starai.registry.schema import INTEGER_MAX

#: A SHA-256.
ROOT_BYTES: Final = 32
#: The highest price of a token that a task's header can name, in nano-USD.
_PRICE_MAX: Final = (1 << 32) - 1
#: Confirmations that wait together from which a second process is asked: below that, the way there
#: and back costs about as much as it saves, and a small network needs none.
TOGETHER_MIN: Final = 16
#: Confirmations in one question: bounds how long the first of them waits for the last.
TOGETHER_MAX: Final = 256
#: The bytes of records in one question. Those of large confirmations are checked here: their
#: signatures are few.
TOGETHER_BYTES_MAX: Final = 1 << 20
#: An answer takes some 30 ms, the first one half a second more.
_ANSWER_S: Final = 10.0


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
    checked = _parsed(data)
    if not by_root:
        _check_root(confirm, {one.leaf for one in checked})
    verify(confirm.signer, signed, confirm.signature)
    _check_records(confirm, [one.record for one in checked], block_ms)
    return checked


def _parsed(data: bytes) -> list[CheckedRecord]:
    checked = []
    for start in range(0, len(data), RECORD_BYTES):
        canonical = data[start : start + RECORD_BYTES]
        checked.append(CheckedRecord(leaf_hash(canonical), canonical, TaskRecord.parse(canonical)))
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


class _Asked:
    """A confirmation that waits to be checked, and what came of it."""

    __slots__ = ("checked", "confirm", "failure")

    def __init__(self, confirm: Confirm) -> None:
        self.confirm = confirm
        self.checked: Sequence[CheckedRecord] = ()
        # Until it is seen to hold: what was left out, whatever the reason, does not.
        self.failure: Exception | None = InternalFault("a confirmation was not checked")


#: Has a job done off the event loop, each in its turn; `Store.beside`.
Beside = Callable[[Callable[[], None]], Awaitable[None]]


class Checks:
    """Checks confirmations of a network beside the event loop. Its owner calls `close`."""

    def __init__(self, network: str, block_ms: int, beside: Beside) -> None:
        """Take what confirmations are held to, and where to work."""
        self._network = network
        self._block_ms = block_ms
        self._beside = beside
        self._waiting: deque[_Asked] = deque()
        self.helper = Helper(__name__, [network, str(block_ms)], answer_s=_ANSWER_S)

    async def check(self, confirm: Confirm) -> Sequence[CheckedRecord]:
        """The records of a confirmation; see `check_confirm`.

        Raises:
            ConfigurationRefused, MalformedFrame, SealBroken: see `check_confirm`.
            InternalFault: it could not be checked.
            StoreFailed: see `Store.beside`.
        """
        asked = _Asked(confirm)
        self._waiting.append(asked)
        # Done when this returns: by this turn, or by an earlier one that took all that waited.
        await self._beside(self._check_waiting)
        if asked.failure is not None:
            raise asked.failure
        return asked.checked

    def close(self) -> None:
        """End the second process, if there is one."""
        self.helper.close()

    # From here on: beside the loop.

    def _check_waiting(self) -> None:
        # One lot a turn, oldest first: every turn of somebody's has its own confirmation checked.
        num = min(len(self._waiting), TOGETHER_MAX)
        together = [self._waiting.popleft() for _ in range(num)]
        verdict = self._verdict([asked.confirm for asked in together])
        for asked, holds in zip(together, verdict, strict=True):
            try:
                asked.checked = (
                    _parsed(asked.confirm.records)
                    if holds
                    else check_confirm(asked.confirm, self._network, self._block_ms)
                )
                asked.failure = None
            except Exception as error:  # noqa: BLE001 - raised again in whoever asked
                asked.failure = error

    def _verdict(self, confirms: Sequence[Confirm]) -> bytes:
        """Of each 1 if it was seen to hold, 0 if it is still to be checked."""
        unseen = bytes(len(confirms))
        size = sum(len(confirm.records) for confirm in confirms)
        if len(confirms) < TOGETHER_MIN or size > TOGETHER_BYTES_MAX:
            return unseen
        try:
            verdict = self.helper.ask(msgspec.msgpack.encode(confirms))
        except InternalFault:  # it is not needed, only quicker
            return unseen
        return verdict if len(verdict) == len(confirms) else unseen


def answer(question: bytes, network: str, block_ms: int) -> bytes:
    """In the second process: of each confirmation of a question, 1 if it holds and 0 if not."""
    verdict = bytearray()
    for confirm in msgspec.msgpack.decode(question, type=list[Confirm]):
        try:
            check_confirm(confirm, network, block_ms)
            verdict.append(1)
        except StarAIError:  # checked once more by who asked, who says why
            verdict.append(0)
    return bytes(verdict)


if __name__ == "__main__":
    _NETWORK, _BLOCK_MS = sys.argv[1], int(sys.argv[2])
    serve(lambda question: answer(question, _NETWORK, _BLOCK_MS))
