"""Streams that survive: a thousand through four troubled nodes, and one cut beside two peers.

``python benchmarks/network/failover.py --streams 1000``; the method is in benchmarks/README.md.
Real processes and a real NATS server: `starai up`, a second distributor, and four nodes with the
mock engine in homes of their own, each behind a TCP line that can be cut (`troubled_line.py`).
While the streams run, nodes and distributors are killed, stopped, stalled, cut, frozen, damaged and
drained at random. Each stream's text must equal the undisturbed run under its seed. Then the
scenario in which a worker dies after 8 of 20 tokens, ours beside LiteLLM and vLLM Router.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime as dt
import json
import os
import platform
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import msgspec
from anyio.from_thread import BlockingPortal, start_blocking_portal
from meter import tree
from troubled_line import Line

from starai.core.clock import SystemClock
from starai.core.randomness import SystemRandomness
from starai.local.asking import Operator, operator
from starai.local.home import Home
from starai.local.joining import join
from starai.protocol.identity import Identity, PartyId
from starai.protocol.subjects import Role
from starai.protocol.tickets import JoinTicket

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PEERS = {"litellm": "litellm[proxy]==1.106.2", "vllm-router": "vllm-router==0.1.17"}
NUM_NODES = 4
STEP_MS = 30
MEND_S = (1.0, 3.0)
START_S = 120.0
MODEL = "mock"


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(true: Callable[[], object], what: str) -> None:
    """Poll until ``true``."""
    limit = time.monotonic() + START_S
    while not true():
        if time.monotonic() > limit:
            sys.exit(f"not within {START_S:g} s: {what}")
        time.sleep(0.05)


class Program:
    """A process that is started again whenever it dies, until `stop`."""

    def __init__(self, command: list[str], log: Path, **env: str) -> None:
        """Start it."""
        self.command, self.log, self.env = command, log, {**os.environ, **env}
        self.starts = 0
        self._stopping = False
        self.process = self._start()
        threading.Thread(target=self._watch, daemon=True).start()

    @property
    def pid(self) -> int:
        """The process of now."""
        return self.process.pid

    def stop(self) -> None:
        """End it and everything that it started."""
        self._stopping = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGCONT)
            os.killpg(self.process.pid, signal.SIGINT)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)

    def _start(self) -> subprocess.Popen[bytes]:
        self.starts += 1
        with self.log.open("ab") as sink:
            return subprocess.Popen(
                self.command,
                stdout=sink,
                stderr=sink,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env=self.env,
            )

    def _watch(self) -> None:
        while not self._stopping:
            self.process.wait()
            if not self._stopping:
                time.sleep(0.1)
                self.process = self._start()


# -- clients ---------------------------------------------------------------------------------


@dataclass
class Stream:
    """How one streamed answer went, as its client saw it."""

    text: str = ""
    num_tokens: int = 0
    done: bool = False
    error: str = ""
    longest_gap_s: float = 0.0


async def ask(
    port: int, key: str, body: dict[str, object], on_token: Callable[[int], None] | None = None
) -> Stream:
    """One streamed chat completion over a connection of its own."""
    seen = Stream()
    data = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(data)}\r\n"
        "connection: close\r\n\r\n"
    )
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError as error:
        return Stream(error=type(error).__name__)
    try:
        writer.write(head.encode() + data)
        last_s = time.monotonic()
        while line := await asyncio.wait_for(reader.readline(), 60):
            if not line.startswith(b"data: "):
                if line.startswith(b"HTTP/1.1") and b" 200 " not in line:
                    seen.error = line.decode().strip()
                continue
            if line.startswith(b"data: [DONE]"):
                seen.done = True
                break
            news = json.loads(line[6:])
            if "error" in news:
                seen.error = str(news["error"])[:100]
                continue
            content = "".join(c.get("delta", {}).get("content") or "" for c in news["choices"])
            if content:
                seen.text += content
                seen.num_tokens += 1
                now_s = time.monotonic()
                seen.longest_gap_s = max(seen.longest_gap_s, now_s - last_s)
                last_s = now_s
                if on_token is not None:
                    on_token(seen.num_tokens)
    except (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError) as error:
        seen.error = type(error).__name__
    finally:
        writer.close()
    return seen


def request(seed: int, num_tokens: int) -> dict[str, object]:
    """A request of so many tokens: the mock's end token is banned."""
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Tell me a long story."}],
        "seed": seed,
        "temperature": 1,
        "max_tokens": num_tokens,
        "logit_bias": {"256": -100},
        "stream": True,
    }


