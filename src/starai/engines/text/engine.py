"""The native engine: each step is one packed forward pass over everything that is running.

A step takes the next token of every sequence that decodes and a share of the prompts that wait,
samples where a sequence is at its end, and emits. Knows nothing about text, nodes or processes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch

from starai.core.clock import Clock, SystemClock
from starai.core.errors import ConfigurationRefused, InternalFault, InvalidRequest, Overloaded
from starai.engines.answer import Answer
from starai.engines.base import Emitted, EngineInfo, EngineSpec, HiddenStatesHook
from starai.engines.sampler import sample, token_logprobs
from starai.engines.text.attention import NAME, Pass, Span
from starai.engines.text.loading import load_model
from starai.engines.text.pool import BLOCK_TOKENS, KeyValuePool
from starai.engines.text.probe import forward, probe
from starai.models.manifest import ModelManifest
from starai.protocol.generation import Generation

#: Prompt tokens of one step. The share follows the machine's speed so that a step stays short:
#: running answers keep flowing and the parent sees a pulse, however long a prompt is.
_SHARE_FIRST: Final = 256
_SHARE_MIN: Final = 32
_SHARE_MAX: Final = 4096
_STEP_LONG_S: Final = 0.15
_STEP_SHORT_S: Final = 0.05
#: KV memory unless ``options["kv_gib"]`` says otherwise.
_KV_GIB: Final = 4.0
#: Below this many parameters a second thread costs more than it gives.
_ONE_THREAD_PARAMETERS_MAX: Final = 30_000_000


@dataclass(slots=True)
class _Running:
    """A sequence in a slot; ``cached`` of its tokens are in the KV memory."""

    answer: Answer
    slot: int
    cached: int = 0

    @property
    def pending(self) -> int:
        """Tokens that the model has not seen yet; 1 while decoding."""
        return self.answer.length - self.cached

    def tokens(self, count: int) -> list[int]:
        """The next ``count`` pending tokens."""
        prompt, ids = self.answer.prompt, self.answer.ids
        behind = self.cached - len(prompt)
        if behind >= 0:
            return ids[behind : behind + count]
        return (prompt[self.cached :] + ids)[:count]


class TextEngine:
    """See the module's text.

    Options: ``kv_gib`` bounds the KV memory, and with it the context; ``context`` shortens the
    context further.
    """

    def __init__(
        self, manifest: ModelManifest, spec: EngineSpec, clock: Clock | None = None
    ) -> None:
        """Load the model, check that it computes rightly here, reserve the KV memory.

        Raises:
            ModelFileRefused: the weights are wrong or the architecture cannot be served.
            ConfigurationRefused: the KV memory cannot be had.
        """
        torch.set_num_threads(spec.threads or _threads_for(manifest.num_parameters))
        self._model: Any = load_model(manifest, NAME)
        bytes_per_token = probe(self._model)
        context = _context_length(self._model, manifest, spec, bytes_per_token)
        self._blocks = -(-context // BLOCK_TOKENS)
        self._pool = _reserve(self._model, spec.slots * self._blocks)
        self.info = EngineInfo(
            manifest.name, manifest.root, manifest.vocab_size, context, spec.slots
        )
        self._clock = clock or SystemClock()
        self._share = _SHARE_FIRST
        self._running: dict[bytes, _Running] = {}
        self._free_slots = list(range(spec.slots))
        self._hook: HiddenStatesHook | None = None
        self._hidden: torch.Tensor | None = None
        self._model.base_model.register_forward_hook(self._see_hidden_states)

    def admit(self, key: bytes, generation: Generation) -> None:
        """Take a sequence; see `Engine.admit`."""
        if key in self._running:
            raise InvalidRequest("this key is in use")
        answer = Answer(key, generation, self.info)
        if not self._free_slots:
            raise Overloaded("no slot is free")
        self._running[key] = _Running(answer, self._free_slots.pop())

    def cancel(self, key: bytes) -> None:
        """Forget a sequence and free its slot."""
        gone = self._running.pop(key, None)
        if gone is not None:
            self._free_slots.append(gone.slot)

    @property
    def has_work(self) -> bool:
        """Whether a sequence is running."""
        return bool(self._running)

    def on_hidden_states(self, hook: HiddenStatesHook | None) -> None:
        """Have ``hook`` called within each step; see `Engine.on_hidden_states`."""
        self._hook = hook

    @torch.inference_mode()
    def step(self) -> list[Emitted]:
        """One packed forward pass; see `Engine.step`."""
        complete = [r.answer.ended() for r in self._running.values() if r.answer.finish]
        self._forget(complete)
        plan = self._plan()
        emitted = complete
        if plan:
            try:
                news = self._advance(plan)
            except RuntimeError:
                # One sequence may have poisoned the pass. KV writes can be repeated, so each is
                # tried alone and only the guilty one fails.
                news = [e for part in plan for e in self._advance_alone(*part)]
            self._forget(news)
            emitted = complete + news
        return emitted

    def _plan(self) -> list[tuple[_Running, int]]:
        """Which sequences advance by how many tokens: all that decode, prompts by their share."""
        plan: list[tuple[_Running, int]] = []
        share = self._share
        for running in sorted(self._running.values(), key=lambda r: r.pending != 1):
            count = min(running.pending, share) if running.pending > 1 else 1
            if count:
                plan.append((running, count))
                share -= count if running.pending > 1 else 0
        return plan

    def _advance(self, plan: list[tuple[_Running, int]]) -> list[Emitted]:
        begun = self._clock.monotonic_s()
        run = Pass(self._pool, [Span(self._table(r.slot), r.cached, count) for r, count in plan])
        packed = [id_ for running, count in plan for id_ in running.tokens(count)]
        ends = np.cumsum([count for _, count in plan]) - 1
        whole = [i for i, (running, count) in enumerate(plan) if running.pending == count]
        keep = [int(ends[i]) for i in whole] or [len(packed) - 1]
        logits = forward(self._model, run, packed, keep).float().cpu().numpy()
        self._report_hidden_states(plan)
        for running, count in plan:
            running.cached += count
        news = self._draw([plan[i][0].answer for i in whole], logits) if whole else []
        if len(packed) > len(plan):
            self._adapt_share(self._clock.monotonic_s() - begun)
        return news

    def _table(self, slot: int) -> range:
        return range(slot * self._blocks, (slot + 1) * self._blocks)

    def _advance_alone(self, running: _Running, count: int) -> list[Emitted]:
        try:
            return self._advance([(running, count)])
        except RuntimeError:
            return [running.answer.failed(InternalFault.code)]

    def _draw(self, answers: list[Answer], logits: np.ndarray[Any, Any]) -> list[Emitted]:
        """The next token of each answer from logits [answers, vocabulary]."""
        sound = [index for index in range(len(answers)) if np.isfinite(logits[index].max())]
        chosen = sample(logits[sound], [answers[index].race for index in sound])
        token_of = dict(zip(sound, chosen, strict=True))
        news: list[Emitted] = []
        for index, answer in enumerate(answers):
            token_id = token_of.get(index)
            if token_id is None:
                news.append(answer.failed(InternalFault.code))
                continue
            top = answer.top_logprobs
            logprobs = None if top is None else token_logprobs(logits[index], token_id, top)
            news.append(answer.take(token_id, logprobs))
        return news

    def _forget(self, emitted: list[Emitted]) -> None:
        for news in emitted:
            if news.finish is not None or news.error:
                self.cancel(news.key)

    def _adapt_share(self, seconds: float) -> None:
        if seconds > _STEP_LONG_S:
            self._share = max(_SHARE_MIN, self._share // 2)
        elif seconds < _STEP_SHORT_S:
            self._share = min(_SHARE_MAX, self._share * 2)

    def _see_hidden_states(self, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        self._hidden = output.last_hidden_state if self._hook is not None else None

    def _report_hidden_states(self, plan: list[tuple[_Running, int]]) -> None:
        if self._hook is None or self._hidden is None:
            return
        rows = self._hidden[0].float().cpu().numpy()
        begin = 0
        for running, count in plan:
            self._hook(running.answer.key, running.cached, rows[begin : begin + count])
            begin += count
        self._hidden = None


@torch.inference_mode()
def _reserve(model: Any, num_blocks: int) -> KeyValuePool:
    """The KV memory, reserved now by a first pass, so that a lack of memory shows at the start."""
    pool = KeyValuePool(num_blocks)
    try:
        forward(model, Pass(pool, [Span((0,), 0, 1)]), [0], [0])
    except RuntimeError as error:
        raise ConfigurationRefused(
            f"no memory for {num_blocks} blocks of {BLOCK_TOKENS} tokens: lower slots, kv_gib or "
            "context"
        ) from error
    return pool


def _threads_for(num_parameters: int) -> int:
    return 1 if num_parameters < _ONE_THREAD_PARAMETERS_MAX else os.cpu_count() or 1


def _context_length(
    model: Any, manifest: ModelManifest, spec: EngineSpec, bytes_per_token: int
) -> int:
    """Tokens per slot: the model's context, or what fits the KV memory."""
    budget = int(spec.options.get("kv_gib", _KV_GIB) * (1 << 30))
    fits = max(1, budget // (bytes_per_token * spec.slots))
    asked = int(spec.options.get("context", 0)) or manifest.context_length
    rope = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    if rope.get("rope_type") in ("dynamic", "longrope"):
        # Their angles depend on the longest sequence of a batch: stay where they do not.
        original = rope.get("original_max_position_embeddings") or manifest.context_length
        asked = min(asked, int(original))
    return min(manifest.context_length, asked, fits)
