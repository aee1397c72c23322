"""The gateway as a service: listens, serves until cancelled, then lets running answers end."""

from __future__ import annotations

import asyncio  # noqa: TID251 - the HTTP server's edge
import ipaddress
import logging
import socket
import ssl
from typing import Final

import anyio
from anyio.abc import TaskStatus

from starai.core.clock import Clock
from starai.core.concurrency import task_group
from starai.core.errors import ConfigurationRefused
from starai.core.logging import event
from starai.core.randomness import Randomness
from starai.gateway.app import GatewayApp
from starai.gateway.config import GatewayConfig
from starai.gateway.paying.funding import Funding
from starai.gateway.paying.keys import KeyRing
from starai.gateway.web.connections import Connections
from starai.protocol.ports import TaskPort

_LOG: Final = logging.getLogger(__name__)
#: Connections beyond the requests in progress: idle keep-alive ones. More are answered 503.
_IDLE_CONNECTIONS_MAX: Final = 4096
#: Connections that wait to be accepted.
_BACKLOG: Final = 2048


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


def _tls(config: GatewayConfig) -> ssl.SSLContext | None:
    """How to prove who we are to clients; None: speak plain HTTP.

    Raises:
        ConfigurationRefused: the certificate and its key cannot be used.
    """
    if config.tls_cert is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(config.tls_cert, config.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationRefused(
            f"Cannot use the certificate {config.tls_cert}: {error.strerror or error}. It must be "
            "PEM, with its chain, and --tls-key its key without a password."
        ) from error
    return context


async def serve(
    config: GatewayConfig,
    port: TaskPort,
    keys: KeyRing | None,
    clock: Clock,
    randomness: Randomness,
    *,
    funding: Funding | None = None,
    task_status: TaskStatus[str] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled; then refuse new requests and let running ones end for a while.

    Must run on asyncio; with uvloop where there is one:
    ``anyio.run(..., backend_options={"use_uvloop": True})``.

    Args:
        config: the settings.
        port: who answers; it must live until this returns.
        keys: who may ask; None: anyone on this machine.
        clock: time.
        randomness: for ids and sample keys.
        funding: who pays; None: nothing costs anything.
        task_status: told the base URL (``http://127.0.0.1:8000``) once the gateway listens.

    Raises:
        ConfigurationRefused: the address cannot be used, or not without keys, or the certificate.
        ModelFileRefused: the tokenizer of a model cannot be used.
    """
    app = GatewayApp(config, port, keys, clock, randomness, funding=funding)
    tls = _tls(config)
    listener = listen(config, keyless=keys is None)
    host, number = listener.getsockname()[:2]
    scheme = "https" if tls else "http"
    url = f"{scheme}://[{host}]:{number}" if ":" in host else f"{scheme}://{host}:{number}"
    connections = Connections(
        app.answer,
        clock,
        most=config.concurrent_requests_max + _IDLE_CONNECTIONS_MAX,
        body_bytes_max=config.body_bytes_max,
    )
    async with task_group() as group:
        ended = anyio.Event()
        await group.start(_run_until, ended, app)
        try:
            group.start_soon(connections.run)
            server = await asyncio.get_running_loop().create_server(
                connections.accept, sock=listener, backlog=_BACKLOG, ssl=tls
            )
            event(_LOG, "gateway_started", url=url, keyless=keys is None)
            task_status.started(url)
            try:
                await anyio.sleep_forever()
            finally:
                server.close()
        finally:
            with anyio.CancelScope(shield=True):
                await connections.stop(config.stop_grace_s)
            ended.set()


async def _run_until(ended: anyio.Event, app: GatewayApp, *, task_status: TaskStatus[None]) -> None:
    """Keep the application running when its service is cancelled: answers go on for a while."""
    with anyio.CancelScope(shield=True):
        async with app.running():
            task_status.started()
            await ended.wait()
