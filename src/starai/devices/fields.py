"""Reads what tools print without trusting it: rubbish is nothing, never an exception."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

#: No device has more of anything; larger numbers are rubbish.
NUMBER_MAX: Final = 1 << 62
#: Names are shown to people and travel: no longer than this.
_NAME_MAX: Final = 128
_NUMBER: Final = re.compile(r"[0-9]{1,19}(?:\.[0-9]{1,9})?")


def number(value: object) -> float:
    """The first number in a value; 0 when there is none."""
    if isinstance(value, bool):
        return 0.0
    if isinstance(value, int | float):
        return float(value) if math.isfinite(value) and 0 <= value <= NUMBER_MAX else 0.0
    found = _NUMBER.search(value[:_NAME_MAX]) if isinstance(value, str) else None
    return min(float(found[0]), float(NUMBER_MAX)) if found else 0.0


def whole(value: object, unit: int = 1) -> int:
    """The first number in a value, times a unit, as a whole number."""
    return min(int(number(value) * unit), NUMBER_MAX)


def name(value: object) -> str:
    """A value as a name: one line, printable, not long."""
    text = " ".join(str(value).split()) if isinstance(value, str | int) else ""
    return "".join(char for char in text if char.isprintable())[:_NAME_MAX]


def pairs(text: str, separator: str = ":") -> Iterator[tuple[str, str]]:
    """``key: value`` of each line that has the separator."""
    for line in text.splitlines():
        key, found, value = line.partition(separator)
        if found:
            yield key.strip(), value.strip()


def document(text: str) -> Any:
    """What a JSON text holds; None when it is none. Text before its first bracket is skipped."""
    begin = min((text.find(one) for one in "[{" if one in text), default=-1)
    if begin < 0:
        return None
    try:
        return json.loads(text[begin:])
    except (ValueError, RecursionError):
        return None


def rows(value: object) -> list[Mapping[str, Any]]:
    """The objects of a list, or the one object that stands for a list of one."""
    found = value if isinstance(value, list) else [value]
    return [one for one in found if isinstance(one, dict)]


def field(value: object, *path: str) -> Any:
    """What lies under some keys, one in the other; None when it is not there."""
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value
