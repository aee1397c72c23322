"""Cases: every silence has its outcome by its deadline, all of it as transfers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from starai.core.errors import Conflict, InternalFault, InvalidRequest, NotFound, PartyRefused
from starai.core.randomness import SeededRandomness
from starai.ledger.accounts import FEE, INSURANCE, available, pending
from starai.ledger.events import Matured
from starai.ledger.outcomes import DEADLINE_MS, OPEN_AFTER_MS
from starai.ledger.reconciling import WINDOW_MS
from starai.protocol.identity import Identity
from starai.protocol.records import TaskRecord
from starai.protocol.registry import Confirm, Side
from starai.protocol.subjects import Role
from starai.registry.days.closing import Days
from starai.registry.days.epochs import DayTerms, EpochState
from starai.registry.integrity import check_integrity
from starai.registry.log.blocks import close_block
from starai.registry.money.books import apply_event, verify_books
from starai.registry.parties import Parties
from starai.registry.reconciling.confirmations import Confirmations
from starai.registry.reconciling.disputes import Disputes
from starai.registry.reconciling.insuring import at_risk
from starai.registry.reconciling.queries import DisputeQueries
from starai.registry.storage import Connection, Store, open_store
from starai.testing.money import (
    CUSTOMER,
    DEPOSIT,
    NODE_BPS,
    balances,
    insure,
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
    confirm,
    record,
)

pytestmark = pytest.mark.anyio

NODE = NODES[0]
OPERATOR = Identity.create(SeededRandomness(93))
ROLES = {DISTRIBUTOR.party: Role.DISTRIBUTOR, **{one.party: Role.NODE for one in NODES}}
TASK = priced(record(1))
#: A case is open from here on, and decided from there on.
OPENED_MS = OPEN_AFTER_MS + 1
DECIDED_MS = OPENED_MS + DEADLINE_MS + 1


@dataclass
class SetClock:
    """A clock that stands where it is put."""

    ms: int = START_MS
    #: By how much it is wrong.
    ahead_ms: int = 0

    def now_ms(self) -> int:
        return self.ms + self.ahead_ms

    def monotonic_s(self) -> float:
        return self.ms / 1000


class Scene:
    """A registry with money, and two sides that say what a test lets them say."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.clock = SetClock()
        parties = Parties(store, ROLES)
        self.confirmations = Confirmations(store, parties, NETWORK, BLOCK_MS, self.clock)
        self.disputes = Disputes(store, self.clock)

    async def says(self, side: Side, *records: TaskRecord, node=NODE) -> None:
        signer = node if side is Side.NODE else DISTRIBUTOR
        said: Confirm = confirm(side, records, signer)
        await self.confirmations.handle(signer.party, said)

    async def after(self, ms: int) -> None:
        """Go to ``ms`` after the start, and see to what is due then."""
        self.clock.ms = START_MS + ms
        await self.disputes.sweep()

    async def sums(self) -> dict[str, int]:
        """What the customer paid, and what node, fee and insurance have."""
        found = await self.store.read(balances)
        return {
            "paid": DEPOSIT - found[available(CUSTOMER)],
            "node": found.get(pending(NODE.raw), 0),
            "fee": found.get(FEE, 0),
            "insurance": found.get(INSURANCE, 0),
        }

    async def spent(self) -> int:
        """What counts against the budget of the customer's key."""
        ((nano,),) = await self.store.read(lambda c: list(c.execute("SELECT spent_nano FROM key")))
        return nano

    async def verdicts(self) -> list[tuple[str, str | None]]:
        cases = await self.disputes.cases(None, only_open=False)
        return sorted((case.reason, case.verdict) for case in cases)

    async def sound(self) -> None:
        assert (await self.store.read(verify_books)).problems == ()
        found = await self.store.read(lambda connection: check_integrity(connection, NODE.raw))
        assert found.problems == ()


@pytest.fixture
async def scene(database: Path | str):
    async with open_store(database, inline=True) as store:
        await store.write(open_books)
        made = Scene(store)
        yield made
        await made.sound()


def share(charge: int) -> int:
    return charge * NODE_BPS // 10_000


def paid(charge: int, insurance: int = 0) -> dict[str, int]:
    node = share(charge)
    return {"paid": charge, "node": node, "fee": charge - node, "insurance": insurance}


NOTHING = paid(0)


