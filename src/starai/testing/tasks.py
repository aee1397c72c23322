"""A task port that plays scripts: fixed tokens, delays, faults; and remembers what it was asked.

Everything is asynchronous through anyio alone, so that a script of hours takes no time under
trio's MockClock.
"""

from __future__ import annotations

import struct
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Final

import anyio

from starai.core.errors import ModelNotFound, StarAIError
from starai.models.catalog import MOCK_NAME, open_model
from starai.models.manifest import ModelManifest
from starai.protocol.generation import Finish, Part, TokenLogprobs
from starai.protocol.ports import Submission
from starai.protocol.presence import ServedModel
from starai.protocol.tokens import pack

#: The end token of the ``mock`` model.
MOCK_EOS: Final = 256


@dataclass(frozen=True)
class Script:
    """How one answer goes.

    Attributes:
        tokens: what is answered, an end token included if there shall be one.
        tokens_per_part: how many tokens a part carries.
        first_delay_s: seconds before the first part.
        delay_s: seconds before every other part.
        finish: how it ends, unless ``max_tokens`` cuts it.
        stalls_at: before this part (counted from 0) nothing comes any more.
        fails_at: before this part, ``error`` is raised.
        error: what is raised there; -1 in ``fails_at``: at once, by `ScriptedTasks.submit`.
        breaks_at: before this part the answer just ends, without a finish.
        accepts_first: begin with an empty part, as a real node does.
        vector: what an embedding is, packed float32; by default two numbers.
    """

    tokens: tuple[int, ...] = (*b"Hello!", MOCK_EOS)
    tokens_per_part: int = 1
    first_delay_s: float = 0.0
    delay_s: float = 0.0
    finish: Finish = Finish.STOP
    stalls_at: int | None = None
    fails_at: int | None = None
    error: StarAIError | None = None
    breaks_at: int | None = None
    accepts_first: bool = False
    vector: bytes = struct.pack("<2f", 0.6, -0.8)


def says(text: str, **how: object) -> Script:
    """A script for the ``mock`` model: the bytes of ``text``, then its end token."""
    return Script(tokens=(*text.encode(), MOCK_EOS), **how)  # type: ignore[arg-type]


def serve_all(manifests: Sequence[ModelManifest]) -> tuple[ServedModel, ...]:
    """The offers of somebody who serves ``manifests``, four tasks at once."""
    return tuple(
        ServedModel(
            name=manifest.name,
            model_root=manifest.root,
            context_length=manifest.context_length,
            slots=4,
        )
        for manifest in manifests
    )


class ScriptedTasks:
    """A `TaskPort` whose answers follow scripts.

    ``submissions`` are the tasks in the order of their arrival; ``cancelled`` and ``finished``
    hold task ids: cancelled are those whose context was left before the end.
    """

    def __init__(
        self,
        script: Script | Callable[[Submission], Script] = Script(),
        models: Sequence[ServedModel] | None = None,
    ) -> None:
        """Answer every task by ``script``; serve ``models`` (default: the mock model)."""
        self.script = script
        self.served = tuple(models) if models is not None else serve_all([open_model(MOCK_NAME)])
        self.submissions: list[Submission] = []
        self.cancelled: list[bytes] = []
        self.missing: list[str] = []
        self.finished: list[bytes] = []

    @property
    def running(self) -> int:
        """Tasks that have neither finished nor been cancelled."""
        return len(self.submissions) - len(self.cancelled) - len(self.finished)

    def models(self) -> tuple[ServedModel, ...]:
        """What is served, by name."""
        return self.served

    def missed(self, name: str, model_root: bytes) -> None:
        """Remember which model was asked for in vain."""
        self.missing.append(name)

    @asynccontextmanager
    async def submit(self, submission: Submission) -> AsyncIterator[AsyncIterator[Part]]:
        """Play the script of one task.

        Raises:
            ModelNotFound: the model is not among those served.
            StarAIError: whatever the script says.
        """
        if submission.model not in {model.name for model in self.served}:
            raise ModelNotFound(f"nobody serves {submission.model!r}", param="model")
        script = self.script(submission) if callable(self.script) else self.script
        if script.fails_at == -1 and script.error is not None:
            raise script.error
        self.submissions.append(submission)
        done: list[bool] = []
        try:
            async with aclosing(_play(script, submission, done)) as parts:
                yield parts
        finally:
            (self.finished if done else self.cancelled).append(submission.task_id)


async def _play(
    script: Script, submission: Submission, done: list[bool]
) -> AsyncGenerator[Part, None]:
    generation = submission.generation
    if generation.embed:
        await anyio.sleep(script.first_delay_s)
        done.append(True)
        yield Part(ids=b"", code=bytes(16), finish=Finish.STOP, embedding=script.vector)
        return
    tokens = script.tokens[: generation.max_tokens]
    finish = script.finish if len(tokens) == len(script.tokens) else Finish.LENGTH
    step = script.tokens_per_part
    if script.accepts_first:
        yield Part(ids=b"", code=bytes(16))
    for number, start in enumerate(range(0, max(1, len(tokens)), step)):
        await anyio.sleep(script.delay_s if number else script.first_delay_s)
        if number == script.stalls_at:
            await anyio.sleep_forever()
        if number == script.fails_at and script.error is not None:
            raise script.error
        if number == script.breaks_at:
            return
        ids = tokens[start : start + step]
        last = start + step >= len(tokens)
        if last:
            done.append(True)
        yield Part(
            ids=pack(ids),
            code=bytes(16),
            finish=finish if last else None,
            logprobs=_logprobs(ids, generation.top_logprobs),
        )


def _logprobs(ids: Sequence[int], wanted: int | None) -> tuple[TokenLogprobs, ...]:
    """Made-up log-probabilities: each token is its own first choice, then its neighbours."""
    if wanted is None:
        return ()
    return tuple(
        TokenLogprobs(
            token_id=token,
            logprob=-0.25,
            top=tuple(((token + rank) % MOCK_EOS, -0.25 - rank) for rank in range(wanted)),
        )
        for token in ids
    )
