"""vLLM: token ids in and out, log-probabilities, grammars, and a prefix cache kept by tenant."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, Final

from starai.core.errors import ConfigurationRefused
from starai.engines.external.base import Found, NotThis, Said, Wanted
from starai.engines.external.connection import Connection
from starai.engines.external.servers.asking import (
    FINISHES,
    SAMPLE,
    ask_or_not,
    check_ids,
    integer,
    json_of,
    listed,
    pick,
    sampling_of,
)
from starai.models.codec import open_codec
from starai.models.manifest import ModelManifest
from starai.protocol.generation import Grammar, TokenLogprobs

_TOKEN: Final = "token_id:"  # noqa: S105 - not a password


class Vllm:
    """`vllm serve`, from the version on that returns token ids (2025)."""

    name = "vLLM"
    health = "/health"

    async def probe(self, connection: Connection, manifest: ModelManifest, served: str) -> Found:
        """See `Server.probe`."""
        version = await ask_or_not(connection, "/version")
        models = await listed(connection)
        is_ours = any(model.get("owned_by") == "vllm" for model in models)
        if not isinstance(version, dict) or not is_ours:
            raise NotThis
        model = pick(models, manifest, served)
        name = str(model["id"])
        body = {"model": name, "prompt": SAMPLE, "add_special_tokens": False}
        answer = await ask_or_not(connection, "/tokenize", body)
        ours = open_codec(manifest)
        begin = ours.encode("")
        check_ids(answer.get("tokens", []), ours.encode(SAMPLE)[len(begin) :], self.name)
        trial = {"model": name, "prompt": [*begin, *ours.encode("A")], "max_tokens": 1}
        trial |= {"temperature": 0, "return_token_ids": True}
        tried = await ask_or_not(connection, "/v1/completions", trial)
        if not tried["choices"][0].get("token_ids"):
            raise ConfigurationRefused("this vLLM returns no token ids: it is too old, update it")
        return Found(
            served=name,
            version=str(version.get("version", "")),
            context_length=integer(model, "max_model_len"),
            takes_ids=True,
            gives_ids=True,
            logprobs=True,
            grammars=frozenset(("json_object", "json_schema", "regex", "choice")),
        )

    def request(self, found: Found, wanted: Wanted) -> tuple[str, dict[str, Any]]:
        """See `Server.request`."""
        generation = wanted.generation
        body = sampling_of(wanted, "top_k", "min_p", "repetition_penalty")
        body |= {
            "model": found.served,
            "prompt": wanted.ids,
            "max_tokens": wanted.tokens,
            "stop_token_ids": generation.stop_token_ids,
            "return_token_ids": True,
            "add_special_tokens": False,
        }
        if generation.top_logprobs is not None:
            body |= {"logprobs": generation.top_logprobs, "return_tokens_as_token_ids": True}
        if generation.grammar is not None:
            body["structured_outputs"] = _structured(generation.grammar)
        if generation.cache_salt:
            body["cache_salt"] = base64.b64encode(generation.cache_salt).decode()
        return "/v1/completions", body

    def read(self, event: Mapping[str, Any]) -> Said:
        """See `Server.read`."""
        if not event["choices"]:
            return Said()
        choice = event["choices"][0]
        ids = tuple(int(id_) for id_ in choice.get("token_ids") or ())
        reason = choice.get("finish_reason")
        return Said(
            ids=ids,
            logprobs=_logprobs(ids, choice.get("logprobs")),
            ended=FINISHES[reason] if reason else None,
        )


def _structured(grammar: Grammar) -> dict[str, Any]:
    if grammar.kind == "json_object":
        return {"json_object": True}
    names = {"json_schema": "json", "regex": "regex", "choice": "choice"}
    value = grammar.text if grammar.kind == "regex" else json_of(grammar.text)
    return {names[grammar.kind]: value}


def _logprobs(ids: tuple[int, ...], told: Mapping[str, Any] | None) -> tuple[TokenLogprobs, ...]:
    if not told:
        return ()
    made = []
    for place, (id_, logprob) in enumerate(zip(ids, told["token_logprobs"], strict=True)):
        rivals = (told.get("top_logprobs") or [{}] * len(ids))[place] or {}
        ranked = sorted(
            ((int(token.removeprefix(_TOKEN)), float(value)) for token, value in rivals.items()),
            key=lambda pair: (-pair[1], pair[0]),
        )
        made.append(TokenLogprobs(id_, float(logprob), tuple(ranked)))
    return tuple(made)
