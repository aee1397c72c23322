"""What is wrong with a field, in OpenAI's words and codes."""

from __future__ import annotations

import re
from collections.abc import Sized
from typing import Final

import msgspec

from starai.core.errors import InvalidRequest, UnsupportedField
from starai.gateway.errors import RequestRefused

_PLACE: Final = re.compile(r" - at (?:`key` in )?`\$\.?(.*)`$", re.DOTALL)
_UNKNOWN: Final = re.compile(r"^Object contains unknown field `(.*)`$", re.DOTALL)
_MISSING: Final = re.compile(r"^Object missing required field `(.*)`$", re.DOTALL)
_EXPECTED: Final = re.compile(r"^Expected `(.*)`, got `(.*)`$", re.DOTALL)
_WORDS: Final = {
    "int": "an integer",
    "float": "a decimal",
    "str": "a string",
    "bool": "a boolean",
    "array": "an array",
    "object": "an object",
    "null": "null",
}


def not_json(error: Exception) -> RequestRefused:
    """The body is no JSON; ``error`` says where."""
    position = str(error) if isinstance(error, msgspec.DecodeError) else type(error).__name__
    if isinstance(error, UnicodeDecodeError):
        position = "it is not valid UTF-8"
    elif isinstance(error, RecursionError):
        position = "it is nested too deeply"
    return RequestRefused(
        f"We could not parse the JSON body of your request: {position}. The API expects a JSON "
        "payload, but what was sent was not valid JSON.",
        reason=None,
    )


def not_the_schema(error: msgspec.ValidationError) -> InvalidRequest:
    """The body is JSON of another shape; msgspec's message says where."""
    text = str(error)
    place = ""
    if found := _PLACE.search(text):
        place, text = found.group(1), text[: found.start()]
    if found := _UNKNOWN.match(text):
        param = _join(place, found.group(1))
        return RequestRefused(
            f"Unknown parameter: '{param}'.", reason="unknown_parameter", param=param
        )
    if found := _MISSING.match(text):
        param = _join(place, found.group(1))
        return RequestRefused(
            f"Missing required parameter: '{param}'.",
            reason="missing_required_parameter",
            param=param,
        )
    if found := _EXPECTED.match(text):
        return wrong_type(place, _words(found.group(1)), _words(found.group(2)))
    return RequestRefused(
        f"Invalid value for '{place}': {text}." if place else f"Invalid request body: {text}.",
        reason="invalid_value",
        param=place or None,
    )


def _join(place: str, name: str) -> str:
    # An unknown name is the caller's text: keep a message at a readable length.
    return f"{place}.{name[:100]}" if place else name[:100]


def _words(types: str) -> str:
    names = [name for name in types.split(" | ") if name != "null"] or ["null"]
    return " or ".join(_WORDS.get(name, name) for name in names)


def wrong_type(param: str, expected: str, got: str) -> RequestRefused:
    """A value of another type."""
    where = f"Invalid type for '{param}'" if param else "Invalid request body"
    return RequestRefused(
        f"{where}: expected {expected}, but got {got} instead.",
        reason="invalid_type",
        param=param or None,
    )


def wrong_value(param: str, message: str) -> RequestRefused:
    """A value that means nothing here; ``message`` says what would."""
    return RequestRefused(message, reason="invalid_value", param=param)


def unsupported(param: str, hint: str = "") -> UnsupportedField:
    """A field that OpenAI knows and this service does not offer."""
    tail = f" {hint}" if hint else ""
    return UnsupportedField(
        f"Unsupported parameter: '{param}' is not supported by this service.{tail}", param=param
    )


def check_range(param: str, value: float | None, low: float, high: float) -> None:
    """Refuse a number outside ``low`` to ``high``.

    Raises:
        RequestRefused: it is.
    """
    if value is None or low <= value <= high:
        return
    kind = "integer" if isinstance(value, int) else "decimal"
    if value < low:
        side, sign, bound = "below_min_value", ">=", low
        name = "below minimum value"
    else:
        side, sign, bound = "above_max_value", "<=", high
        name = "above maximum value"
    raise RequestRefused(
        f"Invalid '{param}': {kind} {name}. Expected a value {sign} {bound:g}, "
        f"but got {value:g} instead."
        if abs(value) < 1e15
        else f"Invalid '{param}': {kind} {name}. Expected a value {sign} {bound:g}.",
        reason=f"{kind}_{side}",
        param=param,
    )


def check_length(param: str, value: Sized, *, longest: int, shortest: int = 0) -> None:
    """Refuse an array of too few or too many elements.

    Raises:
        RequestRefused: it is.
    """
    if len(value) < shortest:
        raise RequestRefused(
            f"Invalid '{param}': empty array. Expected an array with minimum length {shortest}, "
            "but got an empty array instead.",
            reason="empty_array",
            param=param,
        )
    if len(value) > longest:
        raise RequestRefused(
            f"Invalid '{param}': array too long. Expected an array with maximum length {longest}, "
            f"but got an array with length {len(value)} instead.",
            reason="array_above_max_length",
            param=param,
        )
