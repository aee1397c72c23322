"""HTTP to one server: small JSON questions, and streams of events; everything bounded.

Knows nothing about models. A prompt leaves this machine only under TLS: plain HTTP is for the
loopback. Proxies of the environment are not used.
"""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Final, Self

import httpx
import msgspec

from starai.core.errors import ConfigurationRefused, EngineDied, Overloaded, Unavailable

#: Answers to small questions; a list of models has a few KB.
_JSON_BYTES_MAX: Final = 4 << 20
#: One event of a stream: a few tokens with 20 log-probabilities each.
_EVENT_BYTES_MAX: Final = 1 << 20
_CONNECT_S: Final = 5.0
_QUESTION_S: Final = 10.0
#: A prompt may take long before its first token, the next ones may not.
FIRST_TOKEN_S: Final = 120.0
NEXT_TOKEN_S: Final = 20.0
_DATA: Final = b"data:"
_DONE: Final = b"[DONE]"


class Refused(Exception):
    """The server answered a question with an error status."""

    def __init__(self, status: int) -> None:
        """Remember the HTTP ``status``."""
        super().__init__(f"HTTP {status}")
        self.status = status


def base_url(text: str) -> str:
    """The server's address as it is used: without a path that OpenAI's clients add.

    Raises:
        ConfigurationRefused: it is no address, or prompts would leave this machine unencrypted.
    """
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise ConfigurationRefused(f"{text[:80]!r} is no URL: {error}") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise ConfigurationRefused(f"{text[:80]!r} is no URL: write it like http://127.0.0.1:8080")
    if url.userinfo or url.query or url.fragment:
        raise ConfigurationRefused("the engine's URL is scheme, host and port: a key goes by "
                                   "STARAI_ENGINE_KEY")  # fmt: skip
    if url.scheme == "http" and not _is_here(url.host):
        raise ConfigurationRefused(
            f"prompts would go to {url.host} unencrypted: use https, or bring the port here, as "
            "with ssh -L 8080:127.0.0.1:8080 HOST, and name http://127.0.0.1:8080"
        )
    path = url.path.rstrip("/")
    for tail in ("/v1", "/v3"):
        path = path.removesuffix(tail)
    return str(url.copy_with(path=path)).rstrip("/")


def _is_here(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Connection:
    """Questions and streams to one server. Use it inside ``async with``."""

    def __init__(self, url: str, key: str = "", slots: int = 8) -> None:
        """Speak to ``url``, with a bearer ``key`` if there is one."""
        headers = {"accept-encoding": "identity"}
        if key:
            headers["authorization"] = f"Bearer {key}"
        self.url = base_url(url)
        self._client = httpx.AsyncClient(
            base_url=self.url,
            headers=headers,
            limits=httpx.Limits(max_connections=slots + 4),
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        """Open it."""
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close everything."""
        await self._client.__aexit__(kind, error, trace)

    async def ask(self, path: str, body: object = None) -> Any:
        """The JSON that a GET answers, or a POST if there is a body.

        Raises:
            Refused: with an error status.
            Unavailable: the server cannot be reached, or answers no JSON.
        """
        raw = await self._body(path, body)
        try:
            return msgspec.json.decode(raw) if raw else None
        except msgspec.DecodeError as error:
            raise Unavailable(f"{self.url}{path} answers no JSON") from error

    async def answers(self, path: str) -> bool:
        """Whether a GET is answered, by whatever is no error of the server's own."""
        try:
            await self._body(path, None)
        except Refused as refusal:
            return refusal.status < 500
        except Unavailable:
            return False
        return True

    async def _body(self, path: str, body: object) -> bytes:
        raw = bytearray()
        try:
            async with self._send(path, body) as response:
                async for piece in response.aiter_raw():
                    raw += piece
                    if len(raw) > _JSON_BYTES_MAX:
                        raise Unavailable(f"{self.url}{path} answers without end")
                if response.status_code >= 400:
                    raise Refused(response.status_code)
        except httpx.HTTPError as error:
            raise Unavailable(f"nothing answers at {self.url}: {type(error).__name__}") from error
        return bytes(raw)

    async def events(self, path: str, body: object) -> AsyncGenerator[dict[str, Any], None]:
        """The events of a stream, server-sent or a JSON object a line. Closing it ends the work.

        Raises:
            Overloaded: the server is full.
            EngineDied: it refuses, breaks off, falls silent, or says what is no event.
        """
        try:
            async with self._send(path, body, FIRST_TOKEN_S) as response:
                _check(response.status_code)
                async for line in _lines(response):
                    payload = line.removeprefix(_DATA).strip()
                    if payload == _DONE:
                        return
                    if line.startswith((_DATA, b"{")):
                        yield _event(payload)
        except httpx.HTTPError as error:
            raise EngineDied(f"the server broke off: {type(error).__name__}") from error

    @asynccontextmanager
    async def _send(
        self, path: str, body: object, silence_s: float = _QUESTION_S
    ) -> AsyncIterator[httpx.Response]:
        kwargs: dict[str, Any] = {"timeout": httpx.Timeout(silence_s, connect=_CONNECT_S)}
        if body is not None:
            kwargs["content"] = msgspec.json.encode(body)
            kwargs["headers"] = {"content-type": "application/json"}
        method = "GET" if body is None else "POST"
        async with self._client.stream(method, path, **kwargs) as response:
            yield response


def _check(status: int) -> None:
    if status in (429, 503):
        raise Overloaded("the server is full")
    if status != 200:
        raise EngineDied(f"the server answers HTTP {status}")


async def _lines(response: httpx.Response) -> AsyncIterator[bytes]:
    buffer = bytearray()
    async for piece in response.aiter_raw():
        buffer += piece
        *lines, rest = bytes(buffer).split(b"\n")
        buffer = bytearray(rest)
        if len(buffer) > _EVENT_BYTES_MAX:
            raise EngineDied("the server sends an event without end")
        for line in lines:
            if line := line.strip():
                yield line
    if last := bytes(buffer).strip():
        yield last


def _event(payload: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(payload, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise EngineDied("the server says what is no event") from error
