"""A device as a supplier: it joins if it must, and serves until it is stopped, telling how it goes.

One road for `starai join`, `starai node start` and the nodes of `starai up`. Knows the order: what
takes longest, the start of an engine's process, comes first, and the network's part (`supplier`) is
imported and joined meanwhile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import anyio
import anyio.to_thread

from starai.core.clock import Clock, SystemClock
from starai.core.concurrency import stopped_gently, task_group
from starai.exchange.callee.leaving import STOPPED
from starai.local.admission import is_admitted, ticket_of
from starai.local.computing import Computing
from starai.local.home import Home
from starai.local.nodes import NodeOptions, engine_spec
from starai.local.stopping import OVERTIME_S
from starai.local.telling import Telling
from starai.node.yielding.priority import lower_node

if TYPE_CHECKING:
    from starai.local.supplier import Supplier

#: The device has so long for itself before the network's part begins beside it: measuring takes a
#: tenth of a second, or seconds where there is a GPU or a tool that hangs.
ALONE_S: Final = 0.5


async def join_and_serve(
    home: Home,
    name: str,
    token: str,
    options: NodeOptions,
    *,
    url: str = "",
    telling: Telling | None = None,
    clock: Clock | None = None,
) -> None:
    """Run a node until cancelled; it joins first if it must, and has a token.

    Args:
        home: where its key, credential and outbox are kept.
        name: what it is called there.
        token: a join token's text; empty to be let in by the credential of an earlier time.
        options: what it serves.
        url: where the network is, to be tried before what the token says.
        telling: who hears how it goes.
        clock: the device's.

    Raises:
        PartyRefused: the network does not let it in.
        Unavailable: a hop on the way to the network fails; the message says which.
        ConfigurationRefused: the token is damaged, or the device's clock is wrong.
        ModelNotFound, ModelFileRefused: its model cannot be served.
    """
    clock, telling = clock or SystemClock(), telling or Telling()
    ticket = None
    if not is_admitted(home, name, clock):
        ticket = ticket_of(home, name, token, clock, url)
    spec = engine_spec(home.models, options)  # refused before the token is used up
    computing = Computing(home, options, spec, telling, clock)
    suppliers: list[Supplier] = []

    async def run() -> None:
        if options.limits.polite:
            lower_node()
        async with task_group() as group:
            group.start_soon(computing.run)
            with anyio.move_on_after(ALONE_S):
                await computing.started.wait()
            # In a thread: meanwhile the engine's process is told what to open.
            kind = await anyio.to_thread.run_sync(_supplier)
            suppliers.append(kind(home, name, options, computing, telling, clock))
            await suppliers[0].run(ticket)
            group.cancel_scope.cancel()  # it was told to leave

    def leave() -> bool:
        return any(one.leave() for one in suppliers)

    await stopped_gently(run, leave, STOPPED.sum_s + OVERTIME_S)


def _supplier() -> type[Supplier]:
    from starai.local.supplier import Supplier  # noqa: PLC0415 - see the module's text

    return Supplier
