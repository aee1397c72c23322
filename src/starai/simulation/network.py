"""The simulated network: gateways, distributors, nodes, and requests that pass through them.

It ties the parts to each other: who hears of whom and when. How a distributor decides is in
`starai.simulation.distributing`, when nodes come and go in `starai.simulation.churning`.
"""

from __future__ import annotations

from collections.abc import Iterator

from starai.core.limits import ATTEMPTS_MAX, BEAT_INTERVAL_S, BEAT_LEASE_S, REQUEST_DEADLINE_S
from starai.core.randomness import SeededRandomness
from starai.exchange.base import AttemptFailed, FailureKind
from starai.exchange.routes.routing import WAITING_MAX
from starai.exchange.standing.ladder import Ladder
from starai.protocol.identity import PartyId
from starai.protocol.presence import Beat, ServedModel
from starai.protocol.subjects import Role
from starai.protocol.tasks import RefusalCode
from starai.simulation.devices import Node
from starai.simulation.distributing import Distributor
from starai.simulation.events import Events
from starai.simulation.oracle import Oracle
from starai.simulation.policies import PREKEY, ROOT, UnsealedRoster, find_policy
from starai.simulation.scenario import Scenario
from starai.simulation.tally import Tally
from starai.simulation.tasks import Task
from starai.simulation.world import LAST_MILE_S, Arrival, World

#: A gateway is told anew how busy a distributor is when that has changed by this share of its
#: slots; what changes less would hardly change a choice.
TOLD_AT_CHANGE = 0.02
#: How long a node that leaves lets its answers end, and how often it looks.
FINISH_S, LOOK_S = 20.0, 0.5
#: Where tasks wait on nodes, gateways see no end of room.
WAITS_ON_NODES = 1 << 20
#: Everybody has heard of everybody before the first request comes.
WARM_UP_S = 2.0


class Gateway:
    """One region's gateway: to it its users are nearest, and it chooses among the distributors."""

    def __init__(self, network: Network, party: PartyId, city: int) -> None:
        """Stand in ``city``."""
        self._network = network
        self.city = city
        events = network.events
        self._ladder = Ladder()
        self.roster = UnsealedRoster(
            Role.DISTRIBUTOR, party, events, network.chance, self._ladder, self._rtt_ms
        )

    def submit(self, task: Task) -> None:
        """Hand a task to a distributor, or refuse it when there is none."""
        network = self._network
        target = self.roster.hold(ROOT, task.demand(), {}, task.distributors)
        if target is None:
            busy = any(one.there for one in network.distributors)
            network.refuse(task, RefusalCode.BUSY if busy else RefusalCode.NO_NODE)
            return
        task.via = target
        task.carrier = carrier = network.distributor_of(target.callee)
        task.hop_s = network.world.rtt_s[self.city][carrier.city] / 2
        network.events.after(task.hop_s, carrier.submit, task)

    def ended(self, task: Task, refusal: str = "") -> None:
        """A distributor is done with a task, or refuses to go on with it."""
        target, task.via = task.via, None
        if target is not None:
            failure = AttemptFailed(FailureKind.REFUSED, refusal) if refusal else None
            self._ladder.ended(target.callee, failure, self._network.events.now_s)
            self.roster.free(target)

    def _rtt_ms(self, party: PartyId) -> float:
        carrier = self._network.distributor_of(party)
        return 1000 * self._network.world.rtt_s[self.city][carrier.city]