async def many(
    port: int, key: str, num_streams: int, at_once: int, num_tokens: int
) -> list[Stream]:
    """So many streams, some at once, seeds 0, 1, 2 and so on."""
    limiter, found = asyncio.Semaphore(at_once), [Stream() for _ in range(num_streams)]

    async def one(seed: int) -> None:
        async with limiter:
            found[seed] = await ask(port, key, request(seed, num_tokens))

    await asyncio.gather(*(one(seed) for seed in range(num_streams)))
    return found


# -- the network -----------------------------------------------------------------------------


@dataclass
class Member:
    """A node or a distributor that troubles may strike."""

    name: str
    party: PartyId
    program: Program
    line: Line | None = None
    troubled: bool = False


@dataclass
class Network:
    """Everything that runs."""

    home: Home
    port: int
    key: str
    nodes: list[Member]
    second: Member
    portal: BlockingPortal
    operator: Operator
    struck: Counter[str] = field(default_factory=Counter)

    def order(self, node: PartyId, order: str) -> None:
        """Tell a node something; it may be deaf just now."""
        with contextlib.suppress(Exception):
            self.portal.call(self.operator.order, node, order)

    def logs(self) -> Iterator[dict[str, object]]:
        """Every line of every log."""
        for path in self.home.path.rglob("*.log"):
            for line in path.read_text(errors="replace").splitlines():
                if line.startswith("{"):
                    with contextlib.suppress(json.JSONDecodeError):
                        yield json.loads(line)


def starai(*words: str) -> list[str]:
    """A command line of ours."""
    return [sys.executable, "-m", "starai.cli", *words]


def add(
    portal: BlockingPortal, asked: Operator, home: Home, name: str, role: Role, nats_port: int
) -> tuple[Home, PartyId, Line | None]:
    """Let a party in, in a home of its own; a node's way to NATS is a line that can be cut."""
    own = Home(home.path / name)
    token = portal.call(asked.create_token, role, 1, 3_600_000, name)
    clock, chance = SystemClock(), SystemRandomness()
    anyio.run(join, own, name, JoinTicket.parse(token), name, clock, chance)
    line = Line(nats_port) if role is Role.NODE else None
    if line is not None:
        file = msgspec.structs.replace(
            own.network(), nats_url=f"nats://127.0.0.1:{line.port}", more_urls=()
        )
        own.save_network(file)
    return own, Identity.from_seed(own.party(name).seed).party, line


@contextlib.contextmanager
def network(folder: Path, step_ms: float, slots: int = 24) -> Iterator[Network]:
    """`starai up`, a second distributor, and four nodes with lines of their own."""
    home, port, nats_port = Home(folder / "home"), free_port(), free_port()
    up_log = folder / "up.log"
    command = starai("up", "--json", "--no-live", "--home", str(home.path), "--model", MODEL)
    command += ["--port", str(port), "--nats-port", str(nats_port)]
    with contextlib.ExitStack() as stack:
        up = Program(command, up_log)
        stack.callback(up.stop)
        wait_until(lambda: '"api_key"' in up_log.read_text(), "starai up")
        line = next(one for one in up_log.read_text().splitlines() if '"api_key"' in one)
        key = str(json.loads(line)["api_key"])
        portal = stack.enter_context(start_blocking_portal())
        asked = stack.enter_context(portal.wrap_async_context_manager(operator(home)))
        nodes = []
        for number in range(NUM_NODES):
            name = f"troubled-{number}"
            own, party, wire = add(portal, asked, home, name, Role.NODE, nats_port)
            words = ("node", "start", "--home", str(own.path), "--name", name, "--label", name)
            words += ("--model", MODEL, "--slots", str(slots), "--step-delay-ms", str(step_ms))
            words += ("--no-polite",)  # the streams are this machine's work
            program = Program(starai(*words), own.log(name), OMP_NUM_THREADS="1")
            stack.callback(program.stop)
            nodes.append(Member(name, party, program, wire))
        name = "distributor-2"
        own, party, _ = add(portal, asked, home, name, Role.DISTRIBUTOR, nats_port)
        words = ("serve", "distributor", "--home", str(own.path), "--name", name)
        program = Program(starai(*words), own.log(name))
        stack.callback(program.stop)
        second = Member(name, party, program)
        made = Network(home, port, key, nodes, second, portal, asked)
        wait_until(lambda: serving(made) == NUM_NODES + 1, "four nodes")
        # The node that `starai up` brings along has no line that could be cut: it leaves.
        local = next(b for b in asked.beats(Role.NODE) if b.label == "node-1")
        made.order(local.party, "leave")
        wait_until(lambda: serving(made) == NUM_NODES, "the fifth node has left")
        yield made


