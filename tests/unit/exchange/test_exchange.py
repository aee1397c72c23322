"""One task between a caller and callees, over wires that lose, repeat and reorder."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager

import anyio
import pytest
import trio
import trio.testing

from starai.core.errors import Overloaded, Unavailable
from starai.core.limits import ATTEMPTS_MAX
from starai.core.randomness import SeededRandomness
from starai.exchange.base import AttemptFailed, FailureKind, Settled, task_record
from starai.exchange.callee.serving import Refused, ServedTask, Serving
from starai.exchange.caller.attempt import Target
from starai.exchange.caller.carrying import Carrier
from starai.exchange.caller.journey import Journey
from starai.exchange.caller.offering import Ask, Offering
from starai.protocol import tokens
from starai.protocol.frames import peek
from starai.protocol.generation import Finish, Generation, Sampling
from starai.protocol.identity import PartyId
from starai.protocol.subjects import Role, offer
from starai.protocol.tasks import Close, Offer, RefusalCode
from starai.testing.parties import Parties
from starai.wire.memory import Faults, MemoryNetwork

pytestmark = pytest.mark.anyio
LENGTH = 30


@pytest.fixture
def anyio_backend(virtual_time: object) -> object:
    """All of this happens in virtual time."""
    return virtual_time


def token_at(position: int) -> int:
    """What every callee answers at a position: like a keyed sampler, whoever runs it."""
    return (position * 7919 + 13) % 50_000


WHOLE = [token_at(position) for position in range(LENGTH)]
GENERATION = Generation(
    prompt=tokens.pack(range(10)),
    max_tokens=LENGTH,
    sampling=Sampling(sample_key=b"k" * 32),
    stop_token_ids=(),
    salt=b"s" * 16,
)


async def answer_all(task: ServedTask, pause_s: float = 0.05) -> None:
    """Answer one token at a time from where the accepted ones end."""
    for position in range(tokens.count(task.generation.accepted), LENGTH):
        await anyio.sleep(pause_s)
        finish = Finish.LENGTH if position == LENGTH - 1 else None
        await task.send(tokens.pack([token_at(position)]), finish)


class Scene:
    """A network with one caller and some callees."""

    def __init__(self, parties: Parties, group: anyio.abc.TaskGroup) -> None:
        self.parties = parties
        self.group = group
        self.caller = parties.join(Role.DISTRIBUTOR)
        self.offering = Offering(self.caller)
        self.settled: list[Settled] = []
        self.callees: list[tuple[Serving, Target]] = []

    async def add_callee(self, handler: Callable[[ServedTask], Awaitable[None]]) -> Target:
        member = self.parties.join(Role.NODE)

        own = Role.NODE, (Role.DISTRIBUTOR,)
        serving = Serving(member, *own, handler, self.settled.append)
        await self.group.start(serving.run)
        target = Target(member.identity.party, Role.NODE, serving.prekey)
        self.callees.append((serving, target))
        return target

    def ask(self, target: Target, task_id: bytes = b"t" * 16, **changes: object) -> Ask:
        fields = {
            "task_id": task_id,
            "attempt": 0,
            "callee": target.callee,
            "role": target.role,
            "prekey": target.prekey,
            "model_root": b"m" * 32,
            "customer": 1,
            "deadline_ms": self.parties.clock.now_ms() + 60_000,
            "generation": GENERATION,
        }
        return Ask(**{**fields, **changes})  # type: ignore[arg-type]

    def journey(self, deadline_s: float = 60.0) -> Journey:
        deadline_ms = self.parties.clock.now_ms() + int(deadline_s * 1000)
        return Journey(b"t" * 16, b"m" * 32, 1, deadline_ms, GENERATION)


@asynccontextmanager
async def scene(faults: Faults | None = None, seed: int = 1) -> AsyncIterator[Scene]:
    async with (
        MemoryNetwork(SeededRandomness(seed), faults) as network,
        anyio.create_task_group() as group,
    ):
        made = Scene(Parties(network, seed=seed), group)
        async with made.offering.running():
            yield made
            group.cancel_scope.cancel()


class InTurn:
    """A route that takes its targets in turn and notes how each attempt ended."""

    def __init__(self, *targets: Target) -> None:
        self.targets = list(targets)
        self.endings: list[tuple[PartyId, FailureKind | None]] = []
        self.asked = 0

    async def choose(self, journey: Journey, failed: Collection[PartyId]) -> Target:
        target = self.targets[self.asked % len(self.targets)]
        self.asked += 1
        return target

    def choose_now(
        self,
        journey: Journey,
        failed: Collection[PartyId],
        *,
        spare: bool = False,
        even_resting: bool = False,
    ) -> Target | None:
        return next((one for one in self.targets if one.callee not in failed), None)

    def ended(self, target: Target, journey: Journey, failure: AttemptFailed | None) -> None:
        self.endings.append((target.callee, failure.kind if failure else None))


async def read_all(
    made: Scene, target: Target, task_id: bytes = b"t" * 16, **changes: object
) -> list[int]:
    ids: list[int] = []
    async with made.offering.offer(made.ask(target, task_id, **changes)) as answer:
        while not answer.finished:
            ids += tokens.unpack((await answer.receive()).ids)
    return ids


async def carry_all(
    made: Scene,
    route: InTurn,
    on_settled: Callable[[Settled, bytes], Awaitable[None]] | None = None,
) -> list[int]:
    ids: list[int] = []
    carrier = Carrier(made.caller, made.offering, route, on_settled)
    async with carrier.carry(made.journey()) as answer:
        while True:
            part = await answer.receive()
            ids += tokens.unpack(part.ids)
            if part.finish:
                return ids


async def test_an_answer_arrives_whole_and_in_order() -> None:
    """The caller reads what the callee sent."""
    async with scene() as made:
        target = await made.add_callee(answer_all)
        assert await read_all(made, target) == WHOLE


async def test_the_second_task_reuses_the_session() -> None:
    """A session is opened once: the second offer carries no opening and still works."""
    async with scene() as made:
        target = await made.add_callee(answer_all)
        assert await read_all(made, target, b"1" * 16) == WHOLE
        assert await read_all(made, target, b"2" * 16) == WHOLE


@pytest.mark.parametrize("seed", range(8))
async def test_repeated_and_reordered_chunks_change_nothing(seed: int) -> None:
    """Duplicates are dropped and early chunks wait for their turn."""
    faults = Faults(latency_s=0.01, jitter_s=0.02, duplication=0.3, reordering=0.3)
    async with scene(faults, seed) as made:
        target = await made.add_callee(answer_all)
        assert await read_all(made, target) == WHOLE


async def test_a_quiet_callee_that_works_is_not_given_up() -> None:
    """Signs of life keep the caller waiting for as long as the work takes."""

    async def slow(task: ServedTask) -> None:
        await anyio.sleep(20)
        await answer_all(task)

    async with scene() as made:
        target = await made.add_callee(slow)
        assert await read_all(made, target) == WHOLE


async def test_a_silent_callee_is_given_up_within_a_second() -> None:
    """A handler that neither answers nor gets on is silence."""

    async def stuck(task: ServedTask) -> None:
        task.is_alive = lambda: False
        await anyio.sleep_forever()

    async with scene() as made:
        target = await made.add_callee(stuck)
        began = anyio.current_time()
        with pytest.raises(AttemptFailed) as failed:
            await read_all(made, target)
        assert failed.value.kind is FailureKind.SILENT
        assert anyio.current_time() - began < 1.5


async def test_a_caller_that_overslept_does_not_blame_the_callee() -> None:
    """When the caller's own process did not get its turn for seconds, the answer goes on."""
    async with scene() as made:
        target = await made.add_callee(answer_all)
        clock = trio.lowlevel.current_clock()
        assert isinstance(clock, trio.testing.MockClock)

        async def oversleep() -> None:
            await anyio.sleep(0.52)
            clock.jump(4.0)

        made.group.start_soon(oversleep)
        assert await read_all(made, target) == WHOLE


