"""What all tests share: where the shared data is, the event loop, virtual time, seeds."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio.testing
from hypothesis import HealthCheck, settings

from starai.testing.postgres import find_binaries, passing_server

ROOT = Path(__file__).resolve().parent.parent

# The same examples on every run: a failure that one machine sees, every machine sees.
# HYPOTHESIS_PROFILE=explore looks for new ones.
settings.register_profile(
    "ci",
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("explore", max_examples=2000, deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of shared data beside the repository, or ``STARAI_SHARED_DATA``; else skip."""
    folder = Path(os.environ.get("STARAI_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no shared data beside the repository (STARAI_SHARED_DATA names another place)")
    return folder


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The loop of ``@pytest.mark.anyio`` tests; a module may override it with `virtual_time`."""
    return "asyncio"


@pytest.fixture
def virtual_time() -> tuple[str, dict[str, Any]]:
    """A trio loop whose clock jumps over every wait, so that a day passes in a millisecond.

    A module of such tests says so once::

        @pytest.fixture
        def anyio_backend(virtual_time):
            return virtual_time
    """
    return ("trio", {"clock": trio.testing.MockClock(autojump_threshold=0)})


#: A file system in memory, which Linux machines have, and what of it a server may fill.
MEMORY = Path("/dev/shm")
SERVER_BYTES_MAX = 2 << 30
_SCHEMAS = itertools.count(1)


def roomy_memory() -> Path | None:
    """Where a server's every sync costs nothing; None: on disk, then.

    That PostgreSQL keeps what it has synced is its own promise, and no test of ours takes its
    machine's power away; that the sync is asked for is checked by the store as it opens.
    """
    there = MEMORY.is_dir() and os.access(MEMORY, os.W_OK)
    return MEMORY if there and shutil.disk_usage(MEMORY).free > SERVER_BYTES_MAX else None


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL server that lives as long as the tests; skips without one."""
    binaries = find_binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL server on this machine")
    pytest.importorskip("psycopg", reason="psycopg (starai[postgres]) is not installed")
    with passing_server(binaries, roomy_memory()) as url:
        yield url


@pytest.fixture
def postgres_url(postgres: str) -> str:
    """The URL of an empty schema of that server."""
    import psycopg  # noqa: PLC0415 - an extra

    schema = f"test_{next(_SCHEMAS)}"
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema}".encode())
    return f"{postgres}&options=-csearch_path%3D{schema}"
