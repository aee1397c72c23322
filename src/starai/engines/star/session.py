"""One long context on several hosts, and answers about it: both phases of Star Attention.

::

    session = StarSession(model, hosts)
    session.prefill(context_ids, plan_blocks(len(context_ids), hosts=hosts.count))
    ids = list(session.generate(query_ids, sampling, max_tokens=100))

The session is the query host: it has the model too, runs the query causally and keeps its keys and
values. Every host's part of the context is seen by every query token, without a causal mask: a
mask aligned to a shard's end hides context from all but the last token (a defect of the reference
implementation). Knows nothing about text or where hosts are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Final, TypeVar

import torch

from starai.core.errors import (
    ConfigurationRefused,
    ContextTooLong,
    EngineDied,
    InvalidRequest,
    MalformedFrame,
)
from starai.engines.sampler import TokenRace, sample
from starai.engines.star.blockwise import shape_of
from starai.engines.star.eligibility import refuse_recurrent
from starai.engines.star.hosts import Hosts, refuse_failure
from starai.engines.star.messages import (
    Ask,
    Asked,
    Command,
    Merged,
    Part,
    Prefill,
    Prefilled,
    Reply,
    Ship,
    Shipped,
)
from starai.engines.star.phase_two import Choice, Link, PhaseTwo, choose_phase_two
from starai.engines.star.planning import ModelShape, StarPlan
from starai.engines.star.shards import take, to_array, to_tensor
from starai.engines.text.attention import Pass, Span
from starai.engines.text.forward import forward
from starai.engines.text.merging import Partial, merge
from starai.engines.text.pool import KeyValuePool
from starai.protocol import tokens
from starai.protocol.generation import Sampling

_R = TypeVar("_R")

#: Query and answer together, unless the session is made for more.
_ANSWER_TOKENS_MAX: Final = 2048
#: A layer of one token takes milliseconds; a host that is silent for so long is gone.
_LAYER_S: Final = 60.0
_PREFILL_S: Final = 3600.0


class StarSession:
    """See the module's text. After an error of a host the session is over: its hosts are closed."""

    def __init__(
        self,
        model: Any,
        hosts: Hosts,
        *,
        answer_tokens_max: int = _ANSWER_TOKENS_MAX,
        prefill_timeout_s: float = _PREFILL_S,
        layer_timeout_s: float = _LAYER_S,
    ) -> None:
        """Take the query host's model, with the packed attention, and the hosts.

        Args:
            model: as `starai.engines.text.loading.load_model` gives it; the hosts have the same.
            hosts: used by this session alone; it closes them.
            answer_tokens_max: most tokens of a query and its answer.
            prefill_timeout_s: how long a host may compute its part.
            layer_timeout_s: how long a host may take for one layer of a pass.

        Raises:
            ConfigurationRefused: the model is recurrent or hybrid.
        """
        refuse_recurrent(model.config.to_dict())
        self._forward = partial(forward, model)
        self._model = model
        self._hosts = hosts
        self._answer_max = answer_tokens_max
        self._prefill_s = prefill_timeout_s
        self._layer_s = layer_timeout_s
        self._plan: StarPlan | None = None
        self._local: KeyValuePool | None = None  # the query's keys and values alone
        self._whole: KeyValuePool | None = None  # the context's in front of them
        self._closed = False
        self._windows: list[int] = []
        self.shape: ModelShape = shape_of(model, self._shaped_pool(1, 1).bytes_per_token)

    def require_open(self) -> None:
        """Raise EngineDied if the session is over."""
        if self._closed:
            raise EngineDied("this Star session is over: a host failed, or it was closed")

    def close(self) -> None:
        """End the hosts."""
        self._closed = True
        self._hosts.close()

    def prefill(self, context_ids: Sequence[int], plan: StarPlan) -> list[Prefilled]:
        """Phase 1: every host computes its part, all at once and without a word to another.

        Returns:
            What each host computed, and in how many seconds.

        Raises:
            InvalidRequest: the plan is not of this context and these hosts.
            EngineDied, DeadlinePassed: a host is gone or silent; says which.
        """
        used = len(plan.groups)
        if len(context_ids) != plan.context or used > self._hosts.count:
            raise InvalidRequest("the Star plan is not of this context and these hosts")
        self._plan = self._local = self._whole = None
        groups = tuple((group.start, group.stop) for group in plan.groups)
        with _Breaking(self):
            for host in range(used):
                shard = plan.shard(host)
                anchor = context_ids[: plan.anchor] if shard.start else ()
                command = Prefill(
                    host, plan.context, plan.block, plan.anchor, plan.page, groups,
                    tokens.pack(anchor), tokens.pack(context_ids[shard.start : shard.stop]),
                )  # fmt: skip
                self._send(host, command)
            done = [self._hear(host, Prefilled, self._prefill_s) for host in range(used)]
        self._plan = plan
        return done

    def choose(self, link: Link, query_tokens: int, output_tokens: int, **more: Any) -> Choice:
        """How to reach this context over that network; see `choose_phase_two`."""
        plan = self._prefilled()
        return choose_phase_two(
            link, self.shape, context_tokens=plan.context, query_tokens=query_tokens,
            output_tokens=output_tokens, hosts=len(plan.groups), **more,
        )  # fmt: skip

    @torch.inference_mode()
    def gather(self, *, int8: bool = False) -> None:
        """Phase 2, gathered: have all parts sent here, once for any number of questions."""
        plan = self._prefilled()
        pages = -(-(plan.context + self._answer_max) // plan.page)
        whole = self._shaped_pool(pages, plan.page)
        with _Breaking(self):
            used = range(len(plan.groups))
            for host in used:
                self._send(host, Ship(int8))
            for host in used:
                for layer in sorted(whole.layers):
                    shipped = self._hear(host, Shipped, self._layer_s)
                    shard = plan.shard(host)
                    if shipped.layer != layer or shipped.keys.shape[1] != len(shard):
                        raise MalformedFrame(f"Star host {host} sent another part than its own")
                    take(whole, range(pages), shard.start, shipped)
        self._whole = whole

    def generate(
        self,
        query_ids: Sequence[int],
        sampling: Sampling,
        *,
        max_tokens: int,
        stop_token_ids: Sequence[int] = (),
        mode: PhaseTwo = PhaseTwo.GATHERED,
    ) -> Iterator[int]:
        """Answer a query about the context, token by token; a stop token is the last.

        Args:
            query_ids: at least one token; they stand behind the context.
            sampling: of the canonical sampler.
            max_tokens: of the answer.
            stop_token_ids: which end it.
            mode: gathered gathers if `gather` was not called; distributed asks each host in
                every layer.

        Raises:
            InvalidRequest: no context, no query, or sampling parameters out of range.
            ContextTooLong: query and answer are longer than the session was made for.
            ConfigurationRefused: distributed, but a sliding window is shorter than the context.
            EngineDied, DeadlinePassed: a host is gone or silent; says which.
        """
        plan = self._prefilled()
        if not query_ids:
            raise InvalidRequest("the query is empty")
        seen = plan.context + len(query_ids) + max_tokens
        if mode is PhaseTwo.DISTRIBUTED and min(self._windows, default=seen) < seen:
            raise ConfigurationRefused(
                "this model's sliding window is shorter than the text: use gathered mode"
            )
        if len(query_ids) + max_tokens > self._answer_max:
            raise ContextTooLong(
                f"query and answer have up to {self._answer_max} tokens in this session"
            )
        if mode is PhaseTwo.GATHERED and self._whole is None:
            self.gather()
        race = TokenRace(sampling, self._model.config.get_text_config().vocab_size, ())
        return self._answer(list(query_ids), race, max_tokens, frozenset(stop_token_ids), mode)

    def _answer(
        self, ids: list[int], race: TokenRace, limit: int, stops: frozenset[int], mode: PhaseTwo
    ) -> Iterator[int]:
        place = 0
        for _ in range(limit):
            logits = self.advance(ids, place, mode)
            place += len(ids)
            chosen = sample(logits.float().cpu().numpy(), [race])[0]
            race.note(chosen)
            yield chosen
            if chosen in stops:
                return
            ids = [chosen]

    @torch.inference_mode()
    def advance(self, ids: Sequence[int], place: int, mode: PhaseTwo) -> torch.Tensor:
        """Run tokens that stand ``place`` tokens behind the context; logits [1, vocabulary]."""
        plan = self._prefilled()
        packed = list(ids)
        if mode is PhaseTwo.GATHERED:
            if self._whole is None:
                raise InvalidRequest("the context's keys and values were not gathered")
            table = range(self._whole.num_blocks)
            run = Pass(self._whole, [Span(table, plan.context + place, len(packed))])
            return self._forward(run, packed, [len(packed) - 1])
        if self._local is None:
            self._local = self._shaped_pool(-(-self._answer_max // plan.page), plan.page)
        table = range(self._local.num_blocks)
        position = plan.context + place
        span = Span(table, place, len(packed), position=position)
        used = range(len(plan.groups))
        with _Breaking(self):
            for host in used:
                self._send(host, Ask(tokens.pack(packed), position))
            run = Pass(self._local, [span], exchange=partial(self._exchange, used))
            logits = self._forward(run, packed, [len(packed) - 1])
            for host in used:
                self._hear(host, Asked, self._layer_s)
        return logits

    def _exchange(self, used: range, layer: int, own: Partial) -> Partial:
        """One layer: hear every host's part, merge, tell every host the result."""
        parts = [own]
        for host in used:
            part = self._hear(host, Part, self._layer_s)
            theirs = Partial(to_tensor(part.out), to_tensor(part.lse))
            if part.layer != layer or theirs.lse.shape != own.lse.shape:
                raise MalformedFrame(f"Star host {host} is at another layer")
            parts.append(theirs)
        merged = merge(parts)
        told = Merged(layer, to_array(merged.out.float()), to_array(merged.lse.float()))
        for host in used:
            self._send(host, told)
        return merged

    def _prefilled(self) -> StarPlan:
        self.require_open()
        if self._plan is None:
            raise InvalidRequest("a Star session needs a context before a query")
        return self._plan

    @torch.inference_mode()
    def _shaped_pool(self, pages: int, page: int) -> KeyValuePool:
        """A pool whose layers are shaped by a pass of one token, which is overwritten later."""
        pool = KeyValuePool(pages, page)
        run = Pass(pool, [Span(range(pages), 0, 1)])
        self._forward(run, [0], [0])
        self._windows = [window for window in run.windows.values() if window]
        return pool

    def _send(self, host: int, command: Command) -> None:
        self._hosts.send(host, command, self._layer_s)

    def _hear(self, host: int, kind: type[_R], timeout_s: float) -> _R:
        reply: Reply = refuse_failure(host, self._hosts.receive(host, timeout_s))
        if not isinstance(reply, kind):
            raise MalformedFrame(f"Star host {host} answered something else than was asked")
        return reply


class _Breaking:
    """Around talk with hosts: an error leaves them in the middle of something, so they end."""

    def __init__(self, session: StarSession) -> None:
        self._session = session

    def __enter__(self) -> None:
        self._session.require_open()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self._session.close()
