"""What requests cost at the application: choices, embeddings, replays, 402; virtual time."""

import json
from contextlib import asynccontextmanager

import anyio
import httpx
import pytest

from starai.core.errors import Unavailable
from starai.core.randomness import SeededRandomness
from starai.gateway.app import GatewayApp
from starai.gateway.following import follow_keys, follow_prices
from starai.gateway.jobs import _UNSEEN_TOKENS_MAX
from starai.gateway.paying.funding import Funding
from starai.gateway.paying.keys import KeyRing
from starai.gateway.paying.pricing import PriceBook
from starai.gateway.web.incoming import Incoming
from starai.ledger.accounts import available, held
from starai.protocol.api_keys import hash_api_key
from starai.protocol.subjects import Role
from starai.registry.money.shelf import StoredShelf
from starai.testing.gateways import MOCK_GATEWAY
from starai.testing.parties import Parties
from starai.testing.registries import running_registry
from starai.testing.tasks import ScriptedTasks, says
from starai.wire.memory import MemoryNetwork

pytestmark = pytest.mark.anyio

CHAT, LEGACY, EMBED = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
#: The mock model has a token a byte.
IN, OUT = 3, 7
HELLO = says("Hello!")
BODY = {"model": "mock", "prompt": "12345", "max_tokens": 100}


