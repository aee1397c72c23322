"""An exchange with a party that lies, repeats, floods or forgets; and books that stay equal."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager

import anyio
import msgspec
import pytest

from starai.core.errors import Conflict, InvalidRequest, Overloaded
from starai.exchange.base import SILENCE_S, AttemptFailed, FailureKind, Settled, task_record
from starai.exchange.callee import serving as serving_module
from starai.exchange.callee.replays import SeenOffers
from starai.exchange.callee.serving import Refused, ServedTask, Serving
from starai.exchange.caller.attempt import Target
from starai.exchange.caller.carrying import Carrier
from starai.exchange.caller.journey import Journey, attempts_within
from starai.exchange.caller.offering import Ask, Offering
from starai.exchange.caller.reading import EARLY_MAX, AnswerStream
from starai.exchange.mailboxes import Mailbox, MailboxOverflow
from starai.protocol import tokens
from starai.protocol.frames import encode, peek
from starai.protocol.generation import Finish, Generation, Sampling
from starai.protocol.identity import PartyId
from starai.protocol.ports import Delivery
from starai.protocol.subjects import Role, offer
from starai.protocol.tasks import Answer, Close, Offer, RefusalCode, TaskHeader
from starai.sealing import derive_keys, encode_request, seal_request
from starai.testing.parties import Parties
from starai.wire.memory import Faults, MemoryNetwork

pytestmark = pytest.mark.anyio

LENGTH = 20
GENERATION = Generation(
    tokens.pack(range(10)), LENGTH, Sampling(b"k" * 32), stop_token_ids=(), salt=b"s" * 16
)


@pytest.fixture
def anyio_backend(virtual_time: object) -> object:
    """All of this happens in virtual time."""
    return virtual_time


async def answer_all(task: ServedTask) -> None:
    for position in range(tokens.count(task.generation.accepted), LENGTH):
        await anyio.sleep(0.05)
        await task.send(tokens.pack([position]), Finish.LENGTH if position == LENGTH - 1 else None)


async def exhaust(answer: AnswerStream) -> None:
    while not answer.finished:
        await answer.receive()


class Scene:
    """One caller, one callee, everything that is said between them, and both books."""

    def __init__(self, network: MemoryNetwork, handler: Callable[..., Awaitable[None]]) -> None:
        self.network = network
        parties = Parties(network)
        self.caller, self.callee = parties.join(Role.DISTRIBUTOR), parties.join(Role.NODE)
        self.offering = Offering(self.caller)
        self.callee_book: list[Settled] = []
        self.caller_book: list[Settled] = []
        self.offers: list[bytes] = []
        self.endings: list[AttemptFailed | None] = []
        self.record = self._note
        self.serving = Serving(
            *(self.callee, Role.NODE, (Role.DISTRIBUTOR,), handler),
            on_settled=self.book,
        )
        self.spy = network.connect(parties.join(Role.NODE).identity.party)
        self.target = Target(self.callee.identity.party, Role.NODE, self.serving.prekey)

    def book(self, settled: Settled) -> None:
        self.record(settled)

    def _note(self, settled: Settled) -> None:
        self.callee_book.append(settled)

    async def note_caller(self, settled: Settled, _close: bytes) -> None:
        await anyio.lowlevel.checkpoint()
        self.caller_book.append(settled)

    @property
    def subject(self) -> str:
        return offer(Role.NODE, self.target.callee)

    def hear(self, delivery: Delivery) -> None:
        if peek(delivery.payload) is Offer:
            self.offers.append(delivery.payload)

    def ask(self, task_id: bytes = b"t" * 16) -> Ask:
        deadline_ms = self.caller.clock.now_ms() + 60_000
        prekey = self.target.prekey
        return Ask(
            *(task_id, 0, self.target.callee, Role.NODE, prekey, b"m" * 32, 1, deadline_ms),
            GENERATION,
        )

    def journey(self, **changes: object) -> Journey:
        deadline_ms = self.caller.clock.now_ms() + 60_000
        made = Journey(b"t" * 16, b"m" * 32, 1, deadline_ms, GENERATION)
        return msgspec.structs.replace(made, **changes)

    async def choose(self, journey: Journey, failed: Collection[PartyId]) -> Target:
        return self.target

    def choose_now(
        self,
        journey: Journey,
        failed: Collection[PartyId],
        *,
        spare: bool = False,
        even_resting: bool = False,
    ) -> Target | None:
        return None

    def ended(self, target: Target, journey: Journey, failure: AttemptFailed | None) -> None:
        self.endings.append(failure)

    async def read(self, task_id: bytes = b"t" * 16) -> list[int]:
        ids: list[int] = []
        async with self.offering.offer(self.ask(task_id)) as answer:
            while not answer.finished:
                ids += tokens.unpack((await answer.receive()).ids)
        return ids

    async def carry(self, final: tuple[str, ...] = (), **changes: object) -> list[int]:
        ids: list[int] = []
        carrier = Carrier(self.caller, self.offering, self, self.note_caller, final)
        async with carrier.carry(self.journey(**changes)) as answer:
            finish = None
            while finish is None:
                part = await answer.receive()
                ids += tokens.unpack(part.ids)
                finish = part.finish
        return ids

    def books(self) -> tuple[list[bytes], list[bytes]]:
        node, raw = self.callee.identity.raw, self.caller.identity.raw
        both = (self.caller_book, self.callee_book)
        mine, theirs = ([task_record(one, node, raw).canonical() for one in book] for book in both)
        return mine, theirs


@asynccontextmanager
async def scene(handler: Callable[..., Awaitable[None]] = answer_all) -> AsyncIterator[Scene]:
    async with MemoryNetwork() as network, anyio.create_task_group() as group:
        made = Scene(network, handler)
        await group.start(made.serving.run)
        async with made.offering.running(), made.spy.subscribe(made.subject, made.hear):
            yield made
            group.cancel_scope.cancel()


async def test_a_session_that_the_callee_forgot_is_opened_anew() -> None:
    """The refusal is noticed, the next attempt brings a new session; the reader sees nothing."""
    async with scene() as made:
        assert len(await made.read(b"1" * 16)) == LENGTH
        made.serving._sessions.clear()
        assert len(await made.carry()) == LENGTH
        refusals = [one.refusal if one else None for one in made.endings]
        assert refusals == [RefusalCode.UNKNOWN_SESSION, None]


async def test_a_lost_chunk_is_noticed_within_a_second_although_others_come() -> None:
    """Signs of life behind a gap are none: the chunk before them never comes."""

    async def endless(task: ServedTask) -> None:
        while True:
            await anyio.sleep(0.05)
            await task.send()

    async with scene(endless) as made:
        async with made.offering.offer(made.ask()) as answer:
            for _ in range(3):
                await answer.receive()
            made.network.faults = Faults(loss=1.0)
            await anyio.sleep(0.1)
            made.network.faults = Faults()
            began = anyio.current_time()
            with pytest.raises(AttemptFailed) as failed:
                await exhaust(answer)
        assert failed.value.kind is FailureKind.SILENT
        assert anyio.current_time() - began < SILENCE_S + 0.2


async def test_more_tokens_than_asked_for_are_not_accepted() -> None:
    """A callee cannot run up a bill beyond max_tokens, nor an answer without end."""

    async def generous(task: ServedTask) -> None:
        await task.send(tokens.pack(range(LENGTH)))
        await task.send(tokens.pack([1]))
        await anyio.sleep_forever()

    async with scene(generous) as made, made.offering.offer(made.ask()) as answer:
        with pytest.raises(AttemptFailed) as failed:
            await exhaust(answer)
        assert failed.value.kind is FailureKind.MALFORMED
        assert tokens.count(answer.settle(0).ids) == LENGTH


async def test_a_callee_that_signs_a_point_without_order_is_only_failed() -> None:
    """A prekey to which nothing can be sealed is the callee's failure, not our fault."""
    async with scene() as made:
        hollow = msgspec.structs.replace(made.target.prekey, public=bytes(32))
        signature = made.callee.identity.sign(hollow.signed_bytes())
        prekey = msgspec.structs.replace(hollow, signature=signature)
        ask = msgspec.structs.replace(made.ask(), prekey=prekey)
        with pytest.raises(AttemptFailed) as failed:
            async with made.offering.offer(ask):
                pass
        assert failed.value.kind is FailureKind.MALFORMED


