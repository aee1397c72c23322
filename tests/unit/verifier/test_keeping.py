"""A check that goes on from an earlier one: it finds exactly what a check of everything finds."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from tests.unit.verifier.making import (
    HOUR_MS,
    MATURITY_MS,
    build_day,
    close_day,
    dishonest,
    exported,
    frames,
    rewrite,
    sign_day,
)

from starai.ledger.events import Captured, Corrected, Matured, Refunded, event_id
from starai.registry.days.maturing import due, mature
from starai.registry.money.books import apply_event
from starai.registry.storage.sqlite import connect, migrate
from starai.testing.closing import ACCOUNT, DAY_MS, FIRST_DAY_MS, PaidNetwork, address
from starai.verifier import keeping
from starai.verifier.__main__ import main
from starai.verifier.checking import Report, verify
from starai.verifier.keeping import KeptRefused

NUM_DAYS = 4
BINARIES = ("blocks.bin", "tasks.bin", "confirms.bin", "transfers.bin", "paid.bin")


def days() -> Iterator[PaidNetwork]:
    """A network after each of its days: holds, refunds, payouts, work confirmed early."""
    connection = connect(":memory:")
    migrate(connection)
    network = PaidNetwork(connection, num_nodes=4)
    for number in range(NUM_DAYS):
        start_ms = FIRST_DAY_MS + number * DAY_MS
        if number < 3:
            network.bind(number, address(number), start_ms)
        # One that has paid in and never spends: its leaf is of nothing.
        connection.execute(
            "INSERT INTO customer (name, created_ms, credit_nano, address) VALUES (?, ?, 0, ?)",
            (f"idle {number}", start_ms, address(500 + number)),
        )
        network.hold(1, b"hold %d" % number, 700 + number, start_ms)
        network.work(2, start_ms)
        network.close_block(start_ms)
        network.work(1, start_ms + HOUR_MS, nodes=[number])
        refund_and_back(network, number, start_ms + HOUR_MS)
        network.close_block(start_ms + HOUR_MS)
        now_ms = start_ms + 7 * HOUR_MS
        mature(connection, due(connection, now_ms, MATURITY_MS))
        network.close_block(now_ms)
        # Both sides said it by the time when the day is built, and the next day has it.
        network.work(1, start_ms + DAY_MS - 1, nodes=[0, 3])
        close_day(connection, start_ms + DAY_MS)
        network.close_block(start_ms + DAY_MS)
        yield network


def refund_and_back(network: PaidNetwork, number: int, at_ms: int) -> None:
    """Give a customer something back, and take half of that back again."""
    for part in (b"stays", b"is undone"):
        refund = Refunded(
            event_id=event_id(b"refund", part, b"%d" % number),
            at_ms=at_ms,
            customer=1,
            node=network.nodes[number].raw,
            from_pending=20,
            ref=b"it was wrong",
        )
        apply_event(network.connection, refund)
    apply_event(network.connection, Corrected.of(newest(network), at_ms, b"it was not"))


def newest(network: PaidNetwork) -> bytes:
    """The newest transfer's id."""
    found = network.connection.execute("SELECT id FROM transfer ORDER BY seq DESC LIMIT 1")
    ((transfer_id,),) = found
    return bytes(transfer_id)


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The export after each day, of one network."""
    folder = tmp_path_factory.mktemp("exports")
    return [exported(network, folder / f"{day}") for day, network in enumerate(days(), 1)]


@pytest.fixture(scope="module")
def kept(exports: list[Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """What a check of all of each export keeps."""
    folder = tmp_path_factory.mktemp("kept")
    files = [folder / f"{day}" for day in range(1, NUM_DAYS + 1)]
    for export, file in zip(exports, files, strict=True):
        report = verify(export, kept_at=file)
        assert report.problems == ()
        assert report.began == "from the first block: nothing was kept"
    return files


def found(report: Report) -> tuple[object, ...]:
    """What must be the same wherever a check began."""
    return report.problems, report.counts, report.head


@pytest.mark.parametrize("num_stops", range(1, NUM_DAYS))
def test_any_split_of_days_comes_to_the_same(
    exports: list[Path], kept: list[Path], tmp_path: Path, num_stops: int
) -> None:
    """Wherever checks stop and go on, report and what is kept are those of one check of all."""
    whole = verify(exports[-1])
    assert whole.counts["days"] == NUM_DAYS
    leaves = (exports[-1] / f"day-{NUM_DAYS:06d}" / "leaves.txt").read_text()
    assert leaves.count(" 0\n") == NUM_DAYS  # of the customers that never spent
    for stops in itertools.combinations(range(NUM_DAYS - 1), num_stops):
        file = tmp_path / "-".join(map(str, stops))
        for place in stops:
            verify(exports[place], kept_at=file)
            assert file.read_bytes() == kept[place].read_bytes()
        report = verify(exports[-1], kept_at=file)
        assert report.began == f"after day {stops[-1] + 1}, which was checked before"
        assert found(report) == found(whole)
        assert file.read_bytes() == kept[-1].read_bytes()


def test_what_was_checked_is_not_read_again(
    exports: list[Path], kept: list[Path], tmp_path: Path
) -> None:
    """Of a day that was checked only its manifest is looked at; nothing new is checked as fast."""
    export, file = tmp_path / "export", shutil.copy(kept[-1], tmp_path / "kept")
    shutil.copytree(exports[-1], export)
    for day in sorted(export.glob("day-*")):
        for path in day.iterdir():
            if path.name != "manifest.txt" or not day.name.endswith(f"{NUM_DAYS}"):
                path.unlink()
    assert verify(export).problems
    report = verify(export, kept_at=file)
    assert found(report) == found(verify(exports[-1]))
    assert file.read_bytes() == kept[-1].read_bytes()


@given(
    split=st.integers(1, NUM_DAYS - 1),
    ahead=st.integers(1, NUM_DAYS),
    name=st.sampled_from((*BINARIES, "leaves.txt", "manifest.txt", "payers.txt", "addresses.txt")),
    place=st.floats(0, 1, exclude_max=True),
    bit=st.integers(0, 7),
)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_changed_bit_in_what_is_new_is_found_alike(
    exports: list[Path],
    kept: list[Path],
    tmp_path: Path,
    split: int,
    ahead: int,
    name: str,
    place: float,
    bit: int,
) -> None:
    """Whatever is changed after the days that were checked, both checks say the same of it."""
    number = min(split + ahead, NUM_DAYS + 1)
    folder = exports[-1] / ("open" if number > NUM_DAYS else f"day-{number:06d}")
    whole = (folder / name).read_bytes() if (folder / name).exists() else b""
    if not whole:
        return
    file = shutil.copy(kept[split - 1], tmp_path / "kept")
    at = int(place * len(whole))
    (folder / name).write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
    try:
        report, fresh = verify(exports[-1], kept_at=file), verify(exports[-1])
    finally:
        (folder / name).write_bytes(whole)
    assert found(report) == found(fresh)
    if name not in ("paid.bin", "addresses.txt"):  # some of their bits say what nothing needs
        assert report.problems
    if report.problems:
        assert file.read_bytes() == kept[split - 1].read_bytes()


@pytest.mark.parametrize("name", BINARIES)
@pytest.mark.parametrize("day", ["day-000003", "day-000004", "open"])
def test_a_missing_row_in_what_is_new_is_found_alike(
    exports: list[Path], kept: list[Path], tmp_path: Path, day: str, name: str
) -> None:
    """A row that is left out, or a whole day, is found by both checks in the same words."""
    file = shutil.copy(kept[1], tmp_path / "kept")
    export = shutil.copytree(exports[-1], tmp_path / "export")
    bodies = frames(export / day / name)
    for gone in {0, len(bodies) - 1} if bodies else ():
        rewrite(export / day / name, bodies[:gone] + bodies[gone + 1 :])
        report = verify(export, kept_at=file)
        assert report.problems
        assert found(report) == found(verify(export))
    if day == "day-000003":
        shutil.rmtree(export / day)
        report = verify(export, kept_at=file)
        assert report.problems == ("day 3 is missing",)
        assert found(report) == found(verify(export))


def test_dishonest_books_are_found_alike(tmp_path: Path) -> None:
    """A registry that lies in what it books and signs is found by what the days before left."""
    file, export = tmp_path / "kept", tmp_path / "export"
    *_, network = days()
    verify(exported(network, export), kept_at=file)
    now_ms = FIRST_DAY_MS + (NUM_DAYS + 2) * DAY_MS
    node = network.nodes[0].raw
    planted = Captured(
        event_id=event_id(b"planted"),
        at_ms=now_ms,
        customer=1,
        payer=101,
        node=node,
        charge=3,
        node_share=3,
        ref=b"r" * 32,
    )
    dishonest(network.connection, planted)
    network.work(1, now_ms, nodes=[0])
    ((pending,),) = network.connection.execute(
        "SELECT credits - debits FROM account WHERE kind = 'node.pending' AND owner = ?", (node,)
    )
    early = Matured(event_id=event_id(b"early"), at_ms=now_ms, node=node, amount=pending)
    dishonest(network.connection, early)
    network.close_block(now_ms)
    close_day(network.connection, now_ms + 1)
    report = verify(exported(network, export), kept_at=file)
    assert report.began == f"after day {NUM_DAYS}, which was checked before"
    assert found(report) == found(verify(export))
    for said in ("pays for no record", "does not mature", "matured too early"):
        assert any(said in problem for problem in report.problems), said


def test_a_correction_of_an_older_day_needs_all_of_it(tmp_path: Path) -> None:
    """If something is taken back that an older day booked, everything is checked."""
    file, export = tmp_path / "kept", tmp_path / "export"
    *_, network = days()
    verify(exported(network, export), kept_at=file)
    now_ms = FIRST_DAY_MS + NUM_DAYS * DAY_MS + 1
    ((stays,),) = network.connection.execute(
        "SELECT id FROM transfer WHERE code = 'refund' ORDER BY seq LIMIT 1"
    )
    apply_event(network.connection, Corrected.of(stays, now_ms, b"late"))
    network.close_block(now_ms)
    close_day(network.connection, now_ms + 1)
    report = verify(exported(network, export), kept_at=file)
    assert report.began == (
        f"from the first block: a transfer of before day {NUM_DAYS + 1} was taken back"
    )
    assert found(report) == found(verify(export))
    assert report.problems == ()


def test_a_signature_that_comes_after_the_check_is_seen(tmp_path: Path) -> None:
    """A day is checked before it is signed; the next check looks at its signature."""
    file, export = tmp_path / "kept", tmp_path / "export"
    *_, network = days()
    last_ms = FIRST_DAY_MS + NUM_DAYS * DAY_MS
    number = build_day(network.connection, last_ms + 1)
    unsigned = verify(exported(network, export), kept_at=file)
    assert unsigned.counts["days without a signature"] == 1
    before = file.read_bytes()
    sign_day(network.connection, number)
    report = verify(exported(network, export), kept_at=file)
    assert report.began
    assert "days without a signature" not in report.counts
    assert found(report) == found(verify(export))
    manifest = export / f"day-{number:06d}" / "manifest.txt"
    manifest.write_text(manifest.read_text()[:-2] + "0\n")
    wrong = verify(export, kept_at=file)
    assert wrong.problems == (f"day {number}: its signature is wrong",)
    assert found(wrong) == found(verify(export))
    assert file.read_bytes() == before


def test_another_history_is_checked_from_its_first_block(
    exports: list[Path], kept: list[Path], tmp_path: Path
) -> None:
    """If the newest day that was checked is not there as it was, all is checked, and says why."""
    file = shutil.copy(kept[2], tmp_path / "kept")
    report = verify(exports[1], kept_at=file)
    assert report.began == "from the first block: day 3 is not there as it was checked before"
    assert found(report) == found(verify(exports[1]))
    assert file.read_bytes() == kept[1].read_bytes()
    export = shutil.copytree(exports[-1], tmp_path / "export")
    manifest = export / "day-000002" / "manifest.txt"
    manifest.write_text(manifest.read_text().replace("epoch 2", "epoch 3"))
    report = verify(export, kept_at=file)
    assert report.began == "from the first block: day 2 is not there as it was checked before"
    assert report.problems
    assert file.read_bytes() == kept[1].read_bytes()


def test_a_damaged_file_is_refused(exports: list[Path], kept: list[Path], tmp_path: Path) -> None:
    """Any bit that changed and any end that is missing is found, and what to do is said."""
    whole, file = kept[1].read_bytes(), tmp_path / "kept"
    head = whole.index(b"\n")
    places = [*range(0, head, 7), *range(head, len(whole), len(whole) // 40)]
    for place in places:
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(KeptRefused, match=r"remove it|name another file"):
            keeping.read_kept(file)
        file.write_bytes(whole[:place])
        with pytest.raises(KeptRefused, match=r"remove it|name another file"):
            verify(exports[2], kept_at=file)
    file.unlink()
    file.mkdir()
    with pytest.raises(KeptRefused, match="cannot be read"):
        verify(exports[2], kept_at=file)


def test_a_file_in_no_folder_is_refused_before_the_check(tmp_path: Path) -> None:
    """Nobody waits for a check of everything to hear that its file has no place."""
    with pytest.raises(KeptRefused, match="no folder"):
        verify(tmp_path / "no export", kept_at=tmp_path / "nowhere" / "kept")


def test_a_file_of_another_network_is_refused(exports: list[Path], tmp_path: Path) -> None:
    """What was kept of one network is neither used for another nor replaced."""
    file = tmp_path / "kept"
    export = shutil.copytree(exports[-1], tmp_path / "export")
    verify(export, kept_at=file)
    whole = file.read_bytes()
    for old, new in ((ACCOUNT.raw.hex(), "11" * 32), ("network books", "network novels")):
        path = export / "network.txt"
        text = path.read_text()
        path.write_text(text.replace(old, new))
        with pytest.raises(KeptRefused, match="is of another"):
            verify(export, kept_at=file)
        path.write_text(text)
    assert file.read_bytes() == whole


def test_an_older_programs_file_is_replaced(
    exports: list[Path], kept: list[Path], tmp_path: Path
) -> None:
    """A program that keeps something else begins anew, and no person has to do anything."""
    file = tmp_path / "kept"
    file.write_bytes(kept[1].read_bytes().replace(b"checked 1 ", b"checked 0 "))
    report = verify(exports[1], kept_at=file)
    assert report.began == "from the first block: nothing was kept"
    assert file.read_bytes() == kept[1].read_bytes()


def test_too_much_is_not_kept(
    exports: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is more than a file may hold is not written, and a larger file is not read."""
    file = tmp_path / "kept"
    verify(exports[0], kept_at=file)
    whole = file.read_bytes()
    monkeypatch.setattr(keeping, "KEPT_BYTES_MAX", len(whole))
    assert verify(exports[1], kept_at=file).problems == ()
    assert file.read_bytes() == whole
    monkeypatch.setattr(keeping, "KEPT_BYTES_MAX", len(whole) - 1)
    with pytest.raises(KeptRefused):
        verify(exports[1], kept_at=file)


def test_the_command_says_where_it_began(
    exports: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its first line says where the check began, the last is the head; status 2 is a refusal."""
    file = tmp_path / "kept"
    assert main(["--kept", str(file), str(exports[0])]) == 0
    assert main(["--kept", str(file), str(exports[1])]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "began from the first block: nothing was kept"
    assert "began after day 1, which was checked before" in lines
    assert lines[-1] == f"head {verify(exports[1]).head}"
    file.write_bytes(b"something else")
    assert main(["--kept", str(file), str(exports[1])]) == 2
    assert "name another file" in capsys.readouterr().err
    assert main(["--kept", str(file)]) == 2
