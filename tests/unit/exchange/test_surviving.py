"""Stalls, late first tokens, drains, floods and lies: the reader sees one whole answer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager

import anyio
import msgspec
import pytest

from starai.core.errors import Unavailable
from starai.core.limits import ATTEMPTS_MAX
from starai.exchange.base import AttemptFailed, FailureKind, Settled, task_record
from starai.exchange.callee.serving import Refused, ServedTask, Serving
from starai.exchange.caller import offering as offering_module
from starai.exchange.caller.attempt import Target
from starai.exchange.caller.carrying import Carrier
from starai.exchange.caller.hedging import SAMPLES_MIN, Hedging
from starai.exchange.caller.journey import Journey, attempts_within
from starai.exchange.caller.offering import Offering
from starai.exchange.caller.pacing import FIRST_UNKNOWN_S, Paces
from starai.exchange.standing.ladder import Fault
from starai.protocol import tokens
from starai.protocol.frames import encode, peek
from starai.protocol.generation import Finish, Generation, Sampling
from starai.protocol.identity import PartyId
from starai.protocol.ports import Delivery
from starai.protocol.subjects import Role, answer
from starai.protocol.tasks import Answer, RefusalCode, TokenPrice
from starai.testing.parties import Parties
from starai.wire.memory import MemoryNetwork

pytestmark = pytest.mark.anyio

LENGTH = 40
PRICE = TokenPrice(price_id=3, input_nano_usd=20, output_nano_usd=60)
WHOLE = [(position * 7919 + 13) % 50_000 for position in range(LENGTH)]
GENERATION = Generation(
    tokens.pack(range(10)), LENGTH, Sampling(b"k" * 32), stop_token_ids=(), salt=b"s" * 16
)
Handler = Callable[[ServedTask], Awaitable[None]]


@pytest.fixture
def anyio_backend(virtual_time: object) -> object:
    """All of this happens in virtual time."""
    return virtual_time


async def send_from(task: ServedTask, first: int, last: int, pause_s: float = 0.05) -> None:
    for position in range(first, last):
        await anyio.sleep(pause_s)
        finish = Finish.LENGTH if position == LENGTH - 1 else None
        await task.send(tokens.pack([WHOLE[position]]), finish)


async def answer_all(task: ServedTask) -> None:
    await send_from(task, tokens.count(task.generation.accepted), LENGTH)


def stalls_at(position: int, pause_s: float = 0.05) -> Handler:
    """Signs of life go on, tokens do not: for a minute, then they do."""

    async def handler(task: ServedTask) -> None:
        await send_from(task, tokens.count(task.generation.accepted), position, pause_s)
        await anyio.sleep(60)
        await send_from(task, position, LENGTH)

    return handler


class Scene:
    """A caller with everything that makes it survive, callees in order of preference, books."""

    def __init__(self, network: MemoryNetwork, group: anyio.abc.TaskGroup) -> None:
        self.network, self.group = network, group
        self.parties = Parties(network)
        self.caller = self.parties.join(Role.DISTRIBUTOR)
        self.faults: list[tuple[PartyId, Fault]] = []
        self.offering = Offering(
            self.caller, on_fault=lambda party, fault: self.faults.append((party, fault))
        )
        self.targets: list[Target] = []
        self.servings: dict[PartyId, Serving] = {}
        self.busy: set[PartyId] = set()
        self.resting: set[PartyId] = set()
        self.in_use: list[PartyId] = []
        self.chosen: list[PartyId] = []
        self.endings: list[tuple[PartyId, AttemptFailed | None]] = []
        self.caller_book: list[Settled] = []
        self.callee_book: list[Settled] = []
        #: How long a record takes to be kept.
        self.disk_s = 0.0
        self.hedging = Hedging()
        self.carrier = Carrier(
            *(self.caller, self.offering, self, self.note_caller),
            paces=Paces(),
            hedging=self.hedging,
        )

    async def add(self, handler: Handler) -> PartyId:
        member = self.parties.join(Role.NODE)
        serving = Serving(member, Role.NODE, (Role.DISTRIBUTOR,), handler, self.note_callee)
        await self.group.start(serving.run)
        self.targets.append(Target(member.identity.party, Role.NODE, serving.prekey))
        self.servings[member.identity.party] = serving
        return member.identity.party

    async def note_caller(self, settled: Settled, _close: bytes) -> None:
        await anyio.sleep(self.disk_s)
        self.caller_book.append(settled)

    def note_callee(self, settled: Settled) -> None:
        self.callee_book.append(settled)

    async def choose(self, journey: Journey, failed: Collection[PartyId]) -> Target:
        while (target := self.choose_now(journey, failed)) is None:
            await anyio.sleep(0.1)
        return target

    def choose_now(
        self,
        journey: Journey,
        failed: Collection[PartyId],
        *,
        spare: bool = False,
        even_resting: bool = False,
    ) -> Target | None:
        away = self.busy if even_resting else self.busy | self.resting
        for target in self.targets:
            if target.callee not in failed and target.callee not in away:
                self.in_use.append(target.callee)
                self.chosen.append(target.callee)
                return target
        return None

    def ended(self, target: Target, journey: Journey, failure: AttemptFailed | None) -> None:
        self.in_use.remove(target.callee)
        self.endings.append((target.callee, failure))

    @property
    def kinds(self) -> list[FailureKind | None]:
        return [failure.kind if failure else None for _, failure in self.endings]

    async def read(self, number: int = 0) -> list[int]:
        ids = await self.read_beside(number)
        assert self.in_use == []
        return ids

    async def read_beside(self, number: int, accepted: int = 0, attempt: int = 0) -> list[int]:
        deadline_ms = self.caller.clock.now_ms() + 300_000
        ids = WHOLE[:accepted]
        generation = msgspec.structs.replace(GENERATION, accepted=tokens.pack(ids))
        journey = Journey(
            *(number.to_bytes(16, "big"), b"m" * 32, 1, deadline_ms, generation, PRICE),
            first_attempt=attempts_within(attempt),
        )
        async with self.carrier.carry(journey) as carried:
            finish = None
            while finish is None:
                part = await carried.receive()
                ids += tokens.unpack(part.ids)
                finish = part.finish
        return ids

    async def books_agree(self) -> int:
        await anyio.sleep(15)
        raw = self.caller.identity.raw
        mine, theirs = (
            sorted(task_record(one, b"n" * 32, raw).canonical() for one in book)
            for book in (self.caller_book, self.callee_book)
        )
        assert mine == theirs
        return len(mine)


@asynccontextmanager
async def scene(*handlers: Handler) -> AsyncIterator[Scene]:
    async with MemoryNetwork() as network, anyio.create_task_group() as group:
        made = Scene(network, group)
        for handler in handlers:
            await made.add(handler)
        async with made.offering.running():
            yield made
            group.cancel_scope.cancel()


async def test_a_stall_behind_signs_of_life_is_noticed_within_a_second() -> None:
    """An engine that hangs while its node lives costs less than a second, and no token."""
    async with scene(stalls_at(20), answer_all) as made:
        began_s = anyio.current_time()
        assert await made.read() == WHOLE
        assert made.kinds == [FailureKind.STALLED, None]
        lost_s = anyio.current_time() - began_s - LENGTH * 0.05
        assert 0.8 < lost_s < 1.0
        assert await made.books_agree() == 2


async def test_a_customer_pays_the_prompt_once_however_many_answered() -> None:
    """An attempt that carries on what another began charges for its own tokens only."""
    async with scene(stalls_at(10), stalls_at(25), answer_all) as made:
        assert await made.read() == WHOLE
        raw = made.caller.identity.raw
        records = [task_record(one, b"n" * 32, raw) for one in made.caller_book]
        num_prompt = tokens.count(GENERATION.prompt)
        assert [one.charge_nano_usd for one in records] == [
            20 * num_prompt + 60 * 10,
            60 * 15,
            60 * 15,
        ]
        assert {one.price_id for one in records} == {3}
        assert await made.books_agree() == 3


async def test_a_slow_node_is_not_taken_for_a_stalled_one() -> None:
    """Two seconds a token is slow, not broken: the deadline follows the answer's own pace."""

    async def slow(task: ServedTask) -> None:
        await send_from(task, 0, LENGTH, pause_s=2.0)

    async with scene(slow, answer_all) as made:
        assert await made.read() == WHOLE
        assert made.kinds == [None]