def serving(made: Network) -> int:
    """How many nodes take tasks now."""
    made.operator.forget_silent(2.0)
    beats = made.operator.beats(Role.NODE)
    return sum(bool(beat.models) and not beat.draining and not beat.paused for beat in beats)


# -- troubles --------------------------------------------------------------------------------


class Troubles:
    """Strikes at random, at most two nodes at a time, until stopped."""

    def __init__(self, made: Network, seed: int, every_s: float) -> None:
        """Begin."""
        self._net, self._every_s = made, every_s
        self._chance = random.Random(seed)
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End, and mend everything."""
        self._stop.set()
        self._thread.join()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._every_s * (0.5 + self._chance.random())):
            if self._chance.random() < 0.08:
                self._net.struck["distributor killed"] += 1
                self._kill(self._net.second.program.pid)
                continue
            sound = [node for node in self._net.nodes if not node.troubled]
            if len(sound) <= NUM_NODES - 2:
                continue
            node = self._chance.choice(sound)
            node.troubled = True
            kinds = (self.kill, self.stop_node, self.stall, self.cut, self.freeze, self.damage,
                     self.drain)  # fmt: skip
            strike = self._chance.choice(kinds)
            mend_s = self._chance.uniform(*MEND_S)
            thread = threading.Thread(target=self._strike, args=(strike, node, mend_s), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _strike(self, strike: Callable[[Member, float], None], node: Member, mend_s: float) -> None:
        self._net.struck[(strike.__doc__ or "").strip(" .").lower()] += 1
        strike(node, mend_s)
        node.troubled = False

    def _kill(self, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)

    def kill(self, node: Member, mend_s: float) -> None:
        """Node killed."""
        before = node.program.starts
        for pid in tree(node.program.pid):  # the engine is in a session of its own
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        while node.program.starts == before and not self._stop.wait(0.1):
            pass
        time.sleep(mend_s)

    def stop_node(self, node: Member, mend_s: float) -> None:
        """Node stopped."""
        self._hold([node.program.pid], mend_s)

    def stall(self, node: Member, mend_s: float) -> None:
        """Engine stalled, its node lives."""
        self._hold([pid for pid in tree(node.program.pid) if pid != node.program.pid], mend_s)

    def _hold(self, pids: list[int], mend_s: float) -> None:
        for number, wait_s in ((signal.SIGSTOP, mend_s), (signal.SIGCONT, 0.0)):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            time.sleep(wait_s)

    def cut(self, node: Member, mend_s: float) -> None:
        """Line cut."""
        assert node.line is not None
        node.line.cut(mend_s)
        time.sleep(mend_s)

    def freeze(self, node: Member, mend_s: float) -> None:
        """Line frozen."""
        assert node.line is not None
        node.line.freeze(mend_s)
        time.sleep(mend_s)

    def damage(self, node: Member, mend_s: float) -> None:
        """Chunk damaged."""
        assert node.line is not None
        node.line.damage()
        time.sleep(0.2)

    def drain(self, node: Member, mend_s: float) -> None:
        """Node drained."""
        self._net.order(node.party, "drain")
        time.sleep(mend_s)
        self._net.order(node.party, "resume")


# -- what is measured ------------------------------------------------------------------------


@dataclass
class Gaps:
    """From giving up to the next token, and the part of it until the task was offered anew."""

    whole_ms: list[float] = field(default_factory=list)
    unasked_ms: list[float] = field(default_factory=list)
    #: How many of them a second callee brought, which was asked because the first was mute, too.
    hedged: int = 0

    @classmethod
    def of(cls, lines: list[dict[str, object]]) -> Gaps:
        """Those that the logs tell of."""
        parts = [[float(str(line[part])) for line in lines] for part in ("gap_ms", "wait_ms")]
        return cls(*parts, hedged=sum(bool(line.get("by_hedge")) for line in lines))

    def table(self, step_ms: float) -> list[str]:
        """As a report shows it; one engine step is no part of the network."""
        less = [max(0.0, one - step_ms) for one in self.whole_ms]
        return [
            "| | times | median | p95 | longest |",
            "|---|---|---|---|---|",
            f"| until offered anew (free place, choosing, sealing) | {spread(self.unasked_ms)} |",
            f"| until the next token | {spread(self.whole_ms)} |",
            f"| the same without one step of {step_ms:g} ms | {spread(less)} |",
        ]


@dataclass
class Survived:
    """The thousand streams."""

    undisturbed: list[Stream]
    troubled: list[Stream]
    undisturbed_s: float
    troubled_s: float
    struck: Counter[str]
    given_up: dict[str, list[float]]
    gaps: Gaps
    ladder: Counter[str]

    @property
    def complete(self) -> int:
        """Streams that came to their end."""
        return sum(one.done and not one.error for one in self.troubled)

    @property
    def identical(self) -> int:
        """Streams whose text is that of the undisturbed run."""
        pairs = zip(self.undisturbed, self.troubled, strict=True)
        return sum(one.done and one.text == other.text for one, other in pairs)


def logged(made: Network, since: float, event: str) -> list[dict[str, object]]:
    """The logs' lines of one event since a moment."""
    return [x for x in made.logs() if x["event"] == event and float(str(x["t"])) >= since]


