"""The authority's files: its keys, and whom it has revoked; readable by their owner only."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

import msgspec

from starai.core.clock import Clock
from starai.core.errors import ConfigurationRefused, MalformedFrame, StoreFailed
from starai.core.randomness import Randomness
from starai.protocol.credentials import LIFETIME_MS_MAX
from starai.protocol.identity import Identity, PartyId
from starai.wire.jwt import Authority

_AUTHORITY: Final = "authority.json"
_REVOKED: Final = "revoked.json"


class _Seeds(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    operator: str
    account: str
    system: str


def load_or_create_authority(home: Path, randomness: Randomness) -> Authority:
    """The authority kept in ``home``, made there the first time.

    Raises:
        ConfigurationRefused: its file cannot be read; a new one would disown every party.
        StoreFailed: its file cannot be written.
    """
    path = home / _AUTHORITY
    if path.exists():
        try:
            seeds = msgspec.json.decode(path.read_bytes(), type=_Seeds)
            return Authority(*(Identity.from_seed(seed) for seed in msgspec.structs.astuple(seeds)))
        except (OSError, msgspec.DecodeError, MalformedFrame) as error:
            raise ConfigurationRefused(
                f"cannot read the network's keys in {path}; restore the file from a backup, or "
                "move it away to begin a new network"
            ) from error
    authority = Authority.create(randomness)
    keys = (authority.operator, authority.account, authority.system)
    write_secret(path, msgspec.json.encode(_Seeds(*(key.seed for key in keys))))
    return authority


def load_revoked(home: Path) -> dict[PartyId, int]:
    """Who is revoked, and up to which issue time (s since the epoch).

    Raises:
        ConfigurationRefused: the file cannot be read; going on would let the revoked in again.
    """
    path = home / _REVOKED
    if not path.exists():
        return {}
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[PartyId, int])
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigurationRefused(f"cannot read who is revoked in {path}") from error


def add_revoked(home: Path, party: PartyId, clock: Clock) -> dict[PartyId, int]:
    """Revoke every credential that ``party`` has been given up to now; who is revoked then.

    Those whose credentials have all expired by now are forgotten, so that the list stays short.
    """
    now_s = clock.now_ms() // 1000
    oldest_s = now_s - LIFETIME_MS_MAX // 1000 - 1
    revoked = {who: at_s for who, at_s in load_revoked(home).items() if at_s >= oldest_s}
    revoked[party] = now_s
    write_secret(home / _REVOKED, msgspec.json.encode(revoked))
    return revoked


def write_secret(path: Path, content: bytes) -> None:
    """Write a file that only its owner can read: whole and durable, or not at all.

    Raises:
        StoreFailed: the disk does not take it.
    """
    beside = path.with_name(path.name + ".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise StoreFailed(f"cannot write {path}: {error.strerror}") from error
