"""Errors as OpenAI's clients expect them: status, headers and body of any `StarAIError`."""

from __future__ import annotations

import math
from typing import Final

import msgspec

from starai.core.errors import (
    BalanceTooLow,
    Conflict,
    InvalidRequest,
    Overloaded,
    RateLimited,
    StarAIError,
)
from starai.ledger.accounts import usd

Headers = list[tuple[bytes, bytes]]

_ENCODE: Final = msgspec.json.Encoder().encode


class RequestRefused(InvalidRequest):
    """A request that breaks a rule of HTTP or of OpenAI's API, in OpenAI's words."""

    def __init__(
        self, message: str, *, reason: str | None, param: str | None = None, status: int = 400
    ) -> None:
        """Take OpenAI's error code as ``reason`` and the HTTP ``status``."""
        super().__init__(message, param=param)
        self.reason = reason
        self.status = status


class LimitReached(RateLimited):
    """A key has used up one of its two limits: ``requests`` or ``tokens`` (``kind``)."""

    def __init__(self, message: str, *, kind: str, retry_after_s: float | None) -> None:
        """Without ``retry_after_s``, waiting cannot help: the request exceeds the limit itself."""
        super().__init__(message, retry_after_s=retry_after_s)
        self.kind = kind


class FundsMissing(BalanceTooLow):
    """What a request can cost is more than its key may still spend; both in nano-USD."""

    def __init__(self, needed: int, available: int, *, by_budget: bool = False) -> None:
        """``by_budget``: the key's budget is reached, rather than its owner's balance."""
        if by_budget:
            left = f"this key's budget has {usd(available)} left. Ask its owner for a larger one"
        else:
            left = f"your balance has {usd(available)} left. Top it up"
        super().__init__(
            f"This request can cost up to {usd(needed)}, and {left}, or lower 'max_tokens'."
        )
        self.needed = needed
        self.available = available


class ErrorBody(msgspec.Struct, frozen=True):
    """The ``error`` object of OpenAI's API; amounts stand where money is the reason."""

    message: str
    type: str
    param: str | None
    code: str | None
    needed_nano_usd: str | msgspec.UnsetType = msgspec.UNSET
    available_nano_usd: str | msgspec.UnsetType = msgspec.UNSET


class _Envelope(msgspec.Struct, frozen=True):
    error: ErrorBody


def status_of(error: StarAIError) -> int:
    """The HTTP status that tells of ``error``."""
    return error.status if isinstance(error, RequestRefused) else error.http_status


def body_of(error: StarAIError) -> bytes:
    """The JSON that tells of ``error``: ``{"error": {message, type, param, code}}``."""
    needed: str | msgspec.UnsetType = msgspec.UNSET
    available: str | msgspec.UnsetType = msgspec.UNSET
    match error:
        case RequestRefused():
            kind, code = "invalid_request_error", error.reason
        case LimitReached():
            kind, code = error.kind, error.code
        case FundsMissing():
            kind, code = "insufficient_quota", error.code
            needed, available = str(error.needed), str(error.available)
        case Overloaded():
            kind, code = "rate_limit_error", error.code
        case _ if error.http_status >= 500:
            kind, code = "server_error", error.code
        case _:
            kind, code = "invalid_request_error", error.code
    body = ErrorBody(error.message, kind, error.param, code, needed, available)
    return _ENCODE(_Envelope(body))


def headers_of(error: StarAIError) -> Headers:
    """When to try again, or that it is no use, as HTTP headers.

    OpenAI's clients repeat 408, 409, 429 and 5xx by themselves unless told not to.
    """
    headers: Headers = []
    if error.retry_after_s is not None:
        headers.append((b"retry-after", str(max(1, math.ceil(error.retry_after_s))).encode()))
        headers.append((b"retry-after-ms", str(max(1, int(error.retry_after_s * 1e3))).encode()))
    elif isinstance(error, LimitReached | Conflict | FundsMissing):
        headers.append((b"x-should-retry", b"false"))
    match status_of(error):
        case 401:
            headers.append((b"www-authenticate", b"Bearer"))
        case 405:
            headers.append((b"allow", b"GET, POST, OPTIONS"))
        case 408 | 413:
            # The rest of the body is not wanted.
            headers.append((b"connection", b"close"))
    return headers
