"""The books as a folder of files that anybody can check without this program.

A folder for each closed day, and ``open`` for the blocks after the last one; the same rows give
the same bytes. `starai.verifier` reads it, and docs/reference/export.md says what is in each file.
No name, no key's text, no address of a person but those that money is sent to. Rows are streamed:
memory does not grow with tasks or transfers. Knows nothing of what the numbers mean.
"""

from __future__ import annotations

import shutil
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from starai.core.errors import NotFound, StoreFailed
from starai.registry.days.beancount import beancount
from starai.registry.days.building import addresses_of
from starai.registry.days.epochs import Epoch, epochs, sums_at
from starai.registry.log.blocks import transfers_after
from starai.registry.schema import rows
from starai.registry.storage.base import Connection
from starai.settlement.leaves import LeafKind, Owner, Placed, leaf_file
from starai.settlement.manifest import split_signature

FORMAT: Final = 1
OPEN: Final = "open"
_LENGTH: Final = struct.Struct(">I")
_NUMBERED: Final = struct.Struct(">Q")
_CONFIRM: Final = struct.Struct(">BQIB32s32sQ32s64s")
_PAID: Final = struct.Struct(">16sQB")
#: Versions of what a confirmation signs: the first did not name both parties.
_ONE_PARTY: Final = 1
_BOTH_PARTIES: Final = 2


class _Span(NamedTuple):
    """Rows that a folder covers: blocks from the first to the last, others after one number."""

    blocks: tuple[int, int]
    tasks: tuple[int, int]
    transfers: tuple[int, int]
    confirms: tuple[int, int]
    closed_ms: int


def day_folder(folder: Path, number: int) -> Path:
    """Where a day goes in an export."""
    return folder / f"day-{number:06d}"


def forget_days(folder: Path, first: int) -> None:
    """Remove the folders of days from number ``first`` on: days that are not signed, or no more."""
    for known in folder.glob("day-" + "[0-9]" * 6):
        if known.name >= day_folder(folder, first).name:
            shutil.rmtree(known, ignore_errors=True)


def export_all(
    connection: Connection, folder: Path, account_key: bytes, *, with_beancount: bool = False
) -> list[Path]:
    """Write everything, from the first block to the last; days that are there stay as they are.

    Folders of days that are closed no more, since one before them was vetoed, are removed.

    Args:
        connection: sees one consistent state.
        folder: is made if it is absent.
        account_key: the network's raw public key, which signs blocks.
        with_beancount: also write ``books.beancount``.

    Returns the folders of this export.

    Raises:
        NotFound: a block is missing.
        StoreFailed: the folder cannot be written.
    """
    closed = [epoch for epoch in epochs(connection) if epoch.manifest]
    folders = []
    forget_days(folder, len(closed) + 1)
    for epoch in closed:
        target = day_folder(folder, epoch.epoch)
        if not _is_there(target, epoch):
            export_day(connection, epoch, folder, account_key)
        folders.append(target)
    folders += _export_open(connection, closed[-1] if closed else None, folder, account_key)
    if with_beancount:
        _write(folder / "books.beancount", (line.encode() for line in beancount(connection)))
    return folders


def _is_there(target: Path, epoch: Epoch) -> bool:
    """Whether a day's folder is complete; a signature that it lacks is added."""
    known = target / "manifest.txt"
    if not known.exists():
        return False
    text = known.read_text("utf-8")
    if split_signature(text)[0] != split_signature(epoch.manifest)[0]:
        return False
    if text != epoch.manifest:
        fresh = target / "manifest.txt.new"
        fresh.write_text(epoch.manifest, "utf-8", newline="\n")
        fresh.replace(known)
    return True


def export_day(
    connection: Connection,
    epoch: Epoch,
    folder: Path,
    account_key: bytes,
    sums: dict[Placed, int] | None = None,
) -> Path:
    """Write one day that is built; its folder appears when it is complete.

    ``sums`` are the running sums at its end, if the caller has them.

    Raises:
        NotFound: a block of it is missing.
        StoreFailed: the folder cannot be written.
    """
    before = next((one for one in epochs(connection) if one.epoch == epoch.epoch - 1), None)
    facts = epoch.parsed()
    confirms = (before.parsed().last_confirm if before else 0, facts.last_confirm)
    span = _span(connection, epoch.from_block, epoch.to_block, confirms)
    if sums is None:
        sums = sums_at(connection, epoch.epoch)
    target = day_folder(folder, epoch.epoch)
    try:
        _network_file(connection, folder, account_key)
        with _fresh(target) as making:
            _tables(connection, span, making.path)
            addresses = addresses_of(connection, epoch, span.closed_ms)
            _addresses_file(connection, making.path, addresses)
            _write(making.path / "leaves.txt", [leaf_file(sums).encode()])
            _write(making.path / "manifest.txt", [epoch.manifest.encode()])
    except OSError as error:
        raise StoreFailed(f"the export cannot be written: {error}") from error
    return target


def _export_open(
    connection: Connection, last: Epoch | None, folder: Path, account_key: bytes
) -> list[Path]:
    first = last.to_block + 1 if last else 0
    ((height,),) = rows(connection, "SELECT COALESCE(MAX(height), -1) FROM block")
    ((newest,),) = rows(connection, "SELECT COALESCE(MAX(seq), 0) FROM confirm")
    target = folder / OPEN
    try:
        _network_file(connection, folder, account_key)
        shutil.rmtree(target, ignore_errors=True)
        if height < first:
            return []
        confirms = (last.parsed().last_confirm if last else 0, newest)
        with _fresh(target) as making:
            _tables(connection, _span(connection, first, height, confirms), making.path)
    except OSError as error:
        raise StoreFailed(f"the export cannot be written: {error}") from error
    return [target]


