"""Where the registry's state is kept: one folder, one `Store`, and a file for each database.

A path is a SQLite file; ``postgresql://...`` is a database of a PostgreSQL server. The schema, the
SQL and what a `Store` promises are the same.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

import anyio.to_thread

from starai.core.errors import ConfigurationRefused, StoreFailed
from starai.registry.storage.base import Connection, Session, Store, Work

__all__ = ["Connection", "Session", "Store", "Work", "open_reader", "open_store"]

#: What a location begins with if PostgreSQL keeps the state (libpq's two spellings).
POSTGRES_SCHEMES: Final = ("postgresql://", "postgres://")


def _open(
    location: str, inline: bool, vfs: str | None, stack: ExitStack
) -> tuple[Session, list[Session]]:
    """The writer and the readers, of whichever kind ``location`` is."""
    if not location.startswith(POSTGRES_SCHEMES):
        from starai.registry.storage.sqlite import open_sqlite  # noqa: PLC0415 - load what is used

        return open_sqlite(location, inline=inline, vfs=vfs, stack=stack)
    try:
        from starai.registry.storage.postgres import open_postgres  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        raise ConfigurationRefused(
            f'a registry in PostgreSQL needs {error.name}: pip install "starai[postgres]"'
        ) from error
    return open_postgres(location, inline=inline, stack=stack)


@asynccontextmanager
async def open_store(
    location: Path | str, *, inline: bool = False, vfs: str | None = None
) -> AsyncIterator[Store]:
    """The store at ``location``, made if absent; closed, with all accepted writes, on leaving.

    Args:
        location: a file, whose folder is made too and which only its owner may read; or the URL
            of a PostgreSQL database, as libpq reads it.
        inline: run everything on the caller's thread, one commit a write: for simulations, whose
            virtual clock would run away while a thread works.
        vfs: SQLite's virtual file system, for tests of failing disks.

    Raises:
        ConfigurationRefused: another process writes it, it is not ours, or it is not durable.
        StoreFailed: it cannot be opened.
    """
    with ExitStack() as stack:
        opening = (str(location), inline, vfs, stack)
        if inline:
            writer, readers = _open(*opening)
        else:
            writer, readers = await anyio.to_thread.run_sync(_open, *opening)
        store = Store(writer, readers)
        try:
            yield store
        finally:
            await store.close()


@contextmanager
def open_reader(location: Path | str) -> Iterator[Connection]:
    """One consistent state of what is committed, read beside the registry that may be running.

    Raises:
        ConfigurationRefused: it is not ours, or needs an extra that is not installed.
        StoreFailed: it cannot be opened or read.
    """
    session = _connect(str(location))
    try:
        session.begin(writing=False)
        try:
            yield session
        finally:
            session.rollback()
    except session.errors as error:
        raise StoreFailed(f"cannot read the registry's database: {error}") from error
    finally:
        session.close()


def _connect(location: str) -> Session:
    if not location.startswith(POSTGRES_SCHEMES):
        from starai.registry.storage.sqlite import connect  # noqa: PLC0415 - load what is used

        return connect(location)
    try:
        from starai.registry.storage.postgres import PostgresSession  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        raise ConfigurationRefused(
            f'a registry in PostgreSQL needs {error.name}: pip install "starai[postgres]"'
        ) from error
    return PostgresSession(location)
