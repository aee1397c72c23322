"""What paged KV memory wastes, shares and finds again: the books alone, on real traces.

``python benchmarks/engine/memory.py`` needs no model and no torch: `PagedMemory` and `Scheduler` do
on lengths of real requests what they do in the engine, and a dated file in benchmarks/results says:

- the share of memory that holds no token, by block size, beside reserving ahead;
- what copy-on-write saves when several answers continue one prompt, and in beam search;
- how much of a trace's prompts the prefix cache finds, by its size.

Takes about three minutes; ``--quick`` shows in seconds that everything runs. Data:
``STARAI_SHARED_DATA``, else ``shared/data`` beside the repository.
"""

from __future__ import annotations

import argparse
import csv
import datetime as dt
import json
import math
import os
import platform
import random
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from starai.engines.paging.memory import PagedMemory

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).resolve().parents[1] / "results"
DATA = Path(os.environ.get("STARAI_SHARED_DATA", ROOT.parent / "shared" / "data")) / "traces"
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
#: Sequences at a time, and steps between two looks at the memory.
AT_ONCE, LOOK = 32, 40
#: Mean prompt and answer of the two data sets of the PagedAttention paper (its figure 11), and the
#: memory that it reports saved (section 6.3): parallel sampling, beam search.
PAPER = {
    "ShareGPT": (161, 338, "16.2 to 30.5 %", "44.3 to 66.3 %"),
    "Alpaca": (19, 58, "6.1 to 9.8 %", "37.6 to 55.2 %"),
}
#: Spread of the logarithm of drawn lengths.
SIGMA = 0.8
#: A block of the Mooncake trace, and blocks of memory to try.
MOONCAKE_TOKENS = 512
CACHES = (500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000)
#: Bytes of a token's KV memory, of the Qwen3-0.6B shape in bfloat16.
KV_BYTES = 114_688


def azure() -> list[tuple[int, int]]:
    """Prompt and answer lengths of the Azure conversation trace, in its order."""
    with (DATA / "azure2023" / "AzureLLMInferenceTrace_conv.csv").open() as file:
        rows = [(int(r["ContextTokens"]), int(r["GeneratedTokens"])) for r in csv.DictReader(file)]
    return [(prompt, answer) for prompt, answer in rows if prompt > 0 and answer > 0]


def wrapped(text: str) -> list[str]:
    """A paragraph in lines."""
    return [*textwrap.wrap(" ".join(text.split()), 100, break_on_hyphens=False), ""]


# -- waste by block size


