"""Who gets the next task, who waits and for how long, and what a hostile beat cannot do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import anyio
import msgspec
import pytest

from starai.core.errors import (
    ContextTooLong,
    DeadlinePassed,
    ModelNotFound,
    Overloaded,
    Unavailable,
)
from starai.core.limits import BEAT_INTERVAL_S, BEAT_LEASE_S
from starai.exchange.base import AttemptFailed, FailureKind
from starai.exchange.caller.attempt import Target
from starai.exchange.caller.journey import Journey
from starai.exchange.member import Member
from starai.exchange.routes import routing
from starai.exchange.routes.routing import Routing
from starai.exchange.standing import ladder
from starai.exchange.standing.presence import keep_beating
from starai.protocol import tokens
from starai.protocol.frames import encode
from starai.protocol.generation import Generation, Sampling
from starai.protocol.identity import PartyId
from starai.protocol.presence import MODELS_MAX, SLOTS_MAX, Beat, RoundTrip, ServedModel
from starai.protocol.subjects import Role, beat
from starai.protocol.tasks import Prekey, RefusalCode
from starai.sealing import PrekeyRing
from starai.testing.parties import Parties
from starai.wire.memory import MemoryNetwork

pytestmark = pytest.mark.anyio

ROOT = b"m" * 32
GONE = AttemptFailed(FailureKind.GONE)


@pytest.fixture
def anyio_backend(virtual_time: object) -> object:
    """All of this happens in virtual time."""
    return virtual_time


class FakeNode:
    """A node that only beats; its beats say what a test wants."""

    def __init__(self, member: Member) -> None:
        self.member = member
        self.party = member.identity.party
        self.prekey: Prekey = PrekeyRing(member.identity, member.clock, member.randomness).current()
        self.model = ServedModel("m", ROOT, 1000, 1, 100.0, 10.0)
        self.models: tuple[ServedModel, ...] | None = None
        self.draining = False
        self.running = 0
        self.region = ""
        self.unread = 0
        self.rtts: tuple[RoundTrip, ...] = ()
        self.scope = anyio.CancelScope()

    def beat(self, seq: int) -> Beat:
        models = self.models if self.models is not None else (self.model,)
        return Beat(
            *(self.party, "node", 1, seq, 1, self.draining, self.running),
            *(0, 0, 0, self.prekey, models),
            region=self.region,
            unread=self.unread,
            rtts=self.rtts,
        )

    async def run(self) -> None:
        with self.scope:
            await keep_beating(self.member.wire, Role.NODE, self.beat)


class Scene:
    def __init__(self, network: MemoryNetwork, tasks: anyio.abc.TaskGroup) -> None:
        self.parties = Parties(network)
        self.tasks = tasks
        self.gone: list[PartyId] = []
        self.me = self.parties.join(Role.DISTRIBUTOR)
        self.routing = Routing(self.me, Role.NODE, self.gone.append)

    async def add(self, **model: object) -> FakeNode:
        node = FakeNode(self.parties.join(Role.NODE))
        node.model = msgspec.structs.replace(node.model, **model)
        self.tasks.start_soon(node.run)
        await anyio.sleep(0.01)
        return node

    async def choose(self, *failed: FakeNode, **changes: object) -> Target:
        return await self.routing.choose(journey(**changes), [one.party for one in failed])


def journey(
    prompt: int = 10,
    root: bytes = ROOT,
    customer: int = 1,
    deadline_ms: int = 2**42,
    first: int = 0,
    **generation: object,
) -> Journey:
    made = Generation(
        tokens.pack(range(first, first + prompt)),
        50,
        Sampling(b"k" * 32),
        stop_token_ids=(),
        salt=b"s" * 16,
    )
    made = msgspec.structs.replace(made, **generation)
    return Journey(b"t" * 16, root, customer, deadline_ms, made)


def spoken(node: FakeNode, seq: int) -> tuple[str, bytes]:
    """One beat of a node, as it is published."""
    return beat(Role.NODE, node.party), encode(node.beat(seq))


@asynccontextmanager
async def scene() -> AsyncIterator[Scene]:
    async with MemoryNetwork() as network, anyio.create_task_group() as tasks:
        made = Scene(network, tasks)
        async with made.routing.presence.watching():
            yield made
            tasks.cancel_scope.cancel()


async def test_the_fastest_free_node_is_chosen() -> None:
    """Of two free nodes the one with the earlier estimated end gets the task."""
    async with scene() as made:
        await made.add(decode_tps=5.0)
        fast = await made.add(decode_tps=50.0)
        assert (await made.choose()).callee == fast.party


async def test_a_full_node_is_left_out_before_its_beat_says_so() -> None:
    """Places are counted here at once: a burst does not pile up on one node."""
    async with scene() as made:
        fast, slow = await made.add(decode_tps=50.0), await made.add(decode_tps=5.0)
        assert [(await made.choose()).callee for _ in range(2)] == [fast.party, slow.party]


async def test_a_freed_place_goes_to_one_who_waits() -> None:
    """Whoever waits gets the place as soon as it is free."""
    async with scene() as made:
        node = await made.add()
        first = await made.choose()
        began = anyio.current_time()

        async def free() -> None:
            await anyio.sleep(3)
            assert made.routing.num_waiting == 1
            made.routing.ended(first, journey(), None)

        made.tasks.start_soon(free)
        assert (await made.choose()).callee == node.party
        assert anyio.current_time() - began == pytest.approx(3, abs=0.01)
        assert made.routing.num_waiting == 0


async def test_who_came_first_is_served_first() -> None:
    """Tasks that wait for the same model get their places in the order in which they came."""
    async with scene() as made:
        await made.add()
        held = await made.choose()
        served: list[int] = []

        async def wait_in_line(number: int) -> None:
            target = await made.choose()
            served.append(number)
            await anyio.sleep(0.1)
            made.routing.ended(target, journey(), None)

        async with anyio.create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(wait_in_line, number)
                await anyio.sleep(0.001)
            assert made.routing.num_waiting == 20
            made.routing.ended(held, journey(), None)
            tasks.start_soon(wait_in_line, 20)  # it comes when a place is free, and waits too
        assert served == list(range(21))
        assert made.routing.num_waiting == 0


@pytest.mark.parametrize("here", [True, False])
async def test_an_answer_that_was_broken_off_goes_to_the_front(*, here: bool) -> None:
    """Wherever it was broken off, who is in its middle goes before those who have none yet."""
    async with scene() as made:
        other, node = await made.add(), await made.add()
        other.scope.cancel()
        held = await made.choose(other)
        assert held.callee == node.party
        served: list[str] = []

        async def wait(name: str, *failed: FakeNode, accepted: bytes = b"") -> None:
            target = await made.choose(*failed, accepted=accepted)
            served.append(name)
            made.routing.ended(target, journey(), None)

        await anyio.sleep(BEAT_LEASE_S + 1)  # now there is one node, and it is full
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait, "new")
            await anyio.sleep(0.01)
            where = [other] if here else []
            accepted = b"" if here else tokens.pack([1])
            tasks.start_soon(partial(wait, "broken off", *where, accepted=accepted))
            await anyio.sleep(0.01)
            made.routing.ended(held, journey(), None)
        assert served == ["broken off", "new"]


async def test_an_old_beat_does_not_keep_a_freed_place_taken() -> None:
    """What a beat counted of one's own tasks is known better here; others' tasks are believed."""
    async with scene() as made:
        node = await made.add(slots=2)
        first, second = await made.choose(), await made.choose()
        node.running = 2
        await anyio.sleep(BEAT_INTERVAL_S)
        made.routing.ended(first, journey(), None)
        with anyio.fail_after(0.01):
            third = await made.choose()
        made.routing.ended(second, journey(), None)
        made.routing.ended(third, journey(), None)
        await anyio.sleep(2 * BEAT_INTERVAL_S)  # still two running: they are somebody else's
        with anyio.move_on_after(0.1) as full:
            await made.choose()
        assert full.cancelled_caught


async def test_a_node_that_failed_a_task_has_it_again_only_when_there_is_no_other() -> None:
    """The failed one is avoided; alone, it is asked again after a moment."""
    async with scene() as made:
        failed = await made.add(decode_tps=50.0, slots=2)
        other = await made.add(decode_tps=5.0)
        assert (await made.choose(failed)).callee == other.party
        began = anyio.current_time()
        assert (await made.choose(failed)).callee == failed.party
        waited_s = anyio.current_time() - began
        assert routing.SAME_AGAIN_S <= waited_s <= routing.SAME_AGAIN_S + routing.LOOK_AGAIN_S


async def test_a_failure_makes_a_node_less_likely_for_a_while() -> None:
    """A node that let tasks down is second choice until that is forgotten."""
    async with scene() as made:
        good, bad = await made.add(slots=9), await made.add(decode_tps=15.0, slots=9)
        target = await made.choose()
        assert target.callee == bad.party
        made.routing.ended(target, journey(), GONE)
        target = await made.choose()
        assert target.callee == good.party
        made.routing.ended(target, journey(), None)
        await anyio.sleep(10 * ladder.HALF_LIFE_S)
        assert (await made.choose()).callee == bad.party


@pytest.mark.parametrize("code", [RefusalCode.BUSY, RefusalCode.DRAINING])
async def test_a_polite_refusal_is_no_failure(code: str) -> None:
    """Being busy or draining speaks against nobody."""
    async with scene() as made:
        await made.add(slots=9)
        fast = await made.add(decode_tps=15.0, slots=9)
        for _ in range(3):
            target = await made.choose()
            assert target.callee == fast.party
            made.routing.ended(target, journey(), AttemptFailed(FailureKind.REFUSED, code))
            await anyio.sleep(BEAT_INTERVAL_S)  # until then a busy one is believed to be full


async def test_too_many_who_wait_are_told_when_to_come_back() -> None:
    """The queue is bounded; beyond it the answer is an immediate Overloaded with a time."""
    async with scene() as made:
        await made.add()
        await made.choose()
        refused: list[Overloaded] = []

        async def wait() -> None:
            try:
                await made.choose()
            except Overloaded as error:
                refused.append(error)

        for _ in range(routing.WAITING_MAX):
            made.tasks.start_soon(wait)
        await anyio.sleep(0.1)
        assert made.routing.num_waiting == routing.WAITING_MAX
        with pytest.raises(Overloaded) as failed:
            await made.choose()
        assert failed.value.retry_after_s
        await anyio.sleep(routing.WAIT_FOR_SLOT_S + 1)
        assert len(refused) == routing.WAITING_MAX
        assert all(one.retry_after_s for one in refused)
        assert made.routing.num_waiting == 0


async def test_a_prompt_that_fits_nobody_is_refused_at_once() -> None:
    """Waiting does not make a context longer."""
    async with scene() as made:
        await made.add(context_length=100)
        began = anyio.current_time()
        with pytest.raises(ContextTooLong, match="100"):
            await made.choose(prompt=100)
        assert anyio.current_time() == began


async def test_a_gateway_waits_for_anybody_a_while_and_says_so() -> None:
    """What restarts is waited for; then the answer is Unavailable, retryable."""
    async with scene() as made:
        gateway = made.parties.join(Role.GATEWAY)
        route = Routing(gateway, Role.DISTRIBUTOR, made.gone.append)
        began = anyio.current_time()
        with pytest.raises(Unavailable) as failed:
            await route.choose(journey(), [])
        assert failed.value.retry_after_s
        assert anyio.current_time() - began == pytest.approx(routing.WAIT_FOR_NODE_S, abs=0.1)


@pytest.mark.parametrize(("broken_off", "waits_s"), [(False, routing.NOBODY_S), (True, 0.0)])
async def test_a_distributor_without_a_node_for_a_model_soon_says_so(
    *, broken_off: bool, waits_s: float
) -> None:
    """Within two beats, or at once of an answer in its middle: another one may have such a node."""
    async with scene() as made:
        other = await made.add()
        failed, began = [other] if broken_off else [], anyio.current_time()
        with pytest.raises(ModelNotFound):
            await made.choose(*failed, root=b"?" * 32)
        assert anyio.current_time() - began == pytest.approx(waits_s, abs=0.01)


async def test_a_draining_node_gets_nothing() -> None:
    """A node that drains is passed over."""
    async with scene() as made:
        draining = await made.add(decode_tps=99.0)
        draining.draining = True
        other = await made.add()
        await anyio.sleep(2 * BEAT_INTERVAL_S)
        assert (await made.choose()).callee == other.party


async def test_what_is_served_is_added_up() -> None:
    """Per model: all slots together and the longest context."""
    async with scene() as made:
        await made.add(slots=3)
        await made.add(slots=4, context_length=2000)
        (model,) = made.routing.models()
        assert (model.slots, model.context_length) == (7, 2000)
        assert (model.prefill_tps, model.decode_tps) == (0.0, 0.0)


async def test_nothing_is_kept_of_those_who_are_gone() -> None:
    """When parties have come and gone for long, no table has grown."""
    async with scene() as made:
        for _ in range(5):
            node = await made.add()
            target = await made.choose()
            made.routing.ended(target, journey(), GONE)
            node.scope.cancel()
            await anyio.sleep(BEAT_LEASE_S + 10 * ladder.HALF_LIFE_S)
        node = await made.add()
        node.scope.cancel()
        await anyio.sleep(2 * BEAT_LEASE_S)
        roster = made.routing.roster
        kept = (roster, roster._pools, made.routing.ladder, made.routing._queue)
        assert [len(table) for table in kept] == [0, 0, 0, 0]
        assert len(made.gone) == 6


@pytest.mark.parametrize("how", ["unsigned", "anothers", "eternal", "expired"])
async def test_a_node_with_a_bad_prekey_stands_in_nobodys_way(how: str) -> None:
    """However tempting it looks, it is passed over, and the sound node gets the task."""
    async with scene() as made:
        sound, bad = await made.add(), await made.add(decode_tps=1e9)
        change = msgspec.structs.replace
        match how:
            case "unsigned":
                bad.prekey = change(bad.prekey, signature=bytes(64))
            case "anothers":
                bad.prekey = sound.prekey
            case "eternal":
                bad.prekey = _signed(bad, not_after_ms=1 << 46)
            case _:
                bad.prekey = _signed(bad, not_after_ms=bad.prekey.not_before_ms + 1)
        await anyio.sleep(2 * BEAT_INTERVAL_S)
        assert (await made.choose()).callee == sound.party


def _signed(node: FakeNode, **changes: object) -> Prekey:
    prekey = msgspec.structs.replace(node.prekey, **changes)
    signature = node.member.identity.sign(prekey.signed_bytes())
    return msgspec.structs.replace(prekey, signature=signature)


async def test_boasting_nodes_do_not_burst_the_sum() -> None:
    """Claimed slots add up to a number that fits into a beat."""
    async with scene() as made:
        await made.add(slots=SLOTS_MAX)
        await made.add(slots=SLOTS_MAX)
        assert [model.slots for model in made.routing.models()] == [SLOTS_MAX]


async def test_made_up_models_crowd_out_none_that_is_served() -> None:
    """The list of models has an end, and what more parties serve comes first."""
    async with scene() as made:
        liar = await made.add()
        liar.models = tuple(
            ServedModel("x" * 200, number.to_bytes(32, "big"), 10, SLOTS_MAX)
            for number in range(MODELS_MAX)
        )
        await anyio.sleep(2 * BEAT_INTERVAL_S)
        await made.add()
        await made.add()
        models = made.routing.models()
        assert len(models) == MODELS_MAX
        assert models[0].model_root == ROOT


async def test_a_tenant_that_floods_keeps_nobody_waiting_for_long() -> None:
    """Forty tasks of one tenant wait; the first of another is served next but one."""
    async with scene() as made:
        await made.add()
        held = await made.choose()
        served: list[int] = []

        async def wait(customer: int) -> None:
            target = await made.choose(customer=customer)
            served.append(customer)
            await anyio.sleep(0.1)
            made.routing.ended(target, journey(), None)

        async with anyio.create_task_group() as tasks:
            for _ in range(40):
                tasks.start_soon(wait, 1)
            await anyio.sleep(0.01)
            tasks.start_soon(wait, 2)
            await anyio.sleep(0.01)
            made.routing.ended(held, journey(), None)
        assert 2 in served[:2]
        assert len(served) == 41


async def test_a_full_queue_makes_room_for_a_tenant_that_has_nothing_in_it() -> None:
    """The newest task of the tenant that fills the queue is refused."""
    async with scene() as made:
        await made.add()
        await made.choose()
        refused: list[int] = []

        async def wait(number: int) -> None:
            try:
                await made.choose(customer=1)
            except Overloaded:
                refused.append(number)

        for number in range(routing.WAITING_MAX):
            made.tasks.start_soon(wait, number)
            await anyio.sleep(0.001)
        with anyio.move_on_after(1):
            await made.choose(customer=2)
        assert refused == [routing.WAITING_MAX - 1]


async def test_a_region_rule_is_kept_and_stands_in_nobodys_way() -> None:
    """A task for Europe waits for a European node; others behind it go elsewhere meanwhile."""
    async with scene() as made:
        far = await made.add(slots=1)
        far.region = "us-east"
        near = await made.add(decode_tps=1.0)
        near.region = "eu-west"
        await anyio.sleep(BEAT_INTERVAL_S)
        european = await made.choose(regions=("eu",))
        assert european.callee == near.party
        first = await made.choose()
        assert first.callee == far.party
        order: list[str] = []

        async def wait(name: str, **rule: object) -> None:
            target = await made.choose(**rule)
            order.append(name)
            made.routing.ended(target, journey(), None)

        made.tasks.start_soon(partial(wait, "for europe", regions=("eu",)))
        await anyio.sleep(0.01)
        made.tasks.start_soon(wait, "for anywhere")
        await anyio.sleep(0.01)
        made.routing.ended(first, journey(), None)
        await anyio.sleep(0.01)
        assert order == ["for anywhere"]
        made.routing.ended(european, journey(), None)
        await anyio.sleep(0.01)
        assert order == ["for anywhere", "for europe"]


async def test_a_region_without_a_node_is_said_and_not_waited_for_long() -> None:
    """When nobody is where the answer may be computed, the refusal says so."""
    async with scene() as made:
        await made.add()
        began = anyio.current_time()
        with pytest.raises(Unavailable, match="region"):
            await made.choose(regions=("eu",))
        assert anyio.current_time() - began < routing.WAIT_FOR_NODE_S + 1


async def test_the_nearer_of_two_equal_nodes_is_chosen() -> None:
    """Nodes tell in their beats how far they are from this distributor."""
    async with scene() as made:
        far, near = await made.add(), await made.add()
        me = made.me.identity.party
        far.rtts, near.rtts = (RoundTrip(me, 180.0),), (RoundTrip(me, 9.0),)
        await anyio.sleep(2 * BEAT_INTERVAL_S)
        assert (await made.choose()).callee == near.party


async def test_who_has_read_the_prompt_is_asked_again() -> None:
    """A long conversation stays where its beginning is in memory; another one may go elsewhere."""
    async with scene() as made:
        for _ in range(4):
            await made.add(slots=4, context_length=9000)
        first = await made.choose(prompt=4000)
        made.routing.ended(first, journey(), None)
        for _ in range(10):
            again = await made.choose(prompt=4500)
            assert again.callee == first.callee
            made.routing.ended(again, journey(), None)
        strangers = {(await made.choose(prompt=4500, first=9000)).callee for _ in range(8)}
        assert len(strangers) > 1


async def test_memory_is_not_shared_between_tenants() -> None:
    """The same prompt under another cache salt is another prompt."""
    async with scene() as made:
        await made.add(context_length=9000)
        task = made.routing._task(journey(prompt=4000, cache_salt=b"a"), [])
        other = made.routing._task(journey(prompt=4000, cache_salt=b"b"), [])
        assert task.hashes
        assert set(task.hashes).isdisjoint(other.hashes)


async def test_a_deadline_that_nobody_can_keep_is_refused_at_once() -> None:
    """Waiting would only take a place from others; who might still make it, may wait."""
    async with scene() as made:
        await made.add(prefill_tps=10.0, decode_tps=10.0)
        await made.choose()
        now_ms, began = made.me.clock.now_ms(), anyio.current_time()
        with pytest.raises(DeadlinePassed):
            await made.choose(prompt=100, deadline_ms=now_ms + 5000)
        assert anyio.current_time() == began
        with anyio.move_on_after(1) as waiting:
            await made.choose(prompt=10, deadline_ms=now_ms + 5000)
        assert waiting.cancelled_caught


async def test_no_place_leaks_however_those_who_wait_give_up() -> None:
    """Tasks are placed, cancelled while they wait, ended twice, and nodes go: all is given back."""
    async with scene() as made:
        nodes = [await made.add(slots=2) for _ in range(3)]
        chance = made.parties.randomness.fraction

        async def one(customer: int) -> None:
            with anyio.move_on_after(chance() * 2):
                target = await made.choose(customer=customer)
                try:
                    await anyio.sleep(chance())
                finally:
                    how = GONE if chance() < 0.1 else None
                    made.routing.ended(target, journey(), how)
                    if chance() < 0.2:
                        made.routing.ended(target, journey(), None)

        async with anyio.create_task_group() as tasks:
            for number in range(400):
                tasks.start_soon(one, number % 5)
                await anyio.sleep(chance() * 0.05)
                assert made.routing.roster.num_held <= 6
                if number == 200:
                    nodes[0].scope.cancel()
        assert made.routing.roster.num_held == 0
        assert made.routing.num_waiting == 0
        assert not made.routing._queue._waiting
        await anyio.sleep(60)
        assert made.routing.roster.pool(ROOT).num_open == 2


async def test_a_place_that_was_granted_to_one_who_left_goes_to_the_next() -> None:
    """Cancelled at the very moment of its grant, a task gives the place back."""
    async with scene() as made:
        await made.add()
        held = await made.choose()
        scope, got = anyio.CancelScope(), []

        async def leaver() -> None:
            with scope:
                await made.choose()
                got.append("leaver")

        async def stayer() -> None:
            await made.choose()
            got.append("stayer")

        made.tasks.start_soon(leaver)
        await anyio.sleep(0.01)
        made.tasks.start_soon(stayer)
        await anyio.sleep(0.01)
        scope.cancel()
        made.routing.ended(held, journey(), None)
        await anyio.sleep(1)
        assert got == ["stayer"]
        assert made.routing.roster.num_held == 1


async def test_who_has_much_to_read_is_passed_over() -> None:
    """A beat tells how much of others' prompts a node has still to read before ours."""
    async with scene() as made:
        reads = await made.add(decode_tps=11.0, slots=4)
        free = await made.add(slots=4)
        assert (await made.choose()).callee == reads.party
        reads.unread = 5000
        await anyio.sleep(BEAT_INTERVAL_S)
        assert (await made.choose()).callee == free.party


