"""The runner over real worker processes: what a crash, a hang and a refusal mean for a task."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import msgspec
import pytest

from starai.core.clock import SystemClock
from starai.core.errors import ModelNotFound
from starai.core.limits import CHUNK_BYTES_MAX
from starai.engines.base import Emitted, EngineSpec
from starai.exchange.callee.serving import Refused, ServedTask
from starai.models.catalog import open_model
from starai.node import runner as module
from starai.node.runner import Runner, Speed
from starai.protocol import tokens
from starai.protocol.generation import Finish, Generation, Grammar, Sampling, TokenLogprobs
from starai.protocol.subjects import Role
from starai.protocol.tasks import RefusalCode, TaskHeader
from starai.sealing import derive_keys
from starai.testing.engine_server import EngineServer, serving
from starai.testing.parties import Parties
from starai.wire.memory import MemoryNetwork

pytestmark = pytest.mark.anyio

MOCK = open_model("mock")


class Scene:
    """A running runner, and tasks for it whose parts come back here."""

    def __init__(self, parties: Parties, runner: Runner) -> None:
        self.runner = runner
        self.caller, self.callee = parties.join(Role.DISTRIBUTOR), parties.join(Role.NODE)
        self.number = 0

    def task(self, root: bytes = MOCK.root, **changes: object) -> ServedTask:
        self.number += 1
        generation = Generation(
            prompt=tokens.pack(b"hello"),
            max_tokens=30,
            sampling=Sampling(b"k" * 32, logit_bias={256: -100.0}),
            stop_token_ids=MOCK.eos_token_ids,
            salt=b"s" * 16,
        )
        header = TaskHeader(
            *(self.number.to_bytes(16, "big"), 2**31, self.caller.identity.party),
            *(self.callee.identity.party, b"i" * 16, root, 5, 30, 1, 2, 0, 0, 0, 0, b"h" * 32),
        )
        generation = msgspec.structs.replace(generation, **changes)
        return ServedTask(header, generation, derive_keys(b"S" * 32, header), self.callee.wire)

    async def ready(self) -> int:
        """Wait for a worker; its pid."""
        with anyio.fail_after(20):
            while self.runner._worker is None:
                await anyio.sleep(0.01)
        return self.runner._worker.pid


@asynccontextmanager
async def scene(slots: int = 2, delay_ms: float = 0.0) -> AsyncIterator[Scene]:
    spec = EngineSpec("mock", "mock", slots=slots, options={"step_delay_ms": delay_ms})
    async with MemoryNetwork() as network, anyio.create_task_group() as group:
        runner = Runner(spec, SystemClock())
        made = Scene(Parties(network, clock=SystemClock()), runner)
        group.start_soon(runner.run)
        yield made
        group.cancel_scope.cancel()


async def refusal_of(made: Scene, task: ServedTask) -> Refused:
    with pytest.raises(Refused) as refused:
        await made.runner.answer(task)
    return refused.value


async def test_a_task_is_answered_to_its_end_and_measured() -> None:
    """All tokens are sent, the finish with the last; the speeds are known afterwards."""
    async with scene(delay_ms=1) as made:
        await made.ready()
        task = made.task()
        await made.runner.answer(task)
        assert (task.finished, task.num_sent) == (True, 30)
        assert made.runner.num_tokens == 30
        assert made.runner.num_running == 0
        assert 0 < made.runner.decode.tps < 1100
        assert made.runner.prefill.tps > 0


async def test_before_the_engine_is_ready_a_task_is_sent_elsewhere() -> None:
    """While the model loads the answer is busy, with a time to come back."""
    async with scene() as made:
        refused = await refusal_of(made, made.task())
        assert (refused.code, made.runner.info) == (RefusalCode.BUSY, None)
        assert refused.retry_after_ms > 0


async def test_another_model_is_refused_by_name() -> None:
    """The root in the header decides, not a name."""
    async with scene() as made:
        await made.ready()
        assert (await refusal_of(made, made.task(b"?" * 32))).code == RefusalCode.UNKNOWN_MODEL


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"prompt": tokens.pack([65] * 9000)}, RefusalCode.CONTEXT_TOO_LONG),
        ({"prompt": b""}, RefusalCode.INVALID_REQUEST),
        ({"max_tokens": 0}, RefusalCode.INVALID_REQUEST),
        ({"max_tokens": -(2**63)}, RefusalCode.INVALID_REQUEST),
        ({"top_logprobs": 2**40}, RefusalCode.INVALID_REQUEST),
        ({"sampling": Sampling(b"k" * 32, temperature=float("nan"))}, RefusalCode.INVALID_REQUEST),
        ({"sampling": Sampling(b"k" * 32, top_p=float("inf"))}, RefusalCode.INVALID_REQUEST),
        ({"sampling": Sampling(b"k" * 32, logit_bias={-1: 1.0})}, RefusalCode.INVALID_REQUEST),
        ({"sampling": Sampling(b"k" * 32, logit_bias={2**60: 1.0})}, RefusalCode.INVALID_REQUEST),
        (
            {"sampling": Sampling(b"k" * 32, logit_bias={1: float("nan")})},
            RefusalCode.INVALID_REQUEST,
        ),
    ],
    ids=[
        *("long", "empty", "no tokens", "negative tokens", "rivals"),
        *("nan heat", "infinite top_p", "bias of -1", "bias of nobody", "nan bias"),
    ],
)
async def test_what_makes_no_sense_is_refused_and_disturbs_nobody(
    changes: dict[str, object], code: str
) -> None:
    """The engine's refusal becomes the task's, and the worker lives on."""
    async with scene() as made:
        pid = await made.ready()
        assert (await refusal_of(made, made.task(**changes))).code == code
        await made.runner.answer(made.task())
        assert await made.ready() == pid


async def test_more_tasks_than_slots_are_refused_as_busy() -> None:
    """A slot too many is refused at once; the others are not touched."""
    async with scene(slots=1, delay_ms=5) as made, anyio.create_task_group() as group:
        await made.ready()
        group.start_soon(made.runner.answer, made.task())
        await anyio.sleep(0.05)
        assert (await refusal_of(made, made.task())).code == RefusalCode.BUSY


async def test_a_cancelled_task_frees_its_slot() -> None:
    """Whoever goes away leaves the engine to others."""
    async with scene(slots=1, delay_ms=5) as made:
        await made.ready()
        with anyio.move_on_after(0.05):
            await made.runner.answer(made.task())
        assert made.runner.num_running == 0
        assert made.runner.num_unread == 0
        await made.runner.answer(made.task())


async def test_what_is_still_to_be_read_is_counted_until_the_first_token() -> None:
    """Beats tell it, so that nobody piles long prompts on a node that reads already."""
    async with scene(slots=2, delay_ms=100) as made, anyio.create_task_group() as group:
        await made.ready()
        for _ in range(2):
            group.start_soon(made.runner.answer, made.task(prompt=tokens.pack([65] * 50)))
        await anyio.sleep(0.05)
        assert made.runner.num_unread == 100
        with anyio.fail_after(5):
            while made.runner.num_unread:
                await anyio.sleep(0.01)
        assert made.runner.num_running == 2
        group.cancel_scope.cancel()
    assert made.runner.num_unread == 0


async def test_a_crash_of_the_engine_fails_its_tasks_and_nothing_else() -> None:
    """SIGKILL of the worker: the task is refused as the engine's failure, and a new one serves."""
    async with scene(delay_ms=20) as made:
        pid = await made.ready()

        async def kill() -> None:
            await anyio.sleep(0.1)
            os.kill(pid, signal.SIGKILL)

        async with anyio.create_task_group() as group:
            group.start_soon(kill)
            refused = await refusal_of(made, made.task())
        assert refused.code == RefusalCode.ENGINE_FAILED
        await anyio.sleep(0.05)
        assert await made.ready() != pid
        await made.runner.answer(made.task(max_tokens=3))


