"""Confirmations: refused unless they hold, kept once, matched whatever their order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from hypothesis import given, strategies as st

from starai.core.clock import SystemClock
from starai.core.errors import (
    ConfigurationRefused,
    Conflict,
    MalformedFrame,
    PartyRefused,
    SealBroken,
)
from starai.core.limits import ATTEMPT_RECORDS_MAX, CONFIRM_RECORDS_MAX
from starai.ledger.accounts import available, pending
from starai.ledger.reconciling import Standing
from starai.protocol.frames import decode, encode
from starai.protocol.records import RECORD_BYTES
from starai.protocol.registry import RECORDS_WANTED, Acknowledged, Confirm, Side
from starai.protocol.subjects import Role
from starai.registry.integrity import check_integrity
from starai.registry.money.books import verify_books
from starai.registry.parties import Parties
from starai.registry.reconciling import confirmations as module
from starai.registry.reconciling.checking import check_confirm
from starai.registry.reconciling.confirmations import LARGE_BYTES, Confirmations
from starai.registry.reconciling.disputes import LAST_HEARD
from starai.registry.reconciling.tasks import apply
from starai.registry.reconciling.words import CheckedRecord, Outcome, Said
from starai.registry.storage import Connection, Store, open_store
from starai.registry.storage.sqlite import connect, migrate
from starai.testing.money import (
    CUSTOMER,
    DEPOSIT,
    NODE_BPS,
    balances,
    open_books,
    priced,
)
from starai.testing.records import (
    BLOCK_MS,
    DISTRIBUTOR,
    NETWORK,
    NODES,
    START_MS,
    STRANGER,
    confirm as sign,
    record,
)

_SIGNERS = {one.raw: one for one in (*NODES, STRANGER)}
FIXED = {DISTRIBUTOR.party: Role.DISTRIBUTOR, **{node.party: Role.NODE for node in NODES}}


def confirm(side: Side, records, signer=None, /, **changes) -> Confirm:
    """A confirmation by whoever's records they are."""
    honest = _SIGNERS[records[0].node] if side is Side.NODE else DISTRIBUTOR
    return sign(side, records, signer or honest, **changes)


@pytest.fixture
async def store(database: Path | str):
    async with open_store(database, inline=True) as store:
        yield store


@pytest.fixture
def confirmations(store: Store) -> Confirmations:
    return Confirmations(store, Parties(store, FIXED), NETWORK, BLOCK_MS, SystemClock())


