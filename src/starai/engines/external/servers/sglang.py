"""SGLang, by its own API: token ids in and out, log-probabilities, JSON schemas and regexes.

Written from its documentation; it was not run here (it wants a GPU).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from starai.core.errors import ConfigurationRefused
from starai.core.limits import SAMPLER_CANDIDATES
from starai.engines.external.base import Found, NotThis, Said, Wanted
from starai.engines.external.connection import Connection
from starai.engines.external.servers.asking import FINISHES, ask_or_not, integer, json_of
from starai.models.codec import open_codec
from starai.models.manifest import ModelManifest
from starai.protocol.generation import Finish, Grammar, TokenLogprobs

_ANY_JSON: Final = '{"type": "object"}'


class Sglang:
    """`sglang.launch_server` with ``--stream-output``, so that events carry what is new only."""

    name = "SGLang"
    health = "/health"

    async def probe(self, connection: Connection, manifest: ModelManifest, served: str) -> Found:
        """See `Server.probe`."""
        info = await ask_or_not(connection, "/get_server_info")
        if not isinstance(info, dict) or "model_path" not in info:
            raise NotThis
        name = str(info.get("served_model_name") or info["model_path"])
        if served and served != name:
            raise ConfigurationRefused(f"this SGLang serves {name}, not {served}")
        if not info.get("stream_output") and not info.get("incremental_streaming_output"):
            raise ConfigurationRefused("start SGLang with --stream-output: events of what is new")
        ours = open_codec(manifest)
        body = {"input_ids": ours.encode("A"), "sampling_params": {"max_new_tokens": 1}}
        tried = await ask_or_not(connection, "/generate", body)
        if not tried.get("output_ids"):
            raise ConfigurationRefused("this SGLang returns no output_ids: it is too old")
        return Found(
            served=name,
            version=str(info.get("version", "")),
            context_length=integer(info, "context_length") or integer(info, "max_total_num_tokens"),
            slots=integer(info, "max_running_requests"),
            takes_ids=True,
            gives_ids=True,
            logprobs=True,
            grammars=frozenset(("json_object", "json_schema", "regex")),
        )

    def request(self, found: Found, wanted: Wanted) -> tuple[str, dict[str, Any]]:
        """See `Server.request`."""
        generation, sampling = wanted.generation, wanted.generation.sampling
        params: dict[str, Any] = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k or SAMPLER_CANDIDATES,
            "min_p": sampling.min_p,
            "presence_penalty": sampling.presence_penalty,
            "frequency_penalty": sampling.frequency_penalty,
            "repetition_penalty": 1.0,
            "max_new_tokens": wanted.tokens,
            "stop_token_ids": generation.stop_token_ids,
            "sampling_seed": wanted.seed,
        }
        if sampling.logit_bias:
            params["logit_bias"] = {str(id_): bias for id_, bias in sampling.logit_bias.items()}
        if generation.grammar is not None:
            params |= _structured(generation.grammar)
        body: dict[str, Any] = {"input_ids": wanted.ids, "sampling_params": params, "stream": True}
        if generation.top_logprobs is not None:
            body |= {"return_logprob": True, "top_logprobs_num": generation.top_logprobs}
        if generation.cache_salt:
            body["extra_key"] = generation.cache_salt.hex()
        return "/generate", body

    def read(self, event: Mapping[str, Any]) -> Said:
        """See `Server.read`."""
        if "error" in event:
            raise ValueError("SGLang says that it failed")
        meta = event["meta_info"]
        ids = tuple(int(id_) for id_ in event["output_ids"])
        reason = (meta.get("finish_reason") or {}).get("type")
        return Said(
            ids=ids,
            logprobs=_logprobs(ids, meta),
            ended=_finish(reason),
        )


def _finish(reason: str | None) -> Finish | None:
    return FINISHES[reason] if reason else None


def _structured(grammar: Grammar) -> dict[str, Any]:
    if grammar.kind == "regex":
        return {"regex": grammar.text}
    if grammar.kind == "json_schema":
        json_of(grammar.text)  # refused here rather than there
        return {"json_schema": grammar.text}
    return {"json_schema": _ANY_JSON}


def _logprobs(ids: tuple[int, ...], meta: Mapping[str, Any]) -> tuple[TokenLogprobs, ...]:
    told = (meta.get("output_token_logprobs") or [])[-len(ids) :] if ids else []
    if not told:
        return ()
    tops = (meta.get("output_top_logprobs") or [[]] * len(told))[-len(ids) :]
    return tuple(
        TokenLogprobs(
            int(id_), float(logprob), tuple((int(i), float(value)) for value, i, _ in top or ())
        )
        for (logprob, id_, _), top in zip(told, tops, strict=True)
    )
