"""The load of a server that runs the model is the node's own, wherever it was started."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest
from hypothesis import given, strategies as st

from starai.core.clock import SystemClock
from starai.node.yielding.server import ServerProcesses, listening_inodes

TABLE = """  sl  local_address rem_address st tx_queue rx_queue tr tm->when retrnsmt uid inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4242 1
   1: 0100007F:1F90 0100007F:D431 01 00000000:00000000 00:00000000 00000000  1000        0 4343 1
   2: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4444 1
"""


def test_the_kernels_table_is_read():
    """Port 8080: the one that listens, not the connections."""
    assert listening_inodes(TABLE, 8080) == {"4242"}
    assert listening_inodes(TABLE, 22) == {"4444"}
    assert listening_inodes(TABLE, 80) == set()


@given(st.text())
def test_rubbish_is_no_table(text):
    """Whatever is there."""
    listening_inodes(text, 80)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_server_and_its_children_are_found():
    """Whoever listens, and what it started; a server elsewhere is nobody here."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            url = f"http://127.0.0.1:{server.getsockname()[1]}"
            found = ServerProcesses(url, SystemClock())()
            assert {os.getpid(), child.pid} <= set(found)
            assert ServerProcesses(url.replace("127.0.0.1", "gpu.example"), SystemClock())() == ()
        assert os.getpid() not in ServerProcesses(url, SystemClock())()
    finally:
        child.kill()
        child.wait()