@pytest.mark.anyio
async def test_few_large_ones_are_in_work_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crowd of large ones takes turns, small ones pass, and who leaves gives its turn back."""
    monkeypatch.setattr(module, "LARGE_MAX", 1)
    large = 1 + LARGE_BYTES // RECORD_BYTES
    lots = [
        confirm(Side.DISTRIBUTOR, [record(lot * 1000 + n) for n in range(1, large + 1)])
        for lot in range(4)
    ]
    async with open_store(tmp_path / "registry.db") as store:
        heard = Confirmations(store, Parties(store, FIXED), NETWORK, BLOCK_MS, SystemClock())
        begun: list[int] = []
        check = heard._checks.check

        async def checking(said: Confirm) -> Sequence[CheckedRecord]:
            begun.append(said.count)
            assert heard._large.value == 0 or said.count == 1
            return await check(said)

        monkeypatch.setattr(heard._checks, "check", checking)
        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                for said in lots[:3]:
                    tasks.start_soon(heard.handle, said.signer, said)
                while not begun:
                    await anyio.lowlevel.checkpoint()
                assert len(begun) == 1
                tasks.cancel_scope.cancel()
            begun.clear()
            async with anyio.create_task_group() as tasks:
                for said in (*lots, confirm(Side.DISTRIBUTOR, [record(9_999)])):
                    tasks.start_soon(heard.handle, said.signer, said)
                while len(begun) < 2:
                    await anyio.lowlevel.checkpoint()
                assert sorted(begun) == [1, large]
        assert sorted(begun) == [1, *[large] * 4]
        assert heard._large.value == 1
        heard.close()


def _states(connection: Connection) -> dict[tuple[int, int, int], str]:
    return {
        (int.from_bytes(task_id), attempt, out_tok): Standing(state).name
        for task_id, attempt, out_tok, state in connection.execute(
            "SELECT task_id, attempt, out_tok, state FROM task"
        )
    }


@pytest.mark.anyio
async def test_two_equal_words_match(confirmations: Confirmations, store: Store) -> None:
    """One side alone waits; both sides with the same record match, and it is stored once."""
    records = [record(1), record(2)]
    answer, outcome = await confirmations.handle(NODES[0].party, confirm(Side.NODE, records))
    assert answer == Acknowledged(ok=True)
    assert (outcome.fresh, outcome.matched) == (2, 0)
    assert set((await store.read(_states)).values()) == {"NODE_ONLY"}
    said = confirm(Side.DISTRIBUTOR, records[:1])
    _, outcome = await confirmations.handle(DISTRIBUTOR.party, said)
    assert (outcome.fresh, outcome.matched) == (0, 1)
    assert await store.read(_states) == {(1, 0, 21): "MATCHED", (2, 0, 22): "NODE_ONLY"}


@pytest.mark.anyio
async def test_sending_again_is_harmless(confirmations: Confirmations, store: Store) -> None:
    """The same part again, and known records in another part, are taken and change nothing."""
    first = confirm(Side.NODE, [record(1)])
    await confirmations.handle(NODES[0].party, first)
    again = [
        first,
        confirm(Side.NODE, [record(1)], part=9),
        confirm(Side.NODE, [record(1), record(2)]),
    ]
    for one in again:
        answer, _ = await confirmations.handle(NODES[0].party, one)
        assert answer == Acknowledged(ok=True)
    assert set((await store.read(_states)).values()) == {"NODE_ONLY"}


@pytest.mark.anyio
async def test_one_part_has_one_root(confirmations: Confirmations, store: Store) -> None:
    """A part that was confirmed with another root is refused, and its records are not kept."""
    await confirmations.handle(NODES[0].party, confirm(Side.NODE, [record(1)], part=0))
    with pytest.raises(Conflict):
        await confirmations.handle(NODES[0].party, confirm(Side.NODE, [record(2)], part=0))
    assert len(await store.read(_states)) == 1


@pytest.mark.anyio
async def test_contradictions_are_kept_and_told(confirmations: Confirmations, store: Store) -> None:
    """A different record of the same attempt is kept beside the first, and reported."""
    await confirmations.handle(NODES[0].party, confirm(Side.NODE, [record(1)]))
    lie = confirm(Side.DISTRIBUTOR, [record(1, answer_tokens=5)])
    answer, outcome = await confirmations.handle(DISTRIBUTOR.party, lie)
    assert answer.ok
    assert answer.code == "idempotency_conflict"
    assert outcome.contradicting == 1
    assert await store.read(_states) == {(1, 0, 21): "AMOUNT", (1, 0, 5): "AMOUNT"}
    await confirmations.handle(DISTRIBUTOR.party, confirm(Side.DISTRIBUTOR, [record(1)]))
    assert await store.read(_states) == {(1, 0, 21): "MATCHED", (1, 0, 5): "DUP"}


@pytest.mark.anyio
async def test_attempts_are_separate(confirmations: Confirmations, store: Store) -> None:
    """Two attempts of one task on two nodes are two records, each matched by itself."""
    first, second = record(1), record(1, node=NODES[1], attempt=1)
    for side, sender, one in (
        (Side.NODE, NODES[0], first),
        (Side.NODE, NODES[1], second),
        (Side.DISTRIBUTOR, DISTRIBUTOR, second),
    ):
        await confirmations.handle(sender.party, confirm(side, [one]))
    assert await store.read(_states) == {(1, 0, 21): "NODE_ONLY", (1, 1, 21): "MATCHED"}


@pytest.mark.anyio
async def test_a_node_cannot_speak_for_the_other_side(confirmations: Confirmations) -> None:
    """Only a distributor confirms as one, only a node as one, and nobody in another's name."""
    own = record(1, distributor=NODES[0].raw)
    for sender, one in (
        (NODES[0], confirm(Side.DISTRIBUTOR, [own], NODES[0])),
        (DISTRIBUTOR, confirm(Side.NODE, [own])),
        (NODES[1], confirm(Side.NODE, [record(1)])),
        (STRANGER, confirm(Side.NODE, [record(1, node=STRANGER)])),
    ):
        with pytest.raises(PartyRefused):
            await confirmations.handle(sender.party, one)


