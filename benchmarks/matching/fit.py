"""How well speed is predicted, on measured pairs of model and device; and a cluster's placement.

    python benchmarks/matching/fit.py            # seconds; writes a result and its plot
    python benchmarks/matching/fit.py --refit    # prints the factors that the data ask for

Reads ../shared/data/devices (or STARAI_SHARED_DATA): 102 measured pairs, mostly Ollama with its
default 4-bit files. No device there can be measured here, so peak bandwidths of data sheets stand
in for what a node measures of itself.
"""

from __future__ import annotations

import argparse
import csv
import datetime as dt
import os
import platform
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import msgspec
import numpy as np

from starai.devices import Gpu
from starai.devices.presets import find_preset, look_up
from starai.fitting import FACTORS, Factors, Pool, fit, pools, predict, work_of
from starai.fitting.base import PoolKind
from starai.models.library import QUANTISATIONS, LibraryModel, find, library

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("STARAI_SHARED_DATA", ROOT.parent / "shared" / "data"))
RESULTS = ROOT / "benchmarks" / "results"

MODELS = {
    "DeepSeek R1 14b": ("deepseek-r1-distill-14b", "Q4_K_M"),
    "DeepSeek R1 671b": ("deepseek-r1-671b", "Q4_K_M"),
    "gpt-oss 20b": ("gpt-oss-20b", "MXFP4"),
    "Llama 3.2:3b": ("llama-3.2-3b", "Q4_K_M"),
    "Llama 3.1:70b": ("llama-3.1-70b", "Q4_K_M"),
    "Llama 3.1:405b": ("llama-3.1-405b", "Q4_K_M"),
}
#: Processors: peak GB/s of their memory, and peak TFLOPS in 32-bit floats (cores x clock x width).
PROCESSORS = {
    "Framework Mainboard": (256.0, 1.6),
    "Framework 13": (89.6, 0.55),
    "Radxa Orion O6": (88.0, 0.45),
    "Minisforum MS-R1": (88.0, 0.45),
    "GMKt": (25.6, 0.23),
    "AmpereOne": (332.8, 9.8),
    "Pi 5": (17.1, 0.15),
    "Pi 400": (12.8, 0.058),
    "Dell Optiplex 780": (10.7, 0.085),
    "DC-ROMA": (102.4, 0.032),
    "HiFive": (51.2, 0.011),
}
#: Systems whose GPU is named by the whole.
BY_SYSTEM = {
    "Mac Studio (M3 Ultra": "m3ultra-512gb",
    "M1 Ultra": "m1ultra-64gb",
    "M1 Max": "m1max-64gb",
    "M4 Mac mini": "m4-32gb",
    "Dell Pro Max with GB10": "gb10-128gb",
    "Framework Mainboard (": "strix-halo-128gb",
    "Framework Desktop": "strix-halo-128gb",
    "Ryzen 9 7950X (Nvidia 4070 Ti Super)": "rtx4070tisuper-16gb",
    "System76 Thelio Astra (Nvidia A400)": "a400-4gb",
}
#: Hosts whose processor and bus keep a GPU waiting.
SLOW = ("Pi ", "HiFive")
Group = tuple[str, bool]


@dataclass(frozen=True)
class Row:
    """One measured pair; ``chip`` is what is left out together."""

    system: str
    chip: str
    model: LibraryModel
    quantisation: str
    pool: Pool
    measured: float

    @property
    def group(self) -> Group:
        return (self.pool.kind, self.pool.slow_host)

    def error(self, factors: Mapping[PoolKind, Factors]) -> float:
        work = work_of(self.model, QUANTISATIONS[self.quantisation])
        return predict(work, self.pool, 256, factors).decode_tps / self.measured - 1


def measured_rows() -> tuple[list[Row], list[str]]:
    """The rows that are one device with the model in one kind of memory, and the others."""
    kept, left = [], []
    with (DATA / "devices/llm_speed_geerling.csv").open() as file:
        for line in csv.DictReader(file):
            name, quantisation = MODELS[line["model"]]
            model, system = find(name), line["system"]
            split = line["processor"] == "GPU/CPU" and "4090" in system
            if "Cluster" in system or split:
                why = "layers split between GPU and processor" if split else "several machines"
                left.append(f"{line['model']} on {system}: {why}")
                continue
            chip, pool = _pool(system, line["processor"])
            rate = float(line["tokens_per_s"])
            kept.append(Row(system, chip, model, quantisation, pool, rate))
    return kept, left


