"""Several of everything: any one process may die, and no stream that another can carry is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import httpx
import openai
import pytest
from tests.acceptance.conftest import free_port

from starai.local.asking import Operator, operator
from starai.local.home import Home
from starai.models.catalog import open_model
from starai.protocol.identity import Identity
from starai.protocol.presence import Beat
from starai.protocol.subjects import Role

if TYPE_CHECKING:
    from tests.acceptance.conftest import Up

NUM_TOKENS = 60
STEP_MS = 20
SEEDS = (1, 2, 3, 4)
#: A service that died is back within this on a machine that is busy with much else.
BACK_S = 60.0
SEVERAL = (
    *("--model", "mock", "--step-delay-ms", str(STEP_MS), "--nodes", "3"),
    *("--gateways", "2", "--distributors", "2", "--nats-servers", "3"),
)


@pytest.fixture(scope="module")
def several(start_up: Callable[..., Up]) -> Iterator[Up]:
    """Three NATS servers, two gateways, two distributors, three nodes."""
    up = start_up(*SEVERAL)
    wait_for_beats(up, {"node-1", "node-2", "node-3"})
    yield up
    up.stop()


def client_of(up: Up, gateway: int = 0) -> openai.OpenAI:
    """A client of one of the gateways that tries nothing again by itself."""
    url = f"{up.facts['urls'][gateway]}/v1"
    return openai.OpenAI(base_url=url, api_key=up.api_key, max_retries=0, timeout=60)


def wait_until_ready(up: Up, gateway: int) -> None:
    """A gateway that beats may not yet have heard who serves what."""
    deadline_s = time.monotonic() + BACK_S
    while time.monotonic() < deadline_s:
        with suppress(httpx.HTTPError):
            if httpx.get(f"{up.facts['urls'][gateway]}/readyz", timeout=5).status_code == 200:
                return
        time.sleep(0.1)
    pytest.fail(f"gateway {gateway} is not ready")


def pieces(
    client: openai.OpenAI, seed: int, number: int = NUM_TOKENS, **more: Any
) -> Iterator[str]:
    """An answer of exactly so many tokens as it comes; ends only with the answer's end."""
    (end,) = open_model("mock").eos_token_ids
    finish = None
    for chunk in client.chat.completions.create(
        model="mock",
        messages=[{"role": "user", "content": "Hi"}],
        seed=seed,
        max_tokens=number,
        logit_bias={str(end): -100},
        stream=True,
        **more,
    ):
        if chunk.choices:
            finish = chunk.choices[0].finish_reason or finish
            if chunk.choices[0].delta.content:
                yield chunk.choices[0].delta.content
    assert finish == "length"


class Load:
    """Steady streams through the first gateway, each compared with its undisturbed text."""

    def __init__(self, up: Up, number: int) -> None:
        self._client = client_of(up)
        self._expected = {seed: "".join(pieces(self._client, seed)) for seed in SEEDS}
        self._over = threading.Event()
        self._pool = ThreadPoolExecutor(number)
        self._workers: list[Future[None]] = [
            self._pool.submit(self._work, SEEDS[one % len(SEEDS)]) for one in range(number)
        ]
        self.outcomes: Counter[str] = Counter()

    def _work(self, seed: int) -> None:
        while not self._over.is_set():
            try:
                same = "".join(pieces(self._client, seed)) == self._expected[seed]
                self.outcomes["complete" if same else "changed"] += 1
            except (openai.OpenAIError, httpx.HTTPError) as error:
                self.outcomes[repr(error)[:200]] += 1

    def end(self) -> None:
        self._over.set()
        for worker in self._workers:
            worker.result(60)
        self._pool.shutdown()


@contextmanager
def load(up: Up, number: int = 6) -> Iterator[Load]:
    """Streams that begin and end all the time; every one of them must be whole and right."""
    running = Load(up, number)
    try:
        yield running
    finally:
        running.end()
    assert set(running.outcomes) == {"complete"}, running.outcomes


