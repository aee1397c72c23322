"""Memory over many requests: is what stays resident weights and pool, and does it stay flat?

Runs thousands of short requests of varying lengths through the text engine with the embedded
model, in a process of its own, and reads its resident memory as it goes. Run it with
``python benchmarks/engine/engine_longrun.py [--requests N] [--model NAME]``; writes a dated result.
"""

from __future__ import annotations

import argparse
import datetime as dt
import importlib
import os
import platform
import random
import subprocess
import sys
import time
from pathlib import Path

from starai.engines.base import Engine, EngineSpec
from starai.engines.registry import open_engine
from starai.models.catalog import open_model
from starai.protocol import tokens
from starai.protocol.generation import Generation, Sampling

RESULTS = Path(__file__).resolve().parents[1] / "results"
SLOTS = 8
FLOAT32_BYTES = 4
SAMPLES = 20
PROMPT_MAX, ANSWER_MAX = 48, 8
#: Small enough that every page of the pool is in use early: the system commits them as they are.
KV_GIB = 0.01
#: The allocator's arenas and the caches fill during the first share; growth is counted behind it.
WARM_UP = 0.1
#: What may come and go without being growth: pages that the allocator keeps or returns.
FLAT_MB = 4.0


def resident_mb() -> float:
    """Resident memory of this process, in 10^6 bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def generation(number: int, chance: random.Random, vocab_size: int) -> Generation:
    """A short request; every fourth begins like others, so that sharing and eviction work too."""
    length = chance.randint(4, PROMPT_MAX)
    source = random.Random(number % 7) if number % 4 == 0 else chance
    prompt = [source.randrange(3, vocab_size) for _ in range(length)]
    sampling = Sampling(number.to_bytes(32, "big"), temperature=0.0 if number % 2 else 0.9)
    return Generation(tokens.pack(prompt), chance.randint(1, ANSWER_MAX), sampling, (), bytes(16))


def serve(engine: Engine, num_requests: int) -> list[tuple[int, float]]:
    """Run all requests, never more than the slots at once; (answered, resident MB) over time."""
    chance = random.Random(1)
    admitted = answered = 0
    samples: list[tuple[int, float]] = []
    while answered < num_requests:
        while admitted < num_requests and admitted - answered < SLOTS:
            asked = generation(admitted, chance, engine.info.vocab_size)
            engine.admit(admitted.to_bytes(8, "big"), asked)
            admitted += 1
        for emitted in engine.step():
            if emitted.error:
                raise SystemExit(f"a request failed: {emitted.error}")
            answered += emitted.finish is not None
        if answered >= num_requests * (len(samples) + 1) // SAMPLES:
            samples.append((answered, resident_mb()))
    return samples


def measure(model: str, num_requests: int) -> int:
    """Print the table; the exit status says whether memory stayed flat."""
    importlib.import_module("starai.engines.text.engine")
    before = resident_mb()
    weights = open_model(model, None).num_parameters * FLOAT32_BYTES / 1e6
    pool = KV_GIB * (1 << 30) / 1e6
    options = {"kv_gib": KV_GIB, "swap_gib": 0.0}
    engine = open_engine(EngineSpec("text", model, slots=SLOTS, threads=1, options=options))
    opened = resident_mb()
    begun = time.perf_counter()
    samples = serve(engine, num_requests)
    took = time.perf_counter() - begun
    warm = [size for answered, size in samples if answered >= WARM_UP * num_requests]
    rest = warm[-1] - before - weights - pool
    growth = warm[-1] - warm[0]
    flat = growth <= FLAT_MB
    lines = [
        f"| libraries, nothing opened | {before:.1f} MB |",
        "|---|---|",
        f"| opened: weights are {weights:.1f} MB in float32 | {opened:.1f} MB |",
        *(f"| after {answered:,} requests | {size:.1f} MB |" for answered, size in samples),
        "",
        (
            f"At the end {warm[-1]:.1f} MB = libraries {before:.1f} + weights {weights:.1f} + pool "
            f"{pool:.1f} + {rest:.1f} else (definitions imported on opening, scratch, books)."
        ),
        (
            f"Growth behind the first {WARM_UP:.0%} of requests: {growth:+.1f} MB, "
            f"{'flat' if flat else 'NOT FLAT'}. {num_requests:,} requests in {took:.0f} s."
        ),
    ]
    print("\n".join(lines))
    keep(model, lines)
    return 0 if flat else 1


def keep(model: str, lines: list[str]) -> None:
    """Write the result file."""
    today = dt.datetime.now(dt.UTC).date().isoformat()
    hardware = f"{os.cpu_count()} cores {platform.machine()}"
    head = [
        f"# Memory over many requests, {hardware}, {today}",
        "",
        (
            f"`python benchmarks/engine/engine_longrun.py` · {model} ·"
            f" Python {platform.python_version()}"
        ),
        "",
    ]
    file = RESULTS / f"engine-longrun_{hardware.replace(' ', '-')}_{today}.md"
    file.write_text("\n".join([*head, *lines, ""]))
    print(f"written to {file}")


def main() -> None:
    """Measure in a fresh process, so that nothing else is resident."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.inside:
        raise SystemExit(measure(asked.model, asked.requests))
    command = [sys.executable, __file__, "--inside", "--model", asked.model]
    done = subprocess.run([*command, "--requests", str(asked.requests)], check=False)
    raise SystemExit(done.returncode)


if __name__ == "__main__":
    main()
