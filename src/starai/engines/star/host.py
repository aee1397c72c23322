"""A host of Star Attention: ``python -m starai.engines.star.host``.

Holds one part of a context. In the first phase it computes that part's keys and values from the
part and the anchor alone. In the second it either sends them away, or runs the query's tokens
through the model and looks at its part in each layer; every query token sees all of it. Knows
neither the other hosts nor what is generated.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import torch

from starai.core.clock import Clock, SystemClock
from starai.core.errors import (
    ConfigurationRefused,
    InternalFault,
    InvalidRequest,
    MalformedFrame,
    StarAIError,
)
from starai.engines.star.blockwise import pieces
from starai.engines.star.eligibility import refuse_recurrent
from starai.engines.star.messages import (
    Ask,
    Asked,
    Command,
    Failed,
    Load,
    Merged,
    Part,
    Prefill,
    Prefilled,
    Ready,
    Reply,
    Ship,
    read_command,
    write_frame,
)
from starai.engines.star.planning import StarPlan
from starai.engines.star.shards import export, to_array, to_tensor
from starai.engines.text.attention import NAME, Pass, Span
from starai.engines.text.forward import forward
from starai.engines.text.loading import load_model
from starai.engines.text.merging import Partial
from starai.engines.text.pool import KeyValuePool
from starai.engines.text.probe import probe
from starai.models.catalog import open_model
from starai.protocol import tokens


class Channel(Protocol):
    """A host's way to its session."""

    def receive(self) -> Command | None:
        """The next command; None when the session is gone."""
        ...

    def send(self, reply: Reply) -> None:
        """Answer."""
        ...


class _SessionGoneError(Exception):
    """Nobody waits for the pass that is running."""


