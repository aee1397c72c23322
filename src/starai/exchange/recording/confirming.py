"""Tells the registry what this party did: durable, in order of blocks, again until it is heard.

A record waits in the outbox, which survives a crash, until the registry acknowledges it. All that
waits is grouped by block, node and distributor and signed once a group. A node says only the root
of its group at first, a little later than its distributor says the records, and the records when
the registry asks for them. The part's number is the first four
bytes of its root: after a restart the same records make the same part, and other records another,
without any memory of what was sent; the registry takes either twice without harm. A record that
the registry will never take is put aside under another topic, and holds up no other. Knows
nothing of tasks, and never gives up.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import anyio
import msgspec

from starai.core.clock import Clock
from starai.core.concurrency import task_group
from starai.core.errors import (
    Conflict,
    InvalidRequest,
    MalformedFrame,
    Overloaded,
    SealBroken,
    StarAIError,
)
from starai.core.limits import CONFIRM_RECORDS_MAX
from starai.core.logging import event
from starai.protocol.frames import decode, encode
from starai.protocol.identity import Identity, KeyKind, PartyId, public_nkey
from starai.protocol.ports import Wire
from starai.protocol.records import RECORD_BYTES, TaskRecord, leaf_hash, set_root
from starai.protocol.registry import RECORDS_WANTED, Acknowledged, Confirm, Side, part_of
from starai.protocol.subjects import registry

_LOG = logging.getLogger(__name__)

#: Records read from the outbox at once: 2 MiB.
PENDING_MAX: Final = 4 * CONFIRM_RECORDS_MAX
#: Confirmations that await their answer at once: the registry commits them together.
IN_FLIGHT_MAX: Final = 8
#: How long an answer may take: a commit takes milliseconds, a busy registry a second.
ANSWER_TIMEOUT_S: Final = 5.0
#: A record is sent this long after the end of its block: stragglers share the signature. A node
#: lets its distributor speak first, so that its root alone will do.
GRACE_S: Final = {Side.DISTRIBUTOR: 0.1, Side.NODE: 0.5}
#: The pause after a failed round, doubled each time up to the longest.
BACKOFF_FIRST_S: Final = 0.25
BACKOFF_LONGEST_S: Final = 10.0

#: Refusals of what was said, not of who says it or when: saying it again cannot help.
_HOPELESS: Final = frozenset(
    kind.code for kind in (MalformedFrame, SealBroken, InvalidRequest, Conflict)
)


class Outbox(Protocol):
    """What a confirmer needs of `starai.wire.outbox.Outbox`."""

    async def append(self, topic: str, item: bytes, *, flushed: bool = True) -> int:
        """Keep ``item``; return its id once it is durable, or at least written."""
        ...

    def keep(self, topic: str, item: bytes) -> int:
        """Keep ``item``, durably a little later."""
        ...

    async def pending(self, topic: str, limit: int) -> list[tuple[int, bytes]]:
        """The oldest items that are not settled."""
        ...

    async def settle(self, ids: Sequence[int]) -> None:
        """Forget items; unknown ids are ignored."""
        ...


class ConfirmerState(msgspec.Struct, frozen=True):
    """How it goes: records acknowledged and put aside since the start, and what is wrong now.

    ``problem`` is the code of the last failure, or empty when the last round succeeded.
    """

    confirmed: int = 0
    put_aside: int = 0
    problem: str = ""


class _Part(msgspec.Struct, frozen=True):
    """Records of one block, node and distributor: each one's bytes, and its ids in the outbox."""

    block: int
    node: PartyId
    distributor: PartyId
    records: tuple[tuple[bytes, tuple[int, ...]], ...]

    @property
    def ids(self) -> list[int]:
        return [number for _, ids in self.records for number in ids]

    def halves(self) -> tuple[_Part, _Part]:
        middle = len(self.records) // 2
        return self.cut(0, middle), self.cut(middle, len(self.records))

    def cut(self, start: int, end: int) -> _Part:
        return msgspec.structs.replace(self, records=self.records[start:end])


