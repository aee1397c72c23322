"""A task on its way through the event-driven simulation, and one attempt at it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starai.exchange.caller.attempt import Target
from starai.matching import Demand
from starai.protocol.identity import PartyId
from starai.simulation.world import MAX_TOKENS, Arrival

if TYPE_CHECKING:
    from starai.simulation.devices import Hears, Node
    from starai.simulation.distributing import Distributor


class Task:
    """One request, from its arrival at a gateway to its end."""

    __slots__ = (
        "accepted", "answer", "asked_s", "at_s", "attempts", "began_s", "blocks", "broken_s",
        "carrier", "city", "distributors", "failed", "failures", "first_s", "heir", "hop_s",
        "is_over", "max_tokens", "number", "offers", "prompt", "tenant", "user_s", "via",
    )  # fmt: skip

    def __init__(self, number: int, arrival: Arrival, now_s: float) -> None:
        """It is asked now."""
        self.number = number
        self.at_s = now_s
        self.city = arrival.city
        self.prompt = arrival.prompt
        self.answer = arrival.answer
        self.max_tokens = max(MAX_TOKENS, arrival.answer)
        self.tenant = arrival.tenant
        self.blocks = arrival.blocks
        #: Tokens accepted so far; the order of attempts is their number.
        self.accepted = 0
        self.offers = 0
        self.failures = 0
        self.failed: list[PartyId] = []
        self.attempts: list[Attempt] = []
        #: Who was chosen to take over before the present attempt was given up.
        self.heir: Target | None = None
        #: From user to gateway, and from gateway to distributor, one way.
        self.user_s = 0.0
        self.hop_s = 0.0
        #: When the distributor began to look for somebody, when it first offered; -1: not now.
        self.asked_s = 0.0
        self.began_s = -1.0
        #: When the first token reached the user; when somebody was given up, until one goes on.
        self.first_s = -1.0
        self.broken_s = -1.0
        #: Who carries it, the gateway's place there, and the distributors that gave up.
        self.carrier: Distributor | None = None
        self.via: Target | None = None
        self.distributors: list[PartyId] = []
        self.is_over = False

    @property
    def num_read(self) -> int:
        """Tokens that the next callee has to read."""
        return self.prompt + self.accepted

    def demand(self) -> Demand:
        """What matching is told of it."""
        return Demand(self.num_read, max(0, self.max_tokens - self.accepted))


class Attempt:
    """One offer of a task to one node. ``left`` are tokens still to be written."""

    __slots__ = (
        "base", "got", "hears", "is_open", "left", "life", "node", "num_read", "number",
        "offered_s", "reads_until_s", "rtt_s", "target", "task", "total",
    )  # fmt: skip

    def __init__(self, task: Task, hears: Hears, node: Node, target: Target, rtt_s: float) -> None:
        """Just offered."""
        self.task = task
        self.hears = hears
        self.node = node
        self.target = target
        self.rtt_s = rtt_s
        self.number = task.offers
        self.base = task.accepted
        self.num_read = task.num_read
        self.total = task.answer - task.accepted
        self.left = float(self.total)
        #: Tokens that have come, once its node has nothing more to do with it.
        self.got = 0
        #: Which of the node's sessions has it.
        self.life = node.life
        self.offered_s = 0.0
        self.reads_until_s = 0.0
        self.is_open = True
