"""Reconciling: each thing that can be wrong has its class, whatever came first."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from hypothesis import given, strategies as st

from starai.core.randomness import SeededRandomness
from starai.ledger.outcomes import Verdict, blamed, default_outcome
from starai.ledger.reconciling import WINDOW_MS, Claim, Standing, compare, due, judge
from starai.protocol.identity import Identity
from starai.protocol.registry import Side
from starai.testing.records import DISTRIBUTOR, NODES, STRANGER, record

HERE = record(1)
OTHER_DISTRIBUTOR = Identity.create(SeededRandomness(77))


def changed(**changes: object):
    return msgspec.structs.replace(HERE, **changes)


def standings(*claims: Claim) -> list[Standing]:
    return judge(claims)


@pytest.mark.parametrize(
    ("changes", "standing"),
    [
        ({"answer_tokens": 5, "answer_hash": b"b" * 32, "proof_hash": b"c" * 32}, "AMOUNT"),
        ({"charge_nano_usd": 5}, "AMOUNT"),
        ({"price_id": 2}, "AMOUNT"),
        ({"answer_hash": b"b" * 32}, "CONTENT"),
        ({"request_hash": b"b" * 32, "answer_tokens": 5}, "CONTENT"),
        ({"customer": 8, "charge_nano_usd": 5}, "CONTENT"),
        ({"closed_ms": 9}, "CONTENT"),
        ({"proof_hash": b"b" * 32}, "PROOF_FAIL"),
        ({"node": NODES[1].raw, "charge_nano_usd": 5}, "WRONG_NODE"),
    ],
)
def test_two_different_records_differ_in_one_way(changes, standing: str) -> None:
    """What two sides disagree on is named by what matters most."""
    other = changed(**changes)
    assert compare(HERE, other) is compare(other, HERE) is Standing[standing]


def test_agreement_outweighs_whatever_one_side_says_besides() -> None:
    """A record that both sides confirmed stays agreed; who says another too, says it twice."""
    lie = changed(answer_tokens=5)
    assert standings(Claim(HERE, 1, 2), Claim(lie, dist_ms=3)) == [Standing.MATCHED, Standing.DUP]
    assert standings(Claim(HERE, 1, 2), Claim(lie, node_ms=3)) == [Standing.MATCHED, Standing.DUP]


def test_two_agreed_records_of_one_attempt_contradict_each_other() -> None:
    """A distributor that gave one attempt to two nodes has neither agreed."""
    given_twice = changed(node=NODES[1].raw)
    assert standings(Claim(HERE, 1, 2), Claim(given_twice, 1, 2)) == [Standing.DUP] * 2


def test_strangers_to_a_record_contest_nothing() -> None:
    """Two parties of their own, honest or not, change nothing for the two whose record it is."""
    theirs = changed(node=NODES[1].raw, distributor=OTHER_DISTRIBUTOR.raw)
    assert standings(Claim(HERE, 1, 2), Claim(theirs, 1, 2)) == [Standing.MATCHED] * 2
    alone = Claim(changed(distributor=OTHER_DISTRIBUTOR.raw, node=NODES[1].raw), dist_ms=1)
    assert standings(Claim(HERE, node_ms=1), alone) == [Standing.NODE_ONLY, Standing.DIST_ONLY]


def test_a_node_that_claims_anothers_work_keeps_nobody_from_agreeing() -> None:
    """The distributor names one node, another claims it: settled when the right one speaks."""
    claimed = Claim(changed(node=NODES[1].raw), node_ms=1)
    assert standings(Claim(HERE, dist_ms=1), claimed) == [Standing.WRONG_NODE] * 2
    assert standings(Claim(HERE, 2, 1), claimed) == [Standing.MATCHED, Standing.WRONG_NODE]


def test_a_word_after_the_window_contests_nothing() -> None:
    """Who is silent for a day cannot undo what the day has decided, but may still agree."""
    late = changed(answer_tokens=5)
    claims = (Claim(HERE, dist_ms=0), Claim(late, node_ms=WINDOW_MS + 1))
    assert standings(*claims) == [Standing.DIST_ONLY, Standing.LATE]
    claims = (Claim(HERE, dist_ms=0), Claim(late, node_ms=WINDOW_MS))
    assert standings(*claims) == [Standing.AMOUNT, Standing.AMOUNT]
    assert standings(Claim(HERE, WINDOW_MS + 1, 0)) == [Standing.MATCHED]
    again = Claim(late, WINDOW_MS + 2, WINDOW_MS + 2)
    assert standings(Claim(HERE, 0, 0), again) == [Standing.MATCHED, Standing.LATE]


def test_flaws_stay_unless_both_sides_agree() -> None:
    """A stranger's name is a flaw; what nobody signed was said by nobody."""
    unknown = Claim(changed(distributor=STRANGER.raw), node_ms=1, flaw=Standing.UNKNOWN)
    forged = Claim(changed(answer_tokens=5), dist_ms=1, flaw=Standing.BAD_SIG)
    assert standings(unknown, forged) == [Standing.UNKNOWN, Standing.BAD_SIG]
    assert standings(Claim(HERE, node_ms=1), forged) == [Standing.NODE_ONLY, Standing.BAD_SIG]