def survive(
    made: Network, num_streams: int, at_once: int, num_tokens: int, seed: int, every_s: float
) -> Survived:
    """The same streams twice: undisturbed, then with troubles."""
    began_s = time.monotonic()
    first = asyncio.run(many(made.port, made.key, num_streams, at_once, num_tokens))
    between_s, since = time.monotonic(), time.time()
    bad = [one.error for one in first if not one.done or one.num_tokens < 1]
    if bad:
        sys.exit(f"{len(bad)} streams failed undisturbed: {Counter(bad)}")
    troubles = Troubles(made, seed, every_s)
    second = asyncio.run(many(made.port, made.key, num_streams, at_once, num_tokens))
    ended_s = time.monotonic()
    troubles.stop()
    given_up, ladder = defaultdict(list), Counter[str]()
    for line in logged(made, since, "attempt_given_up"):
        given_up[str(line["why"])].append(float(str(line["quiet_ms"])))
    gaps = Gaps.of(logged(made, since, "answer_resumed"))
    ladder.update(str(line["rung"]) for line in logged(made, since, "ladder"))
    times = (between_s - began_s, ended_s - between_s)
    return Survived(first, second, *times, made.struck, dict(given_up), gaps, ladder)


@dataclass
class CutRow:
    """One system in the scenario of the dying worker."""

    name: str
    complete: int
    hit: int
    longest_gap_ms: float
    how: str
    gaps: Gaps = field(default_factory=Gaps)


def cut_ours(made: Network, times: int) -> CutRow:
    """Whoever serves is cut off after the client has seen 8 of 20 tokens, every time."""
    found, since = [], time.time()

    def cut_who_serves(number: int) -> None:
        if number == 8:
            lines = [node.line for node in made.nodes if node.line is not None]
            max(lines, key=lambda one: one.last_answer_s).cut(1.0)

    for seed in range(times):
        wait_until(lambda: serving(made) >= 2, "two nodes again")
        found.append(asyncio.run(ask(made.port, made.key, request(seed, 20), cut_who_serves)))
        time.sleep(1.5)
    complete = sum(one.done and not one.error and len(one.text) >= 20 for one in found)
    gap_ms = 1000 * max(one.longest_gap_s for one in found)
    gaps = Gaps.of(logged(made, since, "answer_resumed"))
    return CutRow("StarAI", complete, times, gap_ms, "every stream is cut", gaps)


@contextlib.contextmanager
def upstream(logs: Path, die_after: int) -> Iterator[int]:
    """A mock worker with 20 tokens at 30 ms; with ``die_after`` it aborts each stream."""
    port = free_port()
    command = [sys.executable, str(HERE / "mock_upstream.py"), "--port", str(port)]
    command += ["--delay", "0.03", "--die-after", str(die_after)]
    program = Program(command, logs / f"upstream-{port}.log")
    try:
        yield port
    finally:
        program.stop()


