"""`starai node why`, `appeal`, `reset`, `leave`: how a node stands, and how it goes."""

from __future__ import annotations

from collections.abc import Sequence

import anyio
import click
import msgspec

from starai.cli.options import home_option, json_option
from starai.cli.tables import short, show_json, show_table
from starai.local.asking import give_order
from starai.local.home import Home
from starai.local.standing import ask_standing
from starai.protocol.standing import Standings


@click.command()
@home_option
@json_option
@click.argument("name", default="node")
def why(home: Home, as_json: bool, name: str) -> None:
    """How a node stands with each distributor, and every step that led there.

    NAME is a node of this home, or its key.
    """
    show_standings(anyio.run(ask_standing, home, name), as_json, steps=True)


@click.command()
@home_option
@click.argument("name", default="node")
def appeal(home: Home, name: str) -> None:
    """Ask for another chance for a node that rests or is blacklisted; once a day."""
    _say(anyio.run(ask_standing, home, name, "appeal"))


@click.command()
@home_option
@click.argument("name")
def reset(home: Home, name: str) -> None:
    """Forgive a node everything (the operator's). NAME is a node of this home, or its key."""
    _say(anyio.run(ask_standing, home, name, "reset"))


@click.command()
@home_option
@click.argument("name", default="node")
def leave(home: Home, name: str) -> None:
    """Hand running answers over, confirm what is owed, and end. `starai node start` comes back."""
    anyio.run(give_order, home, name, "leave")
    click.echo(f"{name} hands over what runs, confirms what it is owed, and ends.")


def show_standings(answers: Sequence[Standings], as_json: bool, *, steps: bool) -> None:
    """Standings as a table, or as JSON; with ``steps`` the past of each, too."""
    if as_json:
        show_json([msgspec.to_builtins(_named(answer)) for answer in answers])
        return
    rows = [
        (
            short(one.node),
            short(answer.distributor),
            one.rung,
            f"{one.failures:.1f}",
            f"{one.rests_s:.0f} s" if one.rests_s else "-",
            ", ".join(f"{count.fault} {count.times}x" for count in one.faults) or "-",
            one.notes[-1].reason if one.notes else "no fault is known",
        )
        for answer in answers
        for one in answer.entries
    ]
    columns = ("node", "distributor", "standing", "weight", "rests", "faults", "last step")
    show_table("Standing", columns, rows, "No distributor holds anything against any node.")
    for answer in answers:
        for one in answer.entries if steps else ():
            for note in one.notes:
                click.echo(f"  {note.ago_s:8.0f} s ago  {note.rung:12} {note.reason}")


def _named(answer: Standings) -> dict[str, object]:
    """The answer with its fields' names: on the wire they are told by their order."""
    entries = [
        {
            **msgspec.structs.asdict(one),
            "faults": {count.fault: count.times for count in one.faults},
            "notes": [msgspec.structs.asdict(note) for note in one.notes],
        }
        for one in answer.entries
    ]
    return {**msgspec.structs.asdict(answer), "entries": entries}


def _say(answers: Sequence[Standings]) -> None:
    for answer in answers:
        click.echo(f"distributor {short(answer.distributor)}: {answer.said}")