async def test_an_attempt_is_offered_once_at_a_time() -> None:
    """Using a task id twice at once is refused where it happens, and harms the first no more."""
    async with scene() as made, made.offering.offer(made.ask()) as answer:
        await answer.receive()
        with pytest.raises(Conflict):
            async with made.offering.offer(made.ask()):
                pass
        await exhaust(answer)


async def test_a_replayed_offer_is_not_run_again_even_when_it_is_forgotten() -> None:
    """Whoever heard an old offer cannot have it answered again under the same keys."""
    runs: list[bytes] = []

    async def count(task: ServedTask) -> None:
        runs.append(task.header.task_id)
        await answer_all(task)

    async with scene(count) as made:
        made.serving._seen = SeenOffers(limit=2)
        for number in range(5):
            await made.read(bytes([number]) * 16)
        assert len(runs) == 5
        for payload in made.offers:
            await made.spy.publish(made.subject, payload)
        await anyio.sleep(1)
        assert len(runs) == 5


async def test_an_offer_that_does_not_open_takes_nobodys_place() -> None:
    """Claiming somebody's task id beforehand does not keep the real offer from being run."""
    async with scene() as made:
        ask = made.ask()
        header = TaskHeader(
            *(ask.task_id, 0, made.caller.identity.party, ask.callee, b"?" * 16, b"m" * 32),
            *(10, LENGTH, 1, ask.deadline_ms, 1, 0, 0, 0, b"?" * 32),
        )
        await made.spy.publish(made.subject, encode(Offer(header, b"rubbish")))
        await anyio.sleep(0.1)
        assert len(await made.read()) == LENGTH


