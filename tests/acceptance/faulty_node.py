"""A node that lies: it joins like any other, and after some tokens sends bytes that are no chunk.

Run by test_fail_over.py as a process of its own: faulty_node.py HOME NAME MODEL AFTER_TOKENS; the
join token comes in STARAI_TOKEN. It is built of the product's own parts; only its wire is bent.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import anyio

from starai.core.clock import SystemClock
from starai.core.randomness import SystemRandomness
from starai.exchange.member import Member
from starai.local.home import Home
from starai.local.joining import join
from starai.local.membership import membership
from starai.local.nodes import NodeOptions, engine_spec
from starai.local.services import confirming
from starai.node.runner import Runner
from starai.node.service import Node
from starai.protocol.frames import peek
from starai.protocol.registry import Side
from starai.protocol.tasks import Answer
from starai.protocol.tickets import JoinTicket


class BentWire:
    """The wire it is given, but every chunk after the first ``after`` of a task is rubbish."""

    def __init__(self, wire: Any, after: int) -> None:
        self._wire = wire
        self._left = after

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wire, name)

    async def publish(self, subject: str, payload: bytes, reply: str = "") -> None:
        if peek(payload) is Answer:
            self._left -= 1
            if self._left < 0:
                payload = payload[:20] + os.urandom(len(payload) - 20)
        await self._wire.publish(subject, payload, reply)


async def main(home: Home, name: str, model: str, after: int) -> None:
    clock = SystemClock()
    await join(
        home, name, JoinTicket.parse(os.environ["STARAI_TOKEN"]), name, clock, SystemRandomness()
    )
    runner = Runner(engine_spec(home.models, NodeOptions(model, threads=1)), clock)
    runner.prefill.tps = runner.decode.tps = 1e6  # it boasts, so that it is chosen first
    async with (
        membership(home, name) as member,
        confirming(home, name, member, Side.NODE) as confirmer,
        anyio.create_task_group() as group,
    ):
        group.start_soon(runner.run)
        bent = Member(**{**vars(member), "wire": BentWire(member.wire, after)})
        await Node(bent, runner, confirmer, name).run()
        group.cancel_scope.cancel()


if __name__ == "__main__":
    anyio.run(main, Home(Path(sys.argv[1])), sys.argv[2], sys.argv[3], int(sys.argv[4]))