def rooms(length: int, size: int) -> int:
    """The sum of ``ceil(n / size) * size`` over n from 1 to ``length``."""
    whole, rest = divmod(length, size)
    return size * (size * whole * (whole + 1) // 2 + rest * (whole + 1))


def life_waste(requests: Sequence[tuple[int, int]], size: int) -> float:
    """The share of room without a token, over all steps of all requests."""
    held = room = 0
    for prompt, answer in requests:
        last, first = prompt + answer, prompt
        held += (last * (last + 1) - first * (first + 1)) // 2
        room += rooms(last, size) - rooms(first, size)
    return 1 - held / room


def reserved_waste(requests: Sequence[tuple[int, int]], reserve: object) -> float:
    """The same where all that is reserved for a request is reserved from its beginning."""
    held = room = 0
    for prompt, answer in requests:
        last = prompt + answer
        held += (last * (last + 1) - prompt * (prompt + 1)) // 2
        room += answer * reserve(last)  # type: ignore[operator]
    return 1 - held / room


def served_waste(requests: Sequence[tuple[int, int]], size: int) -> tuple[float, int]:
    """What `PagedMemory` itself reports while it serves so many at once; and most blocks held."""
    longest = sorted(-(-(p + a) // size) for p, a in requests)[-AT_ONCE:]
    memory = PagedMemory(sum(longest), block_tokens=size, share_prefixes=False)
    ids = [0] * max(p + a for p, a in requests)
    line = iter(requests)
    running: dict[bytes, tuple[int, int]] = {}
    held = room = most = steps = number = 0
    while True:
        while len(running) < AT_ONCE and (request := next(line, None)):
            number += 1
            key = number.to_bytes(4, "big")
            prompt, answer = request
            memory.open(key, ids[:1])
            memory.reach(key, prompt)
            memory.note(key, ids, prompt)
            running[key] = (prompt, prompt + answer)
        if not running:
            break
        for key, (length, end) in list(running.items()):
            memory.reach(key, length + 1)
            memory.note(key, ids, length + 1)
            if length + 1 == end:
                memory.close(key)
                del running[key]
            else:
                running[key] = (length + 1, end)
        if steps % LOOK == 0:
            report = memory.report()
            held += report.tokens_held
            room += report.blocks_used * size
            most = max(most, report.blocks_used)
        steps += 1
    memory.check_integrity()
    return 1 - held / room, most


def waste(quick: bool) -> list[str]:
    """Row f, first half."""
    requests = azure()
    some = requests[: 100 if quick else 1500]
    longest = max(p + a for p, a in requests)
    prompt = sum(p for p, _ in requests) / len(requests)
    answer = sum(a for _, a in requests) / len(requests)
    lines = [
        "## Waste by block size (row f)",
        "",
        *wrapped(
            f"""Lengths of the {len(requests):,} requests of the Azure conversation trace of 2023
            (mean {prompt:.0f} in, {answer:.0f} out). Computed: over every step of every request,
            the share of its blocks' room that holds no token yet. Served: what the memory reports
            while it serves the first {len(some):,} of them, {AT_ONCE} at a time."""
        ),
        "| tokens a block | computed, all requests | served | blocks at most |",
        "|---|---|---|---|",
    ]
    for size in SIZES:
        served, most = served_waste(some, size)
        lines.append(f"| {size} | {life_waste(requests, size):.2%} | {served:.2%} | {most:,} |")
    ahead = {
        f"the longest of all ({longest:,})": lambda last: longest,
        "the next power of two": lambda last: 1 << (last - 1).bit_length(),
        "its own length, known ahead": lambda last: last,
    }
    lines += ["", "| reserved from the beginning, without blocks | wasted |", "|---|---|"]
    for name, reserve in ahead.items():
        lines.append(f"| {name} | {reserved_waste(requests, reserve):.1%} |")
    return [*lines, ""]


# -- copy-on-write


def drawn(chance: random.Random, mean: float) -> int:
    """A length, log-normal about a mean."""
    return max(1, round(chance.lognormvariate(math.log(mean) - SIGMA**2 / 2, SIGMA)))


def near(chance: random.Random, answer: int) -> list[int]:
    """Lengths of six answers to one prompt, within half of one length."""
    return [max(1, round(answer * chance.uniform(0.5, 1.5))) for _ in range(6)]


def short_of(requests: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Requests whose answer is at least as long as half their prompt: chats that just began."""
    return [(p, a) for p, a in requests if p <= 2 * a]


@dataclass
class Saved:
    """Blocks that tables would take unshared, and those that they do not take; summed up."""

    unshared: int = 0
    saved: int = 0
    copies: int = 0

    def look(self, memory: PagedMemory) -> None:
        """Add what is held now."""
        report = memory.report()
        if report.sharing_saves_blocks != report.formula_saves_blocks:
            raise SystemExit("sharing saves other than the formula says")
        self.saved += report.sharing_saves_blocks
        self.unshared += report.sharing_saves_blocks + report.blocks_used

    @property
    def share(self) -> float:
        """The share of blocks that need not be there."""
        return self.saved / self.unshared


def begun(memory: PagedMemory, prompt: int, ids: Sequence[int]) -> bytes:
    """A sequence of one prompt, computed."""
    key = bytes(4)
    memory.open(key, ids[:1])
    memory.reach(key, prompt)
    memory.note(key, ids, prompt)
    return key


def sampling(requests: Sequence[tuple[int, list[int]]], saved: Saved) -> None:
    """Several answers of their own lengths to each prompt, a token a step."""
    for prompt, answers in requests:
        longest = prompt + max(answers)
        memory = PagedMemory(len(answers) * (longest // 16 + 2), share_prefixes=False)
        ids = [0] * longest
        first = begun(memory, prompt, ids)
        keys = [first, *(n.to_bytes(4, "big") for n in range(1, len(answers)))]
        for key in keys[1:]:
            memory.fork(first, key)
        ends = {key: prompt + answer for key, answer in zip(keys, answers, strict=True)}
        for length in range(prompt + 1, longest + 1):
            for key in [key for key, end in ends.items() if end >= length]:
                memory.reach(key, length)
                memory.note(key, ids, length)
            if length % 8 == 0:
                saved.look(memory)
            for key in [key for key, end in ends.items() if end == length]:
                memory.close(key)
                del ends[key]
        saved.copies += memory.report().copies


def beams(prompt: int, answer: int, width: int, chance: random.Random, saved: Saved) -> None:
    """Beam search where candidates' log-probabilities are drawn: the likeliest of all go on."""
    memory = PagedMemory(width * ((prompt + answer) // 16 + 3), share_prefixes=False)
    ids = [0] * (prompt + answer)
    alive = [(0.0, begun(memory, prompt, ids))]
    number = 0
    for length in range(prompt + 1, prompt + answer + 1):
        found = []
        for score, key in alive:
            logits = sorted((chance.gauss(0, 2.5) for _ in range(50)), reverse=True)
            total = math.log(sum(map(math.exp, logits)))
            found += [(score + logit - total, key) for logit in logits[: 2 * width]]
        best = sorted(found, reverse=True)[:width]
        parents: dict[bytes, int] = {}
        after = []
        for score, key in best:
            parents[key] = parents.get(key, 0) + 1
            if parents[key] > 1:
                number += 1
                child = number.to_bytes(4, "big")
                memory.fork(key, child)
                after.append((score, child))
            else:
                after.append((score, key))
        for _, key in alive:
            if key not in parents:
                memory.close(key)
        alive = after
        for _, key in alive:
            memory.reach(key, length)
            memory.note(key, ids, length)
        if length % 8 == 0:
            saved.look(memory)
    saved.copies += memory.report().copies
    memory.check_integrity()


def sharing(quick: bool) -> list[str]:
    """Row f, second half."""
    count, searched = (3, 1) if quick else (60, 8)
    chance = random.Random(1)
    trace = azure()
    few = short_of(trace)
    sources: dict[str, list[tuple[int, list[int]]]] = {}
    for name, (prompt, answer, *_) in PAPER.items():
        drew = [(drawn(chance, prompt), drawn(chance, answer)) for _ in range(count)]
        sources[name + "'s means"] = [(p, near(chance, a)) for p, a in drew]
        sources[name + "'s means, lengths apart"] = [
            (p, [a, *(drawn(chance, answer) for _ in range(5))]) for p, a in drew
        ]
    for name, of in (("Azure trace", trace), ("Azure, beginnings", few)):
        sources[name] = [(p, near(chance, a)) for p, a in chance.sample(of, count)]
    lines = [
        "## Copy-on-write (row f)",
        "",
        *wrapped(
            f"""Share of 16-token blocks that need not be there because sequences share them, over
            the time that they run; at every look, sharing saves what the formula (n - 1 for a
            block shared by n) says. Lengths are drawn (log-normal, deviation {SIGMA}) about the
            means of the paper's data sets, or taken from the Azure trace; *beginnings* are its
            {len(few):,} requests whose prompt is at most twice their answer. Answers to one prompt
            are within half of one length; where *apart*, each is drawn by itself, so that the
            longest runs alone for long. In beam search the candidates' log-probabilities are drawn
            (50 Gaussian logits of deviation 2.5), and the likeliest of all beams' go on: such beams
            soon descend from one, more so than a real model's, whose beams say nearly the same for
            long. No search of n beams can save more than (n - 1) / n."""
        ),
        "| prompts | mean in, out | n=2 | 3 | 4 | 5 | 6 | beams of 2 | 4 | 6 | copies |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, requests in sources.items():
        cells = []
        copies = 0
        for n in (2, 3, 4, 5, 6):
            saved = Saved()
            sampling([(p, answers[:n]) for p, answers in requests], saved)
            cells.append(f"{saved.share:.1%}")
            copies += saved.copies
        for width in (2, 4, 6):
            saved = Saved()
            for prompt, answers in requests[:searched]:
                beams(prompt, min(answers[0], 512), width, chance, saved)
            cells.append(f"{saved.share:.1%}")
            copies += saved.copies
        inside = sum(p for p, _ in requests) / len(requests)
        out = sum(a for _, answers in requests for a in answers) / len(requests) / 6
        shown = " | ".join(cells)
        lines.append(f"| {name} | {inside:.0f}, {out:.0f} | {shown} | {copies:,} |")
    lines.append("")
    for name, (_, _, parallel, beam) in PAPER.items():
        lines.append(f"- The paper, {name}: {parallel} (n = 2 to 6), {beam} (widths 2 to 6).")
    return [*lines, ""]


# -- the prefix cache on a trace


def mooncake(quick: bool) -> list[tuple[int, list[int]]]:
    """Prompt lengths and names of their blocks, in the order of arrival."""
    rows = []
    with (DATA / "mooncake" / "conversation_trace.jsonl").open() as file:
        for line in file:
            row = json.loads(line)
            rows.append((row["input_length"], row["hash_ids"]))
    return rows[:300] if quick else rows


def replay(rows: Sequence[tuple[int, list[int]]], num_blocks: int) -> tuple[int, int]:
    """Tokens found in a prefix cache of so many blocks, and blocks evicted."""
    memory = PagedMemory(num_blocks, block_tokens=MOONCAKE_TOKENS)
    found = 0
    for length, names in rows:
        ids = [name for name in names for _ in range(MOONCAKE_TOKENS)][:length]
        found += memory.open(b"one", ids)
        memory.reach(b"one", len(ids))
        memory.note(b"one", ids, len(ids))
        memory.close(b"one")
    memory.check_integrity()
    return found, memory.report().evictions


def ideal(rows: Sequence[tuple[int, list[int]]]) -> tuple[int, int, int, int]:
    """Without any cache of ours: blocks named, named before, tokens in whole such, and distinct."""
    seen: set[int] = set()
    named = known = tokens = 0
    for length, names in rows:
        whole = min(len(names), (length - 1) // MOONCAKE_TOKENS)
        named += len(names)
        known += sum(name in seen for name in names)
        prefix = next((n for n, name in enumerate(names[:whole]) if name not in seen), whole)
        tokens += prefix * MOONCAKE_TOKENS
        seen.update(names)
    return named, known, tokens, len(seen)


def prefixes(quick: bool) -> list[str]:
    """Row g."""
    rows = mooncake(quick)
    named, known, tokens, distinct = ideal(rows)
    total = sum(length for length, _ in rows)
    lines = [
        "## The prefix cache on the Mooncake conversation trace (row g)",
        "",
        *wrapped(
            f"""{len(rows):,} requests, {total / 1e6:.1f} M prompt tokens, {named:,} blocks of
            {MOONCAKE_TOKENS} tokens, {distinct:,} different. The trace's own bound:
            {known / named:.2%} of its blocks were there before. Of its tokens that is
            {tokens / total:.2%}, because the last block of most prompts is not full, counts as a
            block and is seldom found. Requests one after the other, prompts only, in `PagedMemory`
            with chained SHA-256; a cached block goes when it was used longest ago.
            GB of KV for the Qwen3-0.6B shape in bfloat16."""
        ),
        "| blocks | M tokens | GB | found | of what can be found | evicted |",
        "|---|---|---|---|---|---|",
    ]
    for size in CACHES[:3] if quick else CACHES:
        found, evicted = replay(rows, size)
        held = size * MOONCAKE_TOKENS
        lines.append(
            f"| {size:,} | {held / 1e6:.1f} | {held * KV_BYTES / 1e9:,.0f} | {found / total:.2%} | "
            f"{found / tokens:.2%} | {evicted:,} |"
        )
    return [*lines, ""]


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few requests, no file")
    quick = parser.parse_args().quick
    began, load = time.perf_counter(), os.getloadavg()[0]
    lines: list[str] = []
    for part in (waste, sharing, prefixes):
        print(part.__name__, flush=True)
        lines += part(quick)
    hardware = f"{os.cpu_count()} cores {platform.machine()}"
    today = dt.datetime.now(dt.UTC).date().isoformat()
    head = [
        f"# The books of KV memory, {hardware}, {today}",
        "",
        *wrapped(
            f"""`python benchmarks/engine/memory.py` · Python {platform.python_version()} · load
            average {load:.2f} at the start, {os.getloadavg()[0]:.2f} at the end · took
            {time.perf_counter() - began:.0f} s; no figure depends on the machine's speed."""
        ),
    ]
    text = "\n".join([*head, *lines])
    print(text)
    if not quick:
        (RESULTS / f"memory_{hardware.replace(' ', '-')}_{today}.md").write_text(text)


if __name__ == "__main__":
    main()
