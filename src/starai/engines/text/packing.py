"""A step's works as one row of tokens, and whose each row is when the model has run.

Knows sequences and their memory; knows neither the model nor how tokens are drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from starai.engines.answer import Answer
from starai.engines.decoding.constraint import Constraint
from starai.engines.decoding.lookup import PromptLookup
from starai.engines.decoding.verify import Turn
from starai.engines.sampler import Floats
from starai.engines.scheduling.base import Job, Work
from starai.engines.star.planning import StarPlan
from starai.engines.text.adapters import Adapter
from starai.engines.text.attention import Pass, Span
from starai.engines.text.memory import KeyValueMemory
from starai.engines.text.star import spans_of


@dataclass(slots=True, eq=False)
class Running:
    """A sequence: its answer, and its job, whose ids are prompt and answer so far.

    ``twins`` asked for the same prompt before it was computed (it has not ``begun``): they will
    continue from its memory, and nothing of the prompt is computed or kept twice.
    """

    answer: Answer
    job: Job
    prompt: tuple[bytes, bytes]
    constraint: Constraint | None
    adapter: Adapter | None
    plan: StarPlan | None = None
    lookup: PromptLookup = field(default_factory=PromptLookup)
    drafts: list[int] = field(default_factory=list)
    twins: list[Running] = field(default_factory=list)
    begun: bool = False


@dataclass(frozen=True, slots=True)
class Packed:
    """Works, packed.

    Attributes:
        run: their pieces, in the order of ``ids``.
        ids: the tokens of all works, one behind another, drafts included.
        keep: rows of ``ids`` whose logits are wanted.
        drawing: who is at the end of its ids, and its first row of the kept logits.
        embedded: whose answer is the hidden state of a row, and that row.
        lengths: how many ids each work's sequence had.
    """

    run: Pass
    ids: list[int]
    keep: list[int]
    drawing: list[tuple[Running, int]]
    embedded: list[tuple[Answer, int]]
    lengths: list[int]

    def turns(self, logits: Floats) -> list[Turn]:
        """What is to be drawn from ``logits`` [kept rows, vocabulary]."""
        return [
            Turn(one.answer, logits[row : row + 1 + len(one.drafts)], one.drafts, one.constraint)
            for one, row in self.drawing
        ]


def pack(works: Sequence[Work], running: Mapping[bytes, Running], memory: KeyValueMemory) -> Packed:
    """Pack some works; the drafts of who draws are cut to what the plan granted."""
    ids: list[int] = []
    keep: list[int] = []
    spans: list[Span] = []
    adapters: list[Adapter | None] = []
    drawing: list[tuple[Running, int]] = []
    embedded: list[tuple[Answer, int]] = []
    for work in works:
        one, end = running[work.key], work.start + work.count
        own = one.job.ids
        drafts = one.drafts[: max(0, end - len(own))]
        last = len(ids) + len(own) - work.start - 1
        ids += own[work.start : end]
        ids += drafts
        table = memory.books.table(work.key)
        pieces = list(spans_of(one.plan, table, work.start, work.count))
        spans += pieces
        adapters += [one.adapter] * len(pieces)
        if end < len(own):
            continue
        if one.answer.embed:
            embedded.append((one.answer, last))
        else:
            one.drafts = drafts
            drawing.append((one, len(keep)))
            keep += range(last, len(ids))
    wanted = keep + [row for _, row in embedded]
    run = Pass(memory.pool, spans, adapters=adapters if any(adapters) else (), wanted=wanted)
    lengths = [len(running[work.key].job.ids) for work in works]
    return Packed(run, ids, keep, drawing, embedded, lengths)
