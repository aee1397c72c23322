"""The distributor's service: hears gateways, carries their tasks, records what was done.

It sees prompts as token ids while it carries them and stores none. It keeps no durable state but
the outbox of records that the registry has not acknowledged yet.
"""

from __future__ import annotations

import logging
from typing import Final

import anyio
import msgspec

from starai.core.concurrency import task_group
from starai.core.errors import (
    ContextTooLong,
    DeadlinePassed,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    StarAIError,
)
from starai.core.logging import event
from starai.distributor.admission import Admission
from starai.distributor.placing import Placing
from starai.exchange.base import SIGN_OF_LIFE_S, Settled, short, task_record
from starai.exchange.callee.leaving import STOPPED, leave
from starai.exchange.callee.serving import Refused, ServedTask, Serving
from starai.exchange.caller.carrying import Carried, Carrier
from starai.exchange.caller.hedging import Hedging
from starai.exchange.caller.journey import Journey, attempts_within
from starai.exchange.caller.offering import Offering
from starai.exchange.caller.pacing import Paces
from starai.exchange.mailboxes import Bell
from starai.exchange.member import Member
from starai.exchange.recording.confirming import Confirmer
from starai.exchange.routes.routing import WAITING_MAX, Routing
from starai.exchange.standing.ladder import Fault
from starai.exchange.standing.pinging import answering_pings
from starai.exchange.standing.pleading import Hearing
from starai.exchange.standing.presence import Presence, keep_beating
from starai.protocol.identity import KeyKind, PartyId, public_nkey, raw_public
from starai.protocol.presence import SLOTS_MAX, Beat, ServedModel
from starai.protocol.subjects import Role, offer
from starai.protocol.tasks import RefusalCode

_LOG = logging.getLogger(__name__)

#: How often it is said what was refused of nodes' messages, if it was more than before.
REFUSED_EVERY_S = 60.0

#: Token ids that are gathered before they are sent on; a chunk has room for many times that.
HELD_BYTES_MAX: Final = 4096

_REFUSALS: tuple[tuple[type[StarAIError], str], ...] = (
    (ContextTooLong, RefusalCode.CONTEXT_TOO_LONG),
    (InvalidRequest, RefusalCode.INVALID_REQUEST),
    (ModelNotFound, RefusalCode.UNKNOWN_MODEL),
    (DeadlinePassed, RefusalCode.DEADLINE),
    (Overloaded, RefusalCode.BUSY),
)


