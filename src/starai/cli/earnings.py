"""`starai earnings` and `starai node payout`: a supplier's money."""

from __future__ import annotations

from typing import Any

import anyio
import click

from starai.cli.customers import money
from starai.cli.options import home_option, json_option
from starai.cli.tables import date_time, short, show_json, show_table
from starai.local.earning import ask_earnings, bind_payout
from starai.local.home import Home
from starai.protocol.payouts import parse_address


@click.command()
@home_option
@json_option
@click.argument("node", required=False)
@click.option("--why", "task_id", default=None, metavar="TASK", help="Where one task's money is.")
def earnings(home: Home, as_json: bool, node: str | None, task_id: str | None) -> None:
    """What nodes earned: PENDING, PAYABLE and PAID, and when it moves on.

    Pending money can still be contested; it becomes payable when that time is over, and is paid
    when it was claimed on the chain. NODE is a node of this home, or its key; the operator sees
    all without one, a supplier its own. `starai tasks` lists TASKs.
    """
    report = anyio.run(ask_earnings, home, node, task_id)
    if as_json:
        show_json(report)
    elif task_id is not None:
        _show_task(report)
    else:
        _show_nodes(report)


def _show_nodes(report: dict[str, Any]) -> None:
    rows = [
        (
            short(one["node"]),
            money(one["pending_nano_usd"]),
            _next(one),
            money(one["payable_nano_usd"]),
            money(one["paid_nano_usd"]),
            _open(one),
            _address(one["payout_address"]),
        )
        for one in report["nodes"]
    ]
    columns = ("node", "pending", "moves on", "payable", "paid", "not agreed yet", "paid to")
    empty = "Nobody has earned anything yet. Without a price (`starai prices set`) nothing is owed."
    show_table("Earnings", columns, rows, empty)
    if any(one["payout_address"] is None for one in report["nodes"]):
        click.echo("Nothing expires. `starai node payout ADDRESS` says where a node is paid.")


def _next(one: dict[str, Any]) -> str:
    if one["pending_nano_usd"] == "0":
        return "-"
    next_ms = one["next_payable_ms"]
    return "once its block is closed" if next_ms is None else date_time(next_ms)


def _open(one: dict[str, Any]) -> str:
    """What is on record from one side only, and what is contested."""
    parts = []
    if one["waiting_records"]:
        parts.append(f"{money(one['waiting_nano_usd'])} wait for the other side")
    if one["open_cases"]:
        parts.append(
            f"{one['open_cases']} cases, the next until {date_time(one['next_deadline_ms'])}"
        )
    return "; ".join(parts) or "-"


def _address(address: str | None) -> str:
    return "nowhere yet" if address is None else f"{address[:8]}…{address[-4:]}"


def _show_task(report: dict[str, Any]) -> None:
    rows = [
        (
            one["attempt"],
            short(one["node"]),
            f"{one['prompt_tokens']} + {one['answer_tokens']}",
            money(one["charge_nano_usd"]),
            money(one["node_share_nano_usd"]),
            one["stage"],
            date_time(one["moves_on_ms"]) if one["moves_on_ms"] is not None else "-",
        )
        for one in report["records"]
    ]
    columns = ("attempt", "node", "tokens", "charge", "node's share", "is", "until")
    show_table(f"Task {report['task_id']}", columns, rows, "No record.")
    for one in report["records"]:
        click.echo(f"  attempt {one['attempt']}: {one['stage']}: {one['reason']}.")


@click.command()
@home_option
@click.argument("address")
@click.option("--name", default="node", show_default=True, help="Which node of this home.")
def payout(home: Home, address: str, name: str) -> None:
    """Have this device's node paid to ADDRESS (0x…) on the chain.

    The node's own key signs it, so nobody else can redirect what it earns. The newest address
    counts for every day that is closed after it; what was earned before is paid there, too.
    """
    bound = anyio.run(bind_payout, home, name, parse_address(address))
    click.echo(
        f"{name} is paid to {bound['address']} from the next closed day on. Check every digit."
    )
