"""One attempt at an answer: its stream, when to lose patience with its callee, what that means."""

from __future__ import annotations

import enum
import math

import msgspec

from starai.core.errors import (
    ContextTooLong,
    DeadlinePassed,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    StarAIError,
    Unavailable,
    UnsupportedField,
)
from starai.core.waking import loop_time
from starai.exchange.base import SILENCE_S, AttemptFailed, FailureKind
from starai.exchange.caller.pacing import Pace
from starai.exchange.caller.reading import AnswerStream
from starai.protocol.generation import Part
from starai.protocol.identity import PartyId
from starai.protocol.subjects import Role
from starai.protocol.tasks import Prekey, RefusalCode

#: How often it is looked again for somebody who could take over.
LOOK_AGAIN_S = 0.25


class Target(msgspec.Struct, frozen=True):
    """A callee that was chosen for an attempt; ``place`` is the route's own number for it."""

    callee: PartyId
    role: Role
    prekey: Prekey
    place: int = 0


class Due(enum.Enum):
    """What is due with an attempt of which nothing has come."""

    #: Not even a sign of life has come: it is lost.
    SILENT = "silent"
    #: Signs of life, but no token: somebody else shall take over, if there is somebody.
    STALLED = "stalled"
    #: The callee drains: the same, and nobody's fault.
    RELIEVED = "relieved"


class Attempt:
    """An offer under way. Times are seconds of the event loop."""

    __slots__ = (
        "_heard_s",
        "_look_s",
        "_pace",
        "_token_s",
        "began_s",
        "has_token",
        "stream",
        "target",
    )

    def __init__(self, target: Target, stream: AnswerStream, pace: Pace | None) -> None:
        """Just begun; without a ``pace``, signs of life are enough."""
        self.target = target
        self.stream = stream
        self.began_s = self._heard_s = self._token_s = loop_time()
        self._pace = pace
        self._look_s = 0.0
        #: Whether it has brought a token.
        self.has_token = False

    def poll(self) -> Part | None:
        """The next part, if it has come.

        Raises:
            AttemptFailed: as `AnswerStream.poll` says.
        """
        part = self.stream.poll()
        if part is not None:
            self._heard_s = loop_time()
            if part.ids:
                self._token_s, self.has_token = self._heard_s, True
                if self._pace is not None:
                    self._pace.token(self._heard_s)
        return part

    def due_s(self) -> float:
        """When to look what is due, if nothing comes before."""
        due_s = self._heard_s + SILENCE_S
        if self.stream.draining:
            return min(due_s, self._look_s)
        if self._pace is not None:
            return min(due_s, max(self._pace.due_s, self._look_s))
        return due_s

    def due(self, now_s: float, *, patient: bool) -> Due | None:
        """What is due now; to one that is ``patient``, a stall is none."""
        if now_s >= self._heard_s + SILENCE_S:
            return Due.SILENT
        if now_s < self._look_s:
            return None
        if self.stream.draining:
            return Due.RELIEVED
        if self._pace is not None and now_s >= self._pace.due_s:
            if not patient:
                return Due.STALLED
            self.look_later(now_s)  # or it would be due again at once
        return None

    def quiet_s(self, kind: FailureKind, now_s: float) -> float:
        """For how long what was missed had been missing when it was given up."""
        return now_s - (self._heard_s if kind is FailureKind.SILENT else self._token_s)

    @property
    def late_s(self) -> float:
        """From when on it is late, if somebody is in the middle of the answer.

        A callee that brings others their tokens is not taken for dead.
        """
        return self._pace.late_s(self.began_s) if self._pace is not None else math.inf

    def end(self) -> None:
        """Nothing more is awaited of it."""
        if self._pace is not None:
            self._pace.end()

    def look_later(self, now_s: float) -> None:
        """Nobody can take over: stay, and look again in a moment."""
        self._look_s = now_s + LOOK_AGAIN_S

    def excuse(self, now_s: float) -> None:
        """The time until now does not count: it was this process that did not listen."""
        self._heard_s = now_s
        if self._pace is not None:
            self._pace.excuse(now_s)


def verdict(failure: AttemptFailed) -> StarAIError:
    """What a failed attempt means for whoever asked."""
    after_s = failure.retry_after_s or 1.0
    match failure.refusal:
        case RefusalCode.CONTEXT_TOO_LONG:
            return ContextTooLong("prompt and max_tokens exceed the model's context")
        case RefusalCode.INVALID_REQUEST | RefusalCode.UNSUPPORTED as code:
            kind = UnsupportedField if code == RefusalCode.UNSUPPORTED else InvalidRequest
            return kind("the model cannot do what this request asks for")
        case RefusalCode.DEADLINE:
            return DeadlinePassed("the request's deadline passed; ask for fewer tokens")
        case RefusalCode.BUSY:
            return Overloaded("all queues are full; try again shortly", retry_after_s=after_s)
        case RefusalCode.UNKNOWN_MODEL:
            return ModelNotFound("nobody serves that model any more")
        case _:
            return Unavailable(
                "no node could carry the answer to its end; try again", retry_after_s=after_s
            )
