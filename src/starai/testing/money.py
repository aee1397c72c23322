"""A registry's database with a price, a customer, its key and money, for tests and benchmarks."""

from __future__ import annotations

import msgspec

from starai.ledger.accounts import Account, Kind, available
from starai.ledger.events import Captured, Deposited, HoldPlaced, Matured, Slashed, Staked, event_id
from starai.protocol.records import TaskRecord
from starai.protocol.tasks import TokenPrice
from starai.registry.money.books import apply_event
from starai.registry.schema import bind_network
from starai.registry.storage import Connection
from starai.testing.records import BLOCK_MS, NETWORK, START_MS

#: The one price, of which a node gets nine tenths.
PRICE = TokenPrice(1, 20, 60)
NODE_BPS = 9_000
#: The customer, and the account number of its one key.
CUSTOMER = 1
PAYER = 7
#: What the customer has paid in, and what is set aside of it: plenty.
DEPOSIT = 10**15
HOLD = 10**14


def open_books(connection: Connection) -> None:
    """Fill a new database: the network, the price, the customer with its key, money and a hold."""
    bind_network(connection, NETWORK, BLOCK_MS)
    connection.execute(
        "INSERT INTO price (model, input_nano, output_nano, node_bps, valid_from_ms)"
        " VALUES ('*', ?, ?, ?, 0)",
        (PRICE.input_nano_usd, PRICE.output_nano_usd, NODE_BPS),
    )
    connection.execute("INSERT INTO customer (name, created_ms, credit_nano) VALUES ('c', 0, 0)")
    connection.execute(
        "INSERT INTO key (key_id, key_hash, name, customer, rpm, tpm, created_ms, version, owner)"
        " VALUES ('k', ?, 'k', ?, 0, 0, 0, 1, ?)",
        (b"k" * 32, PAYER, CUSTOMER),
    )
    paid_in = Deposited(
        event_id=event_id(b"test", b"deposit"), at_ms=START_MS, customer=CUSTOMER, amount=DEPOSIT
    )
    hold = HoldPlaced(
        event_id=event_id(b"test", b"hold"),
        at_ms=START_MS,
        hold_id=b"h" * 16,
        customer=CUSTOMER,
        payer=PAYER,
        amount=HOLD,
        expires_ms=START_MS + 10**12,
    )
    for one in (paid_in, hold):
        apply_event(connection, one)


def insure(connection: Connection, amount: int) -> None:
    """Bring some of the customer's money into the insurance, by way of a node's stake."""
    node, at_ms = b"i" * 32, START_MS
    for one in (
        Captured(
            event_id=event_id(b"test", b"capture"),
            at_ms=at_ms,
            customer=CUSTOMER,
            payer=PAYER,
            node=node,
            charge=amount,
            node_share=amount,
            ref=b"",
        ),
        Matured(event_id=event_id(b"test", b"mature"), at_ms=at_ms, node=node, amount=amount),
        Staked(event_id=event_id(b"test", b"stake"), at_ms=at_ms, node=node, amount=amount),
        Slashed(
            event_id=event_id(b"test", b"slash"), at_ms=at_ms, node=node, amount=amount, ref=b""
        ),
    ):
        apply_event(connection, one)


def priced(record: TaskRecord) -> TaskRecord:
    """The same record, charged by `PRICE`."""
    charge = PRICE.charge(record.prompt_tokens, record.answer_tokens)
    return msgspec.structs.replace(record, price_id=PRICE.price_id, charge_nano_usd=charge)


def balances(connection: Connection) -> dict[Account, int]:
    """What is in each account; a customer's held money counts as available."""
    found: dict[Account, int] = {}
    for kind, owner, balance in connection.execute(
        "SELECT kind, owner, credits - debits FROM account"
    ):
        account = Account(Kind(kind), owner)
        if account.kind is Kind.HELD:
            account = available(int.from_bytes(owner, "big"))
        found[account] = found.get(account, 0) + balance
    return {account: balance for account, balance in found.items() if balance}