def _padded(records: bytes) -> bytes:
    return records[:6] + b"\1" + records[7:]


def _refusals() -> list[tuple[str, Confirm, type[Exception]]]:
    good = confirm(Side.NODE, [record(1)])
    swap = msgspec.structs.replace
    mixed = [record(1), record(2, node=NODES[1])]
    many = [record(number) for number in range(CONFIRM_RECORDS_MAX + 1)]
    return [
        ("network", confirm(Side.NODE, [record(1)], network="other"), ConfigurationRefused),
        ("block", confirm(Side.NODE, [record(1)], block=3), ConfigurationRefused),
        ("no records", confirm(Side.DISTRIBUTOR, [record(1)], records=b""), MalformedFrame),
        ("no count", confirm(Side.NODE, [record(1)], by_root=True, count=0), MalformedFrame),
        ("other count", confirm(Side.NODE, [record(1)], count=2), MalformedFrame),
        ("other charge", confirm(Side.NODE, [record(1)], charge_nano_usd=1), MalformedFrame),
        ("dear", confirm(Side.NODE, [record(1, charge_nano_usd=31 << 32)]), MalformedFrame),
        ("huge charge", confirm(Side.NODE, [record(1)], charge_nano_usd=1 << 63), MalformedFrame),
        ("forged root", swap(good, records=b"", root=b"r" * 32), SealBroken),
        ("half a record", swap(good, records=good.records[:-1]), MalformedFrame),
        ("too many", confirm(Side.NODE, many), MalformedFrame),
        ("twice", confirm(Side.NODE, [record(1), record(1)]), MalformedFrame),
        ("root", confirm(Side.NODE, [record(1)], root=b"r" * 32), MalformedFrame),
        ("short root", swap(good, root=b"r"), MalformedFrame),
        ("signature", swap(good, signature=b"s" * 64), SealBroken),
        ("no signature", swap(good, signature=b""), SealBroken),
        ("other's signature", swap(good, part=77), SealBroken),
        (
            "padding",
            swap(good, records=good.records[:6] + b"\1" + good.records[7:]),
            MalformedFrame,
        ),
        (
            "other node",
            confirm(Side.NODE, [record(1)], NODES[1], node=NODES[1].party),
            MalformedFrame,
        ),
        (
            "other distributor",
            confirm(
                Side.DISTRIBUTOR,
                [record(1, distributor=STRANGER.raw)],
                distributor=DISTRIBUTOR.party,
            ),
            MalformedFrame,
        ),
        ("mixed nodes", confirm(Side.DISTRIBUTOR, mixed), MalformedFrame),
        ("huge", confirm(Side.NODE, [record(1, customer=1 << 63)]), MalformedFrame),
        ("negative", swap(good, block=-1), MalformedFrame),
        ("no party", swap(good, node="nobody"), MalformedFrame),
    ]


@pytest.mark.parametrize(
    ("said", "error"), [pytest.param(*rest, id=name) for name, *rest in _refusals()]
)
def test_what_does_not_hold_is_refused(said: Confirm, error: type[Exception]) -> None:
    """Every way in which a confirmation may not hold has its refusal."""
    with pytest.raises(error):
        check_confirm(said, NETWORK, BLOCK_MS)


def test_the_largest_confirmation_fits_a_frame() -> None:
    """As many records as one confirmation may hold travel in one frame."""
    said = confirm(Side.NODE, [record(number) for number in range(CONFIRM_RECORDS_MAX)])
    assert decode(encode(said), Confirm) == said
    assert len(check_confirm(said, NETWORK, BLOCK_MS)) == CONFIRM_RECORDS_MAX


_WORDS = st.lists(
    st.tuples(
        st.sampled_from(list(Side)),
        st.sampled_from(NODES[:2]),
        st.lists(
            st.tuples(
                st.integers(1, 3),
                st.integers(0, 1),
                st.integers(1, 2),
                st.sampled_from([b"p" * 32, b"x" * 32]),
            ),
            min_size=1,
            max_size=4,
            unique_by=lambda fields: fields[:2],  # nobody says two things in one confirmation
        ),
    ),
    min_size=1,
    max_size=6,
)


def _said(side: Side, node, fields) -> Confirm:
    records = [
        priced(record(number, node=node, attempt=attempt, answer_tokens=num, proof_hash=proof))
        for number, attempt, num, proof in fields
    ]
    return confirm(side, records)


