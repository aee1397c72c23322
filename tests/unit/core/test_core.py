"""The floor: errors that tell themselves apart, time and chance as arguments, silent logging."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import anyio
import pytest
from hypothesis import given, strategies as st

from starai.core import errors
from starai.core.clock import AnyioClock, SystemClock
from starai.core.concurrency import task_group
from starai.core.errors import StarAIError, Unavailable
from starai.core.logging import JsonLines, event
from starai.core.randomness import SeededRandomness, SystemRandomness, uuid7


def every_error(kind: type[StarAIError] = StarAIError) -> Iterator[type[StarAIError]]:
    yield kind
    for below in kind.__subclasses__():
        if below.__module__ == errors.__name__:
            yield from every_error(below)


KINDS = list(every_error())


def test_every_error_has_a_code_of_its_own() -> None:
    """Two kinds never share a code; only the fault of ours keeps the root's."""
    codes = [kind.code for kind in KINDS if kind is not errors.InternalFault]
    assert len(set(codes)) == len(codes)
    assert errors.InternalFault.code == StarAIError.code


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_is_a_sane_http_answer(kind: type[StarAIError]) -> None:
    """A status of 4xx or 5xx, a message even without one, and a place in the drawing."""
    assert 400 <= kind.http_status < 600
    assert kind().message
    assert kind("what to do", param="x", retry_after_s=1.5).message == "what to do"
    assert kind is StarAIError or kind.__name__ in (errors.__doc__ or "")


def test_what_can_be_retried_is_no_fault_of_the_request() -> None:
    """Of the 4xx only 429 invites to come back."""
    retryable = {kind.http_status for kind in KINDS if kind.retryable}
    assert retryable == {429, 502, 503, 504}


def test_the_systems_clock_tells_the_time() -> None:
    """Wall time in milliseconds, and a monotonic one that does not go back."""
    clock = SystemClock()
    assert 1_600_000_000_000 < clock.now_ms() < 1 << 47
    assert clock.monotonic_s() <= clock.monotonic_s()


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["virtual"], indirect=True)
async def test_the_loops_clock_follows_virtual_time() -> None:
    """A day of waiting is a day on both of its faces."""
    clock = AnyioClock(1000)
    began_ms, began_s = clock.now_ms(), clock.monotonic_s()
    await anyio.sleep(86_400)
    assert clock.now_ms() - began_ms == pytest.approx(86_400_000, abs=1)
    assert clock.monotonic_s() - began_s == pytest.approx(86_400)


@pytest.fixture
def anyio_backend(request: pytest.FixtureRequest, virtual_time: object) -> object:
    """Virtual time where it is asked for."""
    return virtual_time if getattr(request, "param", "") == "virtual" else "asyncio"


@given(st.integers(0, (1 << 47) - 1), st.integers(0, 2**32))
def test_a_uuid7_is_one(now_ms: int, seed: int) -> None:
    """16 bytes: the time first, version 7, variant 10 (RFC 9562)."""

    class Stopped(SystemClock):
        def now_ms(self) -> int:
            return now_ms

    made = uuid7(Stopped(), SeededRandomness(seed))
    assert len(made) == 16
    assert int.from_bytes(made[:6], "big") == now_ms
    assert made[6] >> 4 == 7
    assert made[8] >> 6 == 0b10


def test_uuid7s_differ_and_sort_by_time() -> None:
    """Thousands of a moment are distinct, and a later moment's are larger."""

    class Ticking(SystemClock):
        ms = 5

        def now_ms(self) -> int:
            return self.ms

    clock, chance = Ticking(), SystemRandomness()
    early = {uuid7(clock, chance) for _ in range(2000)}
    clock.ms = 6
    assert len(early) == 2000
    assert max(early) < uuid7(clock, chance)


def test_chance_is_of_the_asked_kind() -> None:
    """The seed decides the stream; the system's is another each time; fractions are below 1."""
    one, same, other = SeededRandomness(1), SeededRandomness(1), SeededRandomness(2)
    assert one.take(32) == same.take(32) != other.take(32)
    assert SystemRandomness().take(16) != SystemRandomness().take(16)
    for source in (one, SystemRandomness()):
        assert all(0 <= source.fraction() < 1 for _ in range(100))


def _record(fault: BaseException | None = None, **fields: object) -> dict[str, object]:
    info = (type(fault), fault, fault.__traceback__) if fault is not None else None
    record = logging.LogRecord("starai.x", logging.ERROR, "p", 1, "it_broke", None, info)
    record.starai_fields = fields
    line = JsonLines().format(record)
    assert "\n" not in line
    read: dict[str, object] = json.loads(line)
    return read


def test_a_line_is_json_with_the_events_fields() -> None:
    """Time, level, logger, event, and what the event knows."""
    line = _record(task="ab", count=3)
    assert (line["level"], line["logger"], line["event"]) == ("error", "starai.x", "it_broke")
    assert (line["task"], line["count"]) == ("ab", 3)


def test_a_faults_text_is_never_logged() -> None:
    """Its class and place are: the text may quote a prompt or a key."""

    def breaks() -> None:
        raise ValueError("the secret prompt")

    try:
        breaks()
    except ValueError as fault:
        line = _record(fault)
    assert line["fault"] == "ValueError"
    assert str(line["at"]).startswith("breaks:")
    assert "secret" not in json.dumps(line)


def test_an_event_below_the_level_costs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """What is not wanted is not rendered."""
    logger = logging.getLogger("starai.test")
    with caplog.at_level(logging.WARNING, "starai.test"):
        event(logger, "quiet", value=object())
        event(logger, "loud", logging.WARNING, value=1)
    assert [record.getMessage() for record in caplog.records] == ["loud"]


@pytest.mark.anyio
async def test_a_lone_error_leaves_a_task_group_as_itself() -> None:
    """`except Unavailable` works whether or not a task group lies between."""

    async def fails() -> None:
        raise Unavailable("gone")

    with pytest.raises(Unavailable, match="gone"):
        async with task_group() as tasks:
            tasks.start_soon(fails)


@pytest.mark.anyio
async def test_two_errors_of_a_task_group_both_come_out() -> None:
    """Nothing is swallowed when several things went wrong at once."""

    async def fails(kind: type[Exception]) -> None:
        raise kind

    async def fail_twice() -> None:
        async with task_group() as tasks:
            tasks.start_soon(fails, ValueError)
            tasks.start_soon(fails, KeyError)

    with pytest.raises(ExceptionGroup) as failed:
        await fail_twice()
    assert {type(one) for one in failed.value.exceptions} == {ValueError, KeyError}
