"""What is simulated, as a file says it: places, devices, arrivals, churn, a cut.

It reads and checks; it knows neither the data that a scenario names nor how it is run.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

from starai.core.errors import ConfigurationRefused

#: Nodes of one run: a few kilobytes each.
NODES_MAX: Final = 1_000_000
Positive = Annotated[float, msgspec.Meta(gt=0)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]
Whole = Annotated[int, msgspec.Meta(ge=1)]


class Places(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where everybody is. ``cities`` are a first one, drawn by seed, and those nearest to it.

    Each region has a gateway and a distributor in the middle of its cities.
    """

    ping: str = "wondernetwork"
    cities: Whole = 222
    regions: Whole = 1


class Devices(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What nodes are: drawn from the measured devices that ran ``model``."""

    speeds: str = "geerling"
    model: str = "Llama 3.2:3b"


class Arrivals(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Requests: copies of the traces, each from a random moment on, until the rate is reached.

    ``load`` instead of a rate is the share of what all nodes could serve together.
    """

    traces: tuple[str, ...] = ("azure",)
    per_second: NotNegative = 0.0
    load: NotNegative = 0.0


class Churn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How nodes come and go.

    ``weibull``: sessions of ``session_h`` hours on average, with a ``shape`` below 1 (many short
    ones, few very long), and absences of ``absence_h``. ``spot``: groups of nodes rise and fall
    together as the recorded spot instances did. ``graceful`` is the share that says goodbye.
    A node ``hangs`` so many times a day for half a minute: signs of life, but no token.
    """

    kind: str = "none"
    session_h: Positive = 4.0
    shape: Positive = 0.5
    absence_h: Positive = 4.0
    graceful: Share = 0.5
    hangs_a_day: NotNegative = 0.0


class Cut(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """For a while the nodes of some cities hear nobody: the ``share`` of cities farthest away."""

    at_s: NotNegative = 0.0
    seconds: NotNegative = 0.0
    share: Share = 0.0


class Scenario(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A scenario. ``synthetic_if_absent``: made-up distributions stand in for missing data."""

    title: str
    description: str
    nodes: Annotated[int, msgspec.Meta(ge=1, le=NODES_MAX)]
    hours: Positive = 1.0
    seed: int = 1
    policy: str = "ours"
    synthetic_if_absent: bool = False
    places: Places = Places()
    devices: Devices = Devices()
    arrivals: Arrivals = Arrivals(per_second=1.0)
    churn: Churn = Churn()
    cut: Cut = Cut()

    @property
    def seconds(self) -> float:
        """How long requests arrive, in seconds."""
        return self.hours * 3600.0


def packaged() -> list[str]:
    """The names of the scenarios that come with the package."""
    folder = resources.files("starai.simulation") / "scenarios"
    found = (one.name for one in folder.iterdir())
    return sorted(name.removesuffix(".toml") for name in found if name.endswith(".toml"))


def read_scenario(name: str, overrides: Mapping[str, Any] | None = None) -> Scenario:
    """A packaged scenario by its name, or one's own by its path; ``overrides`` are top fields.

    Raises:
        ConfigurationRefused: there is none of that name, or it does not read.
    """
    try:
        raw = tomllib.loads(_text(name))
        raw.update({key: value for key, value in (overrides or {}).items() if value is not None})
        scenario = msgspec.convert(raw, Scenario)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ConfigurationRefused(f"the scenario {name!r} does not read: {error}") from error
    if not scenario.arrivals.per_second and not scenario.arrivals.load:
        raise ConfigurationRefused("a scenario needs arrivals.per_second or arrivals.load")
    return scenario


def _text(name: str) -> str:
    if name in packaged():
        return (resources.files("starai.simulation") / "scenarios" / f"{name}.toml").read_text()
    try:
        return Path(name).read_text("utf-8")
    except OSError as error:
        names = ", ".join(packaged())
        raise ConfigurationRefused(
            f"there is no scenario {name!r}: it is one of {names}, or the path of a file"
        ) from error
