"""The engine that forwards to a server: keeps the contract of `starai.engines.base.Engine`.

One thread runs all connections; `step` hands over what they said. A server that is gone ends this
process, as a crash ends another engine's: the node tells nobody of a model until it is back.

It draws by the server's own sampler, with a seed that depends on the sample key and on how far the
answer is. Another node goes on from the accepted ids (or from their text), sensibly but not with
the tokens that this one would have drawn. Hidden states there are none.
"""

from __future__ import annotations

import contextlib
import os
import queue
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import Future
from typing import Any, Final

import anyio
import anyio.from_thread

from starai.core.errors import (
    EngineDied,
    InvalidRequest,
    Overloaded,
    StarAIError,
    UnsupportedField,
)
from starai.engines.answer import Answer
from starai.engines.base import Emitted, EngineInfo, EngineSpec, HiddenStatesHook
from starai.engines.external.base import Found, Said, Server, Wanted
from starai.engines.external.connection import FIRST_TOKEN_S, NEXT_TOKEN_S, Connection
from starai.engines.external.options import ExternalOptions
from starai.engines.external.servers import recognise
from starai.engines.external.spelling import Spelling
from starai.engines.sampler import noise_key
from starai.models.codec import open_codec
from starai.models.manifest import ModelManifest
from starai.protocol.generation import Finish, Generation

#: The environment variable with the server's key.
KEY_VARIABLE: Final = "STARAI_ENGINE_KEY"
#: A step waits this long for something to happen; commands wait as long.
_STEP_S: Final = 0.02
#: How often the server is asked whether it is there, how soon again after it was not, and how
#: often it may fail to say so.
_ALIVE_S: Final = 2.0
_AGAIN_S: Final = 0.3
_SILENT_MAX: Final = 3
#: Servers take seeds of 31 bits.
_SEED_MASK: Final = (1 << 31) - 1
#: Positions are far apart in the space of seeds.
_SEED_STRIDE: Final = 0x9E3779B1
_NO_FORM: Final = (KeyError, TypeError, ValueError, IndexError, AttributeError)


