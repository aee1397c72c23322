"""macOS: a launch agent (launchd.plist(5))."""

from __future__ import annotations

import os
import plistlib
import sys
from pathlib import Path

from starai.local.units.base import Unit


class Launchd:
    """Runs a node as a user's agent."""

    def path(self, unit: Unit) -> Path:
        """Where launchd looks for a user's agents."""
        return Path.home() / "Library/LaunchAgents" / f"{_label(unit)}.plist"

    def render(self, unit: Unit) -> str:
        """The property list."""
        return plistlib.dumps(
            {
                "Label": _label(unit),
                "ProgramArguments": list(unit.command),
                "RunAtLoad": True,
                # Who leaves by `starai node leave` stays out; who crashes tries again.
                "KeepAlive": {"SuccessfulExit": False},
                "ThrottleInterval": 10,
                "ExitTimeOut": 40,
                "ProcessType": "Background",
                "LowPriorityIO": True,
                "StandardOutPath": str(unit.log),
                "StandardErrorPath": str(unit.log),
            }
        ).decode()

    def encoding(self) -> str:
        """As launchd reads it."""
        return "utf-8"

    def start(self, unit: Unit) -> tuple[tuple[str, ...], ...]:
        """Load it into the user's session."""
        return (("launchctl", "bootstrap", _session(), str(self.path(unit))),)

    def stop(self, unit: Unit) -> tuple[tuple[str, ...], ...]:
        """Take it out of the user's session."""
        return (("launchctl", "bootout", f"{_session()}/{_label(unit)}"),)

    def hint(self, unit: Unit) -> str:
        """Where its log is."""
        return f"Its log: {unit.log}. It runs while you are logged in."


def _label(unit: Unit) -> str:
    return f"starai.{unit.name}"


def _session() -> str:
    return f"gui/{os.getuid()}" if sys.platform != "win32" else "gui"
