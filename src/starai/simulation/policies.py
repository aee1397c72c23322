"""Policies side by side: the network's own, and three that others use, for comparison.

The own one is `starai.exchange.routes.roster.Roster` with `starai.matching` in it, as every
distributor has them. The others know which nodes are there and whether a prompt fits, as common
routers do; tasks beyond a node's slots wait on the node. All get the same fail-over: it is the
choice alone that is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final, Protocol

import numpy as np

from starai.core.clock import Clock
from starai.core.errors import ConfigurationRefused
from starai.core.randomness import Randomness
from starai.exchange.caller.attempt import Target
from starai.exchange.routes.roster import Roster
from starai.exchange.standing.ladder import Ladder
from starai.matching import Demand
from starai.protocol.identity import PartyId
from starai.protocol.presence import Beat
from starai.protocol.subjects import Role
from starai.protocol.tasks import Prekey

#: The one model of a simulated network.
ROOT: Final = b"m" * 32
#: A prekey that nobody opens: in the event-driven simulation nothing is sealed.
PREKEY: Final = Prekey(PartyId(""), b"\0" * 16, b"\0" * 32, 0, 1 << 60, b"")
#: How often the simple policies draw again when a node does not do.
TRIES: Final = 64


class Policy(Protocol):
    """Chooses nodes for one distributor. ``queues``: tasks may wait on nodes."""

    queues: bool

    def heard(self, beat: Beat) -> None:
        """A node's beat came."""

    def gone(self, party: PartyId) -> None:
        """A node is there no longer."""

    def changed(self, party: PartyId) -> None:
        """Time has changed something about a node."""

    def hold(
        self,
        demand: Demand,
        cached: dict[str, float],
        excluded: Collection[PartyId],
        *,
        even_resting: bool = False,
    ) -> Target | None:
        """Hold a place; None: nobody is free."""

    def free(self, target: Target) -> None:
        """Give a place back."""

    def full(self, party: PartyId) -> None:
        """A node has said that it is full."""

    def best_context(self, now_s: float) -> int:
        """The longest context of all; 0: nobody is there."""


class UnsealedRoster(Roster):
    """The real roster, except that it believes a prekey unseen: signatures take real time."""

    def _sound_prekey(self, known: object, now_s: float) -> Prekey | None:
        return PREKEY


class Ours:
    """The network's own policy."""

    queues = False

    def __init__(
        self,
        me: PartyId,
        clock: Clock,
        randomness: Randomness,
        ladder: Ladder,
        rtt_ms: Callable[[PartyId], float | None],
    ) -> None:
        """Choose as ``me``."""
        self.roster = UnsealedRoster(Role.NODE, me, clock, randomness, ladder, rtt_ms)
        self.heard = self.roster.heard
        self.gone = self.roster.gone
        self.changed = self.roster.changed
        self.free = self.roster.free
        self.full = self.roster.full

    def hold(
        self,
        demand: Demand,
        cached: dict[str, float],
        excluded: Collection[PartyId],
        *,
        even_resting: bool = False,
    ) -> Target | None:
        """See `starai.exchange.routes.roster.Roster.hold`."""
        return self.roster.hold(ROOT, demand, cached, excluded, even_resting=even_resting)

    def best_context(self, now_s: float) -> int:
        """See `starai.matching.pool.Pool.best`."""
        pool = self.roster.pool(ROOT)
        return pool.best(now_s).context_length if pool is not None else 0


