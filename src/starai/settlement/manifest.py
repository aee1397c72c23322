"""A day's manifest: what a settlement claims, in canonical text that anybody can rebuild.

One fact a line, sorted, no trailing space: two builders that agree write the same bytes. Its
SHA-256 is the day's *head*; each manifest names the head before it, so days are a chain like
blocks. Signed, it has one more line. Knows nothing of where its numbers come from.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

import msgspec

from starai.core.errors import MalformedFrame

_TITLE: Final = "starai/v1/manifest"
_SIGNED: Final = "signature"
#: The head before the first day.
FIRST_HEAD: Final = bytes(32)


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The facts of one epoch. Amounts are in nano-USD, or in token base units where it says so.

    An epoch covers the blocks ``from_block`` to ``to_block``, both included; ``log_size`` and
    ``log_root`` are the log of task records at its end, ``block_hash`` that block's hash and
    ``closed_ms`` its time; confirmations up to number ``last_confirm`` were in when the day was
    built. ``earned_units`` is what all `EARNED` leaves add up to;
    ``spent_units`` what all customers ever spent, with an address or without. ``unplaced_nano``
    is earned by nodes that have not named an address; ``dust_nano`` what flooring leaves to later
    days. ``balances`` is the trial balance at the end, by kind of account: it sums to zero.
    """

    network: str
    chain_id: int
    contract: bytes
    epoch: int
    from_block: int
    to_block: int
    block_hash: bytes
    closed_ms: int
    log_size: int
    log_root: bytes
    last_confirm: int
    maturity_ms: int
    previous_head: bytes
    leaves_sha256: bytes
    num_leaves: int
    root: bytes
    earned_units: int
    spent_units: int
    unplaced_nano: int
    dust_nano: int
    balances: tuple[tuple[str, int], ...]

    def text(self) -> str:
        """The canonical text.

        Raises:
            MalformedFrame: the network's name is not one printable line.
        """
        if not self.network.isprintable():
            raise MalformedFrame("a network's name is one printable line")
        facts = msgspec.structs.asdict(self)
        lines = [f"balance {kind} {nano}" for kind, nano in facts.pop("balances")]
        lines += [f"{name} {_shown(value)}" for name, value in facts.items()]
        return "\n".join((_TITLE, *sorted(lines), ""))

    def head(self) -> bytes:
        """The SHA-256 of the text: what is posted, and what the next manifest names."""
        return hashlib.sha256(self.text().encode()).digest()

    @classmethod
    def parse(cls, text: str) -> Manifest:
        """The manifest whose canonical text this is.

        Raises:
            MalformedFrame: it is no manifest, or not in canonical form.
        """
        title, *lines = text.splitlines() or [""]
        if title != _TITLE:
            raise MalformedFrame("this is no manifest of this version")
        facts: dict[str, Any] = {}
        balances = []
        try:
            for line in lines:
                name, _, value = line.partition(" ")
                if name == "balance":
                    kind, _, nano = value.partition(" ")
                    balances.append((kind, int(nano)))
                else:
                    facts[name] = _read(_TYPES[name], value)
            manifest = cls(balances=tuple(balances), **facts)
        except (KeyError, TypeError, ValueError) as error:
            raise MalformedFrame("a line of the manifest is wrong, or one is missing") from error
        if manifest.text() != text:
            raise MalformedFrame("the manifest is not in its canonical form")
        return manifest


_TYPES: Final = {field.name: field.type for field in msgspec.structs.fields(Manifest)}


def _shown(value: str | int | bytes) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


def _read(kind: Any, value: str) -> str | int | bytes:
    if kind is bytes:
        return bytes.fromhex(value)
    return int(value) if kind is int else value


def signed_bytes(text: str) -> bytes:
    """What the registry signs of a manifest's canonical text."""
    return b"starai/v1/manifest-signature" + hashlib.sha256(text.encode()).digest()


def with_signature(text: str, signature: bytes) -> str:
    """A manifest's text with the registry's Ed25519 signature as its last line."""
    return f"{text}{_SIGNED} {signature.hex()}\n"


def split_signature(signed: str) -> tuple[str, bytes]:
    """The text and the signature of a signed manifest; the signature is empty if it has none.

    Raises:
        MalformedFrame: the signature's line is malformed.
    """
    text, _, last = signed.removesuffix("\n").rpartition("\n")
    if not last.startswith(f"{_SIGNED} "):
        return signed, b""
    try:
        return f"{text}\n", bytes.fromhex(last.removeprefix(f"{_SIGNED} "))
    except ValueError as error:
        raise MalformedFrame("the manifest's signature is not in hex") from error
