"""A task group that raises what went wrong, not a group around it."""

from __future__ import annotations

from collections.abc import AsyncIterator
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
