"""How sensors look: small files and short programs, both bounded, neither ever an error."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Final

#: Files of /proc and /sys are small; /proc/stat of 1,024 cores has 80 KB.
_BYTES_MAX: Final = 1 << 20
#: A program that takes longer tells nothing that is still true.
_PROGRAM_S: Final = 3.0


def read_text(path: Path) -> str:
    """A small text file; empty when it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(_BYTES_MAX).decode("utf-8", "replace")
    except OSError:
        return ""


def has(program: str) -> bool:
    """Whether a program is installed."""
    return shutil.which(program) is not None


def output_of(*command: str) -> str:
    """What a short program prints; empty when it is missing, fails or takes too long."""
    try:
        done = subprocess.run(  # noqa: S603 - fixed words
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_PROGRAM_S,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout[:_BYTES_MAX].decode("utf-8", "replace") if done.returncode == 0 else ""
