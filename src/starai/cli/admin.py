"""`starai keys` and `starai tokens`: who may ask, and who may serve."""

from __future__ import annotations

from typing import Any

import anyio
import click

from starai.cli.options import (
    AT_LEAST_ONE,
    NOT_NEGATIVE,
    Dollars,
    Duration,
    home_option,
    json_option,
)
from starai.cli.tables import date_time, show_json, show_table
from starai.core.clock import SystemClock
from starai.ledger.accounts import usd
from starai.local.asking import Operator, operator
from starai.local.home import Home
from starai.protocol.subjects import Role


@click.group()
def keys() -> None:
    """API keys: who may use the gateway."""


@keys.command("create")
@home_option
@click.argument("name")
@click.option("--requests-per-minute", type=NOT_NEGATIVE, default=0, help="Limit; 0: none.")
@click.option("--tokens-per-minute", type=NOT_NEGATIVE, default=0, help="Limit; 0: none.")
@click.option(
    "--customer",
    default=None,
    help="Who pays, by name or number; a customer of its own if left out.",
)
@click.option(
    "--budget", type=Dollars(), default=None, help="What it may spend in its life, in USD."
)
def create_key(
    home: Home,
    *,
    name: str,
    requests_per_minute: int,
    tokens_per_minute: int,
    customer: str | None,
    budget: int | None,
) -> None:
    """Make an API key for NAME and print it: only its hash is kept, so note it down now."""

    async def create() -> str:
        async with operator(home) as asked:
            return await asked.create_key(
                *(name, requests_per_minute, tokens_per_minute),
                customer=customer,
                budget_nano_usd=budget,
            )

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
            key["owner"] if key["owner"] is not None else "-",
            key["requests_per_minute"] or "-",
            key["tokens_per_minute"] or "-",
            usd(int(key["spent_nano_usd"])),
            usd(int(key["budget_nano_usd"])) if key["budget_nano_usd"] is not None else "-",
            "revoked" if key["revoked_ms"] is not None else "good",
        )
        for key in report["keys"]
    ]
    columns = ("id", "name", "customer", "requests/min", "tokens/min", "spent", "budget", "state")
    show_table("API keys", columns, rows, "No keys. `starai keys create NAME` makes one.")


@keys.command("budget")
@home_option
@click.argument("key_id")
@click.argument("amount")
def set_budget(home: Home, key_id: str, amount: str) -> None:
    """Let the key with KEY_ID spend AMOUNT in USD in its life, or without a limit: none."""
    nano = None if amount == "none" else Dollars().convert(amount, None, None)
    _ask(home, "set_budget", key_id=key_id, amount_nano_usd=nano)
    limit = "as much as its customer has" if nano is None else usd(nano)
    click.echo(f"{key_id} may spend {limit} in all.")


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
    "--for",
    "lifetime_ms",
    type=Duration(),
    default="1d",
    show_default=True,
    metavar="TIME",
    help="How long it is good for: 30m, 1h, 7d; at most 30d.",
)
@click.option("--label", default="", help="A note for the list of tokens.")
def create_token(home: Home, role: str, uses: int, lifetime_ms: int, label: str) -> None:
    """Make a token and print it. Pass it on like a password.

    The newcomer runs: starai join TOKEN
    """

    async def create() -> str:
        async with operator(home) as asked:
            return await asked.create_token(Role(role), uses, lifetime_ms, label)

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
            date_time(token["expires_ms"]),
            _token_state(token, SystemClock().now_ms()),
        )
        for token in report["tokens"]
    ]
    columns = ("id", "role", "label", "used", "expires", "state")
    show_table("Join tokens", columns, rows, "No tokens. `starai tokens create` makes one.")


def _token_state(token: dict[str, Any], now_ms: int) -> str:
    if now_ms >= token["expires_ms"]:
        return "over"
    return "used up" if token["used"] >= token["uses"] else "good"


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
