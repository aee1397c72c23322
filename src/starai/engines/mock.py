"""An engine without a model, for benchmarks and fail-over tests; loads in milliseconds.

A token is a pure function of the sample key and the position, as with the real engines, so
resumption behaves alike. It has no hidden states: that hook is never called. An embedding has
16 numbers that depend on the prompt alone. Grammars and adapters are refused.

Options: ``step_delay_ms`` sleeps in each step (default 0); ``tokens`` is the answer's length
before its end token (default 20), unless ``logit_bias`` bans that token with -100.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence

import numpy as np

from starai.core.errors import InvalidRequest, Overloaded
from starai.engines.answer import Answer
from starai.engines.base import Emitted, EngineInfo, EngineSpec, HiddenStatesHook
from starai.engines.sampler import Doubles, TokenRace, gumbel, hash_one, hash_position
from starai.models.manifest import ModelManifest
from starai.protocol.generation import Generation, TokenLogprobs
from starai.protocol.tokens import pack

_BAN = -100.0
_FIRST_PRINTABLE = 32
_NUM_PRINTABLE = 95
_WIDTH = 16


class MockEngine:
    """See the module's text."""

    def __init__(self, manifest: ModelManifest, spec: EngineSpec) -> None:
        """Read the options."""
        self.info = EngineInfo(
            manifest.name, manifest.root, manifest.vocab_size, manifest.context_length, spec.slots
        )
        self._eos = manifest.eos_token_ids[0]
        self._delay_s = float(spec.options.get("step_delay_ms", 0.0)) / 1000
        self._tokens = int(spec.options.get("tokens", 20))
        self._answers: dict[bytes, Answer] = {}

    def prepare(self, generation: Generation) -> bool:
        """Nothing ever needs to be made ready."""
        return True

    def admit(self, key: bytes, generation: Generation) -> None:
        """Take a sequence; see `Engine.admit`."""
        if key in self._answers:
            raise InvalidRequest("this key is in use")
        if len(self._answers) >= self.info.slots:
            raise Overloaded("no slot is free")
        if generation.grammar is not None or generation.adapter:
            raise InvalidRequest("the mock engine knows neither grammars nor adapters")
        self._answers[key] = Answer(key, generation, self.info)

    def step(self) -> list[Emitted]:
        """One token of every sequence."""
        if self._delay_s:
            time.sleep(self._delay_s)
        emitted = [self._advance(answer) for answer in self._answers.values()]
        for news in emitted:
            if news.finish is not None:
                del self._answers[news.key]
        return emitted

    def cancel(self, key: bytes) -> None:
        """Forget a sequence."""
        self._answers.pop(key, None)

    @property
    def has_work(self) -> bool:
        """Whether a sequence is running."""
        return bool(self._answers)

    def on_hidden_states(self, hook: HiddenStatesHook | None) -> None:
        """Accepted and never called: a mock has no hidden states."""

    def _advance(self, answer: Answer) -> Emitted:
        if answer.embed:
            return answer.embedded(_vector(answer.prompt))
        if answer.finish is not None:
            return answer.ended()
        token_id = self._token(answer.race)
        if answer.top_logprobs is None:
            return answer.take(token_id, None)
        rivals = ((token_id, 0.0),)[: answer.top_logprobs]
        return answer.take(token_id, TokenLogprobs(token_id, 0.0, rivals))

    def _token(self, race: TokenRace) -> int:
        banned = race.sampling.logit_bias.get(self._eos, 0.0) <= _BAN
        if race.position >= self._tokens and not banned:
            return self._eos
        return _FIRST_PRINTABLE + hash_one(race.key, race.position, 0) % _NUM_PRINTABLE


def _vector(prompt: Sequence[int]) -> Doubles:
    """A direction for each prompt."""
    key = np.uint64(int.from_bytes(hashlib.sha256(pack(prompt)).digest()[:8], "little"))
    places, nothing = np.arange(_WIDTH, dtype=np.uint64), np.zeros(1, np.uint64)
    return gumbel(hash_position(np.array([key]), places, nothing))
