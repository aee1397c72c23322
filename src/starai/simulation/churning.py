"""When nodes come, leave, hang and are cut off: by distributions, or as recorded spot instances.

A heavy-tailed session length (many short ones, few very long) is what measurements of volunteer
networks found again and again (D. Stutzbach and R. Rejaie, "Understanding churn in peer-to-peer
networks", IMC 2006: Weibull or log-normal fits, with shapes below 1). Which mean and shape, the
scenario says.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from starai.simulation.devices import Node
from starai.simulation.network import Network
from starai.simulation.sources import Sources

#: How long an engine hangs.
HANG_S: Final = 30.0
DAY_S: Final = 86_400.0
HOUR_S: Final = 3600.0
#: Nodes of one spot group: they share a market, and so their fate.
GROUP: Final = 20


class Churn:
    """What will happen to the nodes of a network."""

    def __init__(self, network: Network) -> None:
        """Begin at the network's first moment."""
        self._network = network
        self._churn = network.scenario.churn
        self._events = network.events
        self._chance = network.chance.fraction

    def start(self, sources: Sources) -> None:
        """Bring up who is there at the beginning; what follows, follows.

        Raises:
            ConfigurationRefused: the recorded churn is absent, or there is no such kind.
        """
        network, churn = self._network, self._churn
        match churn.kind:
            case "weibull":
                self._start_sessions()
            case "spot":
                self._start_spot(sources.spot())
            case _:
                for node in network.nodes:
                    network.join(node)
        if churn.hangs_a_day:
            self._next_hang()
        cut = network.scenario.cut
        if cut.share and cut.seconds:
            for node in self._far(cut.share):
                self._events.at(cut.at_s, network.cut, node)
                self._events.at(cut.at_s + cut.seconds, network.mend, node)

    # -- sessions ---------------------------------------------------------------------------

    def _start_sessions(self) -> None:
        """In the middle of things: long sessions are over-represented among those under way."""
        network, churn = self._network, self._churn
        drawn = np.random.default_rng([network.scenario.seed, 4])
        number = len(network.nodes)
        is_up = drawn.uniform(size=number) < churn.session_h / (churn.session_h + churn.absence_h)
        # A session seen at a random moment has a length of density x f(x); a share of it is left.
        lengths = drawn.gamma(1 + 1 / churn.shape, size=number) ** (1 / churn.shape)
        left = lengths * drawn.uniform(size=number)
        for node in network.nodes:
            mean_h = churn.session_h if is_up[node.number] else churn.absence_h
            left_s = float(left[node.number]) * _scale(mean_h * HOUR_S, churn.shape)
            if is_up[node.number]:
                network.join(node)
                self._events.at(left_s, self._end_session, node)
            else:
                self._events.at(left_s, self._begin_session, node)

    def _begin_session(self, node: Node) -> None:
        self._network.join(node)
        self._events.after(self._length_s(self._churn.session_h), self._end_session, node)

    def _end_session(self, node: Node) -> None:
        if self._chance() < self._churn.graceful:
            self._network.leave(node)
        else:
            self._network.vanish(node)
        self._events.after(self._length_s(self._churn.absence_h), self._begin_session, node)

    def _length_s(self, mean_h: float) -> float:
        return length_s(mean_h * HOUR_S, self._churn.shape, self._chance())

    # -- spot instances ---------------------------------------------------------------------

    def _start_spot(self, records: list[list[tuple[float, float]]]) -> None:
        nodes = self._network.nodes
        for number, first in enumerate(range(0, len(nodes), GROUP)):
            group, record = nodes[first : first + GROUP], records[number % len(records)]
            # Begin where at least some are there, and leave room for what follows.
            begins_s = record[-1][0] * self._chance()
            share = next(share for at_s, share in reversed(record) if at_s <= begins_s)
            self._resize(group, share)
            for at_s, share in record:
                if at_s > begins_s:
                    self._events.at(at_s - begins_s, self._resize, group, share)

    def _resize(self, group: list[Node], share: float) -> None:
        """So many of a group are there; who goes is drawn, who comes is whoever is away."""
        network = self._network
        there = [node for node in group if node.up and not node.draining]
        away = [node for node in group if not node.up]
        change = round(share * len(group)) - len(there)
        for _ in range(min(change, len(away))):
            network.join(away.pop(int(self._chance() * len(away))))
        for _ in range(min(-change, len(there))):
            node = there.pop(int(self._chance() * len(there)))
            graceful = self._chance() < self._churn.graceful
            (network.leave if graceful else network.vanish)(node)

    # -- hangs and cuts ---------------------------------------------------------------------

    def _next_hang(self) -> None:
        per_s = self._churn.hangs_a_day * len(self._network.nodes) / DAY_S
        self._events.after(-math.log(1.0 - self._chance()) / per_s, self._hang)

    def _hang(self) -> None:
        nodes = self._network.nodes
        self._network.hang(nodes[int(self._chance() * len(nodes))], HANG_S)
        self._next_hang()

    def _far(self, share: float) -> list[Node]:
        """The nodes of the cities that are farthest from the first distributor."""
        world = self._network.world
        far = np.argsort(np.array(world.rtt_s[world.centres[0]]), kind="stable")
        cities = {int(city) for city in far[len(far) - round(share * len(far)) :]}
        return [node for node in self._network.nodes if node.device.city in cities]


def length_s(mean_s: float, shape: float, chance: float) -> float:
    """A Weibull length of that mean by inversion; ``chance`` is in [0, 1)."""
    return _scale(mean_s, shape) * math.pow(-math.log(1.0 - chance), 1 / shape)


def _scale(mean_s: float, shape: float) -> float:
    """The Weibull's scale for a mean."""
    return mean_s / math.gamma(1 + 1 / shape)
