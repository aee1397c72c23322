"""Tables and JSON on standard output: the same rows, for people or for programs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import click
import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from starai.cli.printable import printable

PIPE_COLUMNS = 160
#: Columns whose values are numbers, aligned to the right.
_RIGHT = {"running", "queued", "done", "tokens", "prompt", "answer", "tok/s", "records"} | {
    "matched",
    "waiting",
    "conflicting",
    "in tokens",
    "out tokens",
    "parameters",
    "context",
    "available",
    "held",
    "spent",
    "credit",
    "budget",
    "pending",
    "payable",
    "paid",
    "charge",
}


def show_json(value: object) -> None:
    """One JSON document, indented."""
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2))


def show_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], empty: str
) -> None:
    """A table, or the sentence ``empty`` when there are no rows.

    Cells are shown as they are: what others call themselves is neither markup nor a terminal's
    commands.
    """
    made = [[Text(printable(str(cell))) for cell in row] for row in rows]
    if not made:
        click.echo(empty)
        return
    table = Table(title=title, title_justify="left", header_style="bold", box=SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, justify="right" if column in _RIGHT else "left", no_wrap=True)
    for row in made:
        table.add_row(*row)
    console = Console()
    # A pipe has no width: nothing is cut off there.
    Console(width=None if console.is_terminal else PIPE_COLUMNS).print(table)


def short(key: object) -> str:
    """A key or hash as people compare them: its beginning."""
    return f"{str(key)[:10]}…"


def clock_time(unix_ms: object) -> str:
    """The local time of day of a Unix time in milliseconds."""
    moment = datetime.fromtimestamp(int(str(unix_ms)) / 1000).astimezone()
    return moment.strftime("%H:%M:%S")


def date_time(unix_ms: object) -> str:
    """The local date and time of day of a Unix time in milliseconds."""
    moment = datetime.fromtimestamp(int(str(unix_ms)) / 1000).astimezone()
    return moment.strftime("%Y-%m-%d %H:%M")


def only(row: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Some of a row's fields."""
    return {name: row[name] for name in names}
