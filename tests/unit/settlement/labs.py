"""Chains to experiment on: time, blocks and reorganisations as the test wants them."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from web3 import HTTPProvider, Web3

from starai.registry.days.settling import Settlement
from starai.registry.storage.sqlite import connect, migrate
from starai.settlement.contract import Artefact
from starai.settlement.leaves import Leaf, LeafKind, tree_of
from starai.settlement.manifest import FIRST_HEAD, Manifest
from starai.settlement.rollup.base import Claim, Post
from starai.settlement.rollup.embedded import embedded, key_of
from starai.settlement.rollup.ground import Ground, Staged, address_of, checksummed
from starai.settlement.tree import MerkleTree

OWNER, POSTER, GUARDIAN, CUSTOMER, RELAYER, NODE, OTHER = (key_of(n) for n in range(1, 8))
DEPOSIT = 100_000 * 10**6
DAY_S = 86_400


class Lab(ABC):
    """A chain with a staged vault: `DEPOSIT` paid in by `CUSTOMER`."""

    web3: Web3
    staged: Staged

    def stage(self, **terms: Any) -> Staged:
        """Deploy another vault, without a deposit."""
        return Staged(Ground(self.web3), OWNER, POSTER, GUARDIAN, **terms)

    @abstractmethod
    def mine(self, blocks: int = 1) -> None:
        """Make blocks, of what waits."""

    @abstractmethod
    def travel(self, seconds: int) -> None:
        """Let time pass, in one block."""

    @abstractmethod
    def snapshot(self) -> Any:
        """Remember the chain as it is."""

    @abstractmethod
    def go_back(self, snapshot: Any) -> None:
        """Make the chain what it was: for whoever watches, a reorganisation."""

    @abstractmethod
    def hold_back(self, hold: bool) -> None:
        """Whether transactions wait until `mine`."""

    @contextmanager
    def undone(self) -> Iterator[None]:
        """Go back to how it is now at the end."""
        before = self.snapshot()
        try:
            yield
        finally:
            self.hold_back(False)
            self.go_back(before)

    def send(self, key: bytes, function: Any) -> Any:
        """Call a contract; returns the receipt."""
        return self.staged.ground.call(key, function)

    def refusal(self, key: bytes, function: Any) -> str:
        """Why a call would be refused; empty if it would not be."""
        try:
            function.call({"from": checksummed(address_of(key))})
        except Exception as error:  # noqa: BLE001 - the contract's words, in whatever the library wraps them
            return str(error)
        return ""

    def post(self, tree: Tree, **other: Any) -> Any:
        """Post a tree's epoch by hand; ``other`` replaces arguments."""
        return self.send(POSTER, self.posting(tree, **other))

    def posting(self, tree: Tree, **other: Any) -> Any:
        """The call that posts a tree's epoch."""
        return self.staged.vault.functions.post(*tree.post._replace(**other))

    def events(self, name: str) -> list[Any]:
        """The arguments of all events of a name."""
        found = self.staged.vault.events[name]().get_logs(from_block=0)
        return [dict(one["args"]) for one in found]


class EmbeddedLab(Lab):
    """py-evm."""

    def __init__(self) -> None:
        self.web3, self.tester = embedded()
        self.staged = self.stage()
        self.staged.deposit(CUSTOMER, DEPOSIT)

    def mine(self, blocks: int = 1) -> None:
        self.tester.mine_blocks(blocks)

    def travel(self, seconds: int) -> None:
        now_s = self.tester.get_block_by_number("pending")["timestamp"]
        self.tester.time_travel(now_s + seconds)

    def snapshot(self) -> Any:
        return self.tester.take_snapshot()

    def go_back(self, snapshot: Any) -> None:
        self.tester.revert_to_snapshot(snapshot)

    def hold_back(self, hold: bool) -> None:
        if hold:
            self.tester.disable_auto_mine_transactions()
        elif not self.tester.auto_mine_transactions:
            self.tester.enable_auto_mine_transactions()


#: anvil's first accounts, which its fixed mnemonic gives; the same keys as everywhere.
class AnvilLab(Lab):
    """anvil, whose accounts are given what the embedded chain's have."""

    def __init__(self, url: str) -> None:
        self.web3 = Web3(HTTPProvider(url))
        for key in (OWNER, POSTER, GUARDIAN, CUSTOMER, RELAYER, NODE, OTHER):
            self._do("anvil_setBalance", checksummed(address_of(key)), hex(10**24))
        self.staged = self.stage()
        self.staged.deposit(CUSTOMER, DEPOSIT)

    def _do(self, method: str, *arguments: Any) -> Any:
        answer = self.web3.provider.make_request(method, list(arguments))  # type: ignore[arg-type]
        assert "error" not in answer, answer
        return answer["result"]

    def mine(self, blocks: int = 1) -> None:
        self._do("anvil_mine", hex(blocks))

    def travel(self, seconds: int) -> None:
        self._do("evm_increaseTime", seconds)
        self.mine()

    def snapshot(self) -> Any:
        return self._do("evm_snapshot")

    def go_back(self, snapshot: Any) -> None:
        self._do("evm_revert", snapshot)

    def hold_back(self, hold: bool) -> None:
        self._do("evm_setAutomine", not hold)


