"""A node serves another model when it is told to, may, and has nothing else to do."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import pytest

from starai.core.clock import SystemClock
from starai.engines.base import EngineSpec
from starai.local.nodes import NodeOptions, engine_spec
from starai.node.moving import Moving
from starai.node.runner import Runner
from starai.protocol.frames import encode
from starai.protocol.presence import Control
from starai.protocol.subjects import Role, place
from starai.testing.parties import Parties
from starai.wire.memory import MemoryNetwork

pytestmark = pytest.mark.anyio

MOCK = EngineSpec("mock", "mock", slots=2)
LOADABLE = ("starai-tiny", "mock", "gone/missing")


class Scene:
    def __init__(self, network: MemoryNetwork, spec_of: Callable[[str], EngineSpec]) -> None:
        parties = Parties(network, clock=SystemClock())
        self.node, self.distributor = parties.join(Role.NODE), parties.join(Role.DISTRIBUTOR)
        self.runner = Runner(MOCK, SystemClock())
        self.moving = Moving(self.runner, SystemClock(), LOADABLE, spec_of)

    async def tell(self, model: str, order: str = "load") -> None:
        message = encode(Control(order, model))
        await self.distributor.wire.publish(place(self.node.identity.party), message)
        await anyio.sleep(0.05)

    async def serves(self, model: str) -> None:
        with anyio.fail_after(60):
            while self.runner.info is None or self.runner.info.name != model:
                await anyio.sleep(0.02)


@asynccontextmanager
async def scene(spec_of: Callable[[str], EngineSpec]) -> AsyncIterator[Scene]:
    async with MemoryNetwork() as network, anyio.create_task_group() as tasks:
        made = Scene(network, spec_of)
        tasks.start_soon(made.runner.run)
        async with made.moving.hearing(made.node.wire, made.node.identity.party):
            await made.serves("mock")
            yield made
            tasks.cancel_scope.cancel()


async def test_the_engine_is_started_anew_with_the_other_model(tmp_path) -> None:
    """A mock node becomes one that serves the embedded model, and stays so for a while."""
    async with scene(lambda model: engine_spec(tmp_path, NodeOptions(model, threads=1))) as made:
        made.runner.decode.measured(10, 1.0)
        await made.tell("starai-tiny")
        with anyio.fail_after(10):
            while made.runner.info is not None:  # the old engine ends first
                await anyio.sleep(0.005)
        await made.serves("starai-tiny")
        assert made.runner.decode.tps == 0.0
        await made.tell("mock")
        assert made.runner.info is not None
        assert made.runner.info.name == "starai-tiny"


async def test_what_it_may_not_load_changes_nothing(tmp_path) -> None:
    """Unknown names, models that are not there, other orders and rubbish leave it as it is."""
    async with scene(lambda model: engine_spec(tmp_path, NodeOptions(model, threads=1))) as made:
        pid = made.runner.engine_pid
        for model in ("unknown", "gone/missing", "mock", "../../etc"):
            await made.tell(model)
        await made.tell("starai-tiny", order="leave")
        await made.distributor.wire.publish(place(made.node.identity.party), b"rubbish")
        await anyio.sleep(0.1)
        assert made.runner.engine_pid == pid


async def test_a_model_that_does_not_open_gives_way_to_the_former() -> None:
    """The node that tried a damaged model serves its own again, and lives."""
    async with scene(lambda _model: EngineSpec("mock", "no/such-model")) as made:
        pid = made.runner.engine_pid
        await made.tell("starai-tiny")
        with anyio.fail_after(10):
            while made.runner.engine_pid in (pid, 0):
                await anyio.sleep(0.005)
        assert made.runner.info is not None
        assert made.runner.info.name == "mock"
