"""A distributor of the event-driven simulation: carries tasks to nodes, and on after failures.

Who gets a task, who waits and who is trusted is decided by the real kernels (the roster with its
pools, the fair queue, the prefix index, the ladder, the hedges). The rules of
`starai.exchange.caller.carrying` and `routing` around them are followed event by event, with their
constants; what they do in hundreds of messages is one event here.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Final

from starai.core.limits import ATTEMPT_NUMBERS, ATTEMPTS_MAX
from starai.exchange.base import SIGN_OF_LIFE_S, SILENCE_S, AttemptFailed, FailureKind
from starai.exchange.caller.attempt import LOOK_AGAIN_S, Target
from starai.exchange.caller.hedging import Hedging
from starai.exchange.caller.pacing import FIRST_S, STALL_FACTOR, TOKEN_S
from starai.exchange.routes.routing import (
    LAST_RESORT_S,
    LOOK_AHEAD,
    SAME_AGAIN_S,
    WAIT_FOR_NODE_S,
    WAIT_FOR_SLOT_S,
    WAITING_MAX,
)
from starai.exchange.standing.ladder import Ladder
from starai.matching import FairQueue, PrefixIndex, Ticket
from starai.matching.finish_time import SLOW_START_S
from starai.matching.prefixes import BLOCK_TOKENS, BLOCKS_MAX, ENTRIES_MAX
from starai.matching.queueing import cost
from starai.protocol.identity import PartyId
from starai.protocol.presence import Beat
from starai.protocol.tasks import RefusalCode
from starai.simulation.policies import ROOT
from starai.simulation.sources import TRACE_BLOCK
from starai.simulation.tasks import Attempt, Task

if TYPE_CHECKING:
    from starai.simulation.devices import Node
    from starai.simulation.network import Network

#: Traces cut prompts into larger blocks than the index does: so many of its blocks are one.
_BLOCKS: Final = TRACE_BLOCK // BLOCK_TOKENS
_NO_FAILURE: Final = (FailureKind.HANDED_OVER, FailureKind.OUTRUN, FailureKind.LEFT)
#: A party whose faults weigh less than this looks to matching as if it had none.
FADED: Final = 0.02


class Distributor:
    """One region's distributor."""

    def __init__(self, network: Network, party: PartyId, city: int) -> None:
        """Stand in ``city`` with nobody known."""
        self._network = network
        self._events = network.events
        self.party = party
        self.city = city
        self.ladder = Ladder(network.tally.stepped)
        self.policy = network.make_policy(
            party, network.events, network.chance, self.ladder, self._rtt_ms
        )
        self._queue: FairQueue[Task] = FairQueue(WAITING_MAX)
        self._prefixes = None if self.policy.queues else PrefixIndex(ENTRIES_MAX // _BLOCKS)
        self.hedging = Hedging()
        #: Nodes that look different with time alone, and until when at least.
        self._unsettled: dict[PartyId, float] = {}
        #: Nodes with tasks of this distributor, and how many.
        self._busy: dict[PartyId, int] = {}
        self._is_looking = False
        #: Who is there, the longest known first; their slots, and own tasks.
        self.there: dict[PartyId, Beat] = {}
        self.slots = 0
        self.running = 0

    def _rtt_ms(self, party: PartyId) -> float:
        return 1000 * self._network.rtt_s(self.city, self._network.node_of(party))

    @property
    def num_waiting(self) -> int:
        """Tasks that wait for a node."""
        return len(self._queue)

    # -- nodes come and go ------------------------------------------------------------------

    def heard(self, beat: Beat) -> None:
        """A node's beat that says something new."""
        if beat.party not in self.there:
            self.slots += beat.models[0].slots
            self._unsettled[beat.party] = self._events.now_s + SLOW_START_S
        self.there[beat.party] = beat
        self.policy.heard(beat)
        self._grant()

    def gone(self, party: PartyId) -> None:
        """A node's beats have stopped for too long."""
        beat = self.there.pop(party, None)
        if beat is not None:
            self.slots -= beat.models[0].slots
        self._unsettled.pop(party, None)
        self.policy.gone(party)
        if self._prefixes is not None:
            self._prefixes.forget(party)
        self.ladder.forget_faded(self._events.now_s)

    def hear_beats(self) -> None:
        """Beats of nodes that work, are new, or whose faults fade; others' say nothing new."""
        network, now_s = self._network, self._events.now_s
        for party in self._busy:
            node = network.node_of(party)
            if party in self.there and node.up and not node.cut:
                self.policy.heard(network.beat_of(node))
        for party, until_s in [*self._unsettled.items()]:
            if now_s >= until_s and self.ladder.failures(party, now_s) < FADED:
                del self._unsettled[party]
            self.policy.changed(party)
        self._grant()

    def lost(self, attempt: Attempt) -> None:
        """A node that had this is gone without a word: that is noticed by its silence."""
        sign_s = self._network.chance.fraction() * SIGN_OF_LIFE_S
        self._events.after(attempt.rtt_s / 2 + SILENCE_S - sign_s, self._silent, attempt)

    def drains(self, node: Node) -> None:
        """A node has said that it leaves: others take over, as far as there are any."""
        for attempt in node.attempts():
            self._relieve(attempt, FailureKind.HANDED_OVER)

    def dismissed(self, node: Node) -> None:
        """A node that leaves has waited long enough: it refuses the rest."""
        for attempt in node.attempts():
            self._refused(attempt, RefusalCode.DRAINING)

    def hangs(self, attempt: Attempt) -> None:
        """A node's engine has stopped: noticed when a token is overdue."""
        node = attempt.node
        if attempt in node.writing:
            patience_s = max(TOKEN_S, STALL_FACTOR * node.step_s())
        else:
            patience_s = max(FIRST_S, STALL_FACTOR * attempt.num_read / node.device.prefill_tps)
        self._events.after(patience_s, self._relieve, attempt, FailureKind.STALLED)

    # -- a task -----------------------------------------------------------------------------

    def submit(self, task: Task) -> None:
        """A task comes from a gateway."""
        if not task.is_over:
            task.failures = 0
            task.failed.clear()
            self._seek(task)

    def too_late(self, task: Task) -> None:
        """The task's deadline has passed."""
        self._leave_queue(task)
        for attempt in [*task.attempts]:
            self._end(attempt, AttemptFailed(FailureKind.REFUSED, RefusalCode.DEADLINE))
        self._refuse(task, RefusalCode.DEADLINE)

    def _seek(self, task: Task) -> None:
        """Find somebody, or wait."""
        task.asked_s = now_s = self._events.now_s
        target, task.heir = task.heir, None
        if target is None and (task.failed or not self._queue.waiting(ROOT)):
            target = self._hold(task, task.failed, even_resting=bool(task.failed))
            if target is not None:
                self._charge(task)
        if target is not None:
            self._offer(task, target)
            return
        context = self.policy.best_context(now_s)
        if context and task.prompt >= context:
            self._refuse(task, RefusalCode.CONTEXT_TOO_LONG)
            return
        demand = task.demand()
        weight = cost(demand.prompt_tokens, demand.answer_tokens)
        ticket, evicted = self._queue.join(
            task, ROOT, task.tenant, weight, now_s, urgent=bool(task.failed)
        )
        if evicted is not None:
            self._refuse(evicted.item, RefusalCode.BUSY)
        if ticket is None:
            self._refuse(task, RefusalCode.BUSY)
        elif not self._is_looking:
            self._is_looking = True
            self._events.after(SAME_AGAIN_S, self._look)

    def _hold(
        self, task: Task, excluded: list[PartyId], *, even_resting: bool = False
    ) -> Target | None:
        prefixes, cached = self._prefixes, {}
        blocks = task.blocks[: BLOCKS_MAX // _BLOCKS]
        if prefixes is not None and blocks:
            cached = {one: hit * _BLOCKS for one, hit in prefixes.find(blocks).items()}
        target = self.policy.hold(task.demand(), cached, excluded, even_resting=even_resting)
        if target is not None and prefixes is not None and blocks:
            prefixes.add(blocks, target.callee)
        return target

    def _charge(self, task: Task) -> None:
        if not task.failed:
            demand = task.demand()
            self._queue.charge(task.tenant, cost(demand.prompt_tokens, demand.answer_tokens))

    def _look(self) -> None:
        """Those who wait look again; who has waited too long is told so."""
        now_s = self._events.now_s
        for ticket in [*self._queue.order(ROOT, now_s)]:
            waited_s = now_s - ticket.item.asked_s
            if waited_s >= WAIT_FOR_NODE_S and not self.policy.best_context(now_s):
                self._queue.leave(ticket)
                self._refuse(ticket.item, RefusalCode.NO_NODE)
            elif waited_s >= WAIT_FOR_SLOT_S:
                self._queue.leave(ticket)
                self._refuse(ticket.item, RefusalCode.BUSY)
        self._grant()
        self._is_looking = bool(len(self._queue))
        if self._is_looking:
            self._events.after(SAME_AGAIN_S, self._look)

    def _grant(self) -> None:
        """Give places to those who wait, as long as there are any for the first."""
        while len(self._queue):
            if not self._grant_one():
                return

    def _grant_one(self) -> bool:
        now_s = self._events.now_s
        for ticket in islice(self._queue.order(ROOT, now_s), LOOK_AHEAD):
            task = ticket.item
            waited_s = now_s - task.asked_s
            excluded = task.failed if waited_s < SAME_AGAIN_S else []
            even_resting = bool(task.failed) or waited_s >= LAST_RESORT_S
            target = self._hold(task, excluded, even_resting=even_resting)
            if target is not None:
                self._queue.leave(ticket)
                self._charge(task)
                self._offer(task, target)
                return True
        return False

    def _leave_queue(self, task: Task) -> None:
        found: Ticket[Task] | None = next(
            (one for one in self._queue.order(ROOT, self._events.now_s) if one.item is task), None
        )
        if found is not None:
            self._queue.leave(found)

    # -- an attempt -------------------------------------------------------------------------

    def _offer(self, task: Task, target: Target) -> None:
        network, now_s = self._network, self._events.now_s
        node = network.node_of(target.callee)
        attempt = Attempt(task, self, node, target, network.rtt_s(self.city, node))
        attempt.offered_s = now_s
        task.attempts.append(attempt)
        task.offers += 1
        self.running += 1
        self._busy[target.callee] = self._busy.get(target.callee, 0) + 1
        network.tally.num_attempts += 1
        network.oracle.offered(task.number, attempt.number, node.number)
        if task.offers == 1:
            task.began_s = now_s
            delay_s = self.hedging.begin(ROOT, task.prompt)
            if delay_s is not None:
                self._events.after(delay_s, self._hedge, task)
        self._events.after(attempt.rtt_s / 2, self._arrives, attempt)

    def _arrives(self, attempt: Attempt) -> None:
        node = attempt.node
        if not attempt.is_open:
            return
        if not node.up or node.cut:
            self._events.at(attempt.offered_s + SILENCE_S, self._silent, attempt)
            return
        attempt.life = node.life
        if node.draining:
            self._events.after(attempt.rtt_s / 2, self._refused, attempt, RefusalCode.DRAINING)
        elif not node.take(attempt, queues=self.policy.queues):
            self._events.after(attempt.rtt_s / 2, self._refused, attempt, RefusalCode.BUSY)
        elif node.hung:
            self.hangs(attempt)

    def has_read(self, attempt: Attempt) -> None:
        """The first token of an attempt leaves its node."""
        task, tally = attempt.task, self._network.tally
        comes_s = self._events.now_s + attempt.rtt_s / 2
        task.failures = 0
        if task.broken_s >= 0:
            tally.gaps_s.append(comes_s - task.broken_s)
            task.broken_s = -1.0
        if task.first_s < 0:
            task.first_s = comes_s + task.hop_s + task.user_s
            if task.began_s >= 0:
                by_hedge = len(task.attempts) > 1 and attempt is task.attempts[-1]
                took_s = comes_s - task.began_s
                self.hedging.first_token(ROOT, task.prompt, took_s, by_hedge=by_hedge)
        for other in [*task.attempts]:
            if other is not attempt:
                self._end(other, AttemptFailed(FailureKind.OUTRUN))

    def has_written(self, attempt: Attempt) -> None:
        """The last token leaves the node."""
        attempt.got = attempt.total
        self._events.after(attempt.rtt_s / 2, self._finished, attempt)

    def _finished(self, attempt: Attempt) -> None:
        if attempt.is_open:
            self._end(attempt, None)
            attempt.task.is_over = True
            self._network.answered(attempt.task)

    def _silent(self, attempt: Attempt) -> None:
        if attempt.is_open:
            self._give_up(attempt, AttemptFailed(FailureKind.SILENT))

    def _refused(self, attempt: Attempt, code: str) -> None:
        if attempt.is_open:
            self._give_up(attempt, AttemptFailed(FailureKind.REFUSED, code))

    def _relieve(self, attempt: Attempt, kind: FailureKind) -> None:
        """Let somebody else take over, if there is somebody: else this one may yet go on."""
        task, node = attempt.task, attempt.node
        is_there = node.up and node.life == attempt.life and not node.cut
        if not attempt.is_open or attempt.got or not is_there:
            return
        if kind is FailureKind.STALLED and (not node.hung or task.failures >= ATTEMPTS_MAX - 1):
            return
        if len(task.attempts) == 1:
            task.heir = self._hold(task, [*task.failed, attempt.target.callee])
            if task.heir is None:
                self._events.after(LOOK_AGAIN_S, self._relieve, attempt, kind)
                return
        self._give_up(attempt, AttemptFailed(kind))

    def _hedge(self, task: Task) -> None:
        """Ask a second node for a first token that is late, if there is a place to spare."""
        if task.first_s >= 0 or task.is_over or len(task.attempts) != 1 or task.offers > 1:
            return
        if not self.hedging.may_hedge() or self._queue.waiting(ROOT):
            return
        target = self._hold(task, [*task.failed, task.attempts[0].target.callee])
        if target is not None:
            self.hedging.hedged()
            self._offer(task, target)

    def _give_up(self, attempt: Attempt, failure: AttemptFailed) -> None:
        task = attempt.task
        task.failed.append(attempt.target.callee)
        if task.broken_s < 0:
            task.broken_s = self._events.now_s
        self._end(attempt, failure)
        if task.attempts:
            return
        if failure.kind not in _NO_FAILURE and failure.refusal != RefusalCode.DRAINING:
            task.failures += 1
        if task.failures >= ATTEMPTS_MAX or task.offers >= ATTEMPT_NUMBERS:
            busy = failure.refusal == RefusalCode.BUSY
            self._refuse(task, RefusalCode.BUSY if busy else RefusalCode.NO_NODE)
        else:
            self._seek(task)

    def _end(self, attempt: Attempt, failure: AttemptFailed | None) -> None:
        """End an attempt: book what was accepted, close it, give its place back."""
        task, node, now_s = attempt.task, attempt.node, self._events.now_s
        attempt.is_open = False
        task.attempts.remove(attempt)
        self._give_back(attempt.target)
        is_its = node.up and node.life == attempt.life
        if is_its and not attempt.got:
            attempt.got = node.accepted(attempt)
            node.drop(attempt)
        if attempt.got:
            self._book(attempt, is_heard=is_its and not node.cut)
        self._network.oracle.ended(task.number, attempt.number)
        self._network.tally.ended(failure, now_s)
        self.ladder.ended(attempt.target.callee, failure, now_s)
        if failure is not None and attempt.target.callee in self.there:
            self._unsettled.setdefault(attempt.target.callee, 0.0)
        self.policy.free(attempt.target)
        if failure is not None and failure.refusal == RefusalCode.BUSY:
            self.policy.full(attempt.target.callee)
        self._grant()

    def _give_back(self, target: Target) -> None:
        self.running -= 1
        self._busy[target.callee] -= 1
        if not self._busy[target.callee]:
            del self._busy[target.callee]

    def _book(self, attempt: Attempt, *, is_heard: bool) -> None:
        task, node, oracle = attempt.task, attempt.node.number, self._network.oracle
        first, last = attempt.base, attempt.base + attempt.got
        oracle.booked(task.number, attempt.number, node, first, last)
        task.accepted = last
        self._network.tally.served(node, attempt.got)
        if is_heard:
            oracle.confirmed(task.number, attempt.number, node, first, last)
        else:
            oracle.unconfirmed(task.number, attempt.number)

    def _refuse(self, task: Task, code: str) -> None:
        if task.heir is not None:
            self.policy.free(task.heir)
            task.heir = None
        self._network.refused(task, code)
