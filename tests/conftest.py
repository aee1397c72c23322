"""What all tests share: where the shared data is, the event loop, virtual time, seeds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import trio.testing
from hypothesis import HealthCheck, settings

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
