"""`starai customers`, `starai prices` and `starai balance`: who pays, and how much."""

from __future__ import annotations

from typing import Any

import anyio
import click

from starai.cli.options import Dollars, DollarsPerMillion, Duration, home_option, json_option
from starai.cli.tables import date_time, show_json, show_table
from starai.ledger.accounts import usd
from starai.ledger.prices import BPS
from starai.local.asking import operator
from starai.local.home import Home
from starai.registry.money.prices import NODE_SHARE_BPS

_MILLION = 1_000_000


def _ask(home: Home, what: str, **arguments: object) -> Any:
    async def ask() -> Any:
        async with operator(home) as asked:
            return await asked.ask(what, **arguments)

    return anyio.run(ask)


def money(nano_usd: object) -> str:
    """An amount of a report (a string of nano-USD) as people read it."""
    return usd(int(str(nano_usd)))


@click.group()
def customers() -> None:
    """Who pays: customers, what they paid in, and what was lent to them.

    \b
    starai customers create acme                    a customer with nothing yet
    starai customers deposit acme 50                50 USD were paid in
    starai keys create "acme app" --customer acme   a key that draws on it
    starai balance acme                             what is left

    As long as no price is set (`starai prices set`), nothing costs anything.
    """  # noqa: D301 - click wants a real backspace


@customers.command("create")
@home_option
@json_option
@click.option(
    "--address",
    metavar="0x…",
    help="What this address deposits at the vault becomes the customer's balance. It cannot be"
    " changed, nor added later, so check every digit.",
)
@click.argument("name")
def create_customer(home: Home, as_json: bool, address: str | None, name: str) -> None:
    """Note a customer called NAME; its number is printed.

    A customer with an --address should pay at the vault only: all that it ever spends counts
    against what it deposited there, also if it was paid in otherwise.
    """
    report = _ask(home, "create_customer", name=name, address=address)
    if as_json:
        show_json(report)
        return
    how = f"a deposit at the vault from {address}" if address else ""
    how = how or f"starai customers deposit {name!r} AMOUNT"
    click.echo(f"{name} is customer {report['customer']}. Next: {how}")


@customers.command("list")
@home_option
@json_option
def list_customers(home: Home, as_json: bool) -> None:
    """All customers, with what each may spend, has set aside, and has spent."""
    _show_balances(home, None, as_json)


@customers.command()
@home_option
@json_option
@click.argument("customer")
@click.argument("amount", type=Dollars())
@click.option("--note", default="", help="Where this can be looked up: an invoice, a transfer.")
def deposit(home: Home, as_json: bool, customer: str, amount: int, note: str) -> None:
    """Note that CUSTOMER (name or number) paid in AMOUNT in USD; requests go on at once."""

    async def pay_in() -> Any:
        async with operator(home) as asked:
            return await asked.deposit(customer, amount, note)

    balance = anyio.run(pay_in)
    if as_json:
        show_json(balance)
        return
    click.echo(f"{balance['name']} now has {money(balance['available_nano_usd'])} to spend.")


@customers.command()
@home_option
@json_option
@click.argument("customer")
@click.argument("amount", type=Dollars())
def credit(home: Home, as_json: bool, customer: str, amount: int) -> None:
    """Lend CUSTOMER up to AMOUNT in USD; 0 takes the line back, as far as it is not used."""
    balance = _ask(home, "set_credit", customer=customer, amount_nano_usd=amount)
    if as_json:
        show_json(balance)
        return
    click.echo(
        f"{balance['name']} may use {money(balance['credit_nano_usd'])} on credit, and uses "
        f"{money(balance['credit_used_nano_usd'])} of it now."
    )


@click.command()
@home_option
@json_option
@click.argument("customer", required=False)
def balance(home: Home, as_json: bool, customer: str | None) -> None:
    """What customers have: AVAILABLE to spend, HELD for requests in progress, SPENT so far.

    Held money was set aside by a gateway, so that requests need not wait for the books; what they
    do not use is available again within minutes. CUSTOMER is a name or a number; all without one.
    """
    _show_balances(home, customer, as_json)


