"""What a node of this machine serves, as its owner says it, and the engine that follows from it.

Knows neither network nor processes: it is what a device reads first, so that its engine can start.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from starai.core.errors import ConfigurationRefused
from starai.engines.base import EngineSpec
from starai.models.catalog import MOCK_NAME, open_model
from starai.node.yielding.base import UNLIMITED, Limits


@dataclass(frozen=True)
class NodeOptions:
    """What a node serves. ``threads`` 0: as many as the engine likes.

    ``engine`` has the engine's own options, each as ``name=value``; ``engine_url`` a server that
    runs the model already. ``limits`` is what the device's owner allows, ``region`` what he says of
    where it is.
    """

    model: str
    slots: int = 8
    threads: int = 0
    label: str = ""
    step_delay_ms: float = 0.0
    engine: tuple[str, ...] = ()
    engine_url: str = ""
    limits: Limits = UNLIMITED
    region: str = ""


def engine_spec(models: Path, options: NodeOptions) -> EngineSpec:
    """Which engine serves a model: the native one, a server's, or the mock for tests.

    Raises:
        ConfigurationRefused: the native engine is not installed.
        ModelNotFound, ModelFileRefused: the model cannot be served.
    """
    manifest = open_model(options.model, models)
    extra = _engine_options(options.engine)
    kind = MOCK_NAME if manifest.kind == MOCK_NAME else "text"
    if options.engine_url:
        kind, extra = "external", {"url": options.engine_url, **extra}
    if manifest.kind == "served" and kind != "external":
        raise ConfigurationRefused(
            f"{manifest.name} has no weights here: say by --engine-url which server has them"
        )
    if kind == "text" and importlib.util.find_spec("torch") is None:
        raise ConfigurationRefused(
            'the native engine is not installed here: pip install "starai[engine]"'
        )
    if kind == MOCK_NAME:
        extra["step_delay_ms"] = options.step_delay_ms
    return EngineSpec(
        kind=kind,
        model=options.model,
        store=str(models),
        slots=options.slots,
        threads=_threads(options),
        options=extra,
    )


def _threads(options: NodeOptions) -> int:
    cores = options.limits.max_cores
    return min(options.threads or cores, cores) if cores else options.threads


def _engine_options(given: tuple[str, ...]) -> dict[str, float | str]:
    """``name=value`` as the engine takes them: numbers as numbers."""
    options: dict[str, float | str] = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not equals or not name:
            raise ConfigurationRefused(f"{one!r} is no engine option: write NAME=VALUE, as bits=8")
        try:
            options[name] = float(value)
        except ValueError:
            options[name] = value
    return options
