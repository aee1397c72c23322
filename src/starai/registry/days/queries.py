"""Questions and orders about closed days and their settlement. Knows nothing of the wire."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from starai.core.errors import ConfigurationRefused
from starai.protocol.identity import PartyId
from starai.protocol.registry import FundsChanged
from starai.protocol.subjects import Role
from starai.registry.days.closing import Days
from starai.registry.days.epochs import Epoch, vetoed_epoch
from starai.registry.days.settling import SettlementCall, call
from starai.registry.money.queries import Question
from starai.registry.storage import Store

_OPERATOR: Final = (Role.OPERATOR,)

Publish = Callable[[FundsChanged], Awaitable[None]]


class _CloseDay(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    accept: bool = False


class DayQueries:
    """Answers them, where days are closed at all."""

    def __init__(self, store: Store, days: Days | None, publish: Publish) -> None:
        """Take what closes days, if anything does, and where changed balances are told."""
        self._store = store
        self._days = days
        self._publish = publish
        self.known: Final = {
            "close_day": Question(_OPERATOR, _CloseDay, self._close),
            "settlement": Question(_OPERATOR, SettlementCall, self._settlement),
        }

    async def _close(self, _: PartyId, asked: _CloseDay) -> object:
        if self._days is None:
            raise ConfigurationRefused("this registry closes no days: it has nowhere to export to")
        vetoed = await self._store.read(vetoed_epoch)
        if vetoed is not None:
            closing = await self._days.close_again(vetoed.epoch, accept=asked.accept)
        else:
            closing = await self._days.close(at_once=True, accept=asked.accept)
        return {
            "day": None if closing.epoch is None else _shown(closing.epoch),
            "stopped": closing.stopped,
        }

    async def _settlement(self, _: PartyId, asked: SettlementCall) -> object:
        """What the settler and the watcher keep here, and ask; gateways hear what it changed."""
        changes: list[FundsChanged] = []
        result = await self._store.write(lambda session: call(session, asked, changes.append))
        for change in dict.fromkeys(changes):
            await self._publish(change)
        return result


def _shown(epoch: Epoch) -> dict[str, object]:
    facts = epoch.parsed()
    return {
        "epoch": epoch.epoch,
        "state": epoch.state.value,
        "from_block": epoch.from_block,
        "to_block": epoch.to_block,
        "earned_units": str(facts.earned_units),
        "spent_units": str(facts.spent_units),
        "num_leaves": facts.num_leaves,
        "root": facts.root.hex(),
        "head": facts.head().hex(),
    }
