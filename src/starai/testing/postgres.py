"""A PostgreSQL server of one's own for a while: in a passing folder, reached by a local socket.

Knows nothing of what is stored there.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import quote

#: Who runs the server if we are root, which it refuses to be: the first of these that exists.
_USERS: Final = ("postgres", "nobody")
_READY_S: Final = 30.0
_LOOK_S: Final = 0.05


def find_binaries() -> Path | None:
    """The folder of the server's programs: on PATH, or where distributions keep the newest."""
    found = shutil.which("postgres")
    kept = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    folders = [Path(found).resolve().parent] if found else [path.parent for path in kept[-1:]]
    return next((one for one in folders if (one / "initdb").exists()), None)


@contextmanager
def passing_server(binaries: Path, under: Path | None = None) -> Iterator[str]:
    """Run a server, durable as any; the URL of an empty database in it.

    Args:
        binaries: the folder of its programs.
        under: where its own folder is made, if not where passing files go.

    Raises:
        subprocess.CalledProcessError: it could not be set up.
        TimeoutError: it did not come up.
    """
    user = _unprivileged()
    # A short name: a socket's path is bounded.
    folder = Path(tempfile.mkdtemp(prefix="starai-postgres-", dir=under))
    try:
        if user is not None:
            shutil.chown(folder, user)
        data = folder / "data"
        initdb = (binaries / "initdb", "-D", data, "-U", "starai", "-A", "trust", "-E", "UTF8")
        subprocess.run(  # noqa: S603 - of this machine
            [*initdb, "--no-sync"], check=True, capture_output=True, user=user, cwd=folder
        )
        options = ("-D", data, "-k", folder, "-c", "listen_addresses=", "-c", "max_connections=40")
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(  # noqa: S603 - of this machine
                [binaries / "postgres", *options], stderr=log, user=user, cwd=folder
            )
        try:
            _wait(binaries, folder, server)
            yield f"postgresql://starai@/postgres?host={quote(str(folder), safe='')}"
        finally:
            # At once, and without tidying: nothing of it is kept.
            server.send_signal(signal.SIGQUIT)
            server.wait(timeout=_READY_S)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _unprivileged() -> str | None:
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return None
    import pwd  # noqa: PLC0415 - only where there is root

    known = {one.pw_name for one in pwd.getpwall()}
    return next(name for name in _USERS if name in known)


def _wait(binaries: Path, folder: Path, server: subprocess.Popen[bytes]) -> None:
    ask = (binaries / "psql", "-h", folder, "-U", "starai", "-c", "SELECT 1", "postgres")
    for _ in range(int(_READY_S / _LOOK_S)):
        asked = subprocess.run(ask, check=False, capture_output=True)  # noqa: S603 - of this machine
        if asked.returncode == 0:
            return
        if server.poll() is not None:
            break
        time.sleep(_LOOK_S)
    raise TimeoutError((folder / "log").read_text("utf-8", "replace"))