class ExternalEngine:
    """See the module's text."""

    def __init__(self, manifest: ModelManifest, spec: EngineSpec) -> None:
        """Connect, and find out what is there.

        Raises:
            ConfigurationRefused: the server cannot serve the model; says why.
            Unavailable: it cannot be reached, or is not ready yet.
        """
        options = ExternalOptions.read(spec.options)
        self._ends = manifest.eos_token_ids
        self._codec = open_codec(manifest)
        self._spelling = Spelling(self._codec, manifest)
        self._news: queue.SimpleQueue[Emitted] = queue.SimpleQueue()
        self._running: dict[bytes, Future[None]] = {}
        self._lost = False
        key = os.environ.get(KEY_VARIABLE, "")
        self._connection = Connection(options.url, key, spec.slots)
        with contextlib.ExitStack() as stack:
            self._portal = stack.enter_context(anyio.from_thread.start_blocking_portal())
            stack.enter_context(self._portal.wrap_async_context_manager(self._connection))
            server, found = self._portal.call(
                recognise, self._connection, manifest, options.kind, options.served
            )
            self._server: Server = server
            self._found: Found = found
            watch = self._portal.start_task_soon(self._watch)
            stack.callback(watch.cancel)
            self._stack = stack.pop_all()
        exact = found.takes_ids and found.gives_ids
        contexts = (manifest.context_length, found.context_length, int(options.context))
        self.info = EngineInfo(
            manifest.name,
            manifest.root,
            manifest.vocab_size,
            min(context for context in contexts if context),
            min(spec.slots, found.slots or spec.slots),
            sampler="own" if exact else "text",
        )

    def close(self) -> None:
        """Break all connections off; a worker process need not, it ends."""
        for key in list(self._running):
            self.cancel(key)
        self._stack.close()

    def prepare(self, _generation: Generation) -> bool:
        """See `Engine.prepare`: nothing takes long here."""
        return True

    def admit(self, key: bytes, generation: Generation) -> None:
        """Take a sequence; see `Engine.admit`.

        Raises:
            UnsupportedField: the server cannot do what it asks; another engine may.
        """
        if key in self._running:
            raise InvalidRequest("this key is in use")
        if len(self._running) >= self.info.slots:
            raise Overloaded("no slot is free")
        self._check(generation)
        answer = Answer(key, generation, self.info)
        if answer.finish is not None:
            self._news.put(answer.ended())
            self._running[key] = Future()
            return
        ids = (*answer.prompt, *answer.ids)
        wanted = Wanted(
            generation=generation,
            ids=ids,
            text="" if self._found.takes_ids else self._spelling.text_of(ids, len(answer.prompt)),
            tokens=answer.limit - len(answer.ids),
            seed=_seed(generation.sampling.sample_key, len(answer.ids)),
        )
        self._running[key] = self._portal.start_task_soon(self._carry, answer, wanted)

    def step(self) -> list[Emitted]:
        """What the server has said since the last step.

        Raises:
            EngineDied: the server is gone.
        """
        emitted: list[Emitted] = []
        with contextlib.suppress(queue.Empty):
            emitted.append(self._news.get(timeout=_STEP_S))
            while True:
                emitted.append(self._news.get_nowait())
        emitted = [news for news in emitted if news.key in self._running]
        for news in emitted:
            if news.finish is not None or news.error:
                self._running.pop(news.key, None)
        if self._lost and not emitted:
            raise EngineDied(f"{self._server.name} at {self._connection.url} is gone")
        return emitted

    def cancel(self, key: bytes) -> None:
        """Forget a sequence: its connection is closed, which ends the work there."""
        running = self._running.pop(key, None)
        if running is not None:
            running.cancel()

    @property
    def has_work(self) -> bool:
        """Whether a sequence is running, or the server's end is to be told."""
        return bool(self._running) or self._lost

    def on_hidden_states(self, hook: HiddenStatesHook | None) -> None:
        """Accepted and never called: no server shows its hidden states."""

    def _check(self, generation: Generation) -> None:
        """Refuse what this server cannot do."""
        found, grammar = self._found, generation.grammar
        if generation.embed or generation.adapter:
            raise UnsupportedField("engines behind a URL give no embeddings and know no adapters")
        if generation.top_logprobs is not None and not found.logprobs:
            raise UnsupportedField(f"{self._server.name} gives no log-probabilities of token ids")
        if grammar is not None and (grammar.kind not in found.grammars or generation.accepted):
            # In the middle of an answer a server would begin the grammar anew.
            raise UnsupportedField(f"{self._server.name} cannot keep an answer to this grammar")
        if generation.sampling.logit_bias and not found.takes_ids:
            raise UnsupportedField(f"{self._server.name} was not shown to know our token ids")

    async def _carry(self, answer: Answer, wanted: Wanted) -> None:
        """Run one answer to its end; how it ended is its last news."""
        try:
            await self._stream(answer, wanted)
        except StarAIError as error:
            self._news.put(answer.failed(error.code))
        except TimeoutError:
            self._news.put(answer.failed(EngineDied.code))

    async def _stream(self, answer: Answer, wanted: Wanted) -> None:
        path, body = self._server.request(self._found, wanted)
        events = self._connection.events(path, body)
        async with contextlib.aclosing(events):
            patience_s = FIRST_TOKEN_S
            while True:
                with anyio.fail_after(patience_s):
                    event = await _next(events)
                if event is None:
                    raise EngineDied("the server broke off before the end of an answer")
                if self._heard(answer, wanted.generation, event):
                    return
                patience_s = NEXT_TOKEN_S

    def _heard(self, answer: Answer, generation: Generation, event: Mapping[str, Any]) -> bool:
        """Emit what an event says; whether that was the end."""
        try:
            said = self._server.read(event)
        except _NO_FORM as error:
            raise EngineDied(f"{self._server.name} says what it should not") from error
        for news in self._taken(answer, said):
            self._news.put(news)
            if news.finish is not None:
                return True
        if said.ended is None:
            return False
        self._news.put(self._end(answer, generation, said.ended))
        return True

    def _taken(self, answer: Answer, said: Said) -> list[Emitted]:
        """The tokens of one event, up to the end that we know of."""
        ids, logprobs = list(said.ids), list(said.logprobs)
        if said.text and said.text != self._codec.decode(ids):
            ids, logprobs = self._spelling.ids_of(said.text), []
        if answer.top_logprobs is None:
            logprobs = []
        elif len(logprobs) != len(ids):
            raise EngineDied("the server gave not as many log-probabilities as tokens")
        taken: list[Emitted] = []
        for place, id_ in enumerate(ids):
            if not 0 <= id_ < self.info.vocab_size:
                raise EngineDied("the server gave a token that the model does not have")
            taken.append(answer.take(id_, logprobs[place] if logprobs else None))
            if taken[-1].finish is not None:
                break
        return taken

    def _end(self, answer: Answer, generation: Generation, ended: Finish) -> Emitted:
        """The end that the server told: its end token, which it does not show, is put back."""
        stops = [id_ for id_ in self._ends if id_ in generation.stop_token_ids]
        if ended is Finish.STOP and stops and answer.top_logprobs is None:
            return answer.take(stops[0], None)
        return Emitted(answer.key, (), (), ended)

    async def _watch(self) -> None:
        """Notice that the server is gone."""
        silent = 0
        while silent < _SILENT_MAX:
            await anyio.sleep(_AGAIN_S if silent else _ALIVE_S)
            silent = 0 if await self._connection.answers(self._server.health) else silent + 1
        self._lost = True


async def _next(events: AsyncIterator[dict[str, Any]]) -> dict[str, Any] | None:
    return await anext(events, None)


def _seed(sample_key: bytes, position: int) -> int:
    """31 bits that are the same for the same key and position, and unlike others."""
    return (noise_key(sample_key) + _SEED_STRIDE * position) & _SEED_MASK