def install(peers: Path, name: str) -> Path:
    """A peer's own environment, made at the first run."""
    folder = peers / name
    program = folder / "bin" / name
    if not program.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-qq", "--no-compile"]
        subprocess.run([*pip, PEERS[name]], check=True)
    return program


def litellm(program: Path, logs: Path, port: int, dying: int, sound: int) -> Program:
    """LiteLLM's proxy: the dying worker first, the sound one as its fallback, two retries."""
    models = [
        {"model_name": name, "litellm_params": {
            "model": "openai/mock", "api_base": f"http://127.0.0.1:{at}/v1", "api_key": "x"}}
        for name, at in ((MODEL, dying), ("backup", sound))
    ]  # fmt: skip
    router = {"num_retries": 2, "fallbacks": [{MODEL: ["backup"]}]}
    config = logs / "litellm.json"
    config.write_text(json.dumps({"model_list": models, "router_settings": router}))
    command = [str(program), "--config", str(config), "--port", str(port), "--host", "127.0.0.1"]
    return Program(
        [*command, "--num_workers", "1"], logs / "litellm.log",
        LITELLM_MODE="PRODUCTION", LITELLM_LOG="ERROR", LITELLM_LOCAL_MODEL_COST_MAP="True",
        LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY="true",
    )  # fmt: skip


def vllm_router(program: Path, logs: Path, port: int, dying: int, sound: int) -> Program:
    """VLLM Router over both workers, in turn."""
    urls = [f"http://127.0.0.1:{at}" for at in (dying, sound)]
    command = [str(program), "--host", "127.0.0.1", "--port", str(port), "--worker-urls", *urls]
    command += ["--policy", "round_robin", "--prometheus-port", str(free_port())]
    return Program(command, logs / "vllm-router.log")


def cut_peer(name: str, peers: Path, logs: Path, times: int) -> CutRow:
    """A peer in front of a worker that dies after 8 of 20 tokens and one that does not."""
    program, port = install(peers, name), free_port()
    start = {"litellm": litellm, "vllm-router": vllm_router}[name]
    with upstream(logs, 8) as dying, upstream(logs, 0) as sound:
        running = start(program, logs, port, dying, sound)
        try:
            wait_until(lambda: _answers(port), name)
            found = [asyncio.run(ask(port, "x", request(0, 20))) for _ in range(times)]
        finally:
            running.stop()
    complete = sum(one.done and not one.error and one.num_tokens >= 20 for one in found)
    how = {
        "litellm": "the dying worker is first, the other its fallback",
        "vllm-router": "the workers take turns",
    }[name]
    gap_ms = 1000 * max(one.longest_gap_s for one in found)
    title = {"litellm": "LiteLLM", "vllm-router": "vLLM Router"}[name]
    version = PEERS[name].rpartition("=")[2]
    return CutRow(f"{title} {version}", complete, times, gap_ms, how)


def _answers(port: int) -> bool:
    whole = request(0, 20) | {"stream": False}
    seen = asyncio.run(ask(port, "x", {**whole, "stream": True}))
    return seen.num_tokens > 0


# -- the report ------------------------------------------------------------------------------


def spread(values: list[float]) -> str:
    """Count, median, 95th percentile and the largest."""
    if not values:
        return "0 | - | - | -"
    ordered = sorted(values)
    p95 = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
    return f"{len(ordered)} | {statistics.median(ordered):.0f} | {p95:.0f} | {ordered[-1]:.0f}"


