"""`starai engine`: the engine alone, without a network."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click
import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from starai.cli.options import NOT_NEGATIVE, home_option, json_option
from starai.cli.tables import PIPE_COLUMNS, show_json
from starai.core.clock import SystemClock
from starai.core.errors import ConfigurationRefused
from starai.core.randomness import SeededRandomness
from starai.engines.base import EngineSpec
from starai.local.home import Home
from starai.models.catalog import open_model
from starai.models.manifest import ModelManifest

if TYPE_CHECKING:
    from starai.engines.native.limits import Limits
    from starai.engines.text.speed import Figure

#: With more than this share of the cores busy, figures say more about the neighbours.
_BUSY = 0.5


@click.group()
def engine() -> None:
    """The engine that runs models, on this machine alone: how fast is it here?"""


@engine.command()
@home_option
@json_option
@click.argument("model", default="embedded")
@click.option(
    "--bits",
    type=click.Choice(["16", "8", "4"]),
    default="16",
    show_default=True,
    help="Of the weights: 16 as they are, 8 and 4 quantised while loading.",
)
@click.option(
    "--threads",
    type=NOT_NEGATIVE,
    default=0,
    show_default=True,
    help="CPU threads; 0: as many as there are cores, one for a tiny model.",
)
@click.option("--quick", is_flag=True, help="One run a row: seconds instead of a minute.")
def bench(home: Home, as_json: bool, model: str, bits: str, threads: int, quick: bool) -> None:
    """Measure MODEL on this machine, beside what the machine allows at best.

    MODEL is what `starai up --model` takes: `embedded`, a folder, a file, or ORG/NAME.

    First the machine: how fast it reads memory and multiplies. From that follows a limit for each
    row. A token cannot come faster than all weights are read (memory), a prompt not faster than
    all weights are multiplied by each of its tokens (arithmetic). "reached" is the share of it.

    \b
    prefill N   tokens of a prompt a second, until the answer's first token
    decode      tokens a second of one answer, of B answers together
    first token how long an answer takes to begin, and if the prompt's beginning is known

    Medians of three runs. For true figures, let the machine do nothing else meanwhile.
    """  # noqa: D301 - click's mark, not a backslash
    manifest = open_model(model, home.models)
    if manifest.kind == "mock":
        raise ConfigurationRefused("the model 'mock' has no weights: choose another")
    store = str(home.models)
    spec = EngineSpec("text", model, store, threads=threads, options={"bits": int(bits)})
    measured = _measured(manifest, spec, quick=quick)
    if as_json:
        show_json(measured)
    else:
        _show(measured)
    cores = os.cpu_count() or 1
    if measured.load_at_start > _BUSY * cores:
        click.echo(
            f"Others use this machine (load {measured.load_at_start:.1f} on {cores} cores): "
            "all of this is too low. Measure again when it is quiet.",
            err=True,
        )


class Measured(msgspec.Struct, frozen=True):
    """All that `starai engine bench` says."""

    model: str
    num_parameters: int
    bits: int
    load_at_start: float
    limits: Limits
    figures: list[Figure]


def _load() -> float:
    """How busy the machine is; 0 where the system does not say (Windows)."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def _measured(manifest: ModelManifest, spec: EngineSpec, *, quick: bool) -> Measured:
    try:
        from starai.engines.native.limits import measure_limits  # noqa: PLC0415 - torch is heavy
        from starai.engines.text.speed import Speed  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ConfigurationRefused(f"this needs {error.name}: install starai[engine]") from error
    load, clock = _load(), SystemClock()
    threads = spec.threads or os.cpu_count() or 1
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, transient=True, console=Console(stderr=True)) as progress:
        task = progress.add_task("the machine", total=None)

        def show(what: str, done: int | None = None, total: int | None = None) -> None:
            progress.update(task, description=what, completed=done, total=total)

        limits = measure_limits(threads, clock, show)
        show(f"opening {manifest.name}")
        speed = Speed(manifest, spec, limits, clock, SeededRandomness(1), quick=quick)
        figures = list(speed.figures(show))
    bits = int(spec.options["bits"])
    return Measured(manifest.name, manifest.num_parameters, bits, load, limits, figures)


def _show(measured: Measured) -> None:
    terminal = Console()
    console = Console(width=None if terminal.is_terminal else PIPE_COLUMNS, highlight=False)
    limits = measured.limits
    machine = _table("What this machine allows", "", "")
    one, every = limits.read_bytes_per_s_one / 1e9, limits.read_bytes_per_s / 1e9
    machine.add_row("memory read, 1 thread", f"{one:.1f} GB/s")
    machine.add_row(f"memory read, {limits.threads} threads", f"{every:.1f} GB/s")
    for kind, rate in limits.operations_per_s.items():
        machine.add_row(f"operations, {kind}", f"{rate / 1e12:.2f} T/s")
    console.print(machine)
    title = f"{measured.model}: {measured.num_parameters:,} weights of {measured.bits} bits"
    table = _table(title, "", "measured", "", "limit", "because of", "reached")
    for row in measured.figures:
        share = "" if row.share is None else f"{row.share:.0%}"
        limit = "" if row.limit is None else _short(row.limit)
        table.add_row(row.name, _short(row.value), row.unit, limit, row.limited_by, share)
    console.print(table)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", header_style="bold", box=SIMPLE_HEAD)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number in (0, 2, 4) else "right", no_wrap=True)
    return table


def _short(value: float) -> str:
    """Three digits that count."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
