"""What a supplier on its way tells whoever watches: each stage once, then its life."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

#: How often a node's life is told.
LIVE_S: Final = 0.5


class Stage(enum.Enum):
    """Where a supplier is on its way."""

    CONNECTING = "connecting"
    ADMITTED = "admitted"
    MEASURING = "measuring"
    LOADING = "loading"
    SERVING = "serving"


@dataclass(frozen=True)
class Life:
    """How a node that serves is doing; ``tokens`` counts since its start."""

    model: str
    running: int
    tokens: int
    connected: bool


@dataclass(frozen=True)
class Telling:
    """Who hears how it goes: of each stage once, and of the node's life while it serves."""

    stage: Callable[[Stage, str], None] = lambda _stage, _detail: None
    life: Callable[[Life], None] = lambda _life: None
