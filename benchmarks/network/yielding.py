"""What a generating node costs its owner's own programs: beside a polite one and a greedy one.

    python benchmarks/network/yielding.py --out benchmarks/results/FILE.md

The node is a node's runner with its engine worker, its sensors and its yielding, generating 8
answers at once without end; there is no network, so that nothing else computes. Politely it lowers
its priority, slows down, takes no new answers and drops its running ones when it would hand them
over. The greedy one runs the same engine as any program does. A round runs every job beside each;
the jobs take turns, so that other people's work on the machine hits all of them.

On a shared machine other people are often at work, and a polite node would hardly generate. So
here the owner is the benchmark: the sensor counts the processor time of its jobs, and of nobody
else. Everything behind the sensor is the product's. A job begins in a quiet moment if one comes
within 5 s; how many cores all others used meanwhile is noted, and samples with more than a quarter
of a core do not count as long as there are enough without.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import anyio
import meter

from starai.core.clock import SystemClock
from starai.engines.base import EngineSpec
from starai.models.catalog import open_model
from starai.models.codec import open_codec
from starai.node.runner import Runner
from starai.node.yielding import Limits, Reading, Yield, Yielding
from starai.node.yielding.priority import lower_node, tamed
from starai.node.yielding.sensors.processor import _Ticks
from starai.protocol import tokens
from starai.protocol.generation import Generation, Sampling
from starai.protocol.tasks import TaskHeader

SELF = Path(__file__).resolve()
SLOTS = 8
#: The node tells its state so often, and every change as soon as it is seen.
TOLD_S, LOOK_S = 0.25, 0.02
#: How long a polite node may take to come back before the next job begins.
BACK_S = 60.0
#: How long to wait for a quiet moment, and how many cores others may use in one.
QUIET_S, OTHERS_MAX = 5.0, 0.25
#: Fewer samples make no median.
ENOUGH = 3
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


# --- the owner's jobs -------------------------------------------------------------------------


def busy_s() -> float:
    """Core seconds that the machine was busy since it started, at whatever priority."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:8]
    user, nice, system, _idle, _wait, irq, soft = map(int, fields)
    return (user + nice + system + irq + soft) * TICK_S


def wait_quiet(node: int = 0) -> None:
    """Wait until others use little of the machine, but not for ever."""
    for _ in range(int(QUIET_S)):
        before = busy_s() - node_s(node)
        time.sleep(1)
        if busy_s() - node_s(node) - before < OTHERS_MAX:
            return


def node_s(node: int) -> float:
    """Core seconds that a node and its engine have used."""
    return meter.cpu_s(meter.tree(node)) if node else 0.0


def measure(kind: str, amount: float, processes: int, node: int = 0) -> dict[str, float]:
    """Run a job in some processes at once: wall and CPU seconds, and what they print.

    ``others`` is how many cores everything else but ``node`` used meanwhile, ``node`` how many
    that one used: no job can have waited longer for it than it ran.
    """
    wait_quiet(node)
    node_before_s = node_s(node)
    before_s = busy_s() - node_before_s
    command = [sys.executable, str(SELF.with_name("owners_jobs.py")), kind, str(amount)]
    began = time.monotonic()
    running = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(processes)]
    cpu_s, told = 0.0, {}
    for child in running:
        assert child.stdout is not None
        told = json.loads(child.stdout.read())
        _, _, usage = os.wait4(child.pid, 0)
        child.returncode = 0
        cpu_s += usage.ru_utime + usage.ru_stime
    wall_s = time.monotonic() - began
    node_after_s = node_s(node)
    others = (busy_s() - node_after_s - before_s - cpu_s) / wall_s
    took = (node_after_s - node_before_s) / wall_s
    figures = {"wall_s": wall_s, "cpu_s": cpu_s, "others": others, "node": took}
    return {"began": began, **figures, **told}


# --- the node, in a process of its own --------------------------------------------------------


