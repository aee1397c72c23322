"""`starai node`: a supplier's commands."""

from __future__ import annotations

from typing import Any

import anyio
import click

from starai.cli.fit import fit, profile
from starai.cli.options import AT_LEAST_ONE, NOT_NEGATIVE, engine_option, home_option
from starai.cli.serve import run_service
from starai.local import services
from starai.local.asking import give_order, revoke_party
from starai.local.home import Home
from starai.local.supplying import join_and_serve


@click.group()
def node() -> None:
    """Serve models with this device, and stop serving."""


@node.command()
@home_option
@click.option("--name", default="node", show_default=True, help="The node's name in this home.")
@click.option(
    "--token",
    envvar="STARAI_TOKEN",
    default="",
    help="A one-time token: `starai tokens create` makes one.",
)
@click.option("--model", default="embedded", show_default=True, help="Which model to serve.")
@click.option(
    "--slots", type=AT_LEAST_ONE, default=8, show_default=True, help="Answers to generate at once."
)
@click.option(
    "--threads",
    type=NOT_NEGATIVE,
    default=0,
    show_default=True,
    help="CPU threads; 0: decide by itself.",
)
@click.option("--label", default="", help="What people see beside the node's key.")
@engine_option
@click.option("--step-delay-ms", default=0.0, hidden=True, help="Slows the mock model down.")
def start(home: Home, *, name: str, token: str, **given: Any) -> None:
    """Join a network (the first time with --token) and serve a model until stopped."""
    options = services.NodeOptions(**given)
    run_service(lambda: join_and_serve(home, name, token, options))


@node.command()
@home_option
@click.argument("name", default="node")
def drain(home: Home, name: str) -> None:
    """Take no new tasks; those that run are finished. NAME is a node of this home, or its key."""
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


node.add_command(fit)
node.add_command(profile)
