"""When a node is told to serve another model, and when it is left alone."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, strategies as st

from starai.matching.placement import (
    LOADING_S,
    REMEMBERED_S,
    SETTLED_S,
    WANTED_S,
    Move,
    Placement,
    Server,
)

FITS = ("old", "new", "other")


def servers(*models: str, running: int = 0) -> list[Server]:
    return [Server(f"{n}", model, FITS, running) for n, model in enumerate(models)]


def run(
    placement: Placement,
    waiting: dict[str, int],
    nodes: list[Server],
    begin_s: float,
    end_s: float,
) -> list[Move]:
    """Look once a second; nodes change as they are told, at once."""
    moves = []
    for second in range(int(begin_s), int(end_s)):
        move = placement.decide(waiting, nodes, float(second))
        if move is not None:
            moves.append(move)
            for place, one in enumerate(nodes):
                if one.party == move.party:
                    nodes[place] = Server(one.party, move.model, one.fits, one.running)
    return moves


def test_an_idle_node_is_told_to_serve_what_is_wanted() -> None:
    """Nobody asks for its model, and somebody for one that it could serve: it changes, once."""
    nodes = servers("old", "old")
    assert run(Placement(), {"new": 3}, nodes, 0, 60) == [Move("0", "new")]


def test_a_short_wish_moves_nobody() -> None:
    """What is wanted for less than the threshold is no demand."""
    placement, nodes = Placement(), servers("old")
    assert run(placement, {"new": 1}, nodes, 0, WANTED_S) == []
    assert run(placement, {}, nodes, WANTED_S, WANTED_S + 5) == []
    assert run(placement, {"new": 1}, nodes, WANTED_S + 5, 2 * WANTED_S + 4) == []


def test_the_last_server_of_a_wanted_model_stays() -> None:
    """A model that was asked for lately keeps one server until that is long ago."""
    placement = Placement()
    busy = servers("old", running=1)
    assert run(placement, {}, busy, 0, 1) == []
    idle = servers("old")
    assert run(placement, {"new": 9}, idle, 1, REMEMBERED_S - 1) == []
    assert run(placement, {"new": 9}, idle, REMEMBERED_S - 1, REMEMBERED_S + 9) == [
        Move("0", "new")
    ]


def test_a_busy_node_and_one_that_cannot_are_left_alone() -> None:
    """Only an idle node that says it could load the model is told to."""
    nodes = [Server("a", "old", FITS, 1), Server("b", "old", ("other",)), Server("c", "old", ())]
    assert run(Placement(), {"new": 3}, nodes, 0, 60) == []


def test_a_node_that_changed_stays_for_a_while() -> None:
    """Demand that swings back and forth does not make a node swing with it."""
    placement, nodes = Placement(), servers("old")
    moves = []
    for begin in range(0, int(SETTLED_S), 20):
        wanted = {"new": 3} if begin % 40 == 0 else {"other": 3}
        moves += run(placement, wanted, nodes, begin, begin + 20)
    assert moves == [Move("0", "new")]


def test_one_change_is_awaited_before_the_next() -> None:
    """While a node loads, the model still looks short; no second node is told until later."""
    placement, told = Placement(), []
    for second in range(int(LOADING_S + WANTED_S) + 5):
        move = placement.decide({"new": 3}, servers("old", "old", "old"), float(second))
        told += [(second, move.party)] if move else []
    assert [party for _, party in told] == ["0", "1"]
    assert told[1][0] - told[0][0] > LOADING_S - 1


def test_the_node_that_is_missed_least_is_the_one_that_changes() -> None:
    """First a model that nobody asked for, then one with several servers."""
    placement = Placement()
    busy = [Server("0", "used", FITS, 1), Server("1", "used", FITS), Server("2", "idle", FITS)]
    assert run(placement, {"new": 1}, busy, 0, 20) == [Move("2", "new")]


@given(
    st.lists(
        st.tuples(
            st.dictionaries(st.sampled_from(FITS), st.integers(0, 3), max_size=2),
            st.integers(0, 3),
            st.floats(0.5, 30),
        ),
        max_size=60,
    )
)
def test_it_never_flaps_nor_takes_the_last_server_of_what_is_wanted(
    steps: list[tuple[dict[str, int], int, float]],
) -> None:
    """Whatever demand does: no node changes twice within its time, none while it works."""
    placement, now_s = Placement(), 0.0
    models, moved, wanted = ["old", "old", "new", "other"], {}, {}
    for waiting, busy, passed_s in steps:
        now_s += passed_s
        nodes = [Server(f"{n}", model, FITS, int(n < busy)) for n, model in enumerate(models)]
        for model in [one for one, number in waiting.items() if number] + models[:busy]:
            wanted[model] = now_s
        move = placement.decide(waiting, nodes, now_s)
        if move is None:
            continue
        number = int(move.party)
        assert number >= busy
        assert now_s - moved.get(number, -1e9) > SETTLED_S - 1e-6
        left = models[number]
        before = Counter(models)
        assert before[left] > 1 or now_s - wanted.get(left, -1e9) > REMEMBERED_S - 1e-6
        moved[number] = now_s
        models[number] = move.model
