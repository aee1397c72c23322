"""The registry's tables, and how an older file becomes a newer one.

Names follow the ledger design (section 4.2); the money's tables come with the money. Integers
are STRICT, and `integer` checks them in Python as well, because SQLite still stores ``True`` and
``'7'`` in an integer column. Knows nothing of messages.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import apsw

from starai.core.errors import ConfigurationRefused, InvalidRequest

#: Marks the file as ours ("SAIR"), so that another program's database is never written to.
APPLICATION_ID: Final = 0x53414952
#: The largest integer that SQLite keeps as an integer.
INTEGER_MAX: Final = (1 << 63) - 1

# A row of `task` is one distinct record of one attempt; `sides` (a bit set of `Side`) says who
# confirmed exactly this record. Two sides that agree share one row, so a matched task is stored
# once; a side that says something else gets a row of its own, so nothing is ever overwritten.
# `node_confirm` and `dist_confirm` are the first confirmations that brought the record.
# `confirm.leaves` is what `confirm.root` was computed from: sorted leaves, 32 bytes each.
_FIRST: Final = """
CREATE TABLE network (name TEXT PRIMARY KEY, block_ms INTEGER NOT NULL) STRICT;
CREATE TABLE confirm (
  seq INTEGER PRIMARY KEY,
  block INTEGER NOT NULL, signer BLOB NOT NULL, side INTEGER NOT NULL, node BLOB NOT NULL,
  part INTEGER NOT NULL, root BLOB NOT NULL, sig BLOB NOT NULL, leaves BLOB NOT NULL,
  at_ms INTEGER NOT NULL,
  UNIQUE (block, signer, side, node, part)
) STRICT;
CREATE TABLE task (
  seq INTEGER PRIMARY KEY,
  task_id BLOB NOT NULL, attempt INTEGER NOT NULL, leaf BLOB NOT NULL,
  sides INTEGER NOT NULL, state INTEGER NOT NULL,
  block INTEGER NOT NULL, node BLOB NOT NULL, dist BLOB NOT NULL, cust INTEGER NOT NULL,
  model BLOB NOT NULL, in_tok INTEGER NOT NULL, out_tok INTEGER NOT NULL,
  price_id INTEGER NOT NULL, charge INTEGER NOT NULL, closed_ms INTEGER NOT NULL,
  node_confirm INTEGER REFERENCES confirm (seq), dist_confirm INTEGER REFERENCES confirm (seq),
  rec BLOB NOT NULL,
  UNIQUE (task_id, attempt, leaf)
) STRICT;
CREATE INDEX task_by_block ON task (block);
CREATE TABLE party (
  party TEXT PRIMARY KEY, role TEXT NOT NULL, label TEXT NOT NULL, token_id BLOB,
  joined_ms INTEGER NOT NULL, revoked_ms INTEGER
) STRICT;
CREATE TABLE token (
  token_id BLOB PRIMARY KEY, joiner TEXT NOT NULL UNIQUE, role TEXT NOT NULL, label TEXT NOT NULL,
  uses INTEGER NOT NULL, used INTEGER NOT NULL,
  created_ms INTEGER NOT NULL, expires_ms INTEGER NOT NULL
) STRICT;
CREATE TABLE key (
  key_id TEXT PRIMARY KEY, key_hash BLOB NOT NULL UNIQUE, name TEXT NOT NULL,
  customer INTEGER NOT NULL UNIQUE, rpm INTEGER NOT NULL, tpm INTEGER NOT NULL,
  created_ms INTEGER NOT NULL, revoked_ms INTEGER, version INTEGER NOT NULL UNIQUE
) STRICT;
"""

#: Step n brings a file from ``user_version`` n to n + 1. A step, once released, never changes.
MIGRATIONS: Final = (_FIRST,)


def refuse_foreign(connection: apsw.Connection) -> None:
    """Look before writing: is this an empty file, or one of ours that this version can use?

    Raises:
        ConfigurationRefused: the file is another program's, or a newer StarAI's.
    """
    version = connection.pragma("user_version")
    empty = connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchone() is None
    if not empty and connection.pragma("application_id") != APPLICATION_ID:
        raise ConfigurationRefused("the registry's file is another program's database")
    if version > len(MIGRATIONS):
        raise ConfigurationRefused(
            f"the registry's file has version {version}, made by a newer StarAI: upgrade this one"
        )


def migrate(connection: apsw.Connection) -> None:
    """Bring a file to this version's tables, in one transaction."""
    with connection:
        for step in MIGRATIONS[connection.pragma("user_version") :]:
            connection.execute(step)
        connection.pragma("application_id", APPLICATION_ID)
        connection.pragma("user_version", len(MIGRATIONS))


def bind_network(connection: apsw.Connection, name: str, block_ms: int) -> None:
    """Make the file this network's for ever; later only the same name and blocks are let in.

    Raises:
        ConfigurationRefused: it belongs to another network, or its blocks have another length.
    """
    bound = connection.execute("SELECT name, block_ms FROM network").fetchone()
    if bound is None:
        connection.execute("INSERT INTO network VALUES (?, ?)", (name, block_ms))
    elif bound != (name, block_ms):
        raise ConfigurationRefused(
            f"the registry's file belongs to network {bound[0]!r} with blocks of {bound[1]} ms"
        )


def rows(connection: apsw.Connection, sql: str, *bindings: Any) -> Iterator[tuple[Any, ...]]:
    """The rows of a query, typed by whoever knows the schema."""
    return connection.execute(sql, bindings)


def integer(value: object, name: str, *, least: int = 0, most: int = INTEGER_MAX) -> int:
    """``value`` if it really is an integer that a column keeps exactly.

    Raises:
        InvalidRequest: it is of another type (``True`` included) or out of range.
    """
    if type(value) is not int or not least <= value <= most:
        raise InvalidRequest(f"{name} must be an integer from {least} to {most}", param=name)
    return value
