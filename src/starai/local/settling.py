"""Settles a network's days from its operator's home: between the chain and the registry.

The key that posts stays here; the registry keeps what was signed and what the chain said. The
settler and the watcher block, so they run in a thread and ask the registry from there. Knows
nothing of how a command looks.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import anyio
import anyio.from_thread
import anyio.to_thread
import msgspec

from starai.core.errors import ConfigurationRefused, NotFound, Unavailable
from starai.protocol.payouts import parse_vault
from starai.settlement.leaves import ADDRESS_BYTES, LeafKind, leaves_of, parse_leaf_file, tree_of
from starai.settlement.manifest import Manifest, split_signature
from starai.settlement.rollup.base import Chain, Claim, Happening, Post
from starai.settlement.settler import Attempt, AttemptState
from starai.settlement.watching import Cursor

T = TypeVar("T")
Ask = Callable[..., Coroutine[Any, Any, Any]]

_KEY_BYTES: Final = 32
_MORE: Final = "chains need more: pip install 'starai[chain]'"


class AskedSettlement:
    """`starai.registry.days.settling.Settlement`, asked over the wire from a thread."""

    def __init__(self, ask: Ask, chain_id: int, contract: bytes) -> None:
        """Take how the registry is asked, and which vault it is about."""
        self._ask = partial(ask, "settlement", chain_id=chain_id, contract=contract.hex())

    def next_post(self, epoch: int) -> Post | None:
        """What is to be posted as ``epoch``."""
        found: Post | None = self._call("next_post", Post | None, epoch)
        return found

    def attempts(self, epoch: int) -> Sequence[Attempt]:
        """All transactions signed for an epoch."""
        found: list[Attempt] = self._call("attempts", list[Attempt], epoch)
        return found

    def keep(self, attempt: Attempt) -> None:
        """Keep a transaction that is about to be sent."""
        self._call("keep", None, attempt)

    def mark(self, epoch: int, number: int, state: AttemptState) -> None:
        """Note what became of a transaction."""
        self._call("mark", None, epoch, number, state)

    def sent(self, epoch: int) -> None:
        """A transaction for this epoch is out."""
        self._call("sent", None, epoch)

    def mined(self, epoch: int, head: bytes) -> None:
        """The chain is at this epoch with this head."""
        self._call("mined", None, epoch, head)

    def final(self, epoch: int, head: bytes) -> None:
        """This epoch and those before stay."""
        self._call("final", None, epoch, head)

    def vetoed(self, epoch: int) -> None:
        """The guardian took this epoch's root back."""
        self._call("vetoed", None, epoch)

    def cursor(self) -> Cursor | None:
        """Up to where the vault's reports are booked."""
        found: Cursor | None = self._call("cursor", Cursor | None)
        return found

    def book(self, happenings: Sequence[Happening], cursor: Cursor) -> None:
        """Book these, and move the cursor."""
        self._call("book", None, list(happenings), cursor)

    def owed(self) -> int:
        """What customers took out of the vault and did not have, in nano-USD."""
        found: int = self._call("owed", int)
        return found

    def _call(self, method: str, kind: Any, *arguments: object) -> Any:
        said = msgspec.to_builtins(arguments)
        answer: Any = anyio.from_thread.run(partial(self._ask, method=method, arguments=said))
        return msgspec.convert(answer["result"], kind)


async def in_a_thread(step: Callable[[], T]) -> T:
    """Run one step that blocks on the chain.

    Abandoned when cancelled: the chain's own deadline ends it, and every step may be cut off.
    """
    return await anyio.to_thread.run_sync(step, abandon_on_cancel=True)