class StarHost:
    """Serves one session with a loaded model."""

    def __init__(self, model: Any, channel: Channel, clock: Clock | None = None) -> None:
        """``model`` has the packed attention, as `load_model` gives it."""
        refuse_recurrent(model.config.to_dict())
        self._forward = partial(forward, model)
        self._channel = channel
        self._clock = clock or SystemClock()
        self._shard: _Shard | None = None

    def hold(self, pool: KeyValuePool, table: Sequence[int], num_tokens: int) -> None:
        """Take a part of the context that was computed elsewhere, in place of the first phase."""
        self._shard = _Shard(pool, table, num_tokens)

    @torch.inference_mode()
    def serve(self) -> None:
        """Carry out commands until the session is gone."""
        while (command := self._channel.receive()) is not None:
            try:
                self._carry_out(command)
            except StarAIError as error:
                self._channel.send(Failed(error.code, error.message))
            except _SessionGoneError:
                return
            except (RuntimeError, ValueError, IndexError, MemoryError) as error:
                message = f"a Star host could not compute: {str(error)[:200]}"
                self._channel.send(Failed(InternalFault.code, message))

    def _carry_out(self, command: Command) -> None:
        match command:
            case Prefill():
                self._channel.send(self._prefill(command))
            case Ship():
                shard = self._holding()
                for shipped in export(shard.pool, shard.table, shard.tokens, int8=command.int8):
                    self._channel.send(shipped)
            case Ask():
                self._ask(command, self._holding())
            case _:
                raise InvalidRequest("a Star host was told something out of turn")

    def _holding(self) -> _Shard:
        if self._shard is None:
            raise InvalidRequest("a Star host was asked before it had a part of a context")
        return self._shard

    def _prefill(self, command: Prefill) -> Prefilled:
        begun = self._clock.monotonic_s()
        self._shard = None
        groups = tuple(range(first, behind) for first, behind in command.groups)
        plan = StarPlan(command.context, command.block, command.anchor, command.page, groups)
        parts = _Parts(plan, command)
        pages = -(-len(parts.shard) // plan.page)
        pool = KeyValuePool(pages + parts.anchor // plan.page, plan.page)
        table = range(pages)
        anchor_table = range(pages, pool.num_blocks) if parts.anchor else table
        windows: set[int] = set()
        for span, places in pieces(plan, command.host, anchor_table, table):
            run = Pass(pool, [span])
            self._forward(run, parts.ids(places), [0])
            windows.update(window for window in run.windows.values() if window)
        self._shard = _Shard(pool, table, len(parts.shard), min(windows, default=None))
        return Prefilled(parts.tokens, self._clock.monotonic_s() - begun)

    def _ask(self, command: Ask, shard: _Shard) -> None:
        ids = list(tokens.unpack(command.ids))
        if shard.window is not None and shard.window < command.position + len(ids):
            raise ConfigurationRefused(
                "this model's sliding window is shorter than the text: gather its keys and values "
                "in place of asking every host"
            )
        look = Span(shard.table, shard.tokens, len(ids), position=command.position, write=False)
        self._forward(Pass(shard.pool, [look], exchange=self._exchange), ids, [len(ids) - 1])
        self._channel.send(Asked())

    def _exchange(self, layer: int, part: Partial) -> Partial:
        self._channel.send(Part(layer, to_array(part.out.float()), to_array(part.lse.float())))
        merged = self._channel.receive()
        if merged is None:
            raise _SessionGoneError
        if not isinstance(merged, Merged) or merged.layer != layer:
            raise MalformedFrame("a Star host heard nothing of the layer it waits for")
        return Partial(to_tensor(merged.out), to_tensor(merged.lse))


@dataclass(frozen=True, slots=True)
class _Shard:
    """The part of the context that is here, and the narrowest sliding window of the model."""

    pool: KeyValuePool
    table: Sequence[int]
    tokens: int
    window: int | None = None


class _Parts:
    """The token ids that a host was given, by their place in the context."""

    def __init__(self, plan: StarPlan, command: Prefill) -> None:
        fits = 0 <= command.host < len(plan.groups) and min(plan.page, plan.block) > 0
        if not fits or plan.block % plan.page or plan.anchor % plan.page:
            raise InvalidRequest("a Star plan that fits no host")
        self.shard = plan.shard(command.host)
        self.anchor = plan.anchor if self.shard.start else 0
        self._ids = tokens.unpack(command.ids)
        self._anchor_ids = tokens.unpack(command.anchor_ids)
        if len(self._ids) != len(self.shard) or len(self._anchor_ids) != self.anchor:
            raise InvalidRequest("a Star shard whose tokens do not fit its plan")

    @property
    def tokens(self) -> int:
        """How many are to be computed."""
        return len(self._ids) + len(self._anchor_ids)

    def ids(self, places: range) -> list[int]:
        """The tokens at those places, which lie in the shard or in the anchor."""
        if places.start < self.shard.start:
            return list(self._anchor_ids[places.start : places.stop])
        low = places.start - self.shard.start
        return list(self._ids[low : low + len(places)])


class _Pipes:
    """stdin and stdout of a process as a `Channel`."""

    def __init__(self, commands: BinaryIO, replies: BinaryIO) -> None:
        self._commands = commands
        self._replies = replies

    def receive(self) -> Command | None:
        return read_command(self._commands)

    def send(self, reply: Reply) -> None:
        write_frame(self._replies, reply)


def main() -> None:
    """Load what the session names and serve it until stdin closes."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever libraries print must not reach the session
    sys.stdout = sys.stderr
    pipes = _Pipes(os.fdopen(os.dup(0), "rb"), replies)
    first = pipes.receive()
    if not isinstance(first, Load):
        return
    try:
        torch.set_num_threads(first.threads or os.cpu_count() or 1)
        manifest = open_model(first.model, Path(first.store) if first.store else None)
        model = load_model(manifest, NAME)
        host = StarHost(model, pipes)
        probe(model)
    except StarAIError as error:
        pipes.send(Failed(error.code, error.message))
        return
    pipes.send(Ready(int(model.config.get_text_config().num_hidden_layers)))
    host.serve()


if __name__ == "__main__":
    # A session that is gone, or says what nobody understands, needs no answer.
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt, MalformedFrame):
        main()
    # Taking torch apart costs a second that nobody needs; no thread of ours holds anything.
    os._exit(0)