async def test_a_hanging_engine_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stopped worker gives no sign of life; it is killed, and its task goes elsewhere."""
    monkeypatch.setattr(module, "HANG_S", 0.5)
    async with scene(delay_ms=20) as made:
        pid = await made.ready()
        task = made.task()

        async def stop() -> None:
            await anyio.sleep(0.1)
            assert task.is_alive()
            os.kill(pid, signal.SIGSTOP)
            await anyio.sleep(0.7)
            assert not task.is_alive()

        async with anyio.create_task_group() as group:
            group.start_soon(stop)
            with anyio.fail_after(10):
                assert (await refusal_of(made, task)).code == RefusalCode.ENGINE_FAILED
        assert await made.ready() != pid


async def test_steps_that_nobody_could_keep_fail_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wire that takes nothing for too long costs the attempt, never a token in the middle."""
    monkeypatch.setattr(module, "EMITTED_MAX", 3)
    async with scene(delay_ms=1) as made:
        await made.ready()
        task = made.task()

        async def stuck(*_: object, **__: object) -> None:
            await anyio.sleep(0.3)

        monkeypatch.setattr(task, "send", stuck)
        assert (await refusal_of(made, task)).code == RefusalCode.ENGINE_FAILED


async def test_a_continued_answer_begins_behind_what_was_accepted() -> None:
    """Only the missing tokens are sent."""
    async with scene() as made:
        await made.ready()
        task = made.task(accepted=tokens.pack([40] * 25))
        await made.runner.answer(task)
        assert task.num_sent == 5


