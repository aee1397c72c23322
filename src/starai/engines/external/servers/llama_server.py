"""llama.cpp's own server, by its own API: token ids in and out, log-probabilities, grammars."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from starai.core.errors import ConfigurationRefused
from starai.engines.external.base import Found, NotThis, Said, Wanted
from starai.engines.external.connection import Connection
from starai.engines.external.servers.asking import (
    SAMPLE,
    ask_or_not,
    check_ids,
    integer,
    json_of,
    sampling_of,
)
from starai.models.codec import open_codec
from starai.models.manifest import ModelManifest
from starai.protocol.generation import Finish, Grammar, TokenLogprobs


class LlamaServer:
    """`llama-server`, from the version on that has ``return_tokens`` (end of 2024)."""

    name = "llama.cpp's server"
    health = "/health"

    async def probe(self, connection: Connection, manifest: ModelManifest, served: str) -> Found:
        """See `Server.probe`."""
        props = await ask_or_not(connection, "/props")
        if not isinstance(props, dict) or "default_generation_settings" not in props:
            raise NotThis
        ours = open_codec(manifest)
        body = {"content": SAMPLE, "add_special": False, "parse_special": True}
        answer = await ask_or_not(connection, "/tokenize", body)
        begin = ours.encode("")
        check_ids(answer.get("tokens", []), ours.encode(SAMPLE)[len(begin) :], self.name)
        trial = {"prompt": ours.encode("A"), "n_predict": 1, "return_tokens": True}
        tried = await ask_or_not(connection, "/completion", trial)
        if not tried.get("tokens"):
            raise ConfigurationRefused("this llama-server returns no tokens: it is too old")
        settings = props["default_generation_settings"]
        return Found(
            served=served or str(props.get("model_path", "")),
            version=str(props.get("build_info", "")),
            context_length=integer(settings, "n_ctx") if isinstance(settings, dict) else 0,
            slots=integer(props, "total_slots"),
            takes_ids=True,
            gives_ids=True,
            logprobs=True,
            grammars=frozenset(("json_object", "json_schema", "choice")),
        )

    def request(self, found: Found, wanted: Wanted) -> tuple[str, dict[str, Any]]:
        """See `Server.request`."""
        generation = wanted.generation
        body = sampling_of(wanted, "top_k", "min_p", "repeat_penalty")
        body |= {
            "prompt": wanted.ids,
            "n_predict": wanted.tokens,
            "return_tokens": True,
            # Its memory of prompts knows no tenants: only who has no salt may share.
            "cache_prompt": not generation.cache_salt,
            "logit_bias": [[id_, bias] for id_, bias in generation.sampling.logit_bias.items()],
        }
        if generation.top_logprobs is not None:
            body["n_probs"] = max(1, generation.top_logprobs)
        if generation.grammar is not None:
            body |= _structured(generation.grammar)
        return "/completion", body

    def read(self, event: Mapping[str, Any]) -> Said:
        """See `Server.read`."""
        if "error" in event:
            raise ValueError("llama-server says that it failed")
        ended = None
        if event["stop"]:
            ended = Finish.LENGTH if event.get("stop_type") == "limit" else Finish.STOP
        return Said(
            # The last event repeats nothing: its tokens were streamed before. Of several tokens
            # that make one character the server sends the last only, with the whole character.
            ids=() if event["stop"] else tuple(int(id_) for id_ in event["tokens"]),
            text=event["content"],
            logprobs=() if event["stop"] else _logprobs(event),
            ended=ended,
        )


def _structured(grammar: Grammar) -> dict[str, Any]:
    if grammar.kind == "choice":
        words = json_of(grammar.text)
        return {"grammar": "root ::= " + " | ".join(msgspec.json.encode(w).decode() for w in words)}
    schema = json_of(grammar.text) if grammar.kind == "json_schema" else {"type": "object"}
    return {"json_schema": schema}


def _logprobs(event: Mapping[str, Any]) -> tuple[TokenLogprobs, ...]:
    return tuple(
        TokenLogprobs(
            int(one["id"]),
            float(one["logprob"]),
            tuple((int(top["id"]), float(top["logprob"])) for top in one["top_logprobs"]),
        )
        for one in event.get("completion_probabilities") or ()
    )
