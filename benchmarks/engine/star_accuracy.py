"""How much recall Star Attention keeps, and what its anchor must be: a part of `star.py`."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

import starai.engines.text.attention as packed
from starai.engines.star.planning import plan_blocks
from starai.engines.text.forward import forward

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from training.recall import task  # noqa: E402 - a folder of the repository's root
from training.recall.anchors import Anchor, Content, Places, Words, right  # noqa: E402
from training.recall.sinks import OPENING, sinks  # noqa: E402
from training.recall.task import Kind  # noqa: E402

PAGE = 16
LENGTH, PAIRS, QUESTIONS = 512, 64, 16
BLOCKS = (2, 4, 8)
#: Share of dense accuracy whose loss is a collapse; the paper's no-anchor row loses 40 %.
COLLAPSE = 0.2


@dataclass(frozen=True)
class Trial:
    """A model to try, and why it may need an anchor or not."""

    name: str
    kind: Kind
    steps: int
    why: str
    reading_steps: int = 0
    batch_tokens: int = 2048


TRIALS = (
    Trial(
        "plain",
        Kind.PLAIN,
        900,
        "A value stands behind its key, anywhere in the text; to find it needs nothing else. "
        "Nothing that is read depends on the opening, and no head leans on it (last table), so "
        "there is nothing that an anchor could keep.",
    ),
    Trial(
        "coded",
        Kind.CODED,
        1500,
        "What stands behind a key must be translated by one of four legends, which the first five "
        "tokens name. The question sees the whole text, the legend too, and with four cases to "
        "tell apart translates by itself; so there is no collapse here either.",
    ),
    Trial(
        "glossary",
        Kind.GLOSSARY,
        400,
        "What stands behind a key must be translated by a glossary of 16 entries in the first 17 "
        "tokens, drawn afresh in each document. The first layer looks a value up while it is read, "
        "the second finds the key when it is asked for, and there is no third to look up then. So "
        "the collapse here is one of *content*: a block whose anchor has no glossary keeps values "
        "that nobody can translate any more. It is not the paper's mechanism, attention sinks.",
        reading_steps=100,
        batch_tokens=1024,
    ),
)
#: What is tried, in the paper's order, with the paper's figures in per cent: RULER-NIAH at 64K,
#: block 16K; see docs/why/star-attention.md.
ANCHORS: dict[str, tuple[Anchor, float | None]] = {
    "none": (Anchor(Content.NONE), 60.11),
    "first block, random positions": (Anchor(places=Places.SCATTERED), 96.79),
    "first block, the previous block's positions": (Anchor(places=Places.PREVIOUS), None),
    "first block (Star)": (Anchor(), 97.61),
    "constant token": (Anchor(Content.CONSTANT), 0.0),
    "random tokens": (Anchor(Content.RANDOM), 90.55),
    "first block, shuffled": (Anchor(Content.SHUFFLED), 92.96),
    "previous block": (Anchor(Content.PREVIOUS, Places.PREVIOUS), 94.20),
}
DENSE = 99.50
WORDS = {kind: Words(task.DULL, range(task.DULL, kind.vocabulary)) for kind in Kind}
STAR = "first block (Star)"


def recall_model(folder: Path, trial: Trial) -> Any:
    """The model of a trial, trained now if it is not there."""
    own = folder / trial.name
    if not (own / "config.json").exists():
        options = {"kind": trial.kind, "reading-steps": trial.reading_steps}
        options |= {"steps": trial.steps, "batch-tokens": trial.batch_tokens, "out": own}
        if trial.kind is not Kind.PLAIN:
            options["start"] = folder / TRIALS[0].name
        command = [sys.executable, "-m", "training.recall.train"]
        command += [word for name, value in options.items() for word in (f"--{name}", str(value))]
        subprocess.run(command, cwd=ROOT, check=True)
    return AutoModelForCausalLM.from_pretrained(
        own, attn_implementation=packed.NAME, dtype=torch.float32
    ).eval()


def accuracy_section(trial: Trial, folder: Path, documents: int) -> Iterator[str]:
    """A trial's recall by block size, what its anchor must be, and where its heads look."""
    model = recall_model(folder, trial)
    kind = trial.kind
    yield f"## Accuracy: key-value recall, {trial.name}"
    yield ""
    yield (
        f"{trial.why} A Llama of 2 layers trained here on documents of {LENGTH} "
        f"tokens with {PAIRS} pairs (`training/recall`). {documents} documents it never saw, "
        f"{QUESTIONS} questions each; the answer is one of {kind.choices}, so chance is "
        f"{1 / kind.choices:.1%}."
    )
    yield ""
    told = (folder / trial.name / "training.json").read_text()
    yield f"Training: `{' '.join(told.split())}`"
    yield ""
    rng = np.random.default_rng(2026)
    texts = [task.document(rng, LENGTH, PAIRS, kind) for _ in range(documents)]
    asked = [rng.choice(PAIRS, size=QUESTIONS, replace=False) for _ in texts]
    later = np.stack([text.places[own] for text, own in zip(texts, asked, strict=True)])
    run = partial(right, partial(forward, model), texts, asked, words=WORDS[kind])
    plans = {blocks: plan_blocks(LENGTH, blocks=blocks, page=PAGE) for blocks in (1, *BLOCKS)}
    base = run(plan=plans[1], anchor=Anchor())
    yield "| Anchor | L/2 | L/4 | L/8 | L/4, behind the first block | paper (64K, L/4) |"
    yield "|---|---|---|---|---|---|"
    behind = later >= plans[4].block
    whole = " | ".join([f"{base.mean():.1%}"] * len(BLOCKS))
    yield f"| dense, no blocks | {whole} | {base[behind].mean():.1%} | {DENSE:.1f}% |"
    found: dict[tuple[str, int], Any] = {}
    for name, (anchor, paper) in ANCHORS.items():
        for blocks in BLOCKS:
            found[name, blocks] = run(plan=plans[blocks], anchor=anchor)
        cells = [*(found[name, blocks].mean() for blocks in BLOCKS), found[name, 4][behind].mean()]
        row = " | ".join(f"{cell:.1%}" for cell in cells)
        print(f"{trial.name}: {name} {row}", flush=True)
        yield f"| {name} | {row} | {'' if paper is None else f'{paper:.1f}%'} |"
    yield ""
    yield from signs(base.mean(), {cell: share.mean(1) for cell, share in found.items()})
    yield from sink_lines(model, np.stack([text.ids for text in texts[:8]]))