async def test_a_long_prefill_is_waited_for_while_it_gives_signs_of_life() -> None:
    """As long as a prompt of that length takes there, and some more."""

    async def thinks(task: ServedTask) -> None:
        await anyio.sleep(9)
        await answer_all(task)

    async with scene(thinks, answer_all) as made:
        assert await made.read(0) == WHOLE
        assert await made.read(1) == WHOLE
        assert made.kinds == [None, None]


async def test_a_first_token_that_is_long_overdue_is_a_stall() -> None:
    """Eight times what its prompts took is enough."""
    calls: list[int] = []

    async def then_never(task: ServedTask) -> None:
        calls.append(1)
        await (answer_all if len(calls) == 1 else stalls_at(0))(task)

    async with scene(then_never, answer_all) as made:
        assert await made.read(0) == WHOLE
        began_s = anyio.current_time()
        assert await made.read(1) == WHOLE
        assert anyio.current_time() - began_s < 2.1 + LENGTH * 0.05
        assert made.kinds == [None, FailureKind.LATE, None]


async def test_with_nobody_else_a_stalled_answer_is_waited_for() -> None:
    """Leaving the only node that serves the model would lose more than waiting for it."""
    async with scene(stalls_at(20)) as made:
        assert await made.read() == WHOLE
        assert made.kinds == [None]


