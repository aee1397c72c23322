"""What a request costs in the gateway, beside a bare ASGI echo and three peers, in one run.

``make bench`` or ``python benchmarks/network/gateway.py --rounds 3 --seconds 4``; the method is in
benchmarks/README.md. StarAI runs whole (`starai up --model mock`): gateway, distributor, registry,
node and NATS, with keys, seals and records on. LiteLLM, SMG and vLLM Router run in environments of
their own, built under build/peers at the first run. Writes a dated file into benchmarks/results.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from meter import cpu_s, resident_mb, tree

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PEERS = ROOT / "build" / "peers"
LITELLM = "litellm[proxy]==1.106.2"
SMG = "smg==1.13.0"
VLLM_ROUTER = "vllm-router==0.1.17"
ALL = ("echo", "starai", "litellm", "smg", "vllm-router")
START_LIMIT_S = 120.0
#: Each row is (name, connections, stream).
LOADS = (("c1", 1, False), ("c16", 16, False), ("s1", 1, True), ("s16", 16, True))


@dataclass
class Peer:
    """A server under measurement. ``pid`` is the process that stands for the gateway."""

    name: str
    port: int
    pid: int
    root: int
    start_s: float
    key: str = "none"


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def running(command: list[str], log: Path, **env: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own, ended with everything it started."""
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **env},
        )
        try:
            yield process
        finally:
            os.killpg(process.pid, signal.SIGINT)
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def answers(port: int, key: str) -> bool:
    """Whether one chat completion succeeds."""
    body = {"model": "mock", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 20}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        data=json.dumps(body).encode(),
        headers={"authorization": f"Bearer {key}", "content-type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def wait_until(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    """Poll until ``ready``; ends the benchmark with the process's last words otherwise."""
    limit = time.monotonic() + START_LIMIT_S
    while not ready():
        if process.poll() is not None or time.monotonic() > limit:
            sys.exit(f"{process.args!r} did not start:\n{log.read_text()[-2000:]}")
        time.sleep(0.02)


@contextlib.contextmanager
def simple(name: str, command: list[str], port: int, logs: Path, **env: str) -> Iterator[Peer]:
    """A peer of one process whose command is known."""
    began = time.monotonic()
    log = logs / f"{name}.log"
    with running(command, log, **env) as process:
        wait_until(lambda: answers(port, "none"), process, log)
        yield Peer(name, port, process.pid, process.pid, time.monotonic() - began)


def mock(logs: Path) -> contextlib.AbstractContextManager[Peer]:
    """The upstream that LiteLLM stands in front of, and the floor of everything."""
    port = free_port()
    command = [sys.executable, str(HERE / "mock_upstream.py"), "--port", str(port)]
    return simple("mock upstream, direct", command, port, logs)


def echo(logs: Path) -> contextlib.AbstractContextManager[Peer]:
    """A bare ASGI application under uvicorn."""
    port = free_port()
    return simple(
        "bare ASGI echo", [sys.executable, str(HERE / "echo.py"), "--port", str(port)], port, logs
    )


def installed(package: str, program: str) -> Path:
    """A peer's program, in an environment of its own that is made at the first run."""
    folder = PEERS / program
    found = folder / "bin" / program
    if not found.exists():
        print(f"installing {package} into {folder.relative_to(ROOT)}")
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-qq", "--no-compile"]
        subprocess.run([*pip, package], check=True)
    return found


def litellm(logs: Path, upstream: int) -> contextlib.AbstractContextManager[Peer]:
    """LiteLLM's proxy with one worker, no database, no key; as its documentation says to run it."""
    program = installed(LITELLM, "litellm")
    config = logs / "litellm.json"
    params = {"model": "openai/mock", "api_base": f"http://127.0.0.1:{upstream}/v1", "api_key": "x"}
    model = {"model_name": "mock", "litellm_params": params}
    config.write_text(json.dumps({"model_list": [model]}))  # JSON is YAML
    port = free_port()
    command = [str(program), "--config", str(config), "--port", str(port), "--host", "127.0.0.1"]
    return simple(
        f"LiteLLM {LITELLM.rpartition('=')[2]}", [*command, "--num_workers", "1"], port, logs,
        LITELLM_MODE="PRODUCTION", LITELLM_LOG="ERROR", LITELLM_LOCAL_MODEL_COST_MAP="True",
        LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY="true",
    )  # fmt: skip


def router(
    logs: Path, upstream: int, package: str, name: str, *verb: str
) -> contextlib.AbstractContextManager[Peer]:
    """A router in Rust that passes requests on: round robin over one worker, no keys."""
    program, port = installed(package, package.partition("=")[0]), free_port()
    command = [str(program), *verb, "--host", "127.0.0.1", "--port", str(port)]
    command += ["--worker-urls", f"http://127.0.0.1:{upstream}", "--policy", "round_robin"]
    command += ["--prometheus-port", str(free_port()), "--log-level", "error"]
    return simple(f"{name} {package.rpartition('=')[2]}", command, port, logs)


def facts(log: Path) -> dict[str, object] | None:
    """The JSON line with which `starai up --json` says that it is ready."""
    for line in log.read_text(errors="replace").splitlines():
        if line.startswith("{") and '"api_key"' in line and '"pids"' in line:
            return dict(json.loads(line))
    return None


@contextlib.contextmanager
def starai(logs: Path) -> Iterator[Peer]:
    """The whole network, with the mock engine on its node."""
    port, log, began = free_port(), logs / "starai.log", time.monotonic()
    program = Path(sys.executable).with_name("starai")
    command = [str(program), "up", "--model", "mock", "--port", str(port), "--no-live", "--json"]
    command += ["--nats-port", str(free_port()), "--home", str(logs / "home")]
    with running(command, log) as process:
        wait_until(lambda: facts(log) is not None, process, log)
        told = facts(log)
        assert told is not None
        key, pids = str(told["api_key"]), told["pids"]
        assert isinstance(pids, dict)
        wait_until(lambda: answers(port, key), process, log)
        start = time.monotonic() - began
        yield Peer("StarAI", port, int(pids["gateway"]), process.pid, start, key)


def drive(peer: Peer, connections: int, stream: bool, seconds: float) -> dict[str, float]:
    """One run of the load generator, with the CPU that the peer used during it."""
    command = [sys.executable, str(HERE / "load.py"), "--port", str(peer.port), "--key", peer.key]
    command += ["--connections", str(connections), "--seconds", str(seconds)]
    pids = tree(peer.root)
    before, before_all = cpu_s([peer.pid]), cpu_s(pids)
    done = subprocess.run(
        [*command, *(["--stream"] if stream else [])], capture_output=True, check=True
    )
    result: dict[str, float] = json.loads(done.stdout)
    count = max(1.0, result["requests"])
    result["cpu_ms"] = (cpu_s([peer.pid]) - before) / count * 1000
    result["tree_ms"] = (cpu_s(pids) - before_all) / count * 1000
    result["mb"], result["tree_mb"] = resident_mb([peer.pid]), resident_mb(tree(peer.root))
    return result


def measure(peers: list[Peer], rounds: int, seconds: float) -> dict[str, dict[str, float]]:
    """Medians over the rounds; each round drives every peer with every load, so noise is shared."""
    runs: dict[tuple[str, str], list[dict[str, float]]] = {}
    for number in range(rounds):
        for name, connections, stream in LOADS:
            for peer in peers:
                if number == 0:
                    drive(peer, connections, stream, 1.0)  # warm up
                result = drive(peer, connections, stream, seconds)
                runs.setdefault((peer.name, name), []).append(result)
                print(f"round {number + 1} {name:3} {peer.name:22}", _brief(result), flush=True)
    return {
        peer.name: {
            f"{load}.{figure}": statistics.median(run[figure] for run in runs[peer.name, load])
            for load, *_ in LOADS
            for figure in runs[peer.name, load][0]
        }
        for peer in peers
    }


def _brief(result: dict[str, float]) -> str:
    return " ".join(f"{name}={value:.3g}" for name, value in result.items())


def hardware() -> str:
    """The machine in a few words, fit for a file name."""
    return f"{platform.system().lower()}-{platform.machine()}-{os.cpu_count()}cpu"


HEAD = """# What a request costs in the gateway

{today}, {hardware}, Python {python}, load average {load:.1f} at the end.
{how} Medians. The method is in benchmarks/README.md.

CPU-ms are user and system time per request at 16 connections; "all" counts every process of
the peer. StarAI's includes distributor, node, registry and NATS, with keys, seals and records
on; the peers forward to the mock upstream and do none of that. Latency is what is added over the
mock upstream asked directly, at the median.

| | CPU-ms | all | CPU-ms, 20-token stream | all | requests/s | streams/s |
|---|---|---|---|---|---|---|
{cost}

| | added, 1 connection | 16 | added to a stream, 1 | 16 | start | resident | all | failed |
|---|---|---|---|---|---|---|---|---|
{rest}

Every figure (c: whole answers, s: streams; 1 and 16: connections):

```json
{figures}
```
"""


def _row(name: str, *cells: str) -> str:
    return f"| {' | '.join((name, *cells))} |"


def report(peers: list[Peer], found: dict[str, dict[str, float]], how: str) -> str:
    """The result file."""
    floor = found[peers[0].name]
    cost, rest, figures = [], [], []
    for peer in peers:
        f = found[peer.name]
        spent = [
            f"{f[f'{load}_ms']:.3f}" for load in ("c16.cpu", "c16.tree", "s16.cpu", "s16.tree")
        ]
        cost.append(_row(peer.name, *spent, f"{f['c16.rps']:.0f}", f"{f['s16.rps']:.0f}"))
        added = [f"{f[f'{load}.p50_ms'] - floor[f'{load}.p50_ms']:.2f} ms" for load, *_ in LOADS]
        size = [f"{peer.start_s:.1f} s", f"{f['s16.mb']:.0f} MB", f"{f['s16.tree_mb']:.0f} MB"]
        failed = sum(f[f"{load}.failed"] for load, *_ in LOADS)
        rest.append(_row(peer.name, *added, *size, f"{failed:.0f}"))
        rounded = {key: float(f"{value:.4g}") for key, value in f.items()}
        figures.append(f"{json.dumps(peer.name)}: {json.dumps(rounded)}")
    return HEAD.format(
        today=dt.datetime.now(dt.UTC).date(),
        hardware=hardware(),
        python=platform.python_version(),
        load=os.getloadavg()[0],
        how=how,
        cost="\n".join(cost),
        rest="\n".join(rest),
        figures="{\n" + ",\n".join(figures) + "\n}",
    )


def main() -> None:
    """Start the peers, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument(
        "--only", default="echo,starai,litellm,smg,vllm-router", help="peers, comma-separated"
    )
    parser.add_argument("--no-write", action="store_true", help="print the report only")
    options = parser.parse_args()
    wanted = options.only.split(",")
    logs = Path(tempfile.mkdtemp(prefix="starai-bench-"))
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(mock(logs))]
        if "echo" in wanted:
            peers.append(stack.enter_context(echo(logs)))
        if "starai" in wanted:
            peers.append(stack.enter_context(starai(logs)))
        if "litellm" in wanted:
            peers.append(stack.enter_context(litellm(logs, peers[0].port)))
        if "smg" in wanted:
            smg = router(logs, peers[0].port, SMG, "SMG", "launch")
            peers.append(stack.enter_context(smg))
        if "vllm-router" in wanted:
            other = router(logs, peers[0].port, VLLM_ROUTER, "vLLM Router")
            peers.append(stack.enter_context(other))
        found = measure(peers, options.rounds, options.seconds)
        text = report(peers, found, f"{options.rounds} rounds of {options.seconds:g} s a load.")
    print(text)
    if not options.no_write:
        today = dt.datetime.now(dt.UTC).date()
        machine = f"{os.cpu_count()}-cores-{platform.machine()}"
        target = HERE.parent / "results" / f"gateway_{machine}_{today}.md"
        target.parent.mkdir(exist_ok=True)
        target.write_text(text)
        print(f"written: {target.relative_to(ROOT)}")
    shutil.rmtree(logs)


if __name__ == "__main__":
    main()
