"""What is asked of an engine, and what it answers: token ids in, token ids out.

These values are the sealed content of a task. Nothing here knows about text, nodes or payment.
A field that has its default does not travel: parties that never heard of it understand each other.
"""

from __future__ import annotations

import enum
import hmac
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from starai.core.limits import (
    EMBEDDING_BYTES_MAX,
    FRAME_BYTES_MAX,
    GRAMMAR_CHARACTERS_MAX,
    PRIORITY_MAX,
    TOP_LOGPROBS_MAX,
)
from starai.protocol.fields import Name

#: Regions that one request may name: more than continents, fewer than countries.
REGIONS_MAX: Final = 32
REGION_CHARACTERS_MAX: Final = 64


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


def sample_key(seed: int, index: int) -> bytes:
    """The sampler's key for a client's seed and the number of a choice: 32 bytes.

    HKDF with SHA-256 (RFC 5869): the seed is the key material, the choice the context.
    """
    extracted = hmac.digest(b"starai/v1/sample-key", seed.to_bytes(8, "big", signed=True), "sha256")
    return hmac.digest(extracted, index.to_bytes(4, "big") + b"\x01", "sha256")


#: What a `Grammar` is written in.
GrammarKind = Literal["json_object", "json_schema", "regex", "lark", "choice"]


class Grammar(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an answer must look like: no token is drawn that leads out of it.

    ``text`` is a JSON schema (``json_schema``), a regular expression (``regex``), a grammar in
    Lark's notation (``lark``) or a JSON list of strings (``choice``); ``json_object`` needs none.
    """

    kind: GrammarKind
    text: Annotated[str, Meta(max_length=GRAMMAR_CHARACTERS_MAX)] = ""


class Generation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One answer to be generated, or one prompt to be embedded.

    ``prompt`` and ``accepted`` are packed token ids (`starai.protocol.tokens`). ``accepted`` are
    tokens of this very answer that another node already delivered: generation continues behind
    them, at output position ``len(accepted)``. ``max_tokens`` counts the whole answer, the
    accepted part included. ``top_logprobs`` None asks for no log-probabilities. ``salt`` (16
    bytes) blinds the hash of this value.

    Only generations of equal ``cache_salt`` (a tenant's secret) may share memory. A higher
    ``priority`` goes first. ``adapter`` names a low-rank adapter (LoRA) beside the model; empty is
    the model itself. With ``embed`` the answer is a vector of the prompt and no token
    (``max_tokens`` is 0). ``context_tokens`` says how many of the prompt's first tokens are
    documents that the rest asks about; 0 leaves that split to the engine. Only nodes in one of the
    ``regions`` may compute it (``eu`` holds ``eu-west``); empty admits all. ``whole`` says that
    nobody reads the answer before its end: its tokens may travel together.
    """

    prompt: bytes
    max_tokens: int
    sampling: Sampling
    stop_token_ids: tuple[int, ...]
    salt: bytes
    accepted: bytes = b""
    top_logprobs: int | None = None
    cache_salt: Annotated[bytes, Meta(max_length=32)] = b""
    priority: Annotated[int, Meta(ge=-PRIORITY_MAX, le=PRIORITY_MAX)] = 0
    adapter: Name = ""
    grammar: Grammar | None = None
    embed: bool = False
    context_tokens: Annotated[int, Meta(ge=0, le=FRAME_BYTES_MAX)] = 0
    regions: Annotated[tuple[Name, ...], Meta(max_length=REGIONS_MAX)] = ()
    whole: bool = False


class TokenLogprobs(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """A chosen token's natural log-probability and its likeliest rivals, before temperature."""

    token_id: int
    logprob: float
    top: Annotated[tuple[tuple[int, float], ...], Meta(max_length=TOP_LOGPROBS_MAX)] = ()


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The next piece of an answer: the plaintext of one sealed chunk.

    ``ids`` are packed token ids and may be empty (a sign of life, or the finish alone).
    ``code`` is the part's link of the secret-code chain (16 bytes); ``sketch`` and ``spots``
    are room for the proof of inference (activation sketch, log-probability spots).
    ``embedding`` is a prompt's whole vector of unit length, little-endian float32.
    """

    ids: bytes
    code: bytes
    finish: Finish | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()
    sketch: bytes = b""
    spots: bytes = b""
    embedding: Annotated[bytes, Meta(max_length=EMBEDDING_BYTES_MAX)] = b""