async def test_leaving_early_cancels_the_callees_work() -> None:
    """When the caller leaves, the handler is cancelled at once."""
    stopped = anyio.Event()

    async def endless(task: ServedTask) -> None:
        try:
            while True:
                await task.send(tokens.pack([1]))
                await anyio.sleep(0.1)
        finally:
            stopped.set()

    async with scene() as made:
        target = await made.add_callee(endless)
        async with made.offering.offer(made.ask(target)) as answer:
            for _ in range(5):
                await answer.receive()
        with anyio.fail_after(0.5):
            await stopped.wait()


async def test_both_sides_derive_the_same_record() -> None:
    """What the callee settles and what the caller settled give equal canonical bytes."""
    async with scene() as made:
        target = await made.add_callee(answer_all)
        mine: list[Settled] = []

        async def note(settled: Settled, _close: bytes) -> None:
            mine.append(settled)

        await carry_all(made, InTurn(target), note)
        await anyio.sleep(0.1)
        raw = made.caller.identity.raw
        theirs = [task_record(one, b"n" * 32, raw).canonical() for one in made.settled]
        assert theirs == [task_record(one, b"n" * 32, raw).canonical() for one in mine]
        assert len(theirs) == 1


async def test_a_close_that_got_lost_is_said_again() -> None:
    """A callee that hears no close asks for it, so its record is not lost with one message."""
    async with scene() as made:
        target = await made.add_callee(answer_all)
        async with made.offering.offer(made.ask(target)) as answer:
            while not answer.finished:
                await answer.receive()
            made.parties.network.faults = Faults(loss=1.0)
        made.parties.network.faults = Faults()
        await anyio.sleep(5)
        assert [tokens.count(one.ids) for one in made.settled] == [LENGTH]


