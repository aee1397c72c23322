"""The registry's tables, and how an older database becomes a newer one.

Names follow the ledger design (section 4.2). Integers are STRICT, and `integer` checks them in
Python as well, because SQLite still stores ``True`` and ``'7'`` in an integer column. Knows nothing
of messages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, Final

from starai.core.errors import ConfigurationRefused, InvalidRequest
from starai.registry.storage.base import Connection

#: The largest integer that a column keeps as an integer.
INTEGER_MAX: Final = (1 << 63) - 1
#: How many values `rows_in` looks for by one statement; few sizes, so that few are prepared.
_LOTS: Final = (1, 8, 64, 512)

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

# The money (ledger design, section 4.2). Amounts are nano-USD. An account is a kind and an owner
# (a customer's number as 8 bytes, a node's raw key, or nothing); `debits` and `credits` are what
# its transfers add up to. Transfers are only ever added: what repairs one names it in `reverses`.
# The row of `books` is what the hash of all books is made of, and what was ever transferred.
# A `key` row's `customer` is the key's own account number, which records carry as the payer;
# `owner` is the customer whose balance it draws on, `spent_nano` what was captured for it, of at
# most `budget_nano` if it has one. A hold is money set aside for one payer at one gateway. A
# `confirm` row names its distributor (`dist`) and what its records charge; `first_task` is where
# its records begin in `task`, if all of them were new. A `block` covers the rows of `task` and
# `transfer` since the one before; the log of all tasks is in tiles, up to 256 hashes of a level in
# a row. `payout` keeps every address a node ever bound, so that a closed day can be rebuilt; the
# newest one counts. The `payee` of a `leaf` is a node's key or a customer's number, and then the
# address it is paid to; `cum` is in nano-USD, and a row is there for each epoch that changed it.
_MONEY: Final = """
CREATE TABLE customer (
  id INTEGER PRIMARY KEY, name TEXT NOT NULL, created_ms INTEGER NOT NULL,
  credit_nano INTEGER NOT NULL, address BLOB
) STRICT;
ALTER TABLE key ADD COLUMN owner INTEGER REFERENCES customer (id);
ALTER TABLE key ADD COLUMN budget_nano INTEGER;
ALTER TABLE key ADD COLUMN spent_nano INTEGER NOT NULL DEFAULT 0;
INSERT INTO customer SELECT customer, name, created_ms, 0, NULL FROM key;
UPDATE key SET owner = customer;
CREATE INDEX customer_by_address ON customer (address) WHERE address IS NOT NULL;
CREATE TABLE withdrawal (
  name BLOB PRIMARY KEY, customer INTEGER NOT NULL REFERENCES customer (id),
  asked INTEGER NOT NULL, owed INTEGER NOT NULL, at_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX withdrawal_open ON withdrawal (customer) WHERE asked + owed > 0;
CREATE TABLE price (
  id INTEGER PRIMARY KEY, model TEXT NOT NULL, input_nano INTEGER NOT NULL,
  output_nano INTEGER NOT NULL, node_bps INTEGER NOT NULL, valid_from_ms INTEGER NOT NULL
) STRICT;
CREATE TABLE account (
  kind TEXT NOT NULL, owner BLOB NOT NULL, debits INTEGER NOT NULL, credits INTEGER NOT NULL,
  PRIMARY KEY (kind, owner)
) STRICT;
CREATE TABLE transfer (
  seq INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, event_id BLOB NOT NULL, code TEXT NOT NULL,
  debit_kind TEXT NOT NULL, debit_owner BLOB NOT NULL,
  credit_kind TEXT NOT NULL, credit_owner BLOB NOT NULL,
  amount INTEGER NOT NULL CHECK (amount > 0), ref BLOB NOT NULL, reverses BLOB NOT NULL,
  at_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX transfer_insured ON transfer (credit_owner) WHERE debit_kind = 'insurance';
CREATE INDEX transfer_matured ON transfer (debit_owner) WHERE code = 'mature';
CREATE INDEX transfer_claimed ON transfer (debit_owner) WHERE code = 'claimed';
CREATE TABLE books (name TEXT PRIMARY KEY, state BLOB NOT NULL, debits TEXT NOT NULL) STRICT;
CREATE TABLE hold (
  hold_id BLOB PRIMARY KEY, customer INTEGER NOT NULL, payer INTEGER NOT NULL,
  gateway BLOB NOT NULL, amount INTEGER NOT NULL, remaining INTEGER NOT NULL,
  used INTEGER, placed_ms INTEGER NOT NULL, expires_ms INTEGER NOT NULL, closed_ms INTEGER
) STRICT;
CREATE INDEX hold_open ON hold (payer) WHERE closed_ms IS NULL;
ALTER TABLE task ADD COLUMN event_id BLOB;
CREATE INDEX task_unpaid ON task (node) WHERE event_id IS NULL AND charge > 0;
CREATE INDEX task_by_event ON task (event_id) WHERE event_id IS NOT NULL;
ALTER TABLE confirm ADD COLUMN dist BLOB;
ALTER TABLE confirm ADD COLUMN charge INTEGER;
ALTER TABLE confirm ADD COLUMN first_task INTEGER;
CREATE INDEX confirm_heard ON confirm (signer, at_ms) WHERE side = 2;
CREATE TABLE dispute (
  id INTEGER PRIMARY KEY, task_seq INTEGER NOT NULL UNIQUE REFERENCES task (seq),
  reason TEXT NOT NULL, opened_ms INTEGER NOT NULL, deadline_ms INTEGER NOT NULL,
  state TEXT NOT NULL, verdict TEXT, event_id BLOB
) STRICT;
CREATE INDEX dispute_open ON dispute (deadline_ms) WHERE state = 'open';
CREATE TABLE block (
  height INTEGER PRIMARY KEY, prev BLOB NOT NULL, last_task INTEGER NOT NULL, n INTEGER NOT NULL,
  tree_size INTEGER NOT NULL, log_root BLOB NOT NULL, last_transfer INTEGER NOT NULL,
  transfers_root BLOB NOT NULL, books_hash BLOB NOT NULL, total_debits TEXT NOT NULL,
  closed_ms INTEGER NOT NULL, header BLOB NOT NULL, hash BLOB NOT NULL, sig BLOB NOT NULL
) STRICT;
CREATE INDEX block_by_task ON block (last_task);
CREATE INDEX block_by_transfer ON block (last_transfer, height);
CREATE INDEX block_by_time ON block (closed_ms, height);
CREATE TABLE log_tile (
  level INTEGER NOT NULL, position INTEGER NOT NULL, hashes BLOB NOT NULL,
  PRIMARY KEY (level, position)
) STRICT;
CREATE TABLE checkpoint (size INTEGER PRIMARY KEY, root BLOB NOT NULL, note TEXT NOT NULL) STRICT;
CREATE TABLE witness (
  size INTEGER NOT NULL, witness TEXT NOT NULL, line TEXT NOT NULL, at_ms INTEGER NOT NULL,
  PRIMARY KEY (size, witness)
) STRICT;
CREATE TABLE payout (
  node BLOB NOT NULL, address BLOB NOT NULL, bound_ms INTEGER NOT NULL, sig BLOB NOT NULL,
  PRIMARY KEY (node, bound_ms)
) STRICT;
CREATE INDEX payout_by_address ON payout (address);
CREATE TABLE epoch (
  epoch INTEGER PRIMARY KEY, from_block INTEGER NOT NULL, to_block INTEGER NOT NULL,
  state TEXT NOT NULL, manifest TEXT, manifest_hash BLOB, root BLOB, prev_head BLOB, head BLOB,
  cum_earned TEXT, cum_spent TEXT, closed_ms INTEGER NOT NULL
) STRICT;
CREATE TABLE leaf (
  epoch INTEGER NOT NULL, kind INTEGER NOT NULL, payee BLOB NOT NULL, cum TEXT NOT NULL,
  PRIMARY KEY (kind, payee, epoch)
) STRICT;
CREATE TABLE outbox (
  epoch INTEGER NOT NULL, attempt INTEGER NOT NULL, nonce INTEGER NOT NULL, raw BLOB NOT NULL,
  tx_hash BLOB NOT NULL, fee TEXT NOT NULL, state TEXT NOT NULL, PRIMARY KEY (epoch, attempt)
) STRICT;
CREATE TABLE chain_cursor (
  contract BLOB PRIMARY KEY, block INTEGER NOT NULL, block_hash BLOB NOT NULL
) STRICT;
"""

#: Step n brings a database from version n to n + 1. A step, once released, never changes.
MIGRATIONS: Final = (_FIRST, _MONEY)


def bind_network(connection: Connection, name: str, block_ms: int) -> None:
    """Make the database this network's for ever; later only the same name and blocks are let in.

    Raises:
        ConfigurationRefused: it belongs to another network, or its blocks have another length.
    """
    bound = next(rows(connection, "SELECT name, block_ms FROM network"), None)
    if bound is None:
        connection.execute("INSERT INTO network VALUES (?, ?)", (name, block_ms))
    elif bound != (name, block_ms):
        raise ConfigurationRefused(
            f"the registry's database belongs to network {bound[0]!r} with blocks of {bound[1]} ms"
        )


def rows(connection: Connection, sql: str, *bindings: Any) -> Iterator[tuple[Any, ...]]:
    """The rows of a query, typed by whoever knows the schema."""
    return connection.execute(sql, bindings)


def rows_in(
    connection: Connection, sql: str, values: Sequence[Any], *bindings: Any
) -> Iterator[tuple[Any, ...]]:
    """The rows of ``sql``, whose ``{}`` stands for ``values``, by few statements of few kinds.

    Values that are tuples are rows: write ``(a, b) IN (VALUES {})``. A row may come twice if a
    value does.
    """
    for start in range(0, len(values), _LOTS[-1]):
        lot = values[start : start + _LOTS[-1]]
        size = next(size for size in _LOTS if size >= len(lot))
        filled = [*lot, *[lot[-1]] * (size - len(lot))]
        if isinstance(lot[0], tuple):
            statement = _in_places(sql, size, len(lot[0]))
            yield from rows(connection, statement, *bindings, *chain.from_iterable(filled))
        else:
            yield from rows(connection, _in_places(sql, size, 0), *bindings, *filled)


@lru_cache(maxsize=256)
def _in_places(sql: str, size: int, width: int) -> str:
    """``sql`` with places for ``size`` values, each a row of ``width`` if that is not 0."""
    place = f"({', '.join('?' * width)})" if width else "?"
    return sql.format(", ".join([place] * size))


def integer(value: object, name: str, *, least: int = 0, most: int = INTEGER_MAX) -> int:
    """``value`` if it really is an integer that a column keeps exactly.

    Raises:
        InvalidRequest: it is of another type (``True`` included) or out of range.
    """
    if type(value) is not int or not least <= value <= most:
        raise InvalidRequest(f"{name} must be an integer from {least} to {most}", param=name)
    return value
