"""What both clients share, without any I/O: requests, answers, errors, when to try again.

Every chat carries an idempotency key made here, so that trying again after a broken connection
never pays for the same answer twice.
"""

from __future__ import annotations

from typing import Any, Final

import httpx
import msgspec

from starai.core.errors import (
    ERRORS_BY_CODE,
    AuthenticationFailed,
    Conflict,
    DeadlinePassed,
    InternalFault,
    InvalidRequest,
    NotFound,
    Overloaded,
    PermissionRefused,
    StarAIError,
    Unavailable,
)
from starai.core.randomness import Randomness

#: One answer to the question of a person, or a conversation of role and content.
Messages = str | list[dict[str, str]]

#: How often a request that failed in a retryable way is sent again.
RETRIES_MAX: Final = 2
#: The first wait before a further attempt, when the gateway names none; it doubles.
RETRY_WAIT_S: Final = 0.25
#: Longer waits are the caller's decision.
_RETRY_WAIT_MAX_S: Final = 10.0
#: Between two parts of an answer, heartbeats included, nothing takes longer.
READ_TIMEOUT_S: Final = 60.0
CONNECT_TIMEOUT_S: Final = 5.0

_BY_STATUS: Final[dict[int, type[StarAIError]]] = {
    401: AuthenticationFailed,
    403: PermissionRefused,
    404: NotFound,
    409: Conflict,
    429: Overloaded,
    503: Unavailable,
    504: DeadlinePassed,
}


class Event(msgspec.Struct, frozen=True):
    """What one line of a stream says: text, the end, or nothing of interest."""

    text: str = ""
    done: bool = False


def settings(base_url: str, api_key: str | None) -> dict[str, Any]:
    """The arguments of an httpx client for the gateway at ``base_url``."""
    root = base_url.rstrip("/").removesuffix("/v1")
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    timeout = httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
    return {"base_url": root, "headers": headers, "timeout": timeout}


def chat_request(
    messages: Messages, model: str, fields: dict[str, Any], stream: bool, randomness: Randomness
) -> dict[str, Any]:
    """The arguments of httpx's ``build_request`` for one chat, the same for all its attempts."""
    talk = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
    return {
        "method": "POST",
        "url": "/v1/chat/completions",
        "json": {"model": model, "messages": talk, "stream": stream, **fields},
        "headers": {"idempotency-key": randomness.take(16).hex()},
    }


def read_answer(body: bytes) -> str:
    """The text of a whole answer."""
    return str(msgspec.json.decode(body)["choices"][0]["message"]["content"])


def read_models(body: bytes) -> list[str]:
    """The names in a list of models."""
    return [str(card["id"]) for card in msgspec.json.decode(body)["data"]]


def read_event(line: str) -> Event:
    """One line of a stream of server-sent events.

    Raises:
        StarAIError: the gateway tells of an error in the middle of the answer.
    """
    if not line.startswith("data: "):
        return Event()
    if line == "data: [DONE]":
        return Event(done=True)
    data = msgspec.json.decode(line[6:])
    if "error" in data:
        raise _error(data["error"], 500, None)
    return Event("".join(choice["delta"].get("content") or "" for choice in data["choices"]))


def broke_off() -> Unavailable:
    """The stream ended without its end mark."""
    return Unavailable("The connection to the gateway broke off in the middle of the answer.")


def error_of(response: httpx.Response) -> StarAIError:
    """The error that a response (already read) tells of."""
    wait_ms = response.headers.get("retry-after-ms", "")
    try:
        told = msgspec.json.decode(response.content)["error"]
    except (msgspec.DecodeError, KeyError, TypeError, UnicodeDecodeError):
        told = {"message": f"HTTP status {response.status_code}"}
    return _error(told, response.status_code, float(wait_ms) / 1e3 if wait_ms.isdigit() else None)


def _error(told: dict[str, Any], status: int, retry_after_s: float | None) -> StarAIError:
    fallback = InvalidRequest if 400 <= status < 500 else InternalFault
    kind = ERRORS_BY_CODE.get(told.get("code") or "") or _BY_STATUS.get(status, fallback)
    message = str(told.get("message", ""))
    return kind(message, param=told.get("param"), retry_after_s=retry_after_s)


def transport_error(error: httpx.TransportError, base_url: httpx.URL) -> StarAIError:
    """What went wrong on the way to the gateway, in our words."""
    if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout):
        return DeadlinePassed(f"The gateway at {base_url} did not answer in time.")
    return Unavailable(f"Cannot reach the gateway at {base_url}: is 'starai up' running?")


def retry_wait_s(error: StarAIError, attempt: int) -> float | None:
    """Seconds before the next attempt (``attempt`` counts from 0), or None: give up."""
    if not error.retryable or attempt >= RETRIES_MAX:
        return None
    wait_s = error.retry_after_s or RETRY_WAIT_S * 2**attempt
    return wait_s if wait_s <= _RETRY_WAIT_MAX_S else None