async def test_agreement_is_paid_at_once(scene: Scene) -> None:
    """Both sides' equal words pay the node its share and the operator its fee, once."""
    for _ in range(2):
        for side in Side:
            await scene.says(side, TASK)
        assert await scene.sums() == paid(TASK.charge_nano_usd)
    await scene.after(3 * DECIDED_MS)
    assert await scene.sums() == paid(TASK.charge_nano_usd)
    assert await scene.verdicts() == []


async def test_what_only_the_distributor_says_is_paid_after_a_day(scene: Scene) -> None:
    """The one who would deny it says it was delivered: a node that died loses no pay."""
    await scene.says(Side.DISTRIBUTOR, TASK)
    await scene.after(OPENED_MS)
    assert await scene.verdicts() == [("dist_only", None)]
    await scene.after(DECIDED_MS - 2)
    assert await scene.sums() == NOTHING
    await scene.after(DECIDED_MS)
    assert await scene.sums() == paid(TASK.charge_nano_usd)
    assert await scene.verdicts() == [("dist_only", "paid")]
    await scene.says(Side.NODE, TASK)
    assert await scene.sums() == paid(TASK.charge_nano_usd)


async def test_a_clock_that_jumps_ahead_opens_and_decides_nothing(scene: Scene) -> None:
    """A case takes the time that passed: not what a clock says alone, nor a deadline in a year."""
    await scene.says(Side.DISTRIBUTOR, TASK)
    await scene.after(1)
    for known in ([], [("dist_only", None)]):
        scene.clock.ahead_ms = 365 * WINDOW_MS
        with pytest.raises(InternalFault, match="jumped"):
            await scene.disputes.sweep()
        assert await scene.verdicts() == known
        scene.clock.ahead_ms = 0
        await scene.after(OPENED_MS)
    await scene.after(DECIDED_MS)
    assert await scene.verdicts() == [("dist_only", "paid")]
    assert await scene.sums() == paid(TASK.charge_nano_usd)


async def test_a_late_contradiction_changes_nothing(scene: Scene) -> None:
    """A node that comes back with another version after its day is too late."""
    await scene.says(Side.DISTRIBUTOR, TASK)
    await scene.after(OPENED_MS)
    await scene.after(DECIDED_MS)
    more = msgspec.structs.replace(TASK, answer_tokens=500)
    await scene.says(Side.NODE, priced(more))
    await scene.says(Side.DISTRIBUTOR, priced(more))
    assert await scene.sums() == paid(TASK.charge_nano_usd)
    assert (await scene.disputes.strikes()) == {}


async def test_what_a_distributor_denies_is_not_paid(scene: Scene) -> None:
    """A node that claims a task which was never given to it gets nothing, insurance or not."""
    await scene.store.write(lambda connection: insure(connection, 10**6))
    before = await scene.sums()
    await scene.says(Side.NODE, TASK)
    await scene.after(OPENED_MS)
    await scene.says(Side.DISTRIBUTOR, priced(record(2)))
    await scene.after(OPENED_MS + 1)
    await scene.says(Side.DISTRIBUTOR, priced(record(3, node=NODES[1])))
    await scene.after(OPENED_MS + DEADLINE_MS)
    assert ("node_only", "refused") in await scene.verdicts()
    assert await scene.sums() == before


async def test_a_vanished_distributor_costs_the_insurance(scene: Scene) -> None:
    """Silence about everything is no denial: insured, up to what the node itself has to lose."""
    await scene.says(Side.NODE, TASK, priced(record(2)))
    await scene.says(Side.DISTRIBUTOR, priced(record(2)))
    earned = share(priced(record(2)).charge_nano_usd)
    await scene.store.write(lambda connection: insure(connection, 10**6))
    before = await scene.sums()
    await scene.after(OPENED_MS)
    await scene.after(DECIDED_MS)
    after = await scene.sums()
    gained = min(TASK.charge_nano_usd, earned)
    assert after == {
        **before,
        "node": before["node"] + gained,
        "insurance": before["insurance"] - gained,
    }
    assert await scene.verdicts() == [("node_only", "insured")]


async def test_a_node_with_nothing_to_lose_is_not_insured(scene: Scene) -> None:
    """Newcomers cannot invent work for a distributor that is gone."""
    await scene.store.write(lambda connection: insure(connection, 10**6))
    before = await scene.sums()
    await scene.says(Side.NODE, TASK)
    await scene.after(OPENED_MS)
    await scene.after(DECIDED_MS)
    assert await scene.sums() == before
    assert await scene.verdicts() == [("node_only", "refused")]


