"""From a request's bytes to an `Ask`: nothing unsupported or out of range gets past here.

What is accepted besides the supported fields, because it asks for nothing:

- labels that change nothing in an answer: ``user``, ``metadata``, ``safety_identifier``,
  ``prompt_cache_key``;
- null for any optional field, and the values of `_ASKS_NOTHING`.

Everything else that OpenAI knows is refused by name, and so is everything that nobody knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from typing import Any, Final, TypeVar

import msgspec

from starai.core.limits import (
    CHOICES_MAX,
    EMBEDDING_INPUTS_MAX,
    FRAME_BYTES_MAX,
    LOGIT_BIAS_MAX,
    PRIORITY_MAX,
    SAMPLER_CANDIDATES,
    STOP_STRINGS_MAX,
    TOP_LOGPROBS_MAX,
)
from starai.gateway.asking.asks import Ask, Prompt, ToolUse
from starai.gateway.asking.refusals import (
    check_length,
    check_range,
    not_json,
    not_the_schema,
    unsupported,
    wrong_type,
    wrong_value,
)
from starai.gateway.asking.schema import (
    ChatMessage,
    ChatRequest,
    CommonRequest,
    CompletionRequest,
    EmbeddingRequest,
    ResponseFormat,
)
from starai.gateway.asking.structure import shape_of, tool_fields, tools_of
from starai.gateway.errors import RequestRefused
from starai.protocol.generation import REGION_CHARACTERS_MAX, REGIONS_MAX

#: A longer stop string than any sentence; each costs a comparison per character and token.
_STOP_CHARACTERS_MAX: Final = 256
#: Templates walk all messages; a conversation this long is an accident.
_MESSAGES_MAX: Final = 4096
#: OpenAI's limit on ``logprobs`` of plain completions.
_COMPLETION_LOGPROBS_MAX: Final = 5
_I64: Final = 1 << 63
#: Refused fields, and the values of each that ask for nothing and are therefore accepted.
_ASKS_NOTHING: Final[dict[str, tuple[object, ...]]] = {
    "audio": (),
    "function_call": ("none",),
    "functions": ([],),
    "modalities": (["text"],),
    "moderation": (),
    "prediction": (),
    "prompt_cache_options": (),
    "prompt_cache_retention": ("in_memory",),
    "reasoning_effort": ("none",),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "verbosity": (),
    "web_search_options": (),
}
_MESSAGE_ASKS_NOTHING: Final[dict[str, tuple[object, ...]]] = {
    "name": (),
    "refusal": (),
    "annotations": ([],),
    "audio": (),
    "function_call": (),
}
# Nearly all requests leave all of them out, which one comparison tells.
_MESSAGE_GIVES: Final = attrgetter(*_MESSAGE_ASKS_NOTHING)
_MESSAGE_NOTHING: Final = (None,) * len(_MESSAGE_ASKS_NOTHING)
_CHAT_GIVES: Final = attrgetter(*_ASKS_NOTHING)
_CHAT_NOTHING: Final = (None,) * len(_ASKS_NOTHING)
#: What every endpoint's numbers lie between.
_RANGES: Final[dict[str, tuple[float, float]]] = {
    "n": (1, CHOICES_MAX),
    "max_tokens": (1, _I64),
    "temperature": (0, 2),
    "top_p": (0, 1),
    "top_k": (-1, SAMPLER_CANDIDATES),
    "min_p": (0, 1),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "seed": (-_I64, _I64 - 1),
    # Anybody may step back for others; who may go before them is not for clients to say.
    "priority": (-PRIORITY_MAX, 0),
    "context_tokens": (0, FRAME_BYTES_MAX),
}
_ranged: Final = attrgetter(*_RANGES)
#: OpenAI's newer name for the system role; templates know the older one.
_ROLES: Final = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}

Request = TypeVar("Request", CommonRequest, ChatRequest, CompletionRequest, EmbeddingRequest)
_CHAT: Final = msgspec.json.Decoder(ChatRequest)
_COMPLETION: Final = msgspec.json.Decoder(CompletionRequest)
_EMBEDDING: Final = msgspec.json.Decoder(EmbeddingRequest)


def parse_chat(body: bytes) -> Ask:
    """The ask of a chat completion.

    Raises:
        InvalidRequest: the body is malformed, out of range or asks for what is not offered.
    """
    request = _decode(_CHAT, body)
    if _CHAT_GIVES(request) != _CHAT_NOTHING:
        _refuse_unsupported(request, _ASKS_NOTHING, "")
    check_length("messages", request.messages, shortest=1, longest=_MESSAGES_MAX)
    max_tokens = request.max_completion_tokens
    if max_tokens is None:
        max_tokens = request.max_tokens
    elif request.max_tokens is not None:
        raise wrong_value(
            "max_tokens",
            "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported.",
        )
    check_range("max_completion_tokens", request.max_completion_tokens, 1, _I64)
    check_range("top_logprobs", request.top_logprobs, 0, TOP_LOGPROBS_MAX)
    if request.top_logprobs is not None and not request.logprobs:
        raise wrong_value(
            "top_logprobs", "'top_logprobs' is only allowed when 'logprobs' is set to true."
        )
    return _ask(
        request,
        messages=[_message(number, sent) for number, sent in enumerate(request.messages)],
        tools=tools_of(request),
        response_format=request.response_format,
        max_tokens=max_tokens,
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
    )


def parse_completion(body: bytes) -> Ask:
    """The ask of a plain completion.

    Raises:
        InvalidRequest: the body is malformed, out of range or asks for what is not offered.
    """
    request = _decode(_COMPLETION, body)
    harmless = {"echo": (False,), "suffix": (), "best_of": (request.n or 1,)}
    _refuse_unsupported(request, harmless, "")
    check_range("logprobs", request.logprobs, 0, _COMPLETION_LOGPROBS_MAX)
    return _ask(
        request,
        prompts=_prompts(request.prompt),
        max_tokens=request.max_tokens,
        logprobs=request.logprobs,
    )


def parse_embeddings(body: bytes) -> Ask:
    """The ask of embeddings.

    Raises:
        InvalidRequest: the body is malformed, out of range or asks for what is not offered.
    """
    request = _decode(_EMBEDDING, body)
    if request.dimensions is not None:
        raise unsupported("dimensions", "A vector has as many numbers as the model is wide.")
    if request.encoding_format not in (None, "float", "base64"):
        raise wrong_value(
            "encoding_format", "Supported values of 'encoding_format' are 'float' and 'base64'."
        )
    check_range("priority", request.priority, -PRIORITY_MAX, 0)
    return Ask(
        model=request.model,
        prompts=_prompts(request.input, "input", EMBEDDING_INPUTS_MAX),
        embed=True,
        base64=request.encoding_format == "base64",
        priority=request.priority or 0,
        regions=_regions(request.regions),
    )


def _regions(given: list[str] | None) -> tuple[str, ...]:
    """Where nodes may be that compute the answer; none are named: anywhere."""
    named = tuple(given or ())
    if len(named) > REGIONS_MAX or not all(0 < len(one) <= REGION_CHARACTERS_MAX for one in named):
        raise wrong_value(
            "regions",
            f"'regions' is a list of up to {REGIONS_MAX} names of up to {REGION_CHARACTERS_MAX} "
            'characters, as "eu" or "eu-west".',
        )
    return named


def _decode(decoder: msgspec.json.Decoder[Request], body: bytes) -> Request:
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise not_the_schema(error) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise not_json(error) from None


def _refuse_unsupported(
    value: CommonRequest | ChatMessage, harmless: Mapping[str, tuple[object, ...]], prefix: str
) -> None:
    for name, asks_nothing in harmless.items():
        given = getattr(value, name)
        if given is not None and given not in asks_nothing:
            raise unsupported(prefix + name)


def _message(number: int, sent: ChatMessage) -> dict[str, Any]:
    """One message as a template reads it; several text parts become lines of one text."""
    place = f"messages[{number}]"
    if sent.role == "function":
        raise unsupported(f"{place}.role", "Use 'tool'.")
    role = _ROLES.get(sent.role)
    if role is None:
        raise wrong_value(
            f"{place}.role",
            f"Invalid value: '{sent.role[:40]}'. Supported values are: 'system', 'developer', "
            "'user', 'assistant', and 'tool'.",
        )
    if _MESSAGE_GIVES(sent) != _MESSAGE_NOTHING:
        _refuse_unsupported(sent, _MESSAGE_ASKS_NOTHING, f"{place}.")
    used = tool_fields(sent, place)
    if sent.content is None and "tool_calls" in used:
        return {"role": role, "content": "", **used}
    return {"role": role, "content": _content(sent, place), **used}


def _content(sent: ChatMessage, place: str) -> str:
    if isinstance(sent.content, str):
        return sent.content
    if sent.content is None:
        raise wrong_type(f"{place}.content", "a string or an array", "null")
    check_length(f"{place}.content", sent.content, shortest=1, longest=_MESSAGES_MAX)
    texts = []
    for index, part in enumerate(sent.content):
        if part.type != "text":
            raise unsupported(
                f"{place}.content[{index}].type",
                f"This service reads parts of type 'text', not '{part.type[:40]}'.",
            )
        if part.text is None:
            raise RequestRefused(
                f"Missing required parameter: '{place}.content[{index}].text'.",
                reason="missing_required_parameter",
                param=f"{place}.content[{index}].text",
            )
        texts.append(part.text)
    return "\n".join(texts)


def _prompts(
    prompt: str | list[Any], param: str = "prompt", longest: int = CHOICES_MAX
) -> tuple[Prompt, ...]:
    """A completion's prompts: a text, texts, token ids, or several lists of token ids."""
    if isinstance(prompt, str):
        return (prompt,)
    check_length(param, prompt, shortest=1, longest=_I64)
    kinds = {type(item) for item in prompt}
    if kinds == {int}:
        return (prompt,)
    if len(kinds) > 1:
        raise wrong_type(param, "a string, or an array of one kind", "a mixed array")
    check_length(param, prompt, longest=longest)
    return tuple(prompt)


