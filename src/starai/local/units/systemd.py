"""Linux: a systemd user unit (systemd.service(5))."""

from __future__ import annotations

from pathlib import Path

from starai.local.units.base import Unit


class Systemd:
    """Runs a node as a user's own service."""

    def path(self, unit: Unit) -> Path:
        """Where systemd looks for a user's units."""
        return Path.home() / ".config/systemd/user" / _file(unit)

    def render(self, unit: Unit) -> str:
        """The unit file."""
        return f"""\
[Unit]
Description=StarAI node {_plain(unit.name)}
# A network that is away for a night is no reason to give up.
StartLimitIntervalSec=0

[Service]
Type=exec
ExecStart={" ".join(map(_quoted, unit.command))}
# Who leaves by `starai node leave` stays out; who crashes or is refused tries again.
Restart=on-failure
RestartSec=10
TimeoutStopSec=40
Nice=10
NoNewPrivileges=yes

[Install]
WantedBy=default.target
"""

    def encoding(self) -> str:
        """As systemd reads it."""
        return "utf-8"

    def start(self, unit: Unit) -> tuple[tuple[str, ...], ...]:
        """Take note, and start now and at each login."""
        tool = ("systemctl", "--user")
        return (*tool, "daemon-reload"), (*tool, "enable", "--now", _file(unit))

    def stop(self, unit: Unit) -> tuple[tuple[str, ...], ...]:
        """Stop, and do not start again."""
        return (("systemctl", "--user", "disable", "--now", _file(unit)),)

    def hint(self, unit: Unit) -> str:
        """Where its log is, and how it survives the logout."""
        return (
            f"Its log: journalctl --user -u {_file(unit)}. It runs while you are logged in; "
            "`loginctl enable-linger` lets it run from the start of the machine on."
        )


def _file(unit: Unit) -> str:
    return f"starai-{unit.name}.service"


def _plain(text: str) -> str:
    return text.replace("%", "%%")


def _quoted(word: str) -> str:
    """One argument as systemd takes it: quoted, with its specifiers and variables switched off."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"'