async def test_nothing_is_said_of_a_whole_answer_to_a_callee_without_books() -> None:
    """A callee that keeps no books is done with its last chunk; left in the middle, it is told."""
    async with scene() as made:
        made.offering = Offering(made.caller, closes_finished=False)
        member = made.parties.join(Role.NODE)
        serving = Serving(member, Role.NODE, (Role.DISTRIBUTOR,), answer_all)
        await made.group.start(serving.run)
        target = Target(member.identity.party, Role.NODE, serving.prekey)
        said: list[type | None] = []
        subject = offer(Role.NODE, target.callee)
        async with (
            made.offering.running(),
            member.wire.subscribe(subject, lambda one: said.append(peek(one.payload))),
        ):
            assert await read_all(made, target) == WHOLE
            await anyio.sleep(0.05)
            assert not serving.num_open
            assert said == [Offer]
            async with made.offering.offer(made.ask(target, b"u" * 16)) as answer:
                await answer.receive()
            await anyio.sleep(0.05)
            assert not serving.num_open
            assert said == [Offer, Offer, Close]


async def test_a_close_is_awaited_for_as_long_as_the_line_is_down() -> None:
    """A callee that is cut off right after its answer still hears later what it is owed."""
    async with scene() as made:
        target = await made.add_callee(answer_all)
        async with made.offering.offer(made.ask(target)) as answer:
            while not answer.finished:
                await answer.receive()
            cut_off = made.parties.network.outage(target.callee)
            cut_off.__enter__()
        await anyio.sleep(60)
        cut_off.__exit__(None, None, None)
        assert not made.settled
        await anyio.sleep(5)
        assert [tokens.count(one.ids) for one in made.settled] == [LENGTH]


async def test_a_close_outlives_the_caller_that_owes_it() -> None:
    """Dead after its record and before its close, a caller says the close when it is back."""
    async with scene() as made:
        target = await made.add_callee(answer_all)
        first, second = Offering(made.caller), Offering(made.caller)
        async with first.running():
            stream = await first.begin(made.ask(target))
            while not stream.finished:
                await stream.receive()
            frame = first.closing(stream)
        await anyio.sleep(3)
        assert not made.settled
        async with second.running():
            key = (stream.header.task_id, stream.header.attempt)
            second.say_closed(key, stream.subject, frame)
            await anyio.sleep(2)
        assert [tokens.count(one.ids) for one in made.settled] == [LENGTH]


async def test_an_offer_that_comes_twice_is_run_once() -> None:
    """A repeated offer does not start the work again."""
    runs: list[bytes] = []

    async def counting(task: ServedTask) -> None:
        runs.append(task.header.task_id)
        await answer_all(task)

    async with scene(Faults(duplication=1.0)) as made:
        target = await made.add_callee(counting)
        assert await read_all(made, target) == WHOLE
        assert len(runs) == 1


