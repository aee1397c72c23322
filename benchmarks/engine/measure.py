"""Engines side by side on one model, in one run: the one command that fills the table.

``python benchmarks/engine/measure.py`` makes what is missing (the model and the peers' exports of
it), measures the machine's limits, then each engine alone in a process of its own, and writes a
report. Samples are kept in a JSON file as they come: a run that was stopped goes on where it was.
Peers are installed by ``install_peers.py``; those that are not there are left out and named.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import plan
import report
from make_model import make
from plan import VARIANTS, Variant
from workload import MARK

ROOT = plan.HERE.parent.parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "starai" / "benchmark"
TRACE = "traces/azure2023/AzureLLMInferenceTrace_conv.csv"
#: One process; the slowest peer needs about two minutes on two cores.
PROCESS_S_MAX = 900.0
EXPORT_S_MAX = 1800.0
#: What `--quick` measures: enough to see that everything runs.
QUICK_LAYERS = 2
QUICK_ROWS: dict[str, dict[str, Any]] = {
    "prefill": {"lengths": [64, 256]},
    "decode": {"prompt": 32, "tokens": 8},
    "batch": {"sizes": [8], "prompt": 16, "tokens": 8},
}


class Results:
    """The samples so far, in a file that is whole at every moment."""

    def __init__(self, path: Path) -> None:
        self.path = path
        found = json.loads(path.read_text()) if path.exists() else {}
        self.limits: dict[str, Any] = found.get("limits", {})
        self.variants: dict[str, dict[str, Any]] = found.get("variants", {})
        self.settings: dict[str, Any] = found.get("settings", {})

    def of(self, name: str) -> dict[str, Any]:
        """What is known of a variant: ``about``, ``samples`` and ``errors`` by row."""
        return self.variants.setdefault(name, {"about": {}, "samples": {}, "errors": {}})

    def save(self) -> None:
        """Write the file anew beside the old one, then put it in its place."""
        values = {
            "settings": self.settings,
            "limits": self.limits,
            "variants": {
                v.name: self.variants[v.name] for v in VARIANTS if v.name in self.variants
            },
        }
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(values, indent=1))
        part.replace(self.path)


def prepare(models: Path, peers: Path, chosen: list[Variant], layers: int) -> None:
    """The model, and the files that the chosen peers read, each unless it is there."""
    folder = models / plan.FOLDER
    make(folder, layers)
    wanted = {variant.model for variant in chosen}
    if plan.GGUF in wanted and not (models / plan.GGUF / "q4_0.gguf").exists():
        python = peers / "llamacpp" / "bin" / "python"
        asked = [str(python), str(plan.HERE / "to_gguf.py"), str(folder), str(models / plan.GGUF)]
        export(asked, models / "gguf.log", python)
    for kind in ("int8", "int4"):
        target = models / f"ov_{kind}"
        if target.name in wanted and not (target / "openvino_model.bin").exists():
            tool = peers / "openvino" / "bin" / "optimum-cli"
            asked = [str(tool), "export", "openvino", "-m", str(folder), "--weight-format", kind]
            asked += ["--task", "text-generation-with-past", str(target)]
            export(asked, models / f"{target.name}.log", tool)


def export(command: list[str], log: Path, tool: Path) -> None:
    """Run an exporter, its output in a file; a missing tool leaves its peer out."""
    if not tool.exists():
        return
    print(f"writing {command[-1]}", flush=True)
    with log.open("w") as file:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            command, stdout=file, stderr=file, env=environment, timeout=EXPORT_S_MAX, check=False
        )
    if done.returncode:
        print(f"failed, see {log}", flush=True)


def busy_s() -> float:
    """Seconds that all cores together have worked since the machine started."""
    fields = [int(x) for x in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


def children_s() -> float:
    """Seconds that ended children of this process have worked."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def missing(variant: Variant, peers: Path, models: Path) -> str:
    """Why a variant cannot be measured here; empty when it can."""
    if variant.venv and not (peers / variant.venv).is_dir():
        return f"{variant.venv} is not installed"
    if not (models / variant.model).is_dir():
        return f"the model's {variant.model} is missing"
    return ""