def _show_balances(home: Home, customer: str | None, as_json: bool) -> None:
    arguments = {} if customer is None else {"customer": customer}
    report = _ask(home, "balances", **arguments)
    if as_json:
        show_json(report)
        return
    rows = [
        (
            one["customer"],
            one["name"],
            money(one["available_nano_usd"]),
            money(one["held_nano_usd"]),
            money(one["spent_nano_usd"]),
            money(one["credit_nano_usd"]) if one["credit_nano_usd"] != "0" else "-",
            one["keys"],
        )
        for one in report["customers"]
    ]
    columns = ("customer", "name", "available", "held", "spent", "credit", "keys")
    empty = "No customers yet. `starai customers create NAME` makes one."
    show_table("Balances", columns, rows, empty)


@click.group()
def prices() -> None:
    """What a million tokens cost, in USD; without any price the network is free."""


@prices.command("set")
@home_option
@json_option
@click.argument("model")
@click.argument("input_price", metavar="INPUT", type=DollarsPerMillion())
@click.argument("output_price", metavar="OUTPUT", type=DollarsPerMillion())
@click.option(
    "--node-share",
    type=click.FloatRange(0, 100),
    default=NODE_SHARE_BPS * 100 / BPS,
    show_default=True,
    help="What the node gets of it, in percent; the rest is your fee.",
)
@click.option(
    "--after",
    "after_ms",
    type=Duration(),
    default=0,
    metavar="TIME",
    help="Let it hold only after this time: 30m, 1h, 7d; now if left out.",
)
def set_price(
    home: Home,
    as_json: bool,
    *,
    model: str,
    input_price: int,
    output_price: int,
    node_share: float,
    after_ms: int,
) -> None:
    """Let a million tokens of MODEL cost INPUT and OUTPUT in USD from now on.

    MODEL is a name as `GET /v1/models` lists it, or '*' for every model without a price of its
    own. Gateways hear of it at once; requests in progress are charged by the price they began with.

    \b
    starai prices set '*' 0.10 0.40          every model
    starai prices set ORG/NAME 0.02 0.08     this one, whatever '*' says
    starai prices set '*' 0 0                free again
    """  # noqa: D301 - click wants a real backspace
    arguments: dict[str, object] = {
        "model": model,
        "input_nano_usd": input_price,
        "output_nano_usd": output_price,
        "node_share_bps": round(node_share * BPS / 100),
    }
    if after_ms:
        arguments["valid_from_ms"] = _ask(home, "prices")["now_ms"] + after_ms
    price = _ask(home, "add_price", **arguments)
    if as_json:
        show_json(price)
        return
    click.echo(
        f"Price {price['price_id']}: a million tokens of {model} cost "
        f"{usd(input_price * _MILLION)} in and {usd(output_price * _MILLION)} out, "
        f"from {date_time(price['valid_from_ms'])} on. Keys pay from their customers' balances: "
        "`starai balance` shows them."
    )


@prices.command("list")
@home_option
@json_option
def list_prices(home: Home, as_json: bool) -> None:
    """All prices there ever were, newest first: records name the one they were charged by."""
    report = _ask(home, "prices")
    if as_json:
        show_json(report)
        return
    rows = [
        (
            one["price_id"],
            one["model"],
            usd(one["input_nano_usd"] * _MILLION),
            usd(one["output_nano_usd"] * _MILLION),
            f"{one['node_share_bps'] / 100:g} %",
            date_time(one["valid_from_ms"]),
        )
        for one in report["prices"]
    ]
    columns = ("price", "model", "1M tokens in", "out", "node's share", "from")
    empty = "No prices: the network is free. `starai prices set MODEL INPUT OUTPUT` sets one."
    show_table("Prices", columns, rows, empty)
