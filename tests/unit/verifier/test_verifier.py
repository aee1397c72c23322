"""The verifier: accepts sound books and finds every single thing that is wrong with others."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.unit.verifier.making import (
    HOUR_MS,
    MATURITY_MS,
    close_day,
    dishonest,
    exported,
    frames,
    rewrite,
)

from starai.ledger.events import Captured, Matured, event_id
from starai.registry.days.epochs import get_epoch
from starai.registry.days.maturing import due, mature
from starai.registry.storage.sqlite import connect, migrate
from starai.testing.closing import ACCOUNT, DAY_MS, FIRST_DAY_MS, PaidNetwork, address
from starai.verifier.checking import verify


def two_days(num_nodes: int = 4) -> PaidNetwork:
    """Two closed days and a block more: work, holds, earnings that mature."""
    connection = connect(":memory:")
    migrate(connection)
    network = PaidNetwork(connection, num_nodes=num_nodes)
    for number in range(num_nodes - 1):
        network.bind(number, address(number), FIRST_DAY_MS)
    network.hold(1, b"first", 20_000, FIRST_DAY_MS)
    network.hold(2, b"second", 1_000, FIRST_DAY_MS)
    network.work(3, FIRST_DAY_MS)
    network.close_block(FIRST_DAY_MS)
    network.work(2, FIRST_DAY_MS + HOUR_MS)
    network.close_block(FIRST_DAY_MS + HOUR_MS)
    now_ms = FIRST_DAY_MS + 7 * HOUR_MS
    mature(connection, due(connection, now_ms, MATURITY_MS))
    network.close_block(now_ms)
    close_day(connection, FIRST_DAY_MS + DAY_MS)
    network.work(1, FIRST_DAY_MS + DAY_MS)
    network.close_block(FIRST_DAY_MS + DAY_MS)
    now_ms = FIRST_DAY_MS + DAY_MS + 8 * HOUR_MS
    mature(connection, due(connection, now_ms, MATURITY_MS))
    network.close_block(now_ms)
    close_day(connection, now_ms + 1)
    network.work(1, now_ms + 1)
    network.close_block(now_ms + 2)
    return network


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(two_days(), tmp_path_factory.mktemp("sound"))


@pytest.fixture
def export(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "export"))


def test_sound_books_are_accepted(sound: Path) -> None:
    """Nothing is wrong with books that nobody touched, and everything was looked at."""
    report = verify(sound)
    assert report.problems == ()
    assert report.counts["records"] == 4 * 7
    assert report.counts["confirmations"] == 4 * 4 * 2
    assert (report.counts["blocks"], report.counts["days"]) == (6, 2)
    assert report.head == get_epoch(two_days().connection, 2).parsed().head().hex()


@pytest.mark.parametrize("name", ["blocks.bin", "tasks.bin", "confirms.bin", "transfers.bin"])
@pytest.mark.parametrize("day", ["day-000001", "day-000002", "open"])
def test_a_missing_row_is_found(export: Path, day: str, name: str) -> None:
    """No block, record, confirmation or transfer can be left out."""
    path = export / day / name
    bodies = frames(path)
    for gone in {0, len(bodies) - 1}:
        rewrite(path, bodies[:gone] + bodies[gone + 1 :])
        assert verify(export).problems, gone
    rewrite(path, bodies)
    assert not verify(export).problems


@pytest.mark.parametrize(
    "name", ["blocks.bin", "tasks.bin", "confirms.bin", "transfers.bin", "paid.bin"]
)
def test_a_flipped_bit_anywhere_is_found(export: Path, name: str) -> None:
    """Every byte of every row counts: sizes, hashes, amounts, signatures."""
    path = export / "day-000001" / name
    whole = path.read_bytes()
    for place in range(0, len(whole), max(1, len(whole) // 40)):
        if name == "paid.bin" and place % 29 == 28:
            continue  # whether a case was decided matters only where a side did not sign
        path.write_bytes(
            whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :]
        )
        assert verify(export).problems, place
    path.write_bytes(whole)
    assert not verify(export).problems


@pytest.mark.parametrize("name", ["leaves.txt", "manifest.txt", "prices.txt", "payers.txt"])
def test_a_changed_digit_is_found(export: Path, name: str) -> None:
    """A leaf, a fact, a price or a payer that was changed is found, whichever it is."""
    path = export / "day-000001" / name
    whole = path.read_text()
    digits = [place for place, character in enumerate(whole) if character.isdigit()]
    if name == "prices.txt":  # a higher price changes nothing: no record charged so much
        digits = digits[:1]
    for place in digits[:: max(1, len(digits) // 30)]:
        other = "1" if whole[place] != "1" else "2"
        path.write_text(whole[:place] + other + whole[place + 1 :])
        assert verify(export).problems, whole[:place]
    path.write_text(whole)
    assert not verify(export).problems


@pytest.mark.parametrize(
    ("prices", "found"),
    [("1 20 63 9001\n", "takes more"), ("1 21 63 9000\n", "more than its share"), ("", "price")],
)
def test_what_was_paid_is_held_against_prices(export: Path, prices: str, found: str) -> None:
    """Whoever was paid more than the price table says is found."""
    (export / "day-000001" / "prices.txt").write_text(prices)
    assert any(found in problem for problem in verify(export).problems)


EDITS = {
    "a transfer's amount": "UPDATE transfer SET amount = amount + 1 WHERE seq = 5",
    "a transfer's owner": "UPDATE transfer SET credit_owner = zeroblob(32)"
    " WHERE seq = (SELECT MIN(seq) FROM transfer WHERE code = 'capture')",
    "a dropped transfer": "DELETE FROM transfer WHERE seq = 6",
    "a dropped last transfer": "DELETE FROM transfer WHERE seq = (SELECT MAX(seq) FROM transfer)",
    "a record": "UPDATE task SET rec = (SELECT rec FROM task WHERE seq = 2) WHERE seq = 1",
    "a dropped record": "DELETE FROM task WHERE seq = 3",
    "a block's time": "UPDATE block SET closed_ms = closed_ms - 1,"
    " header = CAST(substr(header, 1, length(header) - 1) || x'00' AS BLOB) WHERE height = 1",
    "a dropped block": "DELETE FROM block WHERE height = 1",
    "who was paid": "UPDATE task SET event_id = NULL WHERE seq = 1",
    "a leaf": "UPDATE leaf SET cum = cum + 1 WHERE epoch = 1 AND kind = 0 AND length(payee) = 52",
    "an address": "UPDATE payout SET address = zeroblob(20)",
    "a payer": "UPDATE key SET owner = 2 WHERE owner = 1",
    "a manifest": "UPDATE epoch SET manifest = replace(manifest, 'earned_units ',"
    " 'earned_units 1') WHERE epoch = 1",
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_row_is_found(edit: str, tmp_path: Path) -> None:
    """Whatever an operator changes by hand in the database, the export of it does not pass."""
    network = two_days()
    network.connection.execute("PRAGMA foreign_keys = OFF")
    network.connection.execute(EDITS[edit])
    assert verify(exported(network, tmp_path)).problems


def test_a_unit_too_much_is_found_though_all_hashes_fit(tmp_path: Path) -> None:
    """A registry that books and signs one nano-USD more than a record charges is found."""
    network = two_days()
    node = network.nodes[0].raw
    extra = Captured(
        event_id=event_id(b"planted"),
        at_ms=FIRST_DAY_MS,
        customer=1,
        payer=101,
        node=node,
        charge=1,
        node_share=1,
        ref=b"r" * 32,
    )
    dishonest(network.connection, extra)
    network.close_block(FIRST_DAY_MS + 2 * DAY_MS)
    report = verify(exported(network, tmp_path))
    assert [problem for problem in report.problems if "pays for no record" in problem]


def test_money_that_matures_too_early_is_found(tmp_path: Path) -> None:
    """A registry that lets a node have its money before its time is found."""
    network = two_days()
    node = network.nodes[0].raw
    now_ms = FIRST_DAY_MS + 2 * DAY_MS
    mature(network.connection, due(network.connection, now_ms, MATURITY_MS))
    network.work(1, now_ms, nodes=[0])
    network.close_block(now_ms)
    early = Matured(event_id=event_id(b"early"), at_ms=now_ms + MATURITY_MS, node=node, amount=1000)
    dishonest(network.connection, early)
    network.close_block(now_ms + 1)
    close_day(network.connection, now_ms + 2)
    problems = verify(exported(network, tmp_path)).problems
    assert problems
    assert all("matured too early" in problem for problem in problems)


def test_money_that_is_withheld_is_found(tmp_path: Path) -> None:
    """A registry that never lets earnings mature is found a day later."""
    network = two_days()
    now_ms = FIRST_DAY_MS + 4 * DAY_MS
    network.hold(1, b"later", 5, now_ms)
    network.close_block(now_ms)
    close_day(network.connection, now_ms + 1)
    problems = verify(exported(network, tmp_path)).problems
    assert problems
    assert all("does not mature" in problem for problem in problems)


def test_a_missing_day_is_found(export: Path) -> None:
    """Days are numbered without a gap."""
    shutil.rmtree(export / "day-000001")
    assert verify(export).problems


def test_another_networks_key_does_not_pass(export: Path) -> None:
    """Blocks that another key signed are not this network's."""
    path = export / "network.txt"
    path.write_text(path.read_text().replace(ACCOUNT.raw.hex(), "11" * 32))
    assert any("signed by the network" in problem for problem in verify(export).problems)


