"""The road from a gateway's port to an engine and back, over the in-memory wire."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import anyio
import msgspec
import pytest

from starai.core.clock import SystemClock
from starai.core.errors import ContextTooLong, DeadlinePassed, Unavailable
from starai.distributor.service import Distributor
from starai.engines.base import EngineSpec
from starai.exchange.member import Member
from starai.exchange.recording.confirming import Confirmer
from starai.gateway.dispatch import Dispatch
from starai.local.nodes import NodeOptions, engine_spec
from starai.matching import placement
from starai.models.catalog import open_model
from starai.node.moving import Moving
from starai.node.pricing import LeastPrices
from starai.node.runner import Runner
from starai.node.service import Node
from starai.node.yielding import Limits, Reading, Yielding
from starai.protocol import tokens
from starai.protocol.generation import Generation, Part, Sampling
from starai.protocol.ports import Submission
from starai.protocol.registry import PriceEntry, Prices, Side
from starai.protocol.subjects import Role
from starai.protocol.tasks import TokenPrice
from starai.testing.parties import Parties
from starai.wire.memory import MemoryNetwork
from starai.wire.outbox import Outbox

pytestmark = pytest.mark.anyio


class Owner:
    """What a device's owner does: what a sensor would see of it."""

    interval_s = 0.25
    blocking = False

    def __init__(self) -> None:
        self.doing = Reading(num_cores=2, others_cores=0.0)

    def read(self) -> Reading:
        return self.doing


class Road:
    """One gateway, one distributor and some nodes with mock engines."""

    def __init__(self, parties: Parties, stack: AsyncExitStack, folder: Path) -> None:
        self.parties = parties
        self.stack = stack
        self.folder = folder
        self.runners: list[Runner] = []
        self.owners: list[Owner] = []
        self.outboxes: dict[str, Outbox] = {}
        self.dispatch = Dispatch(parties.join(Role.GATEWAY))

    async def confirmer(self, member: Member, side: Side) -> Confirmer:
        name = member.identity.party
        outbox = await self.stack.enter_async_context(Outbox(self.folder / name))
        self.outboxes[side.name] = outbox
        return Confirmer(member.wire, member.identity, outbox, "test", 2000, side, member.clock)

    async def start(
        self, num_nodes: int, step_delay_ms: float, prices: LeastPrices | None = None
    ) -> None:
        distributor = self.parties.join(Role.DISTRIBUTOR)
        carried = await self.confirmer(distributor, Side.DISTRIBUTOR)
        nodes = [self.parties.join(Role.NODE) for _ in range(num_nodes)]
        done = [await self.confirmer(member, Side.NODE) for member in nodes]
        # Opened after the outboxes, so that who writes into them ends before they do.
        group = await self.stack.enter_async_context(anyio.create_task_group())
        self.stack.callback(group.cancel_scope.cancel)
        await group.start(Distributor(distributor, carried).run)
        for member, confirmer in zip(nodes, done, strict=True):
            options = NodeOptions("mock", step_delay_ms=step_delay_ms)
            runner = Runner(engine_spec(self.folder, options), member.clock)
            group.start_soon(runner.run)
            self.runners.append(runner)
            owner = Owner()
            self.owners.append(owner)
            yielding = Yielding(Limits(), member.clock, lambda _pids, seen=owner: [seen])
            moving = Moving(runner, member.clock, ("starai-tiny",), self.spec_of)
            node = Node(member, runner, confirmer, yielding=yielding, moving=moving, prices=prices)
            await group.start(node.run)
        await self.stack.enter_async_context(self.dispatch.running())
        with anyio.fail_after(20):
            while sum(model.slots for model in self.dispatch.models()) < 8 * num_nodes:
                await anyio.sleep(0.05)

    def spec_of(self, model: str) -> EngineSpec:
        return engine_spec(self.folder, NodeOptions(model, threads=1))

    def submission(self, **changes: object) -> Submission:
        model = open_model("mock")
        generation = Generation(
            prompt=tokens.pack(b"tell me something long"),
            max_tokens=60,
            sampling=Sampling(sample_key=b"k" * 32, logit_bias={256: -100.0}),
            stop_token_ids=model.eos_token_ids,
            salt=b"s" * 16,
        )
        submission = Submission(
            task_id=os.urandom(16),
            model=model.name,
            model_root=model.root,
            customer=7,
            deadline_ms=self.parties.clock.now_ms() + 30_000,
            generation=generation,
        )
        return msgspec.structs.replace(submission, **changes)


