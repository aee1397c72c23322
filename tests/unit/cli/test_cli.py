"""The command line: every command explains itself, errors are one line, JSON is JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from starai.cli.main import COMMANDS, cli
from starai.cli.tables import clock_time, show_table
from starai.local.home import Home


def commands(group: click.Command, *path: str) -> Iterator[tuple[str, ...]]:
    """The path of every command, hidden ones included."""
    yield path
    if isinstance(group, click.Group):
        names = COMMANDS if group is cli else group.commands
        for name in names:
            command = group.get_command(click.Context(group), name)
            assert command is not None
            yield from commands(command, *path, name)


ALL = sorted(commands(cli))


def run(*arguments: str, home: Path | None = None) -> Result:
    where = ("--home", str(home)) if home is not None else ()
    return CliRunner().invoke(cli, [*arguments, *where])


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_command_explains_itself(path: tuple[str, ...]) -> None:
    """`--help` exits 0 with a sentence, and every option that is shown says what it is for."""
    done = run(*path, "--help")
    assert done.exit_code == 0
    assert done.output.startswith("Usage: ")
    assert run(*path, "-h").output == done.output
    command: click.Command = cli
    for name in path:
        assert isinstance(command, click.Group)
        found = command.get_command(click.Context(command), name)
        assert found is not None
        command = found
    assert command.help
    assert "\\b" not in done.output
    for option in command.params:
        if isinstance(option, click.Option) and not option.hidden:
            assert option.help, f"{option.opts} of {path} has no help"


def test_the_first_words_say_where_to_begin() -> None:
    """`starai` alone names the first command; the operators' `serve` is not in the list."""
    done = run("--help")
    assert "starai up" in done.output
    assert "\n  serve" not in done.output


@pytest.mark.parametrize(
    "arguments",
    [
        ("status",),
        ("nodes", "--json"),
        ("tasks",),
        ("ledger", "show"),
        ("ledger", "check"),
        ("ledger", "checkpoint"),
        ("ledger", "proof", "00"),
        ("ledger", "consistency", "1", "2"),
        ("keys", "create", "me"),
        ("keys", "list"),
        ("keys", "revoke", "x"),
        ("keys", "budget", "x", "1"),
        ("customers", "list"),
        ("customers", "deposit", "x", "1"),
        ("prices", "set", "*", "1", "2"),
        ("balance",),
        ("earnings", "--why", "x"),
        ("node", "payout", "0x" + "1" * 40),
        ("tokens", "create"),
        ("tokens", "list"),
        ("node", "drain"),
        ("node", "resume"),
        ("chat", "hello"),
        ("serve", "registry"),
        ("serve", "gateway"),
        ("serve", "distributor"),
    ],
    ids=" ".join,
)
def test_without_a_network_every_command_says_so_in_one_line(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    """Exit status 1, one line with what to do and the error's code, and no traceback."""
    done = run(*arguments, home=tmp_path)
    assert done.exit_code == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: ")
    assert line.endswith("]")


@pytest.mark.parametrize(
    "arguments",
    [
        ("up", "--nodes", "0"),
        ("up", "--port", "0"),
        ("up", "--slots", "-1"),
        ("up", "--threads", "-1"),
        ("node", "start", "--slots", "0"),
        ("tasks", "--limit", "0"),
        ("tokens", "create", "--uses", "0"),
        ("tokens", "create", "--for", "0h"),
        ("tokens", "create", "--for", "forever"),
        ("join", "nats://a", "nats://b"),
        ("join", "sat_a", "sat_b"),
        ("tokens", "create", "--role", "operator"),
        ("keys", "create", "me", "--tokens-per-minute", "-1"),
        ("nonsense",),
    ],
    ids=" ".join,
)
def test_an_impossible_option_is_refused_before_anything_happens(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    """Exit status 2 and the option's name; nothing is made in the home folder."""
    done = run(*arguments)
    assert done.exit_code == 2
    assert "Error: " in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_node_without_a_token_is_told_how_to_get_one(tmp_path: Path) -> None:
    """The message names the option and the command that makes a token."""
    done = run("node", "start", "--model", "mock", home=tmp_path)
    assert done.exit_code == 1
    assert "--token" in done.stderr
    assert "starai tokens create" in done.stderr


def test_a_damaged_token_is_not_repeated(tmp_path: Path) -> None:
    """A token is like a password: an error does not quote it."""
    done = run("node", "start", "--model", "mock", "--token", "sat_c2VjcmV0", home=tmp_path)
    assert done.exit_code == 1
    assert "c2VjcmV0" not in done.output


def test_a_key_for_no_gateway_is_refused(tmp_path: Path) -> None:
    """`--api-key` without `--url` would send the key somewhere else."""
    done = run("chat", "hi", "--api-key", "sk-starai-x", home=tmp_path)
    assert done.exit_code == 1
    assert "--url" in done.stderr
    assert "sk-starai-x" not in done.output


def test_the_models_on_disk_are_listed_without_a_network(tmp_path: Path) -> None:
    """As JSON that parses, and as a table with the same names."""
    done = run("models", "--json", home=tmp_path)
    assert done.exit_code == 0
    listed = json.loads(done.stdout)
    assert [model["served"] for model in listed] == ["-"]
    assert listed[0]["name"] in run("models", home=tmp_path).stdout


def test_a_folder_that_is_no_model_is_said_on_stderr_only(tmp_path: Path) -> None:
    """The list stays good JSON beside a broken download."""
    (Home(tmp_path).models / "org" / "broken").mkdir(parents=True)
    done = run("models", "--json", home=tmp_path)
    assert done.exit_code == 0
    assert len(json.loads(done.stdout)) == 1
    assert "org/broken" in done.stderr


def test_the_version_is_told() -> None:
    """`starai --version` is one line."""
    done = run("--version")
    assert done.exit_code == 0
    assert done.output.startswith("starai")


def test_what_others_call_themselves_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    """A node's label is no markup and commands no terminal."""
    show_table("T", ("name",), [("[/red]x",), ("a\x1b[31mb\r",)], "none")
    shown = capsys.readouterr().out
    assert "[/red]x" in shown
    assert "\x1b" not in shown
    assert "a?[31mb?" in shown


def test_an_empty_table_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    """Instead of an empty frame: what to do."""
    show_table("T", ("name",), [], "None yet. Try: this")
    assert capsys.readouterr().out == "None yet. Try: this\n"


def test_every_time_that_a_beat_can_hold_can_be_shown() -> None:
    """The latest moment that is decoded has a time of day."""
    assert len(clock_time(1 << 47)) == len("00:00:00")
