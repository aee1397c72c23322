"""Times a slice of a real model: a few of its layers, without loading the others.

What a model of forty layers would do here can be said after two of them, in seconds and with a
twentieth of its memory. Layers are alike; tables are not among them. Knows nothing about devices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec
import torch

from starai.core.clock import Clock
from starai.core.errors import ConfigurationRefused
from starai.engines.text.attention import Pass, Span
from starai.engines.text.options import TextOptions
from starai.engines.text.stage import Stage, open_stage
from starai.models.manifest import ModelManifest

#: Tokens of the prompt that is timed, and how many single tokens follow it.
PROMPT_TOKENS: Final = 256
_STEPS: Final = 24
#: Layers of a slice: enough that the loop around them counts little.
_LAYERS: Final = 4
#: The first, with the table of tokens, stays out, and so does the last.
_LEAST_LAYERS: Final = 3
#: No further try begins after this long.
_BUDGET_S: Final = 2.0
_TRIES: Final = 3


class Slice(msgspec.Struct, frozen=True):
    """What was measured of a model with ``num_layers`` layers.

    ``token`` and ``prompt`` are the seconds of a pass of one token, and of ``prompt_tokens``: what
    a pass takes whatever its layers, and what each layer adds. ``table_weights`` are those of the
    output layer, which was not timed.
    """

    num_layers: int
    token: tuple[float, float]
    prompt: tuple[float, float]
    prompt_tokens: int
    table_weights: int


def time_slice(manifest: ModelManifest, clock: Clock, bits: int = 16) -> Slice:
    """Load one layer from the middle of a model, then some more, and time them; takes seconds.

    Raises:
        ConfigurationRefused: the model has too few layers, or ``bits`` is not 16, 8 or 4.
        ModelFileRefused: it cannot be run in parts.
    """
    one = open_stage(manifest, 1, 2, bits=bits)
    if one.num_layers < _LEAST_LAYERS:
        raise ConfigurationRefused(f"{manifest.name} has too few layers to time some: run it")
    more = min(_LAYERS, one.num_layers - 2)
    length = min(PROMPT_TOKENS, manifest.context_length // 2)
    token_one, prompt_one = _times(one, length, clock)
    some = open_stage(manifest, 1, 1 + more, bits=bits)
    token_some, prompt_some = _times(some, length, clock)
    return Slice(
        num_layers=one.num_layers,
        token=_parts(token_one, token_some, more),
        prompt=_parts(prompt_one, prompt_some, more),
        prompt_tokens=length,
        table_weights=manifest.vocab_size * one.width,
    )


def _parts(one_s: float, some_s: float, layers: int) -> tuple[float, float]:
    """What a pass takes at all, and what a layer adds, of the times of one and of some layers."""
    each_s = max(0.0, (some_s - one_s) / (layers - 1)) if layers > 1 else one_s
    return max(0.0, one_s - each_s), each_s


def _times(stage: Stage, length: int, clock: Clock) -> tuple[float, float]:
    """Seconds of one token after a prompt of ``length``, and of that prompt."""
    context = length + _STEPS
    memory = stage.reserve(TextOptions(swap_gib=0.0), 1, context, clock)
    blocks = tuple(range(-(-context // memory.pool.block_tokens)))

    def run(start: int, count: int) -> None:
        states = torch.ones(count, stage.width, dtype=stage.module.dtype)
        stage.forward(Pass(memory.pool, [Span(blocks, start, count)]), states)

    def answer(start: int) -> None:
        for position in range(start, start + _STEPS):
            run(position, 1)

    run(0, length)  # warms up; counts for nothing
    prompt_s = _best_s(lambda: run(0, length), clock)
    token_s = _best_s(lambda: answer(length), clock) / _STEPS
    return token_s, prompt_s


def _best_s(work: Callable[[], object], clock: Clock) -> float:
    taken: list[float] = []
    begun_s = clock.monotonic_s()
    while len(taken) < _TRIES:
        before_s = clock.monotonic_s()
        work()
        taken.append(clock.monotonic_s() - before_s)
        if clock.monotonic_s() - begun_s > _BUDGET_S:
            break
    return min(taken)
