"""The home folder: what is kept comes back, secrets are their owner's, and errors teach."""

from __future__ import annotations

from pathlib import Path

import pytest

from starai.core.errors import ConfigurationRefused
from starai.core.randomness import SeededRandomness
from starai.local.home import ClientFile, Home, NetworkFile, PartyFile
from starai.protocol.identity import Identity

SEED = Identity.create(SeededRandomness(3)).seed
NETWORK = NetworkFile("local", "A", "nats://127.0.0.1:4222", 2000, models=("embedded",))


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def test_what_is_kept_comes_back(home: Home) -> None:
    """Each file is read as it was written, and names are independent."""
    home.save_network(NETWORK)
    home.save_client(ClientFile("http://x/v1", "sk-1"))
    home.save_party("node", PartyFile(SEED, "jwt"))
    assert home.network() == NETWORK
    assert home.client() == ClientFile("http://x/v1", "sk-1")
    assert home.party("node") == PartyFile(SEED, "jwt")
    assert home.has_party("node")
    assert not home.has_party("other")


def test_only_the_owner_can_read_what_is_secret(home: Home) -> None:
    """Keys and seeds are in files of mode 0600."""
    home.save_client(ClientFile("http://x/v1", "sk-1"))
    home.save_party("node", PartyFile(SEED))
    for path in home.path.rglob("*.json"):
        assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("ask", ["network", "client"])
def test_an_empty_home_says_what_to_do(home: Home, ask: str) -> None:
    """Nothing there yet: the message names the folder, the command and the option."""
    with pytest.raises(ConfigurationRefused, match="starai up") as refused:
        getattr(home, ask)()
    assert str(home.path) in refused.value.message
    assert "--home" in refused.value.message


def test_a_suppliers_home_says_that_it_is_no_operators(home: Home) -> None:
    """Who joined from here has no operator's key to show, and is not told to start a network."""
    home.save_network(NETWORK)
    with pytest.raises(ConfigurationRefused, match="device that joined") as refused:
        home.party("operator")
    assert "--home" in refused.value.message


def test_a_damaged_file_is_named(home: Home) -> None:
    """A file that is not what it should be is refused by its path."""
    home.path.mkdir()
    (home.path / "network.json").write_text('{"name": 1}')
    with pytest.raises(ConfigurationRefused, match=r"network\.json"):
        home.network()


def test_no_secret_shows_in_a_repr() -> None:
    """Printing a file shows neither seed nor key."""
    assert SEED not in repr(PartyFile(SEED, "jwt"))
    assert "sk-1" not in repr(ClientFile("http://x/v1", "sk-1"))


def test_folders_of_logs_and_outboxes_are_made(home: Home) -> None:
    """Whoever asks for a path there can write to it."""
    home.log("node").write_text("{}")
    home.outbox("node").write_bytes(b"")
    assert home.log("node").parent.name == "logs"
