"""Who owes whom: accounts, transfers of one debit and one credit, holds, prices; all pure.

Money is an integer number of nano-USD. Events go in, transfers come out; no I/O, clock or chance.
Usable alone::

    from starai.ledger import Books, Captured, Deposited, HoldPlaced, MemoryShelf, event_id
    from starai.ledger.accounts import available, pending

    shelf, node = MemoryShelf(), bytes(32)
    books = Books(shelf)
    books.apply(Deposited(event_id=event_id(b"a"), at_ms=1, customer=7, amount=1_000))
    books.apply(HoldPlaced(event_id=event_id(b"b"), at_ms=2, hold_id=bytes(16), customer=7,
                           payer=1, amount=600, expires_ms=9))
    books.apply(Captured(event_id=event_id(b"c"), at_ms=3, customer=7, payer=1, node=node,
                         charge=500, node_share=400, ref=b"task"))
    books.balance(available(7)), books.balance(pending(node))  # 400, 400
    shelf.keep(books.changes())
"""

from starai.ledger.accounts import Account, Kind, Totals
from starai.ledger.books import Books
from starai.ledger.events import (
    Captured,
    Claimed,
    Corrected,
    Deposited,
    Event,
    HoldPlaced,
    HoldReleased,
    Matured,
    Refunded,
    Slashed,
    Staked,
    Unstaked,
    Withdrawn,
    event_id,
)
from starai.ledger.prices import Price
from starai.ledger.replaying import Replay
from starai.ledger.rules import uncovered
from starai.ledger.shelves import Changes, Hold, MemoryShelf, Shelf
from starai.ledger.state import check, state_hash
from starai.ledger.transfers import Code, Transfer

__all__ = [
    "Account",
    "Books",
    "Captured",
    "Changes",
    "Claimed",
    "Code",
    "Corrected",
    "Deposited",
    "Event",
    "Hold",
    "HoldPlaced",
    "HoldReleased",
    "Kind",
    "Matured",
    "MemoryShelf",
    "Price",
    "Refunded",
    "Replay",
    "Shelf",
    "Slashed",
    "Staked",
    "Totals",
    "Transfer",
    "Unstaked",
    "Withdrawn",
    "check",
    "event_id",
    "state_hash",
    "uncovered",
]
