"""`starai settle`: it teaches, and says what is wrong before anything is sent."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from click.testing import CliRunner

from starai.cli.main import cli

NEEDS_WEB3 = pytest.mark.skipif(
    find_spec("web3") is None, reason="web3 (starai[chain]) is not installed"
)
CHAIN = ["--rpc", "http://127.0.0.1:1", "--vault", "1:0x" + "11" * 20]


def settle(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli, ["settle", *arguments])
    return done.exit_code, done.output


def test_alone_it_explains_itself() -> None:
    """Without a command it says where to begin and in what order to go on."""
    code, output = settle()
    assert code == 0
    assert "Begin with `starai settle --demo`" in output
    assert "starai settle watch    deposits become balances" in output


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    """Nothing is asked of any chain before the key is found to be one's own."""
    key = tmp_path / "poster.key"
    key.write_text("ab" * 32)
    key.chmod(0o644)
    code, output = settle("post", *CHAIN, "--key", str(key), "--home", str(tmp_path))
    assert code == 1
    assert "chmod 600" in output


@NEEDS_WEB3
def test_a_chain_that_is_not_there_is_told(tmp_path: Path) -> None:
    """Our own words and a code, no traceback."""
    code, output = settle("status", *CHAIN, "--home", str(tmp_path))
    assert code == 1
    assert "the chain does not answer" in output
    assert "[service_unavailable]" in output


@NEEDS_WEB3
def test_an_address_that_is_none_is_told(tmp_path: Path) -> None:
    """A mistyped vault is found before the chain is asked."""
    arguments = ["--rpc", "http://127.0.0.1:1", "--vault", "1:0x12", "--home", str(tmp_path)]
    code, output = settle("watch", "--once", *arguments)
    assert code == 1
    assert "[invalid_request]" in output


def test_what_a_mistyped_address_spent_is_not_asked(tmp_path: Path) -> None:
    """An address that is none is told before any chain is asked."""
    code, output = settle("spent", *CHAIN, str(tmp_path), "0x12")
    assert code == 1
    assert "40 hexadecimal digits" in output


@NEEDS_WEB3
def test_what_an_address_spent_needs_the_chain(tmp_path: Path) -> None:
    """Which day is active is the vault's to say."""
    code, output = settle("spent", *CHAIN, str(tmp_path), "0x" + "12" * 20)
    assert code == 1
    assert "the chain does not answer" in output
