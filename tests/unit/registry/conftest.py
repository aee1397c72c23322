"""Where the registry's tests keep their state: a file, and a PostgreSQL server if there is one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from starai.testing.postgres import find_binaries, passing_server

_NUMBERS = itertools.count(1)


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a server that lives as long as the tests."""
    binaries = find_binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL server on this machine")
    pytest.importorskip("psycopg", reason="psycopg (starai[postgres]) is not installed")
    with passing_server(binaries) as url:
        yield url


@pytest.fixture
def postgres_url(postgres: str) -> str:
    """The URL of an empty schema of the server's."""
    import psycopg  # noqa: PLC0415 - an extra

    schema = f"test_{next(_NUMBERS)}"
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema}".encode())
    return f"{postgres}&options=-csearch_path%3D{schema}"


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """An empty place for a registry, of each kind."""
    if request.param == "sqlite":
        return tmp_path / "registry.db"
    return str(request.getfixturevalue("postgres_url"))