def _pool(system: str, processor: str) -> tuple[str, Pool]:
    if processor == "CPU":
        name = next(name for name in PROCESSORS if system.startswith(name))
        read, tflops = PROCESSORS[name]
        return name, Pool(name, "cpu", 1 << 50, read * 1e9, tflops * 1e12)
    known = next((i for start, i in BY_SYSTEM.items() if system.startswith(start)), None)
    preset = find_preset(known) if known else None
    if preset is None:
        inside = re.findall(r"\(([^)]*)\)", system)[-1]
        vendor = "nvidia" if "nvidia" in inside.lower() else "intel"
        vendor = "amd" if "amd" in inside.lower() else vendor
        number = re.sub(r"Nvidia (?=\d)", "Nvidia RTX ", inside)
        number = re.sub(r"AMD (?=\d)", "AMD RX ", number)
        preset = look_up(Gpu(vendor, number))
    if preset is None:
        raise SystemExit(f"no preset for {system}")
    slow = system.startswith(SLOW)
    rates = preset.rates
    return preset.id, Pool(
        preset.name, preset.kind, 1 << 50, rates.read_bytes_per_s, rates.operations_per_s, slow
    )


# -- fitting: the two numbers of each group that make the mean absolute log error least


def fitted(rows: Iterable[Row]) -> dict[Group, tuple[float, float]]:
    """Per group the share of memory and either seconds a token, or a CPU's share of arithmetic."""
    grouped: dict[Group, list[Row]] = defaultdict(list)
    for row in rows:
        grouped[row.group].append(row)
    return {group: _best(some) for group, some in grouped.items()}


def _best(rows: list[Row]) -> tuple[float, float]:
    shares = np.arange(0.08, 1.0, 0.01)
    second = np.geomspace(0.02, 1, 60) if rows[0].pool.kind == "cpu" else np.arange(0, 12e-3, 1e-4)
    total = np.zeros((len(shares), len(second)))
    for row in rows:
        kind = QUANTISATIONS[row.quantisation]
        ideal = msgspec.structs.replace(FACTORS[row.pool.kind], memory=1, slow_memory=1, token_s=0)
        ideal = msgspec.structs.replace(ideal, slow_token_s=0, token_arithmetic=1e9)
        reading = (
            1 / predict(work_of(row.model, kind), row.pool, 256, {row.pool.kind: ideal}).decode_tps
        )
        time = reading / shares[:, None]
        if row.pool.kind == "cpu":
            work = 2 * row.model.active_parameters / row.pool.operations_per_s
            time = np.maximum(time, work / second[None, :])
        else:
            time = time + second[None, :]
        total += np.abs(np.log(time * row.measured))
    at = np.unravel_index(np.argmin(total), total.shape)
    return float(shares[at[0]]), float(second[at[1]])


def with_fitted(groups: Mapping[Group, tuple[float, float]]) -> dict[PoolKind, Factors]:
    """`FACTORS` with what was fitted in their place."""
    made = dict(FACTORS)
    for (kind, slow), (share, second) in groups.items():
        old = made[kind]
        if kind == "cpu":
            change = {"memory": share, "token_arithmetic": second}
        elif slow:
            change = {"slow_memory": share, "slow_token_s": second}
        else:
            change = {"memory": share, "token_s": second}
        made[kind] = msgspec.structs.replace(old, **change)
    return made


def left_out_errors(rows: list[Row]) -> list[float]:
    """Each row's error under factors that were fitted without its chip."""
    made = {}
    for chip in {row.chip for row in rows}:
        made[chip] = with_fitted(fitted(row for row in rows if row.chip != chip))
    return [row.error(made[row.chip]) for row in rows]


# -- the cluster


#: Data sheets for the trace's names. G2 and G3 are undisclosed; the trace's own simulator counts
#: them as 20,000 and 30,000 MiB, and their speed is taken to be a T4's and a V100's.
OPENB = {
    "T4": ("t4-16gb", 16),
    "P100": ("p100-16gb", 16),
    "V100M16": ("v100-16gb", 16),
    "V100M32": ("v100-32gb", 32),
    "A10": ("a10-24gb", 24),
    "G2": ("t4-16gb", 20000 / 1024),
    "G3": ("v100-32gb", 30000 / 1024),
}
#: A data-centre core: 4 GB/s of its socket's bandwidth, 40 GFLOPS.
CORE_READ, CORE_OPERATIONS = 4e9, 0.04e12
#: Billions of weights from which on a model is called so.
CLASSES = ((100, "above 100B"), (60, "70B"), (20, "24-47B"), (9, "12-14B"), (3, "3-8B"))


