"""Windows: a scheduled task that starts at logon (Task Scheduler's XML schema, version 1.2)."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final
from xml.etree.ElementTree import Element, SubElement, tostring

from starai.local.units.base import Unit

_SCHEMA: Final = "http://schemas.microsoft.com/windows/2004/02/mit/task"
_SETTINGS: Final = {
    "MultipleInstancesPolicy": "IgnoreNew",
    # The node itself watches the battery, and the owner can say otherwise.
    "DisallowStartIfOnBatteries": "false",
    "StopIfGoingOnBatteries": "false",
    "AllowHardTerminate": "true",
    "StartWhenAvailable": "true",
    "RunOnlyIfNetworkAvailable": "false",
    "ExecutionTimeLimit": "PT0S",
    "Priority": "7",
}


class Schtasks:
    """Runs a node as a task of the user who is logged on."""

    def path(self, unit: Unit) -> Path:
        """Where the file is kept; the scheduler has a copy of its own."""
        return Path.home() / ".starai" / "units" / f"{unit.name}.xml"

    def render(self, unit: Unit) -> str:
        """The task's XML."""
        task = Element("Task", version="1.2", xmlns=_SCHEMA)
        _leaf(SubElement(task, "RegistrationInfo"), "Description", f"StarAI node {unit.name}")
        _leaf(SubElement(SubElement(task, "Triggers"), "LogonTrigger"), "Enabled", "true")
        principal = SubElement(SubElement(task, "Principals"), "Principal", id="Author")
        _leaf(principal, "LogonType", "InteractiveToken")
        _leaf(principal, "RunLevel", "LeastPrivilege")
        settings = SubElement(task, "Settings")
        for name, value in _SETTINGS.items():
            _leaf(settings, name, value)
        again = SubElement(settings, "RestartOnFailure")
        _leaf(again, "Interval", "PT1M")
        _leaf(again, "Count", "999")
        action = SubElement(SubElement(task, "Actions", Context="Author"), "Exec")
        program, *arguments = unit.command
        _leaf(action, "Command", program)
        _leaf(action, "Arguments", subprocess.list2cmdline(arguments))
        text = tostring(task, encoding="unicode")
        return f'<?xml version="1.0" encoding="UTF-16"?>\n{text}\n'

    def encoding(self) -> str:
        """As the scheduler reads it, with a byte order mark."""
        return "utf-16"

    def start(self, unit: Unit) -> tuple[tuple[str, ...], ...]:
        """Make the task, and start it now."""
        name = ("/TN", f"StarAI\\{unit.name}")
        return (
            ("schtasks", "/Create", *name, "/XML", str(self.path(unit)), "/F"),
            ("schtasks", "/Run", *name),
        )

    def stop(self, unit: Unit) -> tuple[tuple[str, ...], ...]:
        """End it and remove the task."""
        name = ("/TN", f"StarAI\\{unit.name}")
        return ("schtasks", "/End", *name), ("schtasks", "/Delete", *name, "/F")

    def hint(self, unit: Unit) -> str:
        """Where to look at it."""
        return f"Task Scheduler shows it as StarAI\\{unit.name}. It runs while you are logged on."


def _leaf(parent: Element, name: str, text: str) -> None:
    SubElement(parent, name).text = text
