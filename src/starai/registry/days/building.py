"""What a closed day comes to: running sums, leaves, root and manifest, from what its blocks hold.

It follows from the transfers in those blocks, the running sums before them and the addresses that
were bound by then, so building it again gives the same bytes. Knows nothing of files or chains.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from typing import Final

import msgspec

from starai.core.errors import Conflict, NotFound
from starai.registry.days.epochs import (
    DayTerms,
    Epoch,
    EpochState,
    changed_at,
    get_epoch,
    sums_at,
)
from starai.registry.schema import rows
from starai.registry.storage.base import Connection
from starai.settlement.leaves import (
    NANO_PER_UNIT,
    LeafKind,
    Owner,
    Placed,
    advance,
    dust_nano,
    leaf_file,
    leaves_of,
    tree_of,
    waiting_nano,
)
from starai.settlement.manifest import FIRST_HEAD, Manifest

#: Days whose running sums stay in the database: two roots are live, the rest is for repair. Older
#: ones are in the exports. Where a chain settles, all stay until they are final there.
EPOCHS_KEPT: Final = 8
_PAYABLE: Final = "node.payable"
_CUSTOMERS: Final = frozenset({"customer.available", "customer.held"})
_OUTSIDE: Final = "chain.pool"


class Built(msgspec.Struct, frozen=True):
    """What a day comes to: its manifest, the running sums it changes, and all of them."""

    manifest: Manifest
    changed: dict[Placed, int]
    sums: dict[Placed, int]


class _Span(msgspec.Struct, frozen=True):
    """The rows that an epoch covers: transfers after ``after``, up to ``last``; and its end."""

    after: int
    last: int
    log_size: int
    log_root: bytes
    block_hash: bytes
    closed_ms: int


def build(connection: Connection, epoch: Epoch, terms: DayTerms) -> Built:
    """What a day that is cut comes to; reads only, and only what the cut covers.

    Raises:
        NotFound: a block of it is missing.
    """
    before = get_epoch(connection, epoch.epoch - 1).parsed() if epoch.epoch > 1 else None
    span = _span(connection, epoch)
    by_kind, flows = _flows(connection, span.after, span.last)
    addresses = addresses_of(connection, epoch, span.closed_ms)
    sums = sums_at(connection, epoch.epoch - 1)
    changed = advance(sums, flows, addresses)
    sums.update(changed)
    leaves = leaves_of(sums)
    for kind, nano in before.balances if before else ():
        by_kind[kind] += nano
    spent = sum(n for at, n in sums.items() if at.kind is LeafKind.SPENT and not at.address)
    manifest = Manifest(
        network=terms.network,
        chain_id=terms.chain_id,
        contract=terms.contract,
        epoch=epoch.epoch,
        from_block=epoch.from_block,
        to_block=epoch.to_block,
        block_hash=span.block_hash,
        closed_ms=span.closed_ms,
        log_size=span.log_size,
        log_root=span.log_root,
        last_confirm=_last_confirm(connection, epoch),
        maturity_ms=terms.maturity_ms,
        previous_head=before.head() if before else FIRST_HEAD,
        leaves_sha256=hashlib.sha256(leaf_file(sums).encode()).digest(),
        num_leaves=len(leaves),
        root=tree_of(leaves).root,
        earned_units=sum(leaf.units for leaf in leaves if leaf.kind is LeafKind.EARNED),
        # A refund takes spending back, but what was posted never falls: later spending fills it.
        spent_units=max(spent // NANO_PER_UNIT, before.spent_units if before else 0),
        unplaced_nano=waiting_nano(sums, LeafKind.EARNED),
        dust_nano=dust_nano(sums),
        balances=tuple(sorted(by_kind.items())),
    )
    return Built(manifest, changed, sums)


def _span(connection: Connection, epoch: Epoch) -> _Span:
    after = 0
    if epoch.from_block:
        after = _block(connection, epoch.from_block - 1)[0]
    return _Span(after, *_block(connection, epoch.to_block))


def _block(connection: Connection, height: int) -> tuple[int, int, bytes, bytes, int]:
    found = rows(
        connection,
        "SELECT last_transfer, tree_size, log_root, hash, closed_ms FROM block WHERE height = ?",
        height,
    )
    for last, size, root, block_hash, closed_ms in found:
        return last, size, root, block_hash, closed_ms
    raise NotFound(f"block {height} is missing")


def _flows(
    connection: Connection, after: int, last: int
) -> tuple[defaultdict[str, int], defaultdict[Owner, int]]:
    """What the transfers of a span did to each kind of account, and to each owner of a leaf.

    A node earns what flows into its payable account, a customer spends what leaves its accounts,
    but neither what only goes to the chain or comes from there.
    """
    by_kind: defaultdict[str, int] = defaultdict(int)
    flows: defaultdict[Owner, int] = defaultdict(int)
    found = rows(
        connection,
        "SELECT debit_kind, debit_owner, credit_kind, credit_owner, SUM(amount) FROM transfer"
        " WHERE seq > ? AND seq <= ?"
        " GROUP BY debit_kind, debit_owner, credit_kind, credit_owner",
        after,
        last,
    )
    for debit_kind, debit_owner, credit_kind, credit_owner, total in found:
        amount = int(total)  # PostgreSQL sums to a Decimal
        by_kind[debit_kind] -= amount
        by_kind[credit_kind] += amount
        if _OUTSIDE in (debit_kind, credit_kind):
            continue
        if credit_kind == _PAYABLE:
            flows[Owner(LeafKind.EARNED, credit_owner)] += amount
        if debit_kind == _PAYABLE:
            flows[Owner(LeafKind.EARNED, debit_owner)] -= amount
        if debit_kind in _CUSTOMERS:
            flows[Owner(LeafKind.SPENT, debit_owner)] += amount
        if credit_kind in _CUSTOMERS:
            flows[Owner(LeafKind.SPENT, credit_owner)] -= amount
    return by_kind, flows


def addresses_of(connection: Connection, epoch: Epoch, at_ms: int) -> dict[Owner, bytes]:
    """Where owners wanted their money at ``at_ms``, the end of an epoch.

    Once the day is built, what counts is where its money went then: a customer may have changed
    its address since, and a node may have named one with an earlier time.
    """
    if epoch.manifest:
        placed = changed_at(connection, epoch.epoch)
        return {Owner(at.kind, at.key): at.address for at in placed if at.address}
    found = {
        Owner(LeafKind.EARNED, node): address
        for node, address in rows(
            connection,
            "SELECT node, address FROM payout WHERE bound_ms <= ? ORDER BY node, bound_ms",
            at_ms,
        )
    }
    customers = rows(connection, "SELECT id, address FROM customer WHERE address IS NOT NULL")
    for number, address in customers:
        found[Owner(LeafKind.SPENT, number.to_bytes(8, "big"))] = address
    return found


def _last_confirm(connection: Connection, epoch: Epoch) -> int:
    """The newest confirmation; as it was when the day was built, if it was built before."""
    if epoch.manifest:
        return epoch.parsed().last_confirm
    ((last,),) = rows(connection, "SELECT COALESCE(MAX(seq), 0) FROM confirm")
    return int(last)


def keep(connection: Connection, built: Built) -> None:
    """Write what a day comes to, and that it is built.

    Raises:
        Conflict: the day is not merely cut.
    """
    manifest = built.manifest
    number, text = manifest.epoch, manifest.text()
    connection.execute(
        "UPDATE epoch SET state = ?, manifest = ?, manifest_hash = ?, root = ?, prev_head = ?,"
        " head = ?, cum_earned = ?, cum_spent = ? WHERE epoch = ? AND state = ?",
        (
            EpochState.BUILT.value,
            text,
            manifest.head(),
            manifest.root,
            manifest.previous_head,
            manifest.head(),
            str(manifest.earned_units),
            str(manifest.spent_units),
            number,
            EpochState.CUT.value,
        ),
    )
    if connection.changes() != 1:
        raise Conflict(f"day {number} is not waiting to be built")
    connection.executemany(
        "INSERT INTO leaf (epoch, kind, payee, cum) VALUES (?, ?, ?, ?)",
        _leaf_rows(number, built.changed),
    )
    old = _old(connection, manifest)
    connection.execute(
        "DELETE FROM leaf WHERE epoch < ? AND EXISTS (SELECT 1 FROM leaf AS newer"
        " WHERE newer.kind = leaf.kind AND newer.payee = leaf.payee"
        " AND newer.epoch > leaf.epoch AND newer.epoch <= ?)",
        (old, old),
    )


def _old(connection: Connection, manifest: Manifest) -> int:
    """The day up to which running sums may go: a day that can be vetoed needs those before it."""
    old = manifest.epoch - EPOCHS_KEPT
    if not any(manifest.contract):
        return old
    sql = "SELECT COALESCE(MIN(epoch), ?) FROM epoch WHERE state <> ?"
    ((first,),) = rows(connection, sql, manifest.epoch, EpochState.FINAL.value)
    return min(old, int(first) - 1)


def _leaf_rows(number: int, changed: Mapping[Placed, int]) -> list[tuple[int, int, bytes, str]]:
    return [
        (number, int(at.kind), at.key + at.address, str(nano))
        for at, nano in sorted(changed.items())
    ]
