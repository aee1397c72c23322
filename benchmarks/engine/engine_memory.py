"""Shared prompts, and memory for half of what runs: what the engine's KV memory does for time.

``python benchmarks/engine/engine_memory.py`` makes a model of 100 million random weights in a
temporary folder (speed is real, quality is not measured), and writes a dated file into
benchmarks/results:

- time to the first token of 16 users who share a system prompt, with and without prefix cache;
- by length, what swapping and recomputing take, what both at once take, and what the engine would
  choose;
- 16 answers in memory for half of them: always swap, always recompute, or whatever is predicted to
  cost least.

The tier that sequences are swapped to is memory, a file, and a file on emulated disks: one so slow
that swapping takes as long as recomputing, one twice as fast and one twice as slow. Always swapping
is measured in two ways: steps wait for the tier, as they did before and do in other engines, or the
tier is carried to and from behind the steps. All ways run in turns, and must give the same tokens.
Takes about twelve minutes on two quiet cores; ``--quick`` shows in two that everything runs.
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
from starai.engines.paging.memory import Copy, Return
from starai.engines.text import memory as engine_memory, tier as engine_tier
from starai.engines.text.engine import TextEngine
from starai.engines.text.pool import BLOCK_TOKENS
from starai.engines.text.shelf import Arrived, File
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
PROMPTS, ANSWER = (64, 160, 96, 128) * 4, 160
#: The emulated disk is as fast as makes swapping and recomputing so many tokens take the same.
CROSSING = 256
#: Rounds of everything, and more rounds of the tier at the crossover alone.
TRIES, ROUNDS, ROUNDS_CROSSING = 5, 3, 5
GIB = 1 << 30
#: What is always done, and whether steps wait for the tier.
POLICIES: dict[str, tuple[Action | None, bool]] = {
    "swap, steps wait": (Action.SWAP, True),
    "swap behind steps": (Action.SWAP, False),
    "recompute": (Action.RECOMPUTE, False),
    "measured": (None, False),
}
AT_CROSSING = "disk at the crossover"


class SlowFile(File):
    """A file on a disk of a given speed: no row is carried faster than it would be there."""

    bytes_per_s = 1e9
    _due_s = 0.0

    def write(self, slot: int, row: memoryview) -> None:
        """See `File.write`."""
        begun = time.perf_counter()
        super().write(slot, row)
        self._take_time(begun, self._row_bytes)

    def read(self, slot: int, row: memoryview) -> None:
        """See `File.read`."""
        begun = time.perf_counter()
        super().read(slot, row)
        self._take_time(begun, self._row_bytes)

    def _take_time(self, begun: float, num_bytes: int) -> None:
        # By a time that is due and not by a duration: a late wake-up makes the next row no later.
        self._due_s = max(self._due_s, begun) + num_bytes / self.bytes_per_s
        time.sleep(max(0.0, self._due_s - time.perf_counter()))


class MayWait(Tier):
    """A tier that steps can be made to wait for, as where nothing is carried behind them."""

    waits = False
    kept: Sequence[Arrived] = ()

    def swap_out(self, copies: Sequence[Copy]) -> list[int]:
        """Carry to the tier; where it waits, as many blocks at a time as it takes."""
        if not self.waits or not self._shelf.behind:
            return super().swap_out(copies)
        refused: list[int] = []
        most = self._shelf._most_rows
        for begin in range(0, len(copies), most):
            refused += super().swap_out(copies[begin : begin + most])
            if (carrying := self._shelf._thread) is not None:
                carrying.join()
        return refused

    def bring(self, back: Return) -> None:
        """Read from the tier, all of it at once where it waits."""
        super().bring(back)
        if self.waits and self._shelf.behind:
            while self.reading:
                self._shelf.wait(1.0)
                self.kept = [*self.kept, *super().collect()]

    def collect(self) -> list[Arrived]:
        """What was read."""
        kept, self.kept = self.kept, ()
        return [*kept, *super().collect()]


def make(folder: Path) -> None:
    """A model of Qwen3's form with random weights, in float32."""
    torch.manual_seed(3)
    Qwen3ForCausalLM(Qwen3Config(**SHAPE)).save_pretrained(folder)
    save_tokenizer(folder)


def opened(folder: Path, bytes_per_s: float = 0.0, **options: float | str) -> TextEngine:
    """The engine, without guessing ahead; its disk is as slow as told."""
    given = {"speculate": 0, "context": 2304, **options}
    spec = EngineSpec("text", str(folder), slots=16, threads=THREADS, options=given)
    slow = type("Slow", (SlowFile,), {"bytes_per_s": bytes_per_s})
    with (
        mock.patch.object(engine_memory, "Tier", MayWait),
        mock.patch.object(engine_tier, "File", slow if bytes_per_s else File),
    ):
        return TextEngine(open_model(str(folder)), spec, SystemClock())


