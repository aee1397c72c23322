"""`starai ledger`: what both sides confirmed, and the proofs that it stays as it is."""

from __future__ import annotations

from typing import Any

import anyio
import click
import msgspec

from starai.cli.ledger_books import close, export, verify
from starai.cli.options import AT_LEAST_ONE, NOT_NEGATIVE, home_option, json_option
from starai.cli.tables import clock_time, date_time, short, show_json, show_table
from starai.ledger.accounts import usd
from starai.local.asking import OPERATOR, ask_registry
from starai.local.home import Home
from starai.local.membership import membership
from starai.local.proving import (
    CheckedCheckpoint,
    check_checkpoint,
    check_consistency,
    check_task,
)
from starai.protocol.log import ConsistencyProof, TaskProof
from starai.protocol.records import leaf_hash


def _ask(home: Home, what: str, **arguments: object) -> Any:
    """The registry's answer to the operator, or, where there is none, to this device's node."""

    async def ask() -> Any:
        async with membership(home, OPERATOR if home.has_party(OPERATOR) else "node") as member:
            return await ask_registry(member, what, **arguments)

    return anyio.run(ask)


@click.group()
def ledger() -> None:
    """The books: what nodes and distributors have both confirmed."""


ledger.add_command(export)
ledger.add_command(verify)
ledger.add_command(close)


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
    """Blocks of records with what both sides agree on, the totals, each node's part, the money."""
    report = _ask(home, "ledger", limit=limit)
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
    accounts = [(kind, usd(int(amount))) for kind, amount in report["money"].items()]
    if accounts:
        show_table("Money", ("accounts", "hold together"), accounts, empty)


@ledger.command()
@home_option
@json_option
def check(home: Home, as_json: bool) -> None:
    """Recompute every leaf, root, signature and match in the registry's database."""
    report = _ask(home, "check")
    if as_json:
        show_json(report)
        return
    for name, value in report.items():
        click.echo(f"{name}: {value}")


@ledger.command()
@home_option
@json_option
@click.option("--size", type=NOT_NEGATIVE, default=None, help="That of so many records instead.")
def checkpoint(home: Home, as_json: bool, size: int | None) -> None:
    """The log's newest checkpoint, and who cosigned it; checked here, not believed.

    A checkpoint fixes every record there is: nobody can change, remove or insert one later
    without another checkpoint that witnesses refuse to sign. The text is a note as C2SP's
    tlog-checkpoint has it, which other programs can check.
    """
    report = _ask(home, "checkpoint", size=size)
    network = home.network()
    checked = check_checkpoint(report["note"], network.name, network.account)
    if as_json:
        show_json(report)
        return
    click.echo(report["note"])
    _tell_checked(checked)


@ledger.command()
@home_option
@json_option
@click.argument("task_id", metavar="TASK")
def proof(home: Home, as_json: bool, task_id: str) -> None:
    """Prove that a task is on record for ever: its place in the log, checked here.

    TASK is the id that `starai tasks` shows. The proof leads from the task's record to the root of
    a checkpoint that the network signed and that witnesses cosigned. A supplier's own device proves
    its own work.
    """
    report = _ask(home, "proof", task_id=task_id)
    network = home.network()
    found = msgspec.convert(report, TaskProof)
    checked = check_task(found, task_id, network.name, network.account)
    if as_json:
        show_json(report)
        return
    rows = [
        (one.attempt, one.state, one.index, len(one.path), leaf_hash(one.record).hex())
        for one in found.records
    ]
    columns = ("attempt", "state", "place", "hashes", "leaf")
    show_table(f"Task {task_id} is in the log", columns, rows, "Nothing is proven.")
    _tell_checked(checked)


@ledger.command()
@home_option
@json_option
@click.argument("old", type=NOT_NEGATIVE)
@click.argument("size", type=NOT_NEGATIVE)
def consistency(home: Home, as_json: bool, old: int, size: int) -> None:
    """Prove that nothing of an old log was changed: OLD records begin the log of SIZE records.

    Both are sizes of checkpoints.
    """
    report = _ask(home, "consistency", old=old, size=size)
    network = home.network()
    found = msgspec.convert(report, ConsistencyProof)
    check_consistency(found, network.name, network.account)
    if as_json:
        show_json(report)
        return
    click.echo(f"The first {old} of {size} records are the same; {len(found.path)} hashes show it.")


def _tell_checked(checked: CheckedCheckpoint) -> None:
    click.echo(f"The network signed this log of {checked.size} records.")
    for one in checked.cosignatures:
        when = date_time(one.unix_s * 1000)
        click.echo(f"Witnessed by {one.role.value} {short(one.party)} at {when}.")
    if not checked.cosignatures:
        click.echo("No witness has cosigned it yet; they need some seconds.")