async def test_a_gateway_stays_with_the_nearest_distributor_until_it_is_much_fuller() -> None:
    """Of distributors that serve the same, the nearer gets what a gateway has, within reason."""
    async with MemoryNetwork() as network, anyio.create_task_group() as tasks:
        parties = Parties(network)
        me = parties.join(Role.GATEWAY)
        far, near = (FakeNode(parties.join(Role.DISTRIBUTOR)) for _ in range(2))
        rtts = {far.party: 150.0, near.party: 5.0}
        made = Routing(me, Role.DISTRIBUTOR, lambda _party: None, rtt_ms=rtts.get)

        def beat_of(one: FakeNode, seq: int) -> Beat:
            model = msgspec.structs.replace(one.model, slots=1000, prefill_tps=0.0, decode_tps=0.0)
            one.models = (model,)
            return msgspec.structs.replace(one.beat(seq), role="distributor")

        async with made.presence.watching():
            for one in (far, near):
                beat = partial(beat_of, one)
                tasks.start_soon(keep_beating, one.member.wire, Role.DISTRIBUTOR, beat)
            await anyio.sleep(0.1)
            chosen = [(await made.choose(journey(), [])).callee for _ in range(200)]
            tasks.cancel_scope.cancel()
        assert set(chosen[:5]) == {near.party}
        assert chosen.count(far.party) > 50