class Collected:
    congested = False

    def __init__(self):
        self.status, self.headers, self.body = 0, [], b""

    def begin(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body or b""

    def more(self, data):
        self.body += data

    end = more

    async def drained(self):
        raise AssertionError("nothing is congested")


class Shop:
    """A gateway whose requests cost money, and the books behind it."""

    def __init__(self, app, registry, tasks, funding):
        self.app, self.registry, self.tasks, self.funding = app, registry, tasks, funding
        self.deposits = 0

    async def deposit(self, amount):
        self.deposits += 1
        await self.registry.customers.deposit("acme", amount, bytes([self.deposits]) * 16)
        await anyio.sleep(1)

    async def post(self, path, body, *, leave_after_s=1e9, **headers):
        headers = {"authorization": "Bearer sk-one", **headers}
        named = [(name.encode(), value.encode()) for name, value in headers.items()]
        incoming, outlet = Incoming("POST", path.encode(), named, 1 << 20), Collected()
        incoming.feed(json.dumps(body).encode())
        incoming.finish()
        async with anyio.create_task_group() as group:

            async def leave():
                await anyio.sleep(leave_after_s)
                incoming.leave()

            group.start_soon(leave)
            await self.app.answer(incoming, outlet)
            group.cancel_scope.cancel()
        return httpx.Response(outlet.status, headers=outlet.headers, content=outlet.body)

    async def spent(self):
        """What the gateway says it used, once it has given everything back."""
        await anyio.sleep(1)
        for purse in self.funding._purses.values():
            self.funding._let_go(purse)
        await anyio.sleep(1)

        def read(connection):
            shelf = StoredShelf(connection)
            return shelf.totals(held(1)).balance, shelf.totals(available(1)).balance

        aside, _ = await self.registry._store.read(read)
        return aside


@asynccontextmanager
async def shop(folder, script=HELLO, *, priced=True):
    async with MemoryNetwork() as network:
        parties = Parties(network)
        member = parties.join(Role.GATEWAY)
        known = {member.identity.party: Role.GATEWAY}
        async with running_registry(parties, known, folder) as registry:
            await registry.customers.create("acme")
            await registry.keys.create("one", key_hash=hash_api_key("sk-one"), owner="acme")
            if priced:
                await registry.prices.add("mock", IN, OUT)
            keys, prices, tasks = KeyRing(), PriceBook(), ScriptedTasks(script)
            funding = Funding(member, keys, prices)
            app = GatewayApp(
                *(MOCK_GATEWAY, tasks, keys, member.clock, SeededRandomness(1)), funding=funding
            )
            async with (
                follow_keys(member, keys),
                follow_prices(member, prices),
                funding.running(),
                app.running(),
            ):
                while not prices.loaded:
                    await anyio.sleep(0.01)
                yield Shop(app, registry, tasks, funding)


async def test_a_free_network_is_as_it_was(tmp_path):
    """Without a price nobody pays, nothing is set aside, and no answer speaks of cost."""
    async with shop(tmp_path, priced=False) as one:
        answer = await one.post(LEGACY, BODY)
        assert answer.json()["usage"] == {
            "prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12
        }  # fmt: skip
        assert one.tasks.submissions[0].price.price_id == 0
        assert await one.spent() == 0


async def test_an_answer_costs_its_tokens(tmp_path):
    """Prompt and answer, the end token included; the price rides along with the task."""
    async with shop(tmp_path) as one:
        await one.deposit(10**6)
        answer = await one.post(LEGACY, BODY)
        cost = 5 * IN + 7 * OUT
        assert answer.json()["usage"]["cost_nano_usd"] == str(cost)
        price = one.tasks.submissions[0].price
        assert (price.price_id, price.input_nano_usd, price.output_nano_usd) == (1, IN, OUT)
        assert await one.spent() == cost


async def test_a_prompt_is_paid_for_once(tmp_path):
    """Three choices of two prompts: each prompt once, each answer."""
    async with shop(tmp_path) as one:
        await one.deposit(10**6)
        answer = await one.post(LEGACY, {**BODY, "prompt": ["12345", "123"], "n": 3})
        cost = (5 + 3) * IN + 6 * 7 * OUT
        assert answer.json()["usage"]["cost_nano_usd"] == str(cost)
        assert await one.spent() == cost


async def test_embeddings_cost_their_prompts(tmp_path):
    """There is no answer in tokens."""
    async with shop(tmp_path) as one:
        await one.deposit(10**6)
        answer = await one.post(EMBED, {"model": "mock", "input": ["1234", "12"]})
        assert answer.json()["usage"]["cost_nano_usd"] == str(6 * IN)
        assert await one.spent() == 6 * IN


async def test_a_stream_says_what_it_cost(tmp_path):
    """With the usage, behind everything else."""
    async with shop(tmp_path) as one:
        await one.deposit(10**6)
        body = {**BODY, "stream": True, "stream_options": {"include_usage": True}}
        answer = await one.post(LEGACY, body)
        *_, usage, done, _ = answer.text.split("\n\n")
        assert done == "data: [DONE]"
        assert json.loads(usage[6:])["usage"]["cost_nano_usd"] == str(5 * IN + 7 * OUT)


async def test_who_cannot_pay_is_told_how_much(tmp_path):
    """402 in OpenAI's form, not to be repeated; no task is made; a deposit lets it through."""
    async with shop(tmp_path) as one:
        most = 5 * IN + 100 * OUT
        await one.deposit(most - 1)
        refused = await one.post(LEGACY, BODY)
        assert refused.status_code == 402
        assert refused.headers["x-should-retry"] == "false"
        error = refused.json()["error"]
        assert (error["code"], error["param"]) == ("insufficient_balance", None)
        assert error["needed_nano_usd"] == str(most)
        assert error["available_nano_usd"] == str(most - 1)
        assert "max_tokens" in error["message"]
        assert one.tasks.submissions == []
        assert (await one.post(LEGACY, {**BODY, "max_tokens": 99})).status_code == 200
        await one.deposit(most)
        assert (await one.post(LEGACY, BODY)).status_code == 200


async def test_a_replay_is_free(tmp_path):
    """The same answer again for its Idempotency-Key is charged once."""
    async with shop(tmp_path) as one:
        await one.deposit(10**6)
        for _ in range(3):
            assert (await one.post(LEGACY, BODY, **{"idempotency-key": "k"})).status_code == 200
        assert await one.spent() == 5 * IN + 7 * OUT


@pytest.mark.parametrize(
    ("stream", "owed"),
    # Of a whole answer that is broken off, nobody knows here how much of it was made.
    [(True, 5 * IN + (4 + _UNSEEN_TOKENS_MAX) * OUT), (False, 5 * IN + 400 * OUT)],
)
async def test_who_hangs_up_may_owe_what_was_made(tmp_path, stream, owed):
    """What can still come in as a record stays set aside; the rest is given back."""
    async with shop(tmp_path, says("x" * 300, delay_s=1.0)) as one:
        await one.deposit(10**6)
        body = {**BODY, "max_tokens": 400, "stream": stream}
        await one.post(LEGACY, body, leave_after_s=3.5)
        assert len(one.tasks.cancelled) == 1
        assert await one.spent() == owed


async def test_what_never_began_costs_nothing(tmp_path):
    """A task that no node took up gives everything back."""
    script = says("x", fails_at=-1, error=Unavailable("nobody"))
    async with shop(tmp_path, script) as one:
        await one.deposit(10**6)
        assert (
            await one.post(CHAT, {"model": "mock", "messages": [{"role": "user", "content": "x"}]})
        ).status_code == 503
        assert await one.spent() == 0
