"""Accounts: whose money, and of which kind. Money is an integer number of nano-USD, nothing else.

An account has what was ever credited to it and what was ever debited; its balance is the
difference. No account but `POOL` is ever below zero: `POOL` stands for the money outside, so its
balance is minus what the books hold. Knows nothing of transfers.
"""

from __future__ import annotations

import enum
from typing import Final, NamedTuple

from starai.core.errors import InvalidRequest

#: The most that an amount, or all credits or debits of one account, may be: what a database keeps
#: as an integer. 9.2 billion USD.
MONEY_MAX: Final = (1 << 63) - 1
#: Nano-USD in a USD: 0.02 USD for a million tokens is exactly 20 for each.
NANO_PER_USD: Final = 1_000_000_000
_CUSTOMER_BYTES: Final = 8
#: The length of a node's raw public key, the owner of its accounts.
NODE_BYTES: Final = 32


class Kind(enum.StrEnum):
    """What the money in an account is for."""

    #: What a customer may spend.
    AVAILABLE = "customer.available"
    #: What is set aside of it for requests that gateways let in: the sum of the open holds.
    HELD = "customer.held"
    #: What a node earned and what may still be disputed.
    PENDING = "node.pending"
    #: What a node earned for good, and has not claimed.
    PAYABLE = "node.payable"
    #: What a node put at stake: slashing takes from here.
    STAKE = "node.stake"
    #: The operator's part.
    FEE = "fee"
    #: What pays when nobody else can be made to.
    INSURANCE = "insurance"
    #: The money outside: deposits come from here, claims and withdrawals go there.
    POOL = "chain.pool"


class Account(NamedTuple):
    """An account. Accounts of equal kind and owner are the same; they sort by kind, then owner."""

    kind: Kind
    owner: bytes = b""


class Totals(NamedTuple):
    """All that was ever debited from an account and credited to it, in nano-USD."""

    debits: int = 0
    credits: int = 0

    @property
    def balance(self) -> int:
        """What is in it."""
        return self.credits - self.debits


#: The totals of an account that nothing ever touched.
UNUSED: Final = Totals()
FEE: Final = Account(Kind.FEE)
INSURANCE: Final = Account(Kind.INSURANCE)
POOL: Final = Account(Kind.POOL)


def customer_owner(customer: int) -> bytes:
    """The owner bytes of a customer's accounts: the number, 8 bytes big-endian."""
    return customer.to_bytes(_CUSTOMER_BYTES, "big")


def available(customer: int) -> Account:
    """What customer number ``customer`` may spend."""
    return Account(Kind.AVAILABLE, customer_owner(customer))


def held(customer: int) -> Account:
    """What is set aside of a customer's money."""
    return Account(Kind.HELD, customer_owner(customer))


def pending(node: bytes) -> Account:
    """What the node with raw key ``node`` earned and may still be disputed."""
    return Account(Kind.PENDING, node)


def payable(node: bytes) -> Account:
    """What a node earned for good."""
    return Account(Kind.PAYABLE, node)


def stake(node: bytes) -> Account:
    """What a node put at stake."""
    return Account(Kind.STAKE, node)


def natural(value: object, name: str, *, least: int = 0) -> int:
    """``value``, if it really is an integer from ``least`` to `MONEY_MAX`.

    Raises:
        InvalidRequest: it is of another type (``True`` and ``"7"`` included) or out of range.
    """
    if type(value) is not int or not least <= value <= MONEY_MAX:
        raise InvalidRequest(f"{name} must be an integer from {least} to {MONEY_MAX}", param=name)
    return value


def usd(nano: int) -> str:
    """An amount as a person reads it: ``"1.25 USD"``, exact, without needless zeros."""
    whole, rest = divmod(abs(nano), NANO_PER_USD)
    cents = f"{rest:09d}".rstrip("0").ljust(2, "0")
    return f"{'-' if nano < 0 else ''}{whole}.{cents} USD"
