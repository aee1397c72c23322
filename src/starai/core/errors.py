"""Every error that StarAI raises on purpose, as one tree.

::

    StarAIError
    ├── InvalidRequest            400  the caller can fix it
    │   ├── UnsupportedField      400
    │   └── ContextTooLong        400
    ├── AuthenticationFailed      401
    ├── BalanceTooLow             402
    ├── PermissionRefused         403
    ├── NotFound                  404
    │   └── ModelNotFound         404
    ├── Conflict                  409
    ├── RequestTooLarge           413
    ├── Overloaded                429  retryable
    │   └── RateLimited           429  retryable
    ├── InternalFault             500
    ├── Unavailable               503  retryable
    ├── DeadlinePassed            504  retryable
    ├── EngineDied                502  retryable; the worker process of an engine ended
    ├── MalformedFrame            502  bytes that are not a message of ours
    ├── SealBroken                502  a seal, signature or chain does not verify
    ├── ModelFileRefused          400  a model file is wrong or truncated
    ├── StoreFailed               500  durable storage failed; never retried silently
    ├── ConfigurationRefused      400
    └── PartyRefused              403  a node, token or credential is not admitted

A class carries a stable ``code`` (also the OpenAI ``error.code``), an HTTP status and whether
trying again later can help. It knows nothing about HTTP bodies: the gateway renders them.
"""

from __future__ import annotations

from typing import ClassVar, Final


class StarAIError(Exception):
    """Something went wrong in a way that StarAI understands."""

    code: ClassVar[str] = "internal_error"
    http_status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    def __init__(
        self, message: str = "", *, param: str | None = None, retry_after_s: float | None = None
    ) -> None:
        """Take a message that says what to do; ``param`` names the field at fault.

        Args:
            message: for a person; never contains a prompt or a key.
            param: the request field at fault, if one is.
            retry_after_s: how long a caller should wait before trying again, in seconds.
        """
        super().__init__(message or (type(self).__doc__ or "").strip().splitlines()[0])
        self.param = param
        self.retry_after_s = retry_after_s

    @property
    def message(self) -> str:
        """The message, as a person reads it."""
        return str(self.args[0])


class InvalidRequest(StarAIError):
    """The request is malformed."""

    code = "invalid_request"
    http_status = 400


class UnsupportedField(InvalidRequest):
    """The request uses a field that this service does not support."""

    code = "unsupported_parameter"


class ContextTooLong(InvalidRequest):
    """The prompt does not fit the model's context."""

    code = "context_length_exceeded"


class AuthenticationFailed(StarAIError):
    """The API key is missing or wrong."""

    code = "invalid_api_key"
    http_status = 401


class BalanceTooLow(StarAIError):
    """There is too little money for that."""

    code = "insufficient_balance"
    http_status = 402


class PermissionRefused(StarAIError):
    """This key may not do that."""

    code = "permission_denied"
    http_status = 403


class NotFound(StarAIError):
    """There is no such thing."""

    code = "not_found"
    http_status = 404


class ModelNotFound(NotFound):
    """No such model."""

    code = "model_not_found"


class Conflict(StarAIError):
    """The same idempotency key came with a different request."""

    code = "idempotency_conflict"
    http_status = 409


class RequestTooLarge(StarAIError):
    """The request body is too large."""

    code = "request_too_large"
    http_status = 413


class Overloaded(StarAIError):
    """All queues are full; try again shortly."""

    code = "overloaded"
    http_status = 429
    retryable = True


class RateLimited(Overloaded):
    """This key has used up its rate limit."""

    code = "rate_limit_exceeded"


class InternalFault(StarAIError):
    """The service made a mistake."""


class Unavailable(StarAIError):
    """No node can serve this right now; try again shortly."""

    code = "service_unavailable"
    http_status = 503
    retryable = True


class DeadlinePassed(StarAIError):
    """The work did not finish before its deadline."""

    code = "deadline_exceeded"
    http_status = 504
    retryable = True


class EngineDied(StarAIError):
    """The process that ran the model ended."""

    code = "engine_died"
    http_status = 502
    retryable = True


class MalformedFrame(StarAIError):
    """The bytes are not a message of this protocol."""

    code = "malformed_frame"
    http_status = 502


class SealBroken(StarAIError):
    """A seal, signature or chain does not verify."""

    code = "seal_broken"
    http_status = 502


class ModelFileRefused(StarAIError):
    """A model file is wrong, truncated or of an unknown kind."""

    code = "model_file_refused"
    http_status = 400


class StoreFailed(StarAIError):
    """Durable storage failed."""

    code = "store_failed"


class ConfigurationRefused(StarAIError):
    """The configuration cannot be used."""

    code = "configuration_refused"
    http_status = 400


class PartyRefused(StarAIError):
    """The network does not admit this party."""

    code = "party_refused"
    http_status = 403


def _by_code(root: type[StarAIError]) -> dict[str, type[StarAIError]]:
    found = {root.code: root}
    for kind in root.__subclasses__():
        found.update(_by_code(kind))
    return found


#: What travels between processes is a code; this is its class.
ERRORS_BY_CODE: Final = _by_code(StarAIError)