async def test_a_model_that_cannot_be_served_ends_the_runner() -> None:
    """Starting again would not help: the reason comes out."""
    runner = Runner(EngineSpec("mock", "no/such-model"), SystemClock())
    with anyio.fail_after(20), pytest.raises(ModelNotFound):
        await runner.run()


def test_speed_is_smoothed_and_ignores_nonsense() -> None:
    """The first measurement counts fully, the next ones a share; empty ones not at all."""
    speed = Speed()
    speed.measured(0, 1.0)
    speed.measured(5, 0.0)
    assert speed.tps == 0.0
    speed.measured(100, 1.0)
    assert speed.tps == 100.0
    speed.measured(200, 1.0)
    assert speed.tps == pytest.approx(100 + 100 / 3)


@pytest.mark.parametrize(
    ("kind", "bits", "said"),
    [("text", 16, ""), ("text", 8.0, "int8"), ("text", 4, "int4"), ("external", 16, "unknown")],
)
async def test_how_weights_are_kept_is_told(kind: str, bits: float, said: str) -> None:
    """Answers are compared among nodes that keep their weights alike."""
    spec = EngineSpec(kind, "mock", options={"bits": bits})
    assert Runner(spec, SystemClock()).quantisation == said


def test_tasks_correct_a_predicted_speed() -> None:
    """A prediction stands until it is measured; then little of it is left after five tasks."""
    speed = Speed(1000.0)
    assert speed.tps == 1000.0
    speed.measured(100, 1.0)
    assert speed.tps == pytest.approx(550.0)
    for _ in range(5):
        speed.measured(100, 1.0)
    assert speed.tps < 250


async def test_many_steps_at_once_become_parts_that_fit() -> None:
    """An engine that ran ahead of the wire, with 20 rivals a token: no part is too large."""
    steps: list[Emitted | None] = []
    for number in range(300):
        rivals = tuple((1 << 20, -0.123456789) for _ in range(20))
        one = TokenLogprobs(number, -0.5, rivals)
        steps.append(Emitted(b"key", (number,), (one,)))
    steps.append(Emitted(b"key", (300,), (one,), Finish.LENGTH))
    async with scene() as made:
        task, sizes = made.task(), []
        seal = task._sealer.seal

        def seen(*part: Any) -> bytes:
            sizes.append(len(seal(*part)))
            return b""

        task._sealer.seal = seen  # type: ignore[method-assign]
        await made.runner._send(task, steps)
        assert (task.num_sent, task.finished) == (301, True)
    assert len(sizes) == 3
    assert max(sizes) <= CHUNK_BYTES_MAX


async def test_an_engine_is_unloaded_and_loaded_again() -> None:
    """Its process ends, its tasks are refused as drained, and it comes back when it may."""
    async with scene(delay_ms=20) as made:
        pid = await made.ready()
        assert made.runner.pids() == (os.getpid(), pid)
        async with anyio.create_task_group() as group:
            refused: list[str] = []

            async def answer() -> None:
                refused.append((await refusal_of(made, made.task())).code)

            group.start_soon(answer)
            await anyio.sleep(0.2)
            made.runner.unload()
        assert refused == [RefusalCode.DRAINING]
        await anyio.sleep(0.5)
        assert made.runner.info is None
        assert made.runner.pids() == (os.getpid(),)
        assert (await refusal_of(made, made.task())).code == RefusalCode.BUSY
        made.runner.load()
        assert await made.ready() != pid
        await made.runner.answer(made.task())


