"""Where rows wait in a file, whatever the disk does."""

from __future__ import annotations

import errno
import threading
import time

import pytest

torch = pytest.importorskip("torch")

from starai.core.clock import SystemClock  # noqa: E402
from starai.core.errors import ConfigurationRefused  # noqa: E402
from starai.engines.paging.memory import Copy  # noqa: E402
from starai.engines.text.pool import KeyValuePool  # noqa: E402
from starai.engines.text.shelf import Behind, File, InMemory  # noqa: E402

ROW_BYTES, SLOTS, MOST_ROWS = 4096, 16, 6
WAIT_S = 10.0


class Disk(File):
    """A file that can be held up, and fails for some slots."""

    def __init__(self) -> None:
        super().__init__(SLOTS, ROW_BYTES)
        self.go = threading.Event()
        self.go.set()
        self.broken: set[int] = set()

    def write(self, slot, row):
        self._happen(slot)
        super().write(slot, row)

    def read(self, slot, row):
        self._happen(slot)
        super().read(slot, row)

    def _happen(self, slot):
        assert self.go.wait(WAIT_S)
        if slot in self.broken:
            raise OSError(errno.EIO, "broken")


def row(number):
    return torch.full((1, ROW_BYTES), number, dtype=torch.uint8)


def shelf_on(disk):
    return Behind(disk, ROW_BYTES, MOST_ROWS * ROW_BYTES, SystemClock())


def settled(shelf):
    """Wait until everything is carried and the thread has ended."""
    until = time.monotonic() + WAIT_S
    while shelf._thread is not None:
        assert time.monotonic() < until
        time.sleep(0.001)


def taken(shelf):
    """All that comes: the numbers in the rows by target, None for what is lost."""
    found = {}
    waiting = True
    while waiting:
        shelf.wait(WAIT_S)
        waiting = shelf.asked_rows > 0
        for one in shelf.take():
            for n, copy in enumerate(one.copies):
                found[one.key, copy.target] = None if one.rows is None else int(one.rows[n, 0])
    return found


def test_rows_come_back_from_memory_and_from_the_file():
    """Whether a row is written yet makes no difference; the newest of a slot counts."""
    disk = Disk()
    shelf = shelf_on(disk)
    disk.go.clear()
    assert shelf.put([3, 4], torch.cat([row(30), row(40)])) == []
    assert shelf.put([3], row(31)) == []
    shelf.ask(b"a", [Copy(3, 7), Copy(4, 8)])
    assert taken(shelf) == {(b"a", 7): 31, (b"a", 8): 40}
    disk.go.set()
    settled(shelf)
    shelf.ask(b"b", [Copy(4, 1), Copy(3, 2)])
    assert taken(shelf) == {(b"b", 1): 40, (b"b", 2): 31}
    settled(shelf)
    assert shelf.written.reset()[0] in (2 * ROW_BYTES, 3 * ROW_BYTES)
    assert shelf.read.reset()[0] == 2 * ROW_BYTES
    assert not shelf._writes


def test_what_a_slow_disk_cannot_take_is_refused():
    """Memory for rows that wait is bounded; a refused row is lost, not what an older one was."""
    disk = Disk()
    shelf = shelf_on(disk)
    shelf.put([0], row(9))
    settled(shelf)
    disk.go.clear()
    slots = list(range(MOST_ROWS + 2))[::-1]
    refused = shelf.put(slots, torch.cat([row(slot) for slot in slots]))
    assert refused == [1, 0]
    shelf.ask(b"a", [Copy(0, 0), Copy(5, 5)])
    assert taken(shelf) == {(b"a", 0): None, (b"a", 5): 5}
    disk.go.set()
    settled(shelf)
    assert shelf.put([0], row(7)) == []
    shelf.ask(b"a", [Copy(0, 0)])
    assert taken(shelf) == {(b"a", 0): 7}


def test_a_row_that_was_taken_holds_no_memory_of_those_refused():
    """What waits takes the room of its own rows, whatever they came with."""
    disk = Disk()
    shelf = shelf_on(disk)
    disk.go.clear()
    slots = list(range(SLOTS))
    assert len(shelf.put(slots, torch.cat([row(slot) for slot in slots]))) == SLOTS - MOST_ROWS
    held = [one.untyped_storage() for one in shelf._writes.values()]
    held_bytes = {storage.data_ptr(): storage.nbytes() for storage in held}
    assert sum(held_bytes.values()) == MOST_ROWS * ROW_BYTES
    disk.go.set()
    settled(shelf)