@dataclass
class Confirmer:
    """One side's confirmations. `record` what was done; `run` while the service runs.

    ``flush_after_s`` bounds how long a record waits for its block to end: small in a network on
    one machine, where a signature more costs nothing, and larger than a block in a big one.
    """

    wire: Wire
    identity: Identity
    outbox: Outbox
    network: str
    block_ms: int
    side: Side
    clock: Clock
    flush_after_s: float = 1.0
    state: ConfirmerState = field(default_factory=ConfirmerState, init=False)
    _news: anyio.Event = field(default_factory=anyio.Event, init=False, repr=False)
    _one_round: anyio.Lock = field(default_factory=anyio.Lock, init=False, repr=False)

    def __post_init__(self) -> None:
        """Name the topics."""
        self._topic = f"confirm.{self.side.name.lower()}"
        #: Where records are kept that the registry will never take, for a person to look at.
        self.aside_topic = f"{self._topic}.refused"
        # Spreads the parties' retries after an outage without a source of chance.
        self._pace = 0.75 + self.identity.raw[0] / 512

    async def record(self, record: TaskRecord, note: bytes = b"") -> None:
        """Keep ``record`` until it is confirmed; returns once a crash of this party cannot lose it.

        A power cut cannot either, a little later: it loses more that was under way. A ``note`` is
        kept beside it for this party itself, as `notes` has it after a restart.

        Raises:
            Overloaded: the outbox is full: the registry has been away for too long.
            StoreFailed: the disk failed.
        """
        try:
            await self.outbox.append(self._topic, record.canonical() + note, flushed=False)
        finally:
            self._news.set()  # whoever is cancelled here has left it in the outbox all the same

    def record_soon(self, record: TaskRecord) -> None:
        """`record` without waiting: some milliseconds pass before a crash cannot lose it.

        Raises:
            Overloaded: the outbox is full: the registry has been away for too long.
            StoreFailed: the disk failed before.
        """
        self.outbox.keep(self._topic, record.canonical())
        self._news.set()

    async def notes(self) -> list[tuple[TaskRecord, bytes]]:
        """The records that wait with a note, each with its note, oldest first; not all of many."""
        pending = await self.outbox.pending(self._topic, PENDING_MAX)
        found = [(item[:RECORD_BYTES], item[RECORD_BYTES:]) for _, item in pending]
        return [(TaskRecord.parse(canonical), note) for canonical, note in found if note]

    async def run(self) -> None:
        """Confirm what is recorded, what an earlier run left first; until cancelled.

        Raises:
            StoreFailed: the outbox failed.
        """
        while True:
            self._news = anyio.Event()
            pause_s = BACKOFF_FIRST_S
            while not await self.flush():
                await anyio.sleep(pause_s * self._pace)
                pause_s = min(2 * pause_s, BACKOFF_LONGEST_S)
            await self._news.wait()  # for work, not for a party: it may rightly take for ever
            await anyio.sleep(self._until_due_s())

    async def flush(self) -> bool:
        """Confirm all that waits, without waiting for blocks to end, once.

        Returns whether nothing waits any more.
        """
        async with self._one_round:
            while pending := await self.outbox.pending(self._topic, PENDING_MAX):
                if not await self._confirm(await self._parts(pending)):
                    return False
            self.state = msgspec.structs.replace(self.state, problem="")
            return True

    def _until_due_s(self) -> float:
        left_ms = self.block_ms - self.clock.now_ms() % self.block_ms
        return min(self.flush_after_s, left_ms / 1000 + GRACE_S[self.side])

    async def _parts(self, pending: Sequence[tuple[int, bytes]]) -> list[_Part]:
        """What waits, by block, node and distributor, cut to what one confirmation may hold."""
        groups: dict[tuple[int, bytes, bytes], dict[bytes, list[int]]] = defaultdict(dict)
        for number, item in pending:
            canonical = item[:RECORD_BYTES]
            try:
                record = TaskRecord.parse(canonical)
            except MalformedFrame:
                await self._put_aside([number], canonical, MalformedFrame.code)
                continue
            group = groups[record.block(self.block_ms), record.node, record.distributor]
            group.setdefault(canonical, []).append(number)
        parts = []
        for (block, node, distributor), group in groups.items():
            parties = (_party(node), _party(distributor))
            # In an order that the other side has too, so that both cut alike.
            records = tuple((canonical, tuple(ids)) for canonical, ids in sorted(group.items()))
            whole = _Part(block, *parties, records)
            starts = range(0, len(records), CONFIRM_RECORDS_MAX)
            parts += [whole.cut(start, start + CONFIRM_RECORDS_MAX) for start in starts]
        return parts

    async def _confirm(self, parts: Sequence[_Part]) -> bool:
        """Send several parts at once; whether each was settled."""
        limiter = anyio.CapacityLimiter(IN_FLIGHT_MAX)
        failed: list[_Part] = []

        async def send(part: _Part) -> None:
            async with limiter:
                if not await self._deliver(part):
                    failed.append(part)

        async with task_group() as tasks:
            for part in parts:
                tasks.start_soon(send, part)
        return not failed

    async def _deliver(self, part: _Part) -> bool:
        """Send one part, or its halves if it is refused for good; whether all of it is settled."""
        answer = await self._ask(part, by_root=self.side is Side.NODE)
        if answer is not None and answer.code == RECORDS_WANTED:
            answer = await self._ask(part, by_root=False)
        if answer is None:
            return False
        if answer.ok:
            self.state = msgspec.structs.replace(
                self.state, confirmed=self.state.confirmed + len(part.ids)
            )
            if answer.code:
                self._report("records_contradict", part, answer.code)
            await self.outbox.settle(part.ids)
            return True
        if answer.code not in _HOPELESS:
            self._fail(part, answer.code)
            return False
        if len(part.records) > 1:
            one, other = part.halves()
            return all([await self._deliver(one), await self._deliver(other)])
        ((canonical, ids),) = part.records
        return await self._put_aside(ids, canonical, answer.code)

    async def _ask(self, part: _Part, *, by_root: bool) -> Acknowledged | None:
        canonical = [one for one, _ in part.records]
        root = set_root(map(leaf_hash, canonical))
        confirm = Confirm(
            network=self.network,
            block=part.block,
            part=part_of(root),
            side=self.side,
            node=part.node,
            distributor=part.distributor,
            count=len(canonical),
            charge_nano_usd=sum(TaskRecord.parse(one).charge_nano_usd for one in canonical),
            root=root,
            signature=b"",
            records=b"" if by_root else b"".join(canonical),
        )
        signature = self.identity.sign(confirm.signed_bytes())
        signed = msgspec.structs.replace(confirm, signature=signature)
        subject = registry("confirm", self.identity.party)
        try:
            reply = await self.wire.request(subject, encode(signed), timeout_s=ANSWER_TIMEOUT_S)
            return decode(reply, Acknowledged)
        except StarAIError as error:  # unheard, or the answer unread: the same part goes again
            self._fail(part, error.code)
            return None

    async def _put_aside(self, ids: Sequence[int], canonical: bytes, code: str) -> bool:
        """Move a hopeless record out of the way; False if there is no room for it just now."""
        event(_LOG, "record_put_aside", logging.ERROR, code=code, leaf=leaf_hash(canonical).hex())
        try:
            await self.outbox.append(self.aside_topic, canonical)
        except Overloaded:
            return False  # what others settle makes room for the next round
        await self.outbox.settle(ids)
        self.state = msgspec.structs.replace(self.state, put_aside=self.state.put_aside + len(ids))
        return True

    def _fail(self, part: _Part, code: str) -> None:
        if self.state.problem != code:  # once, not for every part of every round of an outage
            self._report("confirm_failed", part, code)
        self.state = msgspec.structs.replace(self.state, problem=code)

    def _report(self, what: str, part: _Part, code: str) -> None:
        count = len(part.records)
        event(_LOG, what, logging.WARNING, code=code, block=part.block, records=count)


def _party(raw: bytes) -> PartyId:
    return PartyId(public_nkey(KeyKind.USER, raw))
