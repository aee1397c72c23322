"""`starai up`: start a whole network here, say how to use it, show how it does, stop it cleanly."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections import deque
from pathlib import Path
from typing import Any

import anyio
import click
import msgspec
from rich.console import Console
from rich.status import Status

from starai.cli.options import (
    AT_LEAST_ONE,
    DEFAULT_HOME,
    NOT_NEGATIVE,
    PORT,
    PriceOption,
    engine_option,
    engine_url_option,
    home_option,
)
from starai.core.concurrency import task_group
from starai.core.limits import BEAT_LEASE_S
from starai.core.logging import setup
from starai.local.doors import PUBLIC_PORT, PUBLIC_WEBSOCKET_PORT, PublicDoor
from starai.local.home import Home
from starai.local.stopping import cancel_on_signal
from starai.local.up import Running, UpSettings, network_up
from starai.protocol.subjects import Role
from starai.wire.certificates import fingerprint

#: Speed is shown over this many seconds.
SPEED_WINDOW_S = 3
#: Ctrl-C, an orderly kill, and a terminal that is closed.
STOP_SIGNALS = [signal.SIGINT, signal.SIGTERM]
if sys.platform != "win32":
    STOP_SIGNALS.append(signal.SIGHUP)


#: The options that make a `PublicDoor`, in its order.
_DOOR = ("public", "public_websocket_port", "tls_cert", "tls_key", "tls_ca")


@click.command()
@home_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Where the gateway listens.")
@click.option("--port", type=PORT, default=8000, show_default=True, help="The gateway's port.")
@click.option(
    "--nats-port", type=PORT, default=4222, show_default=True, help="NATS' port, on loopback."
)
@click.option(
    "--model",
    default="embedded",
    show_default=True,
    help="What to serve: embedded, a folder, a llama2.c .bin, or ORG/NAME once pulled.",
)
@click.option(
    "--nodes", type=AT_LEAST_ONE, default=1, show_default=True, help="How many nodes to run here."
)
@click.option(
    "--slots",
    type=AT_LEAST_ONE,
    default=8,
    show_default=True,
    help="Answers a node generates at once.",
)
@click.option(
    "--threads",
    type=NOT_NEGATIVE,
    default=0,
    show_default=True,
    help="CPU threads a node; 0: automatic.",
)
@click.option(
    "--nats-servers",
    type=click.IntRange(1, 5),
    default=1,
    show_default=True,
    help="NATS servers of one cluster: with three, any one may die.",
)
@click.option(
    "--gateways",
    type=click.IntRange(1, 16),
    default=1,
    show_default=True,
    help="Gateways, each on a port of its own: --port and those after it.",
)
@click.option(
    "--distributors",
    type=click.IntRange(1, 16),
    default=1,
    show_default=True,
    help="Distributors: with two, either may die.",
)
@click.option(
    "--public",
    metavar="HOST[:PORT]",
    default="",
    help="Let devices elsewhere join, by TLS: the name or address under which they reach this "
    f"machine, and the port if it is not {PUBLIC_PORT}.",
)
@click.option(
    "--public-websocket-port",
    type=PORT,
    default=PUBLIC_WEBSOCKET_PORT,
    show_default=True,
    help="The public WebSocket's port; 443 is let out of almost every network.",
)
@click.option("--tls-cert", type=Path, help="A certificate (PEM) for --public, if you have one.")
@click.option("--tls-key", type=Path, help="Its key.")
@click.option("--tls-ca", type=Path, help="Who vouches for it, if that is no public authority.")
@click.option(
    "--price",
    "prices",
    multiple=True,
    type=PriceOption(),
    metavar="MODEL=IN/OUT",
    help="What a million tokens cost in USD, like '*=0.10/0.40'; again for each model. "
    "`starai prices` changes it later. Free if no price was ever set.",
)
@click.option("--cors-origin", multiple=True, default=("*",), help="Origins that browsers may use.")
@click.option("--json", "as_json", is_flag=True, help="Print the facts as one line of JSON.")
@click.option("--no-live", is_flag=True, help="No live status line.")
@engine_url_option
@engine_option
@click.option("--step-delay-ms", default=0.0, hidden=True, help="Slows the mock model down.")
def up(
    home: Home,
    *,
    cors_origin: tuple[str, ...],
    as_json: bool,
    no_live: bool,
    prices: tuple[tuple[str, int, int], ...],
    **given: Any,
) -> None:
    """Start a network on this machine: NATS, registry, distributor, gateway and nodes.

    It prints the URL of an OpenAI-compatible API, an API key, and lines to paste. Ctrl-C stops
    all of it; what was recorded stays in the home folder, and the next start goes on from there.

    \b
    starai up                                   the embedded model: tiny, works offline
    starai up --model ORG/NAME                  a model fetched by `starai models pull ORG/NAME`
    starai up --nodes 2                         two nodes: kill one and watch its answers go on
    starai up --port 8001 --nats-port 4223 --home ~/other      a second network beside the first
    starai up --price '*=0.10/0.40'             a million tokens in and out cost so much
    starai up --public my.example.org           devices elsewhere may join, with a token
    """  # noqa: D301 - click wants a real backspace
    setup(os.environ.get("STARAI_LOG", "ERROR"))
    door = PublicDoor(*(given.pop(name) for name in _DOOR))
    given["public"] = door if door.address else None
    settings = UpSettings(home=home, cors_origins=cors_origin, **given)
    anyio.run(_run, settings, prices, as_json, no_live or as_json or not sys.stdout.isatty())


async def _run(
    settings: UpSettings, prices: tuple[tuple[str, int, int], ...], as_json: bool, quiet: bool
) -> None:
    console = Console(stderr=True)
    async with task_group() as group:
        # First of all, so that Ctrl-C stops in order from the very beginning.
        await group.start(cancel_on_signal, group.cancel_scope, STOP_SIGNALS)
        with console.status("starting") as progress:
            async with network_up(settings, progress.update) as running:
                for model, per_input, per_output in prices:
                    await running.operator.ask(
                        "add_price",
                        model=model,
                        input_nano_usd=per_input,
                        output_nano_usd=per_output,
                    )
                progress.stop()
                click.echo(
                    _facts(running) if as_json else _guide(running, settings.home, bool(prices))
                )
                await _show_life(running, None if quiet else progress)
        group.cancel_scope.cancel()
    if not as_json:
        click.echo("Stopped.")


def _facts(running: Running) -> str:
    facts = {
        "url": running.url,
        "urls": running.urls,
        "api_key": running.api_key,
        "model": running.model,
        "pids": running.pids(),
        "public_urls": running.public_urls,
    }
    return msgspec.json.encode(facts).decode()


def _guide(running: Running, home: Home, is_priced: bool) -> str:
    url, key, model = running.url, running.api_key, running.model
    body = f'{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
    python = f"from starai.client import Client; print(Client('{url}/v1', '{key}').chat('Hello'))"
    here = "" if home.path == DEFAULT_HOME.expanduser() else f" --home {home.path}"
    return f"""
