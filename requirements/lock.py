"""Write requirements/lock.txt: the exact version of everything, transitive packages included.

Run ``make lock`` after a change of the dependencies in pyproject.toml. A fresh environment and
``pip install --dry-run --report`` resolve the package, its extras and its dependency groups
together; nothing that happens to be installed already influences the answer. The result is a
constraints file: it says which version, never what to install, so one file serves every set-up.

Knows nothing of package indexes: pip's own configuration says where packages come from.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements" / "lock.txt"
#: The installer is locked too: dependency groups need pip 25.1 or newer.
PIP = "pip==26.3"
#: Held back by hand, each with its reason.
HELD = (
    "torch==2.13.0",  # the newest with a CPU-only build: 190 MB instead of 3 GB of CUDA libraries
)
#: What builds the package itself; its isolated environment is constrained by the lock as well.
BUILD = ("hatchling", "editables")
GROUPS = ("dev", "docs")


def resolve() -> dict[str, str]:
    """Every package's name and version, as a fresh environment would get them."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder) / "bin" / "python"
        subprocess.run([python, "-m", "pip", "install", "-qq", PIP], check=True)
        report = Path(folder) / "report.json"
        groups = [part for name in GROUPS for part in ("--group", f"{ROOT}/pyproject.toml:{name}")]
        dry_run = [python, "-m", "pip", "install", "-qq", "--dry-run", "--report", report]
        subprocess.run([*dry_run, f"{ROOT}[engine]", *HELD, *BUILD, *groups], check=True)
        found = json.loads(report.read_text())["install"]
    versions = {item["metadata"]["name"]: item["metadata"]["version"] for item in found}
    versions.pop("starai")
    return {name.lower(): version.partition("+")[0] for name, version in versions.items()}


def main() -> None:
    """Resolve and write the file."""
    versions = resolve()
    head = (
        "# Written by requirements/lock.py (make lock): do not edit by hand.\n"
        f"# Resolved with Python {platform.python_version()} on {sys.platform}; "
        "other systems may add packages of their own.\n"
    )
    lines = [f"{name}=={versions[name]}" for name in sorted(versions)]
    LOCK.write_text(head + "\n".join([PIP, *lines]) + "\n")
    print(f"{LOCK.relative_to(ROOT)}: {len(lines) + 1} packages")


if __name__ == "__main__":
    main()
