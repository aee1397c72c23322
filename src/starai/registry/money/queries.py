"""Questions and orders about money: the operator's, and what a node may ask of its own.

Amounts are nano-USD; answers carry them as strings. An order that could be repeated after a lost
answer carries an id made by who asks. Knows nothing of the wire.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple

import msgspec

from starai.core.clock import Clock
from starai.core.errors import Conflict, InvalidRequest, MalformedFrame, PartyRefused
from starai.protocol.identity import PartyId, party_id, raw_public
from starai.protocol.payouts import check_payout, parse_address
from starai.protocol.subjects import Role
from starai.registry.money import earnings
from starai.registry.money.customers import Balance, Customers
from starai.registry.money.prices import NODE_SHARE_BPS, PriceList
from starai.registry.parties import Parties
from starai.registry.schema import rows
from starai.registry.storage import Connection, Store

_OPERATOR: Final = (Role.OPERATOR,)
_SUPPLIERS: Final = (Role.OPERATOR, Role.NODE)
#: How far a node's clock may be from the registry's when it binds an address.
CLOCK_SKEW_MS: Final = 86_400_000


class _Asked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The arguments of a query; each class below is one query's."""


class _Nothing(_Asked, frozen=True):
    pass


class _CreateCustomer(_Asked, frozen=True):
    name: str
    address: str | None = None


class _Deposit(_Asked, frozen=True):
    customer: str
    amount_nano_usd: int
    event_id: str
    note: str = ""


class _SetCredit(_Asked, frozen=True):
    customer: str
    amount_nano_usd: int


class _SetBudget(_Asked, frozen=True):
    key_id: str
    amount_nano_usd: int | None


class _Balance(_Asked, frozen=True):
    customer: str | None = None


class _AddPrice(_Asked, frozen=True):
    model: str
    input_nano_usd: int
    output_nano_usd: int
    node_share_bps: int = NODE_SHARE_BPS
    valid_from_ms: int = 0


class _Earnings(_Asked, frozen=True):
    node: str | None = None


class _Why(_Asked, frozen=True):
    task_id: str
    node: str | None = None


class _Payout(_Asked, frozen=True):
    address: str
    bound_ms: int
    signature: str


class Question(NamedTuple):
    """Who may ask something, what belongs to it, and who answers whom."""

    roles: tuple[Role, ...]
    shape: type[msgspec.Struct]
    answer: Callable[[PartyId, Any], Awaitable[object]]


