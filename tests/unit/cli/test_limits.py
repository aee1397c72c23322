"""What a device's owner allows, as it is typed."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from starai.cli.options import yielding_options
from starai.node.yielding import Limits
from starai.node.yielding.hours import Hours


def limits_of(*arguments: str, env: dict[str, str] | None = None) -> Limits:
    seen: list[Limits] = []

    @click.command()
    @yielding_options
    def command(limits: Limits) -> None:
        seen.append(limits)

    done = CliRunner().invoke(command, arguments, env={"STARAI_POLITE": None, **(env or {})})
    assert done.exit_code == 0, done.output
    return seen[0]


def test_a_node_is_polite_unless_told_otherwise():
    """Without options it gives way and has no caps; an option or the environment says otherwise."""
    assert limits_of() == Limits()
    assert not limits_of("--no-polite").polite
    assert not limits_of(env={"STARAI_POLITE": "0"}).polite
    assert limits_of("--polite", env={"STARAI_POLITE": "0"}).polite


def test_caps_are_read_with_their_units():
    """Sizes with binary units, cores, watts, hours."""
    read = limits_of(
        *("--max-memory", "6GiB", "--max-cores", "4", "--max-gpu-memory", "1.5G"),
        *("--max-power", "250", "--hours", "22:00-07:00", "--on-battery"),
    )
    assert read == Limits(
        max_memory_bytes=6 << 30,
        max_cores=4,
        max_gpu_bytes=3 << 29,
        max_power_w=250.0,
        hours=Hours(((22 * 60, 7 * 60),)),
        on_battery=True,
    )
    assert limits_of("--max-memory", "1000").max_memory_bytes == 1000


@pytest.mark.parametrize(
    "arguments", [("--max-memory", "lots"), ("--hours", "at night"), ("--max-cores", "-1")]
)
def test_nonsense_is_refused_with_an_example(arguments):
    """A usage error, not a traceback."""

    @click.command()
    @yielding_options
    def command(limits: Limits) -> None:
        raise AssertionError(limits)

    done = CliRunner().invoke(command, arguments)
    assert done.exit_code == 2
