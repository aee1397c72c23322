"""Star Attention: speed against hosts and length, accuracy with its ablations, exactness.

``python benchmarks/engine/star.py``: trains the key-value recall models first if ``--recall`` has
none (``python -m training.recall.train``, minutes each on one thread). Hosts are measured one after
another, each alone on one thread, as if each were a machine; the time of H hosts is that of the
slowest. CPU time, because this machine may be shared. Writes a dated file into benchmarks/results;
``--only glossary`` replaces that part of today's file and keeps the rest; it may be repeated.
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from star_accuracy import PAGE, ROOT, TRIALS, accuracy_section, recall_model
from star_language import language_section
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

RESULTS = ROOT / "benchmarks/results"
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
#: Parts of the result, and how their headings begin.
PARTS = {
    **{trial.name: f"## Accuracy: key-value recall, {trial.name}" for trial in TRIALS},
    "language": "## Language models",
    "exactness": "## Exactness",
    "speed": "## Speed",
    "phase two": "## Second phase",
}


@torch.inference_mode()
def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recall", type=Path, default=ROOT / "build/recall")
    parser.add_argument("--lengths", default="2048,4096,8192,16384")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--documents", type=int, default=60)
    parser.add_argument("--only", choices=PARTS, action="append", help="a part of the file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    parts: dict[str, Callable[[], Iterator[str]]] = {
        trial.name: partial(accuracy_section, trial, options.recall, options.documents)
        for trial in TRIALS
    }
    parts |= {
        "language": language_section,
        "exactness": lambda: exactness_section(recall_model(options.recall, TRIALS[0])),
        "speed": lambda: speed_section(
            [int(n) for n in options.lengths.split(",")], options.repeats
        ),
        "phase two": phase_two_section,
    }
    chosen = [part for part in PARTS if part in (options.only or PARTS)]
    command = ["python benchmarks/engine/star.py", f"--documents {options.documents}"]
    command += [f"--only '{part}'" for part in options.only or ()]
    write({part: list(parts[part]()) for part in chosen}, " ".join(command))


# --------------------------------------------------------------------------------- exactness


def exactness_section(model: Any) -> Iterator[str]:
    """Logits against dense where nothing is approximated."""
    rng = np.random.default_rng(3)
    ids = rng.integers(model.config.vocab_size, size=512).tolist()
    query = ids[:3]
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


def write(parts: dict[str, list[str]], command: str) -> None:
    """Write today's file: the parts measured now, and from an earlier run those that were not."""
    today = dt.datetime.now(dt.UTC).date().isoformat()
    hardware = f"{os.cpu_count()}-cores-{platform.machine()}"
    file = RESULTS / f"star_{hardware}_{today}.md"
    versions = f"Python {platform.python_version()} · torch {torch.__version__}"
    runs = [f"`{command}` · {versions} · load average {os.getloadavg()[0]:.2f} at the end"]
    bodies = {part: "\n".join(lines) + "\n" for part, lines in parts.items()}
    if len(parts) < len(PARTS) and file.exists():
        head, *sections = re.split(r"^(?=## )", file.read_text(), flags=re.MULTILINE)
        runs = [line for line in head.splitlines()[2:] if line] + runs
        kept = {part: "".join(s for s in sections if s.startswith(PARTS[part])) for part in PARTS}
        bodies = kept | bodies
    body = "".join(bodies.get(part, "") for part in PARTS)
    title = f"# Star Attention, {hardware}, {today}"
    RESULTS.mkdir(exist_ok=True)
    file.write_text("\n\n".join([title, *runs, body]).rstrip() + "\n")
    print(file.read_text())


if __name__ == "__main__":
    main()
