"""How soon a new device serves: from `starai join` to the first token that it makes, by stage.

``python benchmarks/network/joining.py``: starts `starai up` with a public door on loopback and
drains its own node, then lets a device join by TLS and by WebSocket, with the mock and with the
embedded model, while a client asks until an answer begins. Writes a dated file into
benchmarks/results.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import platform
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from gateway import free_port

RESULTS = Path(__file__).resolve().parents[1] / "results"
ROUNDS = 5
GOAL_S = 3.0
STAGES = ("measuring", "loading", "connecting", "admitted", "serving")
STARAI = (sys.executable, "-m", "starai.cli")


def starai(*words: str) -> str:
    """What a command prints."""
    return subprocess.run([*STARAI, *words], capture_output=True, text=True, check=True).stdout


@contextlib.contextmanager
def network(home: str, model: str) -> Iterator[dict[str, Any]]:
    """A network whose own node takes nothing, and in ``up_s`` how long its start took."""
    doors = ("--public", f"127.0.0.1:{free_port()}", "--public-websocket-port", str(free_port()))
    ports = ("--port", str(free_port()), "--nats-port", str(free_port()))
    began = time.perf_counter()
    process = subprocess.Popen(
        [*STARAI, "up", "--json", "--home", home, "--model", model, *ports, *doors],
        stdout=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    assert process.stdout is not None
    try:
        facts = json.loads(process.stdout.readline())
        facts["up_s"] = time.perf_counter() - began
        starai("node", "drain", "node-1", "--home", home)
        yield facts
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


class Joiner:
    """A device that joins; when each stage was reached, in seconds from its start."""

    def __init__(self, home: str, token: str, url: str, model: str) -> None:
        self.began = time.perf_counter()
        self.at: dict[str, float] = {}
        self.cpu_s = 0.0
        words = ("join", url, token, "--model", model, "--home", home, "--no-polite")
        self.process = subprocess.Popen(
            [*STARAI, *words],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            words = line.split()
            if len(words) > 2 and words[2] in STAGES:
                self.at[words[2]] = time.perf_counter() - self.began

    def first_token(self, facts: dict[str, Any]) -> float:
        """Ask until an answer begins."""
        body = {"messages": [{"role": "user", "content": "Hello"}], "stream": True, "max_tokens": 4}
        body["model"] = facts["model"]
        headers = {"Authorization": f"Bearer {facts['api_key']}"}
        with httpx.Client(base_url=facts["url"], headers=headers, timeout=30, trust_env=False) as c:
            while time.perf_counter() - self.began < 60:
                with c.stream("POST", "/v1/chat/completions", json=body) as answer:
                    if answer.status_code == 200:
                        for line in answer.iter_lines():
                            if '"content":"' in line and '"content":""' not in line:
                                return time.perf_counter() - self.began
                time.sleep(0.02)
        raise AssertionError("no token came")

    def stop(self) -> None:
        """End it and wait until nobody counts on it."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.process.send_signal(signal.SIGINT)
        self.process.wait(60)
        self._reader.join()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(model: str, scheme: str, rounds: int) -> tuple[list[dict[str, float]], float]:
    """Each round's stages, and the first token; and how long `starai up` took."""
    taken = []
    with tempfile.TemporaryDirectory() as home, network(home, model) as facts:
        token = starai("tokens", "create", "--uses", str(rounds), "--home", home).strip()
        (url,) = (one for one in facts["public_urls"] if one.startswith(scheme))
        for number in range(rounds):
            joiner = Joiner(f"{home}/device-{number}", token, url, model)
            first = joiner.first_token(facts)
            joiner.stop()
            taken.append({**joiner.at, "first token": first, "CPU": joiner.cpu_s})
            time.sleep(4)  # its beats have run out: the next one is alone again
            print(model, scheme, {name: round(s, 2) for name, s in taken[-1].items()}, flush=True)
    return taken, facts["up_s"]


def spread(values: list[float]) -> str:
    """Median, and the range."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def _rank() -> str:
    """Whether all of this ran before everything else on the machine (``chrt -r 1``)."""
    if os.sched_getscheduler(0) != os.SCHED_RR:
        return ""
    return " Run by `chrt -r 1`: before all else that the machine was busy with, as if alone."


def main() -> None:
    """Measure and write the result."""
    names = (*STAGES, "first token", "CPU")
    load = [os.getloadavg()[0]]
    rows, ups = [], []
    for model, scheme in (("mock", "tls"), ("mock", "wss"), ("embedded", "tls")):
        taken, up_s = measure(model, scheme, ROUNDS)
        ups.append(f"{up_s:.1f} s ({model})")
        cells = [spread([one[name] for one in taken]) for name in names]
        rows.append(f"| {model} | {scheme} | " + " | ".join(cells) + " |")
    load.append(os.getloadavg()[0])
    today = dt.datetime.now(dt.UTC).date().isoformat()
    hardware = f"{os.cpu_count()} cores {platform.machine()}"
    lines = [
        f"# Joining, {hardware}, {today}",
        "",
        (
            f"`python benchmarks/network/joining.py` · Python {platform.python_version()} ·"
            f" goal: {GOAL_S:g} s"
        ),
        "",
        f"Load average of this shared machine: {load[0]:.1f} before, {load[1]:.1f} after.{_rank()}",
        "",
        f"Seconds from the start of the process `starai join`, median and range of {ROUNDS}:",
        "",
        "| Model | By | " + " | ".join(names) + " |",
        "|---|---|" + "---|" * len(names),
        *rows,
        "",
        "A stage's figure is when it began. Up to `measuring` Python starts and imports the",
        "little that this needs; the device is measured once in a home's life, while nothing else",
        "runs. At `loading` the engine's process starts (for the embedded model it imports torch)",
        "and reads the model; meanwhile the network's part is imported, and TLS, login and the",
        "registry's answer follow. With both done it is `serving`; a beat at once tells the",
        "distributor, which tells the gateway, and the next try of the client gets through. The",
        "CPU seconds are those of the device's own processes over its whole life.",
        "",
        f"`starai up` in a new home, from its start to the printed facts: {', '.join(ups)}.",
        "",
    ]
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"joining_{hardware.replace(' ', '-')}_{today}.md"
    file.write_text("\n".join(lines))
    print("\n".join(lines[4:]))


if __name__ == "__main__":
    main()
