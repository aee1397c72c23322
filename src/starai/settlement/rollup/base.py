"""What a chain must answer for its vault to be posted to, watched and claimed from.

All calls block for at most the chain's own deadline: callers run them in a thread. A chain that
does not answer raises `Unavailable`, which says nothing about what happened to what was asked:
an unknown outcome is not a failure. Addresses have 20 bytes, hashes 32; amounts are base units of
the vault's token; fees are wei for a unit of gas.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import NamedTuple, Protocol


class BlockRef(NamedTuple):
    """A block: its height, hash and time (Unix seconds)."""

    number: int
    block_hash: bytes
    time_s: int


class Fee(NamedTuple):
    """What is offered for a unit of gas: at most ``most``, of it ``tip`` for being taken."""

    most: int
    tip: int


class Estimate(NamedTuple):
    """What a transaction would use now, or why the contract would refuse it."""

    gas: int
    refusal: str = ""


class Signed(NamedTuple):
    """A signed transaction, ready to be sent any number of times."""

    raw: bytes
    tx_hash: bytes
    nonce: int
    fee: Fee


class Receipt(NamedTuple):
    """A transaction is in a block; ``ok`` unless the contract refused it."""

    ok: bool
    block: int
    gas_used: int


class Standing(NamedTuple):
    """How far the vault is: its last epoch, and the one that can be claimed against."""

    epoch: int
    active_epoch: int
    head: bytes
    root: bytes
    posted_s: int
    earned: int
    spent: int


class Funds(NamedTuple):
    """What the vault holds: deposits less withdrawals, what it paid, which parts are paused."""

    deposited: int
    paid: int
    paused: int


class Post(NamedTuple):
    """One epoch as it is posted."""

    epoch: int
    prev_head: bytes
    head: bytes
    root: bytes
    earned: int
    spent: int


class Claim(NamedTuple):
    """What an address earned, or spent, since the beginning, and the proof of it."""

    account: bytes
    units: int
    proof: tuple[bytes, ...]


class What(enum.StrEnum):
    """What the vault reported; the values are the names of its events."""

    DEPOSITED = "Deposited"
    POSTED = "Posted"
    VETOED = "Vetoed"
    CLAIMED = "Claimed"
    CLAIM_FAILED = "ClaimFailed"
    WITHDRAWAL_REQUESTED = "WithdrawalRequested"
    WITHDRAWN = "Withdrawn"


class Happening(NamedTuple):
    """One event of the vault, and where it stands on the chain.

    ``ordinal`` counts the vault's events of one transaction from 0. ``units`` and ``account`` are
    of money that moved, ``epoch`` and ``root`` are of a root.
    """

    what: What
    block: BlockRef
    tx_hash: bytes
    ordinal: int
    account: bytes = b""
    units: int = 0
    epoch: int = 0
    root: bytes = b""


class Chain(Protocol):
    """One vault on one chain, asked with one key."""

    @property
    def chain_id(self) -> int:
        """The chain's number (EIP-155)."""
        ...

    @property
    def contract(self) -> bytes:
        """The vault's address."""
        ...

    @property
    def sender(self) -> bytes:
        """The address whose key signs here."""
        ...

    def tip(self) -> BlockRef:
        """The newest block."""
        ...

    def block_hash(self, number: int) -> bytes | None:
        """The hash of the block at a height, or None if the chain is not that long."""
        ...

    def standing(self, block: int) -> Standing | None:
        """How far the vault was after block number ``block``; None if there was no vault then."""
        ...

    def funds(self) -> Funds:
        """What the vault holds."""
        ...

    def claimed(self, account: bytes) -> int:
        """What an address has been paid since the beginning."""
        ...

    def next_nonce(self) -> int:
        """How many transactions of the sender are in blocks."""
        ...

    def suggested_fee(self) -> Fee:
        """A fee with which a transaction is likely to be taken soon."""
        ...

    def post_data(self, post: Post) -> bytes:
        """The bytes that ask the vault to post; no other bytes ask for the same."""
        ...

    def claim_data(self, claims: Sequence[Claim]) -> bytes:
        """The bytes that ask the vault to pay these claims."""
        ...

    def estimate(self, data: bytes) -> Estimate:
        """What sending ``data`` to the vault now would come to."""
        ...

    def sign(self, data: bytes, nonce: int, gas: int, fee: Fee) -> Signed:
        """A transaction to the vault; nothing is sent."""
        ...

    def broadcast(self, raw: bytes) -> str:
        """Send a signed transaction; empty, or what the chain says against it.

        Saying something against it does not mean that it will never be in a block.
        """
        ...

    def receipt(self, tx_hash: bytes) -> Receipt | None:
        """What became of a transaction; None as long as it is in no block."""
        ...

    def happenings(self, first: int, last: int) -> list[Happening]:
        """What the vault reported in the blocks from ``first`` to ``last``, in order."""
        ...
