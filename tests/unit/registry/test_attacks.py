"""Lies about tasks: none is accepted as truth, none is paid, none brings the registry down."""

from __future__ import annotations

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
    StarAIError,
)
from starai.core.limits import ATTEMPT_RECORDS_MAX
from starai.core.randomness import SeededRandomness
from starai.ledger.accounts import available, pending
from starai.ledger.reconciling import Standing
from starai.protocol.frames import decode, encode
from starai.protocol.identity import Identity
from starai.protocol.records import TaskRecord
from starai.protocol.registry import RECORDS_WANTED, Confirm, Side
from starai.protocol.subjects import Role
from starai.registry.integrity import check_integrity
from starai.registry.money.books import verify_books
from starai.registry.parties import Parties
from starai.registry.reconciling.checking import check_confirm
from starai.registry.reconciling.confirmations import Confirmations
from starai.registry.storage import Store, open_store
from starai.testing.money import CUSTOMER, DEPOSIT, NODE_BPS, balances, open_books, priced
from starai.testing.records import (
    BLOCK_MS,
    DISTRIBUTOR,
    NETWORK,
    NODES,
    START_MS,
    confirm,
    record,
)

ROTATED = Identity.create(SeededRandomness(91))
OTHER = Identity.create(SeededRandomness(92))
ROLES = {
    DISTRIBUTOR.party: Role.DISTRIBUTOR,
    OTHER.party: Role.DISTRIBUTOR,
    ROTATED.party: Role.NODE,
    **{node.party: Role.NODE for node in NODES},
}
NODE, ACCOMPLICE = NODES[:2]
TASK = priced(record(1))
HONEST = confirm(Side.NODE, [TASK], NODE)
DAY_MS = 86_400_000


class Scene:
    """A registry with money, all of whose parties may lie."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.confirmations = Confirmations(
            store, Parties(store, ROLES), NETWORK, BLOCK_MS, SystemClock()
        )

    async def says(self, side: Side, signer: Identity, *records: TaskRecord, **changes) -> None:
        said = confirm(side, records, signer, **changes)
        await self.confirmations.handle(signer.party, said)

    async def states(self) -> list[str]:
        found = await self.store.read(
            lambda connection: list(connection.execute("SELECT state FROM task ORDER BY seq"))
        )
        return [Standing(state).name for (state,) in found]

    async def paid(self) -> int:
        """What the customer has paid."""
        return DEPOSIT - (await self.store.read(balances))[available(CUSTOMER)]

    async def earned(self, node: Identity) -> int:
        return (await self.store.read(balances)).get(pending(node.raw), 0)


@pytest.fixture
async def scene(database: Path | str):
    async with open_store(database, inline=True) as store:
        await store.write(open_books)
        made = Scene(store)
        yield made
        assert (await store.read(verify_books)).problems == ()
        found = await store.read(lambda connection: check_integrity(connection, NODE.raw))
        assert found.problems == ()


@pytest.mark.anyio
async def test_a_replayed_receipt_pays_once(scene: Scene) -> None:
    """The same words again, today or tomorrow, whole or by their root, change nothing."""
    for _ in range(3):
        for side, signer in ((Side.DISTRIBUTOR, DISTRIBUTOR), (Side.NODE, NODE)):
            await scene.says(side, signer, TASK)
            await scene.says(side, signer, TASK, part=77)
        await scene.says(Side.NODE, NODE, TASK, by_root=True)
    assert await scene.paid() == TASK.charge_nano_usd


@pytest.mark.anyio
async def test_nobody_speaks_for_another(scene: Scene) -> None:
    """Somebody else's confirmation, sent on, is refused, and so is one for another network."""
    for sender in (ACCOMPLICE, DISTRIBUTOR, ROTATED):
        with pytest.raises(PartyRefused):
            await scene.confirmations.handle(sender.party, HONEST)
    elsewhere = confirm(Side.NODE, [TASK], NODE, network="elsewhere")
    with pytest.raises(ConfigurationRefused):
        await scene.confirmations.handle(NODE.party, elsewhere)
    relabelled = msgspec.structs.replace(elsewhere, network=NETWORK)
    with pytest.raises(SealBroken):
        await scene.confirmations.handle(NODE.party, relabelled)
    assert await scene.states() == []


@pytest.mark.anyio
async def test_a_node_earns_nothing_by_what_it_alone_says(scene: Scene) -> None:
    """Tasks that were never given to it, more tokens than were read, another's work: no money."""
    await scene.says(Side.NODE, NODE, priced(record(9)))
    more = priced(msgspec.structs.replace(TASK, answer_tokens=4_000_000_000))
    await scene.says(Side.NODE, NODE, more)
    await scene.says(Side.DISTRIBUTOR, DISTRIBUTOR, TASK)
    theirs = priced(record(2, node=ACCOMPLICE))
    await scene.says(Side.NODE, NODE, priced(record(2)))
    await scene.says(Side.DISTRIBUTOR, DISTRIBUTOR, theirs)
    await scene.says(Side.NODE, ACCOMPLICE, theirs)
    assert await scene.states() == ["NODE_ONLY", "AMOUNT", "AMOUNT", "WRONG_NODE", "MATCHED"]
    assert await scene.earned(NODE) == TASK.charge_nano_usd * NODE_BPS // 10_000
    assert await scene.paid() == TASK.charge_nano_usd + theirs.charge_nano_usd


