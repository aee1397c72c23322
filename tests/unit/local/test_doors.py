"""Which NATS servers a network runs, what tickets say of them, and which proxy leads to them."""

from __future__ import annotations

from pathlib import Path

import pytest

from starai.core.clock import SystemClock
from starai.core.errors import ConfigurationRefused
from starai.core.randomness import SeededRandomness
from starai.local.doors import PublicDoor, Servers, plan_servers
from starai.local.proxies import system_proxy
from starai.wire.certificates import load_or_create_ca

CLOCK = SystemClock()


def plan(folder: Path, num_local: int = 1, door: PublicDoor | None = None) -> Servers:
    return plan_servers(folder, 0, num_local, door, CLOCK, SeededRandomness(1))


def test_alone_it_is_one_server_on_loopback(tmp_path: Path) -> None:
    """Nothing is opened that nobody asked for."""
    made = plan(tmp_path)
    (only,) = made.settings
    assert (only.host, only.tls, only.websocket, only.cluster) == ("127.0.0.1", None, None, None)
    assert (made.public_urls, made.ca) == ((), b"")


def test_several_are_routed_to_each_other(tmp_path: Path) -> None:
    """Each knows the others, all know one secret, and each has a folder of its own."""
    made = plan(tmp_path, 3)
    clusters = [one.cluster for one in made.settings]
    assert len({one.secret for one in clusters if one}) == 1
    for one in clusters:
        assert one is not None
        assert len(one.routes) == 2
        assert f"127.0.0.1:{one.port}" not in one.routes
        assert one.secret not in repr(one)
    assert len({one.own_folder for one in made.settings}) == 3


def test_a_public_door_speaks_tls_only_and_is_in_the_tickets(tmp_path: Path) -> None:
    """The services' own server stays on loopback; the other shows the network's certificate."""
    made = plan(tmp_path, 1, PublicDoor("my.example.org:5000", websocket_port=443))
    inner, outer = made.settings
    assert (inner.host, inner.tls) == ("127.0.0.1", None)
    assert outer.host == "0.0.0.0"
    assert outer.port == 5000
    assert outer.tls is not None
    assert outer.websocket is not None
    assert made.public_urls == ("tls://my.example.org:5000", "wss://my.example.org:443")
    assert made.ca == load_or_create_ca(tmp_path / "tls", CLOCK).der


def test_a_certificate_of_ones_own(tmp_path: Path) -> None:
    """A public one needs no trust in the ticket; a private one brings its authority along."""
    files = load_or_create_ca(tmp_path / "own", CLOCK).issue(("h",), CLOCK)
    given = {"certificate": files.certificate, "key": files.key}
    made = plan(tmp_path, 1, PublicDoor("h", **given))
    assert made.ca == b""
    made = plan(tmp_path, 1, PublicDoor("h", **given, ca=tmp_path / "own/ca.pem"))
    assert made.ca
    with pytest.raises(ConfigurationRefused, match="--tls-key"):
        plan(tmp_path, 1, PublicDoor("h", certificate=files.certificate))
    with pytest.raises(ConfigurationRefused, match="no file"):
        plan(tmp_path, 1, PublicDoor("h", certificate=files.certificate, key=tmp_path / "no"))


@pytest.mark.parametrize("bad", [":1", "h:x", "h/path", "h:99999", "hö", "a b"])
def test_an_address_that_is_none(bad: str) -> None:
    """Refused with what is expected."""
    with pytest.raises(ConfigurationRefused, match="HOST:PORT"):
        _ = PublicDoor(bad).urls


def test_ipv6_has_brackets() -> None:
    """In URLs, and listens at every IPv6 address."""
    assert PublicDoor("[2001:db8::1]:9").urls[0] == "tls://[2001:db8::1]:9"
    assert PublicDoor("127.0.0.1").host == "127.0.0.1"


def test_the_owners_proxy_is_used_for_websockets_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not for TCP, not for this machine, and not where NO_PROXY says otherwise."""
    for name in ("https_proxy", "http_proxy", "no_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTPS_PROXY", "proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", "near.example")
    assert system_proxy(("tls://a.example:1", "wss://a.example")) == "http://proxy.example:3128"
    assert system_proxy(("tls://a.example:1", "nats://a.example")) == ""
    assert system_proxy(("wss://127.0.0.1:1", "wss://near.example", "ws://a.example")) == ""
