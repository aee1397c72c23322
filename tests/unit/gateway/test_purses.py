"""A purse: what is taken, put back, given back, and never counted twice."""

from hypothesis import given, strategies as st

from starai.gateway.paying.purses import Purse
from starai.protocol.registry import Allotment, Shortage


def _allot(purse, number, amount, now_s=0.0, end_s=600.0):
    allotment = Allotment(number.to_bytes(16, "big"), amount, 0, 0)
    purse.put(allotment, now_s, end_s - 60, end_s)


def test_what_is_not_used_can_be_taken_again():
    """A request takes its highest cost and puts back the rest."""
    purse = Purse(1, 1, 100)
    assert not purse.take(1)
    _allot(purse, 1, 100)
    assert purse.take(80)
    assert not purse.take(30)
    purse.settle(80, 10)
    assert purse.left == 90
    assert purse.take(90)
    purse.settle(90, 90)
    assert [(one.used_nano_usd, purse.left) for one in purse.spent] == [(100, 0)]


def test_an_allotment_is_kept_while_requests_count_on_it():
    """It is let go of before its end only if what is taken is covered without it."""
    purse = Purse(1, 1, 100)
    _allot(purse, 1, 100)
    assert purse.take(60)
    assert not purse.retire(550.0)
    _allot(purse, 2, 100, 550.0, 1150.0)
    assert purse.retire(550.0)
    assert (purse.left, purse.spent[0].used_nano_usd) == (40, 0)
    purse.settle(60, 50)
    assert purse.left == 50
    purse.retire_all(551.0)
    assert [one.used_nano_usd for one in purse.spent] == [0, 50]


def test_at_its_end_it_is_let_go_of_unreported():
    """What requests in progress took stays set aside by the registry, which hears nothing of it."""
    purse = Purse(1, 1, 100)
    _allot(purse, 1, 100)
    assert purse.take(60)
    assert purse.retire(600.0)
    assert (purse.left, purse.spent) == (-60, [])
    assert not purse.take(1)
    purse.settle(60, 50)
    assert purse.left == 0
    _allot(purse, 2, 100, 601.0, 1201.0)
    assert purse.left == 100
    assert purse.retire(700.0)


def test_a_refusal_stands_for_as_much_as_it_says():
    """Who wants no more than could be had is not refused on the strength of another's refusal."""
    purse = Purse(1, 1, 100)
    purse.shortage, purse.available, purse.quiet_until_s = Shortage.BALANCE, 40, 1.0
    assert purse.lacks(41, 0.5)
    assert not purse.lacks(40, 0.5)
    assert not purse.lacks(41, 1.0)
    purse.shortage = Shortage.ELSEWHERE
    assert not purse.lacks(41, 0.5)


_STEP = st.tuples(st.sampled_from("ptsre"), st.integers(1, 100), st.integers(0, 100))


@given(st.lists(_STEP, min_size=8, max_size=40))
def test_nothing_is_lost_or_counted_twice(steps):
    """Left and taken are always what open allotments hold; no report says more than was spent."""
    purse, taken, spent, number, is_cut_short = Purse(1, 1, 1), [], 0, 0, False
    for kind, amount, share in steps:
        if kind == "p":
            number += 1
            _allot(purse, number, 2 * amount)
        elif kind == "t" and purse.take(amount):
            taken.append(amount)
        elif kind == "s" and taken:
            one = taken.pop()
            used = one * share // 100
            purse.settle(one, used)
            spent += used
        elif kind in "re" and purse.grants:
            num_reports, at_end = len(purse.spent), kind == "e"
            assert purse.retire(600.0 if at_end else 0.0) or not at_end
            is_cut_short |= at_end and len(purse.spent) == num_reports
        counted = sum(one.used_nano_usd for one in purse.spent)
        counted += sum(grant.spent for grant in purse.grants)
        assert counted <= spent if is_cut_short else counted == spent
        assert purse.left + sum(taken) == sum(one.amount - one.spent for one in purse.grants)
        assert purse.left >= (-sum(taken) if is_cut_short else 0)
