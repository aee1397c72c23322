"""`starai keys` and `starai tokens`: who may ask, and who may serve."""

from __future__ import annotations

from typing import Any

import anyio
import click

from starai.cli.options import AT_LEAST_ONE, NOT_NEGATIVE, home_option, json_option
from starai.cli.tables import clock_time, show_json, show_table
from starai.local.asking import Operator, operator
from starai.local.home import Home
from starai.protocol.subjects import Role

HOURS = click.FloatRange(0, 24 * 30, min_open=True)


@click.group()
def keys() -> None:
    """API keys: who may use the gateway."""


@keys.command("create")
@home_option
@click.argument("name")
@click.option("--requests-per-minute", type=NOT_NEGATIVE, default=0, help="Limit; 0: none.")
@click.option("--tokens-per-minute", type=NOT_NEGATIVE, default=0, help="Limit; 0: none.")
def create_key(home: Home, name: str, requests_per_minute: int, tokens_per_minute: int) -> None:
    """Make an API key for NAME and print it: only its hash is kept, so note it down now."""

    async def create() -> str:
        async with operator(home) as asked:
            return await asked.create_key(name, requests_per_minute, tokens_per_minute)

    click.echo(anyio.run(create))


@keys.command("list")
@home_option
@json_option
def list_keys(home: Home, as_json: bool) -> None:
    """All API keys, without the keys themselves."""
    report = _ask(home, "keys")
    if as_json:
        show_json(report)
        return
    rows = [
        (
            key["key_id"],
            key["name"],
            key["customer"],
            key["requests_per_minute"] or "-",
            key["tokens_per_minute"] or "-",
            "revoked" if key["revoked_ms"] is not None else "good",
        )
        for key in report["keys"]
    ]
    columns = ("id", "name", "customer", "requests/min", "tokens/min", "state")
    show_table("API keys", columns, rows, "No keys. `starai keys create NAME` makes one.")


@keys.command("revoke")
@home_option
@click.argument("key_id")
def revoke_key(home: Home, key_id: str) -> None:
    """Make the key with KEY_ID (see `starai keys list`) useless at once."""
    _ask(home, "revoke_key", key_id=key_id)
    click.echo(f"{key_id} opens nothing any more.")


@click.group()
def tokens() -> None:
    """Join tokens: who may serve."""


@tokens.command("create")
@home_option
@click.option(
    "--role",
    type=click.Choice([Role.NODE.value, Role.DISTRIBUTOR.value, Role.GATEWAY.value]),
    default=Role.NODE.value,
    show_default=True,
    help="What the newcomer will be.",
)
@click.option(
    "--uses", type=AT_LEAST_ONE, default=1, show_default=True, help="How many newcomers it lets in."
)
@click.option(
    "--hours", type=HOURS, default=24.0, show_default=True, help="How long it is good for."
)
@click.option("--label", default="", help="A note for the list of tokens.")
def create_token(home: Home, role: str, uses: int, hours: float, label: str) -> None:
    """Make a token and print it. Pass it on like a password.

    The newcomer runs: starai node start --token TOKEN --model MODEL
    """

    async def create() -> str:
        async with operator(home) as asked:
            return await asked.create_token(Role(role), uses, int(hours * 3_600_000), label)

    click.echo(anyio.run(create))


@tokens.command("list")
@home_option
@json_option
def list_tokens(home: Home, as_json: bool) -> None:
    """All join tokens, without their secrets."""
    report = _ask(home, "tokens")
    if as_json:
        show_json(report)
        return
    rows = [
        (
            token["token_id"],
            token["role"],
            token["label"] or "-",
            f"{token['used']}/{token['uses']}",
            clock_time(token["expires_ms"]),
        )
        for token in report["tokens"]
    ]
    columns = ("id", "role", "label", "used", "expires")
    show_table("Join tokens", columns, rows, "No tokens. `starai tokens create` makes one.")


@tokens.command("revoke")
@home_option
@click.argument("token_id")
def revoke_token(home: Home, token_id: str) -> None:
    """End the token with TOKEN_ID; whoever came in with it stays (see `starai node revoke`)."""
    _ask(home, "revoke_token", token_id=token_id)
    click.echo(f"{token_id} lets nobody in any more.")


def _ask(home: Home, what: str, **arguments: object) -> Any:
    async def ask() -> Any:
        async with operator(home) as asked:
            return await _answer(asked)

    async def _answer(asked: Operator) -> Any:
        return await asked.ask(what, **arguments)

    return anyio.run(ask)