@asynccontextmanager
async def road(
    folder: Path,
    num_nodes: int = 1,
    step_delay_ms: float = 2.0,
    prices: LeastPrices | None = None,
) -> AsyncIterator[Road]:
    async with MemoryNetwork() as network, AsyncExitStack() as stack:
        made = Road(Parties(network, clock=SystemClock()), stack, folder)
        await made.start(num_nodes, step_delay_ms, prices)
        yield made


async def read(made: Road, submission: Submission) -> list[int]:
    ids: list[int] = []
    async with made.dispatch.submit(submission) as parts:
        async for part in parts:
            ids += tokens.unpack(part.ids)
    return ids


async def test_a_task_travels_the_whole_road(tmp_path: Path) -> None:
    """A submission comes back as tokens, and both sides have put it on record."""
    async with road(tmp_path) as made:
        ids = await read(made, made.submission())
        assert len(ids) == 60
        await anyio.sleep(0.2)
        for side in ("NODE", "DISTRIBUTOR"):
            assert len(await made.outboxes[side].pending(f"confirm.{side.lower()}", 10)) == 1


async def test_a_killed_engine_is_restarted_and_the_answer_goes_on(tmp_path: Path) -> None:
    """With one node only, the answer waits for the new engine and continues where it was."""
    async with road(tmp_path, step_delay_ms=20) as made:
        submission = made.submission()
        undisturbed = await read(made, submission)
        parts: list[Part] = []
        async with made.dispatch.submit(
            msgspec.structs.replace(submission, task_id=os.urandom(16))
        ) as stream:
            async for part in stream:
                parts.append(part)
                if sum(bool(one.ids) for one in parts) == 20 and part.ids:
                    worker = made.runners[0]._worker
                    assert worker is not None
                    os.kill(worker.pid, signal.SIGKILL)
        assert [one for part in parts for one in tokens.unpack(part.ids)] == undisturbed


async def test_nothing_is_done_below_the_price(tmp_path: Path) -> None:
    """What gateway and distributor would have done for nothing is refused, and no node blamed."""
    prices = LeastPrices(SystemClock())
    prices.apply(Prices(1, (PriceEntry(1, "*", 1, 4, 0),)))
    async with road(tmp_path, prices=prices) as made:
        with anyio.fail_after(10), pytest.raises((Unavailable, DeadlinePassed)):
            await read(made, made.submission(deadline_ms=made.parties.clock.now_ms() + 1_500))
        assert len(await read(made, made.submission(price=TokenPrice(1, 1, 4)))) == 60


async def test_leaving_a_stream_frees_the_engine(tmp_path: Path) -> None:
    """Within a second of the reader's leaving, nothing of its task runs any more."""
    async with road(tmp_path, step_delay_ms=20) as made:
        async with made.dispatch.submit(made.submission()) as parts:
            async for part in parts:
                if part.ids:
                    break
        with anyio.fail_after(1.0):
            while made.runners[0].num_running:
                await anyio.sleep(0.01)


async def test_a_prompt_that_is_too_long_is_refused_by_name(tmp_path: Path) -> None:
    """A prompt that fits nobody is refused at once, not queued."""
    async with road(tmp_path) as made:
        submission = made.submission()
        long = msgspec.structs.replace(submission.generation, prompt=tokens.pack([65] * 9000))
        with pytest.raises(ContextTooLong):
            await read(made, msgspec.structs.replace(submission, generation=long))


