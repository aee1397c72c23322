"""Who goes down the ladder, how far, for how long, and how one comes up again."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from starai.core.randomness import SeededRandomness
from starai.exchange.base import AttemptFailed, FailureKind
from starai.exchange.caller.hedging import SAMPLES_MIN, SHARE, Hedging
from starai.exchange.caller.pacing import (
    FIRST_S,
    FIRST_UNKNOWN_S,
    PAUSE_S,
    TOKEN_S,
    TOKEN_UNKNOWN_S,
    Paces,
)
from starai.exchange.standing import ladder as module
from starai.exchange.standing.guarding import BUCKETS_MAX, SHUT_S, Guard
from starai.exchange.standing.ladder import Fault, Ladder, Rung, fault_of
from starai.protocol.identity import Identity, PartyId
from starai.protocol.standing import NOTES_MAX
from starai.protocol.tasks import RefusalCode

NODE = Identity.create(SeededRandomness(1)).party
OTHER = Identity.create(SeededRandomness(2)).party
SILENT = AttemptFailed(FailureKind.SILENT)
AVAILABILITY = [fault for fault in Fault if not fault.is_of_integrity]
INTEGRITY = [fault for fault in Fault if fault.is_of_integrity]


def rung(ladder: Ladder, now_s: float) -> str:
    return ladder.standing(NODE, now_s).rung


def quarantined() -> Ladder:
    ladder = Ladder()
    for second in range(0, 8, 2):
        ladder.blame(NODE, Fault.SILENT, second)
    assert rung(ladder, 6) == "quarantined"
    return ladder


def test_each_step_down_and_up_has_its_reason() -> None:
    """One miss makes a suspect, more lower it, and time alone forgives."""
    heard: list[tuple[PartyId, Rung, str]] = []
    ladder = Ladder(lambda *step: heard.append(step))
    assert rung(ladder, 0) == "good"
    ladder.blame(NODE, Fault.STALLED, 0)
    assert rung(ladder, 0) == "suspect"
    ladder.blame(NODE, Fault.GONE, 2)
    assert rung(ladder, 2) == "lowered"
    assert rung(ladder, 2 + 2 * module.HALF_LIFE_S) == "suspect"
    assert rung(ladder, 2 + 4 * module.HALF_LIFE_S) == "good"
    assert [(step.value, why) for _, step, why in heard] == [
        ("suspect", "stalled"),
        ("lowered", "gone"),
        ("suspect", "no fault for a while"),
        ("good", "no fault for a while"),
    ]
    assert [note.reason for note in ladder.standing(NODE, 99).notes] == [why for *_, why in heard]


def test_all_tasks_that_end_in_one_crash_are_one_incident() -> None:
    """A node with many tasks is not punished more than one with few."""
    ladder = Ladder()
    for number in range(50):
        ladder.blame(NODE, Fault.GONE, number / 100)
    standing = ladder.standing(NODE, 0.5)
    assert standing.rung == "suspect"
    assert [(one.fault, one.times) for one in standing.faults] == [("gone", 50)]


def test_a_quarantined_party_rests_and_is_probed_by_one_task() -> None:
    """After its rest one task is the probe; served, it is lowered and soon good."""
    ladder = quarantined()
    assert not ladder.may_serve(NODE, 9)
    later = 6 + module.QUARANTINE_S
    assert ladder.may_serve(NODE, later)
    ladder.began(NODE, later)
    assert not ladder.may_serve(NODE, later), "one probe at a time"
    ladder.ended(NODE, None, later + 1)
    assert rung(ladder, later + 1) == "lowered"
    assert ladder.may_serve(NODE, later + 1)
    assert rung(ladder, later + 200) == "suspect"
    assert rung(ladder, later + 200) == "good"


def test_a_failed_probe_doubles_the_rest() -> None:
    """Each quarantine lasts twice as long as the one before, up to a limit."""
    ladder, now_s, rests = quarantined(), 6.0, []
    for _ in range(12):
        rests.append(ladder.standing(NODE, now_s).rests_s)
        now_s += rests[-1]
        assert ladder.may_serve(NODE, now_s)
        ladder.began(NODE, now_s)
        ladder.ended(NODE, SILENT, now_s + 1)
        now_s += 1
    assert rests[:3] == [module.QUARANTINE_S, 2 * module.QUARANTINE_S, 4 * module.QUARANTINE_S]
    assert rests[-1] == module.QUARANTINE_LONGEST_S


def test_a_probe_that_ends_without_a_verdict_leaves_room_for_another() -> None:
    """A client that hung up says nothing about the node."""
    ladder = quarantined()
    later = 6 + module.QUARANTINE_S
    ladder.began(NODE, later)
    ladder.ended(NODE, AttemptFailed(FailureKind.LEFT), later)
    assert ladder.may_serve(NODE, later)


@given(st.lists(st.tuples(st.sampled_from(AVAILABILITY), st.floats(0, 60)), max_size=200))
def test_faults_of_availability_never_cost_more_than_priority(
    faults: list[tuple[Fault, float]],
) -> None:
    """However often a node fails, it is a last resort and no outcast, and good after an hour."""
    ladder, now_s = Ladder(), 0.0
    for fault, pause_s in faults:
        now_s += pause_s
        ladder.blame(NODE, fault, now_s)
        assert rung(ladder, now_s) != "blacklisted"
        assert ladder.is_last_resort(NODE, now_s)
    assert ladder.may_serve(NODE, now_s + module.QUARANTINE_LONGEST_S)


@pytest.mark.parametrize("fault", INTEGRITY)
def test_the_third_fault_of_integrity_blacklists(fault: Fault) -> None:
    """What no accident explains quarantines at once, and the third time for a day."""
    ladder = Ladder()
    ladder.blame(NODE, fault, 0)
    assert rung(ladder, 0) == "quarantined"
    assert not ladder.is_last_resort(NODE, 1)
    ladder.blame(NODE, fault, 5)
    ladder.blame(NODE, fault, 10)
    assert rung(ladder, 10) == "blacklisted"
    assert not ladder.may_serve(NODE, 10 + module.BLACKLIST_S / 2)
    assert ladder.may_serve(OTHER, 10)
    assert ladder.may_serve(NODE, 11 + module.BLACKLIST_S)


def test_faults_of_integrity_fade_too() -> None:
    """One a day blacklists nobody."""
    ladder = Ladder()
    for day in range(20):
        ladder.blame(NODE, Fault.WRONG_SEAL, day * 86_400.0)
        assert rung(ladder, day * 86_400.0) == "quarantined"


def test_an_appeal_is_granted_once_a_day_and_the_operator_can_always_forgive() -> None:
    """The way back: one probe by appeal, everything by reset."""
    ladder = Ladder()
    assert "nothing" in ladder.appeal(NODE, 0)
    assert "nothing" in ladder.reset(NODE, 0)
    for second in (0, 5, 10):
        ladder.blame(NODE, Fault.FLOOD, second)
    assert "granted" in ladder.appeal(NODE, 11)
    assert ladder.may_serve(NODE, 11)
    ladder.began(NODE, 11)
    ladder.ended(NODE, AttemptFailed(FailureKind.MALFORMED), 12)
    assert rung(ladder, 12) == "blacklisted", "it had one more chance"
    assert "already" in ladder.appeal(NODE, 13)
    assert not ladder.may_serve(NODE, 13)
    assert "forgiven" in ladder.reset(NODE, 14)
    assert ladder.failures(NODE, 14) == 0
    assert rung(ladder, 14) == "good"


@pytest.mark.parametrize(
    ("failure", "fault"),
    [
        (AttemptFailed(FailureKind.REFUSED, RefusalCode.BUSY), None),
        (AttemptFailed(FailureKind.REFUSED, RefusalCode.DRAINING), None),
        (AttemptFailed(FailureKind.REFUSED, RefusalCode.INVALID_REQUEST), None),
        (AttemptFailed(FailureKind.REFUSED, RefusalCode.ENGINE_FAILED), Fault.FAILED),
        (AttemptFailed(FailureKind.HANDED_OVER), None),
        (AttemptFailed(FailureKind.OUTRUN), None),
        (AttemptFailed(FailureKind.DAMAGED), Fault.DAMAGED),
        (AttemptFailed(FailureKind.TWICE), Fault.ANSWERED_TWICE),
    ],
)
def test_what_a_failure_says_against_its_callee(
    failure: AttemptFailed, fault: Fault | None
) -> None:
    """Being busy, draining or outrun is no fault."""
    assert fault_of(failure) is fault


def test_the_past_is_bounded_and_forgotten() -> None:
    """Neither the notes of one party nor the number of parties grows without end."""
    ladder = Ladder()
    for minute in range(1000):
        ladder.blame(NODE, Fault.SILENT, 60.0 * minute)
    assert len(ladder.standing(NODE, 60_000).notes) == NOTES_MAX
    for number in range(module.PARTIES_MAX + 10):
        ladder.blame(PartyId(f"U{number}"), Fault.SILENT, 60_000)
    assert len(ladder) == module.PARTIES_MAX
    for hour in range(1, 4):
        ladder.forget_faded(60_000 + 3600.0 * hour)
    assert len(ladder) == 0


def test_the_standings_put_the_lowest_first() -> None:
    """Whoever looks at the list sees the worst at its head."""
    ladder = Ladder()
    ladder.blame(OTHER, Fault.SILENT, 0)
    for second in (0, 5, 10):
        ladder.blame(NODE, Fault.FLOOD, second)
    assert [one.node for one in ladder.standings(10)] == [NODE, OTHER]


def test_a_past_that_has_faded_weighs_nothing_but_is_told():
    """Once a fault has faded, tasks need not look at it any more; people still can."""
    ladder = Ladder()
    assert not ladder.weighs(NODE)
    ladder.blame(NODE, Fault.SILENT, 0.0)
    assert ladder.weighs(NODE)
    ladder.began(NODE, 600.0)
    assert not ladder.weighs(NODE)
    assert ladder.standing(NODE, 600.0).faults


def test_a_fast_answer_that_stops_is_overdue_within_a_second() -> None:
    """The floor for what is fast, eight times the average for what is slow."""
    paces = Paces()
    fast = paces.begin(NODE, 10, 0.0)
    for step in range(1, 30):
        fast.token(step * 0.02)
    assert fast.due_s == pytest.approx(29 * 0.02 + TOKEN_S)
    slow = paces.begin(OTHER, 10, 0.0)
    for step in range(1, 40):
        slow.token(step * 2.0)
    assert slow.due_s == pytest.approx(39 * 2.0 + 8 * 2.0)


def test_a_new_answer_begins_at_the_pace_of_its_callee() -> None:
    """What is known of the callee bounds the first and the second token of the next answer."""
    paces = Paces()
    first = paces.begin(NODE, 1000, 0.0)
    assert first.due_s == FIRST_UNKNOWN_S
    first.token(4.0)
    assert first.due_s == 4.0 + TOKEN_UNKNOWN_S
    for step in range(1, 20):
        first.token(4.0 + step)
    second = paces.begin(NODE, 1000, 100.0)
    assert second.due_s == pytest.approx(100 + 8 * 4.0)
    second.token(102.0)
    assert second.due_s == pytest.approx(102 + 8 * 1.0)
    assert paces.begin(NODE, 1, 0.0).due_s == FIRST_S


def test_a_callee_pauses_when_all_its_answers_do() -> None:
    """One that gets on is enough; without any there is nothing to pause."""
    paces = Paces()
    one, other = paces.begin(NODE, 10, 0.0), paces.begin(NODE, 10, 0.0)
    for step in range(1, 11):
        one.token(step * 0.03)
    now_s = 0.3 + PAUSE_S
    assert not paces.pauses(NODE, now_s)
    assert paces.pausing(now_s + 0.01) == [NODE]
    other.token(now_s + 0.02)
    assert not paces.pauses(NODE, now_s + 0.03)
    one.end()
    other.end()
    assert not paces.pauses(NODE, 100.0)


def test_a_callee_that_begins_nothing_pauses_too() -> None:
    """An idle one that hangs draws all requests to it, until the first of them is late."""
    paces = Paces()
    known = paces.begin(NODE, 100, 0.0)
    known.token(0.4)
    known.end()
    paces.begin(NODE, 200, 10.0)
    paces.begin(NODE, 10, 10.5)
    assert not paces.pauses(NODE, 10.0 + 2 * 0.8 - 0.01)
    assert paces.pauses(NODE, 10.0 + 2 * 0.8 + 0.01)
    paces.begin(OTHER, 100, 0.0)
    assert not paces.pauses(OTHER, 50.0), "nothing is known of its speed"


def test_one_hiccup_does_not_hide_the_next_stall() -> None:
    """A pause that was survived counts for little; lasting slowness is learnt all the same."""
    pace = Paces().begin(NODE, 10, 0.0)
    for step in range(1, 30):
        pace.token(step * 0.03)
    pace.token(29 * 0.03 + 0.85)
    assert pace.due_s == pytest.approx(29 * 0.03 + 0.85 + TOKEN_S)
    now_s = 10.0
    for _ in range(40):
        pace.token(now_s)
        now_s += 2.0
    assert pace.due_s - (now_s - 2.0) > 8.0


def test_hedges_are_for_the_slowest_and_a_bounded_share() -> None:
    """Nothing is hedged before enough is known, and at most one in twenty after that."""
    hedging, hedged = Hedging(), 0
    for number in range(2000):
        delay_s = hedging.begin(b"m", 100)
        assert (delay_s is None) == (number < SAMPLES_MIN)
        if hedging.may_hedge():
            hedging.hedged()
            hedged += 1
        hedging.first_token(b"m", 100, 0.1 if number % 50 else 3.0, by_hedge=False)
    assert hedging.begin(b"m", 100) == pytest.approx(0.1)
    assert hedging.begin(b"m", 10_000) is None, "long prompts are another kind"
    assert hedged <= 2 + 2000 * SHARE


def test_the_percentile_follows_the_recent() -> None:
    """When everybody is slower now, being slow is nothing special any more."""
    hedging = Hedging()
    for seconds in (0.1, 5.0):
        for _ in range(300):
            hedging.first_token(b"m", 8, seconds, by_hedge=False)
    assert hedging.begin(b"m", 8) == 5.0


def test_a_flood_is_shut_out_for_a_while_and_nobody_else() -> None:
    """Beyond its bucket a party is not heard; others are, and it is again later."""
    guard = Guard(10.0, 100)
    floods = [guard.count(NODE, "unawaited", 0.0) for _ in range(101)]
    assert floods == [False] * 100 + [True]
    assert guard.is_shut(NODE, 1.0)
    assert not guard.is_shut(OTHER, 1.0)
    assert not guard.is_shut(NODE, SHUT_S)
    assert guard.refused == {"unawaited": 101, "flood": 1}


def test_buckets_of_many_parties_are_bounded() -> None:
    """A network of strangers fills no memory."""
    guard = Guard(10.0, 100)
    for number in range(2 * BUCKETS_MAX):
        guard.count(PartyId(f"U{number}"), "unawaited", 0.0)
    assert len(guard._buckets) == BUCKETS_MAX