async def test_a_stalled_answer_goes_on_as_soon_as_somebody_is_free() -> None:
    """The other was busy when the stall was noticed; a moment later it is not."""
    async with scene(stalls_at(20), answer_all) as made:
        made.busy.add(made.targets[1].callee)

        async def free() -> None:
            await anyio.sleep(5)
            made.busy.clear()

        made.group.start_soon(free)
        began_s = anyio.current_time()
        assert await made.read() == WHOLE
        assert 5 < anyio.current_time() - began_s < 7
        assert made.kinds == [FailureKind.STALLED, None]


async def test_a_drained_node_is_relieved_at_once_and_not_blamed() -> None:
    """The answer goes on elsewhere with the next token; both sides book what each did."""
    async with scene(answer_all, answer_all) as made:

        async def drain() -> None:
            await anyio.sleep(1.0)
            made.offering.drain(made.targets[0].callee)

        made.group.start_soon(drain)
        began_s = anyio.current_time()
        assert await made.read() == WHOLE
        assert made.kinds == [FailureKind.HANDED_OVER, None]
        assert anyio.current_time() - began_s < LENGTH * 0.05 + 0.11
        assert await made.books_agree() == 2


async def test_a_drained_node_that_nobody_can_relieve_finishes() -> None:
    """Draining loses no answer."""
    async with scene(answer_all) as made:

        async def drain() -> None:
            await anyio.sleep(1.0)
            made.offering.drain(made.targets[0].callee)

        made.group.start_soon(drain)
        assert await made.read() == WHOLE
        assert made.kinds == [None]


async def test_a_node_that_dismisses_its_tasks_loses_no_token() -> None:
    """A refusal in mid-answer comes behind the last token; the next node goes on from there."""
    async with scene(answer_all, answer_all) as made:

        async def dismiss() -> None:
            await anyio.sleep(1.01)
            made.servings[made.targets[0].callee].dismiss(RefusalCode.DRAINING)

        made.group.start_soon(dismiss)
        assert await made.read() == WHOLE
        (_, first), _ = made.endings
        assert first is not None
        assert first.refusal == RefusalCode.DRAINING
        assert await made.books_agree() == 2


async def test_a_late_first_token_is_asked_for_twice_and_paid_once() -> None:
    """The second is first with a token; the first gets nothing, and neither is blamed."""
    late: list[int] = []

    async def sometimes_late(task: ServedTask) -> None:
        await anyio.sleep(1.5 if late else 0)
        await answer_all(task)

    async with scene(sometimes_late, answer_all) as made:
        for number in range(SAMPLES_MIN):
            assert await made.read(number) == WHOLE
        await anyio.sleep(1)  # until the callee has booked the last one, too
        late.append(1)
        made.caller_book.clear()
        made.callee_book.clear()
        began_s = anyio.current_time()
        assert await made.read(99) == WHOLE
        assert anyio.current_time() - began_s < LENGTH * 0.05 + 0.2
        assert made.kinds[-2:] == [FailureKind.OUTRUN, None]
        assert made.endings[-1][0] == made.targets[1].callee
        assert (made.hedging.num_hedged, made.hedging.num_won) == (1, 1)
        assert await made.books_agree() == 1


