"""Confirmations: refused unless they hold, kept once, matched whatever their order."""

from __future__ import annotations

import itertools
from pathlib import Path

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
from starai.core.limits import CONFIRM_RECORDS_MAX
from starai.protocol.frames import decode, encode
from starai.protocol.registry import Acknowledged, Confirm, Side
from starai.protocol.subjects import Role
from starai.registry.confirmations import Confirmations, check_confirm
from starai.registry.integrity import check_integrity
from starai.registry.parties import Parties
from starai.registry.schema import bind_network
from starai.registry.storage import Connection, Store, open_store
from starai.registry.storage.sqlite import connect, migrate
from starai.registry.tasks import State, apply, judge
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


def _states(connection: Connection) -> dict[tuple[int, int, int], str]:
    return {
        (int.from_bytes(task_id), attempt, out_tok): State(state).name
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
    assert await store.read(_states) == {(1, 0, 21): "CONTENT", (1, 0, 5): "CONTENT"}
    await confirmations.handle(DISTRIBUTOR.party, confirm(Side.DISTRIBUTOR, [record(1)]))
    assert await store.read(_states) == {(1, 0, 21): "MATCHED", (1, 0, 5): "CONFLICT"}


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
        ("no records", confirm(Side.NODE, [record(1)], records=b""), MalformedFrame),
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
        ("other node", confirm(Side.NODE, [record(1)], node=NODES[1].party), MalformedFrame),
        (
            "other distributor",
            confirm(Side.DISTRIBUTOR, [record(1, distributor=STRANGER.raw)]),
            MalformedFrame,
        ),
        ("mixed nodes", confirm(Side.DISTRIBUTOR, mixed), MalformedFrame),
        ("huge", confirm(Side.NODE, [record(1, customer=1 << 63)]), MalformedFrame),
        ("negative", swap(good, block=-1), MalformedFrame),
        ("no party", swap(good, signer="nobody"), MalformedFrame),
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


@given(st.lists(st.integers(1, 3), min_size=1, max_size=4))
def test_judgement_is_symmetric(sides: list[int]) -> None:
    """The standing of a record does not depend on the order in which records are looked at."""
    judged = sorted(zip(sides, judge(sides), strict=True))
    for order in itertools.permutations(sides):
        assert sorted(zip(order, judge(order), strict=True)) == judged


_WORDS = st.lists(
    st.tuples(
        st.sampled_from(list(Side)),
        st.lists(
            st.builds(
                lambda number, attempt, tokens: record(
                    number, attempt=attempt, answer_tokens=tokens, closed_ms=START_MS + number
                ),
                st.integers(1, 3),
                st.integers(0, 1),
                st.integers(1, 2),
            ),
            min_size=1,
            max_size=4,
            unique_by=lambda made: made.canonical(),
        ),
    ),
    min_size=1,
    max_size=6,
)


def _final(words: list[Confirm]) -> set[tuple[object, ...]]:
    connection = connect(":memory:")
    migrate(connection)
    bind_network(connection, NETWORK, BLOCK_MS)
    for said in words:
        apply(connection, said, check_confirm(said, NETWORK, BLOCK_MS), START_MS)
    report = check_integrity(connection)
    assert report.problems == ()
    final = set(connection.execute("SELECT task_id, attempt, leaf, sides, state FROM task"))
    connection.close()
    return final


@given(_WORDS, st.randoms(use_true_random=False), st.integers(0, 3))
def test_any_order_and_any_repetition_end_the_same(words, chance, repeats) -> None:
    """Both sides' words, honest or not, shuffled and repeated, leave the same state."""
    said = [confirm(side, records) for side, records in words]
    shuffled = said + chance.choices(said, k=repeats)
    chance.shuffle(shuffled)
    assert _final(shuffled) == _final(said)


@given(st.lists(st.integers(1, 30), min_size=1, unique=True), st.data())
def test_honest_sides_always_match(numbers: list[int], data) -> None:
    """Two honest sides that cut the same records into different parts end with all matched."""
    words = []
    for side in Side:
        rest = data.draw(st.permutations(numbers))
        while rest:
            cut = data.draw(st.integers(1, len(rest)))
            words.append(confirm(side, [record(number) for number in rest[:cut]]))
            rest = rest[cut:]
    final = _final(data.draw(st.permutations(words)))
    assert len(final) == len(numbers)
    assert {row[-1] for row in final} == {State.MATCHED}
