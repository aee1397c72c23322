"""Confirmations checked beside the loop, alone and many at once, also by a second process."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import closing

import anyio
import msgspec
import pytest

from starai.core.errors import InternalFault, SealBroken, StarAIError
from starai.core.threads import WorkThread
from starai.protocol.registry import Confirm, Side
from starai.registry.reconciling.checking import (
    TOGETHER_MAX,
    TOGETHER_MIN,
    Checks,
    check_confirm,
)
from starai.testing.records import BLOCK_MS, DISTRIBUTOR, NETWORK, NODES, confirm, record

pytestmark = pytest.mark.anyio


@pytest.fixture
async def checks() -> AsyncIterator[Checks]:
    """Checks in a thread, as a registry has them."""
    thread = WorkThread()
    made = Checks(NETWORK, BLOCK_MS, thread.run)
    yield made
    made.close()
    thread.close()


def _confirms(num: int) -> list[Confirm]:
    """Some of each side, every fifth broken in one of four ways."""
    said = [
        confirm(side, [record(number)], signer)
        for number in range(1, num // 2 + 2)
        for side, signer in ((Side.DISTRIBUTOR, DISTRIBUTOR), (Side.NODE, NODES[0]))
    ][:num]
    broken = (
        {"signature": bytes(64)},
        {"network": "another"},
        {"records": b"x" * 264},
        {"root": bytes(32)},
    )
    for number in range(0, num, 5):
        said[number] = msgspec.structs.replace(said[number], **broken[number // 5 % 4])
    return said


async def _outcomes(checks: Checks, said: Sequence[Confirm]) -> list[object]:
    """Of each, asked all at once: its records, or the code of its refusal."""
    found: list[object] = [None] * len(said)

    async def check(number: int) -> None:
        try:
            found[number] = list(await checks.check(said[number]))
        except StarAIError as error:
            found[number] = error.code

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            for number in range(len(said)):
                tasks.start_soon(check, number)
    return found


def _expected(said: Sequence[Confirm]) -> list[object]:
    found: list[object] = []
    for one in said:
        try:
            found.append(check_confirm(one, NETWORK, BLOCK_MS))
        except StarAIError as error:
            found.append(error.code)
    return found


@pytest.mark.parametrize("num", [1, TOGETHER_MIN - 1, TOGETHER_MIN + 1, 2 * TOGETHER_MAX + 7])
async def test_many_at_once_are_judged_as_each_alone(checks: Checks, num: int) -> None:
    """Each gets its own records or its own refusal, however many wait together."""
    said = _confirms(num)
    assert await _outcomes(checks, said) == _expected(said)


async def test_a_second_process_is_there_only_when_many_wait(checks: Checks) -> None:
    """A quiet registry has none; a busy one has one, and keeps it."""
    said = _confirms(4 * TOGETHER_MIN)
    for one in said[1:4]:
        await checks.check(one)
    assert checks.helper.pid is None
    await _outcomes(checks, said)
    pid = checks.helper.pid
    assert pid is not None
    await _outcomes(checks, said)
    assert checks.helper.pid == pid


async def test_a_second_process_that_dies_costs_nothing_but_time(checks: Checks) -> None:
    """What it was asked is checked here; the next lot finds a new one."""
    said = _confirms(4 * TOGETHER_MIN)
    for _ in range(4):
        assert await _outcomes(checks, said) == _expected(said)
        if checks.helper.pid is not None:
            os.kill(checks.helper.pid, signal.SIGKILL)
    assert await _outcomes(checks, said) == _expected(said)


async def test_who_leaves_takes_nobody_along(checks: Checks) -> None:
    """A confirmation whose sender no longer waits is checked with the others, for nobody."""
    said = _confirms(4 * TOGETHER_MIN)
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            for one in said[1:5]:
                tasks.start_soon(checks.check, one)
            await anyio.lowlevel.checkpoint()
            scope.cancel()
    assert await _outcomes(checks, said) == _expected(said)


async def test_a_forged_one_among_many_is_refused(checks: Checks) -> None:
    """One false signature among good ones is found, and only that one."""
    said = [confirm(Side.NODE, [record(n)], NODES[0]) for n in range(2 * TOGETHER_MIN)]
    said[7] = msgspec.structs.replace(said[7], signature=said[8].signature)
    found = await _outcomes(checks, said)
    assert [number for number, one in enumerate(found) if one == SealBroken.code] == [7]
    assert [len(one) for one in found if isinstance(one, list)] == [1] * (len(said) - 1)


async def test_a_second_process_that_cannot_start_costs_nothing_but_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A machine that has no room for one more process checks all confirmations in this one."""
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    thread, said = WorkThread(), _confirms(4 * TOGETHER_MIN)
    with closing(thread), closing(Checks(NETWORK, BLOCK_MS, thread.run)) as checks:
        assert await _outcomes(checks, said) == _expected(said)


async def test_what_was_not_checked_does_not_hold() -> None:
    """Were a confirmation ever passed over, it would be refused, not taken for one by its root."""

    async def pass_over(_: object) -> None:
        pass

    with closing(Checks(NETWORK, BLOCK_MS, pass_over)) as checks, pytest.raises(InternalFault):
        await checks.check(_confirms(2)[1])
