"""`starai node`: a supplier's commands."""

from __future__ import annotations

from typing import Any

import anyio
import click

from starai.cli.background import install_service, uninstall_service
from starai.cli.earnings import payout
from starai.cli.fit import fit, profile, try_model
from starai.cli.join import supplier_options
from starai.cli.options import home_option
from starai.cli.running import run_service
from starai.cli.standing import appeal, leave, reset, why
from starai.local.asking import give_order, revoke_party
from starai.local.home import Home
from starai.local.nodes import NodeOptions
from starai.local.supplying import join_and_serve


@click.group()
def node() -> None:
    """Serve models with this device, and stop serving."""


@node.command()
@home_option
@click.option(
    "--token",
    envvar="STARAI_TOKEN",
    default="",
    help="A one-time token: `starai tokens create` makes one.",
)
@supplier_options
def start(home: Home, *, name: str, token: str, **given: Any) -> None:
    """Join a network (the first time with --token) and serve a model until stopped."""
    options = NodeOptions(**given)
    run_service(lambda: join_and_serve(home, name, token, options))


@node.command()
@home_option
@click.argument("name", default="node")
def drain(home: Home, name: str) -> None:
    """Take no new tasks; those that run go on elsewhere, or to their end.

    NAME is a node of this home, or its key.
    """
    anyio.run(give_order, home, name, "drain")
    click.echo(f"{name} takes no new tasks. `starai node resume {name}` takes it back.")


@node.command()
@home_option
@click.argument("name", default="node")
def resume(home: Home, name: str) -> None:
    """Take tasks again after a drain."""
    anyio.run(give_order, home, name, "resume")
    click.echo(f"{name} takes tasks again.")


@node.command()
@home_option
@click.argument("name")
def revoke(home: Home, name: str) -> None:
    """Put a node out at once and for good. NAME is a node of this home, or its key."""
    anyio.run(revoke_party, home, name)
    click.echo(f"{name} is out of the network, and no token brings its key back.")


for _command in (
    *(fit, profile, try_model, why, appeal, reset, leave, payout),
    *(install_service, uninstall_service),
):
    node.add_command(_command)
