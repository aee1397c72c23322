"""What is asked of an engine, and what it answers: token ids in, token ids out.

These values are the sealed content of a task. Nothing here knows about text, nodes or payment.
"""

from __future__ import annotations

import enum
from typing import Annotated

import msgspec

from starai.core.limits import TOP_LOGPROBS_MAX


class Finish(enum.Enum):
    """Why an answer ended, in OpenAI's words."""

    STOP = "stop"
    LENGTH = "length"


class Sampling(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the next token is drawn: the canonical sampler's parameters.

    ``temperature`` 0 is greedy; ``top_k`` 0 keeps all 64 candidates of the race. ``sample_key``
    (32 bytes) makes the noise: the same key gives the same tokens on any node.
    """

    sample_key: bytes
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}


class Generation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One answer to be generated.

    ``prompt`` and ``accepted`` are packed token ids (`starai.protocol.tokens`). ``accepted`` are
    tokens of this very answer that another node already delivered: generation continues behind
    them, at output position ``len(accepted)``. ``max_tokens`` counts the whole answer, the
    accepted part included. ``top_logprobs`` None asks for no log-probabilities. ``salt`` (16
    bytes) blinds the hash of this value.
    """

    prompt: bytes
    max_tokens: int
    sampling: Sampling
    stop_token_ids: tuple[int, ...]
    salt: bytes
    accepted: bytes = b""
    top_logprobs: int | None = None


class TokenLogprobs(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """A chosen token's natural log-probability and its likeliest rivals, before temperature."""

    token_id: int
    logprob: float
    top: Annotated[tuple[tuple[int, float], ...], msgspec.Meta(max_length=TOP_LOGPROBS_MAX)] = ()


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The next piece of an answer: the plaintext of one sealed chunk.

    ``ids`` are packed token ids and may be empty (a sign of life, or the finish alone).
    ``code`` is the part's link of the secret-code chain (16 bytes); ``sketch`` and ``spots``
    are room for the proof of inference (activation sketch, log-probability spots).
    """

    ids: bytes
    code: bytes
    finish: Finish | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()
    sketch: bytes = b""
    spots: bytes = b""
