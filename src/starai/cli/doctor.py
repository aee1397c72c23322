"""`starai doctor` says what is in the way of a device."""

from __future__ import annotations

import anyio
import click

from starai.cli.join import read_words
from starai.cli.options import home_option
from starai.cli.printable import printable
from starai.core.errors import ConfigurationRefused
from starai.local.doctor import examine
from starai.local.home import Home
from starai.wire.hops import Step


@click.command()
@home_option
@click.argument("words", nargs=-1, metavar="[URL] [TOKEN]")
@click.option("--name", default="node", show_default=True, help="The party of this home to check.")
def doctor(home: Home, words: tuple[str, ...], name: str) -> None:
    """Try the way to a network hop by hop, and say which one fails and what to do about it.

    Without arguments it checks the network that this device is in; with a URL how far one gets
    there; with a TOKEN whether it would let this device in. Nothing is changed by it.
    """
    url, token = read_words(words)
    passed = anyio.run(examine, home, name, url, token, _tell_url, _tell_step)
    if not passed:
        raise ConfigurationRefused("no way leads to the network; the failing hop is above")


def _tell_url(url: str) -> None:
    click.echo(url)


def _tell_step(step: Step) -> None:
    mark = "ok  " if step.ok else "FAIL"
    took = f" ({step.took_ms:.0f} ms)" if step.ok else ""
    click.echo(f"  {mark} {step.hop.value:<15} {printable(step.found)}{took}")
    if step.advice:
        click.echo(f"       {'':<15} {step.advice}")
