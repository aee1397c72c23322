"""`starai ledger`: what both sides confirmed, and the proofs that it stays as it is."""

from __future__ import annotations

from typing import Any

import anyio
import click

from starai.cli.options import AT_LEAST_ONE, home_option, json_option
from starai.cli.tables import clock_time, short, show_json, show_table
from starai.local.asking import operator
from starai.local.home import Home


async def _ask(home: Home, what: str, arguments: dict[str, object]) -> Any:
    async with operator(home) as asked:
        return await asked.ask(what, **arguments)


@click.group()
def ledger() -> None:
    """The books: what nodes and distributors have both confirmed."""


@ledger.command()
@home_option
@json_option
@click.option(
    "--limit",
    type=AT_LEAST_ONE,
    default=10,
    show_default=True,
    help="How many blocks, newest first.",
)
def show(home: Home, as_json: bool, limit: int) -> None:
    """Blocks of records with what both sides agree on, the totals, and each node's part."""
    arguments: dict[str, object] = {"limit": limit}
    report = anyio.run(_ask, home, "ledger", arguments)
    if as_json:
        show_json(report)
        return
    sums = ("records", "matched", "waiting", "conflicting", "in_tokens", "out_tokens")
    blocks = [
        (block["block"], clock_time(block["from_ms"]), *(block[name] for name in sums))
        for block in report["blocks"]
    ]
    empty = 'Nothing on record yet. Try: starai chat "Hello"'
    names = tuple(name.replace("_", " ") for name in sums)
    show_table(f"Blocks of network {report['network']}", ("block", "from", *names), blocks, empty)
    if blocks:
        parts = [(short(node["node"]), *(node[name] for name in sums)) for node in report["nodes"]]
        total = ("all", *(report["totals"][name] for name in sums))
        show_table("Nodes' part", ("node", *names), [*parts, total], empty)


@ledger.command()
@home_option
@json_option
def check(home: Home, as_json: bool) -> None:
    """Recompute every leaf, root, signature and match in the registry's database."""
    report = anyio.run(_ask, home, "check", {})
    if as_json:
        show_json(report)
        return
    for name, value in report.items():
        click.echo(f"{name}: {value}")
