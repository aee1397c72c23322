"""Shared prompts, and memory for half of what runs: what the engine's KV memory does for time.

``python benchmarks/engine/engine_memory.py`` makes a model of 100 million random weights in a
temporary folder (speed is real, quality is not measured), and writes a dated file into
benchmarks/results:

- time to the first token of 16 users who share a system prompt, with and without prefix cache;
- by length, what swapping and recomputing take, and what the engine would choose;
- 8 answers in memory for half of them: always swap, always recompute, or whichever is predicted to
  take less.

The tier that sequences are swapped to is memory, a file, and a file on an emulated disk, so slow
that it does not always pay. All ways run in turns, and must give the same tokens. Takes about ten
minutes on two quiet cores; ``--quick`` shows in two that everything runs.
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import torch
from make_model import save_tokenizer
from transformers import Qwen3Config, Qwen3ForCausalLM

from starai.core.clock import SystemClock
from starai.engines.base import EngineSpec
from starai.engines.paging.cost import Action
from starai.engines.paging.memory import Copy
from starai.engines.text import memory as engine_memory
from starai.engines.text.engine import TextEngine
from starai.engines.text.pool import BLOCK_TOKENS
from starai.engines.text.tier import Tier
from starai.models.catalog import open_model
from starai.protocol import tokens
from starai.protocol.generation import Generation, Sampling

RESULTS = Path(__file__).resolve().parents[1] / "results"
THREADS = 2
SHAPE = {
    "vocab_size": 32000,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
    "eos_token_id": 256,
    "bos_token_id": 256,
}
#: A system prompt, what each user adds, how many there are, and tokens of an answer.
SYSTEM, TURN, USERS, ANSWERED = 512, 32, 16, 8
LENGTHS = (16, 32, 64, 128, 256, 512, 1024, 1536)
#: Prompts of the oversubscribed engine, and tokens of each answer.
PROMPTS, ANSWER = (64, 384, 128, 256) * 2, 224
#: The emulated disk is as fast as makes swapping and recomputing so many tokens take the same.
CROSSING = 256
TRIES, ROUNDS = 5, 5
GIB = 1 << 30


class SlowTier(Tier):
    """A tier on a disk of a given speed: no transfer is faster than it would be there."""

    bytes_per_s = 1e9

    def _bytes(self, copies: Sequence[Copy]) -> int:
        self._moved = super()._bytes(copies)
        return self._moved

    def _since(self, begun: float) -> float:
        # The tier asks for the bytes first, then for the seconds.
        time.sleep(max(0.0, self._moved / self.bytes_per_s - super()._since(begun)))
        return super()._since(begun)


def make(folder: Path) -> None:
    """A model of Qwen3's form with random weights, in float32."""
    torch.manual_seed(3)
    Qwen3ForCausalLM(Qwen3Config(**SHAPE)).save_pretrained(folder)
    save_tokenizer(folder)


def opened(folder: Path, *, slow: bool = False, **options: float | str) -> TextEngine:
    """The engine, without guessing ahead."""
    given = {"speculate": 0, "context": 2304, **options}
    spec = EngineSpec("text", str(folder), slots=16, threads=THREADS, options=given)
    with mock.patch.object(engine_memory, "Tier", SlowTier if slow else Tier):
        return TextEngine(open_model(str(folder)), spec, SystemClock())


@dataclass
class Served:
    """What came of some prompts that were asked at once."""

    ids: list[list[int]]
    first_ms: float
    total_s: float
    moved_blocks: int
    recomputed_tokens: int


def serve(engine: TextEngine, prompts: Sequence[Sequence[int]], answer: int, salt: bytes) -> Served:
    """Answer prompts greedily, all at once; only calls of equal ``salt`` share memory."""
    before = engine.memory_report()
    ids: list[list[int]] = [[] for _ in prompts]
    first_s = None
    begun_s = time.perf_counter()
    for number, prompt in enumerate(prompts):
        sampling = Sampling(bytes(32), temperature=0.0)
        asked = Generation(
            tokens.pack(prompt), answer, sampling, (), bytes(16), cache_salt=salt[:32]
        )
        engine.admit(number.to_bytes(4, "big"), asked)
    while engine.has_work:
        for news in engine.step():
            if news.error:
                raise SystemExit(f"a sequence failed: {news.error}")
            first_s = first_s or time.perf_counter() - begun_s
            ids[int.from_bytes(news.key, "big")] += news.ids
    total_s = time.perf_counter() - begun_s
    after = engine.memory_report()
    engine.check_integrity()
    return Served(
        ids,
        1e3 * (first_s or 0.0),
        total_s,
        after.swapped_out_blocks - before.swapped_out_blocks,
        after.recomputed_tokens - before.recomputed_tokens,
    )


