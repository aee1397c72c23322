"""The command tree. Each command's module is imported when it is used, so that help is instant."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any

import click

from starai import __version__
from starai.core.collecting import lasting
from starai.core.errors import StarAIError

#: Command -> (module, attribute, one line of help). Groups bring their own commands.
COMMANDS: dict[str, tuple[str, str]] = {
    "up": ("starai.cli.up", "up"),
    "join": ("starai.cli.join", "join"),
    "doctor": ("starai.cli.doctor", "doctor"),
    "chat": ("starai.cli.chat", "chat"),
    "status": ("starai.cli.show", "status"),
    "nodes": ("starai.cli.show", "nodes"),
    "models": ("starai.cli.models", "models"),
    "tasks": ("starai.cli.show", "tasks"),
    "ledger": ("starai.cli.ledger", "ledger"),
    "disputes": ("starai.cli.disputes", "disputes"),
    "earnings": ("starai.cli.earnings", "earnings"),
    "customers": ("starai.cli.customers", "customers"),
    "prices": ("starai.cli.customers", "prices"),
    "balance": ("starai.cli.customers", "balance"),
    "settle": ("starai.cli.settle", "settle"),
    "keys": ("starai.cli.admin", "keys"),
    "tokens": ("starai.cli.admin", "tokens"),
    "node": ("starai.cli.node", "node"),
    "engine": ("starai.cli.engine", "engine"),
    "simulate": ("starai.cli.simulate", "simulate"),
    "serve": ("starai.cli.serve", "serve"),
}


class _Lazy(click.Group):
    """A group that imports a command only when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name in COMMANDS if name != "serve"]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute = COMMANDS[cmd_name]
        with lasting():
            command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BaseExceptionGroup as group:
            error = _lone(group)
            if error is None:
                raise
            raise _Told(error) from group
        except StarAIError as error:
            raise _Told(error) from error


class _Told(click.ClickException):
    """An error of ours, as a person reads it: no traceback, exit status 1."""

    def __init__(self, error: StarAIError) -> None:
        super().__init__(f"{error.message} [{error.code}]")


def _lone(group: BaseExceptionGroup[BaseException]) -> StarAIError | None:
    """The one error of ours in nested groups, if that is all there is."""
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup) and len(found.exceptions) == 1:
        found = found.exceptions[0]
    return found if isinstance(found, StarAIError) else None


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="starai")
def cli() -> None:
    """One OpenAI-compatible AI service made of the devices that people already own.

    Begin with `starai up`: it starts a whole network on this machine and prints what to do next.
    Then, in a second terminal: `starai chat "Hello"`.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    sys.exit(cli.main(args=list(arguments) if arguments is not None else None))
