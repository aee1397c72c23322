"""The probe of the way to a network: each hop that fails is named, with what to do about it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from starai.core.clock import SystemClock
from starai.core.errors import ConfigurationRefused, PartyRefused, Unavailable
from starai.core.randomness import SystemRandomness
from starai.protocol.frames import encode
from starai.protocol.identity import Identity
from starai.protocol.ports import Delivery
from starai.protocol.registry import Admitted
from starai.protocol.subjects import Role
from starai.wire import diagnosis
from starai.wire.certificates import load_or_create_ca, trust
from starai.wire.diagnosis import Applicant, first_failure, probe
from starai.wire.hops import Hop, Step, check_clock, wrong_clock
from starai.wire.jwt import Authority
from starai.wire.listening import NatsServerSettings, WebSocketListener
from starai.wire.nats import NatsSettings, NatsWire, connect_nats
from starai.wire.server import NatsServer, nats_server

pytestmark = pytest.mark.anyio
CHANCE = SystemRandomness()
HOUR_MS = 3_600_000


@pytest.fixture
def anyio_backend() -> str:
    """The real wire needs asyncio."""
    return "asyncio"


class Shifted:
    """The machine's clock, off by some milliseconds."""

    def __init__(self, by_ms: int = 0) -> None:
        self._by_ms = by_ms

    def now_ms(self) -> int:
        """The wrong time."""
        return SystemClock().now_ms() + self._by_ms

    def monotonic_s(self) -> float:
        """This one is never wrong."""
        return SystemClock().monotonic_s()


def applicant(
    authority: Authority, *, issued_ms: int = 0, lifetime_ms: int = HOUR_MS, clock_ms: int = 0
) -> Applicant:
    """A newcomer with a token's credential, issued so long from now, and a clock that is off."""
    joiner = Identity.create(CHANCE)
    now_ms = SystemClock().now_ms() + issued_ms
    return Applicant(
        Shifted(clock_ms),
        CHANCE,
        identity=joiner,
        credential=authority.user_jwt(joiner.party, Role.JOINER, lifetime_ms, now_ms),
        account=authority.account.nkey,
    )


@asynccontextmanager
async def registry(server: NatsServer, says: bytes = b"no message") -> AsyncIterator[NatsWire]:
    """Somebody who answers what the registry is asked."""
    identity = Identity.create(CHANCE)
    jwt = server.authority.user_jwt(identity.party, Role.REGISTRY, HOUR_MS, SystemClock().now_ms())
    async with connect_nats(NatsSettings((server.url,), identity, lambda: jwt)) as wire:

        def answer(delivery: Delivery) -> None:
            wire.publish_soon(delivery.reply, says)

        async with wire.subscribe("starai.registry.>", answer):
            yield wire


def last(steps: tuple[Step, ...]) -> tuple[Hop, str]:
    """The failing hop and what is said of it; a failure always has advice."""
    assert not steps[-1].ok
    assert steps[-1].advice
    assert all(step.ok for step in steps[:-1])
    return steps[-1].hop, steps[-1].found


async def test_a_good_way_passes_every_hop(nats: NatsServer) -> None:
    """Name, TCP, greeting, login, clock, registry: all tried, in order, nothing changed."""
    told: list[Step] = []
    async with registry(nats):
        steps = await probe(nats.url, applicant(nats.authority), told.append)
        assert await first_failure((nats.url,), applicant(nats.authority)) is None
    assert tuple(told) == steps
    hops = [step.hop for step in steps]
    assert hops == [Hop.NAME, Hop.TCP, Hop.GREETING, Hop.LOGIN, Hop.CLOCK, Hop.REGISTRY]
    assert all(step.ok for step in steps)


async def test_without_a_token_it_ends_before_the_login(nats: NatsServer) -> None:
    """A bare URL is enough to see whether a NATS server can be reached."""
    steps = await probe(nats.url, Applicant(SystemClock(), CHANCE))
    assert [step.hop for step in steps] == [Hop.NAME, Hop.TCP, Hop.GREETING]


async def test_a_name_that_nobody_knows() -> None:
    """RFC 6761 keeps .invalid free for ever."""
    steps = await probe("nats://starai.invalid", Applicant(SystemClock(), CHANCE))
    assert last(steps) == (Hop.NAME, "no address is known for 'starai.invalid'")


