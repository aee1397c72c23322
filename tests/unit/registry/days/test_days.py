"""Days: cut at midnight, built the same every time, checked apart, signed; whatever goes wrong."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import anyio
import msgspec
import pytest

from starai.core.errors import ConfigurationRefused, Conflict, InternalFault
from starai.ledger.events import Corrected, Refunded, event_id
from starai.protocol.identity import verify
from starai.registry.days import closing
from starai.registry.days.building import build, keep
from starai.registry.days.closing import (
    CHECK_DEADLINE_ROW_S,
    CHECK_DEADLINE_S,
    LOOK_EVERY_S,
    REST_MAX_S,
    Closing,
    Days,
    Patience,
    check_deadline_s,
)
from starai.registry.days.epochs import (
    DayTerms,
    EpochState,
    advance_state,
    cut,
    epochs,
    get_epoch,
    leaves_at,
    sums_at,
)
from starai.registry.days.export import export_all
from starai.registry.days.maturing import due
from starai.registry.days.settling import Settlement
from starai.registry.money.books import apply_event
from starai.registry.storage import Store, open_store
from starai.registry.storage.base import Connection
from starai.settlement.leaves import LeafKind
from starai.settlement.manifest import signed_bytes, split_signature
from starai.testing.closing import ACCOUNT, DAY_MS, FIRST_DAY_MS, NETWORK, PaidNetwork, address

HOUR_MS = 3_600_000
MATURITY_MS = 6 * HOUR_MS
TERMS = DayTerms(network=NETWORK, chain_id=31_337, contract=b"\x07" * 20, maturity_ms=MATURITY_MS)


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.ms = FIRST_DAY_MS
        self.ahead_ms = 0

    def now_ms(self) -> int:
        return self.ms + self.ahead_ms

    def monotonic_s(self) -> float:
        return self.ms / 1000


@dataclass
class World:
    """A registry whose days are closed, and the time in it."""

    store: Store
    days: Days
    clock: Clock
    network: PaidNetwork
    exports: Path

    async def do(self, work) -> object:
        """Write something."""
        return await self.store.write(work)

    async def work_at(self, ms: int, **how) -> None:
        """Paid work at a time, and the block over it."""
        self.clock.ms = ms

        def work(connection: Connection) -> None:
            self.network.connection = connection
            self.network.work(2, ms, **how)
            self.network.close_block(ms)

        await self.store.write(work)

    async def epochs(self):
        """The closed days."""
        return await self.store.read(epochs)


@pytest.fixture
async def world(database: Path | str, tmp_path: Path) -> AsyncIterator[World]:
    async with open_store(database, inline=True) as store:
        clock = Clock()
        networks = []

        def begin(connection: Connection) -> None:
            network = PaidNetwork(connection)
            for number in range(3):
                network.bind(number, address(number), FIRST_DAY_MS)
            networks.append(network)

        await store.write(begin)

        async def close_block() -> None:
            await store.write(lambda connection: _close(networks[0], connection, clock.ms))

        exports = tmp_path / "exports"
        days = Days(store, ACCOUNT, TERMS, clock, exports, close_block)
        yield World(store, days, clock, networks[0], exports)


def _close(network: PaidNetwork, connection: Connection, ms: int) -> None:
    network.connection = connection
    network.close_block(ms)


def verified(folder: Path) -> str:
    """The head that the verifier comes to, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "starai.verifier", str(folder)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()[-1].removeprefix("head ")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of an export."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.anyio
async def test_two_days_from_work_to_signatures(world: World) -> None:
    """Work is paid, matures, is placed at addresses, and each day is signed."""
    await world.work_at(FIRST_DAY_MS + HOUR_MS)
    world.clock.ms = FIRST_DAY_MS + 8 * HOUR_MS
    assert await world.days.mature() == 4
    await world.work_at(FIRST_DAY_MS + 9 * HOUR_MS)
    assert await world.days.close() == Closing(None)  # the first day is not over
    world.clock.ms = FIRST_DAY_MS + DAY_MS + 1
    closing = await world.days.close()
    assert closing.epoch is not None
    assert closing.epoch.state is EpochState.SIGNED
    await world.days.mature()
    await world.work_at(FIRST_DAY_MS + DAY_MS + HOUR_MS)
    world.clock.ms = FIRST_DAY_MS + 2 * DAY_MS
    second = (await world.days.close()).epoch
    assert second is not None
    first, second_facts = closing.epoch.parsed(), second.parsed()
    assert (first.from_block, first.to_block) == (0, 1)
    assert second_facts.from_block == 2
    assert second_facts.previous_head == first.head()
    assert second_facts.earned_units >= first.earned_units > 0
    text, signature = split_signature(second.manifest)
    verify(ACCOUNT.nkey, signed_bytes(text), signature, ACCOUNT.kind)
    assert verified(world.exports) == second_facts.head().hex()