def report(done: Survived, rows: list[CutRow], options: argparse.Namespace) -> str:
    """The result file."""
    total = len(done.troubled)
    errors = Counter(one.error for one in done.troubled if one.error)
    lines = [
        "# Streams through troubled nodes",
        "",
        (
            f"{dt.datetime.now(dt.UTC).date()}, {hardware()}, Python {platform.python_version()}, "
            f"load average {os.getloadavg()[0]:.1f} at the end{rank()}."
        ),
        (
            f"Command: `python benchmarks/network/failover.py {' '.join(sys.argv[1:])}`. The "
            "method is in benchmarks/README.md."
        ),
        "",
        (
            f"{total} streams of {options.tokens} tokens, {options.at_once} at once, over "
            f"{NUM_NODES} nodes (mock engine, {options.step_ms:g} ms a step), two distributors, "
            "one gateway, one NATS server."
        ),
        "",
        "| | undisturbed | with troubles |",
        "|---|---|---|",
        f"| streams complete | {sum(one.done for one in done.undisturbed)} | {done.complete} |",
        f"| text equal to the undisturbed run | - | {done.identical} |",
        f"| seconds in all | {done.undisturbed_s:.0f} | {done.troubled_s:.0f} |",
        f"| longest pause a client saw, ms | {gap(done.undisturbed)} | {gap(done.troubled)} |",
        "",
        f"Failures: {dict(errors) or 'none'}.",
        "",
        "Troubles, chosen by chance, each mended after 1 to 3 s, at most two nodes at a time:",
        "",
        *(f"- {name}: {times}" for name, times in sorted(done.struck.items())),
        "",
        "How long what was missed had been missing when a callee was given up, in ms (what the",
        "client waits before anything is done about it):",
        "",
        "| given up because | times | median | p95 | longest |",
        "|---|---|---|---|---|",
        *(f"| {why} | {spread(values)} |" for why, values in sorted(done.given_up.items())),
        "",
        "From giving up to the next token of the answer, whoever was asked in between, in ms. A",
        "task that comes to an engine in the middle of a step waits for its end first: half a step",
        "in the mean.",
        "",
        *done.gaps.table(options.step_ms),
        "",
        f"{done.gaps.hedged} of these came from a second node, because the first was mute, too.",
        "",
        f"Steps on the ladder, of all distributors and the gateway: {dict(done.ladder) or 'none'}.",
        "",
        "## A worker dies after 8 of 20 tokens",
        "",
        f"Streams one after the other, a token every {options.step_ms:g} ms here and every 30 ms",
        "at the peers. From giving up, ours, in ms:",
        "",
        *rows[0].gaps.table(options.step_ms),
        "",
        "| | complete | of | longest pause, ms | |",
        "|---|---|---|---|---|",
        *(
            f"| {row.name} | {row.complete} | {row.hit} | {row.longest_gap_ms:.0f} | {row.how} |"
            for row in rows
        ),
        "",
    ]
    return "\n".join(lines)


def rank() -> str:
    """Whether all of this ran before everything else on the machine (``chrt -r 1``)."""
    if os.sched_getscheduler(0) != os.SCHED_RR:
        return ""
    return ", but run by `chrt -r 1`, before all else that the machine was busy with"


def gap(streams: list[Stream]) -> str:
    """Each stream's longest pause: the median of streams, and the worst ones."""
    gaps = [1000 * one.longest_gap_s for one in streams]
    _, median, p95, longest = spread(gaps).split(" | ")
    return f"{median} (median), {p95} (p95), {longest} (longest)"


def hardware() -> str:
    """The machine in a few words."""
    return f"{os.cpu_count()} cores, {platform.machine()}"


def main() -> None:
    """Run both parts, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--at-once", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--step-ms", type=float, default=STEP_MS, help="of the mock engine")
    parser.add_argument("--every", type=float, default=1.0, help="seconds between troubles")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--peers", type=Path, default=ROOT / "build" / "peers")
    parser.add_argument("--only", default="litellm,vllm-router", help="peers, or nothing")
    parser.add_argument("--no-write", action="store_true", help="print the report only")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="starai-failover-"))
    with network(folder, options.step_ms) as made:
        done = survive(
            made, options.streams, options.at_once, options.tokens, options.seed, options.every
        )
        rows = [cut_ours(made, 10)]
    names = [name for name in options.only.split(",") if name]
    rows += [cut_peer(name, options.peers, folder, 10) for name in names]
    text = report(done, rows, options)
    text = re.sub(r"--peers \S+ ?", "", text)
    print(text)
    print(f"logs: {folder}")
    if not options.no_write:
        today = dt.datetime.now(dt.UTC).date()
        kind = "" if options.step_ms == STEP_MS else f"-{options.step_ms:g}-ms-steps"
        name = f"failover{kind}_{os.cpu_count()}-cores-{platform.machine()}_{today}.md"
        (HERE.parent / "results" / name).write_text(text)
        print(f"written: benchmarks/results/{name}")


if __name__ == "__main__":
    main()
