"""`starai serve`: one service in this process, as `starai up` starts them. For operators."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from starai.cli.options import PORT, home_option
from starai.cli.running import run_service
from starai.core.clock import SystemClock
from starai.core.randomness import SystemRandomness
from starai.local import services
from starai.local.admission import is_admitted
from starai.local.home import Home
from starai.local.joining import join
from starai.protocol.subjects import Role
from starai.protocol.tickets import JoinTicket

F = TypeVar("F", bound=Callable[..., Any])

#: A file of a certificate or of its key.
PEM = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.group()
def serve() -> None:
    """Run one service of the network in this process (`starai up` runs them all)."""


@serve.command()
@home_option
@click.option(
    "--store",
    envvar="STARAI_REGISTRY_STORE",
    show_envvar=True,
    default="",
    metavar="URL",
    help="Keep the books in PostgreSQL (postgresql://...), not in the home folder.",
)
@click.option(
    "--vault",
    envvar="STARAI_VAULT",
    show_envvar=True,
    default="",
    metavar="CHAIN_ID:0xADDRESS",
    help="The contract that pays out what closed days say (see starai settle).",
)
def registry(home: Home, store: str, vault: str) -> None:
    """Run the registry: it admits parties, keeps API keys, and keeps and closes the books."""
    run_service(lambda: services.serve_registry(home, store, vault))


def token_option(role: Role) -> Callable[[F], F]:
    """``--token``: how one more of a role comes in."""
    return click.option(
        "--token",
        envvar="STARAI_TOKEN",
        default="",
        help=f"For one more: `starai tokens create --role {role.value}` makes it.",
    )


async def _come_in(home: Home, name: str, token: str) -> None:
    """Become a party of the network, the first time."""
    clock = SystemClock()
    if token and not is_admitted(home, name, clock):
        await join(home, name, JoinTicket.parse(token), name, clock, SystemRandomness())


@serve.command()
@home_option
@click.option("--name", default=services.DISTRIBUTOR, show_default=True, help="Its name here.")
@token_option(Role.DISTRIBUTOR)
def distributor(home: Home, name: str, token: str) -> None:
    """Run a distributor: it carries each task to a node, and on to another if one fails."""

    async def join_and_serve() -> None:
        await _come_in(home, name, token)
        await services.serve_distributor(home, name)

    run_service(join_and_serve)


@serve.command()
@home_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=PORT, default=8000, show_default=True, help="Port to listen on.")
@click.option("--cors-origin", multiple=True, default=("*",), help="Origins that browsers may use.")
@click.option("--name", default=services.GATEWAY, show_default=True, help="Its name here.")
@click.option("--tls-cert", type=PEM, help="Speak TLS with the certificate (and chain) in FILE.")
@click.option("--tls-key", type=PEM, help="FILE with the certificate's key, if it is apart.")
@click.option("--model", multiple=True, help="A model to offer, if not those of `starai up`.")
@token_option(Role.GATEWAY)
def gateway(
    *,
    home: Home,
    cors_origin: tuple[str, ...],
    name: str,
    tls_cert: Path | None,
    tls_key: Path | None,
    model: tuple[str, ...],
    token: str,
    **listen: Any,
) -> None:
    """Run a gateway: OpenAI's API over HTTP, or HTTPS with --tls-cert."""
    if tls_key is not None and tls_cert is None:
        raise click.UsageError("--tls-key needs --tls-cert beside it.")

    async def serve_it() -> None:
        await _come_in(home, name, token)
        await services.serve_gateway(
            home,
            cors_origins=cors_origin,
            name=name,
            models=model,
            tls_cert=tls_cert,
            tls_key=tls_key,
            **listen,
        )

    run_service(serve_it)
