"""Where swapped blocks go."""

from __future__ import annotations

import os
import sys
import tempfile

import pytest

torch = pytest.importorskip("torch")

from starai.core.clock import SystemClock  # noqa: E402
from starai.engines.text.pool import KeyValuePool  # noqa: E402
from starai.engines.text.tier import Tier  # noqa: E402

BLOCKS, BLOCK_BYTES = 64, 2 * 2 * 16 * 128 * 4


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux what a file takes")
def test_a_tier_on_disk_has_its_room_from_the_start(monkeypatch):
    """The file takes its space at once: a disk that fills up later ends nothing."""
    opened, open_file = [], tempfile.TemporaryFile

    def remember(**how):
        file = open_file(**how)
        opened.append(os.dup(file.fileno()))
        return file

    monkeypatch.setattr(tempfile, "TemporaryFile", remember)
    pool = KeyValuePool(BLOCKS)
    states = torch.zeros(1, 2, 1, 128)
    pool.layer(0, states, states)
    try:
        Tier(pool, BLOCKS, SystemClock(), disk=True)
        taken = sum(os.fstat(file).st_blocks * 512 for file in opened)
    finally:
        for file in opened:
            os.close(file)
    assert taken >= BLOCKS * BLOCK_BYTES
