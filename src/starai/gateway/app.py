"""The gateway as an application: who calls, what for, and what they are told.

The hot routes go straight to their handler. Every answer, of every route, leaves through one
`Reply`, and every error through one place, `GatewayApp._guarded`.
"""

from __future__ import annotations

import hashlib
import logging
import traceback
from collections.abc import AsyncIterator, Awaitable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import anyio
from anyio.abc import TaskGroup

from starai.core.clock import Clock
from starai.core.errors import (
    DeadlinePassed,
    InternalFault,
    NotFound,
    Overloaded,
    StarAIError,
    Unavailable,
)
from starai.core.logging import event
from starai.core.randomness import Randomness, uuid7
from starai.gateway.answering.chat import CHAT
from starai.gateway.answering.completions import COMPLETIONS
from starai.gateway.answering.embeddings import EMBEDDINGS
from starai.gateway.answering.endpoints import Endpoint
from starai.gateway.answering.writing import answer_stream, answer_whole
from starai.gateway.catalogue import Catalogue
from starai.gateway.config import GatewayConfig
from starai.gateway.errors import RequestRefused, body_of, headers_of, status_of
from starai.gateway.jobs import Job, JobMaker
from starai.gateway.metrics import GatewayMetrics
from starai.gateway.paying.funding import Funding
from starai.gateway.paying.keys import ANYONE, Account, KeyRing
from starai.gateway.paying.pricing import PriceBook
from starai.gateway.plain import PlainRoutes
from starai.gateway.web.attending import Attendance, Ending
from starai.gateway.web.cors import Cors
from starai.gateway.web.idempotency import KEY_BYTES_MAX, Name, Recording, Recordings
from starai.gateway.web.incoming import Audience, ClientGone, Head, Incoming
from starai.gateway.web.replies import Outlet, Reply
from starai.protocol.ports import TaskPort

_LOG: Final = logging.getLogger(__name__)
_HOT: Final = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": COMPLETIONS,
    "/v1/embeddings": EMBEDDINGS,
}
_REPLAYED: Final = (b"idempotent-replayed", b"true")