async def test_a_node_that_says_it_is_full_is_believed_until_its_next_beat() -> None:
    """Others were faster: nobody else is sent there in vain before it tells how it is."""
    async with scene() as made:
        full = await made.add(decode_tps=50.0, slots=4)
        other = await made.add(slots=4)
        target = await made.choose()
        assert target.callee == full.party
        busy = AttemptFailed(FailureKind.REFUSED, RefusalCode.BUSY)
        made.routing.ended(target, journey(), busy)
        assert (await made.choose()).callee == other.party
        await anyio.sleep(BEAT_INTERVAL_S)
        assert (await made.choose()).callee == full.party


async def test_the_first_to_serve_a_model_and_the_last_are_news() -> None:
    """A second node changes nothing of what is served; the first one and the last one's end do."""
    async with scene() as made:
        news: list[int] = []
        made.routing.roster.on_served = lambda: news.append(1)
        first = await made.add()
        assert len(news) == 1
        second = await made.add()
        await anyio.sleep(5)
        assert len(news) == 1
        first.draining = True
        await anyio.sleep(2 * BEAT_INTERVAL_S)
        assert len(news) == 1
        second.models = ()
        await anyio.sleep(2 * BEAT_INTERVAL_S)
        assert len(news) == 2
        first.draining = False
        await anyio.sleep(2 * BEAT_INTERVAL_S)
        assert len(news) == 3
        first.scope.cancel()
        await anyio.sleep(BEAT_LEASE_S + 2 * BEAT_INTERVAL_S)
        assert len(news) == 4


