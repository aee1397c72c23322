"""Ollama, by its own API: raw prompts as text, the model's context, JSON schemas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starai.core.errors import ConfigurationRefused
from starai.core.limits import SAMPLER_CANDIDATES
from starai.engines.external.base import Found, NotThis, Said, Wanted
from starai.engines.external.connection import Connection
from starai.engines.external.servers.asking import (
    FINISHES,
    ask_or_not,
    integer,
    json_of,
    pick,
)
from starai.models.manifest import ModelManifest


class Ollama:
    """`ollama serve`. It takes ``num_ctx`` from each request and reloads when that changes."""

    name = "Ollama"
    health = "/api/version"

    async def probe(self, connection: Connection, manifest: ModelManifest, served: str) -> Found:
        """See `Server.probe`."""
        version = await ask_or_not(connection, "/api/version")
        tags = await ask_or_not(connection, "/api/tags")
        if not isinstance(tags, dict) or not isinstance(tags.get("models"), list):
            raise NotThis
        models = [{"id": model.get("name", "")} for model in tags["models"]]
        name = str(pick(models, manifest, served)["id"])
        shown = await ask_or_not(connection, "/api/show", {"model": name})
        about = shown.get("model_info") or {}
        family = about.get("general.architecture", "")
        tokens = about.get("tokenizer.ggml.tokens")
        vocabulary = integer(about, f"{family}.vocab_size") or len(tokens or ())
        if vocabulary and vocabulary != manifest.vocab_size:
            raise ConfigurationRefused(
                f"Ollama's {name} has {vocabulary} tokens, the files given by --model "
                f"{manifest.vocab_size}: they are different models"
            )
        return Found(
            served=name,
            version=str(version.get("version", "")),
            context_length=integer(about, f"{family}.context_length"),
            grammars=frozenset(("json_object", "json_schema")),
        )

    def request(self, found: Found, wanted: Wanted) -> tuple[str, dict[str, Any]]:
        """See `Server.request`."""
        sampling, grammar = wanted.generation.sampling, wanted.generation.grammar
        body: dict[str, Any] = {
            "model": found.served,
            "prompt": wanted.text,
            "raw": True,
            "stream": True,
            "options": {
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": sampling.top_k or SAMPLER_CANDIDATES,
                "min_p": sampling.min_p,
                "presence_penalty": sampling.presence_penalty,
                "frequency_penalty": sampling.frequency_penalty,
                "repeat_penalty": 1.0,
                "seed": wanted.seed,
                "num_predict": wanted.tokens,
                "num_ctx": found.context_length,
            },
        }
        if grammar is not None:
            body["format"] = json_of(grammar.text) if grammar.kind == "json_schema" else "json"
        return "/api/generate", body

    def read(self, event: Mapping[str, Any]) -> Said:
        """See `Server.read`."""
        if "error" in event:
            raise ValueError("Ollama says that it failed")
        reason = event.get("done_reason") or "stop"
        return Said(text=event["response"], ended=FINISHES[reason] if event["done"] else None)