def prompt_of(chance: random.Random, length: int) -> list[int]:
    """Random token ids."""
    return [chance.randrange(SHAPE["vocab_size"]) for _ in range(length)]


def spread(values: Sequence[float]) -> str:
    """Median, and the range."""
    digits = 1 if statistics.median(values) < 100 else 0
    low, high = min(values), max(values)
    return f"{statistics.median(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def shared_prompt(engine: TextEngine) -> list[str]:
    """Row g: users who share a system prompt; without prefix cache, each has a salt of its own."""
    chance = random.Random(5)
    system = prompt_of(chance, SYSTEM)
    opening = serve(engine, [system + prompt_of(chance, TURN)], ANSWERED, b"shared")
    known: list[float] = []
    alone: list[float] = []
    for user in range(USERS):
        prompt = [system + prompt_of(chance, TURN)]
        ways = [(known, b"shared"), (alone, b"user %d" % user)]
        found = []
        for samples, salt in ways if user % 2 else reversed(ways):
            found.append(serve(engine, prompt, ANSWERED, salt))
            samples.append(found[-1].first_ms)
        if found[0].ids != found[1].ids:
            raise SystemExit("a known prefix changed the answer")
    faster = statistics.median(alone) / statistics.median(known)
    return [
        f"## A shared system prompt of {SYSTEM} tokens (row g)",
        "",
        f"{USERS} users one after the other, each adding {TURN} tokens; median (range).",
        "",
        "| | first token, ms |",
        "|---|---|",
        f"| the first user of all, who computes it | {opening.first_ms:.1f} |",
        f"| without prefix cache | {spread(alone)} |",
        f"| with prefix cache | {spread(known)} |",
        "",
        f"{faster:.1f} times faster; {(SYSTEM + TURN) / TURN:.0f} times fewer tokens to compute.",
        f"All {USERS} answers are the same both ways, token for token.",
        "",
    ]


def seconds(work: Callable[[], object]) -> float:
    """Median of a few tries."""
    taken = []
    for _ in range(TRIES):
        begun = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken)


def recompute_times(engine: TextEngine) -> dict[int, float]:
    """Row h: seconds to compute prompts of each length; the engine learns from it, too."""
    chance = random.Random(6)
    serve(engine, [prompt_of(chance, 64)], 1, b"warm")
    return {
        length: seconds(lambda length=length: serve(engine, [prompt_of(chance, length)], 1, b""))
        for length in LENGTHS
    }