StarAI is up.

  URL      {"  ".join(f"{one}/v1" for one in running.urls)}
  API key  {key}
  Model    {model}

Paste into another terminal:

  curl {url}/v1/chat/completions -H "Authorization: Bearer {key}" \\
    -H "Content-Type: application/json" -d '{body}'

  {_here(sys.executable)} -c "{python}"

  {_starai()} chat "Hello"{here}
  {_starai()} status{here}        also: nodes, models, tasks, ledger show

Any OpenAI client works too: give it the URL as its base_url, and the key.
{_payment(is_priced, here)}{_invitation(running, here)}
Ctrl-C stops everything and loses nothing.
"""


def _payment(is_priced: bool, here: str) -> str:
    """How requests are paid for, if they cost anything."""
    if not is_priced:
        return ""
    return f"""
Requests cost money now, and are refused until somebody paid in for this key:

  {_starai()} customers list{here}        then: starai customers deposit NUMBER 5
"""


def _invitation(running: Running, here: str) -> str:
    """How devices elsewhere join, if they can."""
    if not running.public_urls:
        return ""
    own = "\n  Certificate " + fingerprint(running.ca)[:47] + "…" if running.ca else ""
    return f"""
Devices elsewhere may join:

  Addresses   {"  ".join(running.public_urls)}{own}

  {_starai()} tokens create{here}        then, on the device: starai join TOKEN
"""


def _starai() -> str:
    """The command as this person can type it: `make up` runs one that is not on PATH."""
    given = Path(sys.argv[0])
    if given.name != "starai" or not given.exists() or shutil.which("starai") == str(given):
        return "starai"
    return _here(str(given))


def _here(path: str) -> str:
    """A path as it is good in this folder: relative when that is shorter."""
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative


async def _show_life(running: Running, progress: Status | None) -> None:
    """One line, kept current: nodes, requests, speed."""
    seen: deque[int] = deque(maxlen=2 * SPEED_WINDOW_S)
    if progress is not None:
        progress.start()
    while True:
        await anyio.sleep(0.5)
        asked = running.operator
        asked.forget_silent(BEAT_LEASE_S)
        if progress is None:
            continue
        nodes, gateways = asked.beats(Role.NODE), asked.beats(Role.GATEWAY)
        seen.append(sum(beat.tokens for beat in nodes))
        speed = max(0, seen[-1] - seen[0]) / max(1, len(seen) - 1) * 2
        several = "".join(
            f"{number} {role.value}s · "
            for role in (Role.GATEWAY, Role.DISTRIBUTOR)
            if (number := len(asked.beats(role))) > 1
        )
        progress.update(
            f"{several}{len(nodes)} node(s) · {sum(beat.running for beat in gateways)} running, "
            f"{sum(beat.done for beat in gateways)} answered · {speed:.0f} tokens/s"
        )
