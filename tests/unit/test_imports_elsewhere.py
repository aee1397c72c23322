"""StarAI imports on Windows and macOS: nothing that only Linux or POSIX has is taken for granted.

Nobody here has such a machine, so their absences are made: the modules cannot be imported, the
names are taken out of `os` and `signal`, and ``sys.platform`` says so.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parents[2] / "src"
#: What Windows' Python lacks.
POSIX_MODULES = ("fcntl", "grp", "pwd", "resource", "termios", "tty", "pty", "syslog", "uvloop")
POSIX_SIGNALS = ("SIGKILL", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGSTOP", "SIGCONT", "SIGALRM")
POSIX_OS = (
    "fork",
    "getuid",
    "geteuid",
    "killpg",
    "setsid",
    "uname",
    "getloadavg",
    "nice",
    "getpgid",
)
POSIX_OS += (
    "sched_getaffinity",
    "sched_setaffinity",
    "posix_fadvise",
    "statvfs",
    "mkfifo",
    "wait4",
)
#: What only Linux has.
LINUX_OS = ("sched_getaffinity", "sched_setaffinity", "posix_fadvise", "memfd_create", "eventfd")

PROGRAM = """
import asyncio, ctypes, importlib, logging.handlers, multiprocessing, os, pathlib, signal, socket
import ssl, subprocess, sys, tempfile, types, zipfile
import anyio._backends._asyncio, anyio.to_process, apsw, click, cryptography.x509, httpx, jinja2
import msgspec, nacl.signing, numpy, psycopg, rich.console, rich.table, sentencepiece, tokenizers
import uvicorn, eth_account, eth_tester, web3

platform, modules, signals, names = sys.argv[1], *(a.split(",") for a in sys.argv[2:5])
for name in modules:
    sys.modules[name] = None  # an import of it raises ImportError
for name in signals:
    if hasattr(signal, name):
        delattr(signal, name)
for name in names:
    if hasattr(os, name):
        delattr(os, name)
if platform == "win32":
    sys.modules["msvcrt"] = types.ModuleType("msvcrt")
sys.platform = platform
for name in sys.argv[5:]:
    importlib.import_module(name)
"""


def modules() -> list[str]:
    """Every module of ours but those that need torch, or trio, which looks at the system itself."""
    found = []
    for path in sorted((SRC / "starai").rglob("*.py")):
        parts = path.relative_to(SRC).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        left_out = name == "starai.simulation.services" or any(
            f".engines.{room}" in name for room in ("text", "linear", "native", "star")
        )
        if not left_out and not name.endswith("__main__"):
            found.append(name)
    return found


@pytest.mark.parametrize("platform", ["win32", "darwin"])
def test_every_module_is_imported_there(platform: str) -> None:
    """With what the other system lacks taken away, each module still loads."""
    missing = {
        "win32": (POSIX_MODULES, POSIX_SIGNALS, POSIX_OS),
        "darwin": (("nothing",), ("SIGPWR",), LINUX_OS),
    }[platform]
    lists = [",".join(names) for names in missing]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, platform, *lists, *modules()],
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def posix_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and text of each name of `os` and `signal` that Windows lacks."""
    lacking = {f"signal.{name}" for name in POSIX_SIGNALS} | {f"os.{name}" for name in POSIX_OS}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            used = f"{node.value.id}.{node.attr}"
            if used in lacking:
                yield node.lineno, used


def test_posix_names_are_used_behind_a_look_at_the_system() -> None:
    """`signal.SIGKILL`, `os.getuid` and their like stand only where the file asks which system."""
    found = []
    for name in modules():
        path = SRC / Path(*name.split("."))
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        text = file.read_text("utf-8")
        if not any(word in text for word in ("sys.platform", "os.name", "hasattr(", "getattr(")):
            found += [f"{name}:{line} {used}" for line, used in posix_names(ast.parse(text))]
    assert found == []