async def test_a_hedge_that_loses_is_cancelled() -> None:
    """The first comes after all, before the second: the second is closed without a record."""
    late: list[int] = []

    async def first(task: ServedTask) -> None:
        await anyio.sleep(0.3 if late else 0)
        await answer_all(task)

    async with scene(first, stalls_at(0)) as made:
        for number in range(SAMPLES_MIN):
            await made.read(number)
        await anyio.sleep(1)  # until the callee has booked the last one, too
        late.append(1)
        made.caller_book.clear()
        made.callee_book.clear()
        assert await made.read(99) == WHOLE
        assert made.kinds[-2:] == [FailureKind.OUTRUN, None]
        assert (made.hedging.num_hedged, made.hedging.num_won) == (1, 0)
        assert await made.books_agree() == 1
        assert all(not serving.num_open for serving in made.servings.values())


async def test_progress_forgives_earlier_failures() -> None:
    """A long answer may lose many nodes, as long as each brings it on."""

    async def dies_soon(task: ServedTask) -> None:
        first = tokens.count(task.generation.accepted)
        await send_from(task, first, min(first + 4, LENGTH))
        if first + 4 < LENGTH:
            raise Refused(RefusalCode.ENGINE_FAILED)

    async with scene(*([dies_soon] * 12)) as made:
        assert await made.read() == WHOLE
        assert len(made.endings) == LENGTH // 4
        assert await made.books_agree() == LENGTH // 4


async def test_a_chunk_that_comes_twice_is_one_and_another_under_its_number_is_a_lie() -> None:
    """Repeated bytes are counted and dropped; other bytes end the attempt as answered twice."""
    async with scene(answer_all, answer_all) as made:
        liar = made.targets[0].callee
        wire = made.network.connect(liar, Role.NODE)
        subject = answer(liar, made.caller.identity.party)
        heard: list[bytes] = []

        def hear(delivery: Delivery) -> None:
            if peek(delivery.payload) is Answer:
                heard.append(delivery.payload)

        async def repeat_then_lie() -> None:
            await anyio.sleep(0.52)
            await wire.publish(subject, heard[3])
            await anyio.sleep(0.5)
            header = made.offering._of(liar)[0].header
            await wire.publish(subject, encode(Answer(header.task_id, header.attempt, 3, b"lie")))

        spy = made.network.connect(made.caller.identity.party)
        async with spy.subscribe(subject, hear):
            made.group.start_soon(repeat_then_lie)
            assert await made.read() == WHOLE
        assert made.kinds == [FailureKind.TWICE, None]
        assert made.offering.refused["repeated"] >= 1


async def test_a_node_cannot_answer_for_another() -> None:
    """The wire holds it to its own subject; on that, another's task number is impersonation."""
    async with scene(answer_all) as made:
        honest = made.targets[0].callee
        caller = made.caller.identity.party
        liar = made.parties.join(Role.NODE)

        async def impersonate() -> None:
            await anyio.sleep(0.5)
            header = made.offering._of(honest)[0].header
            forged = encode(Answer(header.task_id, header.attempt, 8, b"forged"))
            await liar.wire.publish(answer(honest, caller), forged)
            await liar.wire.publish(answer(liar.identity.party, caller), forged)

        made.group.start_soon(impersonate)
        assert await made.read() == WHOLE
        assert made.faults == [(liar.identity.party, Fault.IMPERSONATION)]
        assert made.offering.refused["impersonation"] == 1
        assert made.kinds == [None]