def swap_time(tier: Tier, length: int) -> float:
    """Seconds to carry a sequence's blocks out and in."""
    moved = [Copy(n, n) for n in range(length // BLOCK_TOKENS)]

    @torch.inference_mode()
    def there_and_back() -> None:
        tier.swap_out(moved)
        tier.swap_in(moved)

    return seconds(there_and_back)


def crossover(tiers: dict[str, TextEngine], computed: dict[int, float]) -> list[str]:
    """Row h: by length, what either way takes and which one the engine chooses."""
    lines = [
        "## Swap or recompute, by length (row h)",
        "",
        "Milliseconds to carry a sequence's blocks out and in, or to compute its tokens again;",
        "what the engine predicts for both, and what its choice takes above the better way.",
        "",
        "| tier | tokens | swap | predicted | recompute | predicted | chosen | costs |",
        "|---|---|---|---|---|---|---|---|",
    ]
    right = 0
    for name, engine in tiers.items():
        tier = engine.memory.tier
        swapped = {length: swap_time(tier, length) for length in LENGTHS}
        for length in LENGTHS:
            chosen = tier.choose(length, 0)
            size = length * engine.memory.pool.bytes_per_token
            ways = {Action.SWAP: swapped[length], Action.RECOMPUTE: computed[length]}
            more = ways[chosen] / min(ways.values()) - 1
            right += more <= 0.1
            cells = [
                swapped[length],
                tier.rates.swap_seconds(size),
                computed[length],
                tier.rates.recompute_seconds(length),
            ]
            shown = " | ".join(f"{1e3 * cell:.1f}" for cell in cells)
            lines.append(f"| {name} | {length} | {shown} | {chosen.value} | +{more:.0%} |")
    total = len(tiers) * len(LENGTHS)
    return [*lines, "", f"Within 10 % of the better way: {right} of {total}.", ""]


def pressure(roomy: TextEngine, tiers: dict[str, TextEngine]) -> list[str]:
    """Row h: twice as many sequences as fit, by every policy."""
    chance = random.Random(7)
    runs: dict[tuple[str, str], list[Served]] = {}
    policies = {"swap": Action.SWAP, "recompute": Action.RECOMPUTE, "measured": None}
    for number in range(ROUNDS):
        prompts = [prompt_of(chance, length) for length in PROMPTS]
        salt = b"round %d" % number
        expected = serve(roomy, prompts, ANSWER, salt)
        runs.setdefault(("-", "all fit"), []).append(expected)
        order = [(tier, policy) for tier in tiers for policy in policies]
        for tier, policy in order if number % 2 else reversed(order):
            # The policy is an option; changed here so that all have the same weights and rates.
            tiers[tier].memory.tier._always = policies[policy]
            found = serve(tiers[tier], prompts, ANSWER, salt + policy.encode())
            if found.ids != expected.ids:
                raise SystemExit(f"{tier}, {policy}: other tokens than with room for all")
            runs.setdefault((tier, policy), []).append(found)
    lines = [
        "## Memory for half of what runs (row h)",
        "",
        f"{len(PROMPTS)} sequences at once, prompts of {', '.join(map(str, PROMPTS[:4]))}, ...",
        f"tokens, answers of {ANSWER}; blocks for half of them. Seconds in all, median (range).",
        "",
        "| tier | policy | seconds | blocks swapped out | tokens recomputed |",
        "|---|---|---|---|---|",
    ]
    for tier, policy in [("-", "all fit"), *((t, p) for t in tiers for p in policies)]:
        some = runs[tier, policy]
        moved = statistics.median(one.moved_blocks for one in some)
        again = statistics.median(one.recomputed_tokens for one in some)
        shown = spread([one.total_s for one in some])
        lines.append(f"| {tier} | {policy} | {shown} | {moved:.0f} | {again:.0f} |")
    lines += ["", f"The same tokens in all {sum(map(len, runs.values()))} runs.", ""]
    for tier in tiers:
        took = {p: [one.total_s for one in runs[tier, p]] for p in policies}
        pairs = [
            statistics.median(a / b - 1 for a, b in zip(took["measured"], took[p], strict=True))
            for p in ("swap", "recompute")
        ]
        lines.append(
            f"- {tier}: measured takes {pairs[0]:+.1%} over swap, {pairs[1]:+.1%} over recompute "
            "(median of the rounds' pairs)."
        )
    return [*lines, ""]


def measure(folder: Path) -> list[str]:
    """Everything, in one process."""
    make(folder)
    roomy = opened(folder, kv_gib=1.0)
    size = roomy.memory.pool.bytes_per_token
    parameters = open_model(str(folder)).num_parameters
    print("shared prompt", flush=True)
    lines = shared_prompt(roomy)
    print("recomputing", flush=True)
    computed = recompute_times(roomy)
    SlowTier.bytes_per_s = 2 * CROSSING * size / computed[CROSSING]
    lengths = sum(PROMPTS) + len(PROMPTS) * ANSWER
    half = {"kv_gib": lengths // 2 * size / GIB}
    tiers = {
        "memory": opened(folder, **half),
        "file": opened(folder, swap="disk", **half),
        "slow disk": opened(folder, swap="disk", slow=True, **half),
    }
    learned = roomy.memory.tier.rates
    for engine in tiers.values():
        tier = engine.memory.tier
        tier.rates = replace(
            tier.rates, prefill_tokens_per_s=learned.prefill_tokens_per_s, fit=learned.fit
        )
    print("swapping", flush=True)
    lines += crossover(tiers, computed)
    print("under pressure", flush=True)
    lines += pressure(roomy, tiers)
    about = (
        f"{parameters / 1e6:.0f} M random weights in float32, {size / 1e3:.1f} kB of KV memory a "
        f"token, {THREADS} threads. The slow disk is emulated:\n{SlowTier.bytes_per_s / 1e6:.0f} "
        f"MB/s each way, at which {CROSSING} tokens are swapped as fast as they are computed."
    )
    return [about, "", *lines]


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one round, few lengths, no file")
    if parser.parse_args().quick:
        global TRIES, ROUNDS, USERS, LENGTHS
        TRIES, ROUNDS, USERS, LENGTHS = 2, 1, 4, (32, 256, 1024)
    quick = ROUNDS == 1
    begun = time.perf_counter()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        lines = measure(Path(folder))
    today = dt.datetime.now(dt.UTC).date().isoformat()
    hardware = f"{os.cpu_count()} cores {platform.machine()}"
    head = [
        f"# KV memory, {hardware}, {today}",
        "",
        f"`python benchmarks/engine/engine_memory.py` · Python {platform.python_version()} ·",
        f"load average {load:.2f} at the start, {os.getloadavg()[0]:.2f} at the end ·",
        f"took {time.perf_counter() - begun:.0f} s",
        "",
    ]
    print("\n".join([*head, *lines]))
    if not quick:
        RESULTS.mkdir(exist_ok=True)
        file = RESULTS / f"engine-memory_{hardware.replace(' ', '-')}_{today}.md"
        file.write_text("\n".join([*head, *lines]))
        print(f"written to {file}")


if __name__ == "__main__":
    main()
