"""A day of a network's money on this machine, told as it happens: from tasks to a claimed payout.

Nothing is pretended but the chain, which is in memory, and the model, which is a mock: a real
gateway, distributor, node and registry do real tasks at a price, the books are kept and closed and
checked by the independent verifier, and the contract, settler, relayer and watcher are those that
run on a real chain.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import anyio
import msgspec

from starai.client import AsyncClient
from starai.core.clock import SystemClock
from starai.core.concurrency import task_group
from starai.core.errors import ConfigurationRefused, InternalFault, Unavailable
from starai.core.randomness import SystemRandomness
from starai.ledger.accounts import available, payable, pending, usd
from starai.local.network import NAME, Embedded, NetworkSettings, embedded
from starai.local.settling import AskedSettlement, claims_of, in_a_thread
from starai.protocol.api_keys import hash_api_key, new_api_key
from starai.protocol.payouts import sign_payout
from starai.protocol.registry import Query
from starai.registry.days.closing import Days
from starai.registry.days.epochs import DayTerms
from starai.registry.days.settling import SettlementCall, call
from starai.registry.money.books import verify_books
from starai.registry.money.shelf import StoredShelf
from starai.registry.storage import Connection
from starai.settlement.relaying import due, relay
from starai.settlement.settler import Settler, Stage
from starai.settlement.watching import Watcher

Say = Callable[[str], None]

#: Tasks of the day: enough that the sums are not those of one task.
TASKS: Final = 40
#: What a token costs, in nano-USD: ten and thirty dollars a million, so that a short day shows.
INPUT_NANO, OUTPUT_NANO = 10_000, 30_000
_UNIT: Final = 10**6
_DEPOSIT: Final = 25 * _UNIT
_DEPTH: Final = 3
#: How long the last confirmation may take: a few blocks of a second.
_CONFIRMED_S: Final = 60.0
_LOOK_S: Final = 0.2


def tell(say: Say) -> None:
    """Run the day, and say what happens.

    Raises:
        ConfigurationRefused: the extra is not installed.
    """
    try:
        from starai.settlement.rollup.playing import Play  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ConfigurationRefused(
            "the demonstration needs more: pip install 'starai[chain]'"
        ) from error
    anyio.run(_day, Play(), say)


async def _day(play: Any, say: Say) -> None:
    say("1. A chain in memory, and on it a vault: the contract that holds money for everybody.")
    say(f"   vault 0x{play.staged.address.hex()}, chain {play.chain_id}")
    settings = NetworkSettings(model="mock")
    with tempfile.TemporaryDirectory(prefix="starai-") as folder:
        async with embedded(settings) as network:
            day = _Day(network, play, Path(folder), say)
            await day.deposit()
            await day.work()
            await day.close()
            await day.post()
            await day.claim()
            await day.check()


class _Day:
    """The day's steps, in order."""

    def __init__(self, network: Embedded, play: Any, folder: Path, say: Say) -> None:
        self.network = network
        self.store = network.store
        self.play = play
        self.folder = folder
        self.say = say
        self.clock = SystemClock()
        self.books = AskedSettlement(self._ask, play.chain_id, play.staged.address)
        (self.node,) = network.nodes

    async def _ask(self, _what: str, **asked: Any) -> Any:
        """What `starai settle` asks a registry over the wire, asked directly."""
        wanted = msgspec.convert(asked, SettlementCall)
        answer = await self.store.write(lambda connection: call(connection, wanted))
        return msgspec.to_builtins(answer)

    async def _balance(self, account: Any) -> str:
        nano = await self.store.read(lambda c: StoredShelf(c).totals(account).balance)
        return usd(nano)

    async def _watch(self) -> None:
        self.play.mine(_DEPTH)
        watcher = Watcher(self.play.chain(), self.books, confirmations=_DEPTH)
        await in_a_thread(watcher.step)

    async def deposit(self) -> None:
        """A customer pays in, and gets a key."""
        self.play.deposit(_DEPOSIT)
        await self._watch()
        self.customer = await self.store.read(_only_customer(self.play.customer))
        self.say("2. A customer deposits 25 play dollars there; the watcher books them.")
        self.say(f"   balance {await self._balance(available(self.customer))}")

    async def work(self) -> None:
        """Prices are set, tasks are done, both sides confirm them."""
        registry = self.network.registry
        await registry.prices.add(
            self.network.model, INPUT_NANO, OUTPUT_NANO, valid_from_ms=self.clock.now_ms()
        )
        api_key = new_api_key(SystemRandomness())
        await registry.keys.create("demo", key_hash=hash_api_key(api_key), owner=str(self.customer))
        bound_ms = self.clock.now_ms()
        address = self.play.payee
        signature = sign_payout(NAME, self.node, address, bound_ms)
        arguments = {"address": f"0x{address.hex()}", "bound_ms": bound_ms}
        query = Query("payout", msgspec.json.encode(arguments | {"signature": signature.hex()}))
        await registry.queries.answer(self.node.party, query)
        self.say(f"3. {TASKS} tasks, at 10 dollars a million tokens in and 30 a million out.")
        async with AsyncClient(self.network.base_url, api_key) as client, task_group() as tasks:
            for number in range(TASKS):
                tasks.start_soon(partial(_ask_once, client, number))
        for _ in range(int(_CONFIRMED_S / _LOOK_S)):
            await anyio.sleep(_LOOK_S)
            if await self.store.read(_num_paid) >= TASKS:
                break
        else:
            raise InternalFault("not all tasks were confirmed by both sides in time")
        earned = await self._balance(pending(self.node.raw))
        self.say(f"   each confirmed by its node and its distributor; the node earned {earned}")

    async def close(self) -> None:
        """The day ends; a second program comes to the same figures."""
        network = self.network
        terms = DayTerms(
            network=NAME,
            chain_id=self.play.chain_id,
            contract=self.play.staged.address,
            maturity_ms=0,
        )
        exports = self.folder / "exports"
        closer = network.registry.blocks.close_now
        days = Days(self.store, network.account, terms, self.clock, exports, closer)
        await closer()
        closing = await days.close(at_once=True)
        if closing.epoch is None or closing.stopped:
            raise InternalFault(f"the day does not close: {closing.stopped or 'it is empty'}")
        facts = closing.epoch.parsed()
        self.say("4. The day closes. Another program rebuilt it from the export and agrees.")
        self.say(f"   earned for good: {await self._balance(payable(self.node.raw))}")
        self.say(f"   {facts.num_leaves} leaves, root {facts.root.hex()[:16]}…")

    async def post(self) -> None:
        """The root goes onto the chain, and waits out its delay."""
        settler = Settler(
            self.play.chain(self.play.poster), self.books, self.clock, confirmations=_DEPTH
        )
        sent = await in_a_thread(settler.step)
        if sent.stage is not Stage.SENT:
            raise Unavailable(f"the root is not posted: {sent.why}")
        self.play.mine(1)
        await in_a_thread(settler.step)
        self.say("5. The settler posts the root: one transaction, whatever the number of payees.")
        self.play.travel_past_delay(_DEPTH)
        await in_a_thread(settler.step)
        self.say("   Half a day passes, in which the guardian could have taken it back.")

    async def claim(self) -> None:
        """Somebody claims for the node; its money arrives."""
        chain = self.play.chain(self.play.relayer)
        claims = await in_a_thread(partial(claims_of, self.folder / "exports", chain))

        def pay() -> None:
            for sent in relay(chain, due(chain, claims, 1), lambda: self.play.mine(1)):
                gas = sent.receipt.gas_used
                self.say("6. A relayer claims for the node, with a proof made from the export")
                self.say(f"   ({gas:,} gas); it needed neither the node's key nor its trust.")

        await in_a_thread(pay)
        units = self.play.staged.balance(self.play.payee)
        self.say(f"   at the node's address: {units / _UNIT:.6f} play dollars")

    async def check(self) -> None:
        """The books hear of it, and still balance."""
        await self._watch()
        left = await self._balance(payable(self.node.raw))
        checked = await self.store.read(verify_books)
        if checked.problems:
            raise InternalFault(f"the books do not balance: {checked.problems[0]}")
        self.say(f"7. The watcher books the claim; {left} are left to pay.")
        self.say(
            f"   {checked.transfers} transfers replayed: every account as kept, the sum is zero."
        )


def _only_customer(address: bytes) -> Callable[[Connection], int]:
    def read(connection: Connection) -> int:
        found = connection.execute("SELECT id FROM customer WHERE address = ?", (address,))
        return int(next(found)[0])

    return read


def _num_paid(connection: Connection) -> int:
    ((count,),) = connection.execute("SELECT COUNT(*) FROM task WHERE event_id IS NOT NULL")
    return int(count)


async def _ask_once(client: AsyncClient, number: int) -> None:
    await client.chat(f"Task number {number}", max_tokens=32)
