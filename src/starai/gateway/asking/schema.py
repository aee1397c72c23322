"""The bodies of OpenAI's requests, as strict structs: shapes and types, no ranges.

Every field that OpenAI's clients know is here, so that one which is not supported can be told
from one which does not exist. Fields of type ``Any`` are judged in `parsing`.
"""

from __future__ import annotations

from typing import Any

import msgspec


class StreamOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a stream shall carry besides the text."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class ContentPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A piece of a message's content; only ``text`` is supported."""

    type: str
    text: str | None = None
    image_url: Any = None
    input_audio: Any = None
    file: Any = None
    refusal: Any = None


class CalledFunction(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was called; ``arguments`` is a JSON object, written out."""

    name: str
    arguments: str


class ToolCall(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A call that a model made, as clients feed it back."""

    id: str
    function: CalledFunction
    type: str = "function"
    index: int | None = None


class FunctionSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A function that a model may call; ``parameters`` is a JSON schema."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tool; only functions are supported."""

    type: str
    function: FunctionSpec | None = None
    custom: Any = None


class FunctionName(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A function by its name."""

    name: str


class NamedTool(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The tool that must be called."""

    type: str
    function: FunctionName | None = None
    custom: Any = None
    allowed_tools: Any = None


class JsonSchema(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the answer's JSON must look like. It is always held to, ``strict`` or not."""

    name: str
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the answer must look like: ``text``, ``json_object`` or ``json_schema``."""

    type: str
    json_schema: JsonSchema | None = None


class ChatMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One message of a conversation, as clients send it or feed it back from an answer."""

    role: str
    content: str | list[ContentPart] | None = None
    name: Any = None
    refusal: Any = None
    annotations: Any = None
    audio: Any = None
    function_call: Any = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None


class CommonRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What chat and plain completions have in common."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    user: str | None = None
    # Not OpenAI's; named as vLLM names them.
    guided_json: str | dict[str, Any] | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    priority: int | None = None
    # Ours: how many of the prompt's first tokens are documents, for Star Attention.
    context_tokens: int | None = None
    # Ours: only nodes there may compute the answer.
    regions: list[str] | None = None


class ChatRequest(CommonRequest, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The body of ``POST /v1/chat/completions``."""

    messages: list[ChatMessage]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    tool_choice: str | NamedTool | None = None
    tools: list[Tool] | None = None
    # Labels that change nothing in the answer.
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    # Known to OpenAI, not supported here but for the values that ask for nothing.
    audio: Any = None
    function_call: Any = None
    functions: Any = None
    modalities: Any = None
    moderation: Any = None
    prediction: Any = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None
    reasoning_effort: Any = None
    service_tier: Any = None
    store: Any = None
    verbosity: Any = None
    web_search_options: Any = None


class CompletionRequest(CommonRequest, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The body of ``POST /v1/completions``."""

    prompt: str | list[str | int | list[int]]
    logprobs: int | None = None
    # Known to OpenAI, not supported here but for the values that ask for nothing.
    best_of: Any = None
    echo: Any = None
    suffix: Any = None


class EmbeddingRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The body of ``POST /v1/embeddings``."""

    model: str
    input: str | list[str | int | list[int]]
    encoding_format: str | None = None
    user: str | None = None
    priority: int | None = None
    regions: list[str] | None = None
    # Known to OpenAI, not supported here: a model's vectors have the width that they have.
    dimensions: Any = None
