"""A real gateway on a free loopback port, in a thread: for clients that know nothing of anyio."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from anyio.from_thread import BlockingPortal, start_blocking_portal

from starai.core.clock import Clock, SystemClock
from starai.core.randomness import SystemRandomness
from starai.gateway.config import GatewayConfig
from starai.gateway.paying.keys import KeyRing
from starai.gateway.service import serve
from starai.models.catalog import MOCK_NAME, open_model
from starai.protocol.ports import TaskPort

#: Serves the mock model on a free port.
MOCK_GATEWAY = GatewayConfig(models=(open_model(MOCK_NAME),), port=0, stop_grace_s=1.0)


@contextmanager
def gateway_in_thread(
    tasks: TaskPort,
    *,
    keys: KeyRing | None = None,
    config: GatewayConfig = MOCK_GATEWAY,
    clock: Clock | None = None,
    on_stop: Callable[[BlockingPortal], None] | None = None,
) -> Iterator[str]:
    """Serve in a thread with its own event loop; yields the base URL and stops at the end.

    ``on_stop`` is called, in the caller's thread, once the gateway was told to stop.
    """

    async def run(*, task_status: object) -> None:
        chosen = clock or SystemClock()
        await serve(config, tasks, keys, chosen, SystemRandomness(), task_status=task_status)  # type: ignore[arg-type]

    with start_blocking_portal("asyncio") as portal:
        future, url = portal.start_task(run)
        try:
            yield url
        finally:
            future.cancel()
            if on_stop is not None:
                on_stop(portal)
