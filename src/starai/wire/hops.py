"""The hops between a device and its network, and what to tell a person about one that fails.

Tells a wrong clock from an old token by what a credential and a server say about time. Knows no
sockets: `starai.wire.diagnosis` walks the hops.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from starai.core.errors import ConfigurationRefused, PartyRefused, StarAIError, Unavailable
from starai.protocol.credentials import Credential

#: A clock that is further off than this makes seals and deadlines fail; half of what
#: `starai.sealing.prekeys` forgives, since two devices may be off in opposite directions.
CLOCK_SKEW_MS_MAX: Final = 60_000

#: How a clock is set, on each system.
SET_CLOCK: Final = (
    "Set this device's clock (Linux: timedatectl set-ntp true; Windows: w32tm /resync; macOS: "
    "System Settings, Date & Time, automatically) and try again."
)
ASK_AGAIN: Final = "Ask the operator for a new token: starai tokens create."


class Hop(enum.Enum):
    """Where a connection can fail, in the order in which it is made."""

    NAME = "name (DNS)"
    TCP = "TCP"
    GREETING = "greeting"
    TLS = "TLS"
    WEBSOCKET = "WebSocket"
    LOGIN = "authentication"
    CLOCK = "clock"
    REGISTRY = "registry"


@dataclass(frozen=True)
class Step:
    """One hop tried: what was found there, how long it took, and, if it failed, what to do."""

    hop: Hop
    ok: bool
    found: str
    advice: str = ""
    took_ms: float = 0.0

    def error(self, url: str) -> StarAIError:
        """The failure as an error to raise."""
        text = f"cannot join at {url}: {self.hop.value} failed: {self.found}. {self.advice}"
        if self.hop is Hop.LOGIN:
            return PartyRefused(text)
        if self.hop is Hop.CLOCK:
            return ConfigurationRefused(text)
        return Unavailable(text)


class HopFailed(Exception):
    """Ends a walk at the hop that does not work."""

    def __init__(self, hop: Hop, found: str, advice: str) -> None:
        """Say what was found there and what to do about it."""
        super().__init__(found)
        self.step = Step(hop, ok=False, found=found, advice=advice)


def explain_refusal(known: Credential, here_ms: int) -> HopFailed:
    """Why a server refuses a credential, as far as its own dates tell.

    The server judges by its own clock, so what is good by ours and refused there is either void or
    a sign that the two clocks are apart.
    """
    if here_ms < known.issued_ms - CLOCK_SKEW_MS_MAX:
        return wrong_clock(here_ms, known.issued_ms, "at the earliest")
    if here_ms >= known.expires_ms:
        return HopFailed(
            Hop.LOGIN,
            f"the token expired at {day(known.expires_ms)} (this device's clock says "
            f"{day(here_ms)})",
            ASK_AGAIN,
        )
    return HopFailed(
        Hop.LOGIN,
        f"the network refuses the token, though by this device's clock ({day(here_ms)}) it is good "
        f"until {day(known.expires_ms)}",
        "It was revoked, or it is another network's, or this clock is behind. Compare the clock, "
        "then ask the operator for a new token: starai tokens create.",
    )


def certificate_out_of_time(here_ms: int, good_ms: tuple[int, int] | None) -> HopFailed:
    """A certificate whose time has not come or is over; ``good_ms`` says from when to when."""
    said = f"this device's clock says {day(here_ms)}"
    if good_ms is None:
        said += ", at which the server's certificate is not valid"
    else:
        begin_ms, end_ms = good_ms
        side = "behind" if here_ms < begin_ms else "ahead"
        said += (
            f", but the server's certificate is good from {day(begin_ms)} to {day(end_ms)}: this "
            f"clock seems to be {side}"
        )
    return HopFailed(
        Hop.CLOCK,
        said,
        f"{SET_CLOCK} If it is right, the operator has to restart the network, which makes a new "
        "certificate.",
    )


def compare_clocks(known: Credential, here_ms: int, server_ms: int | None) -> HopFailed | None:
    """What is wrong with this device's clock, seen from a server that let ``known`` in."""
    if here_ms >= known.expires_ms:
        # The server let it in, so by the network's time it is still good.
        return wrong_clock(here_ms, known.expires_ms, "at the latest")
    if here_ms < known.issued_ms - CLOCK_SKEW_MS_MAX:
        return wrong_clock(here_ms, known.issued_ms, "at the earliest")
    if server_ms is not None and abs(here_ms - server_ms) > CLOCK_SKEW_MS_MAX:
        return wrong_clock(here_ms, server_ms)
    return None


def wrong_clock(here_ms: int, network_ms: int, bound: str = "") -> HopFailed:
    """This device's clock and the network's are apart; ``bound`` says how surely."""
    side = "ahead of" if here_ms > network_ms else "behind"
    by = f"{'at least ' if bound else ''}{_span(abs(here_ms - network_ms))}"
    there = f"{day(network_ms)} {bound}".rstrip()
    return HopFailed(
        Hop.CLOCK,
        f"this device's clock is {by} {side} the network's (here {day(here_ms)}, there {there})",
        SET_CLOCK,
    )


def check_clock(here_ms: int, network_ms: int) -> None:
    """See that this device's clock agrees with the network's.

    Raises:
        ConfigurationRefused: they are further apart than seals and deadlines bear.
    """
    if abs(here_ms - network_ms) > CLOCK_SKEW_MS_MAX:
        step = wrong_clock(here_ms, network_ms).step
        raise ConfigurationRefused(f"{step.hop.value} failed: {step.found}. {step.advice}")


def day(unix_ms: int) -> str:
    """A moment as a person reads it, in UTC."""
    try:
        return f"{datetime.fromtimestamp(unix_ms / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (ValueError, OverflowError, OSError):
        return f"{unix_ms} ms"


def _span(ms: int) -> str:
    for size, name in ((86_400_000, "days"), (3_600_000, "hours"), (60_000, "minutes")):
        if ms >= 2 * size:
            return f"{ms // size} {name}"
    return f"{ms // 1000} s"
