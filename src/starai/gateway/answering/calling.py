"""Finds a model's calls of tools in its answer, however the text is cut into pieces.

What is no call, because it is no JSON or names a function that nobody offered, stays text.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any, Final

import msgspec

from starai.models.tools import CALL_BEGIN, CALL_END, ToolStyle

_DECODER: Final = json.JSONDecoder()


class Call(msgspec.Struct, frozen=True):
    """A call: ``arguments`` is a JSON object, written out."""

    name: str
    arguments: str


class Found(msgspec.Struct, frozen=True):
    """What a piece of an answer adds."""

    text: str = ""
    calls: tuple[Call, ...] = ()


class CallReader:
    """Reads one answer."""

    def __init__(self, style: ToolStyle, names: Collection[str]) -> None:
        """Know how calls are written, and which functions there are."""
        self._style = style
        self._names = names
        self._held = ""
        self._inside = False
        self._called = False

    def push(self, text: str) -> Found:
        """What can be told now; the beginning of a call waits for its end."""
        self._held += text
        return self._bare() if self._style == "llama3" else self._tagged()

    def flush(self) -> Found:
        """The rest, now that no more text comes."""
        held, self._held = self._held, ""
        if self._style == "llama3":
            calls = self._bare_calls(held)
            return Found(calls=calls) if calls else Found(held)
        if self._inside:
            call = self._call(held)
            return Found(calls=(call,)) if call else Found(CALL_BEGIN + held)
        return Found("" if self._called and not held.strip() else held)

    def _tagged(self) -> Found:
        text = ""
        calls: list[Call] = []
        while True:
            if self._inside:
                inner, tag, rest = self._held.partition(CALL_END)
                if not tag:
                    return Found(text, tuple(calls))
                call = self._call(inner)
                if call:
                    calls.append(call)
                else:
                    text += CALL_BEGIN + inner + CALL_END
                self._held, self._inside = rest, False
                self._called = self._called or call is not None
            before, tag, rest = self._held.partition(CALL_BEGIN)
            if not tag:
                shown = self._shown(self._held)
                text, self._held = text + self._held[:shown], self._held[shown:]
                return Found(text, tuple(calls))
            text += before.rstrip()
            self._held, self._inside = rest, True

    def _shown(self, text: str) -> int:
        """How much of ``text`` is neither blank before a tag nor the beginning of one."""
        end = len(text)
        for length in range(min(len(CALL_BEGIN) - 1, end), 0, -1):
            if text.endswith(CALL_BEGIN[:length]):
                end -= length
                break
        return len(text[:end].rstrip())

    def _call(self, text: str) -> Call | None:
        try:
            return self._as_call(json.loads(text))
        except (ValueError, RecursionError):
            return None

    def _as_call(self, value: Any) -> Call | None:
        if not isinstance(value, dict) or value.get("name") not in self._names:
            return None
        arguments = value.get("arguments", value.get("parameters", {}))
        if not isinstance(arguments, dict):
            return None
        return Call(value["name"], json.dumps(arguments, ensure_ascii=False))

    def _bare(self) -> Found:
        if not self._held.lstrip() or self._held.lstrip().startswith("{"):
            return Found()
        text, self._held = self._held, ""
        return Found(text)

    def _bare_calls(self, text: str) -> tuple[Call, ...]:
        """JSON objects alone, several parted by semicolons; none unless all of it are calls."""
        calls, rest = [], text.strip()
        while rest:
            try:
                value, end = _DECODER.raw_decode(rest)
            except (ValueError, RecursionError):
                return ()
            call = self._as_call(value)
            if call is None:
                return ()
            calls.append(call)
            rest = rest[end:].lstrip(" ;\n")
        return tuple(calls)