class Distributor:
    """One distributor; any number of them may serve a network."""

    def __init__(
        self, member: Member, confirmer: Confirmer, *, measures_nodes: bool = False
    ) -> None:
        """Serve as ``member``; what was done goes to the registry through ``confirmer``.

        With ``measures_nodes``, nodes are asked now and then how fast they are, and whether right.
        """
        self._member = member
        self._confirmer = confirmer
        self._boot = member.clock.now_ms()
        self._done = 0
        self._tokens = 0
        self._leaving = anyio.Event()
        self._news = Bell()
        self._offering = Offering(member, on_fault=self._blame)
        self._nodes = Routing(
            member,
            Role.NODE,
            self._offering.lose,
            on_draining=self._offering.drain,
        )
        self._nodes.roster.on_served = self._news.ring  # who waits for a model hears at once
        self._admission = Admission(member, self._offering, self._nodes) if measures_nodes else None
        self._hearing = Hearing(member, self._nodes.ladder, self._nodes.roster.changed)
        self._carrier = Carrier(
            member,
            self._offering,
            self._nodes,
            self._record,
            paces=Paces(),
            hedging=Hedging(),
        )
        self._serving = Serving(member, Role.DISTRIBUTOR, (Role.GATEWAY,), self._carry)
        self._gateways = Presence(
            member.wire, Role.GATEWAY, member.clock, on_gone=self._serving.abandon
        )
        self._placing = Placing(member, self._nodes, self._gateways)

    async def run(
        self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until cancelled, or until told to leave."""
        member = self._member
        async with (
            self._nodes.presence.watching(),
            self._gateways.watching(),
            self._offering.running(),
            self._hearing.running(),
            self._placing.running(),
            answering_pings(member),
            task_group() as group,
        ):
            await self._close_again()
            group.start_soon(self._confirmer.run)
            group.start_soon(self._tell_refused)
            if self._admission is not None:
                group.start_soon(self._admission.run)
            await group.start(self._serving.run)
            group.start_soon(keep_beating, member.wire, Role.DISTRIBUTOR, self._beat, self._news)
            event(_LOG, "distributor_ready", party=short(member.identity.party))
            task_status.started()
            await self._leaving.wait()
            await leave(self._serving, self._confirmer, STOPPED)
            group.cancel_scope.cancel()

    def leave(self) -> None:
        """Let others go on with what runs, end what nobody else can carry, and end `run`."""
        self._leaving.set()
        self._news.ring()

    async def _carry(self, task: ServedTask) -> None:
        """One task's whole way: offer it, hand on each part, and again elsewhere on failure."""
        header = task.header
        journey = Journey(
            task_id=header.task_id,
            model_root=header.model_root,
            customer=header.customer,
            deadline_ms=header.deadline_ms,
            generation=task.generation,
            price=header.price,
            first_attempt=attempts_within(header.attempt),
        )
        async with self._carrier.carry(journey) as answer:
            try:
                await self._hand_on(task, answer)
            except StarAIError as error:
                self._log_failure(task, error)
                raise _as_refusal(error) from error
        self._done += 1

    async def _hand_on(self, task: ServedTask, answer: Carried) -> None:
        """Send on what comes; the tokens of an answer that nobody reads yet travel together."""
        clock, generation = self._member.clock, task.generation
        gathers = generation.whole and generation.top_logprobs is None
        held = bytearray()
        sent_s = clock.monotonic_s()
        while not task.finished:
            part = await answer.receive()
            held += part.ids
            if part.finish is None:
                if not held:
                    continue  # this hop gives signs of life of its own
                recent = clock.monotonic_s() - sent_s < SIGN_OF_LIFE_S
                if gathers and recent and len(held) < HELD_BYTES_MAX:
                    continue
            self._tokens += len(held) // 4
            await task.send(bytes(held), part.finish, part.logprobs, embedding=part.embedding)
            held.clear()
            sent_s = clock.monotonic_s()

    async def _tell_refused(self) -> None:
        """Say in the log what nodes sent that nobody had asked for."""
        told: dict[str, int] = {}
        while True:
            await anyio.sleep(REFUSED_EVERY_S)
            refused = dict(self._offering.refused)
            if refused != told:
                event(_LOG, "refused", **refused)
                told = refused

    def _blame(self, node: PartyId, fault: Fault) -> None:
        self._nodes.blame(node, fault)

    async def _record(self, settled: Settled, close: bytes) -> None:
        """Put an attempt on record, where no crash loses it, before its last part is handed on."""
        node = raw_public(settled.header.callee)
        made = task_record(settled, node, self._member.identity.raw)
        await self._confirmer.record(made, note=close)

    async def _close_again(self) -> None:
        """Say the closes of what is on record and not confirmed: the last self may have died first.

        A node that waits for one has no record of its own yet.
        """
        for record, close in await self._confirmer.notes():
            node = PartyId(public_nkey(KeyKind.USER, record.node))
            key = (record.task_id, record.attempt)
            self._offering.say_closed(key, offer(Role.NODE, node), close)

    def _log_failure(self, task: ServedTask, error: StarAIError) -> None:
        event(
            _LOG,
            "task_not_carried",
            logging.WARNING,
            task=task.header.task_id.hex(),
            code=error.code,
        )

    def _models(self) -> tuple[ServedModel, ...]:
        """What the nodes serve together; here a task may also wait for a free slot."""
        return tuple(
            msgspec.structs.replace(model, slots=min(model.slots + WAITING_MAX, SLOTS_MAX))
            for model in self._nodes.models()
        )

    def _beat(self, seq: int) -> Beat:
        member = self._member
        return Beat(
            party=member.identity.party,
            role=Role.DISTRIBUTOR.value,
            boot=self._boot,
            seq=seq,
            sent_ms=member.clock.now_ms(),
            draining=self._leaving.is_set(),
            running=self._serving.num_running,
            queued=self._nodes.num_waiting,
            done=self._done,
            tokens=self._tokens,
            prekey=self._serving.prekey,
            models=self._models(),
        )


def _as_refusal(error: StarAIError) -> Refused:
    code = next((code for kind, code in _REFUSALS if isinstance(error, kind)), RefusalCode.NO_NODE)
    return Refused(code, int((error.retry_after_s or 0) * 1000))
