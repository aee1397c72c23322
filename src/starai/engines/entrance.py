"""Where requests wait until an engine can take them at once, so that its steps go on meanwhile.

What takes long is compiling a grammar: up to a second for a hostile one. Knows nothing of pipes.
"""

from __future__ import annotations

from typing import Final

from starai.core.errors import InternalFault, InvalidRequest, Overloaded, StarAIError
from starai.engines.base import Emitted, Engine
from starai.protocol.generation import Generation

#: What a request may raise that nobody thought of. It fails; the others go on.
_FAULTS: Final = (
    ArithmeticError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


class Entrance:
    """Admits to an engine; at most as many wait as the engine has slots."""

    def __init__(self, engine: Engine) -> None:
        """Stand before ``engine``."""
        self._engine = engine
        self._waiting: dict[bytes, Generation] = {}

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def admit(self, key: bytes, generation: Generation) -> list[Emitted]:
        """Take a sequence, now or when it is ready; what is to be emitted is why it is refused."""
        if key in self._waiting:
            return [_failed(key, InvalidRequest.code)]
        if self._engine.prepare(generation):
            return self._enter(key, generation)
        if len(self._waiting) >= self._engine.info.slots:
            return [_failed(key, Overloaded.code)]
        self._waiting[key] = generation
        return []

    def let_in(self) -> list[Emitted]:
        """Admit those that have become ready; what is to be emitted is who is refused."""
        ready = [key for key, asked in self._waiting.items() if self._engine.prepare(asked)]
        return [news for key in ready for news in self._enter(key, self._waiting.pop(key))]

    def cancel(self, key: bytes) -> None:
        """Forget a sequence, wherever it is."""
        self._waiting.pop(key, None)
        self._engine.cancel(key)

    def _enter(self, key: bytes, generation: Generation) -> list[Emitted]:
        try:
            self._engine.admit(key, generation)
        except StarAIError as error:
            return [_failed(key, error.code)]
        except _FAULTS:
            return [_failed(key, InternalFault.code)]
        return []


def _failed(key: bytes, code: str) -> Emitted:
    return Emitted(key, (), (), error=code)
