"""Nothing that only Unix has is imported, or asked for at import, outside a branch for it."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest

from starai.cli import engine

SOURCES = Path(__file__).parents[3] / "src" / "starai"
UNIX = {"fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty"}


def _imported(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name.partition(".")[0] for alias in node.names}
    return {(node.module or "").partition(".")[0]} if isinstance(node, ast.ImportFrom) else set()


def test_modules_import_on_every_system() -> None:
    """A module of Unix is imported below an ``if``, which is where ``sys.platform`` is asked."""
    found = [
        f"{path.relative_to(SOURCES)}:{node.lineno}"
        for path in sorted(SOURCES.rglob("*.py"))
        for node in ast.parse(path.read_text("utf-8")).body
        if _imported(node) & UNIX
    ]
    assert found == []


def test_a_system_without_a_load_average_is_measured_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """`starai engine bench` runs on Windows, which knows no such number."""
    monkeypatch.delattr(os, "getloadavg", raising=False)
    assert engine._load() == 0.0