@pytest.mark.anyio
async def test_a_distributor_pays_nobody_by_what_it_alone_says(scene: Scene) -> None:
    """It cannot lower what was agreed, raise what a node says, or pay a friend at once."""
    await scene.says(Side.NODE, NODE, TASK)
    await scene.says(Side.DISTRIBUTOR, DISTRIBUTOR, TASK)
    less = priced(msgspec.structs.replace(TASK, answer_tokens=1))
    await scene.says(Side.DISTRIBUTOR, DISTRIBUTOR, less)
    more = priced(record(2, answer_tokens=10_000))
    await scene.says(Side.NODE, NODE, priced(record(2)))
    await scene.says(Side.DISTRIBUTOR, DISTRIBUTOR, more)
    await scene.says(Side.DISTRIBUTOR, DISTRIBUTOR, priced(record(3, node=ACCOMPLICE)))
    assert await scene.states() == ["MATCHED", "DUP", "AMOUNT", "AMOUNT", "DIST_ONLY"]
    assert await scene.paid() == TASK.charge_nano_usd + priced(record(2)).charge_nano_usd
    assert await scene.earned(ACCOMPLICE) == 0


@pytest.mark.anyio
@pytest.mark.parametrize("side", list(Side))
async def test_a_flood_of_versions_of_one_attempt_is_refused(scene: Scene, side: Side) -> None:
    """A few contradictions are kept, then no more: the truth still agrees, and others go on."""
    lies = [
        msgspec.structs.replace(TASK, answer_hash=number.to_bytes(32, "big"))
        for number in range(ATTEMPT_RECORDS_MAX + 1)
    ]
    liar, partner = (NODE, DISTRIBUTOR) if side is Side.NODE else (DISTRIBUTOR, NODE)
    for lie in lies[:-1]:
        await scene.says(side, liar, lie)
    for said in ([lies[-1]], [lies[-1], priced(record(2))]):
        with pytest.raises(Conflict):
            await scene.says(side, liar, *said)
    assert await scene.states() == ["DUP"] * ATTEMPT_RECORDS_MAX
    await scene.says(Side.NODE if side is Side.DISTRIBUTOR else Side.DISTRIBUTOR, partner, TASK)
    await scene.says(side, liar, TASK)
    await scene.says(side, liar, priced(record(2)))
    assert (await scene.states())[-2:] == ["MATCHED", Standing(int(side)).name]
    assert await scene.paid() == TASK.charge_nano_usd


@pytest.mark.anyio
async def test_one_attempt_given_to_two_nodes_is_paid_to_neither(scene: Scene) -> None:
    """An equivocating distributor is found out by its own signatures, whatever came first."""
    for node in (NODE, ACCOMPLICE):
        one = priced(record(1, node=node))
        await scene.says(Side.DISTRIBUTOR, DISTRIBUTOR, one)
        await scene.says(Side.NODE, node, one)
    assert await scene.states() == ["DUP", "DUP"]
    assert await scene.paid() == 0


@pytest.mark.anyio
async def test_another_distributor_cannot_contest_an_attempt(scene: Scene) -> None:
    """A rival's word about the same attempt, with or without an accomplice, unpays nobody."""
    await scene.says(Side.NODE, NODE, TASK)
    rival = priced(record(1, node=ACCOMPLICE, distributor=OTHER.raw))
    await scene.says(Side.DISTRIBUTOR, OTHER, rival)
    await scene.says(Side.DISTRIBUTOR, DISTRIBUTOR, TASK)
    assert await scene.states() == ["MATCHED", "DIST_ONLY"]
    assert await scene.earned(NODE) == TASK.charge_nano_usd * NODE_BPS // 10_000


@pytest.mark.anyio
async def test_both_sides_together_get_no_more_than_the_price(scene: Scene) -> None:
    """What two conspirators agree on is charged by the table, and without a row not at all."""
    dear = msgspec.structs.replace(TASK, charge_nano_usd=10**11)
    unpriced = msgspec.structs.replace(priced(record(2)), price_id=99)
    stranger = msgspec.structs.replace(priced(record(3)), customer=12345)
    for side, signer in ((Side.DISTRIBUTOR, DISTRIBUTOR), (Side.NODE, NODE)):
        await scene.says(side, signer, dear, unpriced, stranger)
    assert await scene.states() == ["MATCHED"] * 3
    assert await scene.paid() == TASK.charge_nano_usd


