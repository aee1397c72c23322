"""Which web pages may call the gateway (Fetch standard, CORS protocol), and from which hosts.

With API keys any origin may by default: a browser never adds the key by itself, so a foreign page
can do nothing that its own server could not do with the same key. Without keys only pages of this
machine may, and only under a loopback name: else any page on the web could spend the machine,
directly or by pointing its own name at 127.0.0.1 (DNS rebinding).
"""

from __future__ import annotations

import re
from typing import Final

from starai.core.errors import PermissionRefused
from starai.gateway.errors import Headers
from starai.gateway.web.incoming import Head

_LOOPBACK: Final = re.compile(
    rb"(?:https?://)?(?:localhost|[a-z0-9-]+\.localhost|127(?:\.\d{1,3}){3}|\[::1\])(?::\d{1,5})?",
    re.IGNORECASE,
)
_HEADER_NAMES: Final = re.compile(rb"[A-Za-z0-9 ,_-]{1,1000}")
_EXPOSED: Final = (
    b"access-control-expose-headers",
    (
        b"x-request-id, retry-after, retry-after-ms, openai-processing-ms, idempotent-replayed, "
        b"x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests, "
        b"x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens"
    ),
)
_VARY: Final = (b"vary", b"origin")


class Cors:
    """Decides by origin."""

    def __init__(self, origins: tuple[str, ...], *, keyless: bool) -> None:
        """Allow ``origins`` (``*``: any), or without keys those of this machine."""
        self._keyless = keyless
        self._any = "*" in origins and not keyless
        self._origins = frozenset(origin.rstrip("/").encode() for origin in origins)

    def check(self, head: Head) -> None:
        """Without keys, refuse what a page from elsewhere may have sent.

        Raises:
            PermissionRefused: the origin or the host is not this machine.
        """
        if not self._keyless:
            return
        if head.origin and not self._allows(head.origin):
            raise PermissionRefused(
                "A gateway without API keys answers only pages of this machine. Start it with "
                "keys to call it from other origins."
            )
        if head.host and not _LOOPBACK.fullmatch(head.host):
            raise PermissionRefused(
                "A gateway without API keys answers only under a loopback name: call it as "
                "localhost or 127.0.0.1, or start it with keys."
            )

    def _allows(self, origin: bytes) -> bool:
        if self._keyless:
            return _LOOPBACK.fullmatch(origin) is not None
        return self._any or origin in self._origins

    def headers(self, origin: bytes) -> Headers:
        """What lets a page of ``origin`` read the answer; nothing if it may not."""
        if not origin:
            return []
        if self._any:
            return [(b"access-control-allow-origin", b"*"), _EXPOSED]
        if self._allows(origin):
            return [(b"access-control-allow-origin", origin), _EXPOSED, _VARY]
        return [_VARY]

    def preflight(self, head: Head) -> Headers:
        """What a browser wants to hear before it sends a request with a key."""
        if not self._allows(head.origin):
            return []
        asked = head.asked_headers
        names = asked if _HEADER_NAMES.fullmatch(asked) else b"authorization, content-type"
        return [
            (b"access-control-allow-methods", b"GET, POST, OPTIONS"),
            # A wildcard would not cover Authorization.
            (b"access-control-allow-headers", names),
            (b"access-control-max-age", b"600"),
        ]
