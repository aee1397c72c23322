"""Star Attention inside the engine: long prompts are computed in blocks that see little else.

The first part of a long prompt, its context, is cut into blocks; each block attends to itself and
to the first one (`starai.engines.star`). Blocks lie in the sequence's ordinary pages, so the query
behind them, all decoding, preemption and sharing go on as with any other sequence: a piece of a
block is an ordinary piece whose table begins with the anchor's pages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from starai.core.errors import ConfigurationRefused
from starai.engines.star.blockwise import shape_of
from starai.engines.star.eligibility import refuse_recurrent
from starai.engines.star.planning import (
    CONTEXT_TOKENS_MIN,
    ModelShape,
    StarPlan,
    plan_blocks,
    plan_if_worth,
)
from starai.engines.star.splitting import split_prompt
from starai.engines.text.attention import Span
from starai.engines.text.model import TextModel
from starai.engines.text.options import TextOptions
from starai.engines.text.pool import BLOCK_TOKENS


class StarRule:
    """Decides which prompts are computed in blocks, and how."""

    def __init__(self, model: TextModel, bytes_per_token: int, options: TextOptions) -> None:
        """Take a model and what the options ask for.

        Raises:
            ConfigurationRefused: Star Attention is asked for, but this model cannot be computed
                in blocks.
        """
        self._mode = options.attention
        self._shape: ModelShape | None = None
        if self._mode == "dense":
            return
        try:
            _refuse(model)
        except ConfigurationRefused:
            if self._mode == "star":
                raise
            self._mode = "dense"
            return
        self._shape = shape_of(model.module, bytes_per_token)

    def plan(self, prompt_tokens: int, context_tokens: int) -> StarPlan | None:
        """The plan of a prompt, or None: it is computed densely.

        Args:
            prompt_tokens: its length.
            context_tokens: how many of them are documents; 0 if that was not said.
        """
        if self._shape is None:
            return None
        context = split_prompt(prompt_tokens, explicit=context_tokens or None)
        if context < CONTEXT_TOKENS_MIN:
            return None
        if self._mode == "auto":
            return plan_if_worth(context, self._shape, page=BLOCK_TOKENS)
        return plan_blocks(context, page=BLOCK_TOKENS)


def spans_of(plan: StarPlan | None, table: Sequence[int], start: int, count: int) -> Iterator[Span]:
    """The pieces that tokens ``start`` to ``start + count`` of a sequence are run as."""
    end = start + count
    while plan is not None and start < min(end, plan.context):
        block = plan.positions(start // plan.block)
        stop = min(end, block.stop)
        before = list(table[: plan.anchor // plan.page]) if block.start else []
        own = table[block.start // plan.page : -(-block.stop // plan.page)]
        place = len(before) * plan.page + start - block.start
        yield Span([*before, *own], place, stop - start, position=start)
        start = stop
    if start < end:
        yield Span(table, start, end - start)


def salted(salt: bytes, plan: StarPlan | None) -> bytes:
    """The salt under which a sequence's pages are shared: only equal plans give equal pages."""
    if plan is None:
        return salt
    return f"star {plan.context} {plan.block} {plan.anchor}\0".encode() + salt


def _refuse(model: TextModel) -> None:
    config: dict[str, Any] = model.module.config.to_dict()
    refuse_recurrent(config)
    if any(model.windows.values()):
        raise ConfigurationRefused(
            f"{config.get('model_type')} has sliding windows, which are counted in places that "
            "blocks do not keep: use attention=dense"
        )