class OwnersJobs:
    """The product's arithmetic over the processor time of the benchmark's jobs alone."""

    interval_s = 0.25
    blocking = False

    def __init__(self, parent: int) -> None:
        self.parent = parent
        self.ticks = _Ticks()
        self.used: dict[int, float] = {}
        self.total = 0.0

    def read(self) -> Reading:
        """Cores that children of the benchmark keep busy, other than this node."""
        children = Path(f"/proc/{self.parent}/task/{self.parent}/children").read_text().split()
        for pid in map(int, children):
            if pid == os.getpid():
                continue
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            used = (int(fields[11]) + int(fields[12])) * TICK_S
            self.total += max(0.0, used - self.used.get(pid, 0.0))
            self.used[pid] = used
        others = self.ticks.push(self.total, time.monotonic(), {})
        return Reading(num_cores=os.cpu_count(), others_cores=others)


class Work:
    """What the runner needs of a task, without a wire."""

    def __init__(self, number: int, generation: Generation, root: bytes) -> None:
        zero = "0"
        self.header = TaskHeader(
            number.to_bytes(16, "big"), 0, zero, zero, b"", root, 0, 0, 0, 0, 0, 0, 0, 0, b""
        )
        self.generation = generation
        self.finished = False
        self.num_sent = 0

    async def send(self, ids: bytes, finish: object, *_: object, **__: object) -> None:
        """Count what was generated."""
        self.num_sent += len(ids) // 4
        self.finished = finish is not None


async def be_node(model: str, limits: Limits, parent: int) -> None:
    """Generate without end; a line of state and tokens four times a second."""
    manifest = open_model(model)
    prompt = tokens.pack(open_codec(manifest).encode("Once upon a time"))
    spec = EngineSpec("text", model, slots=SLOTS, threads=os.cpu_count() or 1)
    runner = Runner(spec, SystemClock(), tamed(limits))
    yielding = Yielding(limits, SystemClock(), lambda _pids: [OwnersJobs(parent)])
    if limits.polite:
        lower_node()
    numbers = iter(range(1 << 30))

    async def supply() -> None:
        while True:
            if runner.info is None or yielding.paused:
                await anyio.sleep(0.05)
                continue
            number = next(numbers)
            bias = dict.fromkeys(manifest.eos_token_ids, -100.0)
            sampling = Sampling(number.to_bytes(32, "big"), logit_bias=bias)
            asked = Generation(prompt, 400, sampling, manifest.eos_token_ids, bytes(16))
            with anyio.CancelScope() as scope:
                scopes.append(scope)
                await runner.answer(Work(number, asked, manifest.root))  # type: ignore[arg-type]
            scopes.remove(scope)

    async def hand_over() -> None:
        while True:
            await anyio.sleep(0.1)
            for scope in [*scopes] if yielding.hands_over else ():
                scope.cancel()

    scopes: list[anyio.CancelScope] = []
    async with anyio.create_task_group() as group:
        group.start_soon(runner.run)
        group.start_soon(yielding.run, runner)
        group.start_soon(hand_over)
        for _ in range(SLOTS):
            group.start_soon(supply)
        told_s, told = 0.0, yielding.verdict.step
        while os.getppid() == parent:
            now_s, step = time.monotonic(), yielding.verdict.step
            if step != told or now_s - told_s >= TOLD_S:
                told_s, told = now_s, step
                state = {"step": step.name, "tokens": runner.num_tokens}
                print(json.dumps({**state, "at_s": now_s}), flush=True)
            await anyio.sleep(LOOK_S)
        group.cancel_scope.cancel()


