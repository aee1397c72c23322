"""Running in the background from login on, by what each system has for that; no root anywhere."""

from __future__ import annotations

import sys

from starai.local.units.base import Kind, Unit, install, uninstall
from starai.local.units.launchd import Launchd
from starai.local.units.schtasks import Schtasks
from starai.local.units.systemd import Systemd

__all__ = ["KINDS", "Kind", "Unit", "install", "kind_here", "uninstall"]

#: Every system's own way, by its name.
KINDS: dict[str, Kind] = {"systemd": Systemd(), "launchd": Launchd(), "schtasks": Schtasks()}


def kind_here() -> str:
    """The name of this system's way."""
    return {"darwin": "launchd", "win32": "schtasks"}.get(sys.platform, "systemd")
