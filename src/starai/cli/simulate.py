"""`starai simulate`: a whole network in virtual time, with a report and a page of plots."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from starai.cli.options import AT_LEAST_ONE
from starai.cli.tables import show_json, show_table
from starai.core.errors import ConfigurationRefused
from starai.simulation.page import make_page
from starai.simulation.policies import POLICIES
from starai.simulation.report import COMPARED, Report, comparison, make_report, rows
from starai.simulation.running import Outcome, Progress as Hears, simulate as run
from starai.simulation.scenario import Scenario, packaged, read_scenario
from starai.simulation.sources import Sources

DATA = Path("../shared/data")


@click.command()
@click.argument("scenario", required=False)
@click.option("--list", "lists", is_flag=True, help="List the scenarios that come with StarAI.")
@click.option("--nodes", type=AT_LEAST_ONE, help="So many nodes instead of the scenario's.")
@click.option("--hours", type=click.FloatRange(min=0, min_open=True), help="So long, in hours.")
@click.option("--seed", type=int, help="Another seed: another world of the same kind.")
@click.option("--policy", type=click.Choice([*POLICIES]), help="Who chooses nodes.")
@click.option("--compare", is_flag=True, help="Run all policies, one after the other.")
@click.option("--real", is_flag=True, help="Run the real services instead; for tens of nodes.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write a page here.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="STARAI_SHARED_DATA",
    default=DATA,
    show_default=True,
    show_envvar=True,
    help="The folder of measured data.",
)
def simulate(scenario: str | None, *, lists: bool, data: Path, **given: Any) -> None:
    """Run a whole network in virtual time: the same result for the same seed.

    SCENARIO is one of the packaged ones (see --list) or the path of your own. Prints what
    happened; with --out, writes a page of plots that needs nothing from a network.
    """
    if lists or scenario is None:
        described = [(name, read_scenario(name)) for name in packaged()]
        listed = [(name, f"{one.nodes:,}", one.title) for name, one in described]
        show_table("Scenarios", ("name", "nodes", "what it is"), listed, "")
        return
    names = ("nodes", "hours", "seed", "policy")
    read = read_scenario(scenario, {name: given[name] for name in names})
    sources = Sources(data, synthetic_if_absent=read.synthetic_if_absent)
    if given["real"]:
        _run_real(read, sources, as_json=given["as_json"])
        return
    policies = [*POLICIES] if given["compare"] else [read.policy]
    outcomes = [_run(read, policy, sources) for policy in policies]
    _show(outcomes, as_json=given["as_json"])
    if given["out"] is not None:
        given["out"].write_text(make_page(outcomes), "utf-8")
        click.echo(f"The page: {given['out']}", err=True)
    if not all(one.verdict.is_sound for one in outcomes):
        raise click.ClickException("the books are not sound: this is a mistake in StarAI")


def _run_real(scenario: Scenario, sources: Sources, *, as_json: bool) -> None:
    """Imported here: virtual time for real services needs trio, which nothing else does."""
    try:
        services = importlib.import_module("starai.simulation.services")
    except ModuleNotFoundError as error:
        raise ConfigurationRefused(
            f"--real needs {error.name}: pip install 'starai[simulation]'"
        ) from error
    logging.getLogger("starai").setLevel(logging.ERROR)  # records wait: there is no registry
    outcome = services.run_services(scenario, sources)
    report = services.RealReport.of(outcome)
    if as_json:
        show_json(report)
    else:
        show_table(f"{scenario.title}: the real services", ("", "what happened"), report.rows(), "")
    if not outcome.verdict.is_sound or outcome.changed:
        raise click.ClickException("the books are not sound: this is a mistake in StarAI")


def _run(scenario: Scenario, policy: str, sources: Sources) -> Outcome:
    changed = msgspec.structs.replace(scenario, policy=policy)
    with _progress(policy) as hears:
        return run(changed, sources, hears)


def _show(outcomes: list[Outcome], *, as_json: bool) -> None:
    reports = [make_report(one) for one in outcomes]
    if as_json:
        show_json([_document(one) for one in reports])
        return
    if len(reports) > 1:
        show_table(reports[0].title, COMPARED, comparison(reports), "")
    for report in reports:
        title = report.title if len(reports) == 1 else f"Policy: {report.policy}"
        show_table(title, ("", "what happened"), rows(report), "")


def _document(report: Report) -> dict[str, Any]:
    return {**msgspec.to_builtins(report), "fingerprint": report.digest()}


@contextmanager
def _progress(what: str) -> Iterator[Hears]:
    """A bar on standard error, where that is a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, transient=True, console=Console(stderr=True)) as progress:
        task = progress.add_task(what, total=1.0)
        yield lambda share: progress.update(task, completed=share)
