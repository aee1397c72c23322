"""A distributor between a gateway and scripted nodes, under virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
import msgspec
import pytest

from starai.core.errors import ContextTooLong, DeadlinePassed, Overloaded, StarAIError, Unavailable
from starai.core.limits import ATTEMPTS_MAX, BEAT_LEASE_S
from starai.distributor import service as module
from starai.distributor.service import Distributor
from starai.exchange.callee.serving import Refused, ServedTask, Serving
from starai.exchange.member import Member
from starai.exchange.recording.confirming import Confirmer
from starai.exchange.standing.pleading import plead
from starai.exchange.standing.presence import keep_beating
from starai.gateway.dispatch import Dispatch
from starai.protocol import tokens
from starai.protocol.frames import encode
from starai.protocol.generation import Finish, Generation, Sampling
from starai.protocol.ports import Submission
from starai.protocol.presence import SLOTS_MAX, Beat, ServedModel
from starai.protocol.records import RECORD_BYTES, TaskRecord
from starai.protocol.registry import Side
from starai.protocol.subjects import Role, answer
from starai.protocol.tasks import Answer, RefusalCode
from starai.testing.outboxes import MemoryOutbox
from starai.testing.parties import Parties
from starai.wire.memory import MemoryNetwork

pytestmark = pytest.mark.anyio

ROOT, LENGTH = b"m" * 32, 12
GENERATION = Generation(
    tokens.pack(range(8)), LENGTH, Sampling(b"k" * 32), stop_token_ids=(), salt=b"s" * 16
)
Handler = Callable[[ServedTask], Awaitable[None]]


@pytest.fixture
def anyio_backend(virtual_time: object) -> object:
    """All of this happens in virtual time."""
    return virtual_time


async def answer_all(task: ServedTask) -> None:
    for position in range(tokens.count(task.generation.accepted), LENGTH):
        await anyio.sleep(0.1)
        await task.send(tokens.pack([position]), Finish.LENGTH if position == LENGTH - 1 else None)


class Scene:
    def __init__(self, network: MemoryNetwork, tasks: anyio.abc.TaskGroup) -> None:
        self.network = network
        self.tasks = tasks
        self.parties = Parties(network)
        self.dispatch = Dispatch(self.parties.join(Role.GATEWAY))
        self.outbox = MemoryOutbox()
        self.member = self.parties.join(Role.DISTRIBUTOR)
        self.scope = anyio.CancelScope()
        self.model = ServedModel("m", ROOT, 1000, 4)

    async def start_distributor(self) -> None:
        member = self.member
        confirmer = Confirmer(
            *(member.wire, member.identity, self.outbox, "test", 2000, Side.DISTRIBUTOR),
            clock=member.clock,
        )

        async def run(*, task_status: anyio.abc.TaskStatus[None]) -> None:
            with self.scope:
                await Distributor(member, confirmer).run(task_status=task_status)

        await self.tasks.start(run)
        await anyio.sleep(1)

    async def add_node(
        self, handler: Handler = answer_all, role: Role = Role.NODE, by: Role = Role.DISTRIBUTOR
    ) -> Member:
        member = self.parties.join(role)
        serving = Serving(member, role, (by,), handler)
        await self.tasks.start(serving.run)

        def beat(seq: int) -> Beat:
            served = (*(member.identity.party, role.value, 1, seq, 1, False), 0, 0, 0, 0)
            return Beat(*served, serving.prekey, (self.model,))

        self.tasks.start_soon(keep_beating, member.wire, role, beat)
        await anyio.sleep(1)
        return member

    def submission(self, deadline_s: float = 60.0, **changes: object) -> Submission:
        deadline_ms = self.member.clock.now_ms() + int(deadline_s * 1000)
        made = Submission(b"t" * 16, "m", ROOT, 7, deadline_ms, GENERATION)
        return msgspec.structs.replace(made, **changes)

    async def read(self, submission: Submission | None = None) -> list[int]:
        ids: list[int] = []
        async with self.dispatch.submit(submission or self.submission()) as parts:
            async for part in parts:
                ids += tokens.unpack(part.ids)
        return ids

    async def records(self) -> list[TaskRecord]:
        found = await self.outbox.pending("confirm.distributor", 100)
        return [TaskRecord.parse(item[:RECORD_BYTES]) for _, item in found]


@asynccontextmanager
async def scene() -> AsyncIterator[Scene]:
    async with MemoryNetwork() as network, anyio.create_task_group() as tasks:
        made = Scene(network, tasks)
        async with made.dispatch.running():
            await made.start_distributor()
            yield made
            tasks.cancel_scope.cancel()


async def test_an_answer_is_on_record_before_its_end_is_handed_on() -> None:
    """Whoever saw the last token can be sure that the books know it."""
    async with scene() as made:
        node = await made.add_node()
        async with made.dispatch.submit(made.submission()) as parts:
            async for part in parts:
                done = await made.records() if part.finish else []
        (record,) = done
        assert (record.node, record.distributor) == (node.identity.raw, made.member.identity.raw)
        assert (record.prompt_tokens, record.answer_tokens, record.customer) == (8, LENGTH, 7)


async def test_a_client_that_hangs_up_is_charged_for_what_it_got() -> None:
    """The attempt is on record with the tokens that were accepted until then."""
    async with scene() as made:
        await made.add_node()
        with anyio.move_on_after(0.55):
            await made.read()
        await anyio.sleep(1)
        assert [one.answer_tokens for one in await made.records()] == [5]


async def test_a_node_that_dies_costs_its_own_part_only() -> None:
    """Each attempt has its own record, and together they are the whole answer."""
    died: list[bytes] = []

    async def dies_once(task: ServedTask) -> None:
        if not died:
            died.append(task.header.task_id)
            await task.send(tokens.pack(range(5)))
            raise Refused(RefusalCode.ENGINE_FAILED)
        await answer_all(task)

    async with scene() as made:
        for _ in range(2):
            await made.add_node(dies_once)
        assert await made.read() == list(range(LENGTH))
        records = await made.records()
        assert [one.answer_tokens for one in records] == [5, LENGTH - 5]
        assert len({one.attempt for one in records}) == 2


async def test_when_the_distributor_dies_another_carries_on_under_other_numbers() -> None:
    """No token is missing or doubled, and no two records claim the same attempt."""
    async with scene() as made:
        await made.add_node()
        ids: list[int] = []

        async def read() -> None:
            ids.extend(await made.read())

        async with anyio.create_task_group() as reading:
            reading.start_soon(read)
            await anyio.sleep(0.55)
            made.scope.cancel()
            await anyio.sleep(0.01)
            made.member, made.scope = made.parties.join(Role.DISTRIBUTOR), anyio.CancelScope()
            await made.start_distributor()
        assert ids == list(range(LENGTH))
        records = await made.records()
        assert len({one.attempt for one in records}) == len(records) == 2
        assert sum(one.answer_tokens for one in records) == LENGTH


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (RefusalCode.BUSY, Overloaded),
        (RefusalCode.CONTEXT_TOO_LONG, ContextTooLong),
        (RefusalCode.ENGINE_FAILED, Unavailable),
        (RefusalCode.DEADLINE, DeadlinePassed),
    ],
)
async def test_what_every_node_says_is_what_the_client_hears(
    code: str, expected: type[StarAIError]
) -> None:
    """A refusal keeps its meaning over both hops, and does not take for ever."""

    async def refuses(task: ServedTask) -> None:
        raise Refused(code, retry_after_ms=1500)

    async with scene() as made:
        await made.add_node(refuses)
        began = anyio.current_time()
        with pytest.raises(expected):
            await made.read()
        assert anyio.current_time() - began < 40


async def test_who_lost_its_nodes_says_so_and_another_distributor_goes_on() -> None:
    """In the middle of an answer its distributor hears no node any more: none of it is lost."""
    async with scene() as made:
        node, first = await made.add_node(), made.member
        ids: list[int] = []

        async def read() -> None:
            ids.extend(await made.read())

        async with anyio.create_task_group() as reading:
            reading.start_soon(read)
            await anyio.sleep(0.35)
            made.member, made.scope = made.parties.join(Role.DISTRIBUTOR), anyio.CancelScope()
            made.tasks.start_soon(made.start_distributor)
            await anyio.sleep(0.2)
            cut = made.network.partition([first.identity.party], [node.identity.party])
            with cut, anyio.fail_after(BEAT_LEASE_S + 3):  # until it believes that
                while len(ids) < LENGTH:
                    await anyio.sleep(0.1)
        assert ids == list(range(LENGTH))
        assert len({one.attempt for one in await made.records()}) == 2


async def test_busy_spills_over_once_to_another_distributor() -> None:
    """The second one says the same: the third is not asked, and the client is told when to come."""
    asked: list[bytes] = []

    async def busy(task: ServedTask) -> None:
        asked.append(task.header.callee)
        raise Refused(RefusalCode.BUSY, retry_after_ms=2000)

    async with scene() as made:
        for _ in range(3):
            await made.add_node(busy, Role.DISTRIBUTOR, by=Role.GATEWAY)
        began = anyio.current_time()
        with pytest.raises(Overloaded) as failed:
            await made.read()
        assert failed.value.retry_after_s == 2.0
        assert anyio.current_time() - began < 1
        assert len(set(asked)) == len(asked) == 2


async def test_busy_at_one_distributor_is_answered_by_the_next() -> None:
    """A request that one has no place for is answered when another has one."""
    num_refused = 0

    async def busy(task: ServedTask) -> None:
        nonlocal num_refused
        num_refused += 1
        raise Refused(RefusalCode.BUSY)

    async with scene() as made:
        await made.add_node(busy, Role.DISTRIBUTOR, by=Role.GATEWAY)
        await made.add_node(answer_all, Role.DISTRIBUTOR, by=Role.GATEWAY)
        for number in range(8):
            assert await made.read(made.submission(task_id=bytes([number]) * 16)) == [
                *range(LENGTH)
            ]
        assert num_refused


async def test_when_all_have_lost_their_nodes_the_client_may_come_again() -> None:
    """However many distributors say so one after the other, it is no wrong name of a model."""

    async def without_nodes(task: ServedTask) -> None:
        raise Refused(RefusalCode.UNKNOWN_MODEL)

    async with scene() as made:
        for _ in range(ATTEMPTS_MAX + 1):
            await made.add_node(without_nodes, Role.DISTRIBUTOR, by=Role.GATEWAY)
        with pytest.raises(Unavailable) as failed:
            await made.read()
        assert failed.value.retry_after_s


async def test_past_its_deadline_a_request_ends() -> None:
    """The client hears of it soon after the deadline, and the node is freed."""
    async with scene() as made:
        await made.add_node()
        began = anyio.current_time()
        with pytest.raises(DeadlinePassed):
            await made.read(made.submission(deadline_s=0.5))
        assert anyio.current_time() - began < 1


async def test_a_full_house_says_busy_once() -> None:
    """With all slots taken a request waits its time at the distributor, and is then refused."""

    async def endless(task: ServedTask) -> None:
        await anyio.sleep_forever()

    async with scene() as made:
        made.model = msgspec.structs.replace(made.model, slots=1)
        await made.add_node(endless)
        made.tasks.start_soon(made.read, made.submission(deadline_s=300))
        await anyio.sleep(0.5)
        began = anyio.current_time()
        with pytest.raises(Overloaded) as failed:
            await made.read(made.submission(task_id=b"2" * 16))
        assert failed.value.retry_after_s
        assert anyio.current_time() - began < 35
        made.tasks.cancel_scope.cancel()


async def test_boasting_nodes_do_not_stop_its_beat() -> None:
    """Whatever nodes claim, what the distributor says of them fits into a beat."""
    async with scene() as made:
        made.model = msgspec.structs.replace(made.model, slots=SLOTS_MAX)
        for _ in range(2):
            await made.add_node()
        await anyio.sleep(2)
        (served,) = made.dispatch.models()
        assert served.slots == SLOTS_MAX
        assert await made.read() == list(range(LENGTH))


def test_every_error_has_a_refusal() -> None:
    """What the caller can act on keeps its kind; the rest is: no node could."""
    assert module._as_refusal(Overloaded(retry_after_s=2.0)).retry_after_ms == 2000
    assert module._as_refusal(ContextTooLong()).code == RefusalCode.CONTEXT_TOO_LONG
    assert module._as_refusal(Unavailable()).code == RefusalCode.NO_NODE


async def test_the_tokens_of_a_whole_answer_travel_together() -> None:
    """Nobody reads a whole answer before its end: its tokens come a few times a second."""
    async with scene() as the:
        await the.add_node()
        sizes: dict[bool, list[int]] = {}
        for whole in (False, True):
            generation = msgspec.structs.replace(GENERATION, whole=whole)
            submission = the.submission(generation=generation, task_id=bytes([whole]) * 16)
            async with the.dispatch.submit(submission) as parts:
                sizes[whole] = [tokens.count(part.ids) async for part in parts if part.ids]
        assert sizes[False] == [1] * LENGTH
        assert sum(sizes[True]) == LENGTH
        assert len(sizes[True]) <= LENGTH // 2


async def test_a_node_that_makes_seals_up_rests_and_its_supplier_can_see_why() -> None:
    """The answer goes on elsewhere at once, and the lie is on the node's ladder."""

    async def lies(task: ServedTask) -> None:
        await task.send(tokens.pack([0]))
        header = task.header
        made_up = Answer(header.task_id, header.attempt, 2, b"made up".ljust(60))
        await task._wire.publish(answer(header.callee, header.caller), encode(made_up))
        await anyio.sleep_forever()

    async with scene() as made:
        liar = await made.add_node(lies)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(made.read)
            await anyio.sleep(0.1)
            honest = await made.add_node()
        for member, rung in ((liar, "quarantined"), (honest, "good")):
            (told,) = await plead(member, Role.NODE, "why")
            assert [(one.node, one.rung) for one in told.entries] == [(member.identity.party, rung)]
        assert [one.answer_tokens for one in await made.records()] == [1, LENGTH - 1]


async def test_what_nodes_send_unasked_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Once a minute, and only if there was something."""
    caplog.set_level("INFO")
    async with scene() as made:
        node = await made.add_node()
        stray = encode(Answer(b"x" * 16, 0, 0, b"nobody asked"))
        for _ in range(3):
            await node.wire.publish(answer(node.identity.party, made.member.identity.party), stray)
        await anyio.sleep(5 * module.REFUSED_EVERY_S)
        told = [one for one in caplog.records if one.getMessage() == "refused"]
        assert [one.starai_fields for one in told] == [{"unawaited": 3}]