def signs(base: float, shares: dict[tuple[str, int], Any]) -> Iterator[str]:
    """Does what the paper saw show here, too? At L/4 but for the block size.

    The same questions were asked in every cell, so differences are taken document by document. One
    counts if it is over two of its standard errors.
    """
    at = {name: shares[name, 4] for name in ANCHORS}
    kept = at[STAR].mean() / base
    yield "| The paper's sign | here |"
    yield "|---|---|"
    yield f"| Star keeps 95% of dense accuracy at L/4 | {yes(kept >= 0.95)}, {kept:.1%} |"
    for name, words in (
        ("none", "without an anchor"),
        ("constant token", "with a constant anchor"),
    ):
        lost = 1 - at[name].mean() / base
        yield f"| {words} it collapses | {yes(lost > COLLAPSE)}, it loses {lost:.1%} |"
    for better, worse in (
        (STAR, "random tokens"),
        ("first block, shuffled", "random tokens"),
        ("random tokens", "none"),
        (STAR, "previous block"),
        ("first block, random positions", "random tokens"),
    ):
        yield f"| {better} better than {worse} | {compared(at[better], at[worse])} |"
    verdict = compared(shares[STAR, BLOCKS[0]], shares[STAR, BLOCKS[-1]])
    yield f"| larger blocks better: L/2 than L/8 | {verdict} |"
    yield ""


def sink_lines(model: Any, ids: Any) -> Iterator[str]:
    """The share of dense attention that goes to the first token, and to the rest of the opening."""
    first, opening = sinks(model, ids)
    yield f"Attention of each head to the first token, and to the {OPENING} behind it, dense:"
    yield ""
    yield f"| Layer | to the first token | to the next {OPENING} |"
    yield "|---|---|---|"
    for layer, (one, rest) in enumerate(zip(first, opening, strict=True), 1):
        cells = " | ".join(", ".join(f"{share:.1%}" for share in row) for row in (one, rest))
        yield f"| {layer} | {cells} |"
    yield ""


def yes(holds: bool) -> str:
    return "yes" if holds else "**no**"


def compared(better: Any, worse: Any) -> str:
    """Whether the first is better, by the differences of documents [documents]."""
    apart = better - worse
    error = apart.std(ddof=1) / math.sqrt(len(apart))
    words = f"{apart.mean():+.1%} ± {error:.1%}"
    if abs(apart.mean()) <= 2 * error:
        return f"**no difference** seen, {words}"
    return f"{yes(apart.mean() > 0)}, {words}"
