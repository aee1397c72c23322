"""Settling from the operator's home: keys, addresses, claims made from an export, the ports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from starai.core.errors import ConfigurationRefused, NotFound
from starai.local.settling import AskedSettlement, claims_of, from_hex, in_a_thread, read_key
from starai.registry.days.settling import SettlementCall, call
from starai.registry.storage import open_store
from starai.settlement.leaves import Leaf, LeafKind, Placed, leaf_file, leaves_of, tree_of
from starai.settlement.manifest import Manifest
from starai.settlement.rollup.base import BlockRef, Fee, Happening, Signed, Standing, What
from starai.settlement.settler import Attempt, AttemptState
from starai.settlement.tree import verify_proof
from starai.settlement.watching import Cursor

VAULT = b"v" * 20


def test_a_key_is_read_from_a_file_of_ones_own(tmp_path: Path) -> None:
    """64 digits, with or without 0x and a line's end; a file that others may read is refused."""
    path = tmp_path / "poster.key"
    for text in ("ab" * 32, "0x" + "ab" * 32 + "\n"):
        path.write_text(text)
        path.chmod(0o600)
        assert read_key(path) == b"\xab" * 32
    path.chmod(0o644)
    with pytest.raises(ConfigurationRefused, match="chmod 600"):
        read_key(path)
    with pytest.raises(ConfigurationRefused, match="cannot read"):
        read_key(tmp_path / "absent.key")


@pytest.mark.parametrize("text", ["", "0x12", "zz" * 20, "ab" * 21])
def test_what_is_no_address_is_refused_without_being_repeated(text: str) -> None:
    """A key that was given by mistake must not appear on the screen."""
    with pytest.raises(ConfigurationRefused) as caught:
        from_hex(text, 20, "an address")
    assert caught.value.message == "an address has 40 hexadecimal digits"


class At:
    """A chain that only says which epoch is active."""

    def __init__(self, active: int) -> None:
        self.active = active

    def tip(self) -> BlockRef:
        return BlockRef(9, b"", 0)

    def standing(self, block: int) -> Standing:
        return Standing(self.active + 1, self.active, b"", b"", 0, 0, 0)


def export(folder: Path, sums: dict[Placed, int], **changed: Any) -> bytes:
    """A day's folder, as far as claims need it; returns its root."""
    root = tree_of(leaves_of(sums)).root
    empty: dict[Any, Any] = {bytes: b"", int: 0, str: ""}
    facts = {f.name: empty.get(f.type, ()) for f in msgspec.structs.fields(Manifest)}
    manifest = Manifest(**facts | {"epoch": 3, "root": root} | changed)
    day = folder / "day-000003"
    day.mkdir()
    (day / "manifest.txt").write_text(manifest.text())
    (day / "leaves.txt").write_text(leaf_file(sums))
    return root


SUMS = {
    Placed(LeafKind.EARNED, b"\1" * 32, b"a" * 20): 5_000,
    Placed(LeafKind.EARNED, b"\2" * 32, b"a" * 20): 7_500,
    Placed(LeafKind.EARNED, b"\3" * 32, b"b" * 20): 9_000,
    Placed(LeafKind.SPENT, (1).to_bytes(8, "big"), b"c" * 20): 30_000,
}


def test_claims_are_made_from_the_active_day_of_an_export(tmp_path: Path) -> None:
    """One for each payee's address, with a proof against that day's root."""
    root = export(tmp_path, SUMS)
    chain: Any = At(3)
    claims = claims_of(tmp_path, chain)
    assert [(one.account, one.units) for one in claims] == [(b"a" * 20, 12), (b"b" * 20, 9)]
    for one in claims:
        leaf = Leaf(LeafKind.EARNED, one.account, one.units)
        assert verify_proof(root, leaf.hash(), one.proof)


def test_what_customers_spent_is_proved_too(tmp_path: Path) -> None:
    """One for each customer's address, of nothing as well, with a proof against the same root."""
    idle = Placed(LeafKind.SPENT, (2).to_bytes(8, "big"), b"d" * 20)
    root = export(tmp_path, {**SUMS, idle: 0})
    chain: Any = At(3)
    found = claims_of(tmp_path, chain, LeafKind.SPENT)
    assert [(one.account, one.units) for one in found] == [(b"c" * 20, 30), (b"d" * 20, 0)]
    for one in found:
        assert verify_proof(root, Leaf(LeafKind.SPENT, one.account, one.units).hash(), one.proof)


def test_days_of_before_the_vault_are_not_counted(tmp_path: Path) -> None:
    """A vault that came after two days calls the third its first."""
    for day in ("day-000001", "day-000002"):
        (tmp_path / day).mkdir()
        (tmp_path / day / "manifest.txt").write_text(f"title\ncontract {'00' * 20}\nepoch 1\n")
    export(tmp_path, SUMS)
    chain: Any = At(1)
    assert len(claims_of(tmp_path, chain)) == 2


def test_an_export_that_does_not_fit_is_told(tmp_path: Path) -> None:
    """No active day, a day that is not there, leaves of another manifest."""
    export(tmp_path, SUMS, root=b"\7" * 32)
    for active, words in ((0, "no root is active"), (2, "cannot be read"), (3, "not those")):
        chain: Any = At(active)
        with pytest.raises(NotFound, match=words):
            claims_of(tmp_path, chain)


@pytest.mark.anyio
async def test_both_ports_work_over_the_wire(tmp_path: Path) -> None:
    """What goes through JSON comes back as it was, from a thread that blocks."""
    async with open_store(tmp_path / "registry.db") as store:

        async def ask(what: str, **arguments: object) -> Any:
            assert what == "settlement"
            asked = msgspec.json.decode(msgspec.json.encode(arguments), type=SettlementCall)
            answer = await store.write(lambda connection: call(connection, asked))
            return msgspec.json.decode(msgspec.json.encode(answer))

        def use() -> None:
            books = AskedSettlement(ask, 7, VAULT)
            attempt = Attempt(1, 0, Signed(b"raw", b"h" * 32, 4, Fee(10**13, 5)))
            books.keep(attempt)
            books.mark(1, 0, AttemptState.REVERTED)
            assert books.attempts(1) == [attempt._replace(state=AttemptState.REVERTED)]
            assert (books.next_post(1), books.cursor()) == (None, None)
            books.sent(1)
            books.vetoed(1)
            deposit = Happening(
                What.DEPOSITED, BlockRef(5, b"b" * 32, 1), b"t" * 32, 0, b"c" * 20, 10
            )
            books.book([deposit], Cursor(5, b"b" * 32))
            assert books.cursor() == Cursor(5, b"b" * 32)

        await in_a_thread(use)