@pytest.mark.parametrize("rubbish", [b"", b"\x00", b"\xff" * 40, bytes(64), b"a b c d e f\n" * 9])
def test_rubbish_is_refused_and_breaks_nothing(export: Path, rubbish: bytes) -> None:
    """A file of anything else is a problem in words, never a crash."""
    for path in sorted(export.rglob("*.*")):
        whole = path.read_bytes()
        path.write_bytes(rubbish)
        if whole != rubbish:
            assert verify(export).problems, path
        path.write_bytes(whole)


def test_the_verifier_stands_alone(sound: Path) -> None:
    """Its process loads nothing else of StarAI, and no database."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom starai.verifier.checking import verify\n"
        f"assert not verify(Path({str(sound)!r})).problems\n"
        "ours = {name for name in sys.modules if name.startswith('starai.')}\n"
        "print(sorted(name for name in ours if not name.startswith('starai.verifier')),"
        " 'apsw' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout == "[] False\n", done.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_one_tampered_leaf_among_many_is_found(tmp_path: Path) -> None:
    """One changed digit in one of a hundred thousand leaves is found."""
    connection = connect(":memory:")
    migrate(connection)
    connection.execute("BEGIN")
    network = PaidNetwork(connection, num_nodes=1, num_customers=100_000)
    network.work(100_000, FIRST_DAY_MS)
    network.close_block(FIRST_DAY_MS)
    close_day(connection, FIRST_DAY_MS + 1)
    export = exported(network, tmp_path)
    assert not verify(export).problems
    path = export / "day-000001" / "leaves.txt"
    lines = path.read_text().splitlines(keepends=True)
    assert sum(not line.split()[2].startswith("-") for line in lines) == 100_000
    number = len(lines) // 3
    lines[number] = lines[number][:-2] + ("1" if lines[number][-2] != "1" else "2") + "\n"
    path.write_text("".join(lines))
    problems = verify(export).problems
    assert problems
    assert all("leaves.txt" in problem for problem in problems)