@pytest.mark.anyio
async def test_what_a_leaf_says_is_what_matured(world: World) -> None:
    """Leaves hold what matured by the cut; a node without an address waits in the manifest."""
    await world.work_at(FIRST_DAY_MS)
    world.clock.ms = FIRST_DAY_MS + MATURITY_MS
    epoch = (await world.days.close(at_once=True)).epoch
    assert epoch is not None

    def look(connection: Connection):
        rows = connection.execute(
            "SELECT owner, credits FROM account WHERE kind = 'node.payable' ORDER BY owner"
        )
        return dict(rows), leaves_at(connection, 1), sums_at(connection, 1)

    payable, leaves, sums = await world.store.read(look)
    earned = {leaf.address: leaf.units for leaf in leaves if leaf.kind is LeafKind.EARNED}
    bound = {number: payable[world.network.nodes[number].raw] for number in range(3)}
    assert earned == {address(number): nano // 1000 for number, nano in bound.items()}
    facts = epoch.parsed()
    assert facts.unplaced_nano == payable[world.network.nodes[3].raw] > 0
    assert facts.dust_nano == sum(nano % 1000 for nano in bound.values())
    assert sum(n for at, n in sums.items() if at.kind is LeafKind.EARNED and not at.address) == sum(
        payable.values()
    )


@pytest.mark.anyio
async def test_nothing_matures_before_its_time(world: World) -> None:
    """A block's earnings mature when the block is old enough, not a millisecond before."""
    await world.work_at(FIRST_DAY_MS)
    await world.work_at(FIRST_DAY_MS + HOUR_MS, nodes=[0])
    world.clock.ms = FIRST_DAY_MS + MATURITY_MS - 1
    assert await world.days.mature() == 0
    world.clock.ms += 1
    assert await world.days.mature() == 4
    assert await world.days.mature() == 0
    world.clock.ms = FIRST_DAY_MS + HOUR_MS + MATURITY_MS
    assert await world.days.mature() == 1


@pytest.mark.anyio
async def test_a_clock_that_jumps_ahead_lets_nothing_mature(world: World) -> None:
    """No money matures and no day is cut by a clock alone; the same by the time that passed is."""
    await world.work_at(FIRST_DAY_MS)
    world.clock.ahead_ms = 3 * DAY_MS
    for call in (world.days.mature, world.days.close, partial(world.days.close, at_once=True)):
        with pytest.raises(InternalFault, match="jumped"):
            await call()
    assert await world.epochs() == []
    world.clock.ahead_ms = 0
    assert await world.days.mature() == 0
    world.clock.ms += MATURITY_MS
    assert await world.days.mature() == 4


@pytest.mark.anyio
async def test_a_clock_that_jumps_is_believed_if_a_record_says_the_same(world: World) -> None:
    """A machine that slept for days goes on once anybody's work says how late it is."""
    await world.work_at(FIRST_DAY_MS)
    world.clock.ahead_ms = 3 * DAY_MS
    now_ms = world.clock.now_ms()
    with pytest.raises(InternalFault, match="go on using the network"):
        await world.days.mature()
    await world.do(
        lambda connection: connection.execute(
            "UPDATE task SET closed_ms = ? WHERE seq = (SELECT MAX(seq) FROM task)", (now_ms,)
        )
    )
    assert await world.days.mature() == 4
    assert await world.days.mature() == 0


@pytest.mark.anyio
async def test_what_was_refunded_does_not_mature(world: World) -> None:
    """A refund counts against what is oldest, so a node never gets both."""
    await world.work_at(FIRST_DAY_MS)
    node = world.network.nodes[0].raw
    refund = Refunded(
        event_id=event_id(b"refund"),
        at_ms=FIRST_DAY_MS,
        customer=1,
        node=node,
        from_pending=1000,
        ref=b"it was wrong",
    )
    before = await world.store.read(
        lambda connection: due(connection, FIRST_DAY_MS + MATURITY_MS, MATURITY_MS)
    )
    await world.do(lambda connection: apply_event(connection, refund))
    after = await world.store.read(
        lambda connection: due(connection, FIRST_DAY_MS + MATURITY_MS, MATURITY_MS)
    )
    amounts = {one.node: one.amount for one in before}
    assert {one.node: one.amount for one in after} == {**amounts, node: amounts[node] - 1000}


@pytest.mark.anyio
async def test_the_cut_is_the_last_block_before_midnight(world: World) -> None:
    """A block closed at midnight belongs to the next day; days that were missed are one."""
    for ms in (HOUR_MS, DAY_MS - 1, DAY_MS, DAY_MS + HOUR_MS):
        await world.work_at(FIRST_DAY_MS + ms)
    world.clock.ms = FIRST_DAY_MS + DAY_MS + 2 * HOUR_MS
    await world.days.close()
    world.clock.ms = FIRST_DAY_MS + 5 * DAY_MS  # nobody was there for days
    await world.days.close()
    assert await world.days.close() == Closing(None)
    spans = [(one.from_block, one.to_block, one.state) for one in await world.epochs()]
    assert spans == [(0, 1, EpochState.SIGNED), (2, 3, EpochState.SIGNED)]


@pytest.mark.anyio
async def test_a_day_without_work_changes_no_leaf(world: World) -> None:
    """A day whose only block has a deposit in it is closed; without any block there is no day."""
    await world.work_at(FIRST_DAY_MS)
    world.clock.ms = FIRST_DAY_MS + MATURITY_MS
    first = (await world.days.close(at_once=True)).epoch
    assert first is not None
    assert (await world.days.close(at_once=True)).epoch is None
    world.clock.ms += HOUR_MS

    def deposit(connection: Connection) -> None:
        world.network.connection = connection
        world.network.hold(1, b"idle", 5000, world.clock.ms)
        world.network.close_block(world.clock.ms)

    await world.do(deposit)
    second = (await world.days.close(at_once=True)).epoch
    assert second is not None
    assert second.parsed().root == first.parsed().root
    assert second.parsed().leaves_sha256 == first.parsed().leaves_sha256
    assert verified(world.exports) == second.parsed().head().hex()


@pytest.mark.anyio
async def test_the_same_again_is_the_same_bytes(world: World, tmp_path: Path) -> None:
    """A day built, or exported, once more gives the same bytes, though the books went on."""
    await world.work_at(FIRST_DAY_MS)
    world.clock.ms = FIRST_DAY_MS + MATURITY_MS
    epoch = (await world.days.close(at_once=True)).epoch
    assert epoch is not None
    await world.work_at(FIRST_DAY_MS + 7 * HOUR_MS)
    await world.do(
        lambda connection: connection.execute(
            "UPDATE customer SET address = ? WHERE id = 1", (address(99),)
        )
    )
    await world.do(lambda connection: _bind(world, connection, 0, world.clock.ms))
    again = await world.store.read(lambda connection: build(connection, epoch, TERMS))
    assert again.manifest.text() == split_signature(epoch.manifest)[0]
    other = tmp_path / "other"
    await world.store.read(lambda connection: export_all(connection, other, ACCOUNT.raw))
    assert contents(other / "day-000001") == contents(world.exports / "day-000001")


def _bind(world: World, connection: Connection, number: int, ms: int) -> None:
    world.network.connection = connection
    world.network.bind(number, address(50), ms)


@pytest.mark.anyio
async def test_a_crash_at_any_step_is_made_good(world: World) -> None:
    """From whatever state a crash left a day in, the next call brings it to the same end."""
    await world.work_at(FIRST_DAY_MS)
    world.clock.ms = FIRST_DAY_MS + DAY_MS
    steps = [
        lambda connection: cut(connection, world.clock.ms),
        lambda connection: keep(connection, build(connection, get_epoch(connection, 1), TERMS)),
        lambda connection: advance_state(connection, 1, EpochState.BUILT, EpochState.CHECKED),
    ]
    ends = set()
    for num_steps in range(len(steps) + 1):
        for step in steps[:num_steps]:
            await world.do(step)
        epoch = (await world.days.close()).epoch
        assert epoch is not None
        assert epoch.state is EpochState.SIGNED
        ends.add(epoch.manifest)
        await world.do(lambda connection: connection.execute("DELETE FROM leaf"))
        await world.do(lambda connection: connection.execute("DELETE FROM epoch"))
    assert len(ends) == 1


@pytest.mark.anyio
async def test_a_step_is_taken_once(world: World) -> None:
    """A day that is built is not built again, and no state is skipped."""
    await world.work_at(FIRST_DAY_MS)
    epoch = await world.do(lambda connection: cut(connection, FIRST_DAY_MS + 1))
    assert await world.do(lambda connection: cut(connection, FIRST_DAY_MS + DAY_MS)) == epoch
    built = await world.store.read(
        lambda connection: build(connection, get_epoch(connection, 1), TERMS)
    )
    await world.do(lambda connection: keep(connection, built))
    with pytest.raises(Conflict):
        await world.do(lambda connection: keep(connection, built))
    with pytest.raises(Conflict):
        await world.do(
            lambda connection: advance_state(connection, 1, EpochState.CHECKED, EpochState.SIGNED)
        )


@pytest.mark.anyio
async def test_a_row_edited_by_hand_stops_the_day(world: World) -> None:
    """What an operator changed in the database is not signed."""
    await world.work_at(FIRST_DAY_MS)
    world.clock.ms = FIRST_DAY_MS + DAY_MS
    await world.do(
        lambda connection: connection.execute(
            "UPDATE transfer SET amount = amount + 1 WHERE code = 'capture' AND seq ="
            " (SELECT MIN(seq) FROM transfer WHERE code = 'capture')"
        )
    )
    closing = await world.days.close()
    assert closing.epoch is not None
    assert closing.epoch.state is EpochState.BUILT
    assert "more than its share" in closing.stopped
    assert (await world.days.close(accept=True)).stopped  # nor can it be accepted


@pytest.mark.anyio
async def test_what_a_failed_check_left_is_written_anew(world: World) -> None:
    """A folder that an earlier try left is not what the next one has checked."""
    await world.work_at(FIRST_DAY_MS)
    world.clock.ms = FIRST_DAY_MS + DAY_MS
    await world.do(lambda connection: cut(connection, world.clock.ms))
    await world.do(
        lambda connection: keep(connection, build(connection, get_epoch(connection, 1), TERMS))
    )
    await world.store.read(lambda c: export_all(c, world.exports, ACCOUNT.raw))
    (world.exports / "day-000001" / "paid.bin").write_bytes(b"")
    closing = await world.days.close()
    assert closing.stopped == ""


@pytest.mark.anyio
async def test_a_day_is_checked_from_where_the_last_one_ended(world: World) -> None:
    """What was checked is not read again, until what was kept of it is gone."""
    await world.work_at(FIRST_DAY_MS)
    world.clock.ms = FIRST_DAY_MS + DAY_MS
    assert (await world.days.close()).stopped == ""
    kept = world.exports.with_name("exports.checked")
    before = kept.read_bytes()
    (world.exports / "day-000001" / "tasks.bin").write_bytes(b"")
    await world.work_at(FIRST_DAY_MS + DAY_MS + HOUR_MS)
    world.clock.ms = FIRST_DAY_MS + 2 * DAY_MS
    assert (await world.days.close()).stopped == ""
    assert kept.read_bytes() != before
    await world.work_at(FIRST_DAY_MS + 2 * DAY_MS + HOUR_MS)
    world.clock.ms = FIRST_DAY_MS + 3 * DAY_MS
    kept.write_bytes(b"damaged")
    assert "name another file" in (await world.days.close()).stopped
    kept.unlink()
    assert "records" in (await world.days.close()).stopped


@pytest.mark.anyio
async def test_an_address_bound_late_for_an_earlier_time_is_the_next_days(world: World) -> None:
    """Once a day is built, no binding changes where its money goes, whatever time it says."""
    await world.work_at(FIRST_DAY_MS)
    world.clock.ms = FIRST_DAY_MS + 8 * HOUR_MS
    await world.days.mature()
    await world.work_at(FIRST_DAY_MS + 9 * HOUR_MS)
    world.clock.ms = FIRST_DAY_MS + DAY_MS
    await world.do(lambda connection: cut(connection, world.clock.ms))
    await world.do(
        lambda connection: keep(connection, build(connection, get_epoch(connection, 1), TERMS))
    )
    early_ms = FIRST_DAY_MS + 5 * HOUR_MS
    for number in (0, 3):  # one that had an address, and one that had none
        await world.do(lambda c, who=number: _bind(world, c, who, early_ms))
    closing = await world.days.close()
    assert closing.stopped == ""
    assert closing.epoch is not None
    assert closing.epoch.parsed().unplaced_nano > 0
    await world.work_at(FIRST_DAY_MS + DAY_MS + HOUR_MS)
    world.clock.ms = FIRST_DAY_MS + 2 * DAY_MS
    second = await world.days.close()
    assert second.stopped == ""
    assert second.epoch is not None
    assert second.epoch.parsed().unplaced_nano == 0


@pytest.mark.anyio
async def test_too_much_growth_waits_for_a_person(world: World) -> None:
    """A day that grew beyond what is usual stays built until somebody accepts it."""
    careful = DayTerms(network=NETWORK, maturity_ms=MATURITY_MS, growth_nano=10_000)
    world.days._terms = careful
    await world.work_at(FIRST_DAY_MS)
    world.clock.ms = FIRST_DAY_MS + DAY_MS
    written = set()
    for _ in range(2):
        closing = await world.days.close()
        assert closing.epoch is not None
        assert closing.epoch.state is EpochState.BUILT
        assert "grew by" in closing.stopped
        written.add((world.exports / "day-000001").stat().st_mtime_ns)
    assert len(written) == 1  # what was checked once is not checked again
    accepted = await world.days.close(accept=True)
    assert accepted.epoch is not None
    assert accepted.epoch.state is EpochState.SIGNED


def test_a_day_that_stopped_rests_longer_each_time() -> None:
    """What a person must look at is tried again ever more rarely, until it went well."""
    clock = Clock()
    patience, rests = Patience(clock), []
    for _ in range(8):
        assert patience.is_due()
        patience.stopped()
        start = clock.ms
        while not patience.is_due():
            clock.ms += int(LOOK_EVERY_S * 1000)
        rests.append((clock.ms - start) / 1000)
    assert rests[:3] == [LOOK_EVERY_S, 2 * LOOK_EVERY_S, 4 * LOOK_EVERY_S]
    assert rests[-2:] == [REST_MAX_S, REST_MAX_S]
    patience.went_well()
    patience.stopped()
    clock.ms += int(LOOK_EVERY_S * 1000)
    assert patience.is_due()


@pytest.mark.anyio
async def test_a_clock_that_was_wrong_for_long_delays_no_day(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """While time is not believed no day is tried, so none has to rest once it is."""
    monkeypatch.setattr(closing, "LOOK_EVERY_S", 0.001)
    await world.work_at(FIRST_DAY_MS + DAY_MS - HOUR_MS)
    world.clock.ahead_ms = 3 * DAY_MS
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(world.days.run)
        with anyio.fail_after(10):
            while len(caplog.records) < 30:
                await anyio.sleep(0.001)
        world.clock.ahead_ms = 0
        world.clock.ms += HOUR_MS
        with anyio.fail_after(10):
            while not await world.epochs():
                await anyio.sleep(0.001)
        tasks.cancel_scope.cancel()


@pytest.mark.anyio
async def test_a_check_may_take_longer_the_more_there_is(world: World) -> None:
    """A deadline that fits the first day would stop a network once it is large."""
    await world.work_at(FIRST_DAY_MS)
    first = await world.store.read(check_deadline_s)
    many = 1_000_000_000
    await world.do(
        lambda c: c.execute("UPDATE block SET last_transfer = last_transfer + ?", (many,))
    )
    later = await world.store.read(check_deadline_s)
    assert later - first == pytest.approx(CHECK_DEADLINE_ROW_S * many)
    assert first > CHECK_DEADLINE_S


@pytest.mark.anyio
async def test_a_vetoed_day_is_closed_again_with_corrections(world: World) -> None:
    """After a veto the same day covers the correction too, and no day comes before that."""
    await world.work_at(FIRST_DAY_MS)
    world.clock.ms = FIRST_DAY_MS + MATURITY_MS
    first = (await world.days.close(at_once=True)).epoch
    assert first is not None
    with pytest.raises(Conflict):
        await world.days.close_again(1)
    await world.do(
        lambda connection: advance_state(connection, 1, EpochState.SIGNED, EpochState.VETOED)
    )
    with pytest.raises(Conflict):
        await world.days.close(at_once=True)
    await world.do(_undo_a_fee)
    again = (await world.days.close_again(1)).epoch
    assert again is not None
    assert again.state is EpochState.SIGNED
    assert again.to_block == first.to_block + 1
    assert again.parsed().previous_head == first.parsed().previous_head
    assert dict(again.parsed().balances)["fee"] < dict(first.parsed().balances)["fee"]
    assert verified(world.exports) == again.parsed().head().hex()


@pytest.mark.anyio
async def test_a_day_vetoed_after_others_were_closed_is_closed_again(world: World) -> None:
    """Days closed after the vetoed one become part of it; then days go on."""
    for day in range(3):
        await world.work_at(FIRST_DAY_MS + day * DAY_MS + HOUR_MS)
        world.clock.ms = FIRST_DAY_MS + (day + 1) * DAY_MS
        await world.days.mature()
        await world.days.close()
    before = await world.epochs()
    vault = (TERMS.chain_id, TERMS.contract)
    await world.do(lambda c: Settlement(c, *vault).final(1, before[0].parsed().head()))
    await world.do(lambda c: Settlement(c, *vault).vetoed(2))
    with pytest.raises(Conflict, match="day 2 was vetoed"):
        await world.days.close(at_once=True)
    with pytest.raises(Conflict):
        await world.days.close_again(3)
    again = await world.days.close_again(2)
    assert again.stopped == ""
    assert [one.state for one in await world.epochs()] == [EpochState.FINAL, EpochState.SIGNED]
    assert again.epoch is not None
    assert again.epoch.to_block >= before[2].to_block
    post = await world.do(lambda c: Settlement(c, *vault).next_post(2))
    assert post is not None
    assert post.prev_head == before[0].parsed().head()
    assert verified(world.exports) == post.head.hex()
    await world.work_at(world.clock.ms + HOUR_MS)
    third = await world.days.close(at_once=True)
    assert third.stopped == ""
    assert third.epoch is not None
    assert third.epoch.epoch == 3


@pytest.mark.anyio
async def test_a_vault_may_come_later_and_then_stays(world: World) -> None:
    """A vault numbers its days from 1 whatever was closed before; none is closed for another."""
    vault, bare = world.days._terms, DayTerms(network=NETWORK, maturity_ms=MATURITY_MS)
    for day, terms in enumerate((bare, bare, vault, vault)):
        world.days._terms = terms
        await world.days.open()
        await world.work_at(FIRST_DAY_MS + day * DAY_MS + HOUR_MS)
        world.clock.ms = FIRST_DAY_MS + (day + 1) * DAY_MS
        await world.days.mature()
        assert (await world.days.close()).stopped == ""
    days = [one.parsed() for one in await world.epochs()]
    assert verified(world.exports) == days[3].head().hex()

    def settled(connection: Connection) -> list[tuple[bytes, bytes]]:
        books = Settlement(connection, TERMS.chain_id, TERMS.contract)
        posts = [books.next_post(number) for number in (1, 2)]
        books.mined(1, days[2].head())
        assert books.next_post(3) is None
        return [(post.prev_head, post.head) for post in posts if post is not None]

    assert await world.do(settled) == [
        (bytes(32), days[2].head()),
        (days[2].head(), days[3].head()),
    ]
    assert [one.state for one in await world.epochs()][2:] == [EpochState.MINED, EpochState.SIGNED]
    for forgotten in (bare, msgspec.structs.replace(vault, contract=b"\x08" * 20)):
        world.days._terms = forgotten
        with pytest.raises(ConfigurationRefused, match="STARAI_VAULT"):
            await world.days.open()


def _undo_a_fee(connection: Connection) -> None:
    ((wrong, at_ms),) = connection.execute(
        "SELECT id, at_ms FROM transfer WHERE code = 'fee' ORDER BY seq LIMIT 1"
    )
    apply_event(connection, Corrected.of(wrong, at_ms, b"a mistake"))