class NodeProcess:
    """The node beside which jobs run, and what it says."""

    def __init__(self, kind: str, model: str) -> None:
        command = [sys.executable, str(SELF), "--node", kind, "--model", model]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        self.pipe = self.process.stdout.fileno()
        os.set_blocking(self.pipe, False)
        self.rest = b""
        self.lines: list[dict[str, float | str]] = []

    def look(self) -> dict[str, float | str]:
        """Its last state."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.pipe, 1 << 16):
                self.rest += data
        *lines, self.rest = self.rest.split(b"\n")
        self.lines += map(json.loads, lines)
        return self.lines[-1] if self.lines else {"step": "", "tokens": 0}

    def wait_generating(self) -> float | None:
        """Wait until it generates, giving way to nothing; how long that took, if it does."""
        began = time.monotonic()
        while time.monotonic() - began < BACK_S:
            before = int(self.look()["tokens"])
            time.sleep(0.5)
            now = self.look()
            if now["step"] == Yield.NOTHING.name and int(now["tokens"]) > before > 0:
                return time.monotonic() - began
        return None

    def speed(self) -> float:
        """Tokens a second now."""
        before = self.look()
        time.sleep(1)
        after = self.look()
        seconds = float(after["at_s"]) - float(before["at_s"])
        return (int(after["tokens"]) - int(before["tokens"])) / max(seconds, 0.1)

    def paused_after(self, began: float) -> list[float]:
        """Seconds from a moment to each state since in which no new tasks are taken."""
        self.look()
        since = [line for line in self.lines if float(line["at_s"]) > began]
        return [float(one["at_s"]) - began for one in since if one["step"] in _PAUSED]

    def stop(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()


# --- the measurement --------------------------------------------------------------------------


def jobs(calibrated: dict[str, float]) -> dict[str, Callable[[int], dict[str, float]]]:
    """The owner's jobs by what a person calls them."""
    cores = os.cpu_count() or 1
    return {
        "sha256 on every core": lambda node: measure("hash", calibrated["hash"], cores, node),
        "sha256 on one core": lambda node: measure("hash", calibrated["hash"], 1, node),
        "copying memory on one core": lambda node: measure("copy", calibrated["copy"], 1, node),
        "wake 50 times a second": lambda node: measure("react", 4, 1, node),
    }


def calibrate(seconds: float) -> dict[str, float]:
    """Amounts that take about so long alone."""
    nothing = measure("hash", 0, 1)["cpu_s"]
    hashed = measure("hash", 1000, 1)["cpu_s"] - nothing
    copied = measure("copy", 8, 1)["cpu_s"] - nothing
    return {
        "hash": max(100, round(1000 * seconds / hashed)),
        "copy": max(1, round(8 * seconds / copied)),
    }


def run_all(options: argparse.Namespace) -> dict[str, object]:
    """Every job beside every kind of node, in turns."""
    all_jobs = jobs(calibrate(options.seconds))
    samples: dict[str, dict[str, list[dict[str, float]]]] = {
        name: {kind: [] for kind in ("alone", "polite", "greedy")} for name in all_jobs
    }
    back_s: list[float] = []
    reacted_s: list[float] = []
    speed: dict[str, list[float]] = {"polite": [], "greedy": []}
    end = time.monotonic() + 60 * options.minutes
    while time.monotonic() < end and not all(
        len([one for one in of_kind if one["others"] <= OTHERS_MAX]) >= options.rounds
        for of_job in samples.values()
        for of_kind in of_job.values()
    ):
        for name, job in all_jobs.items():
            samples[name]["alone"].append(job(0))
        for kind in ("polite", "greedy"):
            node = NodeProcess(kind, options.model)
            for name, job in all_jobs.items():
                waited_s = node.wait_generating()
                if waited_s is None:
                    continue  # too busy a machine for a node that computes when nobody else does
                speed[kind].append(node.speed())
                sample = job(node.process.pid)
                samples[name][kind].append(sample)
                if kind == "polite":
                    back_s.append(waited_s)
                    if "wake" not in name:
                        reacted_s += node.paused_after(sample["began"])[:1]
            node.stop()
    return {"samples": samples, "back_s": back_s, "speed": speed, "reacted_s": reacted_s}


_PAUSED = (Yield.PAUSE.name, Yield.HAND_OVER.name, Yield.UNLOAD.name)


