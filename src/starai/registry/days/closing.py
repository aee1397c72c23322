"""Closes days: cut, built, checked by another process, signed; each step durable before the next.

A crash anywhere leaves a day in the state that it reached, and the next call goes on from there.
Nothing is signed before a verifier that shares no code with this one (`starai.verifier`) came to
the same manifest from the exported files, in a process of its own. Growth beyond what is usual
stops the day until a person accepts it. Knows nothing of chains: whoever settles takes it from
`EpochState.SIGNED` on.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread
import msgspec

from starai.core.clock import Clock
from starai.core.errors import InternalFault, StarAIError, StoreFailed
from starai.core.logging import event
from starai.protocol.identity import Identity
from starai.registry.days.building import build, keep
from starai.registry.days.epochs import (
    UNFINISHED,
    DayTerms,
    Epoch,
    EpochState,
    advance_state,
    cut,
    cut_again,
    get_epoch,
    require_vault,
)
from starai.registry.days.export import export_all, forget_days
from starai.registry.days.maturing import MATURED_AT_ONCE, due, mature
from starai.registry.log.believing import Believed
from starai.registry.schema import rows
from starai.registry.storage.base import Connection, Store
from starai.settlement.leaves import NANO_PER_UNIT
from starai.settlement.manifest import FIRST_HEAD, Manifest, signed_bytes, with_signature

_LOG = logging.getLogger(__name__)

DAY_MS: Final = 86_400_000
#: How often is looked for what matured and for midnight; far below the hours that maturity takes.
LOOK_EVERY_S: Final = 600.0
#: A check that takes longer is broken. It may have to go over all that there ever was, some 20 us
#: a row in one process; ten times that leaves room for a machine that has other things to do.
CHECK_DEADLINE_S: Final = 3_600.0
CHECK_DEADLINE_ROW_S: Final = 0.000_2
#: A day that stopped is tried again after `LOOK_EVERY_S`, then after twice as long, up to this.
REST_MAX_S: Final = 21_600.0


class Closing(msgspec.Struct, frozen=True):
    """What came of closing a day: the day, if there was anything to close, and what stopped it."""

    epoch: Epoch | None
    stopped: str = ""


class Patience:
    """When a day that stopped is tried again: what stopped it is rarely gone by itself."""

    def __init__(self, clock: Clock) -> None:
        """Take a clock; the first try is due at once."""
        self._clock = clock
        self._rest_s = LOOK_EVERY_S
        self._due_s = clock.monotonic_s()

    def is_due(self) -> bool:
        """Whether to try."""
        return self._clock.monotonic_s() >= self._due_s

    def went_well(self) -> None:
        """The next try is due at once."""
        self._rest_s = LOOK_EVERY_S

    def stopped(self) -> None:
        """The next try is due after a rest, each twice as long as the one before."""
        self._due_s = self._clock.monotonic_s() + self._rest_s
        self._rest_s = min(2 * self._rest_s, REST_MAX_S)


class Days:
    """Closes one network's days."""

    def __init__(
        self,
        store: Store,
        account: Identity,
        terms: DayTerms,
        clock: Clock,
        exports: Path,
        close_block: Callable[[], Awaitable[object]],
    ) -> None:
        """Take the key that signs, where exports go, and what closes a block at once."""
        self._store = store
        self._account = account
        self._terms = terms
        self._clock = clock
        self._believed = Believed(clock)
        self._exports = exports
        self._close_block = close_block
        self._lock = anyio.Lock()
        #: What the verifier keeps for the next day: not among what is given to others.
        self._kept = exports.with_name(f"{exports.name}.checked")
        #: The head that the verifier came to: a day that waits for a person is checked once.
        self._checked = b""

    async def open(self) -> None:
        """Check that days go on for the same vault; call it before `run`.

        Raises:
            ConfigurationRefused: days were closed for another one.
        """
        await self._store.read(partial(require_vault, terms=self._terms))

    async def run(self) -> None:
        """Close each day soon after midnight (UTC), and let earnings mature, until cancelled.

        Raises:
            StoreFailed: the disk failed.
        """
        patience = Patience(self._clock)
        while True:
            try:
                await self.mature()
                if patience.is_due():
                    await self._close_patiently(patience)
            except StoreFailed:
                raise
            except StarAIError as error:  # the day waits; a later look goes on with it
                event(_LOG, "day_not_closed", logging.ERROR, code=error.code, why=error.message)
            await anyio.sleep(LOOK_EVERY_S)

    async def _close_patiently(self, patience: Patience) -> None:
        try:
            closing = await self.close()
        except StarAIError:
            patience.stopped()
            raise
        if closing.stopped:
            patience.stopped()
            event(_LOG, "day_stopped", logging.ERROR, why=closing.stopped)
        else:
            patience.went_well()

    async def mature(self) -> int:
        """Let mature what is old enough; how many nodes had something.

        Raises:
            InternalFault: the clock jumped ahead.
            Overloaded, StoreFailed: it could not be written; the next call does the rest.
        """
        now_ms = await self._believed.now_ms(self._store)
        maturity_ms = self._terms.maturity_ms
        events = await self._store.read(lambda connection: due(connection, now_ms, maturity_ms))
        applied = 0
        for start in range(0, len(events), MATURED_AT_ONCE):
            part = events[start : start + MATURED_AT_ONCE]
            applied += await self._store.write(partial(mature, events=part))
        return applied

    async def close(self, *, at_once: bool = False, accept: bool = False) -> Closing:
        """Close the day that ended at the last midnight, or go on with one that is on its way.

        Args:
            at_once: close everything up to now; what is old enough matures first.
            accept: a person has seen what stopped the day, and lets it pass.

        Raises:
            Conflict: a day was vetoed: see `close_again`.
            Overloaded, StoreFailed: it could not be written.
            InternalFault: the check could not be run, or the clock jumped ahead.
        """
        async with self._lock:
            if at_once:
                await self.mature()
                await self._close_block()
            now_ms = await self._believed.now_ms(self._store)
            before_ms = now_ms + 1 if at_once else now_ms // DAY_MS * DAY_MS
            epoch = await self._store.write(partial(cut, before_ms=before_ms))
            return Closing(None) if epoch is None else await self._go_on(epoch, accept)

    async def close_again(self, number: int, *, accept: bool = False) -> Closing:
        """Close a vetoed day once more, up to now, after the books were corrected.

        Days that were closed after it are part of it then.

        Raises:
            Conflict: it was not vetoed, or another before it was.
            Overloaded, StoreFailed: it could not be written.
            InternalFault: the check could not be run, or the clock jumped ahead.
        """
        async with self._lock:
            await self._close_block()
            before_ms = await self._believed.now_ms(self._store) + 1
            epoch = await self._store.write(
                lambda connection: cut_again(connection, number, before_ms)
            )
            return await self._go_on(epoch, accept)

    async def _go_on(self, epoch: Epoch, accept: bool) -> Closing:
        """Take a day from wherever it is to its signature."""
        while epoch.state in UNFINISHED:
            if epoch.state is EpochState.CUT:
                await self._build(epoch)
            elif epoch.state is EpochState.BUILT:
                stopped = await self._check(epoch, accept)
                if stopped:
                    return Closing(epoch, stopped)
            else:
                await self._sign(epoch)
            number = epoch.epoch
            epoch = await self._store.read(partial(get_epoch, number=number))
            event(_LOG, "day_advanced", epoch=number, state=epoch.state.value)
        return Closing(epoch)

    async def _build(self, epoch: Epoch) -> None:
        terms = self._terms
        built = await self._store.read(lambda connection: build(connection, epoch, terms))
        await self._store.write(partial(keep, built=built))

    async def _check(self, epoch: Epoch, accept: bool) -> str:
        """Have the day checked, and look at its growth; what stops it, or nothing."""
        stopped = "" if epoch.parsed().head() == self._checked else await self._verify(epoch)
        if not stopped and not accept:
            stopped = await self._store.read(
                lambda connection: growth_stops(connection, epoch, self._terms)
            )
        if not stopped:
            await self._advance(epoch, EpochState.CHECKED)
        return stopped

    async def _verify(self, epoch: Epoch) -> str:
        """Export the day, and have it checked; what is wrong with it, or nothing."""
        key, head = self._account.raw, epoch.parsed().head()
        # What an earlier try left may be of before a correction: nobody was given it.
        await anyio.to_thread.run_sync(forget_days, self._exports, epoch.epoch)
        await self._store.read(lambda connection: export_all(connection, self._exports, key))
        deadline_s = await self._store.read(check_deadline_s)
        stopped = await _verified(self._exports, self._kept, head.hex(), deadline_s)
        if not stopped:
            self._checked = head
        return stopped

    async def _sign(self, epoch: Epoch) -> None:
        signature = self._account.sign(signed_bytes(epoch.manifest))
        signed = with_signature(epoch.manifest, signature)
        await self._advance(epoch, EpochState.SIGNED, signed)
        key = self._account.raw
        await self._store.read(lambda connection: export_all(connection, self._exports, key))

    async def _advance(self, epoch: Epoch, after: EpochState, manifest: str = "") -> None:
        await self._store.write(
            lambda connection: advance_state(connection, epoch.epoch, epoch.state, after, manifest)
        )


