"""The ladder on which a party goes down by its faults and comes up again: a pure state machine.

::

    good -> suspect -> lowered -> quarantined -> (probe) -> lowered -> good
                                       |
                                       +-> blacklisted -> (appeal, reset or a day) -> quarantined

Faults of *availability* (silence, a stall, a crash, damaged bytes) cost priority and no more: they
fade within a minute, at worst the party is quarantined, which means that it is asked last, and
by one task at a time once a growing while is over (the half-open breaker of M. Nygard, "Release
It!", 2007). Faults of *integrity* (what no accident makes) quarantine at once, fade in hours, and
the third leads to where nothing is given any more. Each step keeps its reason. Time is an argument,
in monotonic seconds; nothing here does I/O, and nothing is remembered beyond the process.
"""

from __future__ import annotations

import enum
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from starai.exchange.base import AttemptFailed, FailureKind
from starai.protocol.identity import PartyId
from starai.protocol.standing import NOTES_MAX, FaultCount, Note, Standing
from starai.protocol.tasks import RefusalCode


class Rung(enum.Enum):
    """Where a party stands."""

    GOOD = "good"
    SUSPECT = "suspect"
    LOWERED = "lowered"
    QUARANTINED = "quarantined"
    BLACKLISTED = "blacklisted"


class Fault(enum.Enum):
    """What a party did, or failed to do."""

    SILENT = "silent"
    STALLED = "stalled"
    GONE = "gone"
    FAILED = "failed"
    DAMAGED = "damaged"
    TOO_FAST = "too fast to follow"
    WRONG_SEAL = "wrong seal"
    IMPERSONATION = "impersonation"
    FLOOD = "flood"
    ANSWERED_TWICE = "answered twice"
    WRONG_ANSWER = "wrong answer"

    @property
    def is_of_integrity(self) -> bool:
        """Whether no accident explains it."""
        return self in _INTEGRITY


_INTEGRITY: Final = frozenset(
    (
        *(Fault.WRONG_SEAL, Fault.IMPERSONATION, Fault.FLOOD, Fault.ANSWERED_TWICE),
        Fault.WRONG_ANSWER,
    )
)
_FAULT_OF: Final = {
    FailureKind.SILENT: Fault.SILENT,
    FailureKind.STALLED: Fault.STALLED,
    FailureKind.LATE: Fault.STALLED,
    FailureKind.GONE: Fault.GONE,
    FailureKind.DAMAGED: Fault.DAMAGED,
    FailureKind.OVERFLOW: Fault.TOO_FAST,
    FailureKind.MALFORMED: Fault.WRONG_SEAL,
    FailureKind.FLOOD: Fault.FLOOD,
    FailureKind.TWICE: Fault.ANSWERED_TWICE,
}
#: Refusals that speak against nobody.
_POLITE: Final = (
    RefusalCode.BUSY,
    RefusalCode.DRAINING,
    RefusalCode.UNKNOWN_SESSION,
    RefusalCode.UNKNOWN_MODEL,
    RefusalCode.CONTEXT_TOO_LONG,
    RefusalCode.INVALID_REQUEST,
    RefusalCode.UNSUPPORTED,
    RefusalCode.DEADLINE,
    RefusalCode.UNDERPAID,
)

#: A fault of availability counts half after this many seconds.
HALF_LIFE_S: Final = 15.0
#: Faults, as they weigh now, from which on a party is lowered, and quarantined.
LOWERED_AT: Final = 1.5
QUARANTINED_AT: Final = 3.5
#: Faults of one sort within this time are one incident: a crash ends all of a node's tasks.
INCIDENT_S: Final = 1.0
#: A party whose faults weigh less than this is good again: two half-lives after a single one.
GOOD_BELOW: Final = 0.25
#: And faults that weigh less than this make no difference to anybody.
FADED_BELOW: Final = 0.01
#: The first quarantine; each that follows before the party was good again doubles it.
QUARANTINE_S: Final = 15.0
QUARANTINE_LONGEST_S: Final = 600.0
#: A fault of integrity counts half after an hour, and the third within that blacklists.
GUILT_HALF_LIFE_S: Final = 3600.0
BLACKLISTED_AT: Final = 2.5
#: A party that faulted in its integrity rests at least this long.
GUILTY_QUARANTINE_S: Final = 60.0
#: A blacklisted party is tried again after this, or after an appeal, of which it has one a day.
BLACKLIST_S: Final = 86_400.0
APPEAL_EVERY_S: Final = 86_400.0
#: Parties with a past that are remembered; those that are good again go first.
PARTIES_MAX: Final = 4096


def fault_of(failure: AttemptFailed) -> Fault | None:
    """What a failed attempt says against its callee; None: nothing."""
    if failure.kind is FailureKind.REFUSED:
        return None if failure.refusal in _POLITE else Fault.FAILED
    return _FAULT_OF.get(failure.kind)


