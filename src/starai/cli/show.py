"""`starai status`, `nodes`, `tasks`: what happens and happened, as tables or JSON."""

from __future__ import annotations

from typing import Any

import anyio
import click
import msgspec

from starai.cli.options import AT_LEAST_ONE, home_option, json_option
from starai.cli.standing import show_standings
from starai.cli.tables import clock_time, short, show_json, show_table
from starai.local.asking import operator
from starai.local.home import Home
from starai.local.standing import ask_standing
from starai.protocol.presence import Beat
from starai.protocol.subjects import Role


async def _beats(home: Home) -> list[Beat]:
    async with operator(home) as asked:
        return await asked.listen()


async def _ask(home: Home, what: str, arguments: dict[str, object]) -> Any:
    async with operator(home) as asked:
        return await asked.ask(what, **arguments)


def _state(beat: Beat) -> str:
    return beat.paused or ("draining" if beat.draining else "up")


def _plain(beat: Beat) -> dict[str, object]:
    """A beat as JSON shows it: names and numbers, no keys to decrypt anything with."""
    fields = msgspec.structs.asdict(beat)
    fields.pop("prekey")
    fields["models"] = [model.name for model in beat.models]
    fields["decode_tps"] = max((model.decode_tps for model in beat.models), default=0.0)
    fields["slots"] = sum(model.slots for model in beat.models)
    return fields


@click.command()
@home_option
@json_option
def status(home: Home, as_json: bool) -> None:
    """Who is up, and how much they have done."""
    beats = anyio.run(_beats, home)
    if as_json:
        show_json([_plain(beat) for beat in beats])
        return
    names = home.party_names()
    rows = [
        (
            beat.role,
            beat.label or names.get(beat.party) or short(beat.party),
            _state(beat),
            clock_time(beat.boot),
            beat.running,
            beat.queued,
            beat.done,
            beat.tokens,
        )
        for beat in beats
    ]
    columns = ("role", "name", "state", "since", "running", "queued", "done", "tokens")
    show_table("Parties", columns, rows, "Nobody beats: is the network up? `starai up` starts it.")


@click.command()
@home_option
@json_option
@click.option("--why", is_flag=True, help="What the distributors hold against each, and why.")
def nodes(home: Home, as_json: bool, why: bool) -> None:
    """The nodes: what each serves, how busy and how fast it is."""
    if why:
        show_standings(anyio.run(ask_standing, home, None), as_json, steps=True)
        return
    beats = [beat for beat in anyio.run(_beats, home) if beat.role == Role.NODE.value]
    if as_json:
        show_json([_plain(beat) for beat in beats])
        return
    rows = [
        (
            beat.label or "-",
            short(beat.party),
            ", ".join(model.name for model in beat.models) or "loading",
            _state(beat),
            f"{beat.running}/{sum(model.slots for model in beat.models)}",
            f"{max((model.decode_tps for model in beat.models), default=0):.0f}",
            beat.done,
            beat.tokens,
        )
        for beat in beats
    ]
    columns = ("name", "key", "model", "state", "running", "tok/s", "done", "tokens")
    show_table("Nodes", columns, rows, "No nodes. `starai tokens create` lets one in.")


@click.command()
@home_option
@json_option
@click.option(
    "--limit", type=AT_LEAST_ONE, default=20, show_default=True, help="How many, newest first."
)
@click.option("--state", default=None, help="Only those in this state, for example matched.")
def tasks(home: Home, as_json: bool, limit: int, state: str | None) -> None:
    """The tasks on record, newest first: who did what, and whether both sides agree."""
    arguments: dict[str, object] = {"limit": limit}
    if state is not None:
        arguments["state"] = state
    report = anyio.run(_ask, home, "tasks", arguments)
    if as_json:
        show_json(report)
        return
    rows = [
        (
            clock_time(task["closed_ms"]),
            task["task_id"],
            task["attempt"],
            task["state"],
            short(task["node"]),
            task["prompt_tokens"],
            task["answer_tokens"],
        )
        for task in report["tasks"]
    ]
    columns = ("closed", "task", "attempt", "state", "node", "prompt", "answer")
    show_table("Tasks", columns, rows, 'No tasks yet. Try: starai chat "Hello"')
