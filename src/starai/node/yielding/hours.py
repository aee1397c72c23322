"""The hours of a day in which a node may work: ``22:00-07:00``, several joined by commas."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from starai.core.errors import ConfigurationRefused

_SPAN: Final = re.compile(r"(\d{1,2}):(\d\d)-(\d{1,2}):(\d\d)")
_DAY: Final = 24 * 60


@dataclass(frozen=True)
class Hours:
    """Spans of minutes since local midnight; a span whose end comes first runs over midnight."""

    spans: tuple[tuple[int, int], ...]

    @classmethod
    def parse(cls, text: str) -> Hours:
        """Read ``22:00-07:00`` or ``12:00-13:00,22:00-07:00``.

        Raises:
            ConfigurationRefused: it is not written like that.
        """
        spans = []
        for part in text.split(","):
            match = _SPAN.fullmatch(part.strip())
            numbers = [int(number) for number in match.groups()] if match else []
            if not numbers or numbers[1] > 59 or numbers[3] > 59:
                raise ConfigurationRefused(
                    f"{part.strip()[:40]!r} are no hours: write them like 22:00-07:00"
                )
            begin, end = numbers[0] * 60 + numbers[1], numbers[2] * 60 + numbers[3]
            if begin >= _DAY or end > _DAY or begin == end:
                raise ConfigurationRefused(f"{part.strip()[:40]!r} are no hours of a day")
            spans.append((begin, end))
        return cls(tuple(spans))

    def contain(self, minute: int) -> bool:
        """Whether a minute since midnight lies within."""
        return any(
            begin <= minute < end if begin < end else minute >= begin or minute < end
            for begin, end in self.spans
        )
