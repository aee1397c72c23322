"""What the probes of several servers share: which model is served, and what is asked of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from starai.core.errors import ConfigurationRefused, Unavailable
from starai.core.limits import SAMPLER_CANDIDATES
from starai.engines.external.base import NotThis, Wanted
from starai.engines.external.connection import Connection, Refused
from starai.models.manifest import ModelManifest
from starai.protocol.generation import Finish

#: OpenAI's words for the end of an answer.
FINISHES: Final = {"stop": Finish.STOP, "length": Finish.LENGTH}
#: Too many requests, and the ways in which servers say that they load, restart or fail.
_NOT_NOW: Final = (429, 500, 502, 503, 504)
#: What a tokenizer is compared by: letters, digits, blanks, other scripts, code.
SAMPLE: Final = "Once upon a time, 3.14 ≈ π; naïve déjà-vu\n\n\tdef f(x): return x  # 你好"


async def ask_or_not(connection: Connection, path: str, body: object = None) -> Any:
    """An answer by which a kind of server is recognised.

    Raises:
        ConfigurationRefused: it wants a key.
        NotThis: the server does not know the question.
        Unavailable: it is there, and still loading, or failing.
    """
    try:
        return await connection.ask(path, body)
    except Refused as refusal:
        if refusal.status in (401, 403):
            raise ConfigurationRefused(
                f"{connection.url} wants a key: set STARAI_ENGINE_KEY"
            ) from refusal
        if refusal.status in _NOT_NOW:
            raise Unavailable(
                f"{connection.url} is not ready: HTTP {refusal.status}", retry_after_s=2.0
            ) from refusal
        raise NotThis from refusal


async def listed(connection: Connection, path: str = "/v1/models") -> list[dict[str, Any]]:
    """The models that a server lists in OpenAI's form.

    Raises:
        NotThis: it lists none.
    """
    answer = await ask_or_not(connection, path)
    models = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(models, list):
        raise NotThis
    return [model for model in models if isinstance(model, dict) and "id" in model]


def pick(models: list[dict[str, Any]], manifest: ModelManifest, served: str) -> dict[str, Any]:
    """The model that is meant: by its name there, by ours, or the only one.

    Raises:
        ConfigurationRefused: it is not there, or there are several.
    """
    names = [str(model["id"]) for model in models]
    if served:
        wanted = [model for model in models if model["id"] == served]
    else:
        wanted = [model for model in models if model["id"] == manifest.name]
        wanted = wanted or (models if len(models) == 1 else [])
    if not wanted:
        raise ConfigurationRefused(
            f"the server has {', '.join(names)[:200] or 'no model'}: say which is meant by "
            "--engine served=NAME"
        )
    return wanted[0]


def sampling_of(wanted: Wanted, *names: str) -> dict[str, Any]:
    """The sampler's parameters by OpenAI's names, and those of ``names`` that go beyond.

    Everything is said, because servers' defaults differ.
    """
    sampling = wanted.generation.sampling
    extra = {
        "top_k": sampling.top_k or SAMPLER_CANDIDATES,
        "min_p": sampling.min_p,
        "repeat_penalty": 1.0,
        "repetition_penalty": 1.0,
    }
    body: dict[str, Any] = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "seed": wanted.seed,
        "stream": True,
        **{name: extra[name] for name in names},
    }
    if sampling.logit_bias:
        body["logit_bias"] = {str(id_): bias for id_, bias in sampling.logit_bias.items()}
    return body


def check_ids(read: list[int], ours: list[int], what: str) -> None:
    """Refuse a server whose tokenizer is not the model's.

    Raises:
        ConfigurationRefused: the same text has other ids there.
    """
    if read != ours:
        raise ConfigurationRefused(
            f"{what} reads a text as other tokens than the model's own files: it serves another "
            "model; name the folder or GGUF file of the model that it serves by --model"
        )


def json_of(text: str) -> Any:
    """A JSON schema from a grammar's text; anything at all if it is empty."""
    return msgspec.json.decode(text) if text else {}


def integer(answer: Mapping[str, Any], name: str) -> int:
    """A positive number of a server's answer; 0 where it is none."""
    value = answer.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