async def test_a_port_where_nothing_listens() -> None:
    """Refused is told from unanswered."""
    steps = await probe("tls://127.0.0.1:1", Applicant(SystemClock(), CHANCE))
    assert last(steps) == (Hop.TCP, "nothing listens at 127.0.0.1:1")


@pytest.mark.parametrize(
    ("url", "says", "expected"),
    [
        ("nats://127.0.0.1:{}", b"HTTP/1.1 400 Bad\r\n\r\n", (Hop.GREETING, "no NATS server")),
        ("nats://127.0.0.1:{}", b"", (Hop.GREETING, "nothing is said")),
        ("tls://127.0.0.1:{}", b"INFO {}\r\n", (Hop.TLS, "does not speak TLS")),
        ("wss://127.0.0.1:{}", b"HTTP/1.1 400 Bad\r\n\r\n", (Hop.TLS, "does not speak TLS")),
        ("ws://127.0.0.1:{}", b"HTTP/1.1 403 No\r\n\r\n", (Hop.WEBSOCKET, "HTTP 403 No")),
        ("ws://127.0.0.1:{}", b"", (Hop.WEBSOCKET, "nothing is said")),
    ],
)
async def test_something_else_listens_there(
    url: str, says: bytes, expected: tuple[Hop, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program's port, or one that a box on the way keeps open, fails at the right hop."""
    monkeypatch.setattr(diagnosis, "HOP_TIMEOUT_S", 0.3)

    async def answer(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await stream.send(says)
            with anyio.move_on_after(0.5):
                await stream.receive()

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, answer)
        hop, found = last(await probe(url.format(port), Applicant(SystemClock(), CHANCE)))
        tasks.cancel_scope.cancel()
    assert hop is expected[0]
    assert expected[1] in found


@asynccontextmanager
async def secure_server(home: Path, made_ms: int = 0) -> AsyncIterator[tuple[NatsServer, bytes]]:
    """A server for ``localhost`` whose certificates were made so long from now."""
    authority = load_or_create_ca(home / "tls", Shifted(made_ms))
    settings = NatsServerSettings(
        home,
        port=0,
        tls=authority.issue(("localhost",), Shifted(made_ms)),
        websocket=WebSocketListener("127.0.0.1", 0),
    )
    async with nats_server(settings) as server:
        yield server, authority.der


async def test_tls_and_websocket_hops(tmp_path: Path) -> None:
    """Both secure ways pass; a strange certificate and a wrong name are told apart."""
    stranger = load_or_create_ca(tmp_path / "other", SystemClock())
    async with secure_server(tmp_path) as (server, ca):
        who = replace(applicant(server.authority), tls=trust(ca))
        for url in (server.url, server.websocket_url):
            here = url.replace("127.0.0.1", "localhost")
            steps = await probe(here, replace(who, identity=None))
            assert steps[-1].ok
            assert Hop.TLS in [step.hop for step in steps]
            assert (Hop.WEBSOCKET in [step.hop for step in steps]) == here.startswith("wss")
            hop, found = last(await probe(here, replace(who, tls=trust(stranger.der))))
            assert (hop, "not from whom" in found) == (Hop.TLS, True)
            hop, found = last(await probe(url, who))
            assert (hop, "not for 127.0.0.1" in found) == (Hop.TLS, True)


@pytest.mark.parametrize(("years", "side"), [(-5, "ahead"), (5, "behind")])
async def test_a_certificate_out_of_time_is_a_clock_that_is_wrong(
    tmp_path: Path, years: int, side: str
) -> None:
    """To a device whose clock is years off, every certificate looks old or not yet good."""
    async with secure_server(tmp_path, years * 365 * 24 * HOUR_MS) as (server, ca):
        for url in (server.url, server.websocket_url):
            here = url.replace("127.0.0.1", "localhost")
            who = replace(applicant(server.authority), tls=trust(ca))
            hop, found = last(await probe(here, who))
            assert hop is Hop.CLOCK
            assert f"seems to be {side}" in found
            error = await first_failure((here,), who)
            assert isinstance(error, ConfigurationRefused)
            assert "timedatectl" in error.message


async def test_an_expired_token_is_told_from_a_wrong_one(nats: NatsServer) -> None:
    """Each refusal has its own words, and says what this device's clock shows."""
    old = applicant(nats.authority, issued_ms=-2 * HOUR_MS)
    hop, found = last(await probe(nats.url, old))
    assert (hop, "expired at" in found) == (Hop.LOGIN, True)
    other = applicant(Authority.create(CHANCE))
    hop, found = last(await probe(nats.url, other))
    assert (hop, "refuses" in found) == (Hop.LOGIN, True)
    assert isinstance(await first_failure((nats.url,), other), PartyRefused)
    strange = replace(other, account=nats.authority.account.nkey)
    assert last(await probe(nats.url, strange)) == (
        Hop.LOGIN,
        "this is no token of that network",
    )


@pytest.mark.parametrize(("off_h", "side"), [(30, "ahead of"), (-30, "behind")])
async def test_a_wrong_clock_is_named_as_such(nats: NatsServer, off_h: int, side: str) -> None:
    """The server lets the token in, so the device's own clock must be what is wrong."""
    async with registry(nats):
        who = applicant(nats.authority, clock_ms=off_h * HOUR_MS)
        hop, found = last(await probe(nats.url, who))
        assert hop is Hop.CLOCK
        assert side in found
        assert "at least" in found
    refused = applicant(Authority.create(CHANCE), clock_ms=-30 * HOUR_MS)
    hop, found = last(await probe(nats.url, refused))
    assert (hop, "behind" in found) == (Hop.CLOCK, True)


@pytest.mark.parametrize(("off_ms", "ok"), [(0, True), (10 * 60_000, False), (-600_000, False)])
async def test_a_member_learns_the_registrys_own_time(
    nats: NatsServer, off_ms: int, ok: bool
) -> None:
    """Ten minutes off is nothing that a credential would show; the registry's answer does."""
    who = applicant(nats.authority)
    identity = who.identity
    assert identity is not None
    now_ms = SystemClock().now_ms()
    mine = nats.authority.user_jwt(identity.party, Role.NODE, 2 * HOUR_MS, now_ms - HOUR_MS)
    fresh = nats.authority.user_jwt(identity.party, Role.NODE, HOUR_MS, now_ms)
    answer = encode(Admitted(fresh, now_ms + HOUR_MS, "n", nats.authority.account.nkey, 1000))
    member = replace(who, credential=mine, verb="renew", clock=Shifted(off_ms))
    async with registry(nats, answer):
        steps = await probe(nats.url, member)
    assert steps[-1].ok is ok
    if not ok:
        assert steps[-1].hop is Hop.CLOCK
        assert "10 minutes" in steps[-1].found or "9 minutes" in steps[-1].found
    else:
        assert steps[-2].found == "agrees with the registry's"


async def test_a_silent_registry(nats: NatsServer) -> None:
    """The server answers and nobody is behind it."""
    hop, found = last(await probe(nats.url, applicant(nats.authority)))
    assert (hop, "silent" in found) == (Hop.REGISTRY, True)


async def test_of_several_ways_the_furthest_tells_most(nats: NatsServer) -> None:
    """A port that is closed says less than a registry that is silent."""
    who = applicant(nats.authority)
    error = await first_failure(("tls://127.0.0.1:1", nats.url, "ws://127.0.0.1:1"), who)
    assert isinstance(error, Unavailable)
    assert "registry failed" in error.message
    assert nats.url in error.message


def test_a_minute_is_forgiven_and_spans_are_readable() -> None:
    """Small differences pass; larger ones are told in the unit that people use."""
    check_clock(0, 60_000)
    with pytest.raises(ConfigurationRefused, match="clock is 61 s behind"):
        check_clock(0, 61_000)
    texts: list[tuple[int, str]] = [
        (90_000, "90 s"),
        (3 * 60_000, "3 minutes"),
        (5 * HOUR_MS, "5 hours"),
        (400 * 24 * HOUR_MS, "400 days"),
        (1 << 60, "days"),
    ]
    for ms, text in texts:
        assert text in str(wrong_clock(ms, 0))