def placed() -> Counter[tuple[str, str, str]]:
    """Of each node of the trace: hardware, how many nodes, and what they get."""
    found: Counter[tuple[str, str, str]] = Counter()
    with (DATA / "traces/openb/openb_node_list_all_node.csv").open() as file:
        seen: dict[tuple[str, ...], tuple[str, str, str]] = {}
        for line in csv.DictReader(file):
            key = (line["cpu_milli"], line["memory_mib"], line["gpu"], line["model"])
            if key not in seen:
                seen[key] = _place(line)
            found[seen[key]] += 1
    return found


def _place(line: Mapping[str, str]) -> tuple[str, str, str]:
    if line["model"]:
        preset, gib = OPENB[line["model"]]
        known = find_preset(preset)
        gpus = (Gpu("nvidia", line["model"], int(gib * (1 << 30))),) * int(line["gpu"])
        device = msgspec.structs.replace(known.device(), gpus=gpus)
        plan = fit(pools(device, gpus={line["model"]: known.rates}), library())
        hardware = f"{line['gpu']} x {line['model']}"
    else:
        cores = int(line["cpu_milli"]) // 1000
        pool = Pool(
            "cpu", "cpu", int(line["memory_mib"]) << 19, cores * CORE_READ, cores * CORE_OPERATIONS
        )
        plan = fit((pool,), library())
        hardware = f"{cores} cores, {int(line['memory_mib']) >> 10} GiB"
    main = plan.choices[0] if plan.choices else None
    chosen = f"{main.model.name} {main.quantisation}" if main else "nothing"
    return hardware, chosen, _class(main.model if main else None)


def _class(model: LibraryModel | None) -> str:
    billions = model.parameters / 1e9 if model else 0.0
    for limit, name in CLASSES:
        if billions >= limit:
            return name
    return "under 3B" if model else "none"


# -- the report


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--refit", action="store_true")
    options = parser.parse_args()
    rows, left = measured_rows()
    if options.refit:
        for group, found in sorted(fitted(rows).items()):
            print(group, f"{found[0]:.2f} {found[1]:.4f}", sum(row.group == group for row in rows))
        errors = left_out_errors(rows)
        print("left out:", median(map(abs, errors)), "shipped:", _median(rows))
        for row, error in sorted(zip(rows, errors, strict=True), key=lambda one: -abs(one[1]))[:25]:
            print(f"{error:+.0%} {row.error(FACTORS):+.0%} {row.model.name} {row.system}")
        return
    stem = f"fit_{os.cpu_count()}-cores-{platform.machine()}_{today()}"
    errors = left_out_errors(rows)
    (RESULTS / f"{stem}.svg").write_text(plot(rows, errors))
    (RESULTS / f"{stem}.md").write_text("\n".join(report(rows, errors, left, stem)) + "\n")
    print(f"median error, each chip left out of its fit: {median(map(abs, errors)):.0%}")


def today() -> str:
    return dt.datetime.now(dt.UTC).date().isoformat()


def _median(rows: Iterable[Row]) -> float:
    return median(abs(row.error(FACTORS)) for row in rows)


def report(rows: list[Row], errors: list[float], left: list[str], stem: str) -> Iterator[str]:
    both = list(zip(rows, errors, strict=True))
    yield "# Predicted speed against measured pairs, and the placement of a cluster\n"
    yield f"`python benchmarks/matching/fit.py`, {today()}, {platform.machine()}, "
    yield f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}; nothing here is timed.\n"
    yield "## Tokens a second of one answer\n"
    sizes = np.abs(errors)
    yield f"{len(rows)} pairs of {len({r.chip for r in rows})} chips, measured by others"
    yield "(geerlingguy/ai-benchmarks), mostly with Ollama's 4-bit files. Peak bandwidth is from"
    yield "data sheets: on a real node it is measured, and the first tasks correct what is left.\n"
    yield "| factors | median error | within 25 % | within 50 % | worst |"
    yield "|---|---|---|---|---|"
    yield _line("none: peak bandwidth is all", [row.error(_ideal()) for row in rows])
    yield _line("shipped (fitted on all of these rows)", [row.error(FACTORS) for row in rows])
    yield _line("**each chip left out of its own fit**", errors)
    yield "\nThe last line is the honest one: two numbers for each kind of device and host were"
    yield "fitted anew without any row of the chip in question.\n"
    yield "| kind, host | chips | pairs | median error | bias |"
    yield "|---|---|---|---|---|"
    for group in sorted({row.group for row in rows}):
        mine = [(row, error) for row, error in both if row.group == group]
        values = [error for _, error in mine]
        host = "slow host" if group[1] else "ordinary host"
        yield (
            f"| {group[0]}, {host} | {len({r.chip for r, _ in mine})} | {len(mine)} | "
            f"{median(map(abs, values)):.0%} | {median(values):+.0%} |"
        )
    yield "\nThe ten worst, none left unsaid:\n"
    yield "| error | model | system | measured tokens/s |"
    yield "|---|---|---|---|"
    for row, error in sorted(both, key=lambda one: -abs(np.log1p(one[1])))[:10]:
        yield f"| {error:+.0%} | {row.model.name} | {row.system} | {row.measured:g} |"
    yield "\nNot predicted, because they are not one device with the model in one memory: "
    yield "; ".join(left) + ".\n"
    yield f"![Predicted against measured]({stem}.svg)\n"
    yield f"Within a factor of two: {np.mean([0.5 <= 1 + e <= 2 for e in errors]):.0%}; "
    yield f"mean error {sizes.mean():.0%} (a few small boards with large GPUs weigh heavily).\n"
    yield from _placement()


