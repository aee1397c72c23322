"""What settlement keeps in the registry: transactions before they are sent, what the chain said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from starai.core.errors import Conflict, InvalidRequest
from starai.core.randomness import SeededRandomness
from starai.ledger.accounts import Account, available, held, payable
from starai.ledger.events import Captured, Matured, event_id
from starai.protocol.identity import Identity
from starai.protocol.registry import AllotmentRequest, FundsChanged, SpentAllotment
from starai.registry.days.queries import DayQueries
from starai.registry.days.settling import Settlement, SettlementCall, call
from starai.registry.money.allotments import grant
from starai.registry.money.books import apply_event, verify_books
from starai.registry.money.customers import insert
from starai.registry.money.shelf import StoredShelf
from starai.registry.money.withdrawals import collect
from starai.registry.storage import Connection, open_store
from starai.settlement.leaves import LeafKind
from starai.settlement.manifest import Manifest
from starai.settlement.rollup.base import BlockRef, Fee, Happening, Signed, What
from starai.settlement.settler import Attempt, AttemptState
from starai.settlement.watching import Cursor

CHAIN, VAULT = 7, b"v" * 20
CUSTOMER, PAYEE, OTHER = b"c" * 20, b"p" * 20, b"o" * 20
NODES = (b"\1" * 32, b"\2" * 32)
NANO = 1000


class Books:
    """A registry's database, used a transaction at a time."""

    def __init__(self, store: Any) -> None:
        self.store = store
        self.block = 0
        self.told: list[FundsChanged] = []

    async def do(self, work: Callable[[Settlement], Any], vault: bytes = VAULT) -> Any:
        self.told.clear()
        return await self.store.write(lambda c: work(Settlement(c, CHAIN, vault, self.told.append)))

    async def hear(self, *said: tuple[What, bytes, int]) -> None:
        """Book a block with these reports."""
        self.block += 1
        block = BlockRef(self.block, self.block.to_bytes(32, "big"), self.block)
        happenings = [
            Happening(what, block, bytes([self.block, n]) * 16, 0, account, units)
            for n, (what, account, units) in enumerate(said)
        ]
        cursor = Cursor(self.block, block.block_hash)
        await self.do(lambda one: one.book(happenings, cursor))
        assert (await self.store.read(verify_books)).problems == ()

    async def balance(self, account: Account) -> int:
        return int(await self.store.read(lambda c: StoredShelf(c).totals(account).balance) // NANO)

    async def customer(self) -> int:
        def read(connection: Connection) -> int:
            sql = "SELECT id FROM customer WHERE address = ?"
            return int(next(connection.execute(sql, (CUSTOMER,)))[0])

        return int(await self.store.read(read))

    async def earn(self, node: bytes, address: bytes, units: int, epoch: int) -> None:
        """Let a node have earned so much more for good, and placed with what it had before."""
        customer = await self.customer()
        name = event_id(b"test", node, epoch.to_bytes(4, "big"))
        paid = Captured(
            event_id=name,
            at_ms=1,
            customer=customer,
            payer=9,
            node=node,
            charge=units * NANO,
            node_share=units * NANO,
            ref=b"",
        )
        ripe = Matured(event_id=event_id(b"ripe", name), at_ms=1, node=node, amount=units * NANO)

        def write(connection: Connection) -> None:
            apply_event(connection, paid)
            apply_event(connection, ripe)
            before = connection.execute(
                "SELECT COALESCE(MAX(CAST(cum AS BIGINT)), 0) FROM leaf WHERE payee = ?",
                (node + address,),
            )
            cum = int(next(before)[0]) + units * NANO
            connection.execute(
                "INSERT INTO leaf (epoch, kind, payee, cum) VALUES (?, ?, ?, ?)",
                (epoch, int(LeafKind.EARNED), node + address, str(cum)),
            )
            connection.execute(
                "INSERT INTO payout (node, address, bound_ms, sig) VALUES (?, ?, ?, ?)",
                (node, address, epoch, b""),
            )

        await self.store.write(write)


@pytest.fixture
async def books(database: Path | str) -> Any:
    async with open_store(database) as store:
        yield Books(store)


def attempt(number: int, nonce: int = 5) -> Attempt:
    signed = Signed(b"raw%d" % number, bytes([number]) * 32, nonce, Fee(10**12, 10**9))
    return Attempt(1, number, signed)


@pytest.mark.anyio
async def test_transactions_are_kept_as_they_were_signed(books: Books) -> None:
    """Bytes, nonce, fee and state come back, oldest first; a number is used once."""
    for one in (attempt(0), attempt(1)):
        await books.do(lambda journal, one=one: journal.keep(one))
    await books.do(lambda journal: journal.mark(1, 0, AttemptState.REVERTED))
    kept = await books.do(lambda journal: list(journal.attempts(1)))
    assert kept == [attempt(0)._replace(state=AttemptState.REVERTED), attempt(1)]
    assert await books.do(lambda journal: list(journal.attempts(2))) == []
    with pytest.raises(Exception, match="asked its database something wrong"):
        await books.do(lambda journal: journal.keep(attempt(1)))


async def sign_day(books: Books, epoch: int, **changed: Any) -> bytes:
    empty: dict[Any, Any] = {bytes: b"", int: 0, str: ""}
    facts = {f.name: empty.get(f.type, ()) for f in msgspec.structs.fields(Manifest)}
    manifest = Manifest(**facts | {"chain_id": CHAIN, "contract": VAULT, "epoch": epoch} | changed)

    def write(connection: Connection) -> None:
        connection.execute(
            "INSERT INTO epoch (epoch, from_block, to_block, state, manifest, closed_ms)"
            " VALUES (?, 0, 0, 'signed', ?, 0)",
            (epoch, manifest.text()),
        )

    await books.store.write(write)
    return manifest.head()


async def state(books: Books, epoch: int) -> str:
    def read(connection: Connection) -> str:
        return str(next(connection.execute("SELECT state FROM epoch WHERE epoch = ?", (epoch,)))[0])

    return str(await books.store.read(read))


@pytest.mark.anyio
async def test_a_day_goes_forward_only(books: Books) -> None:
    """Signed, sent, mined, final; what comes late does not take it back."""
    head = await sign_day(books, 1)
    post = await books.do(lambda journal: journal.next_post(1))
    assert (post.epoch, post.head) == (1, head)
    assert await books.do(lambda journal: journal.next_post(2)) is None
    for step, expected in (
        (lambda journal: journal.sent(1), "sent"),
        (lambda journal: journal.mined(1, head), "mined"),
        (lambda journal: journal.sent(1), "mined"),
        (lambda journal: journal.final(1, head), "final"),
        (lambda journal: journal.mined(1, head), "final"),
        (lambda journal: journal.vetoed(1), "final"),
    ):
        await books.do(step)
        assert await state(books, 1) == expected


@pytest.mark.anyio
async def test_another_head_or_vault_is_a_conflict(books: Books) -> None:
    """A root that was not closed here, or closed for another contract, stops everything."""
    head = await sign_day(books, 1)
    for epoch, said in ((1, b"x" * 32), (2, head)):
        with pytest.raises(Conflict, match="did not close"):
            await books.do(lambda journal, e=epoch, s=said: journal.mined(e, s))
    with pytest.raises(Conflict, match="another contract"):
        await books.do(lambda journal: journal.next_post(1), vault=b"w" * 20)


@pytest.mark.anyio
async def test_a_veto_that_is_heard_of_late_is_of_the_root_before(books: Books) -> None:
    """The watcher follows some blocks behind: the day may be closed again with another root."""
    await sign_day(books, 1, root=b"new")
    block = BlockRef(1, b"b" * 32, 1)
    for root, expected in ((b"old", "signed"), (b"new", "vetoed")):
        veto = Happening(What.VETOED, block, root * 8, 0, epoch=1, root=root)
        await books.do(lambda one, veto=veto: one.book([veto], Cursor(1, b"b" * 32)))
        assert await state(books, 1) == expected


@pytest.mark.anyio
async def test_a_vetoed_day_is_not_posted(books: Books) -> None:
    """Until it is closed again there is nothing to post."""
    await sign_day(books, 1)
    await books.do(lambda journal: journal.vetoed(1))
    assert await books.do(lambda journal: journal.next_post(1)) is None


@pytest.mark.anyio
async def test_money_that_comes_in_and_goes_out(books: Books) -> None:
    """A deposit, a request that sets money aside, a withdrawal: in the books as on the chain."""
    await books.hear((What.DEPOSITED, CUSTOMER, 100))
    customer = await books.customer()
    await books.hear((What.WITHDRAWAL_REQUESTED, CUSTOMER, 30))
    assert await books.balance(available(customer)) == 70
    await books.hear((What.WITHDRAWAL_REQUESTED, CUSTOMER, 500))
    assert await books.balance(held(customer)) == 100
    await books.hear((What.WITHDRAWN, CUSTOMER, 25))
    assert await books.balance(held(customer)) == 75
    await books.hear((What.WITHDRAWAL_REQUESTED, CUSTOMER, 1))
    assert await books.balance(available(customer)) == 74


@pytest.mark.anyio
async def test_a_deposit_is_that_of_the_customer_who_named_its_address(books: Books) -> None:
    """Who was made with an address gets what is deposited from it; no other customer is made."""
    number = await books.store.write(lambda c: insert(c, "acme", 1, CUSTOMER))
    await books.hear((What.DEPOSITED, CUSTOMER, 100))
    assert await books.customer() == number
    assert await books.balance(available(number)) == 100


def allotment(number: int, wanted: int, *back: int) -> AllotmentRequest:
    """What a gateway asks for key 9, and what it gives back unused."""
    spent = tuple(SpentAllotment(bytes([one]) * 16, 0) for one in back)
    party = Identity.create(SeededRandomness(1)).party
    return AllotmentRequest(party, 9, bytes([number]) * 16, wanted * NANO, wanted * NANO, spent)


async def add_key(books: Books) -> None:
    customer = await books.customer()
    sql = (
        "INSERT INTO key (key_id, key_hash, name, customer, rpm, tpm, created_ms, version, owner)"
        " VALUES ('k', ?, 'k', 9, 0, 0, 0, 1, ?)"
    )
    await books.store.write(lambda c: c.execute(sql, (b"h" * 32, customer)) and None)


@pytest.mark.anyio
async def test_what_is_asked_back_is_not_spent_again(books: Books) -> None:
    """Money in an allotment when it was asked back comes back to be taken, not to be spent."""
    await books.hear((What.DEPOSITED, CUSTOMER, 100))
    await add_key(books)

    async def ask(number: int, wanted: int, *back: int) -> int:
        asked = allotment(number, wanted, *back)
        answer, _ = await books.store.write(lambda c: grant(c, b"g" * 32, asked, 1))
        return int(answer.amount_nano_usd) // NANO

    assert await ask(1, 100) == 100
    await books.hear((What.WITHDRAWAL_REQUESTED, CUSTOMER, 90))
    assert books.told == [FundsChanged(await books.customer(), recall=True)]
    assert await ask(2, 0, 1) == 0
    assert await ask(3, 11) == 0
    assert await ask(4, 10) == 10
    await books.hear((What.WITHDRAWN, CUSTOMER, 60))
    assert await ask(5, 1) == 0
    await books.hear((What.WITHDRAWN, CUSTOMER, 30))
    assert await ask(6, 10, 4) == 10
    assert await books.do(lambda one: one.owed()) == 0


@pytest.mark.anyio
async def test_gateways_hear_what_the_chain_changed(books: Books) -> None:
    """Each customer's change once, after it is durable; a request calls allotments back."""
    heard: list[FundsChanged] = []

    async def publish(change: FundsChanged) -> None:
        heard.append(change)

    block, units = BlockRef(1, b"b" * 32, 1), 9
    whats = (What.DEPOSITED, What.DEPOSITED, What.WITHDRAWAL_REQUESTED)
    reports = [
        Happening(what, block, bytes([n]) * 32, 0, CUSTOMER, units) for n, what in enumerate(whats)
    ]
    arguments = tuple(msgspec.to_builtins((reports, Cursor(1, b"b" * 32))))
    question = DayQueries(books.store, None, publish).known["settlement"]
    operator = Identity.create(SeededRandomness(1)).party
    await question.answer(operator, SettlementCall(CHAIN, VAULT.hex(), "book", arguments))
    customer = await books.customer()
    assert heard == [FundsChanged(customer), FundsChanged(customer, recall=True)]


@pytest.mark.anyio
async def test_a_withdrawal_of_what_was_spent_stops_nothing(
    books: Books, caplog: pytest.LogCaptureFixture
) -> None:
    """It is an alarm and a debt; what comes after it is booked, and new money pays the debt."""
    await books.hear((What.DEPOSITED, CUSTOMER, 100))
    await books.earn(NODES[0], PAYEE, 70, 1)
    customer, reports = await books.customer(), ((What.WITHDRAWN, CUSTOMER, 100),)
    await books.hear(*reports, (What.DEPOSITED, OTHER, 5))
    assert await books.do(lambda one: one.owed()) == 70 * NANO
    assert [one.levelname for one in caplog.records] == ["ERROR"]
    books.block -= 1
    await books.hear(*reports, (What.DEPOSITED, OTHER, 5))
    assert await books.do(lambda one: one.owed()) == 70 * NANO
    for deposit, owed, left in ((50, 20, 0), (60, 0, 40)):
        await books.hear((What.DEPOSITED, CUSTOMER, deposit))
        await books.store.write(lambda c: collect(c, 9))
        assert await books.do(lambda one: one.owed()) == owed * NANO
        assert await books.balance(available(customer)) == left
    assert (await books.store.read(verify_books)).problems == ()


@pytest.mark.anyio
async def test_a_claim_is_shared_by_the_nodes_of_its_address(books: Books) -> None:
    """Each node's payable falls by what was placed at that address for it, and no other's."""
    await books.hear((What.DEPOSITED, CUSTOMER, 1000))
    await books.earn(NODES[0], PAYEE, 10, 1)
    await books.earn(NODES[1], PAYEE, 20, 1)
    await books.hear((What.CLAIMED, PAYEE, 30))
    assert [await books.balance(payable(node)) for node in NODES] == [0, 0]
    await books.earn(NODES[0], OTHER, 5, 2)
    await books.earn(NODES[1], PAYEE, 7, 2)
    await books.hear((What.CLAIMED, PAYEE, 7))
    assert [await books.balance(payable(node)) for node in NODES] == [5, 0]
    await books.hear((What.CLAIMED, OTHER, 5))
    assert await books.balance(payable(NODES[0])) == 0


@pytest.mark.anyio
async def test_more_than_was_placed_is_an_alarm(books: Books) -> None:
    """A claim that the books never promised books nothing, not even what came with it."""
    await books.hear((What.DEPOSITED, CUSTOMER, 1000))
    await books.earn(NODES[0], PAYEE, 10, 1)
    with pytest.raises(Conflict, match="more than was placed"):
        await books.hear((What.DEPOSITED, CUSTOMER, 5), (What.CLAIMED, PAYEE, 11))
    assert await books.balance(available(await books.customer())) == 990
    assert (await books.do(lambda one: one.cursor())).block == 1


@pytest.mark.anyio
async def test_reading_the_chain_again_books_nothing_twice(books: Books) -> None:
    """With the cursor taken back, everything is read again and recognised."""
    await books.hear((What.DEPOSITED, CUSTOMER, 1000))
    await books.earn(NODES[0], PAYEE, 10, 1)
    reports = (
        (What.CLAIMED, PAYEE, 10),
        (What.WITHDRAWAL_REQUESTED, CUSTOMER, 100),
        (What.DEPOSITED, CUSTOMER, 5),
    )
    await books.hear(*reports)
    before = await books.balance(available(await books.customer()))
    books.block -= 1
    await books.hear(*reports)
    assert await books.balance(available(await books.customer())) == before
    assert await books.balance(payable(NODES[0])) == 0


@pytest.mark.anyio
async def test_calls_from_afar_are_checked(books: Books) -> None:
    """The methods of the two ports can be called, with their arguments; nothing else can."""

    async def ask(method: str, *arguments: object) -> Any:
        asked = SettlementCall(CHAIN, VAULT.hex(), method, tuple(msgspec.to_builtins(arguments)))
        return await books.store.write(lambda connection: call(connection, asked))

    await ask("keep", attempt(0))
    answer = msgspec.json.decode(msgspec.json.encode(await ask("attempts", 1)))
    assert msgspec.convert(answer["result"], list[Attempt]) == [attempt(0)]
    for wrong in (("__init__", 1), ("_to", 1), ("sent", "one"), ("sent", 1, 2), ("mined", 1, "%")):
        with pytest.raises(InvalidRequest):
            await ask(*wrong)