@pytest.mark.anyio
async def test_a_key_that_is_rotated_in_mid_block_keeps_its_own(scene: Scene) -> None:
    """The old key's records are the old key's: the new one cannot say them, and both are paid."""
    old, new = priced(record(1)), priced(record(2, node=ROTATED))
    await scene.says(Side.DISTRIBUTOR, DISTRIBUTOR, old)
    await scene.says(Side.DISTRIBUTOR, DISTRIBUTOR, new)
    for lie in (
        confirm(Side.NODE, [old], ROTATED),
        confirm(Side.NODE, [old], ROTATED, node=ROTATED.party),
    ):
        with pytest.raises(StarAIError):
            await scene.confirmations.handle(ROTATED.party, lie)
    await scene.says(Side.NODE, ROTATED, new, by_root=True)
    await scene.says(Side.NODE, NODE, old)
    assert await scene.states() == ["MATCHED", "MATCHED"]


@pytest.mark.anyio
@pytest.mark.parametrize("skew_ms", [-DAY_MS, DAY_MS, 10 * 365 * DAY_MS])
async def test_a_wrong_clock_costs_nobody_anything(scene: Scene, skew_ms: int) -> None:
    """Times are the distributor's; both sides say the same, so they match in whatever slot."""
    skewed = priced(record(1, offered_ms=START_MS + skew_ms, closed_ms=START_MS + skew_ms + 5))
    for side, signer in ((Side.DISTRIBUTOR, DISTRIBUTOR), (Side.NODE, NODE)):
        await scene.says(side, signer, skewed)
    assert await scene.states() == ["MATCHED"]


@pytest.mark.anyio
async def test_a_root_alone_says_nothing_new(scene: Scene) -> None:
    """A node cannot have unknown records booked by signing a root, nor another pair's."""
    await scene.says(Side.DISTRIBUTOR, DISTRIBUTOR, TASK)
    for lie in (
        confirm(Side.NODE, [priced(record(5))], NODE, by_root=True),
        confirm(Side.NODE, [TASK], ACCOMPLICE, by_root=True, node=ACCOMPLICE.party),
        confirm(Side.NODE, [TASK], NODE, by_root=True, distributor=OTHER.party),
    ):
        answer, _ = await scene.confirmations.handle(lie.signer, lie)
        assert (answer.ok, answer.code) == (False, RECORDS_WANTED)
    assert await scene.states() == ["DIST_ONLY"]


def test_a_confirmation_holds_an_attempt_once() -> None:
    """Two versions of one attempt in one confirmation are no honest party's: nothing is kept."""
    other = msgspec.structs.replace(TASK, answer_hash=b"x" * 32)
    with pytest.raises(MalformedFrame, match="two records of one attempt"):
        check_confirm(confirm(Side.NODE, [TASK, other], NODE), NETWORK, BLOCK_MS)


_FIELDS = {
    "network": st.text(max_size=20),
    "block": st.integers(),
    "part": st.integers(),
    "side": st.sampled_from(list(Side)),
    "node": st.one_of(st.text(max_size=60), st.sampled_from([one.party for one in NODES])),
    "distributor": st.one_of(st.text(max_size=60), st.just(DISTRIBUTOR.party)),
    "count": st.integers(),
    "charge_nano_usd": st.integers(),
    "root": st.binary(max_size=40),
    "signature": st.binary(max_size=70),
    "records": st.binary(max_size=600),
}


@given(st.fixed_dictionaries({}, optional=_FIELDS))
def test_no_changed_field_is_accepted(changes: dict[str, object]) -> None:
    """Whatever is changed in a signed confirmation, it is refused as one of ours would be."""
    said = msgspec.structs.replace(HONEST, **changes)
    if said in {HONEST, msgspec.structs.replace(HONEST, records=b"")}:
        return
    with pytest.raises(StarAIError):
        check_confirm(said, NETWORK, BLOCK_MS)


@given(st.integers(0, len(encode(HONEST)) - 1), st.integers(1, 255))
def test_no_changed_byte_is_accepted(place: int, flip: int) -> None:
    """One changed byte of the frame is either no message any more or no sound confirmation."""
    frame = bytearray(encode(HONEST))
    frame[place] ^= flip
    with pytest.raises(StarAIError):
        check_confirm(decode(bytes(frame), Confirm), NETWORK, BLOCK_MS)


@given(st.binary(max_size=400))
def test_hostile_bytes_are_no_records(data: bytes) -> None:
    """Bytes that are signed properly are still no records, of whatever length."""
    for records in (data, HONEST.records[:8] + data, HONEST.records + data[:264]):
        said = msgspec.structs.replace(HONEST, records=records, count=max(1, len(records) // 264))
        said = msgspec.structs.replace(said, signature=NODE.sign(said.signed_bytes()))
        if records in {b"", HONEST.records}:
            continue
        with pytest.raises((MalformedFrame, SealBroken, ConfigurationRefused)):
            check_confirm(said, NETWORK, BLOCK_MS)
