"""A distributor that says that it has much room, and that it is busy to whoever asks.

Run by test_several.py as a process of its own: busy_distributor.py HOME NAME; the join token comes
in STARAI_TOKEN. Prints a line for each task that it refuses.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import anyio

from starai.core.clock import SystemClock
from starai.core.randomness import SystemRandomness
from starai.exchange.callee.serving import Refused, ServedTask, Serving
from starai.exchange.standing.pinging import answering_pings
from starai.exchange.standing.presence import keep_beating
from starai.local.home import Home
from starai.local.joining import join
from starai.local.membership import membership
from starai.models.catalog import open_model
from starai.protocol.presence import Beat, ServedModel
from starai.protocol.subjects import Role
from starai.protocol.tasks import RefusalCode
from starai.protocol.tickets import JoinTicket


async def refuse(task: ServedTask) -> None:
    sys.stdout.write("busy\n")
    sys.stdout.flush()
    raise Refused(RefusalCode.BUSY, retry_after_ms=1000)


async def main(home: Home, name: str) -> None:
    clock, ticket = SystemClock(), JoinTicket.parse(os.environ["STARAI_TOKEN"])
    await join(home, name, ticket, name, clock, SystemRandomness())
    mock = open_model("mock")
    served = ServedModel(mock.name, mock.root, mock.context_length, 1000)
    async with (
        membership(home, name) as member,
        answering_pings(member),
        anyio.create_task_group() as group,
    ):
        serving = Serving(member, Role.DISTRIBUTOR, (Role.GATEWAY,), refuse)
        await group.start(serving.run)
        boot = clock.now_ms()

        def beat(seq: int) -> Beat:
            told = (member.identity.party, Role.DISTRIBUTOR.value, boot, seq, clock.now_ms(), False)
            return Beat(*told, 0, 0, 0, 0, serving.prekey, (served,))

        await keep_beating(member.wire, Role.DISTRIBUTOR, beat)


if __name__ == "__main__":
    anyio.run(main, Home(Path(sys.argv[1])), sys.argv[2])
