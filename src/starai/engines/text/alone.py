"""The text engine alone, in this process, without a network: prompts in, texts out.

::

    from starai.engines.text import Engine

    with Engine("embedded", bits=8) as engine:
        print(engine.generate("Once upon a time", max_tokens=60).text)

All that runs at a time shares each step (continuous batching): many prompts of one call, and
streams that are read in turns. For one thread at a time. Knows nothing about nodes or money.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, Unpack

import numpy as np
from numpy.typing import NDArray

from starai.core.clock import Clock
from starai.core.errors import ConfigurationRefused, InvalidRequest
from starai.core.randomness import Randomness, SystemRandomness
from starai.engines.base import EngineInfo, EngineSpec
from starai.engines.decoding.beams import BeamSearch, EarlyStopping
from starai.engines.paging.report import MemoryReport
from starai.engines.text.answers import Answers, Beam, Choice, Reading
from starai.engines.text.asking import Asking, Prompt, Wanted, stops
from starai.engines.text.beaming import EngineBeams
from starai.engines.text.engine import TextEngine
from starai.models.catalog import open_model
from starai.models.codec import open_codec
from starai.models.tools import Message
from starai.protocol.generation import Generation

#: Answers that run at once; the memory of places that nobody takes is never touched.
_SLOTS: Final = 16


class Engine:
    """A model, ready to answer. Close it, or use it in a ``with``, to free its memory.

    Attributes:
        info: what it serves: name, vocabulary, context length, slots.
    """

    def __init__(
        self,
        model: str = "embedded",
        *,
        store: Path | str | None = None,
        slots: int = _SLOTS,
        threads: int = 0,
        clock: Clock | None = None,
        randomness: Randomness | None = None,
        **options: float | str,
    ) -> None:
        """Load a model and reserve its memory.

        Args:
            model: as `starai.models.catalog.open_model` takes it: ``embedded``, a Hugging Face
                folder, a ``.gguf`` or llama2.c ``.bin`` file, or ``ORG/NAME`` in ``store``.
            store: the folder of pulled models.
            slots: answers that run at once.
            threads: 0 for as many as the machine has cores, or one if the model is tiny.
            clock: measures what the engine learns from; the machine's own if not given.
            randomness: behind answers without a seed; the operating system's if not given.
            **options: fields of `starai.engines.text.options.TextOptions`.

        Raises:
            ModelNotFound: there is no such model.
            ModelFileRefused: its files are wrong, or it cannot be served.
            ConfigurationRefused: an option is wrong, or there is no memory.
        """
        manifest = open_model(model, Path(store) if store else None)
        if manifest.kind == "mock":
            raise ConfigurationRefused("the model 'mock' has no weights: choose another")
        spec = EngineSpec("text", model, str(store or ""), slots, threads, options)
        self._engine: TextEngine | None = TextEngine(manifest, spec, clock)
        self._codec = open_codec(manifest)
        self._ends = manifest.eos_token_ids
        self._asking = Asking(manifest, self._codec, randomness or SystemRandomness())
        self.info: EngineInfo = self._engine.info
        self._readings: dict[bytes, Reading] = {}
        self._searches: list[EngineBeams] = []
        self._numbers = count()
        self._most_blocks = 0
        self._peak = self._engine.memory_report()

    # -- answers

    def generate(self, prompt: Prompt, **wanted: Unpack[Wanted]) -> Answers:
        """Answer one prompt; see `Wanted` for what can be asked.

        Raises:
            InvalidRequest: something asked for is wrong; ContextTooLong if it is the length.
        """
        return self.generate_many([prompt], **wanted)[0]

    def chat(
        self, messages: Sequence[Message], tools: Sequence[Any] = (), **wanted: Unpack[Wanted]
    ) -> Answers:
        """Answer a conversation, in the form of the model's own chat template.

        Args:
            messages: each with ``role`` and ``content``, as OpenAI has them.
            tools: functions the model may call, as OpenAI describes them; calls come as text.
            **wanted: see `Wanted`.

        Raises:
            InvalidRequest: the template refuses the conversation, or as `generate`.
        """
        return self.generate(self._asking.ids(messages, tools), **wanted)

    def stream(self, prompt: Prompt, **wanted: Unpack[Wanted]) -> Iterator[str]:
        """Answer one prompt piece by piece; never half a character, never part of a stop text.

        Begins when it is first asked for a piece; a loop that is left early frees all memory.

        Raises:
            InvalidRequest: as `generate`, or more than one answer was asked for.
        """
        asked = self._asking.generations(self._asking.ids(prompt), wanted)
        if len(asked) > 1:
            raise InvalidRequest("a stream is one answer: n is 1", param="n")
        reading = Reading(self._codec, self._ends, stops(wanted))
        while len(self._readings) >= self.info.slots:
            self._step()
        key = self._admit(reading, asked[0])
        try:
            while not reading.done:
                if piece := reading.drain():
                    yield piece
                self._step()
            if piece := reading.drain():
                yield piece
            reading.check()
        finally:
            self._forget(key)

    def generate_many(self, prompts: Sequence[Prompt], **wanted: Unpack[Wanted]) -> list[Answers]:
        """Answer many prompts together; each begins as soon as there is a place for it.

        Raises:
            InvalidRequest: as `generate`; then none of them is answered.
        """
        ids = [self._asking.ids(prompt) for prompt in prompts]
        asked = [self._asking.generations(one, wanted) for one in ids]
        read = iter(self._run([one for some in asked for one in some], stops(wanted)))
        return [
            Answers(_choices(read, len(some)), len(one))
            for one, some in zip(ids, asked, strict=True)
        ]

    def beam_search(
        self,
        prompt: Prompt,
        width: int = 4,
        *,
        max_tokens: int = 64,
        length_penalty: float = 1.0,
        early_stopping: EarlyStopping = False,
    ) -> list[Beam]:
        """The ``width`` likeliest answers that a beam search finds, the best first.

        Scores and stopping are those of transformers' ``generate(num_beams=width)``.

        Raises:
            InvalidRequest: a number makes no sense, or the search is wider than half the slots.
        """
        ids = self._asking.ids(prompt)
        longest = max(1, min(max_tokens, self.info.context_length - len(ids)))
        search = BeamSearch(width, self._ends, longest, length_penalty, early_stopping)

        def go_on(answer: Sequence[int]) -> Generation:
            return self._asking.beam(ids, answer, longest, search.num_candidates)

        host = EngineBeams(self._open, go_on, self._new_key, self._step)
        self._searches.append(host)
        try:
            found = host.search(search)
        finally:
            self._searches.remove(host)
        return [Beam(self._codec.decode(one.ids), one.ids, one.score) for one in found]

    def embed(self, texts: Sequence[str | Sequence[int]]) -> NDArray[np.float32]:
        """A vector of unit length for each text: float32 [texts, width].

        Raises:
            InvalidRequest: a text is empty; ContextTooLong: longer than the context.
        """
        asked = [self._asking.embedding(self._asking.ids(text)) for text in texts]
        vectors = [np.frombuffer(one.embedding, "<f4") for one in self._run(asked, ())]
        return np.stack(vectors) if vectors else np.zeros((0, 0), np.float32)

    # -- memory

    def memory_report(self) -> MemoryReport:
        """What the KV memory holds now, and what sharing and swapping saved; print it."""
        return self._open.memory_report()

    def memory_peak(self) -> MemoryReport:
        """The same, of the moment when most of the memory was in use."""
        return self._peak

    def close(self) -> None:
        """Give up what is running, and free the memory. Closing twice is no harm."""
        self._engine = None
        self._readings.clear()

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    # -- inside

    @property
    def _open(self) -> TextEngine:
        if self._engine is None:
            raise InvalidRequest("this engine is closed")
        return self._engine

    def _new_key(self) -> bytes:
        return next(self._numbers).to_bytes(8, "big")

    def _admit(self, reading: Reading, generation: Generation) -> bytes:
        key = self._new_key()
        self._open.admit(key, generation)
        self._readings[key] = reading
        return key

    def _run(self, asked: Sequence[Generation], stop: tuple[str, ...]) -> list[Reading]:
        """Run generations to their ends, as many at once as there are places."""
        readings = [Reading(self._codec, self._ends, stop) for _ in asked]
        waiting = deque(zip(readings, asked, strict=True))
        keys: list[bytes] = []
        try:
            while waiting or not all(reading.done for reading in readings):
                while waiting and len(self._readings) < self.info.slots:
                    keys.append(self._admit(*waiting.popleft()))
                self._step()
            for reading in readings:
                reading.check()
        finally:
            for key in keys:
                self._forget(key)
        return readings

    def _step(self) -> None:
        engine = self._open
        for news in engine.step():
            reading = self._readings.get(news.key)
            if reading is not None:
                reading.take(news)
                if reading.done:
                    self._forget(news.key)
            for search in self._searches:
                if search.owns(news.key):
                    search.take(news)
        used = engine.memory.books.num_blocks - engine.memory.books.free_blocks
        if used > self._most_blocks:
            self._most_blocks, self._peak = used, engine.memory_report()

    def _forget(self, key: bytes) -> None:
        self._readings.pop(key, None)
        if self._engine is not None:
            self._engine.cancel(key)


def _choices(read: Iterator[Reading], number: int) -> tuple[Choice, ...]:
    return tuple(next(read).choice() for _ in range(number))
