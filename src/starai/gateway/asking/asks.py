"""What a request asks for, checked and in one form whatever endpoint it came through."""

from __future__ import annotations

from typing import Any

import msgspec

from starai.protocol.generation import Grammar

#: A prompt as text, or as token ids of the model's own vocabulary.
Prompt = str | list[int]


class ToolUse(msgspec.Struct, frozen=True, gc=False):
    """The functions that a model may call, as OpenAI describes them.

    ``told`` are described to the model; one of ``forced`` must be called, if there are any.
    ``parallel`` lets it call several in one answer.
    """

    told: tuple[dict[str, Any], ...]
    forced: tuple[dict[str, Any], ...] = ()
    parallel: bool = True


class Ask(msgspec.Struct, frozen=True, gc=False):
    """A valid request.

    Exactly one of ``messages`` (a conversation) and ``prompts`` is given; there are
    ``n * max(1, len(prompts))`` choices. ``max_tokens`` None leaves the length to the gateway.
    ``logprobs`` None asks for none, else for that many rivals of each token. What is None from
    ``temperature`` to ``min_p`` is as the model's makers advise. ``shape`` is what the text of the
    answer must look like. With ``embed`` the prompts are to be embedded, in ``base64`` if wished.
    """

    model: str
    messages: list[dict[str, Any]] | None = None
    prompts: tuple[Prompt, ...] = ()
    n: int = 1
    stream: bool = False
    include_usage: bool = False
    max_tokens: int | None = None
    stops: tuple[str, ...] = ()
    seed: int | None = None
    logprobs: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    shape: Grammar | None = None
    tools: ToolUse | None = None
    priority: int = 0
    context_tokens: int = 0
    regions: tuple[str, ...] = ()
    embed: bool = False
    base64: bool = False

    @property
    def num_choices(self) -> int:
        """How many answers are wanted."""
        return self.n * max(1, len(self.prompts))

    @property
    def prompt_field(self) -> str:
        """What the client calls its prompt."""
        if self.embed:
            return "input"
        return "prompt" if self.messages is None else "messages"
