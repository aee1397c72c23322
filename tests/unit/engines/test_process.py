"""An engine in its own process: it answers, it fails alone, it dies loudly and never lingers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import pytest

from starai.core.errors import ConfigurationRefused, EngineDied, ModelFileRefused, ModelNotFound
from starai.engines.base import Emitted, EngineSpec
from starai.engines.process import EngineWorker, engine_process
from starai.protocol import tokens
from starai.protocol.generation import Finish, Generation, Grammar, Sampling

MOCK = EngineSpec("mock", "mock")


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param


def generation(**changes) -> Generation:
    values = {
        "prompt": tokens.pack(list(b"hello")),
        "max_tokens": 100,
        "sampling": Sampling(b"k" * 32),
        "stop_token_ids": (256,),
        "salt": b"s" * 16,
    }
    return Generation(**{**values, **changes})


async def until_ended(
    worker: EngineWorker, *keys: bytes, stop_at: bytes | None = None
) -> dict[bytes, list[Emitted]]:
    seen: dict[bytes, list[Emitted]] = {key: [] for key in keys}
    awaited = keys if stop_at is None else (stop_at,)
    with anyio.fail_after(20):
        while any(not seen[k] or not (seen[k][-1].finish or seen[k][-1].error) for k in awaited):
            for news in await worker.events():
                seen[news.key].append(news)
    return seen


async def forever(call: Callable[[], Awaitable[object]]) -> None:
    while True:
        await call()


@pytest.mark.anyio
async def test_answers_come_through_the_pipe():
    """A worker serves several sequences, token by token, to their ends."""
    async with engine_process(MOCK) as worker:
        assert worker.info.name == "mock"
        for key in (b"a", b"b"):
            worker.admit(key, generation())
        seen = await until_ended(worker, b"a", b"b")
    ids = [id_ for news in seen[b"a"] for id_ in news.ids]
    assert len(ids) == 21
    assert ids[-1] == 256
    assert seen[b"a"][-1].finish is Finish.STOP
    assert [n.ids for n in seen[b"a"]] == [n.ids for n in seen[b"b"]]


@pytest.mark.anyio
async def test_a_refused_request_fails_alone():
    """A request that cannot be admitted comes back as an error; its neighbour goes on."""
    async with engine_process(MOCK) as worker:
        worker.admit(b"good", generation())
        worker.admit(b"long", generation(prompt=tokens.pack(range(200)) * 100))
        worker.admit(b"odd", generation(prompt=b"abc"))
        seen = await until_ended(worker, b"good", b"long", b"odd")
    assert seen[b"long"][-1].error == "context_length_exceeded"
    assert seen[b"odd"][-1].error == "invalid_request"
    assert seen[b"good"][-1].finish is Finish.STOP


@pytest.mark.anyio
async def test_cancelled_sequences_fall_silent_and_idle_workers_pulse():
    """After a cancellation only pulses come."""
    spec = EngineSpec("mock", "mock", options={"step_delay_ms": 5, "tokens": 100000})
    async with engine_process(spec) as worker:
        worker.admit(b"a", generation(max_tokens=100000))
        with anyio.fail_after(5):
            while not await worker.events():
                pass
        worker.cancel(b"a")
        worker.cancel(b"never seen")
        with anyio.fail_after(5):
            while await worker.events():
                pass
        with anyio.fail_after(2):
            assert await worker.events() == []


@pytest.mark.anyio
async def test_a_costly_grammar_keeps_nobody_waiting():
    """Who came after it has whole answers before its own begins."""
    pytest.importorskip("torch")
    asked = {"prompt": tokens.pack([5, 6]), "stop_token_ids": (), "max_tokens": 5}
    costly = Grammar("json_schema", '{"type":"number","multipleOf":99991}')
    async with engine_process(EngineSpec("text", "embedded", threads=1)) as worker:
        worker.admit(b"costly", generation(**asked, grammar=costly))
        worker.admit(b"plain", generation(**asked))
        seen = await until_ended(worker, b"plain", b"costly", stop_at=b"plain")
        assert seen[b"costly"] == []
        await until_ended(worker, b"costly")


@pytest.mark.anyio
async def test_a_killed_worker_is_noticed_at_once():
    """Kill -9 of the worker raises EngineDied from events, and from admit afterwards."""
    spec = EngineSpec("mock", "mock", options={"step_delay_ms": 20, "tokens": 100000})
    async with engine_process(spec) as worker:
        worker.admit(b"a", generation(max_tokens=100000))
        with anyio.fail_after(5):
            while not await worker.events():
                pass
        os.kill(worker.pid, signal.SIGKILL)
        with anyio.fail_after(1):
            with pytest.raises(EngineDied):
                await forever(worker.events)
            with pytest.raises(EngineDied):
                worker.admit(b"b", generation())


@pytest.mark.anyio
async def test_a_worker_that_takes_too_little_is_ended():
    """When too much waits for its pipe it is asked for nothing more, and another can be started."""
    async with engine_process(MOCK) as worker:
        os.kill(worker.pid, signal.SIGSTOP)

        def ask_for_much() -> None:
            for number in range(1000):
                worker.admit(b"%d" % number, generation(prompt=bytes(1 << 20)))

        with pytest.raises(EngineDied, match="takes no requests"):
            ask_for_much()
        os.kill(worker.pid, signal.SIGCONT)
        with anyio.fail_after(8), pytest.raises(EngineDied):
            await forever(worker.events)


@pytest.mark.anyio
async def test_leaving_the_context_ends_the_child():
    """No worker outlives its context, even in the middle of a long step."""
    spec = EngineSpec("mock", "mock", options={"step_delay_ms": 60_000})
    async with engine_process(spec) as worker:
        worker.admit(b"a", generation())
        await anyio.sleep(0.1)
        pid = worker.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("spec", "refusal"),
    [
        (EngineSpec("text", "no/such/model"), ModelNotFound),
        (EngineSpec("text", "mock"), ConfigurationRefused),
        (EngineSpec("video", "mock"), ConfigurationRefused),
    ],
)
async def test_an_engine_that_cannot_open_says_why(spec, refusal):
    """The worker's refusal reaches the parent as the same error."""
    with pytest.raises(refusal):
        async with engine_process(spec):
            pass


@pytest.mark.anyio
async def test_a_damaged_model_is_refused_through_the_pipe(tmp_path: Path):
    """A truncated model file is named in the parent's error."""
    (tmp_path / "x.bin").write_bytes(b"short")
    with pytest.raises(ModelFileRefused, match=r"x\.bin"):
        async with engine_process(EngineSpec("text", str(tmp_path / "x.bin"))):
            pass


def test_a_worker_ends_when_its_parent_does():
    """A worker whose stdin closes ends by itself, whatever it is doing."""
    child = subprocess.Popen(
        [sys.executable, "-m", "starai.engines.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    child.stdin.close()
    assert child.wait(timeout=10) == 0
