"""The proxy that this machine's owner has set, for wires that go through one."""

from __future__ import annotations

import urllib.request
from collections.abc import Sequence
from urllib.parse import urlsplit


def system_proxy(urls: Sequence[str]) -> str:
    """``http://host:port`` that WebSockets to ``urls`` go through; empty for none.

    As every program has it: ``HTTPS_PROXY`` and ``NO_PROXY``, or the settings of macOS and
    Windows. Addresses of this very machine are never asked of a proxy.
    """
    proxies = urllib.request.getproxies()
    for url in urls:
        parts = urlsplit(url)
        host = parts.hostname or ""
        if parts.scheme not in ("ws", "wss") or host in ("127.0.0.1", "localhost", "::1"):
            continue
        proxy = proxies.get("https" if parts.scheme == "wss" else "http", "")
        if proxy and not urllib.request.proxy_bypass(host):
            return proxy if "://" in proxy else f"http://{proxy}"
    return ""
