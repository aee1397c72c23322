"""The registry's service: what each verb on the wire leads to.

Requests wait in bounded mailboxes, one a verb, and are answered by workers; a full mailbox says
so at once. Whatever a request does is durable before its answer leaves. Knows nothing of how the
parts do their work.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.abc
from anyio.streams.memory import MemoryObjectReceiveStream

from starai.core.clock import Clock
from starai.core.concurrency import task_group
from starai.core.errors import Overloaded, StarAIError, StoreFailed
from starai.core.logging import event
from starai.core.randomness import Randomness
from starai.exchange.standing.presence import keep_beating
from starai.protocol.frames import Message, decode, encode
from starai.protocol.identity import Identity, PartyId
from starai.protocol.log import Witnessing
from starai.protocol.ports import Delivery, Handler, Wire
from starai.protocol.presence import Beat
from starai.protocol.registry import (
    Acknowledged,
    AllotmentRequest,
    Confirm,
    FundsChanged,
    Join,
    KeyTable,
    KeyTableRequest,
    Prices,
    PricesRequest,
    Query,
    Renew,
    Report,
)
from starai.protocol.subjects import (
    FUNDS_CHANGED,
    KEYS_CHANGED,
    PRICES_CHANGED,
    Role,
    inbox,
    registry_all,
)
from starai.registry.admission import Admission, OnRevoke, Terms, do_nothing
from starai.registry.days.closing import Days
from starai.registry.days.epochs import DayTerms
from starai.registry.days.queries import DayQueries
from starai.registry.keys import Keys
from starai.registry.log.blocks import BlockTerms, Closer
from starai.registry.log.witnesses import Witnesses
from starai.registry.money.allotments import Allotments
from starai.registry.money.customers import Customers
from starai.registry.money.prices import PriceList
from starai.registry.money.queries import MoneyQueries
from starai.registry.money.shelf import refuse_old_ids
from starai.registry.parties import Parties
from starai.registry.queries import Queries
from starai.registry.reconciling.confirmations import Confirmations
from starai.registry.reconciling.disputes import Disputes
from starai.registry.reconciling.queries import DisputeQueries
from starai.registry.schema import bind_network
from starai.registry.storage import Connection, Store

_LOG = logging.getLogger(__name__)

#: Requests of one verb that wait: a block's end brings one from every party of a large network.
MAILBOX_MAX: Final = 1024
#: Confirmations in work at once: they share commits, so this is what one fsync is divided by. One
#: lot is checked and one waits while one is committed (`COMMIT_WRITES_MAX`).
CONFIRM_WORKERS: Final = 1024
#: Requests of any other verb in work at once: they are rare.
OTHER_WORKERS: Final = 8
#: Requests for allotments in work at once: a gateway's first, for all its keys, share commits.
ALLOTMENT_WORKERS: Final = 32

_Handle = Callable[[PartyId, Any], Awaitable[Message]]
_Refuse = Callable[[str, str], Message]


@dataclass(frozen=True)
class RegistryConfig:
    """What the registry is told at its start.

    ``parties`` are those that got their credentials from the authority directly (the services of
    ``starai up``, the operator): each with its role, without which it is a stranger here.
    ``urls`` and ``ca`` go into join tickets: where newcomers reach the wire, and the certificate
    (DER) to which they hold it. ``blocks`` says when a block of the chain is closed.
    What a node earned becomes payable ``maturity_ms`` after its block. Days are closed where
    there is a folder for their ``exports``; ``chain_id`` and ``contract`` name the vault that pays
    them out, if there is one.
    """

    network: str
    block_ms: int
    urls: tuple[str, ...] = ()
    parties: Mapping[PartyId, Role] = field(default_factory=dict)
    credential_lifetime_ms: int = 86_400_000
    ca: bytes = b""
    blocks: BlockTerms = field(default_factory=BlockTerms)
    maturity_ms: int = 172_800_000
    exports: Path | None = None
    chain_id: int = 0
    contract: bytes = bytes(20)


@dataclass(frozen=True)
class _Verb:
    """One verb: what is asked, who answers, how a refusal looks, how many at once."""

    kind: type[Message]
    handle: _Handle
    refuse: _Refuse
    workers: int = OTHER_WORKERS


class Registry:
    """The registry; its parts are public for the process that runs it."""

    def __init__(
        self,
        config: RegistryConfig,
        wire: Wire,
        store: Store,
        account: Identity,
        clock: Clock,
        randomness: Randomness,
        *,
        on_revoke: OnRevoke = do_nothing,
    ) -> None:
        """Take an open store and the network account's secret identity."""
        self._config = config
        self._wire = wire
        self._store = store
        self._clock = clock
        self._boot = clock.now_ms()
        self._done = 0
        network, block_ms = config.network, config.block_ms
        terms = Terms(network, block_ms, config.urls, config.credential_lifetime_ms, config.ca)
        self.parties = Parties(store, config.parties)
        self.confirmations = Confirmations(store, self.parties, network, block_ms, clock)
        self.admission = Admission(
            store, self.parties, account, terms, clock, randomness, on_revoke=on_revoke
        )
        self.keys = Keys(store, clock, randomness, self._publish_keys)
        self.prices = PriceList(store, clock, self._publish_prices)
        self.customers = Customers(store, clock, self._publish_funds)
        self.allotments = Allotments(store, self.parties, clock, self._publish_funds)
        self.blocks = Closer(store, network, account, clock, config.blocks)
        self.disputes = Disputes(store, clock)
        self.witnesses = Witnesses(store, self.parties, network, account.raw, clock, config.blocks)
        self.days = self._day_closer(account)
        disputes = DisputeQueries(self.disputes, self.parties)
        money = MoneyQueries(
            *(store, self.parties, clock, self.customers, self.prices),
            network=network,
            maturity_ms=config.maturity_ms,
        )
        self.queries = Queries(
            *(store, self.parties, self.admission, self.keys, self.blocks),
            money=money,
            disputes=disputes,
            days=DayQueries(store, self.days, self._publish_funds),
        )

    def _day_closer(self, account: Identity) -> Days | None:
        config = self._config
        if config.exports is None:
            return None
        terms = DayTerms(
            network=config.network,
            chain_id=config.chain_id,
            contract=config.contract,
            maturity_ms=config.maturity_ms,
        )
        close_block = self.blocks.close_now
        return Days(self._store, account, terms, self._clock, config.exports, close_block)

    async def open(self) -> None:
        """Read what must be in memory; `run` does it too, so call it to use the parts before.

        Raises:
            ConfigurationRefused: the store belongs to another network, closed days for another
                vault, or is an older StarAI's.
        """
        network, block_ms = self._config.network, self._config.block_ms

        def begin(connection: Connection) -> None:
            bind_network(connection, network, block_ms)
            refuse_old_ids(connection)

        await self._store.write(begin)
        await self.parties.load()
        if self.days is not None:
            await self.days.open()

    async def run(
        self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until cancelled.

        Raises:
            StoreFailed: the disk failed; nothing is acknowledged any more.
        """
        await self.open()
        await self.admission.repeat_revocations()
        with closing(self.confirmations):
            async with task_group() as tasks:
                for name, verb in self._verbs().items():
                    await tasks.start(self._serve, name, verb)
                tasks.start_soon(self.blocks.run)
                tasks.start_soon(self.disputes.run)
                tasks.start_soon(self.allotments.run)
                if self.days is not None:
                    tasks.start_soon(self.days.run)
                tasks.start_soon(keep_beating, self._wire, Role.REGISTRY, self._beat)
                event(_LOG, "registry_ready", network=self._config.network)
                task_status.started()

    def _verbs(self) -> dict[str, _Verb]:
        return {
            "confirm": _Verb(Confirm, self._confirm, _not_acknowledged, CONFIRM_WORKERS),
            "join": _Verb(Join, self.admission.join, _not_acknowledged),
            "renew": _Verb(Renew, self.admission.renew, _not_acknowledged),
            "query": _Verb(Query, self._query, _no_report),
            "keys": _Verb(KeyTableRequest, self._key_table, _not_acknowledged),
            "prices": _Verb(PricesRequest, self._price_table, _not_acknowledged),
            "allotments": _Verb(
                AllotmentRequest, self.allotments.handle, _not_acknowledged, ALLOTMENT_WORKERS
            ),
            "witness": _Verb(Witnessing, self.witnesses.handle, _not_acknowledged),
        }

    async def _confirm(self, sender: PartyId, confirm: Confirm) -> Message:
        answer, outcome = await self.confirmations.handle(sender, confirm)
        self._done += outcome.matched
        self.blocks.note(outcome.fresh)
        if outcome.contradicting:
            event(
                _LOG,
                "records_contradict",
                logging.WARNING,
                signer=sender,
                block=confirm.block,
                records=outcome.contradicting,
            )
        return answer

    async def _query(self, sender: PartyId, query: Query) -> Message:
        return Report(await self.queries.answer(sender, query))

    async def _key_table(self, sender: PartyId, _: KeyTableRequest) -> Message:
        self.parties.require(sender, Role.GATEWAY)
        return await self.keys.table()

    async def _price_table(self, sender: PartyId, _: PricesRequest) -> Message:
        self.parties.require(sender, Role.GATEWAY, Role.NODE)
        return await self.prices.table()

    async def _publish_prices(self, prices: Prices) -> None:
        try:
            await self._wire.publish(PRICES_CHANGED, encode(prices))
        except StarAIError as error:  # gateways ask again every minute
            event(_LOG, "prices_not_published", logging.WARNING, code=error.code)

    async def _publish_funds(self, change: FundsChanged) -> None:
        try:
            await self._wire.publish(FUNDS_CHANGED, encode(change))
        except StarAIError as error:  # gateways ask again within a second
            event(_LOG, "funds_not_published", logging.WARNING, code=error.code)

    async def _publish_keys(self, change: KeyTable) -> None:
        try:
            await self._wire.publish(KEYS_CHANGED, encode(change))
        except StarAIError as error:  # gateways see the gap in the versions, and ask
            event(_LOG, "keys_not_published", logging.WARNING, code=error.code)

    def _beat(self, seq: int) -> Beat:
        return Beat(
            party=self._wire.party,
            role=Role.REGISTRY.value,
            boot=self._boot,
            seq=seq,
            sent_ms=self._clock.now_ms(),
            draining=False,
            running=0,
            queued=0,
            done=self._done,
            tokens=0,
        )

    # How a request becomes an answer, whatever it is.

    async def _serve(
        self, name: str, verb: _Verb, *, task_status: anyio.abc.TaskStatus[None]
    ) -> None:
        send, receive = anyio.create_memory_object_stream[Delivery](MAILBOX_MAX)
        hear = self._hearing(verb, send.send_nowait)
        hearing = self._wire.subscribe(registry_all(name), hear)
        async with send, receive, hearing, task_group() as tasks:
            for _ in range(verb.workers):
                tasks.start_soon(self._work, verb, receive)
            task_status.started()

    def _hearing(self, verb: _Verb, put: Callable[[Delivery], None]) -> Handler:
        def hear(delivery: Delivery) -> None:
            if not delivery.reply.startswith(f"{inbox(_sender(delivery))}."):
                return  # nobody waits, or an attempt to make us write into another's inbox
            try:
                put(delivery)
            except anyio.WouldBlock:
                full = verb.refuse(Overloaded.code, "the registry is behind; try again shortly")
                self._wire.publish_soon(delivery.reply, encode(full))

        return hear

    async def _work(self, verb: _Verb, receive: MemoryObjectReceiveStream[Delivery]) -> None:
        async for delivery in receive:
            try:
                message = decode(delivery.payload, verb.kind)
                answer = encode(await verb.handle(_sender(delivery), message))
            except StarAIError as error:
                await self._reply(delivery, encode(verb.refuse(error.code, error.message)))
                if isinstance(error, StoreFailed):
                    raise
            else:
                await self._reply(delivery, answer)

    async def _reply(self, delivery: Delivery, frame: bytes) -> None:
        try:
            await self._wire.publish(delivery.reply, frame)
        except StarAIError as error:  # the asker asks again, and the same answer is found
            event(_LOG, "answer_not_sent", logging.WARNING, code=error.code)


def _sender(delivery: Delivery) -> PartyId:
    """Who asks: the wire lets a party publish only under its own name."""
    return PartyId(delivery.subject.rpartition(".")[2])


def _not_acknowledged(code: str, message: str) -> Message:
    return Acknowledged(ok=False, code=code, message=message)


def _no_report(code: str, message: str) -> Message:
    return Report(b"", code, message)


async def run_registry(
    config: RegistryConfig,
    wire: Wire,
    store: Store,
    account: Identity,
    clock: Clock,
    randomness: Randomness,
    *,
    on_revoke: OnRevoke = do_nothing,
    task_status: anyio.abc.TaskStatus[Registry] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Run a registry until cancelled; ``task_status`` hands it out once it hears.

    Raises:
        ConfigurationRefused: the store belongs to another network.
        StoreFailed: the disk failed.
    """
    registry = Registry(config, wire, store, account, clock, randomness, on_revoke=on_revoke)
    async with task_group() as tasks:
        await tasks.start(registry.run)
        task_status.started(registry)