def asked(up: Up, question: Callable[[Operator], Any]) -> Any:
    """What the operator learns, without the time that a process of its own takes."""

    async def ask() -> Any:
        async with operator(Home(up.home)) as made:
            return await question(made)

    return anyio.run(ask)


def wait_for_beats(up: Up, names: set[str]) -> None:
    """Wait until the services called so beat, and nodes among them serve."""
    home = Home(up.home)
    wanted = {Identity.from_seed(home.party(name).seed).party for name in names}
    limit = time.monotonic() + BACK_S
    while missing := wanted - {beat.party for beat in asked(up, Operator.listen) if at_work(beat)}:
        assert time.monotonic() < limit, [home.party_names()[one] for one in missing]


def kill(up: Up, name: str, number: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to the process that has that name now."""
    pid = up.pid(name)
    if name.startswith("nats"):
        folder = up.home / "authority" / name.replace("nats-1", "")
        pid = up.pid("--config", str(folder / "nats.conf"))
    assert pid, name  # 0 would be our own process group
    os.kill(pid, number)


def wait_ready(url: str) -> None:
    """Wait until a gateway can serve."""
    limit = time.monotonic() + BACK_S
    while time.monotonic() < limit:
        with suppress(httpx.HTTPError):
            if httpx.get(f"{url}/readyz", timeout=1, trust_env=False).status_code == 200:
                return
        time.sleep(0.1)
    raise AssertionError(url)


def at_work(beat: Beat) -> bool:
    return not beat.draining and (beat.role != Role.NODE.value or bool(beat.models))


def wait_until_both_sides_agree(up: Up) -> dict[str, int]:
    """Wait until nothing on record is one-sided or contradicted; the totals."""

    async def totals(made: Operator) -> Any:
        return (await made.ask("ledger", limit=1))["totals"]

    limit = time.monotonic() + BACK_S
    while True:
        found: dict[str, int] = asked(up, totals)
        assert found["conflicting"] == 0
        if found["records"] and not found["waiting"]:
            return found
        assert time.monotonic() < limit, found
        time.sleep(0.5)


def test_gateways_share_the_work_among_the_distributors(several: Up) -> None:
    """Streams at once through both gateways: each distributor carries some of either's."""
    clients = [client_of(several, gateway) for gateway in (0, 1) for _ in range(6)]
    with ThreadPoolExecutor(len(clients)) as pool:
        texts = set(pool.map(lambda client: "".join(pieces(client, 1)), clients))
    assert len(texts) == 1
    done = {beat.party: beat.done for beat in asked(several, Operator.listen)}
    names = Home(several.home).party_names()
    by_name = {names[party]: number for party, number in done.items()}
    assert (by_name["gateway"], by_name["gateway-2"]) == (6, 6)
    assert min(by_name["distributor"], by_name["distributor-2"]) >= 3


def test_a_request_that_one_distributor_is_too_busy_for_goes_to_another(several: Up) -> None:
    """Beside one that says that it has room and then refuses, every answer comes, and is right."""
    expected = "".join(pieces(client_of(several), 2, 5))
    token = several.starai("tokens", "create", "--role", "distributor").strip()
    program = str(Path(__file__).parent / "busy_distributor.py")
    log = several.home / "busy.log"
    with log.open("wb") as sink:
        busy = subprocess.Popen(
            [sys.executable, program, str(several.home / "busy"), "busy"],
            env={**os.environ, "STARAI_TOKEN": token},
            stdout=sink,
        )
    try:
        limit = time.monotonic() + BACK_S
        while not log.read_text():
            assert "".join(pieces(client_of(several), 2, 5)) == expected
            assert busy.poll() is None
            assert time.monotonic() < limit, "nobody asked the busy one"
    finally:
        busy.kill()
        busy.wait()


@pytest.mark.timeout(180)
def test_any_one_process_may_die(several: Up) -> None:
    """SIGKILL to each kind of process, one after another: every stream is whole, byte for byte."""
    with load(several) as running:
        for name in ("distributor", "node-1", "nats-2", "registry", "gateway-2"):
            time.sleep(1.0)
            os.kill(int(several.facts["pids"][name]), signal.SIGKILL)
        time.sleep(1.0)
    assert running.outcomes["complete"] >= 10


@pytest.mark.timeout(180)
def test_a_gateway_that_stops_or_dies(several: Up) -> None:
    """Stopped, it ends its streams first; killed, a retry by another gateway has the answer."""
    wait_for_beats(several, {"gateway-2", "registry"})
    wait_until_ready(several, 1)
    number = 200  # takes longer than the lease of who does not beat any more
    with ThreadPoolExecutor(1) as pool:
        expected = pool.submit(lambda: "".join(pieces(client_of(several), 5, number)))
        stream = pieces(client_of(several, 1), 5, number)
        begun = [next(stream) for _ in range(5)]
        kill(several, "gateway-2", signal.SIGTERM)
        assert "".join([*begun, *stream]) == expected.result()
    wait_for_beats(several, {"gateway-2"})
    wait_until_ready(several, 1)
    headers = {"Idempotency-Key": "once"}
    stream = pieces(client_of(several, 1), 6, extra_headers=headers)
    next(stream)
    kill(several, "gateway-2")
    with pytest.raises((openai.OpenAIError, httpx.HTTPError)):
        list(stream)
    again = "".join(pieces(client_of(several), 6, extra_headers=headers))
    assert again == "".join(pieces(client_of(several), 6))


@pytest.mark.slow
def test_a_gateway_elsewhere_joins_with_a_token(several: Up, tmp_path: Path) -> None:
    """One command with a token in a home of its own, and it answers with everybody's keys."""

    async def create(made: Operator) -> str:
        return await made.create_token(Role.GATEWAY, 1, 60_000, "")

    port = free_port()
    words = ("serve", "gateway", "--model", "mock", "--port", str(port))
    env = {**os.environ, "STARAI_TOKEN": asked(several, create)}
    process = several.spawn(*words, home=tmp_path, env=env)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_ready(url)
        client = openai.OpenAI(base_url=f"{url}/v1", api_key=several.api_key, max_retries=0)
        assert "".join(pieces(client, 1)) == "".join(pieces(client_of(several), 1))
    finally:
        process.terminate()
        assert process.wait(30) == 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_rolling_restart_under_load(several: Up) -> None:
    """Every process is stopped once and comes back, then killed: no stream is lost by either."""
    names = (
        *("registry", "distributor", "distributor-2", "gateway-2"),
        *("node-1", "node-2", "node-3"),
    )
    wait_for_beats(several, set(names))
    with load(several) as running:
        for number in (signal.SIGTERM, signal.SIGKILL):
            for name in names:
                kill(several, name, number)
                time.sleep(3)  # its lease is over: from here on, beats are those of its new self
                wait_for_beats(several, set(names))
        for name in ("nats-1", "nats-2", "nats-3"):
            kill(several, name)
            time.sleep(3)
    assert running.outcomes["complete"] >= 50


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_distributors_outbox_survives_it(start_up: Callable[..., Up]) -> None:
    """Killed with records that the registry has not heard of, it sends them when it is back."""
    up = start_up("--model", "mock")
    wait_for_beats(up, {"node-1"})
    registry = int(up.facts["pids"]["registry"])
    os.kill(registry, signal.SIGSTOP)
    texts = {"".join(pieces(client_of(up), 1)) for _ in range(20)}
    os.kill(int(up.facts["pids"]["distributor"]), signal.SIGKILL)
    os.kill(registry, signal.SIGCONT)
    assert len(texts) == 1
    wait_for_beats(up, {"distributor"})
    totals = wait_until_both_sides_agree(up)
    assert totals["matched"] == 20
    up.stop()