def measure(
    variant: Variant, rows: dict[str, dict[str, Any]], asked: argparse.Namespace, results: Results
) -> None:
    """One process: everything that is asked of one variant and not known yet."""
    known = results.of(variant.name)
    open_rows = {
        name: row
        for name, row in rows.items()
        if len(known["samples"].get(name, ())) < row.get("repeats", asked.repeats)
    }
    if not open_rows:
        return
    reason = missing(variant, asked.peers, asked.models)
    if reason:
        known["errors"] = dict.fromkeys(open_rows, reason)
        print(f"{variant.title}: {reason}", flush=True)
        return
    for name in open_rows:
        known["samples"][name] = []
        known["errors"].pop(name, None)
    job = {
        "model": str(asked.models / variant.model),
        "bits": variant.bits,
        "threads": plan.THREADS,
        "rows": open_rows,
        "repeats": asked.repeats,
        "context": plan.CONTEXT,
        "slots": plan.SLOTS,
        "options": variant.options,
    }
    begun, busy, own = time.monotonic(), busy_s(), children_s()
    listen(variant, job, asked, known, results)
    took = time.monotonic() - begun
    others = max(0.0, (busy_s() - busy - children_s() + own) / took)
    known["about"]["others_cores"] = max(known["about"].get("others_cores", 0.0), round(others, 2))
    known["about"]["process_s"] = round(known["about"].get("process_s", 0.0) + took, 1)
    results.save()
    print(f"{variant.title}: {took:.0f} s, others used {others:.2f} cores", flush=True)


def listen(
    variant: Variant,
    job: dict[str, Any],
    asked: argparse.Namespace,
    known: dict[str, Any],
    results: Results,
) -> None:
    """Start the peer, hand it the job, keep what it says."""
    log = asked.models / f"{variant.name}.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            variant.command(asked.peers),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=variant.environ(asked.peers),
            text=True,
        )
        deadline = threading.Timer(PROCESS_S_MAX, process.kill)
        deadline.start()
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(job))
            process.stdin.close()
            done = False
            for line in process.stdout:
                if line.startswith(MARK):
                    done = note(json.loads(line.removeprefix(MARK)), known) or done
                    results.save()
        finally:
            deadline.cancel()
            process.kill()
            process.wait()
    if not done:
        for name in job["rows"]:
            if len(known["samples"][name]) < job["rows"][name].get("repeats", asked.repeats):
                known["errors"].setdefault(name, "ended early, see its log")
        print(f"{variant.title}: ended early, see {log}", flush=True)


def note(said: dict[str, Any], known: dict[str, Any]) -> bool:
    """Keep one line of a peer; whether it was the last."""
    if "about" in said:
        known["about"].update(said["about"])
    elif "error" in said:
        known["errors"][said["row"]] = said["error"]
    elif "row" in said:
        known["samples"][said["row"]].append(said["values"])
        known["about"]["resident_mb"] = said["resident_mb"]
        known["about"]["load"] = round(max(known["about"].get("load", 0.0), said["load"]), 2)
    return bool(said.get("done"))


def arrival_row(asked: argparse.Namespace, results: Results) -> dict[str, Any] | None:
    """The arrivals that all engines get; the rate is remembered so that a resumed run agrees."""
    trace = asked.data / TRACE
    if not trace.is_file():
        print(f"row e: there is no {TRACE} below {asked.data}", flush=True)
        return None
    lengths = plan.trace_lengths(trace, asked.requests)
    rate = asked.rate or results.settings.get("rate_per_s")
    if asked.rate:
        results.settings["rate_from"] = "The rate was given."
    elif not rate:
        capacities = [c for v in VARIANTS if v.bits == 16 if (c := capacity(v, lengths, results))]
        if not capacities:
            print("row e: measure rows a and d of a bf16 engine first, or give --rate", flush=True)
            return None
        rate = plan.UTILISATION * max(capacities)
        results.settings["rate_from"] = (
            f"That is {plan.UTILISATION:.0%} of what the fastest bf16 engine could serve by its "
            "rows a and d."
        )
    results.settings["rate_per_s"] = round(rate, 4)
    results.settings["requests"] = asked.requests
    return plan.arrivals(lengths, results.settings["rate_per_s"])


