"""HTTP with a hub: requests, refusals in plain words, and patience with bad connections.

Knows nothing of models or files.
"""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Final

import anyio
import httpx
import msgspec

from starai.core.errors import (
    ConfigurationRefused,
    ModelNotFound,
    NotFound,
    PermissionRefused,
    RateLimited,
    StarAIError,
    Unavailable,
)

#: The largest listing of a hub that is read: the largest repositories list a few thousand files.
JSON_BYTES_MAX: Final = 16 << 20
#: A hub that asks for a longer pause than this is left alone; the person may try again later.
RETRY_AFTER_S_MAX: Final = 120.0
#: A file goes from the hub to a storage network in one or two steps.
REDIRECTS_MAX: Final = 5
#: RFC 9110, section 15.5.17.
NO_SUCH_RANGE: Final = 416
_TRY_LATER: Final = frozenset({408, 425, 429, 500, 502, 503, 504})


class HubTimeouts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long to wait for a hub and how often to try again.

    ``attempts_max`` counts failures in a row; a transfer that got further starts afresh.
    """

    connect_s: float = 10.0
    read_s: float = 30.0
    backoff_s: float = 0.5
    backoff_s_max: float = 30.0
    attempts_max: int = 6


#: Enough for a poor line; tests are in a greater hurry.
PATIENT: Final = HubTimeouts()


class Interrupted(Exception):
    """A request broke off in a way that may not happen again; ``after_s`` is a pause asked for."""

    def __init__(self, reason: str, after_s: float = 0.0) -> None:
        """Take the reason in a few words, for a person."""
        super().__init__(reason)
        self.after_s = after_s


class Patience:
    """Counts failures in a row and waits longer after each."""

    def __init__(self, timeouts: HubTimeouts) -> None:
        """Start with no failure."""
        self._timeouts = timeouts
        self._failures = 0

    def progressed(self) -> None:
        """Forget the failures so far: there was progress."""
        self._failures = 0

    async def failed(self, interruption: Interrupted, what: str) -> None:
        """Wait before the next attempt at ``what``.

        Raises:
            Unavailable: it failed too often.
            RateLimited: the hub wants a longer pause than is reasonable to sit out.
        """
        self._failures += 1
        if interruption.after_s > RETRY_AFTER_S_MAX:
            raise RateLimited(
                f"the hub asks to wait {interruption.after_s:.0f} s before {what}; try again then",
                retry_after_s=interruption.after_s,
            ) from interruption
        if self._failures >= self._timeouts.attempts_max:
            raise Unavailable(
                f"gave up on {what} after {self._failures} attempts ({interruption}); the same "
                "command goes on where this one stopped"
            ) from interruption
        pause_s = self._timeouts.backoff_s * 2 ** (self._failures - 1)
        await anyio.sleep(max(interruption.after_s, min(pause_s, self._timeouts.backoff_s_max)))


class HubSession:
    """An open connection to one hub."""

    def __init__(self, client: httpx.AsyncClient, endpoint: str, timeouts: HubTimeouts) -> None:
        """Use ``client``, which carries the token, for paths under ``endpoint``."""
        self._client = client
        self._endpoint = endpoint
        self.timeouts = timeouts

    async def read_json(self, path: str, what: str, *, attempts_max: int = 0) -> bytes:
        """The body of a small GET, with retries; ``attempts_max`` if not the usual number.

        Raises:
            StarAIError: the hub refuses, cannot be reached, or answers without end.
        """
        timeouts = self.timeouts
        if attempts_max:
            timeouts = msgspec.structs.replace(timeouts, attempts_max=attempts_max)
        patience = Patience(timeouts)
        while True:
            try:
                body = bytearray()
                async with self.stream(path, {}) as response:
                    async for chunk in response.aiter_bytes():
                        body += chunk
                        if len(body) > JSON_BYTES_MAX:
                            raise Unavailable(f"the hub's answer to {what} is too long")
                    return bytes(body)
            except Interrupted as interruption:
                await patience.failed(interruption, what)

    @asynccontextmanager
    async def stream(
        self, path: str, headers: Mapping[str, str], *, method: str = "GET"
    ) -> AsyncIterator[httpx.Response]:
        """One request; its response (after redirects) with the body still to come.

        A 416 comes back like a success: it answers a question about a range.

        Raises:
            Interrupted: it may work later; nothing is retried here.
            StarAIError: the hub refuses.
        """
        try:
            async with self._client.stream(
                method, self._endpoint + path, headers=headers
            ) as response:
                if response.status_code in _TRY_LATER:
                    raise Interrupted(f"the hub answered {response.status_code}", _pause(response))
                if (
                    response.is_error
                    and response.status_code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
                ):
                    raise _refusal(response)
                yield response
        except httpx.TransportError as error:
            raise Interrupted(_in_words(error)) from error
        except (httpx.TooManyRedirects, httpx.DecodingError) as error:
            raise Unavailable(f"the hub answers nonsense: {_in_words(error)}") from error


@asynccontextmanager
async def open_session(
    endpoint: str, token: str | None, timeouts: HubTimeouts
) -> AsyncIterator[HubSession]:
    """A session with the hub at ``endpoint``.

    The token goes to the hub alone, never to a storage network that it redirects to.

    Raises:
        ConfigurationRefused: no usable address, or a token that would travel in the clear.
    """
    url, loopback = _checked(endpoint, token)
    headers = {"User-Agent": "starai", "Accept-Encoding": "identity"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    async with httpx.AsyncClient(
        headers=headers,
        follow_redirects=True,
        max_redirects=REDIRECTS_MAX,
        timeout=httpx.Timeout(timeouts.read_s, connect=timeouts.connect_s),
        trust_env=not loopback,  # a proxy set in the environment cannot reach our own loopback
    ) as client:
        yield HubSession(client, url, timeouts)


def _checked(endpoint: str, token: str | None) -> tuple[str, bool]:
    """The endpoint without a final slash, and whether it is on this machine."""
    try:
        url = httpx.URL(endpoint)
    except httpx.InvalidURL as error:
        raise ConfigurationRefused(f"{endpoint!r} is no address of a hub: {error}") from error
    if url.scheme not in {"http", "https"} or not url.host or url.query or url.fragment:
        raise ConfigurationRefused(
            f"{endpoint!r} is no address of a hub; it looks like https://hub.example"
        )
    try:
        loopback = url.host == "localhost" or ipaddress.ip_address(url.host).is_loopback
    except ValueError:
        loopback = False
    if token and url.scheme == "http" and not loopback:
        raise ConfigurationRefused(f"a token would travel in the clear to {endpoint!r}; use https")
    return endpoint.rstrip("/"), loopback


def _refusal(response: httpx.Response) -> StarAIError:
    """What a final answer of the hub means, and what the person can do."""
    status, code = response.status_code, response.headers.get("X-Error-Code", "")
    if code == "GatedRepo" or (status == HTTPStatus.FORBIDDEN and code != "RepoNotFound"):
        return PermissionRefused(
            "gated model: accept its licence on the hub and pass a token with HF_TOKEN"
        )
    if code == "RevisionNotFound":
        return NotFound("the hub has no such revision of this model")
    if code == "EntryNotFound":
        return NotFound("the hub lists a file that it does not have")
    if status == HTTPStatus.UNAUTHORIZED:
        # Hubs answer 401 for what a stranger may not see, whether or not it exists.
        return ModelNotFound(
            "no such model, or a private one: check the name, or pass a valid token with HF_TOKEN"
        )
    if status == HTTPStatus.NOT_FOUND:
        return ModelNotFound("no such model on the hub")
    return Unavailable(f"the hub answered {status}")


def _pause(response: httpx.Response) -> float:
    """The pause that the hub asks for, in seconds; 0 if none or given as a date."""
    try:
        return max(0.0, float(response.headers.get("Retry-After", "0")))
    except ValueError:
        return 0.0


def _in_words(error: Exception) -> str:
    """A foreign fault in a few words, without addresses that may carry a signature."""
    match error:
        case httpx.ConnectError() | httpx.ConnectTimeout():
            return "the hub cannot be reached"
        case httpx.TimeoutException():
            return "the hub fell silent"
        case httpx.RemoteProtocolError() | httpx.ReadError():
            return "the connection was cut"
        case _:
            return type(error).__name__