def find_anvil() -> str | None:
    """Anvil's program: named by STARAI_ANVIL, or on PATH."""
    return os.environ.get("STARAI_ANVIL") or shutil.which("anvil")


@contextmanager
def anvil_lab() -> Iterator[AnvilLab]:
    """Anvil as a process of its own, on a free port of loopback; skips without its program."""
    program = find_anvil()
    if program is None:
        pytest.skip("anvil is neither on PATH nor named by STARAI_ANVIL")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    anvil = subprocess.Popen(
        [program, "--port", str(port), "--silent", "--hardfork", "prague"],
        stdout=subprocess.DEVNULL,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(100):
            if Web3(HTTPProvider(url)).is_connected():
                break
            time.sleep(0.1)
        yield AnvilLab(url)
    finally:
        anvil.terminate()
        anvil.wait(10)


class Tree:
    """A day's leaves by address, and what is posted of them."""

    def __init__(
        self,
        epoch: int,
        earned: Mapping[bytes, int],
        spent: Mapping[bytes, int] | None = None,
        *,
        prev_head: bytes | None = None,
        padding: int = 0,
    ) -> None:
        """``padding`` adds leaves of one unit to others, so that proofs are as long as wanted."""
        self.leaves = {
            (LeafKind.EARNED, address): Leaf(LeafKind.EARNED, address, units)
            for address, units in earned.items()
        }
        for number in range(padding):
            address = (1 << 100 | number).to_bytes(20, "big")
            self.leaves[LeafKind.EARNED, address] = Leaf(LeafKind.EARNED, address, 1)
        total = sum(leaf.units for leaf in self.leaves.values())
        spent = {address_of(CUSTOMER): total} if spent is None else spent
        for address, units in spent.items():
            self.leaves[LeafKind.SPENT, address] = Leaf(LeafKind.SPENT, address, units)
        self.tree: MerkleTree = tree_of(self.leaves.values())
        self.post = Post(
            epoch,
            head_of(epoch - 1) if prev_head is None else prev_head,
            head_of(epoch),
            self.tree.root,
            total,
            sum(spent.values()),
        )

    def proof(self, address: bytes, kind: LeafKind = LeafKind.EARNED) -> list[bytes]:
        return list(self.tree.proof(self.leaves[kind, address].hash()))

    def units(self, address: bytes, kind: LeafKind = LeafKind.EARNED) -> int:
        return self.leaves[kind, address].units

    def claim(self, address: bytes) -> Claim:
        return Claim(address, self.units(address), tuple(self.proof(address)))


def head_of(epoch: int) -> bytes:
    """A made-up head for each epoch."""
    return epoch.to_bytes(32, "big") if epoch else FIRST_HEAD


class Days:
    """Closed days in a real database, with made-up content: what a settler settles."""

    def __init__(self, chain_id: int, contract: bytes) -> None:
        self.connection = connect(":memory:")
        migrate(self.connection)
        self.settlement = Settlement(self.connection, chain_id, contract)
        self._about = {"chain_id": chain_id, "contract": contract}
        self.trees: dict[int, Tree] = {}

    def close(self, epoch: int, earned: Mapping[bytes, int], note: int = 0) -> Tree:
        """Sign a day; ``note`` makes another manifest of the same day."""
        prev = self.trees[epoch - 1].post.head if epoch > 1 else FIRST_HEAD
        tree = Tree(epoch, earned, prev_head=prev)
        manifest = _manifest(
            **self._about,
            epoch=epoch,
            previous_head=prev,
            root=tree.post.root,
            earned_units=tree.post.earned,
            spent_units=tree.post.spent,
            closed_ms=note,
        )
        tree.post = tree.post._replace(head=manifest.head())
        self.trees[epoch] = tree
        self.connection.execute(
            "INSERT INTO epoch (epoch, from_block, to_block, state, manifest, closed_ms)"
            " VALUES (?, 0, 0, 'signed', ?, 0)"
            " ON CONFLICT (epoch) DO UPDATE SET state = 'signed', manifest = excluded.manifest",
            (epoch, manifest.text()),
        )
        return tree

    def state(self, epoch: int) -> str:
        found = self.connection.execute("SELECT state FROM epoch WHERE epoch = ?", (epoch,))
        return str(next(iter(found))[0])


def _manifest(**facts: Any) -> Manifest:
    empty: dict[Any, Any] = {bytes: b"", int: 0, str: ""}
    fields = msgspec.structs.fields(Manifest)
    return Manifest(**{f.name: empty.get(f.type, ()) for f in fields} | facts)


def artefact(name: str) -> Artefact:
    """A misbehaving token's artefact."""
    text = (Path(__file__).parent / "tokens" / f"{name}.json").read_bytes()
    return msgspec.json.decode(text, type=Artefact)


def gas(receipts: Sequence[Any]) -> list[int]:
    """What transactions used."""
    return [one["gasUsed"] for one in receipts]