def check_deadline_s(connection: Connection) -> float:
    """How long a check of everything may take: more, the more there is."""
    newest = "SELECT last_task, last_transfer FROM block ORDER BY height DESC LIMIT 1"
    count = sum(sum(row) for row in rows(connection, newest))
    return CHECK_DEADLINE_S + CHECK_DEADLINE_ROW_S * count


async def _verified(exports: Path, kept: Path, head: str, deadline_s: float) -> str:
    """Why an independent process does not come to ``head``; nothing if it does.

    It is one process of low priority, since requests are served beside it. It begins after the
    days that it checked before, if ``kept`` is there and they are still those of the export.
    """
    options = ["--gently", "--kept", str(kept)]
    command = [sys.executable, "-m", "starai.verifier", *options, str(exports)]
    try:
        with anyio.fail_after(deadline_s):
            done = await anyio.run_process(command, check=False, env={**os.environ})
    except (OSError, TimeoutError) as error:
        raise InternalFault(f"the verifier did not run to its end: {error}") from error
    lines = done.stdout.decode(errors="replace").splitlines()
    if done.returncode == 0 and lines and lines[-1] == f"head {head}":
        return ""
    found = [line for line in lines if line.startswith("WRONG")]
    said = found[0] if found else done.stderr.decode(errors="replace").strip()[-300:]
    return f"the verifier comes to something else: {said or 'another head'}"


def growth_stops(connection: Connection, epoch: Epoch, terms: DayTerms) -> str:
    """Why a day grew too much to go on without a person; nothing if it did not."""
    today = epoch.parsed()
    last = [
        get_epoch(connection, number).parsed()
        for number in range(max(1, epoch.epoch - 2), epoch.epoch)
    ]
    for name in ("earned_units", "spent_units"):
        values = [0, 0, *(getattr(one, name) for one in (*last, today))]
        usual, growth = values[-2] - values[-3], values[-1] - values[-2]
        most = max(terms.growth_nano // NANO_PER_UNIT, terms.growth_times * usual)
        if growth > most:
            return (
                f"{name} grew by {growth}, more than {most}: look at the day, then close it"
                " with --accept"
            )
    return _orphaned(today, last[-1] if last else None)


def _orphaned(today: Manifest, before: Manifest | None) -> str:
    """What a chain would refuse anyway."""
    if today.previous_head != (before.head() if before else FIRST_HEAD):
        return "the day does not follow the one before it"
    if today.earned_units > today.spent_units:
        return "more was earned than was ever spent: no vault would pay that"
    return ""
