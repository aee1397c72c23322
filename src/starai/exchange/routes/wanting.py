"""Which models were asked for lately although nobody serves them: what a gateway tells by beats."""

from __future__ import annotations

from typing import Final

from starai.core.clock import Clock
from starai.protocol.presence import ServedModel

#: How long a request for a model counts: clients that were told to come back do so within this.
WANTED_FOR_S: Final = 5.0
#: Models that are remembered; a gateway knows a few, and refuses the names of others.
WANTED_MAX: Final = 64


class Wanted:
    """Counts requests that nobody could serve."""

    def __init__(self, clock: Clock) -> None:
        """Remember nothing yet."""
        self._clock = clock
        self._asked_s: dict[tuple[str, bytes], list[float]] = {}

    def missed(self, name: str, model_root: bytes) -> None:
        """A model was asked for in vain."""
        key = (name, model_root)
        if key in self._asked_s or len(self._asked_s) < WANTED_MAX:
            times = self._asked_s.setdefault(key, [])
            if len(times) < WANTED_MAX:
                times.append(self._clock.monotonic_s())

    def models(self) -> tuple[ServedModel, ...]:
        """The models in question; ``slots`` counts the requests."""
        oldest_s = self._clock.monotonic_s() - WANTED_FOR_S
        for key, times in [*self._asked_s.items()]:
            self._asked_s[key] = [at_s for at_s in times if at_s > oldest_s]
            if not self._asked_s[key]:
                del self._asked_s[key]
        return tuple(
            ServedModel(name, root, context_length=0, slots=len(times))
            for (name, root), times in self._asked_s.items()
        )
