"""Ending work from outside, for a fifth of what a cancel scope costs: there is one a request.

On asyncio it cancels the task, as `asyncio.timeout` does; elsewhere (trio, virtual time) it is an
anyio scope. It has no deadline: who ends the work looks at the time.
"""

from __future__ import annotations

import asyncio  # noqa: TID251 - what the road runs on
from types import TracebackType
from typing import Self

import anyio


class Cut:
    """Ends the work inside it from outside: a cancel scope for where there is one a request.

    Entered once, by the task whose work it is, and made by others only. Shielded scopes inside it
    are no shield against it: what blocks is done by `starai.core.threads.in_thread` there.
    """

    __slots__ = ("_scope", "_task", "made")

    def __init__(self) -> None:
        """Let the work go on."""
        #: Whether the work was to end.
        self.made = False
        self._task: asyncio.Task[object] | None = None
        self._scope: anyio.CancelScope | None = None

    def make(self) -> None:
        """End the work, where it waits now."""
        if not self.made:
            self.made = True
            if self._task is not None:
                self._task.cancel()
            elif self._scope is not None:
                self._scope.cancel()

    def __enter__(self) -> Self:
        try:
            self._task = asyncio.current_task()
        except RuntimeError:
            self._scope = anyio.CancelScope()
            self._scope.__enter__()
        if self.made:  # before the work had its first turn
            (self._task or self._scope).cancel()  # type: ignore[union-attr]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        """Swallow the cancellation that was made here, and no other one."""
        if self._scope is not None:
            return bool(self._scope.__exit__(kind, error, trace))
        task, self._task = self._task, None
        if task is None or not self.made:
            return False
        # Whoever cancels the task itself as well is owed its own cancellation.
        is_alone = task.uncancel() == 0
        return is_alone and kind is asyncio.CancelledError
