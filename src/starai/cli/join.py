"""`starai join` makes a device a supplier.

Imports little: all of it comes before the start of the engine's process, which takes longest.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from typing import TYPE_CHECKING, Any

import click

from starai.cli.options import (
    AT_LEAST_ONE,
    NOT_NEGATIVE,
    F,
    engine_option,
    engine_url_option,
    home_option,
    yielding_options,
)
from starai.cli.printable import printable
from starai.cli.running import run_service
from starai.core.clock import SystemClock
from starai.local.home import Home
from starai.local.nodes import NodeOptions
from starai.local.supplying import join_and_serve
from starai.local.telling import LIVE_S, Life, Stage, Telling

if TYPE_CHECKING:
    from rich.status import Status

#: Speed is shown over this many looks at the node.
_WINDOW = 6

_SUPPLIER = (
    click.option("--name", default="node", show_default=True, help="The node's name in this home."),
    click.option("--model", default="embedded", show_default=True, help="Which model to serve."),
    click.option(
        "--slots",
        type=AT_LEAST_ONE,
        default=8,
        show_default=True,
        help="Answers to generate at once.",
    ),
    click.option(
        "--threads",
        type=NOT_NEGATIVE,
        default=0,
        show_default=True,
        help="CPU threads; 0: decide by itself.",
    ),
    click.option("--label", default="", help="What people see beside the node's key."),
    click.option("--region", default="", help="Where the device is, coarsely: eu-west, us, jp."),
    engine_url_option,
    engine_option,
    yielding_options,
    click.option("--step-delay-ms", default=0.0, hidden=True, help="Slows the mock model down."),
)


def supplier_options(command: F) -> F:
    """What a node serves and how: the command gets ``name`` and the fields of `NodeOptions`."""
    for option in reversed(_SUPPLIER):
        command = option(command)
    return command


def read_words(words: tuple[str, ...]) -> tuple[str, str]:
    """URL and token, in whatever order; a token may also come by the environment."""
    urls = [word for word in words if "://" in word]
    tokens = [word for word in words if "://" not in word]
    if len(urls) > 1 or len(tokens) > 1:
        raise click.UsageError("expected at most one URL and one token: starai join [URL] TOKEN")
    token = tokens[0] if tokens else os.environ.get("STARAI_TOKEN", "")
    return (urls[0] if urls else ""), token


@click.command()
@home_option
@click.argument("words", nargs=-1, metavar="[URL] [TOKEN]")
@supplier_options
def join(home: Home, words: tuple[str, ...], *, name: str, **given: Any) -> None:
    """Join a network with this device and serve a model until Ctrl-C: no open port, no root.

    TOKEN is the line that the operator's `starai tokens create` printed; it knows where the
    network is. URL (nats://, tls://, ws:// or wss://) is tried before that. Once joined, `starai
    join` alone goes on, and `starai node install-service` starts it with the device.
    """
    url, token = read_words(words)
    options = NodeOptions(**given)
    show = _Show()
    telling = Telling(show.stage, show.life)
    run_service(
        lambda: join_and_serve(home, name, token, options, url=url, telling=telling),
        log_level=os.environ.get("STARAI_LOG", "ERROR"),
    )
    show.end()
    click.echo("Stopped. `starai join` goes on serving.")


class _Show:
    """The stages as lines, then one line that is kept current."""

    def __init__(self) -> None:
        self._clock = SystemClock()
        self._began_s = self._clock.monotonic_s()
        self._tokens: deque[int] = deque(maxlen=_WINDOW)
        self._status: Status | None = None

    def stage(self, stage: Stage, detail: str) -> None:
        """One more line."""
        took_s = self._clock.monotonic_s() - self._began_s
        click.echo(f"{took_s:6.1f} s  {stage.value:<11} {printable(detail)}")

    def life(self, life: Life) -> None:
        """Keep the live line current, if there is a terminal."""
        self._tokens.append(life.tokens)
        if not sys.stdout.isatty():
            return
        if self._status is None:
            from rich.console import Console  # noqa: PLC0415 - see the module's text

            self._status = Console().status("")
            self._status.start()
        span_s = max(1, len(self._tokens) - 1) * LIVE_S
        speed = (self._tokens[-1] - self._tokens[0]) / span_s
        state = "" if life.connected else " · reconnecting"
        self._status.update(
            f"{life.running} running · {life.tokens} tokens so far · {speed:.0f} tokens/s{state}"
        )

    def end(self) -> None:
        """Leave the line alone."""
        if self._status is not None:
            self._status.stop()
