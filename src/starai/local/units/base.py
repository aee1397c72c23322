"""What a background service is, whatever starts it, and how one is put in place and removed."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from starai.core.errors import ConfigurationRefused

#: A system's own tool answers soon, or something is wrong with the system.
TOOL_S = 60.0


@dataclass(frozen=True)
class Unit:
    """A node to run: ``command`` in full, logging to ``log``; no secret is in either."""

    name: str
    command: tuple[str, ...]
    log: Path


class Kind(Protocol):
    """One system's way to run something in the background."""

    def path(self, unit: Unit) -> Path:
        """Where the system looks for the unit's file."""
        ...

    def render(self, unit: Unit) -> str:
        """The unit's file."""
        ...

    def encoding(self) -> str:
        """How that file is encoded."""
        ...

    def start(self, unit: Unit) -> tuple[tuple[str, ...], ...]:
        """The commands that make the system take note of the file and start the unit."""
        ...

    def stop(self, unit: Unit) -> tuple[tuple[str, ...], ...]:
        """The commands that stop the unit and make the system forget it."""
        ...

    def hint(self, unit: Unit) -> str:
        """What a person may want to know: how to look at it, and what it does not do."""
        ...


Run = Callable[[Sequence[str]], None]


def run_tool(command: Sequence[str]) -> None:
    """Run one of the system's own tools.

    Raises:
        ConfigurationRefused: it is not there, or says no.
    """
    try:
        done = subprocess.run(  # noqa: S603 - fixed words and paths of ours
            list(command), capture_output=True, text=True, timeout=TOOL_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigurationRefused(
            f"cannot run {command[0]} here; `starai node install-service --print` shows the file, "
            "for you to install in your own way"
        ) from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise ConfigurationRefused(
            f"`{' '.join(command)}` failed: {said[-1] if said else f'status {done.returncode}'}"
        )


def install(kind: Kind, unit: Unit, run: Run = run_tool) -> Path:
    """Write the unit's file and start it; where it is.

    Raises:
        ConfigurationRefused: the file cannot be written, or the system does not take it.
    """
    path = kind.path(unit)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(kind.render(unit), kind.encoding())
    except OSError as error:
        raise ConfigurationRefused(f"cannot write {path}: {error.strerror}") from error
    for command in kind.start(unit):
        run(command)
    return path


def uninstall(kind: Kind, unit: Unit, run: Run = run_tool) -> Path:
    """Stop the unit and remove its file; where that was.

    Raises:
        ConfigurationRefused: it is not installed, or the system does not let it go.
    """
    path = kind.path(unit)
    if not path.exists():
        raise ConfigurationRefused(f"{unit.name} is not installed here: there is no {path}")
    for command in kind.stop(unit):
        run(command)
    path.unlink(missing_ok=True)
    return path