@dataclass
class Served:
    """What came of some prompts that were asked at once."""

    ids: list[list[int]]
    first_ms: float
    total_s: float
    cpu_s: float
    moved_blocks: int
    head_tokens: int
    recomputed_tokens: int


def serve(engine: TextEngine, prompts: Sequence[Sequence[int]], answer: int, salt: bytes) -> Served:
    """Answer prompts greedily, all at once; only calls of equal ``salt`` share memory."""
    before = engine.memory_report()
    ids: list[list[int]] = [[] for _ in prompts]
    first_s = None
    begun_s, begun_cpu_s = time.perf_counter(), time.process_time()
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
    cpu_s = time.process_time() - begun_cpu_s
    after = engine.memory_report()
    engine.check_integrity()
    return Served(
        ids,
        1e3 * (first_s or 0.0),
        total_s,
        cpu_s,
        after.swapped_out_blocks - before.swapped_out_blocks,
        after.head_tokens - before.head_tokens,
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
    """Seconds to carry a sequence's blocks out and in, waiting for both."""
    moved = [Copy(n, n) for n in range(length // BLOCK_TOKENS)]

    @torch.inference_mode()
    def there_and_back() -> None:
        tier.waits = True
        tier.swap_out(moved)
        tier.bring(Return(b"one", tuple(moved)))
        for arrived in tier.collect():
            tier.load(arrived, arrived.copies)
        tier.waits = False

    return seconds(there_and_back)


def both_time(engine: TextEngine, length: int, head: int) -> float:
    """Seconds until a sequence is back whose head is computed while its tail is read.

    What was written before is not in it: that was carried behind the steps.
    """
    tier, chance = engine.memory.tier, random.Random(8)
    moved = tuple(Copy(n, n) for n in range(head // BLOCK_TOKENS, length // BLOCK_TOKENS))

    @torch.inference_mode()
    def back() -> None:
        if moved:
            tier.bring(Return(b"one", moved))
        if head:
            serve(engine, [prompt_of(chance, head)], 1, b"both")
        waiting = True
        while waiting:
            tier.wait(1.0)
            waiting = tier.reading
            for arrived in tier.collect():
                tier.load(arrived, arrived.copies)

    # `serve` steps the engine, which collects too: blocks that no sequence asked for are expected.
    engine.memory.books.expected = lambda key, copies: list(copies) if key == b"one" else []
    try:
        return seconds(back)
    finally:
        del engine.memory.books.expected


def crossover(tiers: dict[str, TextEngine], computed: dict[int, float]) -> list[str]:
    """Row h: by length, what each way takes and which one the engine chooses."""
    lines = [
        "## Swap or recompute, by length (row h)",
        "",
        "Milliseconds to carry a sequence's blocks out and in, waiting for both; to compute its",
        "tokens again; and, written behind the steps before, to read its tail while its head is",
        "computed, as the engine does where nobody else runs. What it predicts for each (the",
        "next column), and what its choice takes above the best of the three.",
        "",
        "| tier | tokens | swap | | recompute | | head | both | | chosen | costs |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    right = 0
    for name, engine in tiers.items():
        tier = engine.memory.tier
        swapped = {length: swap_time(tier, length) for length in LENGTHS}
        for length in LENGTHS:
            chosen, head = tier.choose(length, 0, 0), tier.head(length, 0, 0)
            size = length * engine.memory.pool.bytes_per_token
            both = both_time(engine, length, head) if head < length else computed[length]
            ways = {Action.SWAP: both, Action.RECOMPUTE: computed[length]}
            more = ways[chosen] / min(*ways.values(), swapped[length]) - 1
            right += more <= 0.1
            cells = [
                1e3 * swapped[length],
                1e3 * tier.rates.swap_seconds(size),
                1e3 * computed[length],
                1e3 * tier.rates.recompute_seconds(length),
                head,
                1e3 * both,
                1e3 * tier._gap(length, 0, 0).seconds(head, tier.rates),
            ]
            shown = " | ".join(f"{cell:.1f}" if cell != head else f"{cell}" for cell in cells)
            lines.append(f"| {name} | {length} | {shown} | {chosen.value} | +{more:.0%} |")
    total = len(tiers) * len(LENGTHS)
    return [*lines, "", f"Within 10 % of the best way: {right} of {total}.", ""]


Runs = dict[tuple[str, str], list[Served]]


def one_round(
    number: int,
    roomy: TextEngine,
    tiers: dict[str, TextEngine],
    cases: Sequence[tuple[str, str]],
    runs: Runs,
) -> None:
    """One set of prompts, answered with memory for all and in each of the cases."""
    chance = random.Random(7 + number)
    prompts = [prompt_of(chance, length) for length in PROMPTS]
    salt = b"round %d" % number
    expected = serve(roomy, prompts, ANSWER, salt)
    runs.setdefault(("-", "all fit"), []).append(expected)
    for n, (name, policy) in enumerate(cases if number % 2 else reversed(cases)):
        tier = tiers[name].memory.tier
        # The policy is an option; changed here so that all have the same weights and rates.
        tier._always, tier.waits = POLICIES[policy]
        found = serve(tiers[name], prompts, ANSWER, salt + b"%d" % n)
        tier.waits = False
        if found.ids != expected.ids:
            raise SystemExit(f"{name}, {policy}: other tokens than with room for all")
        runs.setdefault((name, policy), []).append(found)
        print(f"  {number} {name}, {policy}: {found.total_s:.2f} s", flush=True)


def against(mine: Sequence[Served], others: Sequence[Served]) -> str:
    """How much less or more: the median of the rounds' pairs, and how many are less."""
    pairs = [a.total_s / b.total_s - 1 for a, b in zip(mine, others, strict=True)]
    return f"{statistics.median(pairs):+.1%} (less in {sum(p < 0 for p in pairs)} of {len(pairs)})"


def pressure(roomy: TextEngine, tiers: dict[str, TextEngine]) -> list[str]:
    """Row h: twice as many sequences as fit, by every policy."""
    runs: Runs = {}
    policies = {
        name: [p for p in POLICIES if name == AT_CROSSING or p != "swap behind steps"]
        for name in tiers
    }
    cases = [(name, policy) for name in tiers for policy in policies[name]]
    for number in range(ROUNDS):
        one_round(number, roomy, tiers, cases, runs)
    whole = {case: list(some) for case, some in runs.items()}
    few = [case for case in cases if case[0] == AT_CROSSING]
    for number in range(ROUNDS, ROUNDS + ROUNDS_CROSSING):
        one_round(number, roomy, tiers, few, runs)
    lines = [
        "## Memory for half of what runs (row h)",
        "",
        f"{len(PROMPTS)} sequences at once, prompts of {', '.join(map(str, PROMPTS[:4]))}, ...",
        f"tokens, answers of {ANSWER}; blocks for half of them. Seconds in all, median (range).",
        "*Steps wait*: as it was before, and in engines that swap. *Behind steps*: the option",
        "`swap` of this engine now. *Heads*: tokens computed while the rest was read.",
        "",
        "| tier | policy | rounds | seconds | of CPU | blocks swapped out | heads | recomputed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for tier, policy in [("-", "all fit"), *cases]:
        some = runs[tier, policy]
        cells = [
            f"{statistics.median(getattr(one, name) for one in some):.{digits}f}"
            for name, digits in (
                ("cpu_s", 1),
                ("moved_blocks", 0),
                ("head_tokens", 0),
                ("recomputed_tokens", 0),
            )
        ]
        shown = spread([one.total_s for one in some])
        lines.append(f"| {tier} | {policy} | {len(some)} | {shown} | {' | '.join(cells)} |")
    lines += ["", f"The same tokens in all {sum(map(len, runs.values()))} runs.", ""]
    for tier in tiers:
        some = runs if tier == AT_CROSSING else whole
        shown = ", ".join(
            f"{against(some[tier, 'measured'], some[tier, policy])} against {policy}"
            for policy in policies[tier][:-1]
        )
        lines.append(f"- {tier}: measured takes {shown}.")
    return [
        *lines,
        "",
        "Medians of the rounds' pairs. Seconds compare within a tier only: each has an engine of",
        "its own, and those differ by some 5 % among each other, whichever was opened when.",
    ]


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
    crossing = 2 * CROSSING * size / computed[CROSSING]
    lengths = sum(PROMPTS) + len(PROMPTS) * ANSWER
    half = {"kv_gib": lengths // 2 * size / GIB}
    tiers = {
        "memory": opened(folder, **half),
        "file": opened(folder, swap="disk", **half),
        "disk, twice as fast": opened(folder, 2 * crossing, swap="disk", **half),
        AT_CROSSING: opened(folder, crossing, swap="disk", **half),
        "disk, twice as slow": opened(folder, crossing / 2, swap="disk", **half),
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
        f"token, {THREADS} threads. Disks are emulated;\nat the crossover one carries "
        f"{crossing / 1e6:.0f} MB/s each way, at which {CROSSING} tokens are swapped as fast as "
        "they are\ncomputed."
    )
    return [about, "", *lines]


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one round, few lengths, no file")
    if parser.parse_args().quick:
        global TRIES, ROUNDS, ROUNDS_CROSSING, USERS, LENGTHS
        TRIES, ROUNDS, ROUNDS_CROSSING, USERS, LENGTHS = 2, 1, 0, 4, (32, 256, 1024)
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
