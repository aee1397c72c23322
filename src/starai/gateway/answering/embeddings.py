"""``POST /v1/embeddings``: the shape of its answer."""

from __future__ import annotations

import base64
import sys
from array import array
from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from starai.gateway.answering.endpoints import Answer, Endpoint, cost_of
from starai.gateway.asking.parsing import parse_embeddings
from starai.gateway.jobs import Job

_ENCODE: Final = msgspec.json.Encoder().encode


class Embedding(msgspec.Struct, frozen=True):
    """The vector of one input: numbers of length 1 together, or their base64 (float32)."""

    index: int
    embedding: list[float] | str
    object: Literal["embedding"] = "embedding"


class EmbeddingUsage(msgspec.Struct, frozen=True):
    """The tokens of one request, and what they cost where a price is set."""

    prompt_tokens: int
    total_tokens: int
    cost_nano_usd: str | msgspec.UnsetType = msgspec.UNSET


class EmbeddingList(msgspec.Struct, frozen=True):
    """The body of an answer."""

    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
    object: Literal["list"] = "list"


def whole(job: Job, answers: Sequence[Answer]) -> bytes:
    """The body of a finished job."""
    written = _base64 if job.ask.base64 else _floats
    data = [Embedding(index, written(answer.embedding)) for index, answer in enumerate(answers)]
    usage = EmbeddingUsage(job.prompt_tokens, job.prompt_tokens, cost_of(job))
    return _ENCODE(EmbeddingList(data, job.model.name, usage))


def _base64(packed: bytes) -> str:
    return base64.b64encode(packed).decode()


def _floats(packed: bytes) -> list[float]:
    numbers = array("f", packed)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tolist()


EMBEDDINGS: Final = Endpoint(name="embeddings", parse=parse_embeddings, whole=whole)