def capacity(variant: Variant, lengths: list[tuple[int, int]], results: Results) -> float | None:
    """Requests a second that an engine could serve, from its prefill and its batched decode."""
    samples = results.of(variant.name)["samples"]
    if "e" not in variant.rows or not samples.get("prefill") or not samples.get("batch"):
        return None
    prefill = report.middle([s[min(s, key=int)] for s in samples["prefill"]])
    decode = report.middle([max(s.values()) for s in samples["batch"]])
    prompt = sum(p for p, _ in lengths) / len(lengths)
    answer = sum(a for _, a in lengths) / len(lengths)
    return 1 / (prompt / prefill + answer / decode)


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = os.environ.get("STARAI_SHARED_DATA", ROOT.parent / "shared" / "data")
    parser.add_argument("--only", default="", help="engines, as starai or starai-8, with commas")
    parser.add_argument("--rows", default="a,b,c,d,e", help="letters with commas")
    parser.add_argument("--models", type=Path, help="where the model and its exports lie")
    parser.add_argument("--peers", type=Path, default=CACHE / "peers", help="installed peers")
    parser.add_argument("--data", type=Path, default=Path(data), help="shared data (traces)")
    parser.add_argument("--results", type=Path, help="the JSON file of samples")
    parser.add_argument("--out", type=Path, help="the report")
    parser.add_argument("--repeats", type=int, default=plan.REPEATS)
    parser.add_argument("--requests", type=int, default=plan.REQUESTS, help="of row e")
    parser.add_argument("--rate", type=float, help="arrivals a second of row e")
    parser.add_argument("--again", action="store_true", help="forget the chosen rows first")
    parser.add_argument("--quick", action="store_true", help="2 layers, few tokens: does it run?")
    parser.add_argument("--prepare", action="store_true", help="make files, measure nothing")
    parser.add_argument("--report", action="store_true", help="only write the report again")
    asked = parser.parse_args()
    asked.models = asked.models or CACHE / ("quick" if asked.quick else "model")
    asked.results = asked.results or asked.models / "results.json"
    asked.out = asked.out or (
        asked.models / "report.md" if asked.quick else ROOT / report.file_name()
    )
    if asked.quick:
        asked.repeats, asked.requests = 1, 4
        asked.rate = asked.rate or 4.0
    return asked


def main() -> None:
    """All of it, in an order that lets the rate of arrivals follow from the rows before."""
    # Ends the engine that runs, too: an orphan would disturb whatever is measured next.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    asked = options()
    asked.models.mkdir(parents=True, exist_ok=True)
    results = Results(asked.results)
    names = [name for name in asked.only.split(",") if name]
    chosen = [v for v in VARIANTS if not names or {v.name, v.name.partition("-")[0]} & set(names)]
    letters = asked.rows.replace(",", "")
    if not asked.report:
        results.settings["layers"] = QUICK_LAYERS if asked.quick else plan.LAYERS
        prepare(asked.models, asked.peers, chosen, results.settings["layers"])
    if asked.prepare:
        return
    if not asked.report:
        run(asked, results, chosen, letters)
    asked.out.write_text(report.render(results.settings, results.limits, results.variants))
    print(asked.out)


def run(asked: argparse.Namespace, results: Results, chosen: list[Variant], letters: str) -> None:
    """Measure what is chosen and not known."""
    results.settings.setdefault("load_at_start", round(os.getloadavg()[0], 2))
    results.settings["repeats"] = asked.repeats
    if asked.again and not asked.only:
        results.limits = {}
    if not results.limits:
        print("measuring the machine's limits", flush=True)
        limits = [sys.executable, str(plan.HERE / "limits.py"), str(plan.THREADS)]
        done = subprocess.run(limits, capture_output=True, check=True, timeout=PROCESS_S_MAX)
        results.limits = json.loads(done.stdout)
        results.save()
    for variant in chosen:
        rows = plan.rows_of(variant, letters)
        if asked.quick:
            rows = {name: QUICK_ROWS[name] for name in rows}
        if asked.again:
            for name in rows:
                results.of(variant.name)["samples"].pop(name, None)
        measure(variant, rows, asked, results)
    row = arrival_row(asked, results) if "e" in letters else None
    for variant in chosen if row else ():
        if "e" in variant.rows:
            if asked.again:
                results.of(variant.name)["samples"].pop("arrivals", None)
            measure(variant, {"arrivals": row or {}}, asked, results)
    results.settings["load_at_end"] = round(os.getloadavg()[0], 2)
    results.save()


if __name__ == "__main__":
    main()
