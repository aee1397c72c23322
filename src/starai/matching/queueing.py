"""Who waits for a free node, and who goes next: fair between tenants, and nobody for ever.

The virtual token counter of Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024):
the tenant that was served the fewest tokens goes next, and who comes back after a pause is lifted
to the others, so that nobody saves up service. To it comes aging (a ticket's wait counts like
tokens not served) and a bound: when the queue is full, the newest ticket of the tenant with most
of them makes room for a tenant with fewer (longest-queue drop, Suter et al., INFOCOM 1998).

It does not know nodes: what a ticket waits for is its line's name.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Hashable, Iterator
from typing import Final, Generic, TypeVar

#: A token of a prompt, and one that is generated: the paper's weights.
INPUT_WEIGHT: Final = 1
OUTPUT_WEIGHT: Final = 2
#: Tokens that a second of waiting counts for: half a minute lifts by one usual request, so that
#: waiting long helps, and flooding the queue hardly.
AGING_TOKENS_A_SECOND: Final = 50.0
#: Tenants whose service is remembered although nothing of theirs waits.
TENANTS_MAX: Final = 4096

T = TypeVar("T")


def cost(prompt_tokens: int, answer_tokens: int) -> int:
    """What a task weighs in its tenant's account."""
    return INPUT_WEIGHT * prompt_tokens + OUTPUT_WEIGHT * answer_tokens


class Ticket(Generic[T]):
    """A place in the queue; ``item`` is whatever its owner keeps there."""

    __slots__ = ("cost", "entered_s", "item", "line", "tenant", "urgent")

    def __init__(
        self, item: T, line: Hashable, tenant: int, cost: int, entered_s: float, *, urgent: bool
    ) -> None:
        """Made by `FairQueue.join`."""
        self.item = item
        self.line = line
        self.tenant = tenant
        self.cost = cost
        self.entered_s = entered_s
        self.urgent = urgent


class _Line(Generic[T]):
    """The tickets for one thing. Each deque is in order of arrival."""

    def __init__(self) -> None:
        self.urgent: deque[Ticket[T]] = deque()
        self.tenants: dict[int, deque[Ticket[T]]] = {}

    def place_of(self, ticket: Ticket[T]) -> deque[Ticket[T]] | None:
        return self.urgent if ticket.urgent else self.tenants.get(ticket.tenant)


class FairQueue(Generic[T]):
    """All tickets that wait, in lines; tenants are treated fairly over all lines together."""

    def __init__(self, size_max: int) -> None:
        """Hold up to ``size_max`` tickets."""
        self._size_max = size_max
        self._size = 0
        self._lines: dict[Hashable, _Line[T]] = {}
        #: Tokens served, by tenant; who was longest without a ticket is first.
        self._served: OrderedDict[int, float] = OrderedDict()
        #: How many tickets each tenant has.
        self._waiting: dict[int, int] = {}
        self._last = 0.0

    def __len__(self) -> int:
        return self._size

    @property
    def num_tenants(self) -> int:
        """Tenants whose service is remembered."""
        return len(self._served)

    def waiting(self, line: Hashable) -> int:
        """How many wait in a line."""
        found = self._lines.get(line)
        return len(found.urgent) + sum(map(len, found.tenants.values())) if found else 0

    def served(self, tenant: int) -> float:
        """The tokens that count as served to a tenant."""
        return self._served.get(tenant, 0.0)

    def join(
        self, item: T, line: Hashable, tenant: int, cost: int, now_s: float, *, urgent: bool = False
    ) -> tuple[Ticket[T] | None, Ticket[T] | None]:
        """Wait in ``line``: the new ticket, and one that had to make room.

        There is no ticket when the queue is full and nobody has more of it than this tenant.
        ``urgent`` ones go before all others, in order of arrival.
        """
        evicted = None
        if self._size >= self._size_max:
            evicted = self._newest_of_the_largest(tenant)
            if evicted is None:
                return None, None
            self.leave(evicted)
        self._lift(tenant)
        ticket = Ticket(item, line, tenant, cost, now_s, urgent=urgent)
        place = self._lines.setdefault(line, _Line())
        if urgent:
            place.urgent.append(ticket)
        else:
            place.tenants.setdefault(tenant, deque()).append(ticket)
        self._size += 1
        self._waiting[tenant] = self._waiting.get(tenant, 0) + 1
        return ticket, evicted

    def leave(self, ticket: Ticket[T]) -> bool:
        """The ticket waits no longer; False when it did not any more."""
        line = self._lines.get(ticket.line)
        place = line.place_of(ticket) if line else None
        if line is None or place is None or ticket not in place:
            return False
        place.remove(ticket)
        if not ticket.urgent and not place:
            del line.tenants[ticket.tenant]
        if not line.urgent and not line.tenants:
            del self._lines[ticket.line]
        self._size -= 1
        self._waiting[ticket.tenant] -= 1
        if not self._waiting[ticket.tenant]:
            del self._waiting[ticket.tenant]
        return True

    def charge(self, tenant: int, cost: int) -> None:
        """The tenant has been given service that weighs ``cost``."""
        self._lift(tenant)
        self._last = self._served[tenant]
        self._served[tenant] += cost

    def lines(self) -> list[Hashable]:
        """The lines in which somebody waits."""
        return [*self._lines]

    def order(self, line: Hashable, now_s: float) -> Iterator[Ticket[T]]:
        """Who goes next in a line, and after that; do not change the queue meanwhile."""
        found = self._lines.get(line)
        if found is None:
            return
        yield from found.urgent
        heap = [
            (self._served[tenant] - _age_tokens(tickets[0], now_s), tickets[0].entered_s, tenant, 0)
            for tenant, tickets in found.tenants.items()
        ]
        heapq.heapify(heap)
        while heap:
            rank, _, tenant, number = heap[0]
            tickets = found.tenants[tenant]
            ticket = tickets[number]
            yield ticket
            if number + 1 < len(tickets):
                following = tickets[number + 1]
                rank += ticket.cost + _age_tokens(ticket, now_s) - _age_tokens(following, now_s)
                heapq.heapreplace(heap, (rank, following.entered_s, tenant, number + 1))
            else:
                heapq.heappop(heap)

    def _lift(self, tenant: int) -> None:
        """Who joins counts as served at least as much as the least served who waits."""
        served = self._served
        if not self._waiting.get(tenant):
            floor = min((served[one] for one in self._waiting), default=self._last)
            served[tenant] = max(served.get(tenant, 0.0), floor)
        served.move_to_end(tenant)
        while len(served) > TENANTS_MAX + len(self._waiting):
            # Those who wait are never the oldest for long: they are moved behind the others.
            oldest = next(iter(served))
            if self._waiting.get(oldest):
                served.move_to_end(oldest)
            else:
                del served[oldest]

    def _newest_of_the_largest(self, tenant: int) -> Ticket[T] | None:
        largest = max(self._waiting, key=self._waiting.__getitem__)
        if self._waiting[largest] <= self._waiting.get(tenant, 0) + 1:
            return None
        tickets = [
            line.tenants[largest][-1] for line in self._lines.values() if largest in line.tenants
        ]
        return max(tickets, key=lambda one: one.entered_s) if tickets else None


def _age_tokens(ticket: Ticket[T], now_s: float) -> float:
    return AGING_TOKENS_A_SECOND * (now_s - ticket.entered_s)
