"""What is committed of the contracts is what their source compiles to."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from starai.settlement.contract import play_token, vault

ROOT = Path(__file__).resolve().parents[3]
#: EIP-170.
CODE_BYTES_MAX = 24_576


def test_the_artefacts_are_those_of_the_sources() -> None:
    """Compiled anew, every contract gives the bytes that are committed."""
    pytest.importorskip("vyper", reason="the compiler (group chain) is not installed")
    done = subprocess.run(
        [sys.executable, ROOT / "requirements/contracts.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_vault_fits_into_a_contract() -> None:
    """Chains refuse contracts of more than 24 KiB."""
    for artefact in (vault(), play_token()):
        assert artefact.compiler == "vyper 0.4.3"
        assert len(bytes.fromhex(artefact.bytecode[2:])) < CODE_BYTES_MAX
