"""The scripted task port does what its script says."""

import anyio
import pytest
import trio.testing

from starai.core.errors import ModelNotFound, Unavailable
from starai.protocol.generation import Finish, Generation, Sampling
from starai.protocol.ports import Submission
from starai.protocol.tokens import unpack
from starai.testing.tasks import MOCK_EOS, Script, ScriptedTasks, says

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return ("trio", {"clock": trio.testing.MockClock(autojump_threshold=0)})


def task(model="mock", max_tokens=100, top_logprobs=None):
    sampling = Sampling(sample_key=bytes(32))
    generation = Generation(b"", max_tokens, sampling, (MOCK_EOS,), bytes(16), b"", top_logprobs)
    return Submission(bytes(16), model, bytes(32), 0, 0, generation)


async def collect(tasks, submission):
    async with tasks.submit(submission) as parts:
        return [part async for part in parts]


async def test_tokens_and_finish():
    """The script's tokens come in parts, the last with the finish."""
    tasks = ScriptedTasks(says("abc", tokens_per_part=3))
    parts = await collect(tasks, task())
    assert [unpack(part.ids) for part in parts] == [[*b"abc"], [MOCK_EOS]]
    assert [part.finish for part in parts] == [None, Finish.STOP]
    assert (len(tasks.finished), tasks.running) == (1, 0)


async def test_max_tokens():
    """A task's limit cuts the script."""
    parts = await collect(ScriptedTasks(says("abc")), task(max_tokens=2))
    assert parts[-1].finish is Finish.LENGTH
    assert len(parts) == 2


async def test_delays_are_virtual():
    """Delays follow the loop's clock."""
    await collect(ScriptedTasks(says("ab", first_delay_s=3600, delay_s=60)), task())
    assert anyio.current_time() == pytest.approx(3720)


async def test_faults():
    """A script can fail at once, fail later, stall and break off."""
    with pytest.raises(Unavailable):
        await collect(ScriptedTasks(Script(fails_at=-1, error=Unavailable("x"))), task())
    with pytest.raises(Unavailable):
        await collect(ScriptedTasks(Script(fails_at=1, error=Unavailable("x"))), task())
    assert len(await collect(ScriptedTasks(Script(breaks_at=2)), task())) == 2
    tasks = ScriptedTasks(Script(stalls_at=1))
    with anyio.move_on_after(1000) as scope:
        await collect(tasks, task())
    assert scope.cancelled_caught
    assert len(tasks.cancelled) == 1


async def test_unknown_models():
    """Only served models are answered."""
    with pytest.raises(ModelNotFound):
        await collect(ScriptedTasks(), task(model="other"))


async def test_logprobs():
    """Log-probabilities come when they are wanted."""
    parts = await collect(ScriptedTasks(says("a")), task(top_logprobs=2))
    assert parts[0].logprobs[0].top == ((97, -0.25), (98, -1.25))
