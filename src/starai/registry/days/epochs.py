"""The rows of closed days: where each was cut, what it came to, and how far it got.

Everything is a function of a connection. A day is an epoch: the blocks after the last one's, up to
a height that is chosen once and written down first. `starai.registry.days.building` says what
it comes to. Knows nothing of files, processes or chains.
"""

from __future__ import annotations

import enum
from typing import Any, Final

import msgspec

from starai.core.errors import ConfigurationRefused, Conflict, NotFound
from starai.registry.schema import rows
from starai.registry.storage.base import Connection
from starai.settlement.leaves import ADDRESS_BYTES, Leaf, LeafKind, Placed, leaves_of
from starai.settlement.manifest import Manifest, split_signature

_KEY_BYTES: Final = {LeafKind.EARNED: 32, LeafKind.SPENT: 8}


class EpochState(enum.StrEnum):
    """How far a day got. Before it is cut it is open, and has no row."""

    #: Its last block is chosen.
    CUT = "cut"
    #: Its sums and its manifest are written.
    BUILT = "built"
    #: Another process came to the same from the export.
    CHECKED = "checked"
    #: The registry signed the manifest: it may be posted.
    SIGNED = "signed"
    #: A transaction that posts it was sent.
    SENT = "sent"
    #: It is in a block of the chain.
    MINED = "mined"
    #: It is deep enough in the chain to stay.
    FINAL = "final"
    #: The guardian refused it: it is cut and built again, with corrections.
    VETOED = "vetoed"


#: A day that is on its way to its signature: the next one waits.
UNFINISHED: Final = frozenset({EpochState.CUT, EpochState.BUILT, EpochState.CHECKED})
#: A day that is on the chain, and all before it.
ON_CHAIN: Final = (EpochState.MINED, EpochState.FINAL)
_COLUMNS: Final = "epoch, from_block, to_block, state, COALESCE(manifest, ''), closed_ms"


class Epoch(msgspec.Struct, frozen=True):
    """A row. ``manifest`` is the text, signed from `EpochState.SIGNED` on, or empty when cut."""

    epoch: int
    from_block: int
    to_block: int
    state: EpochState
    manifest: str
    closed_ms: int

    def parsed(self) -> Manifest:
        """The manifest.

        Raises:
            MalformedFrame: the text was changed.
        """
        return Manifest.parse(split_signature(self.manifest)[0])


class DayTerms(msgspec.Struct, frozen=True, kw_only=True):
    """What days are closed under.

    Money matures after ``maturity_ms``. A day's growth of what is earned or spent beyond both
    ``growth_nano`` and ``growth_times`` the day before stops for a person. Without a chain,
    ``chain_id`` and ``contract`` are zero: the books are closed all the same.
    """

    network: str
    chain_id: int = 0
    contract: bytes = bytes(20)
    maturity_ms: int = 172_800_000
    growth_nano: int = 1_000_000_000_000
    growth_times: int = 5


def epochs(connection: Connection) -> list[Epoch]:
    """All days, first to last."""
    found = rows(connection, f"SELECT {_COLUMNS} FROM epoch ORDER BY epoch")  # noqa: S608 - names
    return [_epoch(row) for row in found]


def last_epoch(connection: Connection) -> Epoch | None:
    """The newest day."""
    found = rows(connection, f"SELECT {_COLUMNS} FROM epoch ORDER BY epoch DESC LIMIT 1")  # noqa: S608 - names
    return next(map(_epoch, found), None)


def vetoed_epoch(connection: Connection) -> Epoch | None:
    """The day that has to be closed again before any other: the first vetoed one, if there is one.

    A chain takes days in order. So one that is followed by a day on the chain is there as well,
    whatever was heard of a veto.
    """
    found = rows(
        connection,
        f"SELECT {_COLUMNS} FROM epoch WHERE state = ? AND epoch >"  # noqa: S608 - names
        " (SELECT COALESCE(MAX(epoch), 0) FROM epoch WHERE state IN (?, ?))"
        " ORDER BY epoch LIMIT 1",
        EpochState.VETOED.value,
        *(one.value for one in ON_CHAIN),
    )
    return next(map(_epoch, found), None)


def get_epoch(connection: Connection, number: int) -> Epoch:
    """One day.

    Raises:
        NotFound: there is none of that number.
    """
    found = rows(connection, f"SELECT {_COLUMNS} FROM epoch WHERE epoch = ?", number)  # noqa: S608 - names
    for row in found:
        return _epoch(row)
    raise NotFound(f"no day number {number} was closed")


def _epoch(row: tuple[Any, ...]) -> Epoch:
    number, first, last, state, manifest, closed_ms = row
    return Epoch(number, first, last, EpochState(state), manifest, closed_ms)


def days_before_vault(connection: Connection) -> int:
    """How many days were closed before the network had a vault, which numbers those after from 1.

    Manifests without a vault name an address of zeros.
    """
    sql = "SELECT COUNT(*) FROM epoch WHERE manifest LIKE ?"
    ((count,),) = rows(connection, sql, f"%\ncontract {bytes(ADDRESS_BYTES).hex()}\n%")
    return int(count)