async def test_a_flood_is_dropped_and_disturbs_nobody_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Thousands of chunks that nobody asked for are counted, then not even read."""
    read: list[bytes] = []
    decode = offering_module.decode

    def counting(frame: bytes, kind: type[msgspec.Struct]) -> object:
        read.append(frame)
        return decode(frame, kind)  # type: ignore[type-var]

    monkeypatch.setattr(offering_module, "decode", counting)
    async with scene(answer_all) as made:
        flooder = made.parties.join(Role.NODE)
        subject = answer(flooder.identity.party, made.caller.identity.party)

        async def flood() -> None:
            for number in range(20_000):
                await flooder.wire.publish(subject, encode(Answer(b"x" * 16, number, 0, b"y")))

        made.group.start_soon(flood)
        assert await made.read() == WHOLE
        assert made.faults == [(flooder.identity.party, Fault.FLOOD)]
        assert len(read) < 2 * offering_module.UNAWAITED_BURST
        assert made.offering.refused["flood"] > 15_000
        assert made.kinds == [None]


async def test_signs_of_life_without_end_are_a_flood_too() -> None:
    """A callee that sends empty chunks as fast as it can is left for another."""

    async def chatters(task: ServedTask) -> None:
        while True:
            for _ in range(50):
                await task.send()
            await anyio.sleep(0.01)

    async with scene(chatters, answer_all) as made:
        assert await made.read() == WHOLE
        assert made.kinds == [FailureKind.FLOOD, None]


def fails_after(number: int) -> Handler:
    """Its engine fails after so many tokens."""

    async def handler(task: ServedTask) -> None:
        await send_from(task, tokens.count(task.generation.accepted), number)
        raise Refused(RefusalCode.ENGINE_FAILED)

    return handler


async def test_an_answer_that_was_broken_off_is_asked_for_twice_if_the_next_is_mute_too() -> None:
    """After 0.3 s while nothing is known of it, a last resort, too; no hedge is spent on that."""
    async with scene(fails_after(10), stalls_at(0), answer_all) as made:
        made.hedging.hedged()  # the last one
        made.resting.add(made.targets[2].callee)
        began_s = anyio.current_time()
        assert await made.read() == WHOLE
        assert anyio.current_time() - began_s < LENGTH * 0.05 + 0.4
        assert made.kinds == [FailureKind.REFUSED, FailureKind.OUTRUN, None]
        assert made.hedging.num_hedged == 1
        assert await made.books_agree() == 2


@pytest.mark.parametrize("accepted", [0, 30])
async def test_an_answer_that_another_began_to_carry_does_not_wait_for_a_mute_callee_either(
    accepted: int,
) -> None:
    """Its distributor died: here it is new, but its reader has waited, with or without a token."""
    async with scene(stalls_at(0), answer_all) as made:
        made.hedging.hedged()  # the last one
        began_s = anyio.current_time()
        assert await made.read_beside(0, accepted, attempt=1) == WHOLE
        assert anyio.current_time() - began_s < (LENGTH - accepted) * 0.05 + 0.4
        assert made.kinds == [FailureKind.OUTRUN, None]


async def test_the_second_is_asked_soon_where_the_speed_of_the_first_is_known() -> None:
    """Twice as long as a prompt of that length takes there."""
    calls: list[int] = []

    async def once(task: ServedTask) -> None:
        calls.append(1)
        await (answer_all if len(calls) == 1 else stalls_at(0))(task)

    async with scene(fails_after(10), once, answer_all) as made:
        made.busy.add(made.targets[0].callee)
        assert await made.read(0) == WHOLE
        made.busy.clear()
        began_s = anyio.current_time()
        assert await made.read(1) == WHOLE
        # A prompt of 10 took 0.05 s, so the 20 tokens of now should take 0.1 s.
        assert anyio.current_time() - began_s < LENGTH * 0.05 + 0.25
        assert made.kinds[1:] == [FailureKind.REFUSED, FailureKind.OUTRUN, None]


async def test_a_callee_that_serves_others_is_no_reason_to_ask_twice_for_nothing() -> None:
    """It is there and busy: another offer would be one of those that are bounded."""

    async def slow_to_go_on(task: ServedTask) -> None:
        await anyio.sleep(1.0 if task.generation.accepted else 0)
        await answer_all(task)

    async with scene(fails_after(10), slow_to_go_on, answer_all) as made:
        made.hedging.hedged()  # the last one

        async def other() -> None:
            made.busy.add(made.targets[0].callee)
            await made.read_beside(0)

        made.group.start_soon(other)
        await anyio.sleep(0.3)
        made.busy.clear()
        assert await made.read_beside(1) == WHOLE
        assert FailureKind.OUTRUN not in made.kinds


async def test_an_answer_goes_on_where_others_get_on() -> None:
    """A callee whose own answers pause is probably the next to be given up."""
    async with scene(fails_after(13), stalls_at(10), answer_all) as made:
        dying, stalled, sound = (target.callee for target in made.targets)
        made.busy |= {dying, sound}

        async def other() -> None:
            await made.read_beside(0)

        made.group.start_soon(other)
        await anyio.sleep(0.1)
        made.busy -= {dying, sound}
        assert await made.read_beside(1) == WHOLE
        assert made.chosen[:3] == [stalled, dying, sound]


async def test_a_new_request_goes_where_others_get_on() -> None:
    """The same when it begins; with nobody else free, it goes where the route says."""
    async with scene(stalls_at(10), answer_all) as made:
        stalled, sound = (target.callee for target in made.targets)
        for number in range(2):
            made.group.start_soon(made.read_beside, number)
        await anyio.sleep(0.8)
        made.busy.add(sound)
        made.group.start_soon(made.read_beside, 2)
        await anyio.sleep(0.001)
        made.busy.clear()
        began_s = anyio.current_time()
        assert await made.read_beside(3) == WHOLE
        assert anyio.current_time() - began_s < LENGTH * 0.05 + 0.1
        assert made.chosen[:5] == [stalled, stalled, stalled, stalled, sound]


async def test_whoever_goes_on_is_asked_before_the_end_of_the_last_is_on_record() -> None:
    """A slow disk does not lengthen the pause; both are on record in the end."""
    async with scene(fails_after(10), answer_all) as made:
        made.disk_s = 0.8
        began_s = anyio.current_time()
        assert await made.read() == WHOLE
        # The disk takes its time twice, the second node answers meanwhile.
        assert anyio.current_time() - began_s < LENGTH * 0.05 + 0.9
        assert await made.books_agree() == 2


async def test_a_reader_that_leaves_while_nobody_is_free_leaves_a_record() -> None:
    """What was accepted before is owed, though nobody ever went on."""
    async with scene(fails_after(10)) as made:

        async def leave_nobody() -> None:
            await anyio.sleep(0.1)
            made.busy.add(made.targets[0].callee)

        made.group.start_soon(leave_nobody)
        with anyio.move_on_after(2.0):
            await made.read()
        assert len(made.chosen) == 1
        assert await made.books_agree() == 1


@pytest.mark.timeout(20)  # or it would look for ever: time stands still meanwhile
async def test_the_last_try_is_waited_for_without_looking_all_the_time() -> None:
    """After five failures slow may be all that there is: its stall is one, and nobody gives up."""

    async def fails(task: ServedTask) -> None:
        raise Refused(RefusalCode.ENGINE_FAILED)

    async def thinks(task: ServedTask) -> None:
        await anyio.sleep(FIRST_UNKNOWN_S + 5)
        await answer_all(task)

    async with scene(*(fails,) * (ATTEMPTS_MAX - 1), thinks) as made:
        assert await made.read() == WHOLE
        assert made.kinds == [FailureKind.REFUSED] * (ATTEMPTS_MAX - 1) + [None]


async def test_a_second_callee_is_not_asked_under_a_number_of_the_next_distributor() -> None:
    """The numbers of attempts are a gateway's to give out: beyond its own there are others'."""
    numbers: list[int] = []

    async def is_mute(task: ServedTask) -> None:
        numbers.append(task.header.attempt)
        if len(numbers) == 1:
            raise Refused(RefusalCode.UNKNOWN_SESSION)  # it is asked again
        await anyio.sleep(1000)

    async def gives_one(task: ServedTask) -> None:
        numbers.append(task.header.attempt)
        position = tokens.count(task.generation.accepted)
        await send_from(task, position, position + 1)
        raise Refused(RefusalCode.ENGINE_FAILED)

    async with scene(is_mute, gives_one, gives_one) as made:
        with pytest.raises(Unavailable):
            await made.read_beside(0, attempt=1)
        assert sorted(numbers) == list(range(attempts_within(1), attempts_within(2)))
        assert made.in_use == []