def connected(url: str, vault: str, key: bytes) -> Chain:
    """The vault named ``CHAIN_ID:0xADDRESS`` behind a JSON-RPC URL.

    Raises:
        InvalidRequest: the vault's name is of another form.
        ConfigurationRefused: the extra is not installed, or another chain is behind the URL.
        Unavailable: the chain does not answer.
    """
    chain_id, contract = parse_vault(vault)
    try:
        from starai.settlement.rollup.json_rpc import connect  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ConfigurationRefused(_MORE) from error
    chain = connect(url, contract, key)
    if chain.chain_id != chain_id:
        raise ConfigurationRefused(f"the vault is on chain {chain_id}, not on {chain.chain_id}")
    return chain


def deployed(
    url: str,
    key: bytes,
    token: bytes,
    poster: bytes,
    guardian: bytes,
    *,
    delay_s: int,
    max_daily: int,
) -> str:
    """Deploy a vault as its owner; returns its name, ``CHAIN_ID:0xADDRESS``.

    Raises:
        ConfigurationRefused: the extra is not installed.
        InvalidRequest: the contract refuses these terms.
        Unavailable: the chain does not answer.
    """
    try:
        from starai.settlement.rollup.ground import deploy_vault  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ConfigurationRefused(_MORE) from error
    chain_id, address = deploy_vault(
        url, key, token, poster, guardian, delay_s=delay_s, max_daily=max_daily
    )
    return f"{chain_id}:0x{address.hex()}"


def read_key(path: Path) -> bytes:
    """A secret key from a file that only its owner may read: 64 hexadecimal digits.

    Raises:
        ConfigurationRefused: there is none, it is malformed, or others may read it.
    """
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise ConfigurationRefused(f"others may read {path}: chmod 600 it")
        return from_hex(path.read_text("utf-8").strip(), _KEY_BYTES, "a key")
    except OSError as error:
        raise ConfigurationRefused(f"cannot read the key in {path}: {error}") from error


def from_hex(text: str, width: int, what: str) -> bytes:
    """``width`` bytes from hexadecimal digits, with or without 0x.

    Raises:
        ConfigurationRefused: it is something else; the text itself is not repeated.
    """
    try:
        found = bytes.fromhex(text.removeprefix("0x"))
    except ValueError:
        found = b""
    if len(found) != width:
        raise ConfigurationRefused(f"{what} has {2 * width} hexadecimal digits")
    return found


def claims_of(exports: Path, chain: Chain, kind: LeafKind = LeafKind.EARNED) -> list[Claim]:
    """What every address earned, or spent, with proofs, from the exported day whose root is active.

    Raises:
        NotFound: that day is not in the folder.
        Unavailable: the chain does not answer.
    """
    standing = chain.standing(chain.tip().number)
    if standing is None or not standing.active_epoch:
        raise NotFound("no root is active at this vault yet: there is nothing to claim")
    folder = exports / f"day-{standing.active_epoch + _days_before_vault(exports):06d}"
    try:
        manifest = Manifest.parse(split_signature((folder / "manifest.txt").read_text("utf-8"))[0])
        leaves = leaves_of(parse_leaf_file((folder / "leaves.txt").read_text("utf-8")))
    except OSError as error:
        raise NotFound(f"{folder} cannot be read: get the export of that day") from error
    tree = tree_of(leaves)
    if manifest.root != tree.root:
        raise NotFound(f"the leaves in {folder} are not those of its manifest")
    return [
        Claim(leaf.address, leaf.units, tree.proof(leaf.hash()))
        for leaf in leaves
        if leaf.kind is kind
    ]


def _days_before_vault(exports: Path) -> int:
    """How many days of an export were closed before there was a vault, which counts from then."""
    none = f"\ncontract {bytes(ADDRESS_BYTES).hex()}\n"
    found = (path.read_text("utf-8") for path in exports.glob("day-*/manifest.txt"))
    return sum(none in text for text in found)


def wait_a_moment(seconds: float = 2.0) -> None:
    """Between two looks for a receipt, in a thread.

    Raises:
        Unavailable: whoever waits was cancelled.
    """
    try:
        anyio.from_thread.run(anyio.sleep, seconds)
    except RuntimeError as error:
        raise Unavailable("stopped while waiting for the chain") from error