@dataclass
class _Past:
    """What is known of one party. ``score`` and ``guilt`` are as they weighed at ``at_s``."""

    rung: Rung = Rung.GOOD
    score: float = 0.0
    guilt: float = 0.0
    at_s: float = 0.0
    incidents_s: dict[bool, float] = field(default_factory=dict)
    until_s: float = 0.0
    spells: int = 0
    probing: bool = False
    appealed_s: float | None = None
    counts: Counter[str] = field(default_factory=Counter)
    notes: deque[tuple[float, Rung, str]] = field(default_factory=lambda: deque(maxlen=NOTES_MAX))

    @property
    def weight(self) -> float:
        return self.score + self.guilt

    @property
    def is_faded(self) -> bool:
        """Whether it makes no difference any more."""
        return self.rung is Rung.GOOD and self.weight < FADED_BELOW

    def is_same_incident(self, fault: Fault, now_s: float) -> bool:
        began_s = self.incidents_s.get(fault.is_of_integrity)
        if began_s is not None and now_s - began_s < INCIDENT_S:
            return True
        self.incidents_s[fault.is_of_integrity] = now_s
        return False

    def fade(self, now_s: float) -> None:
        passed_s = max(0.0, now_s - self.at_s)
        self.score *= 0.5 ** (passed_s / HALF_LIFE_S)
        self.guilt *= 0.5 ** (passed_s / GUILT_HALF_LIFE_S)
        self.at_s = now_s


