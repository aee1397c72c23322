"""Fairness between tenants: who was served how many tokens.

The virtual token counter of Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024):
whoever was served least goes next, and who comes back after a pause is lifted to the others, so
that nobody saves up service. Between two tenants that always wait, the difference in service is
bounded by twice the weighted tokens of one prompt or of a full memory, whichever is more. It does
not know priorities, nor what waits.
"""

from __future__ import annotations

from typing import Final

#: A token that is computed as part of a prompt, and one that is generated: the paper's weights.
INPUT_WEIGHT: Final = 1
OUTPUT_WEIGHT: Final = 2
#: Tenants without a job whose service is remembered: enough for all who come back soon.
IDLE_TENANTS_MAX: Final = 4096


class TokenCounters:
    """The weighted tokens that each tenant was served."""

    def __init__(self) -> None:
        """Start with nobody."""
        self._served: dict[bytes, int] = {}
        self._jobs: dict[bytes, int] = {}
        # A dict keeps its order: who has been without a job longest is first.
        self._idle: dict[bytes, None] = {}
        self._last = 0

    def __len__(self) -> int:
        return len(self._served)

    def enter(self, tenant: bytes) -> None:
        """The tenant has one more job."""
        self._jobs[tenant] = self._jobs.get(tenant, 0) + 1
        self._served.setdefault(tenant, 0)
        self._idle.pop(tenant, None)

    def leave(self, tenant: bytes) -> None:
        """The tenant has one job less; the longest idle tenant is forgotten when they are many."""
        self._jobs[tenant] -= 1
        if self._jobs[tenant]:
            return
        del self._jobs[tenant]
        self._idle[tenant] = None
        if len(self._idle) > IDLE_TENANTS_MAX:
            oldest = next(iter(self._idle))
            del self._idle[oldest], self._served[oldest]

    def charge(self, tenant: bytes, input_tokens: int = 0, output_tokens: int = 0) -> None:
        """The tenant was served."""
        self._served[tenant] += INPUT_WEIGHT * input_tokens + OUTPUT_WEIGHT * output_tokens

    def served(self, tenant: bytes) -> int:
        """The weighted tokens of a tenant that has a job."""
        return self._served[tenant]

    def chosen(self, tenant: bytes) -> None:
        """The tenant goes next: who comes to an empty line is lifted to where it stands."""
        self._last = self._served[tenant]

    def lift(self, tenant: bytes, least: int | None) -> None:
        """The tenant joins a line whose least served has ``least``; None for an empty line."""
        floor = self._last if least is None else least
        self._served[tenant] = max(self._served[tenant], floor)
