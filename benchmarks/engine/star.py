"""Star Attention: speed against hosts and length, accuracy with its ablations, exactness.

``python benchmarks/engine/star.py``: trains the two key-value recall models first if ``--recall``
has none (``python -m training.recall.train [--coded]``, minutes each on one thread). Hosts are
measured one after another, each alone on one thread, as if each were a machine; the time of H hosts
is that of the slowest. CPU time, because this machine may be shared. Writes a dated file into
benchmarks/results.
"""

from __future__ import annotations

import argparse
import datetime as dt
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, Qwen3Config

import starai.engines.text.attention as packed
from starai.engines.paging.memory import PagedMemory
from starai.engines.star.blockwise import pieces, prefill, shape_of
from starai.engines.star.hosts import ThreadHosts
from starai.engines.star.phase_two import Link, PhaseTwo, choose_phase_two
from starai.engines.star.planning import ModelShape, StarPlan, gain, plan_blocks
from starai.engines.star.session import StarSession
from starai.engines.text.attention import Pass, Span
from starai.engines.text.forward import forward
from starai.engines.text.pool import KeyValuePool

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from training.recall import task  # noqa: E402 - a folder beside this one

RESULTS = ROOT / "benchmarks/results"
PAGE = 16
HOSTS = (1, 2, 4, 8)
#: Longer contexts are timed once.
REPEATED_MAX = 4096
#: Layers of 0.6B shape's width, fewer of them: ratios of linear and attention work stay the same.
SPEED_MODEL = {
    "vocab_size": 1024,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 2,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 1 << 17,
}
QWEN = ModelShape(28, 16, 128, 440_401_920, 114_688)
#: The paper's RULER-NIAH at 64K, block 16K, in per cent; see docs/why/star-attention.md.
PAPER = {
    "dense": 99.50, "content": 97.61, "none": 60.11, "constant": 0.0, "random": 90.55,
    "shuffled": 92.96, "previous": 94.20,
}  # fmt: skip


@torch.inference_mode()
def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recall", type=Path, default=ROOT / "build/recall")
    parser.add_argument("--lengths", default="2048,4096,8192,16384")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--documents", type=int, default=60)
    options = parser.parse_args()
    torch.set_num_threads(1)
    models = {kind: recall_model(options.recall / kind, kind) for kind in KINDS}
    sections = [
        *(
            accuracy_section(model, kind, options.documents, options.recall / kind)
            for kind, model in models.items()
        ),
        exactness_section(models["coded"]),
        speed_section([int(n) for n in options.lengths.split(",")], options.repeats),
        phase_two_section(),
    ]
    write("\n".join(line for section in sections for line in section))


def recall_model(folder: Path, kind: str) -> Any:
    """The recall model of a kind, trained now if it is not there."""
    if not (folder / "config.json").exists():
        command = [sys.executable, "-m", "training.recall.train", "--out", str(folder)]
        more = ["--coded", "--start", str(folder.parent / "plain")] if kind == "coded" else []
        subprocess.run([*command, *more], cwd=ROOT, check=True)
    return AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation=packed.NAME, dtype=torch.float32
    ).eval()


# ---------------------------------------------------------------------------------- accuracy


KINDS = {
    "plain": "A value stands behind its key, anywhere in the text; to find it needs nothing else.",
    "coded": "What stands behind a key must be translated by a legend in the first five tokens.",
}


def accuracy_section(model: Any, kind: str, documents: int, folder: Path) -> Iterator[str]:
    """Recall by block size, and what the anchor must be."""
    length, pairs = 512, 64
    yield f"## Accuracy: key-value recall, {kind}"
    yield ""
    yield (
        f"{KINDS[kind]} A Llama of {model.config.num_hidden_layers} layers trained here on "
        f"documents of {length} tokens with {pairs} pairs (`training/recall`). {documents} "
        "documents it never saw, 16 questions each; the answer is one token of 64."
    )
    yield ""
    yield f"Training: `{' '.join((folder / 'training.json').read_text().split())}`"
    yield ""
    rng = np.random.default_rng(2026)
    texts = [task.document(rng, length, pairs, coded=kind == "coded") for _ in range(documents)]
    asked = [rng.choice(pairs, size=16, replace=False) for _ in texts]
    questions = list(zip(texts, asked, strict=True))
    dense = plan_blocks(length, blocks=1, page=PAGE)
    base = recall_shares(model, questions, dense, "content")
    yield "| Anchor | L/2 | L/4 | L/8 | paper (64K, L/4) |"
    yield "|---|---|---|---|---|"
    whole = " | ".join([f"{base.mean():.1%}"] * 3)
    yield f"| dense, no blocks | {whole} | {PAPER['dense']:.1f}% |"
    shares: dict[tuple[str, int], Any] = {}
    for anchor, words in ANCHORS.items():
        for blocks in (2, 4, 8):
            plan = plan_blocks(length, blocks=blocks, page=PAGE)
            shares[anchor, blocks] = recall_shares(model, questions, plan, anchor)
        row = " | ".join(f"{shares[anchor, blocks].mean():.1%}" for blocks in (2, 4, 8))
        print(f"{kind} {anchor} {row}", flush=True)
        yield f"| {words} | {row} | {PAPER[anchor]:.1f}% |"
    yield ""
    yield from signs(base, shares)