class Ladder:
    """Where each party stands, and why."""

    def __init__(self, on_step: Callable[[PartyId, Rung, str], None] | None = None) -> None:
        """Tell ``on_step`` of each step: who, where to, and why."""
        self._pasts: OrderedDict[PartyId, _Past] = OrderedDict()
        self._on_step = on_step

    def __len__(self) -> int:
        """How many parties with a past are remembered."""
        return len(self._pasts)

    def failures(self, party: PartyId, now_s: float) -> float:
        """Its faults as they weigh now: what a matching policy counts against it; 0 at best."""
        past = self._look(party, now_s)
        return past.weight if past else 0.0

    def may_serve(self, party: PartyId, now_s: float) -> bool:
        """Whether it may have a task: not while it rests, and one alone as a probe after that."""
        past = self._look(party, now_s)
        if past is None or past.rung not in (Rung.QUARANTINED, Rung.BLACKLISTED):
            return True
        return past.rung is Rung.QUARANTINED and now_s >= past.until_s and not past.probing

    def weighs(self, party: PartyId) -> bool:
        """Whether its past made a difference when it was last looked at."""
        past = self._pasts.get(party)
        return past is not None and not past.is_faded

    def is_last_resort(self, party: PartyId, now_s: float) -> bool:
        """Whether it may have a task although it rests, when nobody else serves the model."""
        past = self._look(party, now_s)
        if past is None or self.may_serve(party, now_s):
            return True
        return past.rung is Rung.QUARANTINED and past.guilt < GOOD_BELOW

    def began(self, party: PartyId, now_s: float) -> None:
        """It was given a task; one that rested is being probed now."""
        past = self._look(party, now_s)
        if past is not None and past.rung is Rung.QUARANTINED:
            past.probing = True

    def ended(self, party: PartyId, failure: AttemptFailed | None, now_s: float) -> None:
        """A task that it was given has ended; None: all of it was served."""
        past = self._look(party, now_s)
        if past is not None and past.probing:
            past.probing = False
            if failure is None:
                past.score = min(past.score, LOWERED_AT)
                self._step(party, past, Rung.LOWERED, now_s, "the probe was served")
        fault = fault_of(failure) if failure is not None else None
        if fault is not None:
            self.blame(party, fault, now_s)

    def blame(self, party: PartyId, fault: Fault, now_s: float) -> None:
        """It has committed ``fault``."""
        past = self._pasts.get(party)
        if past is None:
            past = self._remember(party)
        past.fade(now_s)
        past.counts[fault.value] += 1
        self._pasts.move_to_end(party)
        if past.is_same_incident(fault, now_s):
            return
        if fault.is_of_integrity:
            past.guilt += 1.0
            if past.guilt > BLACKLISTED_AT:
                past.until_s = now_s + BLACKLIST_S
                self._step(party, past, Rung.BLACKLISTED, now_s, fault.value)
            elif past.rung is not Rung.BLACKLISTED:
                self._rest(party, past, now_s, fault, GUILTY_QUARANTINE_S)
            return
        past.score += 1.0
        if past.rung in (Rung.QUARANTINED, Rung.BLACKLISTED):
            # What was under way when it went down adds nothing; a probe that fails does.
            if past.rung is Rung.QUARANTINED and now_s >= past.until_s:
                self._rest(party, past, now_s, fault, QUARANTINE_S)
        elif past.score > QUARANTINED_AT:
            self._rest(party, past, now_s, fault, QUARANTINE_S)
        else:
            lowered = past.rung is Rung.LOWERED or past.score > LOWERED_AT
            self._step(party, past, Rung.LOWERED if lowered else Rung.SUSPECT, now_s, fault.value)

    def appeal(self, party: PartyId, now_s: float) -> str:
        """The party asks for another chance: its answer, as a person reads it."""
        past = self._look(party, now_s)
        if past is None or past.rung not in (Rung.QUARANTINED, Rung.BLACKLISTED):
            return "nothing keeps it from being asked: there is nothing to appeal against"
        if past.appealed_s is not None and now_s - past.appealed_s < APPEAL_EVERY_S:
            return "it has appealed today already; the operator can reset it"
        past.appealed_s, past.until_s = now_s, now_s
        past.guilt = min(past.guilt, BLACKLISTED_AT - 0.5)  # one more and it is back
        self._step(party, past, Rung.QUARANTINED, now_s, "appealed: the next task is its probe")
        return "granted: the next task is its probe"

    def reset(self, party: PartyId, now_s: float) -> str:
        """The operator forgives everything: the answer, as a person reads it."""
        past = self._look(party, now_s)
        if past is None:
            return "there was nothing against it"
        past.score = past.guilt = 0.0
        past.spells, past.probing, past.appealed_s = 0, False, None
        self._step(party, past, Rung.GOOD, now_s, "reset by the operator")
        return "forgiven: it is good"

    def forget_faded(self, now_s: float) -> None:
        """Forget those whose faults weigh nothing any more."""
        for party in [*self._pasts]:
            past = self._look(party, now_s)
            if past is not None and past.is_faded:
                del self._pasts[party]

    def standing(self, party: PartyId, now_s: float) -> Standing:
        """How it stands, with its reasons, for people to read."""
        past = self._look(party, now_s) or _Past()
        rests = past.rung in (Rung.QUARANTINED, Rung.BLACKLISTED)
        return Standing(
            node=party,
            rung=past.rung.value,
            failures=past.weight,
            rests_s=max(0.0, past.until_s - now_s) if rests else 0.0,
            faults=tuple(FaultCount(kind, times) for kind, times in sorted(past.counts.items())),
            notes=tuple(
                Note(max(0.0, now_s - at_s), rung.value, why) for at_s, rung, why in past.notes
            ),
        )

    def standings(self, now_s: float) -> list[Standing]:
        """Everybody with a past, the lowest first."""
        found = [self.standing(party, now_s) for party in self._pasts]
        depth = {rung.value: number for number, rung in enumerate(Rung)}
        return sorted(found, key=lambda one: (-depth[one.rung], -one.failures, one.node))

    def _look(self, party: PartyId, now_s: float) -> _Past | None:
        """A party's past, with what time alone has changed."""
        past = self._pasts.get(party)
        if past is None:
            return None
        past.fade(now_s)
        match past.rung:
            case Rung.BLACKLISTED if now_s >= past.until_s:
                self._step(party, past, Rung.QUARANTINED, now_s, "a day has passed")
            case Rung.LOWERED if past.weight <= LOWERED_AT / 2:
                self._step(party, past, Rung.SUSPECT, now_s, "no fault for a while")
            case Rung.SUSPECT if past.weight < GOOD_BELOW:
                past.spells = 0
                self._step(party, past, Rung.GOOD, now_s, "no fault for a while")
        return past

    def _rest(
        self, party: PartyId, past: _Past, now_s: float, fault: Fault, least_s: float
    ) -> None:
        """Quarantine, for twice as long as the last time."""
        rest_s = min(least_s * 2**past.spells, QUARANTINE_LONGEST_S)
        past.spells = min(past.spells + 1, 16)
        past.until_s = max(past.until_s, now_s + rest_s)
        past.probing = False
        why = f"{fault.value}: it rests for {past.until_s - now_s:.0f} s"
        self._step(party, past, Rung.QUARANTINED, now_s, why)

    def _step(self, party: PartyId, past: _Past, rung: Rung, now_s: float, why: str) -> None:
        past.rung = rung
        past.notes.append((now_s, rung, why))
        if self._on_step is not None:
            self._on_step(party, rung, why)

    def _remember(self, party: PartyId) -> _Past:
        if len(self._pasts) >= PARTIES_MAX:
            good = (who for who, past in self._pasts.items() if past.rung is Rung.GOOD)
            del self._pasts[next(good, next(iter(self._pasts)))]
        past = self._pasts[party] = _Past()
        return past