async def test_what_the_insurance_paid_is_no_claim_to_more(scene: Scene) -> None:
    """However much a node makes up, it is paid once as much as it has pending from others."""
    await scene.says(Side.NODE, TASK)
    await scene.says(Side.DISTRIBUTOR, TASK)
    await scene.store.write(lambda connection: insure(connection, 10**6))
    made_up = [priced(record(number, answer_tokens=10_000)) for number in range(2, 14)]
    before = await scene.sums()
    for again in (0, 1):
        scene.clock.ms += again
        lies = made_up[6 * again : 6 * again + 6]
        await scene.says(Side.NODE, *lies)
        await scene.after(DECIDED_MS * again + OPENED_MS)
        await scene.after(DECIDED_MS * (again + 1))
        after = await scene.sums()
        assert after["insurance"] == before["insurance"] - share(TASK.charge_nano_usd)
    matured = Matured(
        event_id=b"m" * 16,
        at_ms=scene.clock.ms,
        node=NODE.raw,
        amount=after["node"],
        ref=(0).to_bytes(8, "big"),
    )

    def mature(connection: Connection) -> None:
        assert at_risk(connection, NODE.raw) == 0
        close_block(connection, NETWORK, NODE, scene.clock.ms)
        apply_event(connection, matured)

    await scene.store.write(mature)
    await scene.says(Side.NODE, priced(record(20)))
    await scene.says(Side.DISTRIBUTOR, priced(record(20)))
    earned = share(priced(record(20)).charge_nano_usd)
    assert await scene.store.read(lambda connection: at_risk(connection, NODE.raw)) == earned


@pytest.mark.parametrize("lower", list(Side))
async def test_of_two_amounts_the_lower_is_paid_at_once(scene: Scene, lower: Side) -> None:
    """What both say at least is not held up by what they disagree on."""
    more = priced(msgspec.structs.replace(TASK, answer_tokens=500))
    for side in Side:
        await scene.says(side, TASK if side is lower else more)
    assert await scene.sums() == paid(TASK.charge_nano_usd)
    await scene.after(DECIDED_MS)
    assert await scene.sums() == paid(TASK.charge_nano_usd)
    assert await scene.verdicts() == [("amount", "lower"), ("amount", "lower")]


async def test_an_equivocating_distributor_is_not_paid_for(scene: Scene) -> None:
    """Two nodes, one attempt: the customer gets the first one's cost back."""
    again = priced(record(1, node=NODES[1]))
    await scene.says(Side.DISTRIBUTOR, TASK)
    await scene.says(Side.NODE, TASK)
    assert await scene.sums() == paid(TASK.charge_nano_usd)
    await scene.says(Side.DISTRIBUTOR, again)
    await scene.says(Side.NODE, again, node=NODES[1])
    assert await scene.sums() == NOTHING
    await scene.after(DECIDED_MS)
    assert await scene.sums() == NOTHING
    assert await scene.verdicts() == [("dup", "refused"), ("dup", "refused")]
    assert await scene.disputes.strikes() == {DISTRIBUTOR.party: 2}


async def test_a_record_of_strangers_is_refused_and_counted(scene: Scene) -> None:
    """A node cannot make up the distributor either."""
    made_up = priced(record(1, distributor=STRANGER.raw))
    await scene.says(Side.NODE, made_up)
    await scene.after(DECIDED_MS)
    assert await scene.verdicts() == [("unknown", "refused")]
    assert await scene.sums() == NOTHING
    assert await scene.disputes.strikes() == {NODE.party: 1}


async def test_a_person_decides_otherwise(scene: Scene) -> None:
    """An operator pays what was refused, takes it back, and may let a node pay for a lie."""
    other = msgspec.structs.replace(TASK, answer_hash=b"x" * 32)
    await scene.says(Side.DISTRIBUTOR, TASK)
    await scene.says(Side.NODE, other)
    await scene.after(DECIDED_MS)
    assert await scene.verdicts() == [("content", "refused"), ("content", "refused")]
    (case,) = [
        case for case in await scene.disputes.cases(NODE.raw, only_open=False) if case.sides == 2
    ]
    for verdict, expected in (
        ("paid", paid(TASK.charge_nano_usd)),
        ("refused", NOTHING),
        ("paid", paid(TASK.charge_nano_usd)),
        ("slashed", NOTHING),
    ):
        scene.clock.ms += 1
        decided = await scene.disputes.decide(case.seq, verdict)
        assert (decided.state, decided.verdict) == ("closed", verdict)
        assert await scene.sums() == expected
        assert await scene.spent() == expected["paid"]
    assert await scene.disputes.strikes() == {NODE.party: 1}
    with pytest.raises(InvalidRequest):
        await scene.disputes.decide(case.seq, "generous")
    with pytest.raises(NotFound):
        await scene.disputes.decide(10**6, "paid")


