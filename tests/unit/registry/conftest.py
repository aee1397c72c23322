"""Where the registry's tests keep their state: a file, and a PostgreSQL server if there is one."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """An empty place for a registry, of each kind."""
    if request.param == "sqlite":
        return tmp_path / "registry.db"
    return str(request.getfixturevalue("postgres_url"))
