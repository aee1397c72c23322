"""`starai ledger export` and `verify`: the books as files, and whether they hold."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import anyio
import click
import msgspec

from starai.cli.options import home_option, json_option
from starai.cli.tables import show_json
from starai.core.errors import ConfigurationRefused
from starai.local.asking import operator
from starai.local.home import Home
from starai.protocol.identity import KeyKind, raw_public
from starai.verifier.checking import Report, verify as check_export
from starai.verifier.keeping import KeptRefused


def _export(home: Home, folder: Path, store: str, *, with_beancount: bool) -> list[Path]:
    from starai.registry.days.export import export_all  # noqa: PLC0415 - only where the registry is
    from starai.registry.storage import open_reader  # noqa: PLC0415 - see above

    account = raw_public(home.network().account, KeyKind.ACCOUNT)
    location = store or home.registry_db
    if not store and not home.registry_db.exists():
        raise ConfigurationRefused(
            f"there is no registry in {home.path}: do this where `starai up` runs, or name the"
            " folder of an export"
        )
    with open_reader(location) as connection:
        return export_all(connection, folder, account, with_beancount=with_beancount)


_STORE = click.option(
    "--store",
    envvar="STARAI_REGISTRY_STORE",
    show_envvar=True,
    default="",
    metavar="URL",
    help="The registry's PostgreSQL database, if it is not in the home folder.",
)


@click.command("export")
@home_option
@_STORE
@click.option("--beancount", "with_beancount", is_flag=True, help="Also write books.beancount.")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
def export(home: Home, store: str, with_beancount: bool, folder: Path) -> None:
    """Write the books into FOLDER: blocks, records, transfers, leaves, manifests.

    Whoever has the folder can check everything with `starai ledger verify FOLDER`: nothing in it
    has to be believed. It has neither names nor keys, but numbers of customers and what each spent.
    The registry may run meanwhile. Days that are there already are not written again.
    """
    folders = _export(home, folder, store, with_beancount=with_beancount)
    click.echo(f"{len(folders)} folders of books in {folder}.")
    click.echo(f"Check them anywhere: starai ledger verify {folder}")


@click.command("verify")
@home_option
@json_option
@_STORE
@click.option(
    "--kept",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Begin after the closed days that a check with this FILE found right, and keep in it what"
    " the next one needs. Who can write FILE can have days pass that are wrong.",
)
@click.argument(
    "folder", type=click.Path(path_type=Path, exists=True, file_okay=False), required=False
)
def verify(home: Home, as_json: bool, store: str, kept: Path | None, folder: Path | None) -> None:
    """Check an export in FOLDER, or the books as they are now.

    The check shares no code with the registry. It goes through every block, record, signature and
    transfer, books all money once more, builds each day's leaves and manifest again, and says what
    differs. The exit status is 0 if nothing does.
    """
    if folder is not None:
        report = _checked(home, folder, kept)
    else:
        with tempfile.TemporaryDirectory() as passing:
            _export(home, Path(passing), store, with_beancount=False)
            report = _checked(home, Path(passing), kept)
    if as_json:
        show_json(msgspec.to_builtins(report))
    else:
        if report.began:
            click.echo(f"Began {report.began}.")
        for name, number in report.counts.items():
            click.echo(f"{number} {name}")
        for problem in report.problems:
            click.echo(f"WRONG: {problem}")
        if not report.problems:
            click.echo(
                f"Everything holds. Head of the last closed day: {report.head or 'none yet'}"
            )
    if report.problems:
        raise click.exceptions.Exit(1)


def _checked(home: Home, folder: Path, kept: Path | None) -> Report:
    """The check, held to the network's key where this machine knows it."""
    try:
        key = raw_public(home.network().account, KeyKind.ACCOUNT)
    except ConfigurationRefused:
        key = b""
    try:
        return check_export(folder, os.cpu_count() or 1, key, kept)
    except KeptRefused as error:
        raise ConfigurationRefused(str(error)) from error


async def _close(home: Home, accept: bool) -> Any:
    async with operator(home) as asked:
        return await asked.ask("close_day", accept=accept)


@click.command("close")
@home_option
@json_option
@click.option("--accept", is_flag=True, help="Let a day pass that grew more than is usual.")
def close(home: Home, as_json: bool, accept: bool) -> None:
    """Close the books up to now, without waiting for midnight, or go on with a day that stopped.

    What is old enough matures, a block is closed, and everything since the last day becomes a day
    of its own: built, exported, checked by another process, and signed.
    """
    report = anyio.run(_close, home, accept)
    day, stopped = report["day"], report["stopped"]
    if as_json:
        show_json(report)
    elif day is None:
        click.echo("Nothing is new since the last day.")
    else:
        click.echo(f"Day {day['epoch']}: blocks {day['from_block']} to {day['to_block']}.")
        click.echo(f"It is {day['state']}. Head: {day['head']}")
    if stopped:
        raise click.ClickException(stopped)
