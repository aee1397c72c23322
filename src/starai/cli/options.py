"""Options that several commands share, read once: the home folder and the output's form."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from starai.core.errors import ConfigurationRefused
from starai.local.home import Home
from starai.node.yielding import Limits
from starai.node.yielding.hours import Hours

F = TypeVar("F", bound=Callable[..., Any])

_UNITS: Final = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}

#: Where a machine keeps its part of a network, unless --home or STARAI_HOME says otherwise.
DEFAULT_HOME = Path("~/.starai")

PORT = click.IntRange(1, 65535)
_SPANS_MS: Final = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
AT_LEAST_ONE = click.IntRange(min=1)
NOT_NEGATIVE = click.IntRange(min=0)


def home_option(command: F) -> F:
    """``--home``: the command gets a `Home`."""
    return click.option(
        "--home",
        envvar="STARAI_HOME",
        default=str(DEFAULT_HOME),
        show_default=True,
        show_envvar=True,
        metavar="FOLDER",
        callback=lambda _ctx, _param, value: Home(Path(value).expanduser().absolute()),
        help="Where keys, books and logs of the network are kept.",
    )(command)


def json_option(command: F) -> F:
    """``--json``: machine-readable output."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")(
        command
    )


class Duration(click.ParamType[int]):
    """A span of time: ``90s``, ``30m``, ``1h`` or ``7d``; the command gets milliseconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The span in milliseconds."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?)([smhd])", str(value).strip())
        if match is None or not float(match[1]):
            self.fail(f"{value!r} is no span of time: write it like 30m, 1h or 7d", param, ctx)
        return int(float(match[1]) * _SPANS_MS[match[2]])


class Dollars(click.ParamType[int]):
    """An amount like ``12.50``; the command gets nano-USD (1e-9)."""

    name = "dollars"
    #: Decimals that are kept: those of a nano-USD, less where the amount is for many.
    decimals = 9

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The amount in nano-USD."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"\$?(\d{1,9})(?:\.(\d+))?", str(value).strip())
        rest = (match[2] or "").rstrip("0") if match else ""
        if match is None or len(rest) > self.decimals:
            self.fail(f"{value!r} is no amount in USD: write it like 12.50", param, ctx)
        return int(match[1] + rest.ljust(self.decimals, "0"))


class DollarsPerMillion(Dollars):
    """A price of a million tokens; the command gets nano-USD for one: $0.10 is 100."""

    name = "dollars per million"
    decimals = 3


class PriceOption(click.ParamType[tuple[str, int, int]]):
    """``MODEL=IN/OUT`` in USD for a million tokens; the command gets nano-USD for one."""

    name = "price"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int, int]:
        """The model, and the prices of a token in and out."""
        if isinstance(value, tuple):
            return value
        model, _, prices = str(value).rpartition("=")
        per_input, slash, per_output = prices.partition("/")
        if not model or not slash:
            self.fail(f"{value!r} is no price: write it like '*=0.10/0.40'", param, ctx)
        dollars = DollarsPerMillion()
        return (
            model,
            dollars.convert(per_input, param, ctx),
            dollars.convert(per_output, param, ctx),
        )


engine_option = click.option(
    "--engine",
    multiple=True,
    metavar="NAME=VALUE",
    help="An option of the engine, again for each: bits=8, kv_gib=2, swap=disk, attention=auto. "
    "docs/howto/engine.md lists them.",
)

engine_url_option = click.option(
    "--engine-url",
    default="",
    metavar="URL",
    help="Serve the model by a server that runs here already: vLLM, SGLang, llama.cpp, Ollama, "
    "LM Studio, OpenVINO or another with OpenAI's API. Its key, if any, is read from "
    "STARAI_ENGINE_KEY.",
)


class Bytes(click.ParamType[int]):
    """A size: ``6GiB``, ``6G``, ``512MiB`` or a number of bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The size in bytes."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", str(value), re.IGNORECASE)
        if match is None:
            self.fail(f"{value!r} is no size: write it like 6GiB", param, ctx)
        return int(float(match[1]) * (1 << _UNITS[match[2].upper()]))


_LIMITS: Final = (
    click.option(
        "--polite/--no-polite",
        envvar="STARAI_POLITE",
        default=True,
        show_default=True,
        help="Give way within a second to your own programs, battery, heat and full-screen games.",
    ),
    click.option("--max-memory", type=Bytes(), default=0, help="Memory it may use, like 6GiB."),
    click.option("--max-cores", type=NOT_NEGATIVE, default=0, help="Cores it may run on."),
    click.option("--max-gpu-memory", type=Bytes(), default=0, help="GPU memory, like 10GiB."),
    click.option("--max-power", default=0.0, help="Watts that the GPUs may draw."),
    click.option(
        "--hours", default="", help="When it may work, like 22:00-07:00; always if empty."
    ),
    click.option("--on-battery", is_flag=True, help="Work on the battery, too."),
)


def yielding_options(command: F) -> F:
    """What a device's owner allows: the command gets ``limits``, a `Limits`."""

    @wraps(command)
    def with_limits(*args: Any, **given: Any) -> Any:
        hours = given.pop("hours")
        try:
            spans = Hours.parse(hours) if hours else None
        except ConfigurationRefused as error:
            raise click.BadParameter(error.message, param_hint="--hours") from error
        limits = Limits(
            polite=given.pop("polite"),
            max_memory_bytes=given.pop("max_memory"),
            max_cores=given.pop("max_cores"),
            max_gpu_bytes=given.pop("max_gpu_memory"),
            max_power_w=given.pop("max_power"),
            hours=spans,
            on_battery=given.pop("on_battery"),
        )
        return command(*args, limits=limits, **given)

    decorated: Any = with_limits
    for option in reversed(_LIMITS):
        decorated = option(decorated)
    return decorated  # type: ignore[no-any-return]
