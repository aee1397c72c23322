"""Books for the verifier's tests, day after day, and their files."""

from __future__ import annotations

import struct
from pathlib import Path

from starai.ledger.books import Books
from starai.registry.days.building import build, keep
from starai.registry.days.epochs import DayTerms, EpochState, advance_state, cut
from starai.registry.days.export import export_all
from starai.registry.money.shelf import StoredShelf
from starai.registry.storage.base import Connection
from starai.settlement.manifest import signed_bytes, with_signature
from starai.testing.closing import ACCOUNT, NETWORK, PaidNetwork

HOUR_MS = 3_600_000
MATURITY_MS = 6 * HOUR_MS
TERMS = DayTerms(network=NETWORK, maturity_ms=MATURITY_MS)


def build_day(connection: Connection, before_ms: int) -> int:
    """Cut and build a day, as it is when it is checked; its number."""
    epoch = cut(connection, before_ms)
    assert epoch is not None
    keep(connection, build(connection, epoch, TERMS))
    return epoch.epoch


def sign_day(connection: Connection, number: int) -> None:
    """Sign a day that is built."""
    ((text,),) = connection.execute("SELECT manifest FROM epoch WHERE epoch = ?", (number,))
    signed = with_signature(text, ACCOUNT.sign(signed_bytes(text)))
    advance_state(connection, number, EpochState.BUILT, EpochState.SIGNED, signed)


def close_day(connection: Connection, before_ms: int) -> None:
    """Cut, build and sign a day."""
    sign_day(connection, build_day(connection, before_ms))


def dishonest(connection: Connection, event) -> None:
    """Let the books say something that no record says, as a dishonest registry could."""
    shelf = StoredShelf(connection)
    books = Books(shelf)
    assert books.apply(event)
    shelf.keep(books.changes())


def exported(network: PaidNetwork, folder: Path) -> Path:
    """The export of everything."""
    export_all(network.connection, folder, ACCOUNT.raw)
    return folder


def frames(path: Path) -> list[bytes]:
    """The frames of a file."""
    data, at, found = path.read_bytes(), 0, []
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        found.append(data[at + 4 : at + 4 + length])
        at += 4 + length
    return found


def rewrite(path: Path, bodies: list[bytes]) -> None:
    """Write frames back."""
    path.write_bytes(b"".join(struct.pack(">I", len(body)) + body for body in bodies))
