"""Servers that know OpenAI's text completions and no token ids.

llama-cpp-python, LM Studio, OpenVINO model server, and any other. They are alike but for their
paths, for what they tell about the model, and for the parameters beyond OpenAI's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starai.core.errors import ConfigurationRefused
from starai.engines.external.base import Found, NotThis, Said, Wanted
from starai.engines.external.connection import Connection
from starai.engines.external.servers.asking import (
    FINISHES,
    ask_or_not,
    integer,
    listed,
    pick,
    sampling_of,
)
from starai.models.manifest import ModelManifest


class OpenAiLike:
    """Any server with OpenAI's ``/v1/models`` and ``/v1/completions``."""

    name = "an OpenAI-compatible server"
    health = "/v1/models"
    models = "/v1/models"
    path = "/v1/completions"
    extra: tuple[str, ...] = ()

    async def probe(self, connection: Connection, manifest: ModelManifest, served: str) -> Found:
        """See `Server.probe`."""
        model = pick(await listed(connection, self.models), manifest, served)
        return await self._tried(connection, model, {})

    async def _tried(
        self, connection: Connection, model: Mapping[str, Any], about: Mapping[str, int]
    ) -> Found:
        """Have the server say a word, so that a missing endpoint is seen now."""
        body = {"model": model["id"], "prompt": "A", "max_tokens": 1, "temperature": 0}
        try:
            answer = await ask_or_not(connection, self.path, body)
            text = answer["choices"][0]["text"]
        except (NotThis, KeyError, IndexError, TypeError) as error:
            raise ConfigurationRefused(
                f"{self.name} at {connection.url} has no text completions ({self.path}): a "
                "conversation's prompt could not be given to it exactly"
            ) from error
        if not isinstance(text, str):
            raise ConfigurationRefused(f"{self.name} answers no text")
        return Found(
            served=str(model["id"]),
            context_length=about.get("context", 0),
            slots=about.get("slots", 0),
        )

    def request(self, found: Found, wanted: Wanted) -> tuple[str, dict[str, Any]]:
        """See `Server.request`."""
        body = sampling_of(wanted, *self.extra)
        body |= {"model": found.served, "prompt": wanted.text, "max_tokens": wanted.tokens}
        return self.path, body

    def read(self, event: Mapping[str, Any]) -> Said:
        """See `Server.read`."""
        if "error" in event:
            raise ValueError("the server says that it failed")
        if not event["choices"]:
            return Said()
        choice = event["choices"][0]
        reason = choice.get("finish_reason")
        return Said(text=choice.get("text") or "", ended=FINISHES[reason] if reason else None)


class LlamaCppPython(OpenAiLike):
    """`python -m llama_cpp.server`: one answer at a time.

    Any second question, even for its models, breaks the answer off that it is giving. Its address
    without a path answers 404 and leaves it alone.
    """

    name = "llama-cpp-python's server"
    health = "/"
    extra = ("top_k", "min_p", "repeat_penalty")

    async def probe(self, connection: Connection, manifest: ModelManifest, served: str) -> Found:
        """See `Server.probe`."""
        answer = await ask_or_not(connection, "/extras/tokenize/count", {"input": "A"})
        if not isinstance(answer, dict) or "count" not in answer:
            raise NotThis
        model = pick(await listed(connection), manifest, served)
        return await self._tried(connection, model, {"slots": 1})


class LmStudio(OpenAiLike):
    """LM Studio; it loads a model when it is first asked for."""

    name = "LM Studio"
    extra = ("top_k", "min_p", "repeat_penalty")

    async def probe(self, connection: Connection, manifest: ModelManifest, served: str) -> Found:
        """See `Server.probe`."""
        models = await listed(connection, "/api/v0/models")
        if not all("state" in model for model in models):
            raise NotThis
        model = pick([m for m in models if m.get("type") != "embeddings"], manifest, served)
        context = integer(model, "loaded_context_length") or integer(model, "max_context_length")
        return await self._tried(connection, model, {"context": context, "slots": 1})


class OpenVino(OpenAiLike):
    """OpenVINO model server: the same under ``/v3``."""

    name = "OpenVINO model server"
    health = "/v3/models"
    models = "/v3/models"
    path = "/v3/completions"
    extra = ("top_k", "repetition_penalty")