class _fresh:  # noqa: N801 - a context manager, used like a function
    """A folder that gets its name when it is complete, and replaces what had that name."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self.path = target.with_name(f".{target.name}.partial")

    def __enter__(self) -> Self:
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir(parents=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            shutil.rmtree(self._target, ignore_errors=True)
            self.path.rename(self._target)
        else:
            shutil.rmtree(self.path, ignore_errors=True)


def _span(connection: Connection, first: int, last: int, confirms: tuple[int, int]) -> _Span:
    task, transfer = _ends(connection, first - 1)[:2] if first else (0, 0)
    last_task, last_transfer, closed_ms = _ends(connection, last)
    return _Span((first, last), (task, last_task), (transfer, last_transfer), confirms, closed_ms)


def _ends(connection: Connection, height: int) -> tuple[int, int, int]:
    sql = "SELECT last_task, last_transfer, closed_ms FROM block WHERE height = ?"
    for last_task, last_transfer, closed_ms in rows(connection, sql, height):
        return last_task, last_transfer, closed_ms
    raise NotFound(f"block {height} is missing")


def _write(path: Path, parts: Iterable[bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb", buffering=1 << 20) as file:
        file.writelines(parts)


def _framed(bodies: Iterable[bytes]) -> Iterator[bytes]:
    return (_LENGTH.pack(len(body)) + body for body in bodies)


def _network_file(connection: Connection, folder: Path, account_key: bytes) -> None:
    ((name,),) = rows(connection, "SELECT name FROM network")
    lines = f"format {FORMAT}\nkey {account_key.hex()}\nnetwork {name}\n"
    _write(folder / "network.txt", [lines.encode()])


def _tables(connection: Connection, span: _Span, folder: Path) -> None:
    """The files that every folder has."""
    blocks = rows(
        connection,
        "SELECT header, sig FROM block WHERE height >= ? AND height <= ? ORDER BY height",
        *span.blocks,
    )
    _write(folder / "blocks.bin", _framed(header + sig for header, sig in blocks))
    tasks = rows(
        connection,
        "SELECT seq, rec FROM task WHERE seq > ? AND seq <= ? ORDER BY seq",
        *span.tasks,
    )
    _write(folder / "tasks.bin", _framed(_NUMBERED.pack(seq) + rec for seq, rec in tasks))
    confirms = rows(
        connection,
        "SELECT block, part, side, node, dist, signer, charge, root, sig, leaves FROM confirm"
        " WHERE seq > ? AND seq <= ? ORDER BY seq",
        *span.confirms,
    )
    frames = map(_confirm_frame, confirms)
    _write(folder / "confirms.bin", _framed(frames))
    moved = transfers_after(connection, *span.transfers)
    bodies = (_NUMBERED.pack(seq) + transfer.canonical() for seq, transfer in moved)
    _write(folder / "transfers.bin", _framed(bodies))
    payers, prices = _paid_file(connection, span, folder)
    known = rows(connection, "SELECT customer, owner FROM key ORDER BY customer")
    _write(folder / "payers.txt", _lines(row for row in known if row[0] in payers))
    known = rows(connection, "SELECT id, input_nano, output_nano, node_bps FROM price ORDER BY id")
    _write(folder / "prices.txt", _lines(row for row in known if row[0] in prices))


def _confirm_frame(row: tuple[Any, ...]) -> bytes:
    slot, part, side, node, distributor, signer, charge, root, signature, leaves = row
    version, other = (_ONE_PARTY, signer) if distributor is None else (_BOTH_PARTIES, distributor)
    facts = (version, slot, part, side, node, other, charge or 0, root, signature)
    return _CONFIRM.pack(*facts) + bytes(leaves)


def _paid_file(connection: Connection, span: _Span, folder: Path) -> tuple[set[int], set[int]]:
    """Which record was paid by which capture; who paid, and by which price rows."""
    payers: set[int] = set()
    prices: set[int] = set()

    def bodies() -> Iterator[bytes]:
        for event_id, seq, payer, price_id, case in rows(
            connection,
            "SELECT task.event_id, seq, cust, price_id, dispute.id FROM task"
            " LEFT JOIN dispute ON task_seq = seq"
            " WHERE task.event_id IN (SELECT event_id FROM transfer WHERE seq > ? AND seq <= ?)"
            " ORDER BY seq",
            *span.transfers,
        ):
            payers.add(payer)
            prices.add(price_id)
            yield _PAID.pack(event_id, seq, case is not None)

    _write(folder / "paid.bin", _framed(bodies()))
    return payers, prices


def _lines(table: Iterable[tuple[object, ...]]) -> Iterator[bytes]:
    return (" ".join(map(str, row)).encode() + b"\n" for row in table)


def _addresses_file(connection: Connection, folder: Path, addresses: dict[Owner, bytes]) -> None:
    """Where the day's money went; a node's address with the node's first signature under it.

    A node's bindings come in the order of their times, so no later one takes the first's place.
    """
    bound = {
        (Owner(LeafKind.EARNED, node), address): (bound_ms, sig.hex())
        for node, address, bound_ms, sig in rows(
            connection, "SELECT node, address, bound_ms, sig FROM payout ORDER BY bound_ms DESC"
        )
    }
    lines = (
        (*_named(owner, address), *bound.get((owner, address), (0, "-")))
        for owner, address in sorted(addresses.items())
    )
    _write(folder / "addresses.txt", _lines(lines))


def _named(owner: Owner, address: bytes) -> tuple[str, str, str]:
    return owner.kind.name.lower(), owner.key.hex(), address.hex()
