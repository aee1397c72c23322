"""Reconciliation: among many tasks, every seeded fault is found, and nothing else is called one."""

from __future__ import annotations

from pathlib import Path

import pytest

from starai.core.errors import SealBroken
from starai.core.randomness import SeededRandomness
from starai.ledger.reconciling import WINDOW_MS, Standing
from starai.protocol.records import RECORD_BYTES, leaf_hash
from starai.protocol.registry import Confirm, Side
from starai.registry.integrity import check_integrity
from starai.registry.money.books import verify_books
from starai.registry.reconciling.checking import check_confirm
from starai.registry.reconciling.tasks import apply
from starai.registry.reconciling.words import Outcome, Said
from starai.registry.storage import Connection
from starai.registry.storage.sqlite import connect, migrate
from starai.testing.faults import scores, seed_faults
from starai.testing.money import open_books
from starai.testing.records import BLOCK_MS, NETWORK, NODES, START_MS, STRANGER


def _say(connection: Connection, said: Confirm, at_ms: int) -> list[bytes]:
    """Have a confirmation heard; the leaves that nobody signed."""
    try:
        checked = check_confirm(said, NETWORK, BLOCK_MS)
    except SealBroken:
        data = said.records
        starts = range(0, len(data), RECORD_BYTES)
        return [leaf_hash(data[start : start + RECORD_BYTES]) for start in starts]
    if said.side is Side.NODE and apply(connection, [Said(said, (), at_ms)]) != [None]:
        return []
    (outcome,) = apply(
        connection, [Said(said, checked, at_ms, unknown=said.distributor == STRANGER.party)]
    )
    assert isinstance(outcome, Outcome)
    return []


@pytest.mark.parametrize(
    "num_tasks", [5_000, pytest.param(100_000, marks=pytest.mark.slow)], ids=str
)
def test_every_seeded_fault_is_found_and_nothing_else(tmp_path: Path, num_tasks: int) -> None:
    """Precision and recall are 1 for each of the eleven classes, with one task in 100 faulty."""
    seeded = seed_faults(num_tasks, 0.01, SeededRandomness(5))
    connection = connect(tmp_path / "registry.db")
    migrate(connection)
    forged: list[bytes] = []
    with connection:
        open_books(connection)
        for said in seeded.said:
            forged += _say(connection, said, START_MS)
        for said in seeded.late:
            _say(connection, said, START_MS + WINDOW_MS + 1)
    found = {
        leaf: Standing(state) for leaf, state in connection.execute("SELECT leaf, state FROM task")
    }
    found |= dict.fromkeys(forged, Standing.BAD_SIG)
    assert found == seeded.expected
    for standing, (num, precision, recall) in scores(seeded.expected, found).items():
        assert (precision, recall) == (1.0, 1.0)
        assert num >= num_tasks // 100 // 12, standing
    assert verify_books(connection).problems == ()
    if num_tasks < 10_000:
        assert check_integrity(connection, NODES[0].raw).problems == ()
    connection.close()