def test_of_two_amounts_the_lower_is_due() -> None:
    """Both sides say at least that much; with equal charges the distributor's record is paid."""
    low, high = changed(charge_nano_usd=5), changed(charge_nano_usd=6)
    for claims in (
        (Claim(low, node_ms=1), Claim(high, dist_ms=1)),
        (Claim(low, dist_ms=1), Claim(high, node_ms=1)),
    ):
        assert due(claims, judge(claims)) == [True, False]
    claims = (Claim(low, node_ms=1), Claim(changed(charge_nano_usd=5, answer_tokens=1), dist_ms=1))
    assert due(claims, judge(claims)) == [False, True]
    claims = (Claim(HERE, 1, 1), Claim(low, node_ms=1))
    assert due(claims, judge(claims)) == [True, False]


_RECORDS = [
    changed(node=node.raw, distributor=distributor.raw, charge_nano_usd=charge, proof_hash=proof)
    for node in NODES[:2]
    for distributor in (DISTRIBUTOR, OTHER_DISTRIBUTOR)
    for charge in (5, 6)
    for proof in (b"p" * 32, b"x" * 32)
]
_TIMES = st.one_of(st.none(), st.sampled_from([0, 5, WINDOW_MS, WINDOW_MS + 6, 3 * WINDOW_MS]))
_CLAIMS = st.lists(
    st.builds(Claim, st.sampled_from(_RECORDS), _TIMES, _TIMES).filter(lambda one: one.words()),
    min_size=1,
    max_size=4,
    unique_by=lambda one: one.record.canonical(),
)


@given(_CLAIMS)
def test_judgement_does_not_depend_on_where_one_begins(claims: list[Claim]) -> None:
    """Whatever was said, each record's standing and payment are the same in any order."""
    states = judge(claims)
    expected = dict(zip(claims, zip(states, due(claims, states), strict=True), strict=True))
    for order in itertools.permutations(claims):
        states = judge(order)
        assert (
            dict(zip(order, zip(states, due(order, states), strict=True), strict=True)) == expected
        )


@given(_CLAIMS)
def test_no_two_partners_are_paid_twice_for_an_attempt(claims: list[Claim]) -> None:
    """Of one distributor and node, at most one record of an attempt is ever due."""
    paid = [
        (claim.record.node, claim.record.distributor)
        for claim, is_due in zip(claims, due(claims, judge(claims)), strict=True)
        if is_due
    ]
    assert len(paid) == len(set(paid))


@pytest.mark.parametrize("standing", list(Standing))
@pytest.mark.parametrize("spoke", [False, True])
def test_every_silence_has_an_outcome(standing: Standing, spoke: bool) -> None:
    """No standing is without a verdict, and only clear ones cost the customer or the insurance."""
    verdict = default_outcome(standing, distributor_spoke=spoke)
    assert (verdict is Verdict.PAID) == (standing is Standing.DIST_ONLY)
    assert (verdict is Verdict.INSURED) == (standing is Standing.NODE_ONLY and not spoke)
    assert verdict is not Verdict.SLASHED


def test_blame_needs_no_witness() -> None:
    """Strikes are for what a party's own signatures show, never for one word against another."""
    assert blamed(Standing.DUP, Side.NODE) is Side.NODE
    assert blamed(Standing.DUP, Side.DISTRIBUTOR) is Side.DISTRIBUTOR
    assert blamed(Standing.DUP, 3) is Side.DISTRIBUTOR
    assert blamed(Standing.UNKNOWN, Side.NODE) is Side.NODE
    assert {
        blamed(standing, sides)
        for standing in Standing
        if standing not in {Standing.DUP, Standing.UNKNOWN}
        for sides in (1, 2, 3)
    } == {None}