async def test_a_model_that_nobody_serves_is_refused(tmp_path: Path) -> None:
    """A root that no distributor announces is waited for, and then the client may come again."""
    async with road(tmp_path) as made:
        with pytest.raises(Unavailable) as failed:
            await read(made, made.submission(model_root=b"?" * 32))
        assert failed.value.retry_after_s


async def test_many_tasks_at_once_all_finish(tmp_path: Path) -> None:
    """More tasks than slots: some wait, all finish, and no place leaks."""
    async with road(tmp_path, num_nodes=2, step_delay_ms=1) as made:
        lengths: list[int] = []

        async def one() -> None:
            lengths.append(len(await read(made, made.submission())))

        async with anyio.create_task_group() as group:
            for _ in range(60):
                group.start_soon(one)
        assert lengths == [60] * 60
        await anyio.sleep(0.2)
        assert [runner.num_running for runner in made.runners] == [0, 0]


async def test_an_embedding_travels_the_whole_road(tmp_path: Path) -> None:
    """A vector comes back sealed like an answer, and both sides have put it on record."""
    async with road(tmp_path) as made:
        submission = made.submission()
        embed = msgspec.structs.replace(submission.generation, max_tokens=0, embed=True)
        asked = msgspec.structs.replace(submission, generation=embed)
        async with made.dispatch.submit(asked) as stream:
            parts = [part async for part in stream]
        assert [len(part.embedding) for part in parts if part.finish] == [16 * 4]
        with anyio.fail_after(10):
            for side in ("NODE", "DISTRIBUTOR"):
                while not await made.outboxes[side].pending(f"confirm.{side.lower()}", 10):
                    await anyio.sleep(0.05)


async def test_an_owner_who_begins_to_work_loses_no_answer(tmp_path: Path) -> None:
    """Beside the owner's work a node takes nothing, and its answer goes on elsewhere, unchanged."""
    async with road(tmp_path, num_nodes=2, step_delay_ms=60) as made:
        generation = msgspec.structs.replace(made.submission().generation, max_tokens=40)
        submission = made.submission(generation=generation)
        undisturbed = await read(made, submission)
        ids: list[int] = []
        busy: int | None = None
        again = msgspec.structs.replace(submission, task_id=os.urandom(16))
        async with made.dispatch.submit(again) as stream:
            async for part in stream:
                ids += tokens.unpack(part.ids)
                if busy is None and ids:
                    busy = next(n for n, one in enumerate(made.runners) if one.num_running)
                    made.owners[busy].doing = Reading(num_cores=2, others_cores=2.0)
        assert busy is not None
        assert ids == undisturbed
        done = [runner.num_tokens for runner in made.runners]
        assert made.runners[busy].num_running == 0
        # The other one carried the end of it, and takes what comes now.
        short = msgspec.structs.replace(generation, max_tokens=3)
        await read(made, made.submission(generation=short))
        assert made.runners[1 - busy].num_tokens == done[1 - busy] + 3


async def test_a_model_that_is_asked_for_in_vain_is_loaded_by_an_idle_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody serves it; one of two idle nodes is told to, does, and answers. The other stays."""
    monkeypatch.setattr(placement, "WANTED_S", 1.0)
    wanted = open_model("embedded")
    async with road(tmp_path, num_nodes=2) as made:
        with anyio.fail_after(60):
            while wanted.name not in {model.name for model in made.dispatch.models()}:
                made.dispatch.missed(wanted.name, wanted.root)
                await anyio.sleep(0.3)
        asked = made.submission(model=wanted.name, model_root=wanted.root)
        generation = msgspec.structs.replace(
            asked.generation, prompt=tokens.pack([1, 40, 41]), max_tokens=5
        )
        assert await read(made, msgspec.structs.replace(asked, generation=generation))
        served = [runner.info.name for runner in made.runners if runner.info is not None]
        assert sorted(served) == ["mock", wanted.name]
