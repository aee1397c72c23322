"""`starai disputes`: records on which node and distributor do not agree."""

from __future__ import annotations

from typing import Any

import anyio
import click

from starai.cli.options import NOT_NEGATIVE, home_option, json_option
from starai.cli.tables import date_time, short, show_json, show_table
from starai.ledger.accounts import usd
from starai.ledger.outcomes import Verdict
from starai.local.disputing import ask_disputes
from starai.local.home import Home

_node_option = click.option("--node", default=None, help="Ask as this node of this home.")


@click.group()
def disputes() -> None:
    """Records on which node and distributor do not agree.

    Each gets a case by itself and has its outcome after a day: what only the distributor says is
    paid, of two amounts the lower is, and what only a node says is not, unless its distributor is
    gone altogether. Before and after that a person may decide.
    """


@disputes.command("list")
@home_option
@json_option
@_node_option
@click.option("--all", "also_closed", is_flag=True, help="Also what is decided.")
def list_disputes(home: Home, as_json: bool, node: str | None, also_closed: bool) -> None:
    """Open cases, newest first, and who was to blame for how many of the refused ones.

    The operator sees all, a node its own. RECORD is what `starai disputes decide` takes.
    """
    arguments: dict[str, object] = {"only_open": not also_closed}
    report = anyio.run(_ask, home, "disputes", node, arguments)
    if as_json:
        show_json(report)
        return
    _show(report["disputes"])
    for party, number in report["strikes"].items():
        click.echo(f"{short(party)} was to blame for {number} refused records.")


@disputes.command("open")
@home_option
@json_option
@_node_option
@click.option("--attempt", type=NOT_NEGATIVE, default=0, help="Which attempt at the task.")
@click.argument("task_id", metavar="TASK")
def open_dispute(home: Home, as_json: bool, node: str | None, attempt: int, task_id: str) -> None:
    """Have a task's records that are not paid looked at by a person, within a week.

    TASK is the id that `starai tasks` shows; a node may name tasks of its own.
    """
    arguments: dict[str, object] = {"task_id": task_id, "attempt": attempt}
    report = anyio.run(_ask, home, "dispute", node, arguments)
    if as_json:
        show_json(report)
        return
    _show(report["disputes"])


@disputes.command()
@home_option
@json_option
@click.argument("record", type=NOT_NEGATIVE)
@click.argument(
    "verdict", type=click.Choice([Verdict.PAID.value, Verdict.REFUSED.value, Verdict.SLASHED.value])
)
def decide(home: Home, as_json: bool, record: int, verdict: str) -> None:
    """Decide a case, whatever time would or did: VERDICT is paid, refused or slashed.

    Paid: by the customer if the distributor said it, else by the insurance. Refused: what was paid
    is given back while it is pending. Slashed: refused, and the node loses as much of its stake.
    """
    report = anyio.run(_ask, home, "decide", None, {"record": record, "verdict": verdict})
    if as_json:
        show_json(report)
        return
    _show([report])


async def _ask(home: Home, what: str, node: str | None, arguments: dict[str, object]) -> Any:
    return await ask_disputes(home, what, node, **arguments)


def _show(cases: list[dict[str, Any]]) -> None:
    rows = [
        (
            case["record"],
            case["task_id"],
            case["attempt"],
            short(case["node"]),
            " and ".join(case["sides"]),
            usd(int(case["charge_nano_usd"])),
            case["reason"],
            case["verdict"] or f"open until {date_time(case['deadline_ms'])}",
        )
        for case in cases
    ]
    columns = ("record", "task", "attempt", "node", "said by", "charge", "why", "verdict")
    show_table("Records that are not agreed", columns, rows, "All that was said is agreed.")