async def test_a_supplier_has_its_record_looked_at(scene: Scene) -> None:
    """What was refused is opened again for a week; what is agreed is not."""
    other = msgspec.structs.replace(TASK, answer_hash=b"x" * 32)
    await scene.says(Side.DISTRIBUTOR, TASK, priced(record(2)))
    await scene.says(Side.NODE, other, priced(record(2)))
    await scene.after(DECIDED_MS)
    opened = await scene.disputes.open(NODE.raw, TASK.task_id, 0)
    assert {case.state for case in opened} == {"open"}
    with pytest.raises(NotFound):
        await scene.disputes.open(NODES[1].raw, TASK.task_id, 0)
    with pytest.raises(Conflict):
        await scene.disputes.open(NODE.raw, record(2).task_id, 0)
    await scene.after(20 * WINDOW_MS)
    assert {verdict for _, verdict in await scene.verdicts()} == {"refused"}
    with pytest.raises(Conflict):
        await scene.disputes.open(NODE.raw, TASK.task_id, 0)


async def test_a_restart_forgets_no_case(scene: Scene) -> None:
    """Another process goes on where the last one stopped, and opens nothing twice."""
    for number in range(1, 6):
        await scene.says(Side.DISTRIBUTOR, priced(record(number)))
        if number % 2:
            await scene.says(Side.NODE, priced(record(number)))
    await scene.after(OPENED_MS)
    scene.disputes = Disputes(scene.store, scene.clock)
    await scene.says(Side.DISTRIBUTOR, priced(record(6)))
    await scene.after(2 * OPENED_MS)
    assert await scene.verdicts() == [("dist_only", None)] * 3
    await scene.says(Side.NODE, priced(record(2)))
    await scene.after(2 * DECIDED_MS)
    assert sorted(await scene.verdicts()) == [
        ("dist_only", "agreed"),
        ("dist_only", "paid"),
        ("dist_only", "paid"),
    ]


async def test_a_node_sees_and_opens_its_own_cases_only(scene: Scene) -> None:
    """The operator sees all and decides; a node is shown nobody else's cases."""
    parties = Parties(scene.store, {**ROLES, OPERATOR.party: Role.OPERATOR})
    known = DisputeQueries(scene.disputes, parties).known

    async def ask(sender: Identity, what: str, **arguments: object) -> dict[str, object]:
        roles, shape, answer = known[what]
        parties.require(sender.party, *roles)
        return await answer(sender.party, shape(**arguments))

    await scene.says(Side.NODE, priced(record(1, distributor=STRANGER.raw)))
    await scene.says(Side.NODE, priced(record(2, node=NODES[1])), node=NODES[1])
    await scene.after(DECIDED_MS)
    of_all = await ask(OPERATOR, "disputes", only_open=False)
    assert len(of_all["disputes"]) == 2
    assert of_all["strikes"] == {NODE.party: 1}
    of_other = await ask(NODES[1], "disputes", only_open=False)
    assert [case["node"] for case in of_other["disputes"]] == [NODES[1].party]
    assert of_other["strikes"] == {}
    with pytest.raises(PartyRefused):
        await ask(NODE, "decide", record=1, verdict="paid")
    with pytest.raises(NotFound):
        await ask(NODE, "dispute", task_id=record(2).task_id.hex())
    with pytest.raises(InvalidRequest):
        await ask(NODE, "dispute", task_id="task")
    opened = await ask(NODES[1], "dispute", task_id=record(2).task_id.hex())
    assert [case["state"] for case in opened["disputes"]] == ["open"]


async def test_a_contradicted_count_stops_no_day(scene: Scene, tmp_path: Path) -> None:
    """What is paid by the lower of two counts has a case and no verdict yet: the day closes."""
    longer = priced(msgspec.structs.replace(TASK, answer_tokens=TASK.answer_tokens + 1))
    await scene.says(Side.DISTRIBUTOR, TASK)
    await scene.says(Side.NODE, longer)

    async def block() -> None:
        now_ms = scene.clock.now_ms()
        await scene.store.write(lambda c: close_block(c, NETWORK, NODE, now_ms))

    days = Days(scene.store, NODE, DayTerms(network=NETWORK), scene.clock, tmp_path, block)
    closing = await days.close(at_once=True)
    assert closing.stopped == ""
    assert closing.epoch is not None
    assert closing.epoch.state is EpochState.SIGNED
