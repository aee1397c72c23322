"""A task group that raises what went wrong, not a group around it; and being stopped gently."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
from anyio.abc import TaskGroup


@asynccontextmanager
async def task_group() -> AsyncIterator[TaskGroup]:
    """`anyio.create_task_group`, but a lone exception comes out as itself.

    A context manager that owns a background task must not change the exceptions of its body:
    its caller's ``except Unavailable`` has to work whether or not a task group lies between.
    """
    try:
        async with anyio.create_task_group() as tasks:
            yield tasks
    except BaseExceptionGroup as group:
        if len(group.exceptions) != 1:
            raise
        lone = group.exceptions[0]
        raise lone from lone.__cause__


async def stopped_gently(
    run: Callable[[], Awaitable[None]], stop: Callable[[], bool], grace_s: float
) -> None:
    """Run something; when this is cancelled, let it come to its end by itself.

    ``stop`` asks it to, and says whether it can; what has not ended ``grace_s`` seconds later is
    cancelled. Without this a service's connection and its beats would end together with it, and
    nobody could see the rest of what it does.
    """
    ended = anyio.Event()
    scope = anyio.CancelScope(shield=True)

    async def shielded() -> None:
        try:
            with scope:
                await run()
        finally:
            ended.set()

    async with task_group() as tasks:
        tasks.start_soon(shielded)
        try:
            await ended.wait()
        finally:
            if not ended.is_set():
                with anyio.move_on_after(grace_s, shield=True):
                    if stop():
                        await ended.wait()
                scope.cancel()
