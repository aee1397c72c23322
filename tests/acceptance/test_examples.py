"""Every example runs as it stands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.acceptance.conftest import Up

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
#: Example -> a word that its output must have, or a sign of life where the model is free.
EXPECTED = {
    "books_alone.py": "agrees",
    "engine_alone.py": "",
    "network_in_a_program.py": "",
    "openai_streaming.py": "tokens)",
}


def test_every_example_is_run_here() -> None:
    """A new example must be added to this test."""
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_an_example_runs(tiny: Up, name: str) -> None:
    """It ends well and says something."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name)],
        env={**os.environ, "STARAI_HOME": str(tiny.home)},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stdout.split()) > 3
    assert EXPECTED[name] in done.stdout
