"""What one may ask of an engine that is used alone, and the generations that this means.

The names are those of OpenAI's API where it has them. Knows nothing about how answers are made.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, Final, TypedDict, TypeGuard, cast

import msgspec

from starai.core.errors import InvalidRequest
from starai.core.limits import STOP_STRINGS_MAX
from starai.core.randomness import Randomness
from starai.models.codec import TextCodec
from starai.models.manifest import ModelManifest, SamplingDefaults
from starai.models.tools import Message
from starai.protocol import tokens
from starai.protocol.generation import Generation, Grammar, Sampling, sample_key

#: A text, token ids, or a conversation of messages with ``role`` and ``content``.
Prompt = str | Sequence[int] | Sequence[Message]

#: The longest answer where none is asked for: a few paragraphs, seconds on a small machine.
MAX_TOKENS: Final = 256
_GREEDY: Final = Sampling(bytes(32), temperature=0.0)


class Wanted(TypedDict, total=False):
    """How an answer shall be; everything may be left out.

    Attributes:
        max_tokens: the longest answer in tokens; 256 if not said, and never more than the context
            has room for.
        n: how many answers to each prompt; they share the prompt's memory. 1 if not said.
        temperature: 0 is always the likeliest token; the model's own advice if not said.
        top_p: keep the likeliest tokens up to this probability.
        top_k: keep this many of the likeliest tokens; 0 for all 64 that are drawn from.
        min_p: keep tokens of at least this share of the likeliest one's probability.
        presence_penalty: taken from the logit of every token that was said.
        frequency_penalty: taken as often as the token was said.
        logit_bias: added to the logits of some tokens.
        seed: the same seed gives the same answers, on any machine.
        stop: texts that end an answer and are not part of it.
        logprobs: how many rivals to report with each token's log-probability; none if not said.
        json_schema: the answer is JSON that fulfils this schema.
        regex: the answer matches this regular expression.
        choices: the answer is one of these.
        grammar: the answer follows this grammar.
        priority: higher goes first when memory or places are scarce.
        adapter: the LoRA adapter to answer with.
    """

    max_tokens: int
    n: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: dict[int, float]
    seed: int
    stop: str | Sequence[str]
    logprobs: int
    json_schema: str | dict[str, Any]
    regex: str
    choices: Sequence[str]
    grammar: Grammar
    priority: int
    adapter: str


_NAMES: Final = tuple(Wanted.__annotations__)
#: What the model's makers advise where nothing is said.
_ADVISED: Final = SamplingDefaults.__struct_fields__
_PENALTIES: Final = ("presence_penalty", "frequency_penalty", "logit_bias")


class Asking:
    """Makes generations for one model."""

    def __init__(self, manifest: ModelManifest, codec: TextCodec, randomness: Randomness) -> None:
        """Take the model, its codec, and the chance behind answers without a seed."""
        self._manifest = manifest
        self._codec = codec
        self._randomness = randomness

    def ids(self, prompt: Prompt, tools: Sequence[Any] = ()) -> list[int]:
        """The token ids of a prompt.

        Raises:
            InvalidRequest: it is no text, or the model's template refuses the conversation.
        """
        if isinstance(prompt, str):
            return self._codec.encode(prompt)
        if _is_conversation(prompt):
            return self._codec.render_chat(list(prompt), tools)
        return list(cast("Sequence[int]", prompt))

    def generations(self, ids: Sequence[int], wanted: Wanted) -> list[Generation]:
        """One generation for each of the ``n`` answers to a prompt.

        Raises:
            InvalidRequest: something is unknown, or contradicts something else.
        """
        _check(wanted)
        packed = _packed(ids)
        grammar = _grammar(wanted)
        return [
            Generation(
                packed,
                wanted.get("max_tokens", MAX_TOKENS),
                self._sampling(wanted, index),
                self._manifest.eos_token_ids,
                bytes(16),
                top_logprobs=wanted.get("logprobs"),
                priority=wanted.get("priority", 0),
                adapter=wanted.get("adapter", ""),
                grammar=grammar,
            )
            for index in range(wanted.get("n", 1))
        ]

    def embedding(self, ids: Sequence[int]) -> Generation:
        """The generation whose answer is a prompt's vector."""
        return Generation(_packed(ids), 0, _GREEDY, (), bytes(16), embed=True)

    def beam(self, ids: Sequence[int], answer: Sequence[int], longest: int, top: int) -> Generation:
        """The generation that goes on with a beam, and tells its ``top`` likeliest next tokens."""
        return Generation(
            _packed(ids),
            longest,
            _GREEDY,
            (),
            bytes(16),
            accepted=tokens.pack(answer),
            top_logprobs=top,
        )

    def _sampling(self, wanted: Wanted, index: int) -> Sampling:
        seed = wanted.get("seed")
        key = self._randomness.take(32) if seed is None else sample_key(seed, index)
        given: dict[str, Any] = {name: getattr(self._manifest.sampling, name) for name in _ADVISED}
        given |= {name: value for name, value in wanted.items() if name in (*_ADVISED, *_PENALTIES)}
        return Sampling(key, **given)


def stops(wanted: Wanted) -> tuple[str, ...]:
    """The texts that end an answer.

    Raises:
        InvalidRequest: too many, or an empty one.
    """
    stop = wanted.get("stop", ())
    found = (stop,) if isinstance(stop, str) else tuple(stop)
    if not all(found) or len(found) > STOP_STRINGS_MAX:
        raise InvalidRequest(
            f"stop has up to {STOP_STRINGS_MAX} texts, none of them empty", param="stop"
        )
    return found


def _check(wanted: Wanted) -> None:
    for name in wanted:
        if name not in _NAMES:
            near = difflib.get_close_matches(name, _NAMES, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(_NAMES)}"
            raise InvalidRequest(f"an answer has no {name!r}: {hint}", param=name)
    if wanted.get("n", 1) < 1:
        raise InvalidRequest("n is at least 1", param="n")
    if not -(1 << 63) <= wanted.get("seed", 0) < 1 << 63:
        raise InvalidRequest("a seed has 64 bits", param="seed")


def _grammar(wanted: Wanted) -> Grammar | None:
    asked: list[Grammar] = []
    if "json_schema" in wanted:
        schema = wanted["json_schema"]
        text = schema if isinstance(schema, str) else msgspec.json.encode(schema).decode()
        asked.append(Grammar("json_schema", text))
    if "regex" in wanted:
        asked.append(Grammar("regex", wanted["regex"]))
    if "choices" in wanted:
        choices = msgspec.json.encode(list(wanted["choices"])).decode()
        asked.append(Grammar("choice", choices))
    if "grammar" in wanted:
        asked.append(wanted["grammar"])
    if len(asked) > 1:
        raise InvalidRequest("json_schema, regex, choices and grammar exclude each other")
    return asked[0] if asked else None


def _packed(ids: Sequence[int]) -> bytes:
    try:
        return tokens.pack(ids)
    except (OverflowError, TypeError) as error:
        raise InvalidRequest("token ids are whole numbers from 0 on", param="prompt") from error


def _is_conversation(prompt: Sequence[int] | Sequence[Message]) -> TypeGuard[Sequence[Message]]:
    return bool(prompt) and all(isinstance(part, dict) for part in prompt)
