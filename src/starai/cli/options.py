"""Options that several commands share, read once: the home folder and the output's form."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from starai.local.home import Home

F = TypeVar("F", bound=Callable[..., Any])

#: Where a machine keeps its part of a network, unless --home or STARAI_HOME says otherwise.
DEFAULT_HOME = Path("~/.starai")

PORT = click.IntRange(1, 65535)
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


engine_option = click.option(
    "--engine",
    multiple=True,
    metavar="NAME=VALUE",
    help="An option of the engine, again for each: bits=8, kv_gib=2, swap=disk, attention=auto. "
    "docs/howto/engine.md lists them.",
)