def _at(error: BaseException) -> str:
    """Where an error was raised, as file and line."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(place.filename).name}:{place.lineno}"


class GatewayApp:
    """The application; its `running` context must be open while it serves."""

    def __init__(
        self,
        config: GatewayConfig,
        port: TaskPort,
        keys: KeyRing | None,
        clock: Clock,
        randomness: Randomness,
        *,
        funding: Funding | None = None,
    ) -> None:
        """Serve the models of ``config`` through ``port`` to whoever ``keys`` admits (None: all).

        Without ``funding`` nothing costs anything.

        Raises:
            ModelFileRefused: the tokenizer of a model cannot be used.
        """
        self._config = config
        self._port = port
        self._keys = keys
        #: Who calls when there are no keys.
        self._anyone = Account(ANYONE)
        self._funding = funding
        self._clock = clock
        self._randomness = randomness
        self._catalogue = Catalogue(config.models, port)
        self._cors = Cors(config.cors_origins, keyless=keys is None)
        self._jobs = JobMaker(
            clock,
            randomness,
            default_max_tokens=config.default_max_tokens,
            deadline_s=config.request_deadline_s,
            prices=funding.prices if funding is not None else PriceBook(),
        )
        self._recordings = Recordings(
            clock, ttl_s=config.idempotency_ttl_s, bytes_max=config.idempotency_bytes_max
        )
        self.metrics = GatewayMetrics()
        prices = funding.prices if funding is not None else None
        self._plain = PlainRoutes(
            self._catalogue, keys, prices, self.metrics, clock.now_ms() // 1000
        )
        self._attendance = Attendance(
            clock, heartbeat_s=config.heartbeat_s, deadline_s=config.request_deadline_s
        )
        self._group: TaskGroup | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Own the work that outlives a single request; leaving cancels it."""
        async with anyio.create_task_group() as group:
            self._group = group
            group.start_soon(self._attendance.run)
            try:
                yield
            finally:
                self._group = None
                group.cancel_scope.cancel()

    async def answer(self, incoming: Incoming, outlet: Outlet) -> None:
        """Answer one request."""
        request_id = b"req_" + uuid7(self._clock, self._randomness).hex().encode()
        reply = Reply(outlet, self._clock, [(b"x-request-id", request_id)])
        endpoint = _HOT.get(incoming.path)
        if endpoint is not None and incoming.method == "POST":
            route = endpoint.name
            await self._guarded(self._hot(endpoint, incoming, reply), reply)
        else:
            route = "plain"
            await self._guarded(self._other(incoming, reply), reply)
        self.metrics.request(
            route, reply.status or 499, self._clock.monotonic_s() - reply.started_s
        )

    async def _guarded(self, work: Awaitable[None], reply: Reply) -> None:
        """Do the work of one request; whatever goes wrong becomes its reply."""
        try:
            await work
        except (ClientGone, OSError):
            return
        except StarAIError as error:
            if error.http_status >= 500:
                event(_LOG, "request_failed", logging.WARNING, code=error.code)
            _fail(error, reply)
        except Exception as error:  # noqa: BLE001
            # The boundary: a mistake of ours must cost one request, not the service. Its text
            # may quote the request, so only its kind and place are logged.
            event(_LOG, "request_fault", logging.ERROR, fault=type(error).__name__, at=_at(error))
            fault = InternalFault("The server had an error while processing your request. Sorry!")
            _fail(fault, reply)

    def _admit(self, head: Head, reply: Reply) -> Account:
        """Who calls, and may they?"""
        self._cors.check(head)
        if self._keys is None:
            return self._anyone
        account = self._keys.authenticate(head.authorization)
        if account.limits.limited:
            reply.late_headers = lambda: account.limits.headers(self._clock.monotonic_s())
        return account

    async def _other(self, incoming: Incoming, reply: Reply) -> None:
        """Everything that is not hot: preflights, models, health, and what does not exist."""
        head = incoming.head()
        reply.headers += self._cors.headers(head.origin)
        if head.method == "OPTIONS" and head.origin and head.asked_method:
            reply.whole(204, b"", *self._cors.preflight(head))
        elif head.path in _HOT:
            raise RequestRefused(
                f"Not allowed to {head.method} on {head.path}; use POST.",
                reason="method_not_allowed",
                status=405,
            )
        elif not self._plain.answer(head, reply, lambda: self._admit(head, reply)):
            raise NotFound(f"Invalid URL ({head.method} {head.path[:200]})")

    async def _hot(self, endpoint: Endpoint, incoming: Incoming, reply: Reply) -> None:
        """A request that makes tasks: admit it, read it, and attend to it until it is answered."""
        head = incoming.head()
        reply.headers += self._cors.headers(head.origin)
        if self.metrics.in_flight >= self._config.concurrent_requests_max:
            raise Overloaded("The gateway is at its limit; try again shortly.", retry_after_s=1.0)
        self.metrics.in_flight += 1
        try:
            account = self._admit(head, reply)
            account.limits.take_request(self._clock.monotonic_s())
            body = await incoming.body(head, deadline_s=self._config.body_deadline_s)
            if head.idempotency_key:
                await self._once(endpoint, head, account, body, incoming, reply)
            else:
                work = self._perform(endpoint, account, body, reply)
                await self._attended(work, incoming, reply)
        finally:
            self.metrics.in_flight -= 1

    async def _once(
        self,
        endpoint: Endpoint,
        head: Head,
        account: Account,
        body: bytes,
        incoming: Incoming,
        reply: Reply,
    ) -> None:
        """Answer as the first request with this idempotency key was or will be answered."""
        if len(head.idempotency_key) > KEY_BYTES_MAX:
            raise RequestRefused(
                f"An Idempotency-Key may have at most {KEY_BYTES_MAX} bytes.", reason=None
            )
        if self._group is None:
            raise AssertionError("the application is not running")
        name = (account.entry.key_hash, head.idempotency_key)
        fingerprint = hashlib.sha256(endpoint.name.encode() + b"\0" + body).digest()
        with self._recordings.listen(name, fingerprint) as (recording, fresh):
            if fresh:
                self._group.start_soon(self._record, name, recording, endpoint, account, body)
            marks = () if fresh else (_REPLAYED,)
            await self._attended(recording.play(reply, *marks), incoming, reply)

    async def _record(
        self, name: Name, recording: Recording, endpoint: Endpoint, account: Account, body: bytes
    ) -> None:
        """Make an answer for whoever listens."""
        reply = recording.reply = Reply(recording, self._clock, [])
        try:
            # Nobody stands behind this task: a deadline must not reach the group that owns it.
            work = self._perform(endpoint, account, body, reply)
            await self._guarded(self._attended(work, recording, reply), reply)
        finally:
            good = reply.complete and reply.status == 200 and not reply.failed
            self._recordings.close(name, recording, keep=good)

    async def _attended(
        self, work: Coroutine[object, object, None], audience: Audience, reply: Reply
    ) -> None:
        """Do ``work`` until it is done, its client leaves or its time is up.

        Raises:
            DeadlinePassed: the time is up.
        """
        ending = await self._attendance.attend(work, audience, reply)
        if ending is Ending.GONE:
            self.metrics.hang_up()
        elif ending is Ending.LATE:
            raise DeadlinePassed(
                f"The answer did not finish within {self._config.request_deadline_s:g} seconds.",
                retry_after_s=1.0,
            )

    async def _perform(
        self, endpoint: Endpoint, account: Account, body: bytes, reply: Reply
    ) -> None:
        """The road of a request through the gateway: read, reserve, answer, settle."""
        ask = endpoint.parse(body)
        model = self._catalogue.find(ask.model)
        reply.streaming = ask.stream
        job = await self._jobs.make(ask, model, account)
        account.limits.take_tokens(job.reserved, self._clock.monotonic_s())
        answer = answer_stream if ask.stream else answer_whole
        taken = 0
        try:
            taken = await self._pay(job, account)
            await answer(job, self._port, endpoint, reply)
        finally:
            account.limits.settle_tokens(job.reserved, job.used, self._clock.monotonic_s())
            if taken and self._funding is not None:
                self._funding.settle(account, taken, job.owed)
            if reply.begun_s is not None:
                self.metrics.first_token(reply.begun_s - reply.started_s)
            if job.started:
                self.metrics.tokens(job.prompt_tokens, job.completion_tokens)

    async def _pay(self, job: Job, account: Account) -> int:
        """Take the most that a job can cost from its key's purse; how much, in nano-USD.

        Raises:
            FundsMissing: it is not there.
            Unavailable: prices, or the key's money, are not known yet.
        """
        if self._funding is None:
            return 0
        if not self._funding.prices.loaded:
            raise Unavailable(
                "The gateway is still fetching its prices; try again shortly.", retry_after_s=1.0
            )
        cost_max = 0 if job.is_free else job.cost_max
        if cost_max:
            await self._funding.take(account, cost_max)
        return cost_max


def _fail(error: StarAIError, reply: Reply) -> None:
    """Tell of an error: by a status, or in the middle of a stream as an event."""
    reply.failed = True
    if reply.complete:
        return
    if reply.begun:
        reply.end(b"data: " + body_of(error) + b"\n\n")
    else:
        reply.whole(status_of(error), body_of(error), *headers_of(error))
