"""How much one key may ask for in a minute: token buckets, and the headers that tell of them."""

from __future__ import annotations

from typing import Final

from starai.gateway.errors import Headers, LimitReached

_MINUTE_S: Final = 60.0


class Bucket:
    """Holds up to ``capacity``, and refills that much in a minute, evenly."""

    __slots__ = ("_at_s", "_level", "capacity")

    def __init__(self, capacity: int) -> None:
        """Start full."""
        self.capacity = capacity
        self._level = float(capacity)
        self._at_s: float | None = None

    def level(self, now_s: float) -> float:
        """How much is in it at ``now_s``; below 0 when more was used than reserved."""
        if self._at_s is not None and now_s > self._at_s:
            refill = (now_s - self._at_s) * self.capacity / _MINUTE_S
            self._level = min(float(self.capacity), self._level + refill)
        self._at_s = now_s
        return self._level

    def wait_s(self, amount: float, now_s: float) -> float:
        """Seconds until ``amount`` is in it; 0: it is there."""
        return max(0.0, amount - self.level(now_s)) * _MINUTE_S / self.capacity

    def move(self, amount: float, now_s: float) -> None:
        """Put ``amount`` in, or take it out when negative; what overflows is lost."""
        self._level = min(float(self.capacity), self.level(now_s) + amount)


def duration(seconds: float) -> str:
    """A time as OpenAI's headers write it: ``120ms``, ``7.5s``, ``6m0s``."""
    if seconds < 1:
        return f"{round(seconds * 1000)}ms"
    if seconds < 60:
        return f"{round(seconds, 2):g}s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest}s"


class KeyLimits:
    """The two limits of one key, requests and tokens a minute; 0 is no limit."""

    __slots__ = ("_requests", "_tokens")

    def __init__(self, requests_per_minute: int, tokens_per_minute: int) -> None:
        """Start with both to spend."""
        self._requests = Bucket(requests_per_minute) if requests_per_minute else None
        self._tokens = Bucket(tokens_per_minute) if tokens_per_minute else None

    @property
    def limited(self) -> bool:
        """Whether there is a limit at all."""
        return self._requests is not None or self._tokens is not None

    @property
    def tokens_max(self) -> int | None:
        """The most tokens that one request can ever reserve; None: no limit."""
        return self._tokens.capacity if self._tokens else None

    def take_request(self, now_s: float) -> None:
        """Count one request.

        Raises:
            LimitReached: this minute's requests are used up.
        """
        if self._requests is None:
            return
        wait_s = self._requests.wait_s(1, now_s)
        if wait_s > 0:
            limit = self._requests.capacity
            raise LimitReached(
                f"Rate limit reached for requests per min (RPM): Limit {limit}, Used {limit}, "
                f"Requested 1. Please try again in {duration(wait_s)}.",
                kind="requests",
                retry_after_s=wait_s,
            )
        self._requests.move(-1, now_s)

    def take_tokens(self, amount: int, now_s: float) -> None:
        """Reserve the tokens of a prompt and of the longest answer that it may get.

        Raises:
            LimitReached: they are not there now, or exceed the limit itself.
        """
        if self._tokens is None:
            return
        limit = self._tokens.capacity
        if amount > limit:
            raise LimitReached(
                f"Request too large for tokens per min (TPM): Limit {limit}, Requested {amount}. "
                "The input or output tokens must be reduced in order to run successfully.",
                kind="tokens",
                retry_after_s=None,
            )
        wait_s = self._tokens.wait_s(amount, now_s)
        if wait_s > 0:
            used = limit - int(self._tokens.level(now_s))
            raise LimitReached(
                f"Rate limit reached for tokens per min (TPM): Limit {limit}, Used {used}, "
                f"Requested {amount}. Please try again in {duration(wait_s)}.",
                kind="tokens",
                retry_after_s=wait_s,
            )
        self._tokens.move(-amount, now_s)

    def settle_tokens(self, reserved: int, used: int, now_s: float) -> None:
        """Give back what was reserved and not used."""
        if self._tokens is not None:
            self._tokens.move(reserved - used, now_s)

    def headers(self, now_s: float) -> Headers:
        """OpenAI's ``x-ratelimit-*`` headers for the limits that there are."""
        found: Headers = []
        for name, bucket in ((b"requests", self._requests), (b"tokens", self._tokens)):
            if bucket is not None:
                left = max(0, int(bucket.level(now_s)))
                reset = duration(bucket.wait_s(bucket.capacity, now_s))
                found += [
                    (b"x-ratelimit-limit-" + name, str(bucket.capacity).encode()),
                    (b"x-ratelimit-remaining-" + name, str(left).encode()),
                    (b"x-ratelimit-reset-" + name, reset.encode()),
                ]
        return found
