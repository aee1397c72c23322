"""Runs served tasks on an engine worker, and keeps that worker alive.

A crash in the engine ends the tasks that were on it (their caller takes them elsewhere, or offers
them again) but not the node: the worker is started anew. Knows nothing of the network.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Callable, Sequence

import anyio

from starai.core.clock import Clock
from starai.core.concurrency import task_group
from starai.core.errors import (
    ConfigurationRefused,
    EngineDied,
    ModelFileRefused,
    ModelNotFound,
    StarAIError,
    UnsupportedField,
)
from starai.core.logging import event
from starai.engines.base import Emitted, EngineInfo, EngineSpec
from starai.engines.process import EngineWorker, engine_process
from starai.exchange.callee.serving import Refused, ServedTask
from starai.exchange.mailboxes import Mailbox, MailboxOverflow
from starai.fitting import Prediction
from starai.fitting.correcting import corrected
from starai.protocol import tokens
from starai.protocol.generation import Generation, Sampling, TokenLogprobs
from starai.protocol.presence import UNKNOWN_QUANTISATION
from starai.protocol.tasks import RefusalCode, TaskHeader

_LOG = logging.getLogger(__name__)

#: Steps of one sequence that may wait to be sent; far more than a wire ever lags behind.
EMITTED_MAX = 8192
#: Tokens of one part of an answer: with 20 rivals each they take 40 KB, a sealed part has 64.
PART_TOKENS_MAX = 128
#: For so many slots, one task may wait until one is free: a distributor that places it has heard
#: of the others' tasks by beats only. More would be better off elsewhere, and so after this time.
SLOTS_A_WAITER = 4
WAIT_FOR_SLOT_S = 2.0
#: No event from a worker that has work for this long means that it hangs: it is replaced.
HANG_S = 20.0
#: Windows has one way to end a process, by another name.
_KILL = getattr(signal, "SIGKILL", signal.SIGTERM)
#: The first wait before a dead worker is started again; doubles up to the last.
RESTART_FIRST_S, RESTART_LAST_S = 0.2, 10.0

#: What an engine's error codes mean for the caller; every other code is the engine's failure.
_REFUSAL_OF = {
    "context_length_exceeded": RefusalCode.CONTEXT_TOO_LONG,
    "overloaded": RefusalCode.BUSY,
    "invalid_request": RefusalCode.INVALID_REQUEST,
    "unsupported_parameter": RefusalCode.UNSUPPORTED,
}

#: What shows that an engine answers: one token after one.
_PROBE_KEY = b"readiness"
_PROBE = Generation(
    prompt=tokens.pack([0]),
    max_tokens=1,
    sampling=Sampling(sample_key=bytes(32)),
    stop_token_ids=(),
    salt=bytes(16),
)


class Speed:
    """Tokens per second: as predicted, if they were, until tasks show what is true; else 0."""

    def __init__(self, predicted_tps: float = 0.0) -> None:
        """Begin with a prediction; 0 is none."""
        self.tps = predicted_tps
        self._num_measured = 0

    def measured(self, num_tokens: int, seconds: float) -> None:
        """Take one measurement in."""
        if num_tokens > 0 and seconds > 0:
            self._num_measured += 1
            self.tps = corrected(self.tps, num_tokens / seconds, self._num_measured)


class Runner:
    """One engine worker and the tasks on it."""

    def __init__(
        self,
        spec: EngineSpec,
        clock: Clock,
        tame: Callable[[int], None] = lambda _pid: None,
        expected: Prediction | None = None,
    ) -> None:
        """Run the engine of ``spec``.

        ``tame`` is given each worker process when it starts; ``expected`` is how fast the model is
        said to run, until tasks show it.
        """
        self._spec = spec
        self._clock = clock
        self._tame = tame
        self._worker: EngineWorker | None = None
        self._pid = 0
        self._share = 1.0
        self._may_load = anyio.Event()
        self._may_load.set()
        self._life = anyio.CancelScope()
        self._mail: dict[bytes, Mailbox[Emitted | None]] = {}
        #: What was served before `change`, until the new one runs.
        self._former: EngineSpec | None = None
        #: Tasks that wait for a slot, each with what tells it that one is free.
        self._line: list[anyio.Event] = []
        self._last_event_s = 0.0
        self.prefill = Speed(expected.prefill_tps if expected else 0.0)
        self.decode = Speed(expected.decode_tps if expected else 0.0)
        self.num_tokens = 0
        #: Tokens of prompts whose first token has not come yet.
        self.num_unread = 0

    @property
    def info(self) -> EngineInfo | None:
        """What the engine serves; None while it starts."""
        return self._worker.info if self._worker else None

    @property
    def quantisation(self) -> str:
        """How the weights are kept, in `ServedModel.quantisation`'s words."""
        if self._spec.kind == "external":
            return UNKNOWN_QUANTISATION
        bits = int(float(self._spec.options.get("bits", 16)))
        return "" if bits == 16 else f"int{bits}"

    @property
    def num_running(self) -> int:
        """Tasks on the engine."""
        return len(self._mail) - (_PROBE_KEY in self._mail)

    @property
    def num_waiting(self) -> int:
        """Tasks that wait for a slot of the engine."""
        return len(self._line)

    def pids(self) -> Sequence[int]:
        """This process and, while there is one, the engine's."""
        return (os.getpid(), self._pid) if self._pid else (os.getpid(),)

    async def pace(self, share: float) -> None:
        """Have the engine compute for this share of the time, above 0 and up to 1."""
        self._share = share
        if self._worker is not None:
            with contextlib.suppress(EngineDied):
                self._worker.pace(share)

    def unload(self) -> None:
        """End the engine until `load`; what still runs there is refused as if drained."""
        self._may_load = anyio.Event()
        self._life.cancel()

    def load(self) -> None:
        """Start the engine again after `unload`."""
        self._may_load.set()

    def change(self, spec: EngineSpec) -> None:
        """Serve another model from now on; what runs is refused as if drained.

        When the new one cannot be opened, the former is served again.
        """
        self._former, self._spec = self._spec, spec
        self.prefill, self.decode = Speed(), Speed()
        self._life.cancel()

    async def run(self) -> None:
        """Keep a worker running until cancelled."""
        async with task_group() as group:
            group.start_soon(self._watch)
            await self._keep_running()

    async def _keep_running(self) -> None:
        wait_s = RESTART_FIRST_S
        while True:
            await self._may_load.wait()
            began_s = self._clock.monotonic_s()
            with anyio.CancelScope() as self._life:
                await self._live()
            if not self._may_load.is_set():
                continue
            lived_s = self._clock.monotonic_s() - began_s
            wait_s = RESTART_FIRST_S if lived_s > 60 else min(wait_s * 2, RESTART_LAST_S)
            await anyio.sleep(wait_s)

    async def _live(self) -> None:
        """One worker's life."""
        try:
            async with engine_process(self._spec, on_spawned=self._on_spawned) as worker:
                worker.pace(self._share)
                self._worker, self._former = worker, None
                event(_LOG, "engine_ready", model=worker.info.name, pid=worker.pid)
                await self._pump(worker)
        except (ConfigurationRefused, ModelFileRefused, ModelNotFound) as error:
            if self._former is None:
                raise  # another start would be refused for the same reason
            event(_LOG, "engine_refused", logging.ERROR, code=error.code, why=error.message)
            self._spec, self._former = self._former, None
        except StarAIError as error:
            event(_LOG, "engine_ended", logging.ERROR, code=error.code, why=error.message)
        finally:
            self._worker, self._pid = None, 0
            for mailbox in self._mail.values():
                mailbox.put(None)

    def _on_spawned(self, pid: int) -> None:
        self._pid = pid
        self._tame(pid)

    @property
    def engine_pid(self) -> int:
        """The process of the engine that serves now; 0: none does."""
        return self._worker.pid if self._worker is not None else 0

    async def probe(self) -> bool:
        """Have the engine draw one token; True without asking while it is at work."""
        worker = self._worker
        if worker is None:
            return False
        if self._mail:
            return True
        self._last_event_s = self._clock.monotonic_s()
        mailbox = self._mail[_PROBE_KEY] = Mailbox(EMITTED_MAX)
        try:
            worker.admit(_PROBE_KEY, _PROBE)
            emitted = await mailbox.get()
        except (EngineDied, MailboxOverflow):
            return False
        else:
            # A server that takes text may be unable to take this one token; it said so, and lives.
            return emitted is not None and emitted.error in ("", UnsupportedField.code)
        finally:
            del self._mail[_PROBE_KEY]
            with contextlib.suppress(EngineDied):
                worker.cancel(_PROBE_KEY)

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
        await self._slot(worker, urgent=bool(task.generation.accepted))
        key = _engine_key(task.header)
        if not self._mail:
            self._last_event_s = self._clock.monotonic_s()  # it was silent because it was idle
        mailbox = self._mail[key] = Mailbox(EMITTED_MAX)
        task.is_alive = self._gets_on
        try:
            self._end_probe(worker)
            worker.admit(key, task.generation)
            await self._stream(task, mailbox)
        except (EngineDied, MailboxOverflow) as error:
            raise Refused(RefusalCode.ENGINE_FAILED) from error
        finally:
            del self._mail[key]
            self._next_turn()
            if not task.finished and self._worker is worker:
                with contextlib.suppress(EngineDied):
                    worker.cancel(key)

    async def _slot(self, worker: EngineWorker, *, urgent: bool) -> None:
        """Wait for a free slot, if few others do: several distributors saw the same one free.

        Who is ``urgent`` waits before the others: an answer is in its middle.
        """
        if self.num_running < worker.info.slots and not self._line:
            return
        if len(self._line) >= worker.info.slots // SLOTS_A_WAITER:
            raise Refused(RefusalCode.BUSY, retry_after_ms=500)
        turn = anyio.Event()
        self._line.insert(0 if urgent else len(self._line), turn)
        try:
            with anyio.move_on_after(WAIT_FOR_SLOT_S):
                await turn.wait()
        except BaseException:
            if turn.is_set():  # it was its turn as it gave up: the next one's then
                self._line.remove(turn)
                self._next_turn()
            raise
        finally:
            if turn in self._line:
                self._line.remove(turn)
        if not turn.is_set() or self._worker is not worker:
            raise Refused(RefusalCode.BUSY, retry_after_ms=500)

    def _next_turn(self) -> None:
        turn = next((one for one in self._line if not one.is_set()), None)
        if turn is not None:
            turn.set()

    def _end_probe(self, worker: EngineWorker) -> None:
        """A task is a better proof, and needs the slot."""
        probe = self._mail.get(_PROBE_KEY)
        if probe is not None:
            worker.cancel(_PROBE_KEY)
            probe.put(Emitted(_PROBE_KEY, (), ()))

    async def _stream(self, task: ServedTask, mailbox: Mailbox[Emitted | None]) -> None:
        admitted_s = self._clock.monotonic_s()
        first_s = 0.0
        num_prompt = tokens.count(task.generation.prompt + task.generation.accepted)
        self.num_unread += num_prompt
        try:
            while not task.finished:
                # An engine that is faster than the wire fills one chunk with several steps.
                await self._send(task, [await mailbox.get(), *mailbox.take_ready()])
                if not first_s:
                    first_s = self._clock.monotonic_s()
                    self.num_unread -= num_prompt
                    self.prefill.measured(num_prompt, first_s - admitted_s)
        finally:
            if not first_s:
                self.num_unread -= num_prompt
        self.decode.measured(task.num_sent - 1, self._clock.monotonic_s() - first_s)

    async def _send(self, task: ServedTask, news: Sequence[Emitted | None]) -> None:
        """Send the tokens of some steps in few parts, then refuse if the last step failed."""
        ids: list[int] = []
        logprobs: list[TokenLogprobs] = []
        finish = refusal = None
        embedding = b""
        for emitted in news:
            if emitted is None:
                # Its worker is gone: it failed, or it was sent away.
                failed = self._may_load.is_set()
                refusal = RefusalCode.ENGINE_FAILED if failed else RefusalCode.DRAINING
            else:
                ids += emitted.ids
                logprobs += emitted.logprobs
                embedding = emitted.embedding
                finish = emitted.finish
                if emitted.error:
                    refusal = _REFUSAL_OF.get(emitted.error, RefusalCode.ENGINE_FAILED)
            if refusal or finish:
                break
        if ids or finish:
            self.num_tokens += len(ids)
            while len(ids) > PART_TOKENS_MAX:
                early, ids = ids[:PART_TOKENS_MAX], ids[PART_TOKENS_MAX:]
                told, logprobs = logprobs[:PART_TOKENS_MAX], logprobs[PART_TOKENS_MAX:]
                await task.send(tokens.pack(early), None, tuple(told))
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
                    os.kill(self._worker.pid, _KILL)

    def _gets_on(self) -> bool:
        return self._clock.monotonic_s() - self._last_event_s < HANG_S


def _engine_key(header: TaskHeader) -> bytes:
    return header.task_id + header.attempt.to_bytes(4, "little")
