"""Tools in conversations: how a model is told of them and writes its calls.

Two styles are known: Hermes' (also Qwen's), JSON between ``<tool_call>`` tags, and Llama 3's, one
JSON object. A model whose chat template knows no tools is told in Hermes' style in its system
message. Knows nothing about HTTP nor about tokens.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final, Literal

#: ``None`` where a template has a style of its own, which nobody here can read.
ToolStyle = Literal["hermes", "llama3"]
#: A conversation's message: role, content, and for tools name, tool_call_id and tool_calls.
Message = dict[str, Any]

CALL_BEGIN: Final = "<tool_call>"
CALL_END: Final = "</tool_call>"
_INSTRUCTION: Final = (
    "You may call functions to help the user. The functions, as JSON schemas, one a line:\n"
    "<tools>\n{tools}\n</tools>\nTo call a function, write its name and arguments as JSON between "
    'tags:\n<tool_call>\n{{"name": "NAME", "arguments": {{...}}}}\n</tool_call>'
)


def style_of(template: str) -> ToolStyle | None:
    """How a model writes calls whose chat template knows tools; None: in a way of its own."""
    if CALL_BEGIN in template and "<function=" not in template:
        return "hermes"
    if '"parameters"' in template and "ipython" in template:
        return "llama3"
    return None


def uses_tools(messages: Sequence[Message], tools: Sequence[Any]) -> bool:
    """Whether a conversation has tools, calls or their results."""
    return bool(tools) or any("tool_calls" in m or m["role"] == "tool" for m in messages)


def written_out(messages: Sequence[Message], tools: Sequence[Any]) -> list[Message]:
    """The conversation in system, user and assistant texts alone, for templates without tools."""
    told = [_plain(message) for message in messages]
    if not tools:
        return told
    text = _INSTRUCTION.format(tools="\n".join(json.dumps(t, ensure_ascii=False) for t in tools))
    if told and told[0]["role"] in ("system", "developer"):
        told[0] = {**told[0], "content": f"{told[0]['content']}\n\n{text}"}
        return told
    return [{"role": "system", "content": text}, *told]


def _plain(message: Message) -> Message:
    if message["role"] == "tool":
        content = f"<tool_response>\n{message['content']}\n</tool_response>"
        return {"role": "user", "content": content}
    if not message.get("tool_calls"):
        return {"role": message["role"], "content": message.get("content") or ""}
    calls = [
        f"{CALL_BEGIN}\n{json.dumps(call['function'], ensure_ascii=False)}\n{CALL_END}"
        for call in message["tool_calls"]
    ]
    content = "\n".join([*filter(None, [message.get("content", "")]), *calls])
    return {"role": message["role"], "content": content}
