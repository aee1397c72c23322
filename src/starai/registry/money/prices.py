"""What tokens cost: rows that are only ever added, and told to every gateway.

A row says what a token of a model costs from a moment on; a later row of the same model takes its
place. Rows stay for ever: a record names the row that it was charged by. A network without rows is
free. Knows nothing of who pays.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from starai.core.clock import Clock
from starai.core.errors import InvalidRequest, Overloaded
from starai.ledger.prices import Price
from starai.protocol.registry import PriceEntry, Prices
from starai.registry.schema import rows
from starai.registry.storage import Connection, Store

#: What a node gets of a charge unless the operator says otherwise, in basis points: nine tenths.
NODE_SHARE_BPS: Final = 9_000
#: Names of models are as long as a person still reads.
MODEL_BYTES_MAX: Final = 256
#: Rows that hold now or will: the table must fit one frame with the longest names.
ROWS_MAX: Final = 2_500

_ROW: Final = "id, model, input_nano, output_nano, node_bps, valid_from_ms"

Publish = Callable[[Prices], Awaitable[None]]


class PriceList:
    """The operator's price table."""

    def __init__(self, store: Store, clock: Clock, publish: Publish) -> None:
        """Take where changes are published."""
        self._store = store
        self._clock = clock
        self._publish = publish

    async def add(
        self,
        model: str,
        input_nano_usd: int,
        output_nano_usd: int,
        *,
        node_share_bps: int = NODE_SHARE_BPS,
        valid_from_ms: int = 0,
    ) -> Price:
        """Let a price hold from ``valid_from_ms`` on, or from now if that is past or 0.

        The same as what holds already adds nothing: the row that holds is returned.

        Raises:
            InvalidRequest: an argument is out of range.
            Overloaded: there are `ROWS_MAX` rows.
        """
        if not model.isprintable() or len(model.encode()) > MODEL_BYTES_MAX:
            raise InvalidRequest(
                f"a model's name has at most {MODEL_BYTES_MAX} printable bytes", param="model"
            )
        now_ms = self._clock.now_ms()
        from_ms = max(now_ms, valid_from_ms)
        wanted = Price(1, model, input_nano_usd, output_nano_usd, node_share_bps, from_ms)
        price = await self._store.write(lambda connection: _add(connection, wanted, now_ms))
        await self._publish(await self.table())
        return price

    async def table(self) -> Prices:
        """The rows that hold now or will, as gateways are told."""
        now_ms = self._clock.now_ms()
        version, found = await self._store.read(lambda connection: _current(connection, now_ms))
        return Prices(version, tuple(_entry(price) for price in found))

    async def rows(self) -> list[Price]:
        """All rows there ever were, newest first."""
        return await self._store.read(lambda connection: _prices(connection, "ORDER BY id DESC"))


def _add(connection: Connection, wanted: Price, now_ms: int) -> Price:
    _, current = _current(connection, now_ms)
    last = next((one for one in reversed(current) if one.model == wanted.model), None)
    if last is not None and last.valid_from_ms <= wanted.valid_from_ms and _same(last, wanted):
        return last
    if len(current) >= ROWS_MAX:
        raise Overloaded(f"there are {ROWS_MAX} prices: give several models one by '*'")
    terms = (wanted.model, wanted.input_nano_usd, wanted.output_nano_usd, wanted.node_share_bps)
    ((number,),) = rows(
        connection,
        "INSERT INTO price (model, input_nano, output_nano, node_bps, valid_from_ms)"
        " VALUES (?, ?, ?, ?, ?) RETURNING id",
        *terms,
        wanted.valid_from_ms,
    )
    return Price(number, *terms, wanted.valid_from_ms)


def _same(one: Price, other: Price) -> bool:
    return (one.input_nano_usd, one.output_nano_usd, one.node_share_bps) == (
        other.input_nano_usd,
        other.output_nano_usd,
        other.node_share_bps,
    )


def _current(connection: Connection, now_ms: int) -> tuple[int, list[Price]]:
    """The number of the newest row, and the rows that hold now or will, by when they begin."""
    now: dict[str, Price] = {}
    later: list[Price] = []
    version = 0
    for price in _prices(connection, "ORDER BY valid_from_ms, id"):
        version = max(version, price.price_id)
        if price.valid_from_ms > now_ms:
            later.append(price)
        else:
            now[price.model] = price
    return version, [*now.values(), *later]


def _prices(connection: Connection, order: str) -> list[Price]:
    return [Price(*row) for row in rows(connection, f"SELECT {_ROW} FROM price {order}")]  # noqa: S608


def _entry(price: Price) -> PriceEntry:
    return PriceEntry(
        price.price_id,
        price.model,
        price.input_nano_usd,
        price.output_nano_usd,
        price.valid_from_ms,
    )