def _line(name: str, errors: list[float]) -> str:
    sizes = np.abs(errors)
    worst = max(errors, key=lambda error: abs(np.log1p(error)))
    return (
        f"| {name} | {np.median(sizes):.0%} | {np.mean(sizes <= 0.25):.0%} | "
        f"{np.mean(sizes <= 0.5):.0%} | {worst:+.0%} |"
    )


def _ideal() -> dict[PoolKind, Factors]:
    return {kind: Factors(1, 0, 1, 0, 1, 1e9) for kind in FACTORS}


def _placement() -> Iterator[str]:
    found = placed()
    yield f"## Placement of openb's {sum(found.values()):,} nodes\n"
    yield "All GPUs of a node are one pool. G2 and G3 are undisclosed GPUs: their memory is what"
    yield "the trace's own simulator counts, their speed is assumed to be a T4's and a V100's."
    yield "Nodes without a GPU are taken at 4 GB/s and 40 GFLOPS a core, and half their memory.\n"
    classes: Counter[str] = Counter()
    for (_, _, name), number in found.items():
        classes[name] += number
    yield "| class of the main model | nodes |"
    yield "|---|---|"
    for name, number in classes.most_common():
        yield f"| {name} | {number} |"
    yield "\n| hardware | nodes | main model |"
    yield "|---|---|---|"
    for (hardware, chosen, _), number in found.most_common():
        yield f"| {hardware} | {number} | {chosen} |"


def plot(rows: list[Row], errors: list[float]) -> str:
    """Predicted against measured, both logarithmic, as SVG written by hand."""
    size, low, high = 480, -0.8, 2.8
    colours = {"nvidia": "#4c8a2b", "amd": "#b3372b", "intel": "#2b6cb3", "apple": "#777777"}

    def place(value: float) -> float:
        return 40 + (np.log10(value) - low) / (high - low) * size

    def y(value: float) -> float:
        return size + 60 - place(value)

    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size + 60} {size + 70}"'
    parts = [
        f'{head} font-family="sans-serif" font-size="11">',
        f'<rect width="{size + 60}" height="{size + 70}" fill="white"/>',
    ]
    for tick in (0.2, 1, 5, 20, 100, 500):
        parts.append(f'<text x="{place(tick):.0f}" y="{size + 40}">{tick:g}</text>')
        parts.append(f'<text x="4" y="{y(tick):.0f}">{tick:g}</text>')
    ends = (10**low, 10**high)
    for factor, dash in ((1.0, ""), (1.25, "4"), (0.8, "4")):
        (x1, x2), (y1, y2) = map(place, ends), (y(end * factor) for end in ends)
        parts.append(
            f'<line x1="{x1:.0f}" y1="{y1:.0f}" x2="{x2:.0f}" y2="{y2:.0f}" stroke="#bbb" '
            f'stroke-dasharray="{dash}"/>'
        )
    for row, error in zip(rows, errors, strict=True):
        colour = colours.get(row.pool.kind, "#c8860a")
        hollow = 'fill="none" stroke' if row.pool.slow_host else "fill"
        parts.append(
            f'<circle cx="{place(row.measured):.1f}" cy="{y(row.measured * (1 + error)):.1f}" '
            f'r="3.5" {hollow}="{colour}"><title>{row.model.name}, {row.system}</title></circle>'
        )
    legend = "  ".join([*colours, "cpu (orange)", "hollow: slow host"])
    parts.append(f'<text x="40" y="20">{legend}; dashed: 25 %</text>')
    parts.append(f'<text x="{size // 2 - 40}" y="{size + 60}">measured tokens/s</text>')
    parts.append('<text x="14" y="40">predicted tokens/s</text></svg>')
    return "\n".join(parts)


if __name__ == "__main__":
    main()