def require_vault(connection: Connection, terms: DayTerms) -> None:
    """Check that days go on for the vault that they were closed for so far, if for any.

    Raises:
        ConfigurationRefused: they are to be closed for another one, or for none.
    """
    built = [epoch for epoch in epochs(connection)[-2:] if epoch.manifest]
    if not built:
        return
    facts = built[-1].parsed()
    named = (facts.chain_id, facts.contract)
    if any(facts.contract) and named != (terms.chain_id, terms.contract):
        raise ConfigurationRefused(
            f"days of this network are closed for vault {facts.chain_id}:0x{facts.contract.hex()}:"
            " start the registry with it (STARAI_VAULT), since no day can be for another"
        )


def cut(connection: Connection, before_ms: int) -> Epoch | None:
    """Begin a day that ends with the last block closed before ``before_ms``; None without one.

    A day that is on its way already is returned as it is. Days that were missed are part of it.

    Raises:
        Conflict: a day was vetoed, and no other is worth closing before it: `cut_again`.
    """
    vetoed = vetoed_epoch(connection)
    if vetoed is not None:
        raise Conflict(f"day {vetoed.epoch} was vetoed: correct the books and close it again")
    last = last_epoch(connection)
    if last is not None and last.state in UNFINISHED:
        return last
    number, first = (1, 0) if last is None else (last.epoch + 1, last.to_block + 1)
    block = _last_block(connection, first, before_ms)
    if block is None:
        return None
    connection.execute(
        "INSERT INTO epoch (epoch, from_block, to_block, state, closed_ms) VALUES (?, ?, ?, ?, ?)",
        (number, first, block[0], EpochState.CUT.value, block[1]),
    )
    return get_epoch(connection, number)


def cut_again(connection: Connection, number: int, before_ms: int) -> Epoch:
    """Take a vetoed day back to its cut, now up to the last block before ``before_ms``.

    Days that were closed after it go: they name a head that no chain takes any more, and their
    blocks are this one's now.

    Raises:
        Conflict: it is not the `vetoed_epoch`.
    """
    vetoed = vetoed_epoch(connection)
    if vetoed is None or vetoed.epoch != number:
        raise Conflict("only a day that was vetoed is closed again, and the first such day first")
    last = _last_block(connection, vetoed.to_block, before_ms)
    block = last or (vetoed.to_block, vetoed.closed_ms)
    connection.execute("DELETE FROM leaf WHERE epoch >= ?", (number,))
    connection.execute("DELETE FROM epoch WHERE epoch > ?", (number,))
    connection.execute(
        "UPDATE epoch SET state = ?, to_block = ?, closed_ms = ?, manifest = NULL,"
        " manifest_hash = NULL, root = NULL, head = NULL WHERE epoch = ?",
        (EpochState.CUT.value, *block, number),
    )
    return get_epoch(connection, number)


def _last_block(connection: Connection, first: int, before_ms: int) -> tuple[int, int] | None:
    found = rows(
        connection,
        "SELECT height, closed_ms FROM block WHERE height >= ? AND closed_ms < ?"
        " ORDER BY height DESC LIMIT 1",
        first,
        before_ms,
    )
    for height, closed_ms in found:
        return height, closed_ms
    return None


def sums_at(connection: Connection, number: int) -> dict[Placed, int]:
    """The running sums at the end of day ``number``, one of the last `EPOCHS_KEPT`."""
    found = rows(
        connection,
        "SELECT kind, payee, cum FROM leaf WHERE epoch <= ? ORDER BY kind, payee, epoch",
        number,
    )
    return {_placed(kind, payee): int(cum) for kind, payee, cum in found}  # the newest stays


def _placed(kind: int, payee: bytes) -> Placed:
    leaf_kind = LeafKind(kind)
    width = _KEY_BYTES[leaf_kind]
    return Placed(leaf_kind, payee[:width], payee[width:])


def changed_at(connection: Connection, number: int) -> dict[Placed, int]:
    """The running sums that day ``number`` changed."""
    found = rows(connection, "SELECT kind, payee, cum FROM leaf WHERE epoch = ?", number)
    return {_placed(kind, payee): int(cum) for kind, payee, cum in found}


def leaves_at(connection: Connection, number: int) -> list[Leaf]:
    """The leaves of day ``number``'s tree, one of the last `EPOCHS_KEPT`."""
    return leaves_of(sums_at(connection, number))


def advance_state(
    connection: Connection, number: int, before: EpochState, after: EpochState, manifest: str = ""
) -> None:
    """Take a day from one state to the next; with ``manifest``, that text replaces the row's.

    Raises:
        Conflict: the day is in another state.
    """
    connection.execute(
        "UPDATE epoch SET state = ?, manifest = CASE WHEN ? = '' THEN manifest ELSE ? END"
        " WHERE epoch = ? AND state = ?",
        (after.value, manifest, manifest, number, before.value),
    )
    if connection.changes() != 1:
        raise Conflict(f"day {number} is not {before.value}")
