"""The hash of all books, and the checks that must be able to fail."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from starai.ledger import (
    Books,
    Captured,
    Deposited,
    HoldPlaced,
    MemoryShelf,
    Replay,
    Transfer,
    state,
)
from starai.ledger.accounts import POOL, Account, Kind, Totals, available, held

NODE = b"n" * 32


def _shelf() -> MemoryShelf:
    shelf = MemoryShelf()
    books = Books(shelf)
    books.apply(Deposited(event_id=b"1" * 16, at_ms=1, customer=7, amount=100))
    books.apply(
        HoldPlaced(
            event_id=b"2" * 16,
            at_ms=2,
            hold_id=b"h" * 16,
            customer=7,
            payer=1,
            amount=60,
            expires_ms=9,
        )
    )
    books.apply(
        Captured(
            event_id=b"3" * 16,
            at_ms=3,
            customer=7,
            payer=1,
            node=NODE,
            charge=30,
            node_share=27,
            ref=b"task",
        )
    )
    shelf.keep(books.changes())
    return shelf


def test_the_hash_is_of_the_state_not_of_its_history() -> None:
    """The order of what happened does not matter, only what is there."""
    sums = []
    for order in ((1, 2), (2, 1)):
        books = Books(MemoryShelf())
        for number in order:
            identity = bytes([number]) * 16
            books.apply(Deposited(event_id=identity, at_ms=1, customer=number, amount=number))
        sums.append(state.add(0, books.changes()))
    assert sums[0] == sums[1]
    assert state.state_hash(sums[0]) != state.state_hash(0)


def test_the_hash_is_pinned() -> None:
    """It is part of blocks: another version must compute the same."""
    shelf = _shelf()
    total = state.sum_of(shelf.accounts, shelf.holds.values())
    assert (
        state.state_hash(0).hex()
        == "87098629efbd878e9595f2b04e51cc6f46c0a247f9362799e49023dd367ff4ab"
    )
    assert (
        state.state_hash(total).hex()
        == "e16b5ecd1c1cdd53b85487fcb0b1ec9efed9bc2b2fd53076a000c62cdda70d73"
    )


def test_each_part_of_the_state_is_in_the_hash() -> None:
    """Another owner, kind, total, hold or payer is another hash."""
    shelf = _shelf()
    whole = state.sum_of(shelf.accounts, shelf.holds.values())
    (hold,) = shelf.holds.values()
    seen = {whole, state.sum_of(shelf.accounts, [])}
    for change in ({"payer": 2}, {"customer": 8}, {"remaining": 1}, {"hold_id": b"i" * 16}):
        seen.add(state.sum_of(shelf.accounts, [replace(hold, **change)]))
    for account, totals in (
        (available(8), Totals(60, 100)),
        (Account(Kind.STAKE, available(7).owner), Totals(60, 100)),
        (available(7), Totals(61, 101)),
    ):
        accounts = {one: other for one, other in shelf.accounts.items() if one != available(7)}
        seen.add(state.sum_of({**accounts, account: totals}, shelf.holds.values()))
    assert len(seen) == 9


@pytest.mark.parametrize(
    ("account", "totals", "says"),
    [
        (available(7), Totals(60, 101), "all debits"),
        (held(7), Totals(31, 60), "its holds at 30"),
        (Account(Kind.FEE), Totals(4, 3), "stands at -1"),
    ],
)
def test_the_check_can_fail(account: Account, totals: Totals, says: str) -> None:
    """Sound books have no problem; one unit more or less is one."""
    shelf = _shelf()
    assert state.check(shelf.accounts, shelf.holds.values()) == []
    problems = state.check({**shelf.accounts, account: totals}, shelf.holds.values())
    assert any(says in problem for problem in problems)


def _replayed(transfers: list[Transfer]) -> list[str]:
    replay = Replay()
    return [problem for one in transfers for problem in replay.add(one)]


def test_a_replay_comes_to_the_same() -> None:
    """Accounts and open holds are in the transfers."""
    shelf = _shelf()
    replay = Replay()
    assert [problem for one in shelf.transfers for problem in replay.add(one)] == []
    assert replay.accounts == shelf.accounts
    total = state.sum_of(replay.accounts, replay.holds.values())
    assert total == state.sum_of(shelf.accounts, shelf.holds.values())


@pytest.mark.parametrize(
    ("index", "change", "says"),
    [
        (0, {"transfer_id": b"x" * 16}, "its id"),
        (0, {"amount": 59}, "overdraws"),
        (0, {"amount": -100}, "not positive"),
        (0, {"credit": POOL}, "moves nothing"),
        (1, {"ref": b"h" * 16}, "no new hold"),
        (1, {"ref": b"h" * 16 + b"long" * 5}, "no new hold"),
        (2, {"ref": b"i" * 16 + b"task"}, "no hold"),
        (2, {"amount": 61}, "more than its hold"),
    ],
)
def test_a_replay_finds_what_was_changed(index: int, change: dict[str, object], says: str) -> None:
    """Whatever is changed by hand in a transfer does not fit the others."""
    transfers = _shelf().transfers
    transfers[index] = replace(transfers[index], **change)
    assert any(says in problem for problem in _replayed(transfers))


def test_a_replay_finds_what_is_missing_or_twice() -> None:
    """A transfer of several cannot be left out or repeated."""
    transfers = _shelf().transfers
    assert _replayed(transfers[:2] + transfers[3:])
    assert _replayed(transfers + transfers[-1:])
