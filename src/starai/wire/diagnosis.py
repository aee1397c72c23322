"""Which hop fails between this device and a network: a probe, step by step.

Name, TCP, greeting, TLS, WebSocket, login, clock, registry: each is tried alone, in the order in
which a connection needs them, until one fails. Nothing here is on a working party's road. What is
said about a failure is in `starai.wire.hops`. Knows nothing of files or of services.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import anyio
from anyio.abc import ByteStream, SocketStream
from anyio.streams.tls import TLSAttribute, TLSStream

from starai.core.clock import Clock
from starai.core.errors import (
    DeadlinePassed,
    MalformedFrame,
    PartyRefused,
    SealBroken,
    StarAIError,
    Unavailable,
)
from starai.core.randomness import Randomness
from starai.protocol.credentials import Credential, read_credential
from starai.protocol.frames import decode, encode, peek
from starai.protocol.identity import Identity
from starai.protocol.registry import Admitted, Renew
from starai.protocol.subjects import registry
from starai.wire.certificates import validity_ms
from starai.wire.dialing import Address, NatsSettings, parse_address
from starai.wire.hops import (
    ASK_AGAIN,
    Hop,
    HopFailed,
    Step,
    certificate_out_of_time,
    compare_clocks,
    explain_refusal,
)
from starai.wire.link import LINE_BYTES_MAX
from starai.wire.nats import NatsWire, connect_nats
from starai.wire.websocket import (
    HEAD_BYTES_MAX,
    UpgradeRefused,
    check_upgrade,
    read_head,
    tunnel,
    upgrade_request,
    without_login,
)

#: One hop of the probe: long enough for a slow line, and a firewall that drops packets is known.
HOP_TIMEOUT_S: Final = 4.0
#: OpenSSL's X509_V_ERR numbers: a certificate whose time has not come, or is over; a wrong name.
_OUT_OF_TIME: Final = (9, 10)
_WRONG_NAME: Final = (62, 64)
_PROXY_ADVICE: Final = (
    "A proxy on the way does not let WebSockets through, or it is another web server's port; "
    "compare the address, or set HTTPS_PROXY if this network has a proxy."
)
_SILENT_ADVICE: Final = (
    "A firewall or proxy may hold the connection, or it is another program's port; try the "
    "operator's other addresses."
)
_BROKEN: Final = (OSError, anyio.EndOfStream, anyio.BrokenResourceError)

_Found = tuple[Hop, str] | None


@dataclass(frozen=True)
class Applicant:
    """Who is to get in, and how; without an identity the probe ends before the login.

    Attributes:
        clock: this device's time.
        randomness: for the probe's own nonces.
        tls: trust for secure URLs, the system's if none.
        identity: the party's key.
        credential: its JWT.
        account: the network's nkey, which must have signed it.
        verb: what the party may ask of the registry: ``join`` or ``renew``.
        proxy: what WebSockets go through, if anything.
    """

    clock: Clock
    randomness: Randomness
    tls: ssl.SSLContext | None = None
    identity: Identity | None = None
    credential: str = ""
    account: str = ""
    verb: str = "join"
    proxy: str = ""


def _ignore(_step: Step) -> None:
    """Nobody watches."""


async def probe(
    url: str, applicant: Applicant, tell: Callable[[Step], None] = _ignore
) -> tuple[Step, ...]:
    """Try each hop to ``url`` in turn; the last step is the first that fails, if one does.

    Raises:
        ConfigurationRefused: ``url`` is malformed.
    """
    address = parse_address(url, trusted=applicant.tls is not None)
    steps: list[Step] = []

    def note(step: Step) -> None:
        steps.append(step)
        tell(step)

    walk = _Walk(address, applicant)
    try:
        for hop in walk.hops():
            began_s = applicant.clock.monotonic_s()
            found = await hop()
            if found is not None:
                took_ms = (applicant.clock.monotonic_s() - began_s) * 1000
                note(Step(found[0], ok=True, found=found[1], took_ms=took_ms))
    except HopFailed as failed:
        note(failed.step)
    finally:
        await walk.hang_up()
    return tuple(steps)


async def first_failure(urls: tuple[str, ...], applicant: Applicant) -> StarAIError | None:
    """What fails on the way to ``urls``; None if one of them works.

    Of several, the way that leads furthest says most: others may be blocked on purpose.
    """
    furthest: tuple[Step, ...] = ()
    at = ""
    for url in urls:
        steps = await probe(url, applicant)
        if steps[-1].ok:
            return None
        if len(steps) > len(furthest):
            furthest, at = steps, url
    return furthest[-1].error(at) if furthest else None


class _Walk:
    """The hops to one address; each returns what it found, or None where it does not apply.

    All of them raise `HopFailed` where there is no way on.
    """

    def __init__(self, address: Address, applicant: Applicant) -> None:
        self._to = address
        self._applicant = applicant
        self._proxy = applicant.proxy if address.is_websocket else ""
        self._found: list[tuple[str, int]] = []
        self._stream: ByteStream | None = None
        self._server_ms: int | None = None
        self._registry_silent = False

    def hops(self) -> tuple[Callable[[], Awaitable[_Found]], ...]:
        """All hops in the order in which a connection needs them."""
        if self._to.is_websocket:
            talk: tuple[Callable[[], Awaitable[_Found]], ...] = (self.secure, self.upgrade)
        else:
            talk = (self.greet, self.secure)
        get_in = (self.log_in, self.compare_clocks, self.ask_registry)
        return (self.find_name, self.connect, *talk, *get_in)

    async def hang_up(self) -> None:
        """Leave nothing open."""
        if self._stream is not None:
            stream, self._stream = self._stream, None
            await anyio.aclose_forcefully(stream)

    # -- reaching it ------------------------------------------------------------------------

    async def find_name(self) -> _Found:
        """Look the host's name up."""
        if self._proxy:
            return None  # the proxy does
        host = self._to.host
        try:
            with anyio.fail_after(HOP_TIMEOUT_S):
                infos = await anyio.getaddrinfo(host, self._to.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise HopFailed(
                Hop.NAME,
                f"no address is known for {host!r}",
                "Check the spelling, and that this device has a working internet connection and "
                "name server.",
            ) from error
        self._found = [(str(info[4][0]), int(info[4][1])) for info in infos]
        return Hop.NAME, ", ".join(sorted({host for host, _ in self._found}))

    async def connect(self) -> _Found:
        """Reach the port."""
        if self._proxy:
            return await self._connect_by_proxy()
        where = f"{self._to.host}:{self._to.port}"
        refused = False
        for host, port in self._found:
            try:
                with anyio.fail_after(HOP_TIMEOUT_S):
                    self._stream = await anyio.connect_tcp(host, port)
            except TimeoutError:
                continue
            except OSError as error:
                refused = refused or isinstance(error.__cause__ or error, ConnectionRefusedError)
                continue
            return Hop.TCP, f"connected to {host}:{port}"
        if refused:
            raise HopFailed(
                Hop.TCP,
                f"nothing listens at {where}",
                "Ask the operator whether the network is up, and compare the port.",
            )
        raise HopFailed(
            Hop.TCP,
            f"no answer from {where} within {HOP_TIMEOUT_S:g} s",
            f"A firewall on the way blocks port {self._to.port}, or the machine is off. Port 443 "
            "is open almost everywhere: ask the operator for a wss:// address.",
        )

    async def _connect_by_proxy(self) -> _Found:
        try:
            with anyio.fail_after(HOP_TIMEOUT_S):
                made = await tunnel(self._proxy, self._to.host, self._to.port)
        except OSError as error:
            raise HopFailed(
                Hop.TCP,
                f"the proxy {without_login(self._proxy)} gives no way to {self._to.host}:"
                f"{self._to.port} ({error})",
                "Check HTTPS_PROXY, or ask who runs the proxy to let this address through.",
            ) from error
        self._stream = await SocketStream.from_socket(made)
        return Hop.TCP, f"through the proxy {without_login(self._proxy)}"

    async def greet(self) -> _Found:
        """Hear a NATS server's first line."""
        line = await self._read_until(b"\r\n", LINE_BYTES_MAX, Hop.GREETING)
        if not line.startswith(b"INFO "):
            raise HopFailed(
                Hop.GREETING,
                "something answers there, but it is no NATS server",
                "Compare host and port with what the operator gave you.",
            )
        return Hop.GREETING, "a NATS server"

    async def secure(self) -> _Found:
        """Speak TLS and look at the certificate."""
        if not self._to.secure:
            return None
        own = self._applicant.tls
        try:
            await self._wrap(own or ssl.create_default_context())
        except ssl.SSLCertVerificationError as error:
            raise await self._bad_certificate(error) from error
        except _BROKEN as error:
            raise HopFailed(
                Hop.TLS,
                "the server does not speak TLS, or something on the way cuts it off",
                "Compare the address with the operator's: nats:// and ws:// are without TLS.",
            ) from error
        return Hop.TLS, "the network's own certificate" if own else "a certificate of good name"

    async def _wrap(self, context: ssl.SSLContext) -> None:
        with anyio.fail_after(HOP_TIMEOUT_S):
            self._stream = await TLSStream.wrap(
                self._need_stream(),
                hostname=self._to.host,
                ssl_context=context,
                standard_compatible=False,
            )

    async def _bad_certificate(self, error: ssl.SSLCertVerificationError) -> HopFailed:
        if error.verify_code in _OUT_OF_TIME:
            here_ms, der = self._applicant.clock.now_ms(), await self._look_at_certificate()
            return certificate_out_of_time(here_ms, validity_ms(der) if der else None)
        if error.verify_code in _WRONG_NAME:
            return HopFailed(
                Hop.TLS,
                f"the certificate is not for {self._to.host}",
                "Use the address that is in the operator's token, or ask for a new token.",
            )
        return HopFailed(
            Hop.TLS,
            "the certificate is not from whom this device trusts",
            "The token is another network's, or the address needs a token to be trusted, or a "
            "proxy on the way opens TLS: it would read along, so nothing was sent.",
        )

    async def _look_at_certificate(self) -> bytes:
        """The server's certificate, unchecked: it is looked at, never trusted."""
        await self.hang_up()
        looking = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        looking.check_hostname = False
        looking.verify_mode = ssl.CERT_NONE
        try:
            await self.connect()
            if not self._to.is_websocket:
                await self.greet()
            await self._wrap(looking)
        except (*_BROKEN, HopFailed):
            return b""
        der = self._need_stream().extra(TLSAttribute.peer_certificate_binary)  # noqa: S610
        return der or b""

    async def upgrade(self) -> _Found:
        """Ask for a WebSocket."""
        nonce, to = self._applicant.randomness.take(16), self._to
        try:
            with anyio.fail_after(HOP_TIMEOUT_S):
                await self._need_stream().send(upgrade_request(to.host, to.port, "/", nonce))
            raw = await self._read_until(b"\r\n\r\n", HEAD_BYTES_MAX, Hop.WEBSOCKET)
            head = read_head(raw)
            check_upgrade(head, nonce)
        except UpgradeRefused as refused:
            raise HopFailed(Hop.WEBSOCKET, str(refused), _PROXY_ADVICE) from refused
        except _BROKEN as error:
            raise HopFailed(Hop.WEBSOCKET, "it hangs up", _PROXY_ADVICE) from error
        return Hop.WEBSOCKET, "open"

    # -- getting in -------------------------------------------------------------------------

    async def log_in(self) -> _Found:
        """Show the credential, as a party does; ask the registry while we are in."""
        await self.hang_up()
        applicant = self._applicant
        identity = applicant.identity
        if identity is None:
            return None
        known = self._credential()
        settings = NatsSettings(
            (self._to.url,),
            identity,
            lambda: applicant.credential,
            tls=applicant.tls,
            first_connect_s=HOP_TIMEOUT_S,
            proxy=applicant.proxy,
        )
        try:
            async with connect_nats(settings, randomness=applicant.randomness) as wire:
                await self._question(wire, identity)
        except PartyRefused as refused:
            raise explain_refusal(known, applicant.clock.now_ms()) from refused
        except Unavailable as error:
            here_ms = applicant.clock.now_ms()
            if here_ms >= known.expires_ms:  # let in, and thrown out in the same second
                raise explain_refusal(known, here_ms) from error
            raise HopFailed(
                Hop.LOGIN, f"the server hangs up ({error.message})", "Try again in a minute."
            ) from error
        return Hop.LOGIN, f"let in as {identity.party[:12]}…"

    async def _question(self, wire: NatsWire, identity: Identity) -> None:
        """See whether the registry answers, and what time it has, if it tells a party of ours."""
        # A newcomer asks what is no message: the registry says so, and no use of a token is lost.
        asks = encode(Renew(identity.party)) if self._applicant.verb == "renew" else b"?"
        subject = registry(self._applicant.verb, identity.party)
        try:
            answer = await wire.request(subject, asks, timeout_s=HOP_TIMEOUT_S)
            if peek(answer) is Admitted:
                fresh = decode(answer, Admitted).credential
                self._server_ms = read_credential(fresh, self._applicant.account, 0).issued_ms
        except (Unavailable, DeadlinePassed):
            self._registry_silent = True
        except (MalformedFrame, SealBroken, PartyRefused):
            pass  # it did answer

    def _credential(self) -> Credential:
        try:
            # At time 0 nothing has expired: its dates are judged beside the server's answer.
            return read_credential(self._applicant.credential, self._applicant.account, 0)
        except (SealBroken, PartyRefused) as error:
            raise HopFailed(Hop.LOGIN, "this is no token of that network", ASK_AGAIN) from error

    async def compare_clocks(self) -> _Found:
        """See what the credential, and the registry's time, say about this device's clock."""
        if self._applicant.identity is None:
            return None
        here_ms = self._applicant.clock.now_ms()
        wrong = compare_clocks(self._credential(), here_ms, self._server_ms)
        if wrong is not None:
            raise wrong
        if self._server_ms is None:
            return Hop.CLOCK, "no contradiction to the network's"
        return Hop.CLOCK, "agrees with the registry's"

    async def ask_registry(self) -> _Found:
        """See whether the registry answered."""
        if self._applicant.identity is None:
            return None
        if self._registry_silent:
            raise HopFailed(
                Hop.REGISTRY,
                "the server is there, but the network's registry is silent",
                "The operator has to start it again; a token stays good meanwhile.",
            )
        return Hop.REGISTRY, "answers"

    # -- reading ----------------------------------------------------------------------------

    def _need_stream(self) -> ByteStream:
        if self._stream is None:
            raise anyio.BrokenResourceError
        return self._stream

    async def _read_until(self, mark: bytes, limit: int, hop: Hop) -> bytes:
        heard = b""
        try:
            with anyio.fail_after(HOP_TIMEOUT_S):
                while mark not in heard and len(heard) < limit:
                    heard += await self._need_stream().receive(4096)
        except _BROKEN as error:
            if not heard:
                said = "the port is open, but nothing is said there"
                raise HopFailed(hop, said, _SILENT_ADVICE) from error
        return heard.partition(mark)[0]
