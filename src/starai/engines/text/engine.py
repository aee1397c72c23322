"""The native engine: each step is one packed forward pass over everything that is running.

The scheduler plans a step over paged memory, the memory moves what must move, the model runs once,
the canonical sampler draws, and what is new is emitted. Knows nothing about text, nodes or
processes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from starai.core.clock import Clock, SystemClock
from starai.core.errors import DeadlinePassed, InternalFault, InvalidRequest, Overloaded
from starai.engines.answer import Answer
from starai.engines.base import Emitted, EngineInfo, EngineSpec, HiddenStatesHook
from starai.engines.decoding.constraint import Grammars
from starai.engines.decoding.verify import draw
from starai.engines.paging.report import MemoryReport
from starai.engines.scheduling.base import Budget, Job, Limits, Plan, Work
from starai.engines.scheduling.pacing import Pace
from starai.engines.scheduling.scheduler import Scheduler
from starai.engines.text.adapters import Adapter, Adapters
from starai.engines.text.attention import NAME
from starai.engines.text.loading import load_model
from starai.engines.text.memory import KeyValueMemory, reserve_memory
from starai.engines.text.model import Output, TextModel
from starai.engines.text.options import read_options
from starai.engines.text.packing import Packed, Running, pack
from starai.engines.text.star import StarRule, salted
from starai.models.codec import open_codec
from starai.models.manifest import ModelManifest
from starai.protocol.generation import Generation

#: A step whose tokens are a prompt's to this share tells how fast prompts are computed.
_MOSTLY_PROMPT: Final = 0.8
#: Rows of a step up to which one more is nearly free: the weights are read once for all of them.
_ROWS_CHEAP: Final = 16
#: What a pass raises when a kernel, or the memory, cannot go on.
_FAULTS: Final = (RuntimeError, ValueError, IndexError, MemoryError, InternalFault)
#: The longest that a step waits for the tier when there is nothing to run, in seconds: the parent
#: sees a pulse and a cancellation is heard in time.
_PULSE_S: Final = 0.25
#: Below this many parameters a second thread costs more than it gives.
_ONE_THREAD_PARAMETERS_MAX: Final = 30_000_000


class TextEngine:
    """See the module's text; `starai.engines.text.options.TextOptions` lists its options."""

    def __init__(
        self, manifest: ModelManifest, spec: EngineSpec, clock: Clock | None = None
    ) -> None:
        """Load the model, check that it computes rightly here, reserve the KV memory.

        Raises:
            ModelFileRefused: the weights are wrong or the architecture cannot be served.
            ConfigurationRefused: an option is wrong, or the KV memory cannot be had.
        """
        options = read_options(spec)
        torch.set_num_threads(spec.threads or _threads_for(manifest.num_parameters))
        self._clock = clock or SystemClock()
        self._model = TextModel(load_model(manifest, NAME), options)
        asked = self._model.context_length(manifest.context_length, options.context)
        self._memory = reserve_memory(self._model.module, options, spec.slots, asked, self._clock)
        context = min(asked, self._memory.room_tokens)
        self.info = EngineInfo(
            manifest.name, manifest.root, manifest.vocab_size, context, spec.slots
        )
        self._star = StarRule(self._model, self._memory.pool.bytes_per_token, options)
        limits = Limits(spec.slots, options.waiting)
        self._scheduler = Scheduler(self._memory.books, limits, self._memory.tier)
        self._places = spec.slots + options.waiting
        self._speculate = options.speculate
        self._grammars = Grammars(open_codec(manifest), manifest.eos_token_ids)
        self._adapters = Adapters(
            self._model.module, options.adapters, int(options.adapters_gib * (1 << 30))
        )
        self._pace = Pace()
        self._running: dict[bytes, Running] = {}
        self._leaders: dict[tuple[bytes, bytes], Running] = {}
        self._hook: HiddenStatesHook | None = None

    # -- requests come and go

    def prepare(self, generation: Generation) -> bool:
        """Whether `admit` would not have to wait; see `Engine.prepare`."""
        return generation.grammar is None or self._grammars.prepare(generation.grammar)

    def admit(self, key: bytes, generation: Generation, *, deadline_s: float = math.inf) -> None:
        """Take a sequence; see `Engine.admit`. At ``deadline_s`` of the clock it is given up."""
        running = self._enter(key, generation, deadline_s)
        leader = self._leaders.get(running.prompt)
        if leader is None:
            self._scheduler.add(running.job)
            self._leaders[running.prompt] = running
        elif leader.begun:
            self._scheduler.fork(leader.job.key, running.job)
        elif running.job.priority > leader.job.priority:
            self._scheduler.add(running.job)  # who is in a hurry does not wait for who is not
        else:
            leader.twins.append(running)
        self._running[key] = running

    def fork(self, key: bytes, new_key: bytes, generation: Generation) -> None:
        """Take a sequence that shares the memory of another as far as their tokens are the same.

        Raises:
            InvalidRequest: there is no sequence ``key``; else as `admit`.
        """
        parent = self._running.get(key)
        if parent is None:
            raise InvalidRequest("there is no such sequence to fork")
        running = self._enter(new_key, generation, parent.job.deadline_s)
        waits_for = next((one for one in self._leaders.values() if parent in one.twins), parent)
        self._scheduler.fork(waits_for.job.key, running.job)
        self._running[new_key] = running

    def _enter(self, key: bytes, generation: Generation, deadline_s: float) -> Running:
        if key in self._running:
            raise InvalidRequest("this key is in use")
        answer = Answer(key, generation, self.info)
        if len(self._running) >= self._places:
            raise Overloaded("no slot is free")
        in_use = [running.adapter for running in self._running.values()]
        adapter = self._adapters.find(generation.adapter, in_use)
        plan = self._star.plan(len(answer.prompt), generation.context_tokens)
        job = Job(
            key,
            answer.prompt + answer.ids,
            len(answer.prompt) + answer.limit,
            tenant=generation.cache_salt,
            salt=salted(_salt(generation, adapter), plan),
            priority=generation.priority,
            deadline_s=deadline_s,
            arrived_s=self._clock.monotonic_s(),
        )
        constraint = None
        if generation.grammar is not None:
            constraint = self._grammars.constraint(generation.grammar, answer.ids)
        return Running(answer, job, (job.salt, generation.prompt), constraint, adapter, plan)

    def cancel(self, key: bytes) -> None:
        """Forget a sequence and free its memory."""
        gone = self._running.pop(key, None)
        if gone is None:
            return
        self._scheduler.remove(key)
        self._memory.tier.forget(key)
        if self._leaders.get(gone.prompt) is gone:
            del self._leaders[gone.prompt]
        for leader in [one for one in self._leaders.values() if gone in one.twins]:
            leader.twins.remove(gone)
        if gone.twins:
            # Who waited for this one's prompt computes it now, the first for the others.
            heir, *heir.twins = gone.twins
            self._leaders[heir.prompt] = heir
            self._scheduler.add(heir.job)

    @property
    def has_work(self) -> bool:
        """Whether a sequence is running."""
        return bool(self._running)

    def on_hidden_states(self, hook: HiddenStatesHook | None) -> None:
        """Have ``hook`` called within each step; see `Engine.on_hidden_states`.

        Positions whose KV memory was found in the prefix cache, or is shared with another
        sequence (a fork, an equal prompt), are not computed, so not reported.
        """
        self._hook = hook

    @property
    def model(self) -> TextModel:
        """The model as it was loaded."""
        return self._model

    @property
    def memory(self) -> KeyValueMemory:
        """The KV memory: to be looked at, not to be changed."""
        return self._memory

    def memory_report(self) -> MemoryReport:
        """What the KV memory holds and what sharing and swapping saved."""
        return self._memory.report()

    def check_integrity(self) -> None:
        """Check the books of the KV memory.

        Raises:
            InternalFault: they do not add up.
        """
        self._memory.books.check_integrity()

    # -- a step

    @torch.inference_mode()
    def step(self) -> list[Emitted]:
        """One packed forward pass; see `Engine.step`."""
        complete = [r.answer.ended() for r in self._running.values() if r.answer.finish]
        self._forget(complete)
        self._guess()
        drafts = {key: len(one.drafts) for key, one in self._running.items() if one.drafts}
        plan, late = self._plan(Budget(self._prompt_tokens(), drafts))
        news = self._run(plan) if plan.works else []
        self._scheduler.done(plan)
        self._lead(news)
        self._forget(late + news)
        if not plan.works:
            self._memory.tier.wait(_PULSE_S)
        return complete + late + news

    def _plan(self, budget: Budget) -> tuple[Plan, list[Emitted]]:
        """What to run now, all that it needs being in its place; and who is too late."""
        self._memory.collect()
        late = []
        plan = self._scheduler.plan(self._clock.monotonic_s(), budget)
        while True:
            for key in plan.expired:
                self._memory.tier.forget(key)
                late.append(self._running[key].answer.failed(DeadlinePassed.code))
            if not self._memory.carry_out(plan):
                return plan, late
            # Who is back already need not wait for the next step.
            plan = self._scheduler.plan(self._clock.monotonic_s(), budget)

    def _prompt_tokens(self) -> int:
        running = self._running.values()
        answering = sum(1 + len(one.drafts) for one in running if one.begun)
        waiting = sum(len(one.job.ids) for one in running if not one.begun)
        return self._pace.prompt_tokens(answering, waiting)

    def _run(self, plan: Plan) -> list[Emitted]:
        begun_s = self._clock.monotonic_s()
        news = self._advance(plan.works)
        self._forget([one for one in news if one.error])
        self._learn(plan.works, self._clock.monotonic_s() - begun_s)
        return news

    def _advance(self, works: Sequence[Work]) -> list[Emitted]:
        """Run some works in one pass and draw where a sequence is at its end."""
        packed = pack(works, self._running, self._memory)
        if self._hook is not None:
            packed.run.wanted = None  # the hook reads all rows
        try:
            output = self._model.run(packed.run, packed.ids, packed.keep)
        except _FAULTS:
            # One sequence may have poisoned the pass. KV writes can be repeated, so each is tried
            # alone and only the guilty one fails. Draws cannot be: there were none yet.
            if len(works) > 1:
                return [one for work in works for one in self._advance([work])]
            return [self._running[works[0].key].answer.failed(InternalFault.code)]
        return self._settle(works, packed, output)

    def _settle(self, works: Sequence[Work], packed: Packed, output: Output) -> list[Emitted]:
        """Draw from what a pass gave, and tell the hook of it."""
        news = [answer.embedded(output.hidden_rows([row])[0]) for answer, row in packed.embedded]
        drawn = draw(packed.turns(output.logits))
        for (running, _), one in zip(packed.drawing, drawn, strict=True):
            running.job.ids.extend(one.ids)
            running.lookup.learn(len(running.drafts), max(0, len(one.ids) - 1))
        if self._hook is not None:
            self._report_hidden_states(works, packed.lengths, output.hidden)
        return news + drawn

    def _lead(self, news: Sequence[Emitted]) -> None:
        """Let those who waited for a prompt share the memory of the one that has computed it."""
        for one in news:
            leader = self._running.get(one.key)
            if leader is not None and one.ids:
                leader.begun = True
                for twin in leader.twins:
                    self._scheduler.fork(one.key, twin.job)
                leader.twins = []

    def _guess(self) -> None:
        """Guess what each answer goes on with, where the rows to check it cost little."""
        room = min(self._speculate, _ROWS_CHEAP // max(1, len(self._running)) - 1)
        for running in self._running.values():
            left = running.answer.limit - len(running.answer.ids) - 1
            running.drafts = []
            if room > 0 and left > 0 and running.begun:
                running.drafts = running.lookup.propose(running.job.ids, min(room, left))

    def _forget(self, emitted: Sequence[Emitted]) -> None:
        for news in emitted:
            if news.finish is not None or news.error:
                self.cancel(news.key)

    def _learn(self, works: Sequence[Work], seconds: float) -> None:
        """Learn how fast this machine reads prompts."""
        prompts = [work for work in works if work.count > 1]
        asked = sum(work.count for work in prompts)
        total = sum(work.count for work in works)
        if asked <= _ROWS_CHEAP:
            return  # guesses, or a few words: a step takes that long without them
        self._pace.learn(total, max(seconds, 1e-6))
        if len(prompts) == 1 and asked >= _MOSTLY_PROMPT * total:
            self._memory.tier.note_prefill(total, prompts[0].start, max(seconds, 1e-6))

    def _report_hidden_states(
        self, works: Sequence[Work], lengths: Sequence[int], hidden: NDArray[np.float32]
    ) -> None:
        """Tell the hook what was computed, but nothing of guesses that were wrong."""
        begin = 0
        for work, length in zip(works, lengths, strict=True):
            right = max(length, len(self._running[work.key].job.ids) - 1) - work.start
            if self._hook is not None:
                self._hook(work.key, work.start, hidden[begin : begin + min(work.count, right)])
            begin += work.count


def _salt(generation: Generation, adapter: Adapter | None) -> bytes:
    """All that KV memory depends on besides tokens and model: the tenant, the adapter.

    No choice of one can be taken for a choice of both: tenants name their own salt.
    """
    tenant = generation.cache_salt
    return len(tenant).to_bytes(4, "big") + tenant + (adapter.digest if adapter else b"")


def _threads_for(num_parameters: int) -> int:
    if num_parameters < _ONE_THREAD_PARAMETERS_MAX:
        return 1
    # The cores that this process may use: in a container often fewer than the machine has.
    may_use = getattr(os, "sched_getaffinity", None)
    return len(may_use(0)) if may_use else os.cpu_count() or 1
