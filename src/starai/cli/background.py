"""`starai node install-service`: a node that starts with the device, and its way out again."""

from __future__ import annotations

import re
import sys

import click

from starai.cli.options import home_option
from starai.core.clock import SystemClock
from starai.core.errors import ConfigurationRefused
from starai.local.admission import is_admitted
from starai.local.home import Home
from starai.local.units import KINDS, Unit, install, kind_here, uninstall

_FOR_OPTION = click.option(
    "--for-system",
    "kind",
    type=click.Choice(sorted(KINDS)),
    default=kind_here,
    show_default="this system's",
    help="Whose service: Linux' systemd, macOS' launchd, Windows' schtasks.",
)
_NAME_OPTION = click.option(
    "--name", default="node", show_default=True, help="The node's name in this home."
)


@click.command("install-service", context_settings={"ignore_unknown_options": True})
@home_option
@_NAME_OPTION
@_FOR_OPTION
@click.option("--print", "only_print", is_flag=True, help="Show the file; install nothing.")
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="[OPTIONS OF NODE START]...")
def install_service(
    home: Home, name: str, kind: str, only_print: bool, options: tuple[str, ...]
) -> None:
    """Start the node with this device from now on, without root; join first.

    Everything that `starai node start` takes can follow, for example --model ORG/NAME.
    """
    unit = _unit(home, name, options)
    if only_print:
        click.echo(KINDS[kind].render(unit), nl=False)
        return
    if not is_admitted(home, name, SystemClock()):
        raise ConfigurationRefused(f"{name} is in no network yet: run `starai join TOKEN` first")
    path = install(KINDS[kind], unit)
    click.echo(f"Installed and started: {path}\n{KINDS[kind].hint(unit)}")


@click.command("uninstall-service")
@home_option
@_NAME_OPTION
@_FOR_OPTION
def uninstall_service(home: Home, name: str, kind: str) -> None:
    """Stop the node that `starai node install-service` started, and do not start it again."""
    path = uninstall(KINDS[kind], _unit(home, name, ()))
    click.echo(f"Stopped and removed: {path}")


def _unit(home: Home, name: str, options: tuple[str, ...]) -> Unit:
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
        raise ConfigurationRefused(f"{name!r} cannot be a service's name: use letters and digits")
    if any(option.startswith("--token") for option in options):
        raise ConfigurationRefused("a token must not be in a service's file: join first, without")
    words = ("node", "start", "--home", str(home.path), "--name", name, *options)
    return Unit(name, (sys.executable, "-m", "starai.cli", *words), home.path / f"logs/{name}.log")
