"""The directive ``click-tree``: a reference of a click program, made from the program itself.

Knows nothing of StarAI: its argument is ``module:attribute``.
"""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING, Any, ClassVar

import click
from docutils.parsers.rst import directives
from sphinx.util.docutils import SphinxDirective

if TYPE_CHECKING:
    from collections.abc import Iterator

    from docutils import nodes
    from sphinx.application import Sphinx


def _options(command: click.Command, context: click.Context) -> Iterator[str]:
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None and record[1] and "--help" not in parameter.opts:
            shown = getattr(parameter, "show_envvar", False) or not parameter.envvar
            variable = "" if shown else f" [env var: {parameter.envvar}]"
            yield f"`{record[0]}`\n: {record[1]}{variable}\n"


def _paragraphs(text: str) -> Iterator[str]:
    # click marks a paragraph that keeps its line breaks with a backspace on a line of its own.
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        mark, _, rest = paragraph.partition("\n")
        yield (
            f"```\n{inspect.cleandoc(rest)}\n```\n" if mark.strip(" ") == "\b" else f"{paragraph}\n"
        )


def describe(command: click.Command, context: click.Context, level: int) -> Iterator[str]:
    """Markdown of a command and, below it, of each of its commands."""
    yield f"{'#' * level} {context.command_path}\n"
    yield from _paragraphs(command.help or "")
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    yield f"```\n{usage}\n```\n"
    yield from _options(command, context)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            if child is not None and not child.hidden:
                inner = click.Context(child, info_name=name, parent=context)
                yield from describe(child, inner, level + 1)


class ClickTree(SphinxDirective):
    """``click-tree``: every command, its options and their help."""

    required_arguments: ClassVar[int] = 1
    option_spec: ClassVar[dict[str, Any]] = {"prog": directives.unchanged_required}

    def run(self) -> list[nodes.Node]:
        """Import the program and describe it."""
        module, _, attribute = self.arguments[0].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        context = click.Context(command, info_name=self.options["prog"], **command.context_settings)
        text = "\n".join(describe(command, context, 2))
        return self.parse_text_to_nodes(text, allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("click-tree", ClickTree)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