class Network:
    """Everybody, and what happens."""

    def __init__(self, scenario: Scenario, world: World) -> None:
        """Everybody stands ready; no node is up yet."""
        self.scenario = scenario
        self.world = world
        self.events = Events()
        self.chance = SeededRandomness(scenario.seed)
        self.make_policy = find_policy(scenario.policy)
        self.tally = Tally(len(world.devices), len(world.cities))
        self.oracle = Oracle(len(world.arrivals))
        self.nodes = [Node(n, device, self.events) for n, device in enumerate(world.devices)]
        self.distributors = [
            Distributor(self, PartyId(f"d{region}"), city)
            for region, city in enumerate(world.centres)
        ]
        self.gateways = [
            Gateway(self, PartyId(f"g{region}"), city) for region, city in enumerate(world.centres)
        ]
        #: What gateways know of each distributor: its slots, and how many are taken.
        self._told = [(0, 0)] * len(self.distributors)
        self._boots = 0
        self._arrivals: Iterator[tuple[int, Arrival]] = enumerate(world.arrivals)
        #: Requests that have not ended, those to come included.
        self.num_open = len(world.arrivals)
        self.num_up = 0

    def start(self) -> None:
        """Let the beats begin, and the requests."""
        self._beat()
        self._count()
        self._next_arrival()

    # -- who is who -------------------------------------------------------------------------

    def node_of(self, party: PartyId) -> Node:
        """The node of that name."""
        return self.nodes[int(party[1:])]

    def distributor_of(self, party: PartyId) -> Distributor:
        """The distributor of that name."""
        return self.distributors[int(party[1:])]

    def rtt_s(self, city: int, node: Node) -> float:
        """There and back between a service and a node, in seconds."""
        device = node.device
        return self.world.rtt_s[city][device.city] + device.last_mile_s

    def carrier_of(self, node: Node) -> Distributor:
        """The distributor of a node's region."""
        return self.distributors[node.device.region]

    # -- nodes ------------------------------------------------------------------------------

    def join(self, node: Node) -> None:
        """A node comes, or comes back."""
        if node.up:
            return
        node.up, node.draining, node.hung = True, False, False
        node.life += 1
        self.num_up += 1
        self.tally.moved("joined", self.events.now_s)
        if not node.cut:
            self._say(node)

    def vanish(self, node: Node) -> None:
        """A node is gone without a word."""
        if node.up:
            self._lose(node)
            node.up = False
            self.num_up -= 1
            self.tally.moved("vanished", self.events.now_s)

    def leave(self, node: Node) -> None:
        """A node says that it leaves, lets its answers go over or end, and is gone."""
        if not node.up or node.draining:
            return
        if node.cut:
            self.vanish(node)
            return
        node.draining = True
        self.tally.moved("left", self.events.now_s)
        self._say(node)
        self.events.after(self._way_s(node), self._drains, node, node.life)
        self._see_off(node, node.life, self.events.now_s + FINISH_S)

    def cut(self, node: Node) -> None:
        """A node hears nobody any more, and nobody hears it."""
        if not node.cut:
            if node.up:
                self._lose(node)
            node.cut = True

    def mend(self, node: Node) -> None:
        """The line to a node is back."""
        if node.cut:
            node.cut = False
            if node.up:
                node.life += 1
                self._say(node)

    def hang(self, node: Node, seconds: float) -> None:
        """A node's engine does not get on for a while."""
        if not node.up or node.hung or node.cut:
            return
        node.hang()
        self.tally.moved("hung", self.events.now_s)
        for attempt in node.attempts():
            self.carrier_of(node).hangs(attempt)
        self.events.after(seconds, self._recover, node, node.life)

    def _recover(self, node: Node, life: int) -> None:
        if node.life == life and node.hung:
            node.recover()

    def _lose(self, node: Node) -> None:
        """All a node was doing is lost; its distributor notices by and by."""
        carrier = self.carrier_of(node)
        for attempt in node.attempts():
            attempt.got = node.accepted(attempt)
            carrier.lost(attempt)
        node.clear()
        node.hung = False
        late_s = BEAT_LEASE_S + self.chance.fraction() * BEAT_INTERVAL_S
        self.events.after(late_s, self._gone, node, node.life)

    def _gone(self, node: Node, life: int) -> None:
        if node.life == life:  # else its new self has taken the place of the old one
            self.carrier_of(node).gone(party_of(node))

    def _say(self, node: Node) -> None:
        """A node's beat reaches its distributor."""
        self.events.after(self._way_s(node), self._heard, node, node.life)

    def _heard(self, node: Node, life: int) -> None:
        if not node.up or node.cut or node.life != life:
            return
        carrier, party = self.carrier_of(node), party_of(node)
        known = carrier.there.get(party)
        if known is not None and not node.draining:
            carrier.gone(party)  # its old self
        carrier.heard(self.beat_of(node))

    def _drains(self, node: Node, life: int) -> None:
        if node.up and node.life == life and node.draining:
            self.carrier_of(node).drains(node)

    def _see_off(self, node: Node, life: int, until_s: float) -> None:
        """A node that leaves is gone when it has no tasks, or has waited long enough."""
        if not node.up or node.life != life:
            return
        if node.outstanding and self.events.now_s < until_s:
            self.events.after(LOOK_S, self._see_off, node, life, until_s)
            return
        self.carrier_of(node).dismissed(node)
        self._lose(node)
        node.up = False
        self.num_up -= 1

    def beat_of(self, node: Node) -> Beat:
        """What a node says of itself now."""
        self._boots += 1
        device = node.device
        served = ServedModel(
            *("m", ROOT, device.context, device.slots),
            *(device.prefill_tps * device.told, device.decode_tps * device.told),
        )
        return Beat(
            *(party_of(node), "node", self._boots, self._boots, 1, node.draining),
            *(node.running, len(node.waiting), 0, 0, PREKEY, (served,)),
            unread=sum(attempt.num_read for attempt in node.reading),
        )

    def _way_s(self, node: Node) -> float:
        return self.rtt_s(self.carrier_of(node).city, node) / 2

    # -- beats ------------------------------------------------------------------------------

    def _beat(self) -> None:
        """What the beats of half a second say that is new."""
        for number, carrier in enumerate(self.distributors):
            carrier.hear_beats()
            slots, taken = carrier.slots, carrier.running + carrier.num_waiting
            before = self._told[number]
            if abs(slots - before[0]) + abs(taken - before[1]) > TOLD_AT_CHANGE * slots:
                self._told[number] = slots, taken
                for gateway in self.gateways:
                    gateway.roster.heard(self.beat_of_distributor(carrier))
        if self.num_open:
            self.events.after(BEAT_INTERVAL_S, self._beat)

    def beat_of_distributor(self, carrier: Distributor) -> Beat:
        """What a distributor says: what its nodes can do together, and no speeds."""
        self._boots += 1
        models: tuple[ServedModel, ...] = ()
        if carrier.there:
            context = max(beat.models[0].context_length for beat in carrier.there.values())
            room = WAITS_ON_NODES if carrier.policy.queues else WAITING_MAX
            models = (ServedModel("m", ROOT, context, carrier.slots + room),)
        return Beat(
            *(carrier.party, "distributor", 1, self._boots, 1, False),
            *(carrier.running, carrier.num_waiting, 0, 0, PREKEY, models),
        )

    def _count(self) -> None:
        self.tally.up.append((self.events.now_s, self.num_up))
        if self.num_open:
            self.events.after(30.0, self._count)

    # -- requests ---------------------------------------------------------------------------

    def _next_arrival(self) -> None:
        following = next(self._arrivals, None)
        if following is not None:
            self.events.at(WARM_UP_S + following[1].at_s, self._arrive, *following)

    def _arrive(self, number: int, arrival: Arrival) -> None:
        self._next_arrival()
        task = Task(number, arrival, self.events.now_s)
        gateway = self.gateways[self.world.regions[arrival.city]]
        low, high = LAST_MILE_S
        mile_s = low + (high - low) * self.chance.fraction()
        task.user_s = (self.world.rtt_s[arrival.city][gateway.city] + mile_s) / 2
        self.oracle.came(number)
        self.tally.happened("asked", self.events.now_s)
        self.events.after(task.user_s, gateway.submit, task)
        self.events.after(REQUEST_DEADLINE_S, self._deadline, task)

    def _deadline(self, task: Task) -> None:
        if not task.is_over and task.carrier is not None:
            task.carrier.too_late(task)

    def answered(self, task: Task) -> None:
        """A distributor has an answer's last token."""
        self._gateway(task).ended(task)
        now_s, way_s = self.events.now_s, task.hop_s + task.user_s
        self.oracle.answered(task.number, task.answer)
        self.tally.answered(
            task.city, task.first_s - task.at_s, now_s + way_s - task.at_s, task.offers
        )
        self.tally.happened("answered", now_s)
        self.num_open -= 1

    def refused(self, task: Task, code: str) -> None:
        """A distributor gives up; the gateway may know another."""
        gateway = self._gateway(task)
        via = task.via
        gateway.ended(task, code)
        others = len(task.distributors) + 1 < min(ATTEMPTS_MAX, len(self.distributors))
        if code == RefusalCode.NO_NODE and others and via is not None:
            task.distributors.append(via.callee)
            gateway.submit(task)
        else:
            self.refuse(task, code)

    def refuse(self, task: Task, code: str) -> None:
        """Tell the client why not."""
        task.is_over = True
        self.oracle.refused(task.number)
        self.tally.refusals[code] += 1
        self.tally.happened("refused", self.events.now_s)
        self.num_open -= 1

    def _gateway(self, task: Task) -> Gateway:
        return self.gateways[self.world.regions[task.city]]


def party_of(node: Node) -> PartyId:
    """A node's name."""
    return PartyId(f"n{node.number}")
