"""The node's service: beats, takes tasks from distributors, records what it did, drains."""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack, nullcontext

import anyio

from starai.core.concurrency import task_group
from starai.core.errors import MalformedFrame
from starai.core.logging import event
from starai.exchange.base import Settled, short, task_record
from starai.exchange.callee.leaving import ORDERED, Patience, leave
from starai.exchange.callee.serving import Refused, ServedTask, Serving
from starai.exchange.mailboxes import Bell
from starai.exchange.member import Member
from starai.exchange.recording.confirming import Confirmer
from starai.exchange.standing.pinging import Pinger
from starai.exchange.standing.presence import Presence, keep_beating
from starai.node.moving import Moving
from starai.node.pricing import LeastPrices
from starai.node.readiness import Readiness
from starai.node.runner import Runner
from starai.node.yielding import Yielding
from starai.protocol.frames import decode
from starai.protocol.identity import raw_public
from starai.protocol.ports import Delivery
from starai.protocol.presence import Beat, Control, ServedModel
from starai.protocol.subjects import Role, control
from starai.protocol.tasks import RefusalCode

_LOG = logging.getLogger(__name__)

#: Said in beats while the engine does not answer.
NOT_READY = "not ready"


class Node:
    """One compute supplier's node, with one model on one engine."""

    def __init__(
        self,
        member: Member,
        runner: Runner,
        confirmer: Confirmer,
        label: str = "",
        yielding: Yielding | None = None,
        *,
        moving: Moving | None = None,
        prices: LeastPrices | None = None,
        region: str = "",
    ) -> None:
        """Serve as ``member`` with the engine of ``runner``, which whoever made it runs.

        ``label`` is for people to read.

        ``yielding`` says when the device's owner needs it for himself, ``moving`` what the device
        could serve instead, ``prices`` the least it works for. ``region`` is what the owner says of
        where it is.
        """
        self._member = member
        self._runner = runner
        self._confirmer = confirmer
        self._label = label
        self._yielding = yielding
        self._moving = moving
        self._prices = prices
        self._region = region
        self._pinger = Pinger(member)
        self._boot = member.clock.now_ms()
        self._draining = False
        self._leaving = anyio.Event()
        self._patience = ORDERED
        self._news = Bell()
        self._readiness = Readiness(runner, self._news.ring)
        self._done = 0
        self._serving = Serving(
            member, Role.NODE, (Role.DISTRIBUTOR,), self._answer, self._on_settled
        )
        self._distributors = Presence(
            member.wire, Role.DISTRIBUTOR, member.clock, on_gone=self._serving.abandon
        )

    async def run(
        self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until cancelled, or until told to leave: then nothing is owed any more."""
        member, prices = self._member, self._prices
        async with (
            self._distributors.watching(),
            member.wire.subscribe(control(member.identity.party), self._on_control),
            self._pinger.running(),
            prices.following(member) if prices is not None else nullcontext(),
            AsyncExitStack() as stack,
            task_group() as group,
        ):
            if self._moving is not None:
                hearing = self._moving.hearing(member.wire, member.identity.party)
                await stack.enter_async_context(hearing)
            group.start_soon(self._confirmer.run)
            group.start_soon(self._readiness.run)
            if self._yielding is not None:
                group.start_soon(self._yielding.run, self._runner)
            await group.start(self._serving.run)
            group.start_soon(keep_beating, member.wire, Role.NODE, self._beat, self._news)
            event(_LOG, "node_ready", party=short(member.identity.party))
            task_status.started()
            await self._leaving.wait()
            await leave(self._serving, self._confirmer, self._patience)
            group.cancel_scope.cancel()

    def leave(self, patience: Patience = ORDERED) -> None:
        """Take no new tasks, have others go on with those that run, and end `run`."""
        self._patience = patience
        self._draining = True
        self._leaving.set()
        self._news.ring()

    async def _answer(self, task: ServedTask) -> None:
        if self._draining or self._paused:
            raise Refused(RefusalCode.DRAINING)
        await self._check_price(task)
        await self._runner.answer(task)
        self._done += 1

    async def _check_price(self, task: ServedTask) -> None:
        info = self._runner.info
        if self._prices is None or info is None:
            return
        has_accepted = bool(task.generation.accepted)
        if not await self._prices.is_enough(task.header, info.name, has_accepted=has_accepted):
            event(_LOG, "offer_underpaid", logging.WARNING, caller=short(task.header.caller))
            raise Refused(RefusalCode.UNDERPAID)

    def _on_settled(self, settled: Settled) -> None:
        distributor = raw_public(settled.header.caller)
        self._confirmer.record_soon(task_record(settled, self._member.identity.raw, distributor))

    def _on_control(self, delivery: Delivery) -> None:
        try:
            order = decode(delivery.payload, Control).order
        except MalformedFrame:
            return
        if order in ("drain", "resume", "leave"):
            self._draining = order != "resume" or self._leaving.is_set()
            if order == "leave":
                self.leave()
            self._news.ring()
            event(_LOG, "node_control", order=order, running=self._serving.num_running)

    @property
    def _paused(self) -> str:
        """Why no new tasks are taken for now."""
        yielding = self._yielding.paused if self._yielding is not None else ""
        return yielding or ("" if self._readiness.is_ready else NOT_READY)

    def _beat(self, seq: int) -> Beat:
        member, runner = self._member, self._runner
        info = runner.info
        served = (
            ()
            if info is None
            else (
                ServedModel(
                    name=info.name,
                    model_root=info.model_root,
                    context_length=info.context_length,
                    slots=info.slots,
                    prefill_tps=runner.prefill.tps,
                    decode_tps=runner.decode.tps,
                    quantisation=runner.quantisation,
                    sampler=info.sampler,
                ),
            )
        )
        return Beat(
            party=member.identity.party,
            role=Role.NODE.value,
            boot=self._boot,
            seq=seq,
            sent_ms=member.clock.now_ms(),
            draining=self._draining or (self._yielding is not None and self._yielding.hands_over),
            running=runner.num_running,
            queued=runner.num_waiting,
            done=self._done,
            tokens=runner.num_tokens,
            prekey=self._serving.prekey,
            models=served,
            label=self._label,
            paused=self._paused,
            region=self._region,
            unread=runner.num_unread,
            rtts=self._pinger.nearest(),
            fits=self._moving.loadable if self._moving is not None else (),
        )