def test_what_is_read_and_not_taken_is_bounded_too():
    """The thread pauses until somebody takes what it read."""
    shelf = shelf_on(Disk())
    for slot in range(SLOTS):
        shelf.put([slot], row(slot))
        settled(shelf)
    shelf.ask(b"a", [Copy(slot, slot) for slot in range(SLOTS)])
    settled(shelf)
    assert shelf.asked_rows == SLOTS - MOST_ROWS
    assert taken(shelf) == {(b"a", slot): slot for slot in range(SLOTS)}


def test_a_disk_that_fails_loses_rows_and_nothing_else():
    """Errors of reading and writing are told as lost rows; the others come."""
    disk = Disk()
    shelf = shelf_on(disk)
    disk.broken = {2}
    shelf.put([1, 2, 3], torch.cat([row(1), row(2), row(3)]))
    settled(shelf)
    disk.broken = {3}
    shelf.ask(b"a", [Copy(slot, slot) for slot in (1, 2, 3)])
    assert taken(shelf) == {(b"a", 1): 1, (b"a", 2): None, (b"a", 3): None}
    settled(shelf)


def test_nothing_comes_for_who_does_not_want_it_any_more():
    """Whether it waits, is being read or is here: after `forget` it is gone for that key only."""
    disk = Disk()
    shelf = shelf_on(disk)
    shelf.put([1, 2, 3], torch.cat([row(1), row(2), row(3)]))
    settled(shelf)
    disk.go.clear()
    shelf.ask(b"a", [Copy(1, 1), Copy(2, 2)])
    shelf.ask(b"b", [Copy(3, 3)])
    time.sleep(0.02)
    shelf.forget(b"a")
    disk.go.set()
    assert taken(shelf) == {(b"b", 3): 3}
    shelf.ask(b"b", [Copy(3, 3)])
    settled(shelf)
    shelf.forget(b"b")
    assert shelf.take() == []
    assert shelf.asked_rows == 0


class Late:
    """A clock that is moved by hand."""

    now = 0.0

    def monotonic_s(self):
        return self.now


def test_a_disk_that_hangs_is_given_up():
    """What does not come for long is lost, each in its turn, and what comes then is not wanted."""
    disk, clock = Disk(), Late()
    shelf = Behind(disk, ROW_BYTES, MOST_ROWS * ROW_BYTES, clock)
    shelf.put([1, 2], torch.cat([row(1), row(2)]))
    settled(shelf)
    disk.go.clear()
    shelf.ask(b"a", [Copy(1, 1)])
    clock.now = 9.0
    assert shelf.take() == []
    clock.now = 11.0
    (lost,) = shelf.take()
    assert (lost.key, lost.rows) == (b"a", None)
    disk.go.set()
    settled(shelf)
    assert shelf.take() == []


def test_memory_takes_all_and_has_it_at_once():
    """A tier in memory refuses nothing and needs no thread."""
    shelf = InMemory(SLOTS, ROW_BYTES)
    assert shelf.put([1, 2], torch.cat([row(1), row(2)])) == []
    shelf.ask(b"a", [Copy(2, 5)])
    shelf.ask(b"b", [Copy(1, 6)])
    shelf.forget(b"b")
    assert shelf.asked_rows == 1
    assert taken(shelf) == {(b"a", 5): 2}


def test_a_file_without_room_is_refused(monkeypatch):
    """The person is told which option to lower."""

    def full(*_):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr("os.posix_fallocate", full, raising=False)
    with pytest.raises(ConfigurationRefused, match="lower swap_gib"):
        File(SLOTS, ROW_BYTES)


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_hold_blocks_exactly(int8, dtype):
    """Blocks as rows and back are the same bits in every layer, whatever they are kept as."""
    torch.manual_seed(1)
    pool, other = (KeyValuePool(6, int8=int8) for _ in range(2))
    for layer, (heads, width) in enumerate(((2, 8), (3, 16))):
        states = torch.randn(1, heads, 1, width).to(dtype)
        for one in (pool, other):
            keys, values = one.layer(layer, states, states[..., : width // 2])
            slots = torch.arange(6 * 16)
            keys.write(slots, torch.randn(heads, 96, width).to(dtype))
            values.write(slots, torch.randn(heads, 96, width // 2).to(dtype))
    rows = pool.rows([4, 1])
    assert rows.shape == (2, pool.bytes_per_block)
    other.put_rows([0, 5], rows)
    for found, expected in zip(other.take_out([0, 5]), pool.take_out([4, 1]), strict=True):
        assert torch.equal(found, expected)
