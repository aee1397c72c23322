"""The ports through which services meet: what a wire offers, whatever carries it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import msgspec

from starai.protocol.generation import Generation, Part
from starai.protocol.identity import PartyId
from starai.protocol.presence import ServedModel
from starai.protocol.tasks import FREE, TokenPrice


class Delivery(msgspec.Struct, frozen=True):
    """A message as it arrives. ``reply`` is where an answer is awaited, or empty."""

    subject: str
    payload: bytes
    reply: str = ""


#: Called in the event loop for each delivery; must not block and must not raise: a handler hands
#: work to its owner's bounded queue.
Handler = Callable[[Delivery], None]


class Wire(Protocol):
    """A party's connection to the others: at-most-once delivery, as NATS core gives it.

    Deliveries on one subscription come in the order in which one publisher sent them, unless
    the wire loses or (in tests) reorders some. Publishing while disconnected is kept in a small
    buffer and sent on reconnection, or raises `Unavailable` when that is full.
    """

    @property
    def party(self) -> PartyId:
        """Who is connected."""
        ...

    @property
    def connected(self) -> bool:
        """Whether messages flow right now."""
        ...

    async def publish(self, subject: str, payload: bytes, reply: str = "") -> None:
        """Send; returns when the message is on its way, not when it arrived.

        Raises:
            Unavailable: the connection is down and its buffer is full.
        """
        ...

    def publish_soon(self, subject: str, payload: bytes) -> None:
        """Send from a place that cannot wait; drops the message when the connection is down."""
        ...

    def subscribe(
        self, subject: str, handler: Handler, *, queue: str = ""
    ) -> AbstractAsyncContextManager[None]:
        """Call ``handler`` for each message on ``subject`` (NATS wildcards) inside the context.

        With ``queue``, each message goes to one member of that group.
        """
        ...

    async def request(self, subject: str, payload: bytes, *, timeout_s: float) -> bytes:
        """Publish with a reply subject in this party's inbox and await one answer.

        Raises:
            Unavailable: nobody listens there.
            DeadlinePassed: no answer within ``timeout_s``.
        """
        ...


class Submission(msgspec.Struct, frozen=True):
    """An answer that a gateway wants: sealed and sent to a distributor by a `TaskPort`."""

    task_id: bytes
    model: str
    model_root: bytes
    customer: int
    deadline_ms: int
    generation: Generation
    price: TokenPrice = FREE


class TaskPort(Protocol):
    """Where a gateway hands in tasks: the distributors, through the wire or (embedded) directly."""

    def models(self) -> tuple[ServedModel, ...]:
        """What can be served right now, one entry a model name, by name."""
        ...

    def missed(self, name: str, model_root: bytes) -> None:
        """Hear that a model was asked for which nobody serves; somebody may then load it."""
        ...

    def submit(self, submission: Submission) -> AbstractAsyncContextManager[AsyncIterator[Part]]:
        """Have an answer generated; iterate its parts inside the context.

        Every part's ``ids`` follow the last part's; the last part carries ``finish``. Parts with
        neither are signs of life. Leaving the context early cancels the work on the node.

        Raises:
            ContextTooLong: prompt and ``max_tokens`` exceed the model's context.
            Overloaded: all queues are full; ``retry_after_s`` is set.
            Unavailable: no node could carry the task to its end, or none serves the model for now;
                retryable.
            DeadlinePassed: it did not finish by ``deadline_ms``.
        """
        ...
