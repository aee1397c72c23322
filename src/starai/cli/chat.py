"""`starai chat`: one question from the command line, the answer as it comes."""

from __future__ import annotations

import click

from starai.cli.options import home_option
from starai.client import Client
from starai.core.errors import ConfigurationRefused
from starai.local.home import ClientFile, Home


@click.command()
@home_option
@click.argument("question")
@click.option("--model", default=None, help="Which model; the first one served if not given.")
@click.option("--system", default=None, help="What the model is told before the question.")
@click.option("--temperature", default=None, type=float, help="0 is always the same answer.")
@click.option("--max-tokens", default=None, type=int, help="The longest answer, in tokens.")
@click.option("--seed", default=None, type=int, help="The same seed gives the same answer.")
@click.option("--url", envvar="STARAI_BASE_URL", default=None, help="Another gateway's /v1 URL.")
@click.option("--api-key", envvar="STARAI_API_KEY", default=None, help="The key for --url.")
def chat(
    home: Home,
    question: str,
    *,
    system: str | None,
    url: str | None,
    api_key: str | None,
    **wanted: object,
) -> None:
    """Ask QUESTION and print the answer as it comes."""
    if url is None and api_key is not None:
        raise ConfigurationRefused("--api-key needs --url: which gateway is it for?")
    target = ClientFile(url, api_key or "") if url is not None else home.client()
    messages = [{"role": "user", "content": question}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    fields = {name: value for name, value in wanted.items() if value is not None}
    with Client(target.base_url, target.api_key or None) as client:
        for piece in client.chat(messages, stream=True, **fields):
            click.echo(piece, nl=False)
    click.echo()
