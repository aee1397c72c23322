"""Measures an engine on this machine, each figure beside what the machine would allow at best.

Random prompts of random weights run as fast as real ones, so nothing but a model is needed. Fresh
prompts each time, greedy, no guessing ahead. Every row is the median of a few runs, and stops early
on slow machines: the whole takes about a minute for a model of 0.6 billion weights on two cores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import count
from statistics import median
from typing import Final

import msgspec

from starai.core.clock import Clock
from starai.core.errors import InternalFault
from starai.core.randomness import Randomness
from starai.engines.base import Emitted, EngineSpec
from starai.engines.native.limits import Limits
from starai.engines.text.engine import TextEngine
from starai.engines.text.roofline import Bound, roofline_of
from starai.models.manifest import ModelManifest
from starai.protocol import tokens
from starai.protocol.generation import Generation, Sampling

#: Prompt lengths, batch sizes, and a shared prompt with what one user adds to it.
_PREFILLS: Final = (256, 2048)
_BATCHES: Final = (8, 16, 32)
_SHARED, _OWN = 512, 32
_SHORT_PROMPT: Final = 32
#: Tokens that a decode is timed over, the first, which belongs to the prompt, not counted.
_DECODED: Final = 64
_DECODED_IN_BATCH: Final = 24
_RUNS: Final = 3
#: A row begins no further run after so long, and is left out if one run would take twice that.
_ROW_S: Final = 6.0
_ROW_QUICK_S: Final = 1.5
_GREEDY: Final = Sampling(bytes(32), temperature=0.0)
#: The longest context measured, so that the reserved memory is no larger than it need be.
_CONTEXT: Final = 2304

#: Told what is measured next, how many rows are done, and how many there are.
Progress = Callable[[str, int, int], None]


class Figure(msgspec.Struct, frozen=True):
    """One row: the median of ``samples``.

    ``limit`` is the best that the machine allows, in the same unit, because of ``limited_by``
    (memory or arithmetic); None where nothing bounds it or it is not known.
    """

    name: str
    value: float
    unit: str
    samples: tuple[float, ...] = ()
    limit: float | None = None
    limited_by: str = ""

    @property
    def share(self) -> float | None:
        """How much of the limit is reached, from 0 to 1."""
        if not self.limit or not self.value:
            return None
        return self.value / self.limit if self.unit == "tok/s" else self.limit / self.value


class Speed:
    """The measurements on one model."""

    def __init__(
        self,
        manifest: ModelManifest,
        spec: EngineSpec,
        limits: Limits,
        clock: Clock,
        randomness: Randomness,
        *,
        quick: bool = False,
    ) -> None:
        """Open the model.

        Args:
            manifest: the model.
            spec: how to open it; slots, context and guessing are set here.
            limits: of the machine.
            clock: tells the time.
            randomness: makes the prompts.
            quick: one run a row, and only what is fast.

        Raises:
            ModelFileRefused, ConfigurationRefused: as `TextEngine`.
        """
        options = {"speculate": 0, "context": min(_CONTEXT, manifest.context_length)}
        spec = msgspec.structs.replace(spec, slots=max(_BATCHES), options=spec.options | options)
        begun_s = clock.monotonic_s()
        self._engine = TextEngine(manifest, spec, clock)
        self._open_s = clock.monotonic_s() - begun_s
        bits = int(spec.options.get("bits", 16))
        self._roofline = roofline_of(self._engine, manifest, bits, limits)
        self._clock = clock
        self._randomness = randomness
        self._runs = 1 if quick else _RUNS
        self._row_s = _ROW_QUICK_S if quick else _ROW_S
        self._keys = count()
        #: Prompt tokens a second, as soon as it is known.
        self._prompt_rate = math.inf

    def figures(self, progress: Progress) -> Iterator[Figure]:
        """Every row as soon as it is measured; those that would take too long are left out."""
        engine = self._engine
        yield Figure("ready after", self._open_s, "s")
        yield Figure("weights", engine.model.refitted.bytes_after / 1e6, "MB")
        yield Figure("KV memory of a token", engine.memory.pool.bytes_per_token / 1e3, "kB")
        self._first_token(self._prompt(_SHORT_PROMPT))  # warms up; counts for nothing
        rows = list(self._rows())
        for done, (name, row) in enumerate(rows):
            progress(name, done, len(rows))
            yield from row()

    def _rows(self) -> Iterator[tuple[str, Callable[[], list[Figure]]]]:
        room = self._engine.info.context_length
        for length in (n for n in _PREFILLS if n < room):
            yield f"prefill {length}", lambda length=length: self._prefill(length)  # type: ignore[misc]
        for batch in (1, *_BATCHES):
            name = "decode" if batch == 1 else f"decode B={batch}"
            yield name, lambda name=name, batch=batch: self._decode(name, batch)  # type: ignore[misc]
        if room > _SHARED + _OWN:
            yield "first token, shared prompt", self._shared_prompt

    # -- the rows

    def _prefill(self, length: int) -> list[Figure]:
        if self._is_long(length):
            return []
        samples = self._repeat(lambda: length / self._first_token(self._prompt(length)))
        self._prompt_rate = median(samples)
        return [_rate(f"prefill {length}", samples, length, self._prefill_bound(length))]

    def _decode(self, name: str, batch: int) -> list[Figure]:
        if self._is_long(batch * _SHORT_PROMPT):
            return []
        steps = _DECODED if batch == 1 else _DECODED_IN_BATCH
        length = _SHORT_PROMPT + steps // 2
        bound = self._roofline.decode(batch, length) if self._roofline else None
        samples = self._repeat(lambda: self._decode_rate(batch, steps))
        return [_rate(name, samples, batch, bound)]

    def _shared_prompt(self) -> list[Figure]:
        if self._is_long(_SHARED):
            return []
        cold: list[float] = []
        warm: list[float] = []

        def once() -> float:
            shared = self._prompt(_SHARED)
            cold.append(1e3 * self._first_token(shared + self._prompt(_OWN)))
            warm.append(1e3 * self._first_token(shared + self._prompt(_OWN)))
            return cold[-1]

        self._repeat(once)
        bounds = [self._prefill_bound(length) for length in (_SHARED + _OWN, _OWN)]
        return [
            _time(f"first token of {_SHARED + _OWN}", cold, bounds[0]),
            _time(f"the same, {_SHARED} of them known", warm, bounds[1]),
        ]

    def _prefill_bound(self, length: int) -> Bound | None:
        return self._roofline.prefill(length) if self._roofline else None

    # -- one run

    def _repeat(self, run: Callable[[], float]) -> list[float]:
        begun_s = self._clock.monotonic_s()
        samples: list[float] = []
        while len(samples) < self._runs:
            samples.append(run())
            if self._clock.monotonic_s() - begun_s > self._row_s:
                break
        return samples

    def _is_long(self, num_prompt_tokens: int) -> bool:
        """Whether prompts of so many tokens in all take too long here."""
        return num_prompt_tokens > 2 * self._row_s * self._prompt_rate

    def _prompt(self, length: int) -> list[int]:
        size = self._engine.info.vocab_size
        return [int(self._randomness.fraction() * size) for _ in range(length)]

    def _admit(self, prompt: list[int], max_tokens: int) -> bytes:
        key = next(self._keys).to_bytes(8, "big")
        self._engine.admit(key, Generation(tokens.pack(prompt), max_tokens, _GREEDY, (), bytes(16)))
        return key

    def _step(self) -> list[Emitted]:
        news = self._engine.step()
        for one in news:
            if one.error:
                raise InternalFault(f"the engine failed while it was measured: {one.error}")
        return news

    def _first_token(self, prompt: list[int]) -> float:
        """Seconds from a prompt to its first token."""
        begun_s = self._clock.monotonic_s()
        self._admit(prompt, 1)
        while self._engine.has_work:
            self._step()
        return self._clock.monotonic_s() - begun_s

    def _decode_rate(self, batch: int, steps: int) -> float:
        """Tokens a second while all of a batch answer."""
        keys = [self._admit(self._prompt(_SHORT_PROMPT), steps + batch) for _ in range(batch)]
        begun: set[bytes] = set()
        while len(begun) < batch:
            begun.update(one.key for one in self._step())
        begun_s = self._clock.monotonic_s()
        done = 0
        for _ in range(steps):
            done += sum(len(one.ids) for one in self._step())
            if self._clock.monotonic_s() - begun_s > self._row_s:
                break
        took_s = self._clock.monotonic_s() - begun_s
        for key in keys:
            self._engine.cancel(key)
        return done / took_s


def _rate(name: str, samples: list[float], tokens_of_pass: int, bound: Bound | None) -> Figure:
    if bound is None:
        return Figure(name, median(samples), "tok/s", tuple(samples))
    limit = tokens_of_pass / bound.seconds
    return Figure(name, median(samples), "tok/s", tuple(samples), limit, bound.by)


def _time(name: str, samples: list[float], bound: Bound | None) -> Figure:
    if bound is None:
        return Figure(name, median(samples), "ms", tuple(samples))
    return Figure(name, median(samples), "ms", tuple(samples), 1e3 * bound.seconds, bound.by)
