"""The gateway as a service: listens, serves until cancelled, then lets running answers end."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import socket
from collections.abc import Iterator
from typing import Final

import anyio
import uvicorn
from anyio.abc import TaskStatus

from starai.core.clock import Clock
from starai.core.errors import ConfigurationRefused, Unavailable
from starai.core.logging import event
from starai.core.randomness import Randomness
from starai.gateway.app import GatewayApp
from starai.gateway.config import GatewayConfig
from starai.gateway.guard import guarded_protocol
from starai.gateway.keys import KeyRing
from starai.protocol.ports import TaskPort

_LOG: Final = logging.getLogger(__name__)
#: Connections beyond the requests in progress: idle keep-alive ones. More are answered 503.
_IDLE_CONNECTIONS_MAX: Final = 4096
#: Connections that wait to be accepted.
_BACKLOG: Final = 2048
_KEEP_ALIVE_S: Final = 60


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: who runs the gateway decides when it stops."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = anyio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(config: GatewayConfig, *, keyless: bool) -> socket.socket:
    """The socket of a gateway.

    Raises:
        ConfigurationRefused: the address is taken, is not of this machine, or would let others
            in without keys.
    """
    host, port = config.host, config.port
    if keyless and not is_loopback(host):
        raise ConfigurationRefused(
            f"A gateway without API keys listens on this machine only, not on {host!r}: anyone "
            "who reaches it could use it. Create a key with 'starai keys create', or listen on "
            "127.0.0.1."
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigurationRefused(
            f"Cannot listen on {host} port {port}: {error.strerror or error}. Stop whoever uses "
            "it, or choose another port."
        ) from error
    listener.setblocking(False)
    return listener


async def serve(
    config: GatewayConfig,
    port: TaskPort,
    keys: KeyRing | None,
    clock: Clock,
    randomness: Randomness,
    *,
    task_status: TaskStatus[str] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled; then refuse new requests and let running ones end for a while.

    Must run on asyncio (uvicorn does); with uvloop where there is one:
    ``anyio.run(..., backend_options={"use_uvloop": True})``.

    Args:
        config: the settings.
        port: who answers; it must live until this returns.
        keys: who may ask; None: anyone on this machine.
        clock: time.
        randomness: for ids and sample keys.
        task_status: told the base URL (``http://127.0.0.1:8000``) once the gateway listens.

    Raises:
        ConfigurationRefused: the address cannot be used, or not without keys.
        ModelFileRefused: the tokenizer of a model cannot be used.
        Unavailable: the HTTP server ended by itself.
    """
    app = GatewayApp(config, port, keys, clock, randomness)
    listener = listen(config, keyless=keys is None)
    server = _Server(_settings(config, app))
    host, number = listener.getsockname()[:2]
    url = f"http://[{host}]:{number}" if ":" in host else f"http://{host}:{number}"
    async with anyio.create_task_group() as group:

        async def run() -> None:
            # Running answers, and their tasks, go on when this service is cancelled: uvicorn
            # ends them at the latest when the grace is over.
            with anyio.CancelScope(shield=True):
                async with app.running():
                    await server.serve(sockets=[listener])
            if not stopping:
                raise Unavailable("The HTTP server ended by itself.")

        stopping = False
        group.start_soon(run)
        try:
            await server.listening.wait()
            event(_LOG, "gateway_started", url=url, keyless=keys is None)
            task_status.started(url)
            await anyio.sleep_forever()
        finally:
            stopping = True
            server.should_exit = True


def _settings(config: GatewayConfig, app: GatewayApp) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=guarded_protocol(),
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        log_level="warning",
        server_header=False,
        proxy_headers=False,
        limit_concurrency=config.concurrent_requests_max + _IDLE_CONNECTIONS_MAX,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, round(config.stop_grace_s)),
    )
