"""A distributor beside real nodes with engines in processes of their own: boasting does not pay."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import pytest

from starai.core.clock import SystemClock
from starai.distributor import admission
from starai.distributor.service import Distributor
from starai.exchange.member import Member
from starai.exchange.recording.confirming import Confirmer
from starai.fitting import Prediction
from starai.local.nodes import NodeOptions, engine_spec
from starai.matching import Candidate
from starai.models.catalog import open_model
from starai.node.runner import Runner
from starai.node.service import Node
from starai.protocol.identity import PartyId
from starai.protocol.registry import Side
from starai.protocol.subjects import Role
from starai.testing.parties import Parties
from starai.wire.memory import MemoryNetwork
from starai.wire.outbox import Outbox

pytestmark = pytest.mark.anyio

BOAST = Prediction(prefill_tps=1e6, decode_tps=1e6)
#: A step takes so long: 20 tokens a second.
SLOW_MS, TRUE_TPS = 50.0, 20.0


class Scene:
    """A distributor and two nodes: one tells what it is, the other a thousand times more."""

    def __init__(self, parties: Parties, stack: AsyncExitStack, folder: Path) -> None:
        self.parties = parties
        self.stack = stack
        self.folder = folder
        self.outboxes: list[Outbox] = []

    async def confirmer(self, member: Member, side: Side) -> Confirmer:
        path = self.folder / member.identity.party
        outbox = await self.stack.enter_async_context(Outbox(path))
        self.outboxes.append(outbox)
        return Confirmer(member.wire, member.identity, outbox, "test", 2000, side, member.clock)

    async def start(self, expected: Prediction | None) -> tuple[Distributor, list[PartyId]]:
        distributor = self.parties.join(Role.DISTRIBUTOR)
        carried = await self.confirmer(distributor, Side.DISTRIBUTOR)
        nodes = [self.parties.join(Role.NODE) for _ in range(2)]
        done = [await self.confirmer(member, Side.NODE) for member in nodes]
        group = await self.stack.enter_async_context(anyio.create_task_group())
        self.stack.callback(group.cancel_scope.cancel)
        made = Distributor(distributor, carried, measures_nodes=True)
        await group.start(made.run)
        for member, confirmer, claim in zip(nodes, done, (None, expected), strict=True):
            spec = engine_spec(self.folder, NodeOptions("mock", step_delay_ms=SLOW_MS))
            runner = Runner(spec, member.clock, expected=claim)
            group.start_soon(runner.run)
            await group.start(Node(member, runner, confirmer).run)
        return made, [member.identity.party for member in nodes]


def seen(distributor: Distributor, party: PartyId) -> Candidate | None:
    """A node as matching sees it."""
    pool = distributor._nodes.roster.pool(open_model("mock").root)
    return pool.get(party) if pool is not None else None


async def test_a_boaster_is_reckoned_with_as_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within seconds of its first idle moment its claim of a million tokens a second is gone."""
    monkeypatch.setattr(admission, "IDLE_S", 0.3)
    async with MemoryNetwork() as network, AsyncExitStack() as stack:
        scene = Scene(Parties(network, clock=SystemClock()), stack, tmp_path)
        distributor, (honest, boaster) = await scene.start(BOAST)
        with anyio.fail_after(60):
            while not ((found := seen(distributor, boaster)) and found.decode_tps < 1000):
                await anyio.sleep(0.1)
            while not ((other := seen(distributor, honest)) and other.decode_tps > 0):
                await anyio.sleep(0.1)
        assert found.decode_tps < 1.5 * TRUE_TPS
        assert other.decode_tps < 1.5 * TRUE_TPS
        for outbox in scene.outboxes:
            for side in ("node", "distributor"):
                assert await outbox.pending(f"confirm.{side}", 9) == []
