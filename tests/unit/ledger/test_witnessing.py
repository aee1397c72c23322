"""A witness believes a log that only grows, and no other."""

from __future__ import annotations

import pytest

from starai.core.errors import Conflict, MalformedFrame, SealBroken
from starai.core.randomness import SeededRandomness
from starai.ledger.checkpoints import Checkpoint, sign_checkpoint
from starai.ledger.merkle_log import MemoryTiles, MerkleLog
from starai.ledger.witnessing import Seen, advance
from starai.protocol.identity import Identity
from starai.protocol.records import leaf_hash

ORIGIN = "starai/test"
LOG = Identity.create(SeededRandomness(4))


def _log(size: int, *, tampered: int = -1) -> MerkleLog:
    log = MerkleLog(MemoryTiles())
    log.extend(leaf_hash(b"other" if n == tampered else bytes([n % 256])) for n in range(size))
    return log


def _note(log: MerkleLog, size: int, extension: str = "block 1 aa") -> str:
    checkpoint = Checkpoint(ORIGIN, size, log.root(size), (extension,))
    return sign_checkpoint(checkpoint, LOG.raw, LOG.sign)


def _advance(seen: Seen, log: MerkleLog, size: int, note: str = "") -> Seen:
    proof = log.consistency(seen.size, size) if seen.size <= size else ()
    return advance(seen, note or _note(log, size), proof, ORIGIN, LOG.raw)


def test_a_growing_log_is_believed() -> None:
    """From nothing, and from any size to any later one; the same again changes nothing."""
    log, seen = _log(300), Seen()
    for size in (0, 1, 2, 3, 4, 8, 9, 255, 256, 257, 300, 300):
        seen = _advance(seen, log, size)
        assert (seen.size, seen.root, seen.note) == (size, log.root(size), _note(log, size))


def test_an_old_snapshot_is_refused() -> None:
    """A log that was set back is refused, though the network signed that size once itself."""
    log = _log(300)
    seen = _advance(Seen(), log, 300)
    for size in (0, 1, 299):
        with pytest.raises(Conflict, match="set back"):
            _advance(seen, log, size)


def test_another_history_is_refused() -> None:
    """A log with one record changed finds no belief, whatever its proof, at any later size."""
    log, other = _log(400), _log(400, tampered=17)
    seen = _advance(Seen(), log, 300)
    for size in (301, 400):
        with pytest.raises(Conflict, match="does not begin"):
            _advance(seen, other, size)
    with pytest.raises(Conflict, match="two checkpoints"):
        _advance(seen, other, 300)
    assert _advance(seen, log, 400).size == 400


def test_two_checkpoints_of_one_size_are_refused() -> None:
    """Also when they differ in what they say of the books only."""
    log = _log(10)
    seen = _advance(Seen(), log, 10)
    with pytest.raises(Conflict, match="two checkpoints"):
        _advance(seen, log, 10, _note(log, 10, "block 1 bb"))


@pytest.mark.parametrize("old", [1, 5, 8])
def test_no_proof_no_belief(old: int) -> None:
    """Without the proof, or with that of another size, nothing is believed."""
    log = _log(20)
    seen = _advance(Seen(), log, old)
    for proof in ([], log.consistency(old + 1, 20), [bytes(32)], [bytes(31)], [bytes(32)] * 99):
        with pytest.raises(Conflict):
            advance(seen, _note(log, 20), proof, ORIGIN, LOG.raw)


def test_others_checkpoints_are_refused() -> None:
    """Another key's or another log's checkpoint, and what is none."""
    log, stranger = _log(5), Identity.create(SeededRandomness(5))
    foreign = sign_checkpoint(Checkpoint(ORIGIN, 5, log.root()), stranger.raw, stranger.sign)
    elsewhere = sign_checkpoint(Checkpoint("starai/else", 5, log.root()), LOG.raw, LOG.sign)
    for note in (foreign, elsewhere):
        with pytest.raises(SealBroken):
            advance(Seen(), note, (), ORIGIN, LOG.raw)
    with pytest.raises(MalformedFrame):
        advance(Seen(), "rubbish", (), ORIGIN, LOG.raw)