def _by_root(said: Confirm) -> Confirm:
    """What a node says first; the root is signed either way."""
    return msgspec.structs.replace(said, records=b"") if said.side is Side.NODE else said


def _hear(connection: Connection, words: list[Confirm]) -> list[Confirm]:
    """Apply words together; those of which the records are wanted."""
    said = [Said(one, check_confirm(one, NETWORK, BLOCK_MS), START_MS) for one in words]
    answers = apply(connection, said)
    assert all(answer is None or isinstance(answer, Outcome) for answer in answers)
    return [one for one, answer in zip(words, answers, strict=True) if answer is None]


def _final(words: list[Confirm], *, roots_first: bool, at_once: int = 1) -> tuple[object, object]:
    """The states of all records and what is in all accounts, once all of it was said."""
    connection = connect(":memory:")
    migrate(connection)
    open_books(connection)
    for start in range(0, len(words), at_once):
        lot = words[start : start + at_once]
        if roots_first:
            wanted = {one.root for one in _hear(connection, [_by_root(one) for one in lot])}
            lot = [one for one in lot if one.side is Side.NODE and one.root in wanted]
        assert _hear(connection, lot) == []
    assert check_integrity(connection, NODES[0].raw).problems == ()
    assert verify_books(connection).problems == ()
    final = set(connection.execute("SELECT task_id, attempt, leaf, sides, state FROM task"))
    accounts = balances(connection)
    connection.close()
    return final, accounts


@given(
    _WORDS, st.randoms(use_true_random=False), st.integers(0, 3), st.booleans(), st.integers(1, 9)
)
def test_any_order_and_any_repetition_end_the_same(
    words, chance, repeats, roots_first, at_once
) -> None:
    """Both sides' words, honest or not, shuffled, repeated and heard together, end the same."""
    said = [_said(*word) for word in words]
    shuffled = said + chance.choices(said, k=repeats)
    chance.shuffle(shuffled)
    heard = _final(shuffled, roots_first=roots_first, at_once=at_once)
    assert heard == _final(said, roots_first=False)