async def test_past_its_deadline_a_task_is_refused() -> None:
    """The callee stops by itself at the deadline and says why."""
    async with scene() as made:
        target = await made.add_callee(answer_all)
        deadline_ms = made.parties.clock.now_ms() + 500
        with pytest.raises(AttemptFailed) as failed:
            await read_all(made, target, deadline_ms=deadline_ms)
        assert failed.value.refusal == RefusalCode.DEADLINE


async def test_a_mistake_in_one_task_does_not_end_the_service() -> None:
    """A handler that raises something unforeseen refuses its task; the next one is served."""

    async def clumsy(task: ServedTask) -> None:
        if task.header.task_id == b"1" * 16:
            raise ZeroDivisionError
        await answer_all(task)

    async with scene() as made:
        target = await made.add_callee(clumsy)
        with pytest.raises(AttemptFailed) as failed:
            await read_all(made, target, b"1" * 16)
        assert failed.value.refusal == RefusalCode.ENGINE_FAILED
        assert await read_all(made, target, b"2" * 16) == WHOLE


async def dies_at(position: int, how: str, made_of: list[Scene]) -> Callable[..., Awaitable[None]]:
    """A handler that fails in some way after some tokens."""

    async def handler(task: ServedTask) -> None:
        for at in range(tokens.count(task.generation.accepted), position):
            await task.send(tokens.pack([token_at(at)]))
        match how:
            case "stall":
                task.is_alive = lambda: False
                await anyio.sleep_forever()
            case "refuse":
                raise Refused(RefusalCode.ENGINE_FAILED)
            case "rubbish":
                made = made_of[0]
                wire = made.parties.network.connect(task.header.callee, Role.NODE)
                subject = f"starai.answer.{task.header.callee}.{task.header.caller}"
                await wire.publish(subject, b"\x00rubbish")
                await anyio.sleep_forever()
            case _:
                made = made_of[0]
                made.offering.lose(task.header.callee)
                await anyio.sleep_forever()

    return handler


@pytest.mark.parametrize("how", ["stall", "refuse", "rubbish", "gone"])
@pytest.mark.parametrize("position", [0, 1, 17, LENGTH - 1])
async def test_fail_over_goes_on_with_the_very_next_token(how: str, position: int) -> None:
    """However the first callee fails, the reader sees one uninterrupted answer."""
    async with scene() as made:
        broken = await made.add_callee(await dies_at(position, how, [made]))
        sound = await made.add_callee(answer_all)
        route = InTurn(broken, sound)
        assert await carry_all(made, route) == WHOLE
        assert [kind for _, kind in route.endings][1:] == [None]
        assert route.endings[0][1] is not None


@pytest.mark.parametrize("seed", range(12))
async def test_lost_chunks_only_cost_attempts(seed: int) -> None:
    """Over a wire that loses 3 % the answer is still whole, or fails with a retryable error."""
    async with scene(Faults(loss=0.03, latency_s=0.005), seed) as made:
        first = await made.add_callee(answer_all)
        second = await made.add_callee(answer_all)
        with contextlib.suppress(Unavailable):
            assert await carry_all(made, InTurn(first, second)) == WHOLE


async def test_a_partial_answer_of_a_dead_callee_is_on_record_too() -> None:
    """Each attempt with accepted tokens is settled, with its own range."""
    async with scene() as made:
        broken = await made.add_callee(await dies_at(12, "stall", [made]))
        sound = await made.add_callee(answer_all)
        mine: list[Settled] = []

        async def note(settled: Settled, _close: bytes) -> None:
            mine.append(settled)

        await carry_all(made, InTurn(broken, sound), note)
        assert [tokens.count(one.ids) for one in mine] == [12, LENGTH - 12]
        assert [one.header.attempt for one in mine] == [0, 1]


async def test_attempts_are_limited() -> None:
    """When everybody keeps failing the reader is told, with a retryable error."""

    async def refuses(task: ServedTask) -> None:
        raise Refused(RefusalCode.BUSY, retry_after_ms=1500)

    async with scene() as made:
        busy = await made.add_callee(refuses)
        route = InTurn(busy)
        with pytest.raises(Overloaded) as failed:
            await carry_all(made, route)
        assert failed.value.retry_after_s == 1.5
        assert len(route.endings) == ATTEMPTS_MAX
