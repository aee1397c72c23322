"""One SQLite file, through apsw: WAL, ``synchronous=FULL``, one process at a time.

apsw brings a SQLite of its own, newer than the one whose WAL could corrupt itself (ledger design,
section 0, point 7). Knows nothing of what is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar, Final

import apsw

from starai.core.errors import ConfigurationRefused, StoreFailed
from starai.registry.schema import MIGRATIONS
from starai.registry.storage.base import READERS, Session

#: Marks the file as ours ("SAIR"), so that another program's database is never written to.
APPLICATION_ID: Final = 0x53414952
#: Pages in the WAL (of 4 KiB) after which a commit copies them into the file, with two syncs more.
#: SQLite's 1,000 fill in a second of single records, mostly with the same pages again.
CHECKPOINT_PAGES: Final = 8_000
#: Pages kept in memory by a connection that needs them. With SQLite's 2,000 KiB the writer spills
#: commits half made into the WAL, and reads their pages back.
CACHE_KIB: Final = 65_536
#: How long a reader waits for a lock; the writer never holds one that long.
_BUSY_MS: Final = 5000


class SqliteSession(apsw.Connection):
    """A connection to the file; begins, commits and ends as a `Session` does."""

    errors: ClassVar[tuple[type[Exception], ...]] = (apsw.Error,)
    faults: ClassVar[tuple[type[Exception], ...]] = (
        apsw.BindingsError,
        apsw.ConstraintError,
        apsw.MismatchError,
        apsw.RangeError,
        apsw.SQLError,
        apsw.TooBigError,
    )

    def begin(self, *, writing: bool) -> None:
        """Start a transaction; one that writes takes the write lock at once."""
        self.execute("BEGIN IMMEDIATE" if writing else "BEGIN")

    def commit(self) -> None:
        """Commit: with ``synchronous=FULL`` the WAL is synced before this returns."""
        self.execute("COMMIT")

    def rollback(self) -> None:
        """Undo, unless SQLite did so already: some failures end the transaction."""
        if self.in_transaction:
            self.execute("ROLLBACK")

    def damage(self, most: int, /) -> Iterator[str]:
        """SQLite's own check of every page, index and constraint."""
        for (line,) in self.execute(f"PRAGMA integrity_check({most})"):
            if line != "ok":
                yield f"SQLite: {line}"


def connect(path: Path | str, vfs: str | None = None) -> SqliteSession:
    """A session that is durable, once the file is seen to be empty or ours.

    Raises:
        ConfigurationRefused: it is another program's, a newer StarAI's, or cannot be durable.
        apsw.Error: it cannot be opened.
    """
    session = SqliteSession(str(path), vfs=vfs)
    try:
        session.set_busy_timeout(_BUSY_MS)
        _refuse_foreign(session)
        _make_durable(session)
    except BaseException:
        session.close()
        raise
    return session


def _make_durable(session: apsw.Connection) -> None:
    # NORMAL never corrupts, but it forgets acknowledged writes on power loss (section 0, point
    # 5); the tests of failing disks show it.
    for name, value in (("journal_mode", "wal"), ("synchronous", "full"), ("fullfsync", "on")):
        session.pragma(name, value)
    session.pragma("wal_autocheckpoint", CHECKPOINT_PAGES)
    session.pragma("cache_size", -CACHE_KIB)
    if session.pragma("synchronous") != 2:
        raise ConfigurationRefused("this SQLite does not let writes be synced")
    if session.filename and session.pragma("journal_mode") != "wal":
        raise ConfigurationRefused(f"{session.filename} is on a file system without SQLite's WAL")


def migrate(session: apsw.Connection) -> None:
    """Bring a file to this version's tables, in one transaction."""
    with session:
        for step in MIGRATIONS[session.pragma("user_version") :]:
            session.execute(step)
        session.pragma("application_id", APPLICATION_ID)
        session.pragma("user_version", len(MIGRATIONS))


def open_sqlite(
    location: str, *, inline: bool, vfs: str | None, stack: ExitStack
) -> tuple[Session, list[Session]]:
    """The writer and the readers of a file, which ``stack`` closes; see `open_store`."""
    path = Path(location)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        _claim(path, stack)
        sessions: list[Session] = []
        for _ in range(1 if inline else 1 + READERS):
            sessions.append(session := connect(path, vfs))
            stack.callback(session.close)
            if len(sessions) == 1:
                migrate(session)
    except (OSError, apsw.Error) as error:
        raise StoreFailed(f"the registry cannot open {path}: {error}") from error
    return sessions[0], sessions[1:]


def _refuse_foreign(session: apsw.Connection) -> None:
    """Look before writing: is this an empty file, or one of ours that this version can use?"""
    version = session.pragma("user_version")
    empty = session.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchone() is None
    if not empty and session.pragma("application_id") != APPLICATION_ID:
        raise ConfigurationRefused("the registry's file is another program's database")
    if version > len(MIGRATIONS):
        raise ConfigurationRefused(
            f"the registry's file has version {version}, made by a newer StarAI: upgrade this one"
        )


def _claim(path: Path, stack: ExitStack) -> None:
    """Hold a lock that the system drops with this process, however that ends."""
    lock = apsw.Connection(f"{path}.lock")
    stack.callback(lock.close)
    try:
        lock.execute("BEGIN EXCLUSIVE")
    except apsw.BusyError:
        raise ConfigurationRefused(
            f"another process writes {path}: stop it, or choose another folder"
        ) from None
