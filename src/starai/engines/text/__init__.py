"""The native text engine: transformers' model definitions on our own attention and KV memory.

``from starai.engines.text import Engine`` is the engine alone, without a network; see `alone`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

# Threads that wait for each other spin a while, by default for milliseconds: on a machine that
# other programs use, too, that made a token four times slower (16 against 4 a second, measured
# with two threads). torch's OpenMP reads this when torch is imported first; who sets it, wins.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

if TYPE_CHECKING:
    from starai.engines.text.alone import Engine

__all__ = ["Engine"]


def __getattr__(name: str) -> Any:
    # Late, because torch takes seconds to import and most who import this package want a part.
    if name != "Engine":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from starai.engines.text.alone import Engine  # noqa: PLC0415 - see above
    except ModuleNotFoundError as error:
        raise ImportError(f"the engine needs {error.name}: install starai[engine]") from error
    return Engine