def median(samples: list[dict[str, float]], field: str) -> float:
    """Of one figure."""
    return statistics.median(one[field] for one in counted(samples))


def counted(samples: list[dict[str, float]]) -> list[dict[str, float]]:
    """The samples of quiet moments, or all if there are too few."""
    quiet = [one for one in samples if one["others"] <= OTHERS_MAX]
    assert samples, "the machine was too busy for a polite node to generate at all"
    return quiet if len(quiet) >= ENOUGH else samples


def report(measured: dict[str, object], options: argparse.Namespace, load: list[float]) -> str:
    """The result file."""
    samples = measured["samples"]
    assert isinstance(samples, dict)
    about = (__doc__ or "").split("\n\n")
    command = f"python benchmarks/network/yielding.py --rounds {options.rounds}"
    machine = (
        f"{os.cpu_count()} cores {_processor()} · Python {platform.python_version()} · "
        f"Linux {platform.release()} · load average {load[0]:.2f} at the start, {load[1]:.2f} at "
        "the end (the machine is shared)"
    )
    setting = (
        f"Model: {Path(options.model).name}, {SLOTS} answers at once, {os.cpu_count()} threads. "
        "Medians; in brackets, slower than alone; what the node used meanwhile. The goal is 5 %."
    )
    lines = ["# What a generating node costs its owner, 2026-11-21", ""]
    lines += [f"`{command} --seconds {options.seconds:g}` · {machine}", ""]
    lines += [" ".join(about[2].split()), "", " ".join(about[3].split()), "", setting, ""]
    lines += ["| the owner's job | alone | beside a polite node | beside a greedy node | samples |"]
    lines += ["|---|---|---|---|---|"]
    for name, kinds in samples.items():
        wanted = (("p50", " ms late, median"), ("p99", " ms late, p99"))
        if "wake" not in name:
            wanted = (("wall_s", " s"), ("cpu_s", " s of CPU"))
        for field, unit in wanted:
            alone = median(kinds["alone"], field)
            cells = [f"{alone:.2f}{unit}"]
            for kind in ("polite", "greedy"):
                value = median(kinds[kind], field)
                slower = f" ({100 * (value / alone - 1):+.0f} %)" if field.endswith("_s") else ""
                if field == "wall_s":
                    slower += f", node {median(kinds[kind], 'node'):.2f} cores"
                cells.append(f"{value:.2f}{unit}{slower}")
            numbers = "/".join(str(len(counted(of_kind))) for of_kind in kinds.values())
            others = max(median(of_kind, "others") for of_kind in kinds.values())
            cells.append(f"{numbers}, others up to {others:.2f} cores")
            lines.append(f"| {name} | {' | '.join(cells)} |")
    speed = measured["speed"]
    assert isinstance(speed, dict)
    told = (
        f"Tokens a second just before the jobs: polite {statistics.median(speed['polite']):.0f}, "
        f"greedy {statistics.median(speed['greedy']):.0f}. From the start of a job's process to "
        f"the pause: {_spread(measured['reacted_s'])}. From the end of a job to full speed: "
        f"{_spread(measured['back_s'])}."
    )
    samples_json = json.dumps(measured, default=float)
    lines += ["", told, "", "Every sample:", "", "```json", samples_json, "```", ""]
    return "\n".join(lines)


def _spread(values: object) -> str:
    assert isinstance(values, list)
    if not values:
        return "not seen"
    return f"median {statistics.median(values):.2f} s, longest {max(values):.2f} s"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def main() -> None:
    """Be the benchmark, or one of its processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=10, help="when to stop at the latest")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long a job takes alone")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--node", choices=("polite", "greedy"))
    options = parser.parse_args()
    if options.node:
        limits = Limits(polite=options.node == "polite")
        anyio.run(be_node, options.model, limits, os.getppid())
        return
    load = [os.getloadavg()[0]]
    measured = run_all(options)
    load.append(os.getloadavg()[0])
    text = report(measured, options, load)
    print(text)
    if options.out:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