async def test_a_paced_engine_takes_its_time_and_finishes() -> None:
    """A quarter of the time makes an answer about four times as long, also after a restart."""
    async with scene(delay_ms=5) as made:
        pid = await made.ready()
        for share in (0.25, 0.25):
            await made.runner.pace(share)
            began_s = anyio.current_time()
            await made.runner.answer(made.task())
            assert anyio.current_time() - began_s > 30 * 0.005 * 3
            os.kill(pid, signal.SIGKILL)
            with anyio.fail_after(10):
                while made.runner._worker is not None and made.runner._worker.pid == pid:
                    await anyio.sleep(0.01)
            pid = await made.ready()


async def test_each_worker_is_tamed_before_it_does_anything() -> None:
    """What lowers its priority hears of every worker process, once."""
    tamed: list[int] = []
    async with MemoryNetwork(), anyio.create_task_group() as group:
        runner = Runner(EngineSpec("mock", "mock"), SystemClock(), tamed.append)
        group.start_soon(runner.run)
        with anyio.fail_after(10):
            while runner.info is None:
                await anyio.sleep(0.01)
        assert tamed == [runner.pids()[1]]
        group.cancel_scope.cancel()


async def test_a_few_tasks_wait_for_a_slot_in_order_and_more_are_refused() -> None:
    """Two distributors that saw the same free slot are both served, one after the other."""
    async with scene(slots=4, delay_ms=2) as made, anyio.create_task_group() as group:
        await made.ready()
        done: list[int] = []

        async def run(number: int, task: ServedTask) -> None:
            await made.runner.answer(task)
            done.append(number)

        for number in range(5):
            group.start_soon(run, number, made.task())
        await anyio.sleep(0.02)
        assert (made.runner.num_running, made.runner.num_waiting) == (4, 1)
        assert (await refusal_of(made, made.task())).code == RefusalCode.BUSY
        with anyio.fail_after(10):
            while len(done) < 5:
                await anyio.sleep(0.01)
        assert done[-1] == 4
        assert (made.runner.num_running, made.runner.num_waiting) == (0, 0)


async def test_an_answer_in_its_middle_waits_before_new_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of two that wait, the one that goes on with an answer has the first slot that is free."""
    monkeypatch.setattr(module, "WAIT_FOR_SLOT_S", 60.0)
    async with scene(slots=8, delay_ms=5) as made, anyio.create_task_group() as group:
        await made.ready()
        done: list[str] = []

        async def run(name: str, task: ServedTask) -> None:
            await made.runner.answer(task)
            done.append(name)

        async def wait(name: str, number: int, **changes: object) -> None:
            group.start_soon(run, name, made.task(**changes))
            while made.runner.num_waiting < number:
                await anyio.sleep(0.005)

        group.start_soon(run, "first", made.task(max_tokens=100))
        for _ in range(7):
            group.start_soon(run, "endless", made.task(max_tokens=8000))
        with anyio.fail_after(30):
            await wait("new", 1)
            await wait("resumed", 2, accepted=tokens.pack([1, 2]))
            while len(done) < 3:
                await anyio.sleep(0.01)
        assert done == ["first", "resumed", "new"]
        group.cancel_scope.cancel()


async def test_who_waits_in_vain_is_refused_and_who_leaves_is_no_gap(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A wait for a slot has an end, and a cancelled one does not keep the next from its turn."""
    monkeypatch.setattr(module, "WAIT_FOR_SLOT_S", 0.2)
    async with scene(slots=4, delay_ms=20) as made, anyio.create_task_group() as group:
        await made.ready()
        for _ in range(4):
            group.start_soon(made.runner.answer, made.task())
        await anyio.sleep(0.05)
        with anyio.move_on_after(0.05):
            await made.runner.answer(made.task())
        assert made.runner.num_waiting == 0
        assert (await refusal_of(made, made.task())).code == RefusalCode.BUSY
        assert made.runner.num_waiting == 0


async def test_an_engine_that_cannot_take_the_probe_is_ready(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server of texts that says that it cannot is alive; one that fails is not ready."""
    server = EngineServer("openai")
    with serving(server):
        spec = EngineSpec("external", "mock", options={"url": server.url})
        async with anyio.create_task_group() as group:
            runner = Runner(spec, SystemClock())
            group.start_soon(runner.run)
            with anyio.fail_after(20):
                while runner.info is None:
                    await anyio.sleep(0.01)
            assert await runner.probe()
            server.status = 500
            assert not await runner.probe()
            odd = msgspec.structs.replace(module._PROBE, grammar=Grammar("json_object"))
            monkeypatch.setattr(module, "_PROBE", odd)
            assert await runner.probe()
            group.cancel_scope.cancel()
