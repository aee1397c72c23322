"""`starai models quantize` and `export`: the same model in fewer bytes, or for another program."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from starai.cli.options import home_option
from starai.core.errors import ConfigurationRefused
from starai.local.home import Home
from starai.models.catalog import open_model
from starai.models.gguf.export import KINDS, export_gguf

_MB = 1e6


@click.command()
@home_option
@click.argument("model")
@click.option(
    "--to",
    "kind",
    type=click.Choice(["int8", "int4"]),
    required=True,
    help="Bytes of a weight: int8 takes one, int4 little more than half of one.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder to write; by default one beside the pulled models.",
)
@click.option(
    "--head",
    type=click.Choice(["int8", "int4", "bf16"]),
    help="How to keep the output layer; int8 by default.",
)
@click.option(
    "--text",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Text to measure perplexity on; by default a fairy tale.",
)
@click.option(
    "--tokens",
    type=click.IntRange(2),
    default=4096,
    show_default=True,
    help="How much of the text to measure on, at most.",
)
def quantize(  # noqa: PLR0917 - one argument an option
    home: Home,
    model: str,
    kind: str,
    out: Path | None,
    head: str | None,
    text: Path | None,
    tokens: int,
) -> None:
    """Write MODEL with weights of 8 or 4 bits, and print its perplexity before and after."""
    manifest = open_model(model, home.models)
    try:
        from starai.engines.linear.offline import quantise_model  # noqa: PLC0415 - torch is heavy
    except ModuleNotFoundError as error:
        raise ConfigurationRefused(
            f"quantising needs {error.name}: install starai[engine]"
        ) from error
    pulled = out is None and model == manifest.name and "/" in model
    reference = f"{model if pulled else 'local/' + manifest.name}-{kind}"
    folder = out or home.models / reference
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True, disable=not sys.stdout.isatty()) as progress:
        task = progress.add_task(manifest.name, total=None)

        def show(what: str, done: int, total: int) -> None:
            progress.update(task, description=what, completed=done, total=total)

        outcome = quantise_model(
            manifest, kind, folder, head=head or "", text=text, tokens=tokens, progress=show
        )
    change = 100 * (outcome.after / outcome.before - 1)
    on = text.name if text else "the built-in text"
    refitted = outcome.refitted
    layers = ", ".join(f"{count} {name}" for name, count in sorted(refitted.layers.items()))
    click.echo(f"{manifest.name}: {manifest.num_parameters:,} parameters, layers: {layers}")
    click.echo(f"perplexity on {outcome.tokens:,} tokens of {on}:")
    click.echo(f"  {outcome.before:.3f} before, {outcome.after:.3f} after ({change:+.2f} %)")
    click.echo(
        f"weights in memory: {refitted.bytes_before / _MB:,.1f} MB before, "
        f"{refitted.bytes_after / _MB:,.1f} MB after"
    )
    click.echo(f"Serve it with: starai up --model {out or reference}")


@click.command()
@home_option
@click.argument("model")
@click.argument("out", metavar="OUT.gguf", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--to",
    "kind",
    type=click.Choice(list(KINDS)),
    default="q8_0",
    show_default=True,
    help="How llama.cpp shall keep the weights.",
)
def export(home: Home, model: str, out: Path, kind: str) -> None:
    """Write MODEL as a GGUF file, which llama.cpp and what is built on it can run."""
    manifest = open_model(model, home.models)
    columns = (TextColumn("{task.description}"), BarColumn())
    with Progress(*columns, transient=True, disable=not sys.stdout.isatty()) as progress:
        task = progress.add_task(manifest.name, total=None)
        export_gguf(
            manifest,
            kind,
            out,
            lambda done, total: progress.update(task, completed=done, total=total),
        )
    click.echo(f"{out}: {manifest.num_parameters:,} parameters, {out.stat().st_size / _MB:,.1f} MB")