async def test_a_header_cannot_state_another_size_than_the_request_has() -> None:
    """What gets on record is what was asked: a caller cannot book fewer prompt tokens."""
    async with scene() as made:
        stream, message = made.offering._prepare(made.ask())
        small = msgspec.structs.replace(message.header, prompt_tokens=1)
        line = made.offering._lines[made.target.callee]
        keys = derive_keys(line.session.secret, small)
        sealed = seal_request(keys, encode_request(GENERATION))
        heard: list[bytes] = []
        async with made.network.connect(made.caller.identity.party).subscribe(
            "starai.answer.>", lambda delivery: heard.append(delivery.payload)
        ):
            await made.spy.publish(made.subject, encode(Offer(small, sealed, message.opening)))
            await anyio.sleep(0.5)
        assert [peek(one) is Answer for one in heard] == [False]
        assert stream.accepted_seq == 0


async def test_refused_tasks_whose_close_never_comes_leave_nothing_behind() -> None:
    """A task of which no token was sent is forgotten at once: there is nothing to settle."""
    scenes: list[Scene] = []

    async def busy(task: ServedTask) -> None:
        scenes[0].network.faults = Faults(loss=1.0)  # neither the refusal nor the close arrives
        raise Refused(RefusalCode.BUSY)

    async with scene(busy) as made:
        scenes.append(made)
        for number in range(5):
            made.network.faults = Faults()
            with pytest.raises(AttemptFailed):
                await made.read(number.to_bytes(16, "big"))
        assert len(made.serving._tasks) == 0


async def test_chunks_far_ahead_of_their_turn_are_not_kept() -> None:
    """A callee that numbers its chunks at will fills nobody's memory."""

    async def silent(task: ServedTask) -> None:
        task.is_alive = lambda: False
        await anyio.sleep_forever()

    async with scene(silent) as made, made.offering.offer(made.ask()) as answer:
        for seq in range(1, 1000):
            answer.deliver(Answer(b"t" * 16, 0, seq * 7, b"x"))
        with pytest.raises(AttemptFailed) as failed:
            await exhaust(answer)
        assert failed.value.kind is FailureKind.SILENT
        assert len(answer._early) <= EARLY_MAX


async def test_tasks_beyond_the_limit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller cannot fill a callee's memory with tasks."""
    monkeypatch.setattr(serving_module, "TASKS_MAX", 1)
    async with scene() as made, made.offering.offer(made.ask()) as answer:
        await answer.receive()
        with pytest.raises(AttemptFailed) as failed:
            await made.read(b"2" * 16)
        assert failed.value.refusal == RefusalCode.BUSY


async def test_a_full_outbox_does_not_end_the_service() -> None:
    """A record that finds no room is lost with a word in the log; the next task is served."""

    def full(settled: Settled) -> None:
        raise Overloaded("the outbox is full")

    async with scene() as made:
        made.record = full
        assert len(await made.read(b"1" * 16)) == LENGTH
        await anyio.sleep(1)
        assert len(await made.read(b"2" * 16)) == LENGTH


@pytest.mark.parametrize("after_s", [0.3, 0.31, 1.0, 1.05])
async def test_a_client_that_hangs_up_leaves_equal_books(after_s: float) -> None:
    """Cancelled anywhere, also while the end is being put on record: both sides book the same."""
    async with scene() as made:
        with anyio.move_on_after(after_s):
            await made.carry()
        await anyio.sleep(2)
        mine, theirs = made.books()
        assert mine == theirs
        assert len(mine) == 1


async def test_a_hang_up_at_the_very_end_is_on_record_too() -> None:
    """The reader is cancelled while the last part's record is being written."""
    async with scene() as made:
        scope = anyio.CancelScope()

        async def cancelled(settled: Settled, close: bytes) -> None:
            scope.cancel()
            await made.note_caller(settled, close)

        carrier = Carrier(made.caller, made.offering, made, cancelled)
        with scope:
            async with carrier.carry(made.journey()) as answer:
                while True:
                    await answer.receive()
        await anyio.sleep(2)
        mine, theirs = made.books()
        assert mine == theirs
        assert len(mine) == 1


