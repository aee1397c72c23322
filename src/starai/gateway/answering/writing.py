"""Runs a job's tasks and writes what comes of them: whole, or as a stream of events."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import anyio

from starai.core.errors import StarAIError, Unavailable
from starai.gateway.answering.endpoints import Answer, Endpoint
from starai.gateway.answering.reading import AnswerReader, Piece
from starai.gateway.jobs import Job
from starai.gateway.web.replies import Reply
from starai.protocol.ports import TaskPort

_DONE: Final = b"data: [DONE]\n\n"
#: Tasks of one request at once: a list of inputs must not take all places of a network.
_AT_ONCE_MAX: Final = 16

#: Called for every part of an answer, also for one that shows nothing (a sign of life).
Take = Callable[[int, Piece], Awaitable[None]]


async def answer_whole(job: Job, port: TaskPort, endpoint: Endpoint, reply: Reply) -> None:
    """Collect all choices, then reply."""
    answers = [Answer() for _ in job.tasks]

    async def take(index: int, piece: Piece) -> None:
        answers[index].add(piece)

    await _run(job, port, take)
    reply.whole(200, endpoint.whole(job, answers))


async def answer_stream(job: Job, port: TaskPort, endpoint: Endpoint, reply: Reply) -> None:
    """Reply as the choices come, each chunk with the index of its choice.

    The status is sent with the first part of any choice, so that a task that no node takes up
    is answered by an error's status.
    """
    if endpoint.stream is None:
        raise AssertionError(f"{endpoint.name} does not stream")
    writer = endpoint.stream(job)
    unopened = set(range(len(job.tasks)))

    async def take(index: int, piece: Piece) -> None:
        events = b""
        if index in unopened:
            unopened.discard(index)
            events = writer.opening(index)
        if piece.text or piece.tokens:
            events += writer.piece(index, piece)
        if piece.finish is not None:
            events += writer.closing(index, piece.finish)
        if events:
            await reply.write(events)

    await _run(job, port, take)
    reply.end(writer.usage() + _DONE if job.ask.include_usage else _DONE)


async def _run(job: Job, port: TaskPort, take: Take) -> None:
    """Follow all choices at once; the first that fails ends the others and is raised."""
    if len(job.tasks) == 1:
        await _follow(job, 0, port, take)
        return
    failures: list[StarAIError] = []
    room = anyio.CapacityLimiter(_AT_ONCE_MAX)
    async with anyio.create_task_group() as group:

        async def follow(index: int) -> None:
            try:
                async with room:
                    await _follow(job, index, port, take)
            except StarAIError as error:
                failures.append(error)
                group.cancel_scope.cancel()

        for index in range(len(job.tasks)):
            group.start_soon(follow, index)
    if failures:
        raise failures[0]


async def _follow(job: Job, index: int, port: TaskPort, take: Take) -> None:
    """Follow one choice to its end; leaving early, as at a stop string, cancels its task."""
    reader = AnswerReader(job.ask, job.model)
    started = ended = False
    try:
        async with port.submit(job.tasks[index]) as parts:
            async for part in parts:
                job.started = started = True
                ended = part.finish is not None
                before = reader.num_tokens
                piece = reader.read(part)
                job.completion_tokens += reader.num_tokens - before
                await take(index, piece)
                if piece.finish is not None:
                    return
    finally:
        if started:
            job.settle(index, reader.num_tokens, ended=ended)
    raise Unavailable("The answer broke off before its end; please try again.", retry_after_s=1.0)