@given(st.lists(st.integers(1, 30), min_size=1, unique=True), st.data(), st.booleans())
def test_honest_sides_always_match(numbers: list[int], data, roots_first: bool) -> None:
    """Two honest sides that cut the same records into different parts end with all matched."""
    words = []
    for side in Side:
        rest = data.draw(st.permutations(numbers))
        while rest:
            cut = data.draw(st.integers(1, len(rest)))
            words.append(confirm(side, [priced(record(number)) for number in rest[:cut]]))
            rest = rest[cut:]
    at_once = data.draw(st.integers(1, 9))
    shuffled = data.draw(st.permutations(words))
    final, accounts = _final(shuffled, roots_first=roots_first, at_once=at_once)
    assert len(final) == len(numbers)
    assert {row[-1] for row in final} == {Standing.MATCHED}
    charges = [priced(record(number)).charge_nano_usd for number in numbers]
    assert accounts[pending(NODES[0].raw)] == sum(one * NODE_BPS // 10_000 for one in charges)
    assert accounts[available(CUSTOMER)] == DEPOSIT - sum(charges)


def test_what_is_refused_among_others_leaves_nothing_but_them() -> None:
    """Heard together or one by one: who contradicts itself too often, a part, a count."""
    records = [priced(record(number)) for number in range(10, 10 + ATTEMPT_RECORDS_MAX + 2)]
    words = [
        confirm(Side.DISTRIBUTOR, [priced(record(1, answer_tokens=one.answer_tokens)), one])
        for one in records
    ]
    words += [confirm(Side.DISTRIBUTOR, [priced(record(number))], part=7) for number in (2, 3)]
    words += [confirm(Side.NODE, [priced(record(2))], by_root=True, part=7, **changes)
              for changes in ({"count": 2}, {})]  # fmt: skip
    ends = []
    for at_once in (1, len(words)):
        connection = connect(":memory:")
        migrate(connection)
        open_books(connection)
        said = [Said(one, check_confirm(one, NETWORK, BLOCK_MS), START_MS) for one in words]
        answers: list[object] = []
        for start in range(0, len(words), at_once):
            answers += apply(connection, said[start : start + at_once])
        assert [type(one) for one in answers[-6:]] == [
            *[Conflict] * 2, Outcome, Conflict, MalformedFrame, Outcome
        ]  # fmt: skip
        done = {one.root: a for one, a in zip(words, answers, strict=True) if type(a) is Outcome}
        assert {root for (root,) in connection.execute("SELECT root FROM confirm")} == set(done)
        ends.append((done, _states(connection), balances(connection)))
        connection.close()
    assert ends[0] == ends[1]


def test_when_a_distributor_was_last_heard_is_read_from_an_index() -> None:
    """What `decide_due` asks for each distributor walks past no confirmation and no blob."""
    connection = connect(":memory:")
    migrate(connection)
    plan = [row[-1] for row in connection.execute("EXPLAIN QUERY PLAN " + LAST_HEARD, (b"d" * 32,))]
    connection.close()
    assert plan == ["SEARCH confirm USING COVERING INDEX confirm_heard (signer=?)"]


class _Counting:
    """A connection that counts the rows that are read."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.num_rows = self.num_statements = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def execute(self, *arguments: Any) -> Iterator[tuple[Any, ...]]:
        found = list(self._connection.execute(*arguments))
        self.num_rows += len(found)
        self.num_statements += 1
        return iter(found)

    def executemany(self, *arguments: Any) -> None:
        self._connection.executemany(*arguments)
        self.num_statements += 1


@pytest.mark.parametrize("by_root", [False, True])
def test_what_is_said_together_shares_statements(by_root: bool) -> None:
    """Sixty confirmations of a record each, and their payment, take as many as eight do."""
    numbers = []
    for first, count in ((1, 8), (100, 60)):
        connection = connect(":memory:")
        migrate(connection)
        open_books(connection)
        records = [priced(record(number)) for number in range(first, first + count)]
        counting = _Counting(connection)
        for side in (Side.DISTRIBUTOR, Side.NODE):
            said = [confirm(side, [one]) for one in records]
            said = [_by_root(one) for one in said] if by_root else said
            assert _hear(counting, said) == []
        states = {state for (state,) in connection.execute("SELECT state FROM task")}
        connection.close()
        assert states == {Standing.MATCHED}
        numbers.append(counting.num_statements)
    assert numbers[0] == numbers[1]


def test_a_tasks_many_attempts_do_not_slow_down_the_next() -> None:
    """What is read for a record does not grow with what was said of the task's other attempts."""
    connection = connect(":memory:")
    migrate(connection)
    open_books(connection)
    read = []
    for first in range(0, 1000, 200):
        said = confirm(Side.NODE, [record(1, attempt=first + num) for num in range(200)])
        counting = _Counting(connection)
        apply(counting, [Said(said, check_confirm(said, NETWORK, BLOCK_MS), START_MS)])
        read.append(counting.num_rows)
    connection.close()
    assert len(set(read)) == 1


@pytest.mark.anyio
async def test_a_root_matches_all_at_once(confirmations: Confirmations, store: Store) -> None:
    """A node that says the root its distributor said has said all of its records."""
    await store.write(open_books)
    records = [record(number) for number in range(1, 50)]
    root = confirm(Side.NODE, records, by_root=True)
    answer, outcome = await confirmations.handle(NODES[0].party, root)
    assert (answer.ok, answer.code, outcome) == (False, RECORDS_WANTED, Outcome())
    assert await store.read(_states) == {}
    await confirmations.handle(DISTRIBUTOR.party, confirm(Side.DISTRIBUTOR, records))
    for expected in (Outcome(matched=len(records)), Outcome()):
        answer, outcome = await confirmations.handle(NODES[0].party, root)
        assert (answer, outcome) == (Acknowledged(ok=True), expected)
    assert set((await store.read(_states)).values()) == {"MATCHED"}
    integrity = await store.read(lambda connection: check_integrity(connection, NODES[0].raw))
    assert integrity.problems == ()


@pytest.mark.anyio
async def test_a_root_cannot_count_otherwise(confirmations: Confirmations) -> None:
    """Under the same root there is one number of records and one sum."""
    records = [record(1), record(2)]
    await confirmations.handle(DISTRIBUTOR.party, confirm(Side.DISTRIBUTOR, records))
    for changes in ({"count": 3}, {"charge_nano_usd": 1}):
        said = confirm(Side.NODE, records, by_root=True, **changes)
        with pytest.raises(MalformedFrame):
            await confirmations.handle(NODES[0].party, said)
