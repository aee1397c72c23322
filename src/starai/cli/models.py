"""`starai models`: what can be served, and fetching more from a hub."""

from __future__ import annotations

import os
from pathlib import Path

import anyio
import click
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from starai.cli.fit import library
from starai.cli.options import home_option, json_option
from starai.cli.tables import show_json, show_table
from starai.cli.weights import export, quantize
from starai.client import Client
from starai.core.errors import ConfigurationRefused, StarAIError, Unavailable
from starai.local.home import Home
from starai.models.catalog import open_model
from starai.models.hub import PUBLIC_HUB, PullProgress, pull as pull_model
from starai.models.manifest import ModelManifest


@click.group(invoke_without_command=True)
@home_option
@json_option
@click.pass_context
def models(ctx: click.Context, home: Home, as_json: bool) -> None:
    """The models on this machine, and which of them are being served; `pull` fetches more."""
    if ctx.invoked_subcommand is not None:
        return
    served = _served(home)
    found = [_row(manifest, manifest.name in served) for manifest in _on_disk(home)]
    if as_json:
        show_json(found)
        return
    columns = ("name", "served", "parameters", "context", "vocabulary", "architecture")
    rows = [[str(row[column]) for column in columns] for row in found]
    show_table("Models", columns, rows, "No models. `starai models pull ORG/NAME` fetches one.")


@models.command()
@home_option
@click.argument("name", metavar="ORG/NAME")
@click.option("--revision", default="main", show_default=True, help="Branch, tag or commit.")
def pull(home: Home, name: str, revision: str) -> None:
    """Fetch a model from a hub, whole and checked; goes on where it was interrupted.

    HF_ENDPOINT names another hub than the public one, HF_TOKEN opens gated models.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress:
        task = progress.add_task(name, total=None)

        def show(now: PullProgress) -> None:
            progress.update(
                task,
                description=f"{name} ({now.files_done}/{now.files_total}) {now.file}",
                completed=now.done_bytes,
                total=now.total_bytes,
            )

        async def run() -> Path:
            return await pull_model(
                name,
                home.models,
                endpoint=os.environ.get("HF_ENDPOINT", PUBLIC_HUB),
                token=os.environ.get("HF_TOKEN"),
                revision=revision,
                on_progress=show,
            )

        anyio.run(run)
    manifest = open_model(name, home.models)
    click.echo(f"{manifest.name}: {manifest.num_parameters:,} parameters.")
    click.echo(f"Serve it with: starai up --model {name}")


models.add_command(quantize)
models.add_command(export)
models.add_command(library)


def _served(home: Home) -> set[str]:
    """What the gateway of this home offers; nothing when it is not up."""
    try:
        target = home.client()
        with Client(target.base_url, target.api_key) as client:
            return set(client.models())
    except (ConfigurationRefused, Unavailable):
        return set()


def _on_disk(home: Home) -> list[ModelManifest]:
    references = ["embedded", *(f"{p.parent.name}/{p.name}" for p in home.models.glob("*/*"))]
    found = []
    for reference in references:
        try:
            found.append(open_model(reference, home.models))
        except StarAIError as error:
            click.echo(f"{reference}: {error.message}", err=True)
    return found


def _row(manifest: ModelManifest, served: bool) -> dict[str, object]:
    return {
        "name": manifest.name,
        "served": "yes" if served else "-",
        "parameters": manifest.num_parameters,
        "context": manifest.context_length,
        "vocabulary": manifest.vocab_size,
        "architecture": manifest.architecture,
    }
