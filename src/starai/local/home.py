"""The home folder: where a machine keeps its part of a network. One file, one purpose.

::

    network.json        where the network is and what it is called (no secret)
    client.json         the URL and API key that `starai chat` uses       (owner only)
    authority/          the network's keys, and NATS' own files          (owner only)
    parties/NAME.json   a party's key and credential                     (owner only)
    registry.db         what the registry knows
    exports/            closed days, as files that anybody can check
    exports.checked     what the check of the newest day keeps for the next  (owner only)
    outbox/NAME.db      records that the registry has not acknowledged yet
    witness/NAME.json   the last checkpoint of the registry's log that a party cosigned
    models/ORG/NAME/    pulled models
    logs/NAME.log       one JSON object a line; no prompt, no key

A node that joins somebody else's network has just its own party, outbox, log and network.json.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from starai.core.errors import ConfigurationRefused
from starai.protocol.identity import Identity, PartyId
from starai.wire.keeping import write_secret

T = TypeVar("T", bound=msgspec.Struct)


class NetworkFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the network is. ``models`` are the references that the gateway's catalogue opens.

    ``nats_url`` and ``more_urls`` are where this machine connects, best first; ``ca`` is the
    certificate (DER) that the network's own authority shows there, if it has one. ``public_urls``
    is what an operator's tickets say instead: where devices elsewhere connect. ``gateways`` and
    ``distributors`` say how many of them this machine runs.
    """

    name: str
    account: str
    nats_url: str
    block_ms: int
    gateway_url: str = ""
    models: tuple[str, ...] = ()
    more_urls: tuple[str, ...] = ()
    public_urls: tuple[str, ...] = ()
    ca: bytes = b""
    gateways: int = 1
    distributors: int = 1

    @property
    def urls(self) -> tuple[str, ...]:
        """All addresses at which this machine connects."""
        return (self.nats_url, *self.more_urls)


class PartyFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A party's secret seed and its current credential (empty before it has joined)."""

    seed: str
    credential: str = ""

    def __repr__(self) -> str:
        return f"PartyFile({Identity.from_seed(self.seed).nkey})"


class ClientFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How `starai chat` reaches a gateway."""

    base_url: str
    api_key: str

    def __repr__(self) -> str:
        return f"ClientFile({self.base_url})"


@dataclass(frozen=True)
class Home:
    """The folder, and the names in it."""

    path: Path

    @property
    def authority(self) -> Path:
        """The folder of the network's own keys."""
        return self.path / "authority"

    @property
    def registry_db(self) -> Path:
        """The registry's database."""
        return self.path / "registry.db"

    @property
    def exports(self) -> Path:
        """The folder of closed days, for everybody to check."""
        return self.path / "exports"

    @property
    def models(self) -> Path:
        """The folder of pulled models."""
        return self.path / "models"

    def outbox(self, name: str) -> Path:
        """A party's outbox."""
        folder = self.path / "outbox"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{name}.db"

    def witness(self, name: str) -> Path:
        """What a party has seen of the registry's log."""
        return self.path / "witness" / f"{name}.json"

    def log(self, name: str) -> Path:
        """A process's log."""
        folder = self.path / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{name}.log"

    def network(self) -> NetworkFile:
        """Where the network is.

        Raises:
            ConfigurationRefused: no network has been started or joined in this home.
        """
        return self._read(self.path / "network.json", NetworkFile)

    def client(self) -> ClientFile:
        """How to reach the gateway.

        Raises:
            ConfigurationRefused: no network has been started in this home.
        """
        return self._read(self.path / "client.json", ClientFile)

    def party(self, name: str) -> PartyFile:
        """A party's key and credential.

        Raises:
            ConfigurationRefused: there is no such party here.
        """
        return self._read(self._party_path(name), PartyFile)

    def has_party(self, name: str) -> bool:
        """Whether there is such a party here."""
        return self._party_path(name).exists()

    def party_names(self) -> dict[PartyId, str]:
        """What the parties whose keys are kept here are called."""
        names = sorted(path.stem for path in self._party_path("").parent.glob("*.json"))
        return {Identity.from_seed(self.party(name).seed).party: name for name in names}

    def save_network(self, file: NetworkFile) -> None:
        """Keep where the network is."""
        write_secret(self.path / "network.json", msgspec.json.encode(file))

    def save_client(self, file: ClientFile) -> None:
        """Keep how to reach the gateway."""
        write_secret(self.path / "client.json", msgspec.json.encode(file))

    def save_party(self, name: str, file: PartyFile) -> None:
        """Keep a party's key and credential."""
        write_secret(self._party_path(name), msgspec.json.encode(file))

    def _party_path(self, name: str) -> Path:
        return self.path / "parties" / f"{name}.json"

    def _why_missing(self, path: Path) -> str:
        if (self.path / "network.json").exists():
            return (
                f"there is no {path.stem} in {self.path}: it belongs to a device that joined a "
                "network. Do this where `starai up` runs, or name that folder with --home"
            )
        return (
            f"nothing in {self.path} yet: start a network with `starai up`, or name another "
            "folder with --home"
        )

    def _read(self, path: Path, kind: type[T]) -> T:
        try:
            return msgspec.json.decode(path.read_bytes(), type=kind)
        except FileNotFoundError as error:
            raise ConfigurationRefused(self._why_missing(path)) from error
        except (OSError, msgspec.DecodeError) as error:
            raise ConfigurationRefused(f"cannot read {path}: {error}") from error