class _Simple:
    """What the simple policies share: who is there."""

    queues = True

    def __init__(
        self,
        me: PartyId,
        clock: Clock,
        randomness: Randomness,
        ladder: Ladder,
        rtt_ms: Callable[[PartyId], float | None],
    ) -> None:
        self._chance = randomness.fraction
        self._there: list[PartyId] = []
        self._places: dict[PartyId, int] = {}
        self._contexts: list[int] = []
        self._next = 0
        self._longest = 0

    def heard(self, beat: Beat) -> None:
        if beat.draining:
            self.gone(beat.party)
        elif beat.party not in self._places:
            self._places[beat.party] = len(self._there)
            self._there.append(beat.party)
            self._contexts.append(beat.models[0].context_length)
            self._longest = max(self._longest, self._contexts[-1])

    def gone(self, party: PartyId) -> None:
        place = self._places.pop(party, None)
        if place is None:
            return
        last, context = self._there.pop(), self._contexts.pop()
        if last != party:
            self._there[place], self._contexts[place] = last, context
            self._places[last] = place

    def changed(self, party: PartyId) -> None:
        """Nothing: they do not look at that."""

    def free(self, target: Target) -> None:
        """Nothing: they do not count."""

    def full(self, party: PartyId) -> None:
        """Nothing: on their nodes tasks wait."""

    def best_context(self, now_s: float) -> int:
        return self._longest if self._there else 0

    def hold(
        self,
        demand: Demand,
        cached: dict[str, float],
        excluded: Collection[PartyId],
        *,
        even_resting: bool = False,
    ) -> Target | None:
        for _ in range(TRIES if self._there else 0):
            place = self._draw()
            fits = demand.prompt_tokens < self._contexts[place]
            if fits and self._there[place] not in excluded:
                return self._target(place)
        return None

    def _draw(self) -> int:
        return int(self._chance() * len(self._there))

    def _target(self, place: int) -> Target:
        self._next += 1
        return Target(self._there[place], Role.NODE, PREKEY, self._next)


class RoundRobin(_Simple):
    """One after the other."""

    _turn = -1

    def _draw(self) -> int:
        if self._turn < 0:
            self._turn = super()._draw()
        self._turn = (self._turn + 1) % len(self._there)
        return self._turn


class LeastOutstanding(_Simple):
    """Who has the fewest tasks of this distributor; ties by chance."""

    def __init__(
        self,
        me: PartyId,
        clock: Clock,
        randomness: Randomness,
        ladder: Ladder,
        rtt_ms: Callable[[PartyId], float | None],
    ) -> None:
        super().__init__(me, clock, randomness, ladder, rtt_ms)
        self._load = np.zeros(0)
        self._held: dict[int, PartyId] = {}

    def heard(self, beat: Beat) -> None:
        """See `Policy.heard`."""
        known = len(self._there)
        super().heard(beat)
        if len(self._there) > known:
            if known >= len(self._load):
                self._load = np.concatenate([self._load, np.zeros(max(64, known))])
            self._load[known] = 0

    def gone(self, party: PartyId) -> None:
        """See `Policy.gone`."""
        place, last = self._places.get(party), len(self._there) - 1
        super().gone(party)
        if place is not None:
            self._load[place] = self._load[last]

    def hold(
        self,
        demand: Demand,
        cached: dict[str, float],
        excluded: Collection[PartyId],
        *,
        even_resting: bool = False,
    ) -> Target | None:
        """See `Policy.hold`."""
        number = len(self._there)
        if not number:
            return None
        load = self._load[:number].copy()
        load[np.array(self._contexts) <= demand.prompt_tokens] = np.inf
        for party in excluded:
            if party in self._places:
                load[self._places[party]] = np.inf
        least = load.min()
        if not np.isfinite(least):
            return None
        ties = np.flatnonzero(load == least)
        place = int(ties[int(self._chance() * len(ties))])
        target = self._target(place)
        self._load[place] += 1
        self._held[target.place] = target.callee
        return target

    def free(self, target: Target) -> None:
        """See `Policy.free`."""
        party = self._held.pop(target.place, None)
        if party is not None and party in self._places:
            place = self._places[party]
            self._load[place] = max(0, self._load[place] - 1)


Make = Callable[
    [PartyId, Clock, Randomness, Ladder, Callable[[PartyId], float | None]],
    Policy,
]
POLICIES: Final[Mapping[str, Make]] = {
    "ours": Ours,
    "random": _Simple,
    "round-robin": RoundRobin,
    "least-outstanding": LeastOutstanding,
}


def find_policy(name: str) -> Make:
    """The policy of that name.

    Raises:
        ConfigurationRefused: there is none.
    """
    try:
        return POLICIES[name]
    except KeyError:
        raise ConfigurationRefused(
            f"there is no policy {name!r}: it is one of {_names(POLICIES)}"
        ) from None


def _names(names: Iterable[str]) -> str:
    return ", ".join(names)