#: Share of dense accuracy whose loss is a collapse; the paper's no-anchor row loses 40 %.
COLLAPSE = 0.2
ANCHORS = {
    "content": "first block (Star)",
    "none": "none",
    "constant": "constant token",
    "random": "random tokens",
    "shuffled": "first block, shuffled",
    "previous": "previous block",
}


def signs(base: Any, shares: dict[tuple[str, int], Any]) -> Iterator[str]:
    """Does what the paper saw show here, too? At L/4 but for the block size.

    The same questions were asked in every cell, so differences are taken document by document. One
    counts if it is over two of its standard errors.
    """
    at = {anchor: shares[anchor, 4] for anchor in ANCHORS}
    kept = at["content"].mean() / base.mean()
    lost = {anchor: 1 - at[anchor].mean() / base.mean() for anchor in ("none", "constant")}
    yield "| The paper's sign | here |"
    yield "|---|---|"
    yield f"| Star keeps 95% of dense accuracy at L/4 | {yes(kept >= 0.95)}, {kept:.1%} |"
    for anchor, words in (("none", "without an anchor"), ("constant", "with a constant anchor")):
        holds = yes(lost[anchor] > COLLAPSE)
        yield f"| {words} it collapses | {holds}, it loses {lost[anchor]:.1%} |"
    for better, worse in (("content", "random"), ("random", "none"), ("content", "previous")):
        verdict = compared(at[better], at[worse])
        yield f"| {ANCHORS[better]} better than {ANCHORS[worse]} | {verdict} |"
    verdict = compared(shares["content", 2], shares["content", 8])
    yield f"| larger blocks better: L/2 than L/8 | {verdict} |"
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


def recall_shares(model: Any, questions: Sequence[Any], plan: StarPlan, anchor: str) -> Any:
    """For each document the share of its questions answered rightly, contexts run by ``plan``."""
    run = partial(forward, model)
    rng = np.random.default_rng(7)
    shares = []
    for document, asked in questions:
        table, pool = context_memory(run, document.ids, plan, anchor, rng)
        right = 0
        for pair in asked:
            query = [task.ASK, int(document.keys[pair])]
            logits = run(Pass(pool, [Span(table, plan.context, len(query))]), query, [1])
            right += int(logits[0].argmax()) == int(document.values[pair])
        shares.append(right / len(asked))
    return np.array(shares)


