"""What a gateway can be told: one frozen value, built at the edge; everything has a default."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from starai.core.limits import REQUEST_BODY_BYTES_MAX, REQUEST_DEADLINE_S
from starai.models.manifest import ModelManifest

#: Any origin: a key travels in a header that a browser never adds by itself, so a foreign page
#: can do nothing that its own server could not do with the same key.
ANY_ORIGIN: Final = ("*",)


@dataclass(frozen=True)
class GatewayConfig:
    """The settings of one gateway.

    Attributes:
        models: the models whose text the gateway can read and write; it offers those of them
            that the task port serves with the same root.
        host: the address to listen on; other than loopback only with API keys.
        port: the TCP port; 0 takes a free one.
        cors_origins: origins that browsers may call from. Without API keys this is ignored and
            only pages from this machine may call: there, any web page could spend the machine.
        concurrent_requests_max: requests in progress; more are answered 429. Each holds about
            50 KB, and a task on the wire.
        default_max_tokens: the longest answer when a request does not say, if the context has
            room for it; keeps a forgotten limit from running a long-context model for minutes.
        body_bytes_max: the largest request body.
        body_deadline_s: how long a body may take to arrive.
        request_deadline_s: how long a request may take in all.
        heartbeat_s: the longest silence on a stream before a comment is sent, so that proxies
            between (which often cut at 60 s, some at 15 s) keep it open.
        tls_cert: the PEM file of the certificate and its chain; None: plain HTTP.
        tls_key: the PEM file of its key, if it is not in ``tls_cert``.
        stop_grace_s: how long running requests may go on after the gateway was told to stop.
        idempotency_ttl_s: how long an answer can be asked for again with its idempotency key.
        idempotency_bytes_max: memory for those answers, all together.
    """

    models: tuple[ModelManifest, ...] = ()
    host: str = "127.0.0.1"
    port: int = 8000
    cors_origins: tuple[str, ...] = ANY_ORIGIN
    concurrent_requests_max: int = 1024
    default_max_tokens: int = 4096
    body_bytes_max: int = REQUEST_BODY_BYTES_MAX
    body_deadline_s: float = 30.0
    request_deadline_s: float = REQUEST_DEADLINE_S
    heartbeat_s: float = 10.0
    tls_cert: Path | None = None
    tls_key: Path | None = None
    stop_grace_s: float = 20.0
    idempotency_ttl_s: float = 600.0
    idempotency_bytes_max: int = 64 << 20
