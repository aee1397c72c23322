"""Being told to stop: by signals, on systems whose event loop hears them and on Windows."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from types import FrameType

import anyio

#: A service that is told to stop has this much longer than what it waits for in turn.
OVERTIME_S = 1.0
#: How soon a signal is noticed where the event loop cannot hear it.
_LOOK_S = 0.1


async def cancel_on_signal(
    scope: anyio.CancelScope,
    stops: Sequence[signal.Signals],
    *,
    task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Cancel ``scope`` at each of the signals ``stops``."""
    if sys.platform == "win32":
        await cancel_by_handler(scope, stops, task_status=task_status)
        return
    with anyio.open_signal_receiver(*stops) as signals:
        task_status.started()
        async for _ in signals:
            scope.cancel()


async def cancel_by_handler(
    scope: anyio.CancelScope,
    stops: Sequence[signal.Signals],
    *,
    task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """The same by plain handlers: all that Windows has."""
    caught: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        caught.append(number)

    before = {number: signal.signal(number, note) for number in stops}
    try:
        task_status.started()
        while not caught:  # noqa: ASYNC110 - a handler may not touch the loop
            await anyio.sleep(_LOOK_S)
        scope.cancel()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