def context_memory(
    run: Callable[..., Any], ids: Any, plan: StarPlan, kind: str, rng: np.random.Generator
) -> tuple[list[int], KeyValuePool]:
    """A context's pages by Star Attention with one of the `ANCHORS`."""
    pages = -(-(plan.context + 2 * PAGE) // PAGE)
    anchor_pages = plan.block // PAGE
    pool = KeyValuePool(pages + anchor_pages, PAGE)
    table, spare = list(range(pages)), list(range(pages, pages + anchor_pages))
    # Two "hosts": the first block is computed as it is, the others behind a chosen anchor.
    groups = (range(1), range(1, plan.num_blocks)) if plan.num_blocks > 1 else plan.groups
    for span, places in pieces(StarPlan(plan.context, plan.block, 0, PAGE, groups), 0, [], table):
        run(Pass(pool, [span]), ids[places.start : places.stop].tolist(), [0])
    size = 0 if kind == "none" else plan.anchor
    for number in range(1, plan.num_blocks):
        first = ids[: plan.anchor].tolist()
        if kind == "previous":
            first = ids[(number - 1) * plan.block : number * plan.block].tolist()
        elif kind == "constant":
            first = [task.DULL] * plan.anchor
        elif kind == "random":
            first = rng.integers(task.DULL, task.VOCABULARY, plan.anchor).tolist()
        elif kind == "shuffled":
            first = rng.permutation(first).tolist()
        at = (number - 1) * plan.block if kind == "previous" else 0
        groups = (range(1), range(number, number + 1))
        one = StarPlan(plan.context, plan.block, size, PAGE, groups)
        own = table[number * anchor_pages :]
        for span, places in pieces(one, 1, spare, own):
            anchor = places.start < size
            source = first if anchor else ids.tolist()
            moved = replace(span, position=at + places.start) if anchor else span
            run(Pass(pool, [moved]), source[places.start : places.stop], [0])
    return table, pool


# --------------------------------------------------------------------------------- exactness


def exactness_section(model: Any) -> Iterator[str]:
    """Logits against dense where nothing is approximated."""
    rng = np.random.default_rng(3)
    ids = task.document(rng, 512, 64, coded=True).ids.tolist()
    query = [task.ASK, ids[-1], task.ASK]
    dense = dense_logits(model, ids + query)
    yield "## Exactness"
    yield ""
    yield "Largest difference of logits to dense attention, relative to the largest logit, float32."
    yield ""
    yield "| What | gathered | distributed |"
    yield "|---|---|---|"
    for count in HOSTS:
        session = shards_of_dense(model, ids, count)
        try:
            session.gather()
            modes = (PhaseTwo.GATHERED, PhaseTwo.DISTRIBUTED)
            found = [off(session.advance(query, 0, mode), dense) for mode in modes]
        finally:
            session.close()
        yield f"| dense keys and values over {count} hosts | {found[0]:.1e} | {found[1]:.1e} |"
    pool, memory = KeyValuePool(64, PAGE), PagedMemory(64, block_tokens=PAGE)
    run = partial(forward, model)
    prefill(run, pool, memory, b"s", ids, plan_blocks(len(ids), blocks=1, page=PAGE))
    memory.reach(b"s", len(ids) + len(query))
    span = Span(memory.table(b"s"), len(ids), len(query))
    one = off(run(Pass(pool, [span]), query, [len(query) - 1]), dense)
    yield f"| one block | {one:.1e} | |"
    yield ""


def shards_of_dense(model: Any, ids: list[int], count: int) -> StarSession:
    plan = plan_blocks(len(ids), hosts=count, blocks=count, anchor=0, page=PAGE)
    hosts = ThreadHosts([model] * count)
    session = StarSession(model, hosts, answer_tokens_max=64)
    session.prefill(ids, plan)
    pages = -(-len(ids) // PAGE)
    pool = KeyValuePool(pages, PAGE)
    forward(model, Pass(pool, [Span(range(pages), 0, len(ids))]), ids, [0])
    for number, host in enumerate(hosts.hosts):
        shard = plan.shard(number)
        host.hold(pool, range(shard.start // PAGE, pages), len(shard))
    return session


def dense_logits(model: Any, ids: list[int]) -> Any:
    pages = -(-len(ids) // PAGE)
    run = Pass(KeyValuePool(pages, PAGE), [Span(range(pages), 0, len(ids))])
    return forward(model, run, ids, [len(ids) - 1])


def off(found: Any, expected: Any) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


# ------------------------------------------------------------------------------------- speed


def speed_section(lengths: Sequence[int], repeats: int) -> Iterator[str]:
    """CPU seconds of the first phase's slowest host."""
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(
        Qwen3Config(**SPEED_MODEL), attn_implementation=packed.NAME, dtype=torch.bfloat16
    ).eval()
    shape = shape_of(model, 2 * 2 * 8 * 128 * 2)
    yield "## Speed: first phase"
    yield ""
    yield (
        f"Random weights, {SPEED_MODEL['num_hidden_layers']} layers as wide as Qwen3-0.6B's, "
        f"bfloat16, one thread, CPU seconds of the slowest host, median of {repeats} up to "
        f"{REPEATED_MAX} tokens and one sample beyond. In brackets: "
        "speed-up against dense on one host, measured and predicted from operations. *Ideal ring* "
        "is dense divided by H: exact attention, free communication, perfect balance."
    )
    yield ""
    yield "| Context | Hosts | block = L/H | anchor = block | anchor = block/4 | ideal ring |"
    yield "|---|---|---|---|---|---|"
    for length in lengths:
        repeats = repeats if length <= REPEATED_MAX else 1
        ids = np.random.default_rng(length).integers(0, 1000, length).tolist()
        dense = seconds(model, ids, plan_blocks(length, blocks=1, page=PAGE), 0, repeats)
        yield f"| {length} | 1, dense | | {dense:.2f} s | | |"
        one = plan_blocks(length, blocks=4, page=PAGE)
        yield row(model, ids, one, dense, shape, repeats, "1, four blocks, shared anchor")
        for count in HOSTS[1:]:
            plan = plan_blocks(length, hosts=count, blocks=count, page=PAGE)
            yield row(model, ids, plan, dense, shape, repeats, str(count))
        print(f"{length} done", flush=True)
    yield ""


def row(
    model: Any, ids: list[int], plan: StarPlan, dense: float, shape: ModelShape, repeats: int,
    name: str,
) -> str:  # fmt: skip
    count = len(plan.groups)
    cells = []
    for anchor in (plan.block, plan.block // 4):
        sized = plan_blocks(plan.context, hosts=count, block=plan.block, anchor=anchor, page=PAGE)
        slowest = max(range(count), key=lambda host: sized.work(host).flops(shape))
        took = seconds(model, ids, sized, slowest, repeats)
        cells.append(f"{took:.2f} s ({dense / took:.1f}x, {gain(sized, shape):.1f}x)")
    ring = f"{dense / count:.2f} s ({count:.1f}x)"
    return f"| {plan.context} | {name} | {plan.block} | {cells[0]} | {cells[1]} | {ring} |"


def seconds(model: Any, ids: list[int], plan: StarPlan, host: int, repeats: int) -> float:
    """CPU seconds of one host's part: median of ``repeats``, the first run not counted if short."""
    shard = plan.shard(host)
    pages, anchor = -(-len(shard) // PAGE), plan.anchor // PAGE
    taken = []
    for _ in range(repeats):
        pool = KeyValuePool(pages + anchor, PAGE)
        table = range(pages)
        first = range(pages, pages + anchor) if plan.groups[host].start else table
        begun = time.process_time()
        for span, places in pieces(plan, host, first, table):
            forward(model, Pass(pool, [span]), ids[places.start : places.stop], [0])
        taken.append(time.process_time() - begun)
    return statistics.median(taken)


# ----------------------------------------------------------------------------------- phase two


def phase_two_section() -> Iterator[str]:
    """What the cost model says for the 0.6B shape, 16k tokens on four hosts."""
    yield "## Second phase: what the cost model chooses (predicted, Qwen3-0.6B shape)"
    yield ""
    yield "16384 tokens of context on 4 hosts, a query of 50 tokens. Communication seconds only."
    yield ""
    yield "| Network | Answer | distributed | gathered | gathered int8 | chosen |"
    yield "|---|---|---|---|---|---|"
    links = {
        "same rack, 0.1 ms, 10 Gbit/s": Link(1e-4, 1.25e9),
        "home network, 1 ms, 1 Gbit/s": Link(1e-3, 1.25e8),
        "Internet, 50 ms, 100 Mbit/s": Link(0.05, 1.25e7),
    }
    for name, link in links.items():
        for output in (1, 50, 500):
            plain, small = (
                choose_phase_two(
                    link, QWEN, context_tokens=16384, query_tokens=50, output_tokens=output,
                    hosts=4, int8=int8,
                )
                for int8 in (False, True)
            )  # fmt: skip
            yield (
                f"| {name} | {output} | {plain.distributed_s:.1f} s | {plain.gathered_s:.1f} s | "
                f"{small.gathered_s:.1f} s | {small.mode.value} |"
            )
    yield ""


def write(body: str) -> None:
    today = dt.datetime.now(dt.UTC).date().isoformat()
    hardware = f"{os.cpu_count()}-cores-{platform.machine()}"
    versions = f"Python {platform.python_version()} · torch {torch.__version__}"
    load = f"load average {os.getloadavg()[0]:.2f} at the end"
    title = f"# Star Attention, {hardware}, {today}"
    head = f"{title}\n\n`python benchmarks/engine/star.py` · {versions} · {load}"
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"star_{hardware}_{today}.md"
    file.write_text(f"{head}\n\n{body}\n")
    print(file.read_text())


if __name__ == "__main__":
    main()