async def test_who_was_given_up_for_silence_is_not_asked_before_it_is_heard_again() -> None:
    """A dead node's streams do not go from one to the next of those that died with it."""
    async with scene() as made:
        fast = await made.add(decode_tps=1000.0, slots=8)
        slow = await made.add(slots=8)
        target = await made.choose()
        assert target.callee == fast.party
        fast.scope.cancel()
        made.routing.ended(target, journey(), AttemptFailed(FailureKind.SILENT))
        for _ in range(5):
            assert (await made.choose()).callee == slow.party
        made.tasks.start_soon(fast.member.wire.publish, *spoken(fast, 99))
        await anyio.sleep(0.01)
        assert (await made.choose()).callee == fast.party


async def test_when_all_were_given_up_for_silence_an_answer_goes_on_with_one_of_them() -> None:
    """Whoever broke off more than anybody heard is better than nobody."""
    async with scene() as made:
        node = await made.add(slots=8)
        node.scope.cancel()
        made.routing.ended(await made.choose(), journey(), AttemptFailed(FailureKind.SILENT))
        began_s = anyio.current_time()
        assert (await made.choose(accepted=tokens.pack([1]))).callee == node.party
        assert anyio.current_time() == began_s


async def test_a_last_resort_is_asked_at_once_only_for_what_is_urgent() -> None:
    """Whoever was given up for silence is no second callee for those that can wait."""
    async with scene() as made:
        await made.add(slots=1)
        silent = await made.add(slots=8)
        first, second = await made.choose(), await made.choose()
        silent.scope.cancel()
        made.routing.ended(second, journey(), AttemptFailed(FailureKind.SILENT))
        assert made.routing.choose_now(journey(), [first.callee]) is None
        found = made.routing.choose_now(journey(), [first.callee], even_resting=True)
        assert found is not None
        assert found.callee == silent.party


async def test_a_last_resort_that_is_full_is_waited_for() -> None:
    """Its model is served, if not well: nobody is told otherwise while it may get a place there."""
    async with scene() as made:
        node = await made.add()
        node.scope.cancel()
        made.routing.ended(await made.choose(), journey(), AttemptFailed(FailureKind.SILENT))
        held = await made.choose(accepted=tokens.pack([1]))

        async def free() -> None:
            await anyio.sleep(1.0)
            made.routing.ended(held, journey(), None)

        made.tasks.start_soon(free)
        assert (await made.choose(node, accepted=tokens.pack([1]))).callee == node.party
