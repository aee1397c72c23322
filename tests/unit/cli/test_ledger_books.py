"""`starai ledger export` and `verify`, on a home without a running network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from starai.cli.main import cli
from starai.local.home import Home, NetworkFile
from starai.protocol.identity import Identity, KeyKind
from starai.registry.storage.sqlite import connect, migrate
from starai.testing.closing import ACCOUNT, BLOCK_MS, FIRST_DAY_MS, NETWORK, PaidNetwork

OTHERS = Identity(b"o" * 32, KeyKind.ACCOUNT).nkey


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    home.save_network(NetworkFile(NETWORK, ACCOUNT.nkey, nats_url="", block_ms=BLOCK_MS))
    connection = connect(home.registry_db)
    migrate(connection)
    network = PaidNetwork(connection)
    network.work(2, FIRST_DAY_MS)
    network.close_block(FIRST_DAY_MS)
    connection.close()
    return home


def run(home: Home, *arguments: str):
    """What a command says."""
    return CliRunner().invoke(cli, ["ledger", *arguments, "--home", str(home.path)])


def test_sound_books_are_said_to_hold(home: Home, tmp_path: Path) -> None:
    """Books are exported and hold, from the files and from the database alike."""
    folder = tmp_path / "books"
    assert run(home, "export", str(folder), "--beancount").exit_code == 0
    assert (folder / "books.beancount").exists()
    for arguments in ([], [str(folder)]):
        done = run(home, "verify", *arguments)
        assert done.exit_code == 0, done.output
        assert "8 records" in done.output
        assert "Everything holds." in done.output


def test_what_is_wrong_is_said(home: Home) -> None:
    """A row that was edited by hand is named, and the command fails."""
    connection = connect(home.registry_db)
    connection.execute("UPDATE transfer SET amount = amount + 1 WHERE seq = 3")
    connection.close()
    done = run(home, "verify", "--json")
    assert done.exit_code == 1
    problems = json.loads(done.stdout)["problems"]
    assert any("transfers differ" in problem for problem in problems)


def test_another_networks_books_are_refused(home: Home, tmp_path: Path) -> None:
    """Files of a network with another key do not pass where the network is known."""
    folder = tmp_path / "books"
    run(home, "export", str(folder))
    home.save_network(NetworkFile(NETWORK, OTHERS, nats_url="", block_ms=BLOCK_MS))
    done = run(home, "verify", str(folder))
    assert done.exit_code == 1
    assert "another key" in done.output


def test_a_home_without_a_registry_is_told(tmp_path: Path) -> None:
    """Where there is no registry, the message says what to do."""
    home = Home(tmp_path / "node")
    home.save_network(NetworkFile(NETWORK, ACCOUNT.nkey, nats_url="", block_ms=BLOCK_MS))
    done = run(home, "verify")
    assert done.exit_code == 1
    assert "starai up" in done.output


def test_a_check_says_where_it_began(home: Home, tmp_path: Path) -> None:
    """With --kept the beginning is said; a file that no check wrote is refused with what to do."""
    kept = tmp_path / "kept"
    done = run(home, "verify", "--kept", str(kept))
    assert "Began from the first block: nothing was kept." in done.output
    assert done.exit_code == 0, done.output
    kept.write_bytes(b"notes")
    done = run(home, "verify", "--kept", str(kept))
    assert done.exit_code == 1
    assert "name another file" in done.output
