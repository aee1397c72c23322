"""How every service's process runs, whatever it serves: until it is told to stop, or is alone."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Awaitable, Callable
from typing import Final

import anyio

from starai.core.collecting import collect_rarely
from starai.core.logging import setup
from starai.local.processes import TOLD_TO_STOP, as_child, is_child

HAS_UVLOOP: Final = importlib.util.find_spec("uvloop") is not None


def run_service(body: Callable[[], Awaitable[None]], *, log_level: str = "INFO") -> None:
    """Run a service until SIGTERM, or until whoever started it is gone."""
    setup(log_level)

    left = anyio.Event()

    async def run() -> None:
        async with as_child():
            await body()
            left.set()

    collect_rarely()
    anyio.run(run, backend_options={"use_uvloop": HAS_UVLOOP})
    if is_child() and not left.is_set():
        sys.exit(TOLD_TO_STOP)  # by whom, its parent knows: if not by itself, it starts it again
