"""Signals stop a service, by the event loop and, as on Windows, by plain handlers."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from starai.local.stopping import cancel_by_handler, cancel_on_signal


@pytest.mark.anyio
@pytest.mark.parametrize("waiting", [cancel_on_signal, cancel_by_handler])
async def test_a_signal_cancels(waiting: Callable[..., Any]) -> None:
    """The scope ends soon after the signal, and the handler from before is back."""
    before = signal.getsignal(signal.SIGUSR1)
    async with anyio.create_task_group() as tasks:
        await tasks.start(waiting, tasks.cancel_scope, [signal.SIGUSR1])
        os.kill(os.getpid(), signal.SIGUSR1)
        with anyio.fail_after(2):
            await anyio.sleep_forever()
    assert tasks.cancel_scope.cancel_called
    assert signal.getsignal(signal.SIGUSR1) in (before, signal.SIG_DFL)