async def test_a_refusal_in_the_middle_leaves_equal_books() -> None:
    """What was accepted before the refusal is booked by both, and so is the next attempt."""

    async def halting(task: ServedTask) -> None:
        if not task.generation.accepted:
            await task.send(tokens.pack(range(7)))
            raise Refused(RefusalCode.ENGINE_FAILED)
        await answer_all(task)

    async with scene(halting) as made:
        assert await made.carry() == list(range(LENGTH))
        await anyio.sleep(2)
        mine, theirs = made.books()
        assert mine == theirs
        assert [tokens.count(one.ids) for one in made.caller_book] == [7, LENGTH - 7]


async def test_two_distributors_attempts_never_bear_the_same_number() -> None:
    """A task that its gateway takes elsewhere has other attempt numbers there: other records."""
    async with scene() as made:
        for attempt in range(3):
            await made.carry(first_attempt=attempts_within(attempt))
        numbers = [one.header.attempt for one in made.caller_book]
        assert len(set(numbers)) == 3
        assert made.endings == [None] * 3


async def test_a_final_refusal_is_not_asked_again() -> None:
    """Whoever queues itself says busy once: asking on would multiply the load."""

    async def busy(task: ServedTask) -> None:
        raise Refused(RefusalCode.BUSY, retry_after_ms=2000)

    async with scene(busy) as made:
        with pytest.raises(Overloaded) as failed:
            await made.carry(final=(RefusalCode.BUSY,))
        assert failed.value.retry_after_s == 2.0
        assert len(made.endings) == 1


async def test_a_close_of_another_task_or_with_another_tag_is_nothing() -> None:
    """Only the caller ends a task."""
    async with scene() as made, made.offering.offer(made.ask()) as answer:
        await answer.receive()
        forged = Close(b"t" * 16, 0, 0, 0, 1, bytes(16))
        await made.spy.publish(made.subject, encode(forged))
        await exhaust(answer)


async def test_a_mailbox_never_hides_a_gap() -> None:
    """Once an item was dropped, the reader is told instead of being handed the rest."""
    mailbox: Mailbox[int] = Mailbox(2)
    mailbox.put(1)
    assert await mailbox.get() == 1
    for item in range(3):
        mailbox.put(item)
    with pytest.raises(MailboxOverflow):
        await mailbox.get()


EMBED = msgspec.structs.replace(GENERATION, max_tokens=0, embed=True)


async def test_an_embedding_gets_on_record_like_an_answer() -> None:
    """Both sides derive the same record of a vector, without a token in it."""

    async def embed(task: ServedTask) -> None:
        await task.send(finish=Finish.STOP, embedding=b"vect")

    async with scene(embed) as made:
        assert await made.carry(generation=EMBED) == []
        await anyio.sleep(0.1)
        mine, theirs = made.books()
        assert len(mine) == 1
        assert mine == theirs
        assert made.caller_book[0].embedding == b"vect"
        record = task_record(made.caller_book[0], bytes(32), bytes(32))
        assert (record.prompt_tokens, record.answer_tokens) == (10, 0)
        assert (
            record.answer_hash
            != task_record(
                msgspec.structs.replace(made.caller_book[0], embedding=b"else"),
                bytes(32),
                bytes(32),
            ).answer_hash
        )


@pytest.mark.parametrize(
    ("generation", "finish", "vector"),
    [(EMBED, Finish.STOP, b""), (EMBED, None, b"vect"), (GENERATION, Finish.STOP, b"vect")],
)
async def test_a_vector_comes_with_the_end_and_only_where_asked(
    generation: Generation, finish: Finish | None, vector: bytes
) -> None:
    """No vector, one that is not the end, or one that nobody asked for: the callee has failed."""

    async def wrong(task: ServedTask) -> None:
        await task.send(finish=finish, embedding=vector)
        await anyio.sleep_forever()

    async with scene(wrong) as made:
        ask = msgspec.structs.replace(made.ask(), generation=generation)
        async with made.offering.offer(ask) as answer:
            with pytest.raises(AttemptFailed) as failed:
                await exhaust(answer)
        assert failed.value.kind is FailureKind.MALFORMED


async def test_what_no_model_would_do_is_not_tried_again() -> None:
    """A refusal of the request itself ends the journey at the first attempt."""

    async def no(task: ServedTask) -> None:
        raise Refused(RefusalCode.INVALID_REQUEST)

    async with scene(no) as made:
        with pytest.raises(InvalidRequest):
            await made.carry()
        assert len(made.endings) == 1
