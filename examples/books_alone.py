"""The books alone, without a network: a customer pays, a node earns, and a replay agrees."""

from starai.ledger import Books, Captured, Deposited, HoldPlaced, MemoryShelf, Replay, event_id
from starai.ledger.accounts import FEE, available, pending, usd

shelf, node = MemoryShelf(), bytes(32)
books = Books(shelf)
books.apply(Deposited(event_id=event_id(b"pay"), at_ms=1, customer=7, amount=1_000_000_000))
hold = HoldPlaced(
    event_id=event_id(b"hold"),
    at_ms=2,
    hold_id=event_id(b"hold"),
    customer=7,
    payer=1,
    amount=600_000,
    expires_ms=9,
)
books.apply(hold)
work = Captured(
    event_id=event_id(b"work"),
    at_ms=3,
    customer=7,
    payer=1,
    node=node,
    charge=180_000,
    node_share=162_000,
    ref=b"task 1",
)
for transfer in books.apply(work):
    print(f"{transfer.code}: {usd(transfer.amount)} from {transfer.debit.kind}")
print("the same again moves", len(books.apply(work)), "transfers")
for account in (available(7), pending(node), FEE):
    print(f"{account.kind} has {usd(books.balance(account))}")
shelf.keep(books.changes())

replay = Replay()
assert not [problem for transfer in shelf.transfers for problem in replay.add(transfer)]
assert replay.accounts == shelf.accounts
print("a replay of the transfers agrees")
