"""Runs served tasks on an engine worker, and keeps that worker alive.

A crash in the engine ends the tasks that were on it (their caller takes them elsewhere, or offers
them again) but not the node: the worker is started anew. Knows nothing of the network.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Sequence

import anyio

from starai.core.clock import Clock
from starai.core.concurrency import task_group
from starai.core.errors import (
    ConfigurationRefused,
    EngineDied,
    ModelFileRefused,
    ModelNotFound,
    StarAIError,
)
from starai.core.logging import event
from starai.engines.base import Emitted, EngineInfo, EngineSpec
from starai.engines.process import EngineWorker, engine_process
from starai.exchange.mailboxes import Mailbox, MailboxOverflow
from starai.exchange.serving import Refused, ServedTask
from starai.protocol import tokens
from starai.protocol.generation import TokenLogprobs
from starai.protocol.tasks import RefusalCode, TaskHeader

_LOG = logging.getLogger(__name__)

#: Steps of one sequence that may wait to be sent; far more than a wire ever lags behind.
EMITTED_MAX = 8192
#: No event from a worker that has work for this long means that it hangs: it is replaced.
HANG_S = 20.0
#: The first wait before a dead worker is started again; doubles up to the last.
RESTART_FIRST_S, RESTART_LAST_S = 0.2, 10.0
#: How much a new measurement of speed counts against the old ones.
SPEED_WEIGHT = 0.2

#: What an engine's error codes mean for the caller; every other code is the engine's failure.
_REFUSAL_OF = {
    "context_length_exceeded": RefusalCode.CONTEXT_TOO_LONG,
    "overloaded": RefusalCode.BUSY,
    "invalid_request": RefusalCode.INVALID_REQUEST,
}


class Speed:
    """Measured tokens per second, smoothed; 0 until the first measurement."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self.tps = 0.0

    def measured(self, num_tokens: int, seconds: float) -> None:
        """Take one measurement in."""
        if num_tokens > 0 and seconds > 0:
            new = num_tokens / seconds
            self.tps = new if not self.tps else self.tps + SPEED_WEIGHT * (new - self.tps)


class Runner:
    """One engine worker and the tasks on it."""

    def __init__(self, spec: EngineSpec, clock: Clock) -> None:
        """Run the engine of ``spec``."""
        self._spec = spec
        self._clock = clock
        self._worker: EngineWorker | None = None
        self._mail: dict[bytes, Mailbox[Emitted | None]] = {}
        self._last_event_s = 0.0
        self.prefill = Speed()
        self.decode = Speed()
        self.num_tokens = 0

    @property
    def info(self) -> EngineInfo | None:
        """What the engine serves; None while it starts."""
        return self._worker.info if self._worker else None

    @property
    def num_running(self) -> int:
        """Tasks on the engine."""
        return len(self._mail)

    async def run(self) -> None:
        """Keep a worker running until cancelled."""
        async with task_group() as group:
            group.start_soon(self._watch)
            await self._keep_running()

    async def _keep_running(self) -> None:
        wait_s = RESTART_FIRST_S
        while True:
            began_s = self._clock.monotonic_s()
            try:
                async with engine_process(self._spec) as worker:
                    self._worker = worker
                    event(_LOG, "engine_ready", model=worker.info.name, pid=worker.pid)
                    await self._pump(worker)
            except (ConfigurationRefused, ModelFileRefused, ModelNotFound):
                raise  # another start would be refused for the same reason
            except StarAIError as error:
                event(_LOG, "engine_ended", logging.ERROR, code=error.code, why=error.message)
            finally:
                self._worker = None
                for mailbox in self._mail.values():
                    mailbox.put(None)
            lived_s = self._clock.monotonic_s() - began_s
            wait_s = RESTART_FIRST_S if lived_s > 60 else min(wait_s * 2, RESTART_LAST_S)
            await anyio.sleep(wait_s)

    async def answer(self, task: ServedTask) -> None:
        """Run one task to its end; cancelling this cancels it on the engine.

        Raises:
            Refused: no engine is ready, it refuses the task, or it died.
        """
        worker = self._worker
        if worker is None:
            raise Refused(RefusalCode.BUSY, retry_after_ms=1000)
        if task.header.model_root != worker.info.model_root:
            raise Refused(RefusalCode.UNKNOWN_MODEL)
        if len(self._mail) >= worker.info.slots:
            raise Refused(RefusalCode.BUSY, retry_after_ms=500)
        key = _engine_key(task.header)
        if not self._mail:
            self._last_event_s = self._clock.monotonic_s()  # it was silent because it was idle
        mailbox = self._mail[key] = Mailbox(EMITTED_MAX)
        task.is_alive = self._gets_on
        try:
            await worker.admit(key, task.generation)
            await self._stream(task, mailbox)
        except (EngineDied, MailboxOverflow) as error:
            raise Refused(RefusalCode.ENGINE_FAILED) from error
        finally:
            del self._mail[key]
            if not task.finished and self._worker is worker:
                with anyio.CancelScope(shield=True), contextlib.suppress(EngineDied):
                    await worker.cancel(key)

    async def _stream(self, task: ServedTask, mailbox: Mailbox[Emitted | None]) -> None:
        admitted_s = self._clock.monotonic_s()
        first_s = 0.0
        while not task.finished:
            # An engine that is faster than the wire fills one chunk with several steps.
            await self._send(task, [await mailbox.get(), *mailbox.take_ready()])
            if not first_s:
                first_s = self._clock.monotonic_s()
                num_prompt = tokens.count(task.generation.prompt + task.generation.accepted)
                self.prefill.measured(num_prompt, first_s - admitted_s)
        self.decode.measured(task.num_sent - 1, self._clock.monotonic_s() - first_s)

    async def _send(self, task: ServedTask, news: Sequence[Emitted | None]) -> None:
        """Send the tokens of some steps as one part, then refuse if the last step failed."""
        ids: list[int] = []
        logprobs: list[TokenLogprobs] = []
        finish = refusal = None
        embedding = b""
        for emitted in news:
            if emitted is None:
                refusal = RefusalCode.ENGINE_FAILED
            elif emitted.error:
                refusal = _REFUSAL_OF.get(emitted.error, RefusalCode.ENGINE_FAILED)
            else:
                ids += emitted.ids
                logprobs += emitted.logprobs
                embedding = emitted.embedding
                finish = emitted.finish
            if refusal or finish:
                break
        if ids or finish:
            self.num_tokens += len(ids)
            await task.send(tokens.pack(ids), finish, tuple(logprobs), embedding=embedding)
        if refusal:
            raise Refused(refusal)

    async def _pump(self, worker: EngineWorker) -> None:
        """Hand the worker's events to their tasks until it dies."""
        while True:
            batch = await worker.events()
            self._last_event_s = self._clock.monotonic_s()
            for emitted in batch:
                mailbox = self._mail.get(emitted.key)
                if mailbox is not None:
                    mailbox.put(emitted)

    async def _watch(self) -> None:
        """Kill a worker that has work and says nothing; `run` then starts another."""
        while True:
            await anyio.sleep(1.0)
            if self._worker is not None and self._mail and not self._gets_on():
                event(_LOG, "engine_hangs", logging.ERROR, tasks=len(self._mail))
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._worker.pid, signal.SIGKILL)

    def _gets_on(self) -> bool:
        return self._clock.monotonic_s() - self._last_event_s < HANG_S


def _engine_key(header: TaskHeader) -> bytes:
    return header.task_id + header.attempt.to_bytes(4, "little")