class MoneyQueries:
    """Answers them from the parts of the registry."""

    def __init__(
        self,
        store: Store,
        parties: Parties,
        clock: Clock,
        customers: Customers,
        prices: PriceList,
        *,
        network: str,
        maturity_ms: int,
    ) -> None:
        """Take the parts; earnings become payable ``maturity_ms`` after their block."""
        self._store = store
        self._parties = parties
        self._clock = clock
        self._network = network
        self._maturity_ms = maturity_ms
        self._customers = customers
        self._prices = prices
        self.known: Final = {
            "create_customer": Question(_OPERATOR, _CreateCustomer, self._create_customer),
            "deposit": Question(_OPERATOR, _Deposit, self._deposit),
            "set_credit": Question(_OPERATOR, _SetCredit, self._set_credit),
            "set_budget": Question(_OPERATOR, _SetBudget, self._set_budget),
            "balances": Question(_OPERATOR, _Balance, self._balances),
            "add_price": Question(_OPERATOR, _AddPrice, self._add_price),
            "prices": Question(_OPERATOR, _Nothing, self._list_prices),
            "earnings": Question(_SUPPLIERS, _Earnings, self._earnings),
            "why": Question(_SUPPLIERS, _Why, self._why),
            "payout": Question((Role.NODE,), _Payout, self._payout),
        }

    async def _create_customer(self, _: PartyId, asked: _CreateCustomer) -> object:
        address = None if asked.address is None else parse_address(asked.address)
        return {"customer": await self._customers.create(asked.name, address)}

    async def _deposit(self, _: PartyId, asked: _Deposit) -> Balance:
        try:
            event = bytes.fromhex(asked.event_id)
        except ValueError:
            raise InvalidRequest("event_id is hexadecimal", param="event_id") from None
        return await self._customers.deposit(
            asked.customer, asked.amount_nano_usd, event, asked.note
        )

    async def _set_credit(self, _: PartyId, asked: _SetCredit) -> Balance:
        return await self._customers.set_credit(asked.customer, asked.amount_nano_usd)

    async def _set_budget(self, _: PartyId, asked: _SetBudget) -> object:
        await self._customers.set_budget(asked.key_id, asked.amount_nano_usd)
        return {"key_id": asked.key_id}

    async def _balances(self, _: PartyId, asked: _Balance) -> object:
        return {"customers": await self._customers.balances(asked.customer)}

    async def _add_price(self, _: PartyId, asked: _AddPrice) -> object:
        return await self._prices.add(
            asked.model,
            asked.input_nano_usd,
            asked.output_nano_usd,
            node_share_bps=asked.node_share_bps,
            valid_from_ms=asked.valid_from_ms,
        )

    async def _list_prices(self, _: PartyId, __: _Nothing) -> object:
        return {"now_ms": self._clock.now_ms(), "prices": await self._prices.rows()}

    async def _earnings(self, sender: PartyId, asked: _Earnings) -> object:
        node, now_ms = self._whose(sender, asked.node), self._clock.now_ms()
        return await self._store.read(
            lambda connection: earnings.earnings(
                connection, node=node, now_ms=now_ms, maturity_ms=self._maturity_ms
            )
        )

    async def _why(self, sender: PartyId, asked: _Why) -> object:
        node, now_ms = self._whose(sender, asked.node), self._clock.now_ms()
        return await self._store.read(
            lambda connection: earnings.why(
                connection,
                task_id=asked.task_id,
                node=node,
                now_ms=now_ms,
                maturity_ms=self._maturity_ms,
            )
        )

    async def _payout(self, sender: PartyId, asked: _Payout) -> object:
        """Bind a node's address, which its own signature names; the newest one counts."""
        address, bound_ms = parse_address(asked.address), asked.bound_ms
        if abs(self._clock.now_ms() - bound_ms) > CLOCK_SKEW_MS:
            raise InvalidRequest("this device's clock is more than a day off", param="bound_ms")
        try:
            signature = bytes.fromhex(asked.signature)
        except ValueError:
            raise InvalidRequest("signature is hexadecimal", param="signature") from None
        check_payout(self._network, sender, address, bound_ms, signature)
        row = (raw_public(sender), address, bound_ms, signature)
        await self._store.write(lambda connection: _bind(connection, *row))
        return {"node": sender, "address": f"0x{address.hex()}", "bound_ms": bound_ms}

    def _whose(self, sender: PartyId, node: str | None) -> PartyId | None:
        """Whose earnings are asked for: a node sees its own, the operator anybody's (None: all)."""
        if self._parties.role_of(sender) is Role.NODE:
            if node not in {None, sender}:
                raise PartyRefused("a node sees its own earnings")
            return sender
        try:
            return None if node is None else party_id(node)
        except MalformedFrame as error:
            raise InvalidRequest(f"node: {error.message}", param="node") from error


def _bind(
    connection: Connection, node: bytes, address: bytes, bound_ms: int, signature: bytes
) -> None:
    """Add a binding; an older one than the newest would count for nothing, so it is refused."""
    newest = next(
        rows(
            connection,
            "SELECT address, bound_ms FROM payout WHERE node = ? ORDER BY bound_ms DESC LIMIT 1",
            node,
        ),
        None,
    )
    if newest == (address, bound_ms):
        return
    if newest is not None and newest[1] >= bound_ms:
        raise Conflict("a newer address was bound already")
    connection.execute(
        "INSERT INTO payout (node, address, bound_ms, sig) VALUES (?, ?, ?, ?)",
        (node, address, bound_ms, signature),
    )