def _stops(stop: str | list[str] | None) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    check_length("stop", stops, longest=STOP_STRINGS_MAX)
    for text in stops:
        if not 0 < len(text) <= _STOP_CHARACTERS_MAX:
            raise wrong_value(
                "stop",
                f"Invalid 'stop': each stop string must have 1 to {_STOP_CHARACTERS_MAX} "
                "characters.",
            )
    return stops


def _ask(
    request: CommonRequest,
    *,
    max_tokens: int | None,
    logprobs: int | None,
    messages: list[dict[str, Any]] | None = None,
    prompts: tuple[Prompt, ...] = (),
    tools: ToolUse | None = None,
    response_format: ResponseFormat | None = None,
) -> Ask:
    """The fields that every endpoint has, checked."""
    for name, value in zip(_RANGES, _ranged(request), strict=True):
        if value is not None:
            check_range(name, value, *_RANGES[name])
    n = request.n or 1
    if n * len(prompts) > CHOICES_MAX:
        raise wrong_value(
            "prompt", f"A request may have at most {CHOICES_MAX} choices: 'n' times its prompts."
        )
    bias = request.logit_bias or {}
    if len(bias) > LOGIT_BIAS_MAX:
        check_length("logit_bias", bias, longest=LOGIT_BIAS_MAX)
    for weight in bias.values():
        check_range("logit_bias", weight, -100, 100)
    temperature, top_p = request.temperature, request.top_p
    if top_p == 0:
        # A nucleus of probability 0 is the likeliest token alone, which is what greedy means.
        temperature, top_p = 0.0, 1.0
    return Ask(
        model=request.model,
        messages=messages,
        prompts=prompts,
        n=n,
        stream=bool(request.stream),
        include_usage=_include_usage(request),
        max_tokens=max_tokens,
        stops=_stops(request.stop),
        seed=request.seed,
        logprobs=logprobs,
        temperature=temperature,
        top_p=top_p,
        # -1 is how vLLM's clients say "all".
        top_k=None if request.top_k is None else max(0, request.top_k),
        min_p=request.min_p,
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        logit_bias=bias,
        shape=shape_of(request, response_format),
        tools=tools,
        priority=request.priority or 0,
        context_tokens=request.context_tokens or 0,
        regions=_regions(request.regions),
    )


def _include_usage(request: CommonRequest) -> bool:
    options = request.stream_options
    if options is None:
        return False
    if not request.stream:
        raise wrong_value(
            "stream_options",
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
        )
    if options.include_obfuscation:
        raise unsupported("stream_options.include_obfuscation")
    return bool(options.include_usage)
