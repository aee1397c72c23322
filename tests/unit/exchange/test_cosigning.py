"""A witness against registries that lie, stall and rewrite; and its memory on disk."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import anyio
import pytest

from starai.core.clock import AnyioClock
from starai.core.errors import ConfigurationRefused, StoreFailed
from starai.core.randomness import SeededRandomness
from starai.exchange.member import Member
from starai.exchange.recording.cosigning import RETRY_S, Witness, WitnessFile, cosigning
from starai.ledger.checkpoints import Checkpoint, Note, sign_checkpoint, verify_cosignature
from starai.ledger.merkle_log import MemoryTiles, MerkleLog
from starai.ledger.witnessing import Seen
from starai.protocol.frames import decode, encode
from starai.protocol.identity import Identity, KeyKind
from starai.protocol.log import Witnessed, Witnessing, log_origin, witness_name
from starai.protocol.ports import Delivery
from starai.protocol.records import leaf_hash
from starai.protocol.registry import Acknowledged
from starai.protocol.subjects import Role, registry_all
from starai.wire.memory import MemoryNetwork

pytestmark = pytest.mark.anyio

_CHANCE = SeededRandomness(31)
ACCOUNT = Identity.create(_CHANCE, KeyKind.ACCOUNT)
REGISTRY, NODE = Identity.create(_CHANCE), Identity.create(_CHANCE)
NETWORK = "test"
NAME = witness_name(NETWORK, Role.NODE, NODE.party)
AGAIN_MS = 10_000

Answer = Callable[[Witnessing], bytes | None]


class Kept:
    """A memory that can be made to fail."""

    def __init__(self) -> None:
        self.seen = Seen()
        self.fails = False

    async def load(self) -> Seen:
        if self.fails:
            raise ConfigurationRefused("unreadable")
        return self.seen

    async def keep(self, seen: Seen) -> None:
        if self.fails:
            raise StoreFailed("full")
        self.seen = seen


def log_of(size: int, *, tampered: int = -1) -> MerkleLog:
    log = MerkleLog(MemoryTiles())
    log.extend(leaf_hash(b"x" if n == tampered else n.to_bytes(4, "big")) for n in range(size))
    return log


def note_of(log: MerkleLog, size: int, signer: Identity = ACCOUNT) -> str:
    checkpoint = Checkpoint(log_origin(NETWORK), size, log.root(size))
    return sign_checkpoint(checkpoint, signer.raw, signer.sign)


def honest(log: MerkleLog, size: int) -> Answer:
    def answer(said: Witnessing) -> bytes:
        if said.size == size:
            return encode(Witnessed(said.size, AGAIN_MS))
        proof = tuple(log.consistency(said.size, size)) if said.size < size else ()
        return encode(Witnessed(said.size, AGAIN_MS, note_of(log, size), proof))

    return answer


class Scene:
    """A registry that answers as a test says, and one witness."""

    def __init__(self, network: MemoryNetwork, memory: Kept) -> None:
        self.heard: list[tuple[float, Witnessing]] = []
        self.answer: Answer = lambda _: None
        self.memory = memory
        self._wire = network.connect(REGISTRY.party, Role.REGISTRY)
        self.member = Member(
            wire=network.connect(NODE.party, Role.NODE),
            identity=NODE,
            credential=lambda: "",
            account=ACCOUNT.nkey,
            network=NETWORK,
            block_ms=1_000,
            clock=AnyioClock(),
            randomness=_CHANCE,
        )

    def hear(self, delivery: Delivery) -> None:
        said = decode(delivery.payload, Witnessing)
        self.heard.append((anyio.current_time(), said))
        reply = self.answer(said)
        if reply is not None:
            self._wire.publish_soon(delivery.reply, reply)

    @property
    def lines(self) -> list[str]:
        return [said.line for _, said in self.heard if said.line]

    async def play(self, seconds: float) -> None:
        async with (
            self._wire.subscribe(registry_all("witness"), self.hear),
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(Witness(self.member, Role.NODE, self.memory).run)
            await anyio.sleep(seconds)
            tasks.cancel_scope.cancel()


@pytest.fixture
def anyio_backend(virtual_time):
    return virtual_time


@pytest.fixture
async def scene():
    async with MemoryNetwork() as network:
        yield Scene(network, Kept())


async def test_it_believes_keeps_signs_and_waits(scene: Scene) -> None:
    """A checkpoint is kept before it is signed, signed once, and then asked for in time."""
    scene.answer = honest(log_of(300), 300)
    await scene.play(60)
    assert scene.memory.seen.size == 300
    (line,) = scene.lines
    signed = next(said for _, said in scene.heard if said.line)
    assert signed.note == scene.memory.seen.note
    assert verify_cosignature(Note.parse(signed.note).text, line, NAME, NODE.raw) > 0
    times = [at for at, _ in scene.heard]
    assert [round(b - a) for a, b in pairwise(times)] == [0, *[10] * 5]


@pytest.mark.parametrize("size", [100, 299, 300, 301, 400])
async def test_a_rewritten_log_is_not_signed(scene: Scene, size: int, caplog) -> None:
    """An old snapshot, or another history at any size, gets no signature, and an error is told."""
    scene.answer = honest(log_of(300), 300)
    await scene.play(5)
    before = scene.memory.seen
    other = log_of(400, tampered=7)

    def answer(said: Witnessing) -> bytes:
        proof = tuple(other.consistency(min(said.size, size), size))
        return encode(Witnessed(said.size, AGAIN_MS, note_of(other, size), proof))

    scene.answer = answer
    scene.heard.clear()
    await scene.play(4.5 * RETRY_S)
    assert (scene.lines, scene.memory.seen) == ([], before)
    assert len(scene.heard) == 5
    found = [one for one in caplog.records if one.message == "not_cosigned"]
    assert [one.levelname for one in found] == ["ERROR"]


async def test_strange_answers_are_not_signed(scene: Scene) -> None:
    """Rubbish, silence, refusals, others' checkpoints, proofs from another size: no signature."""
    log, stranger = log_of(20), Identity.create(_CHANCE, KeyKind.ACCOUNT)
    answers: list[bytes | None] = [
        None,
        b"rubbish",
        encode(Witnessing(0)),
        encode(Acknowledged(ok=False, code="party_refused", message="no")),
        encode(Acknowledged(ok=False, code="odd", message="no")),
        encode(Acknowledged(ok=True)),
        encode(Witnessed(0, 0, "rubbish")),
        encode(Witnessed(0, 0, note_of(log, 20, stranger))),
        encode(Witnessed(0, 0, note_of(log, 20), (bytes(32),))),
        encode(Witnessed(7, 0, note_of(log, 20), tuple(log.consistency(7)))),
    ]
    left = list(answers)
    scene.answer = lambda _: left.pop(0) if left else encode(Witnessed(0, AGAIN_MS))
    await scene.play(20 * RETRY_S)
    assert (left, scene.lines, scene.memory.seen) == ([], [], Seen())


async def test_a_registry_without_pause_is_not_flooded(scene: Scene) -> None:
    """Whatever pause the registry names, the witness asks neither at once nor never."""
    scene.answer = lambda said: encode(Witnessed(said.size, 0))
    await scene.play(10)
    assert 30 < len(scene.heard) <= 51
    scene.heard.clear()
    scene.answer = lambda said: encode(Witnessed(said.size, 1 << 52))
    await scene.play(1_000)
    assert len(scene.heard) == 2


async def test_nothing_is_signed_that_is_not_kept(scene: Scene) -> None:
    """With a full disk nothing is signed; with an unreadable memory nothing is even asked."""
    scene.answer = honest(log_of(5), 5)
    keeps = scene.memory.keep

    async def fail(seen: Seen) -> None:
        raise StoreFailed("full")

    scene.memory.keep = fail  # type: ignore[method-assign]
    await scene.play(100)
    assert scene.lines == []
    scene.memory.keep = keeps  # type: ignore[method-assign]
    await scene.play(100)
    assert len(scene.lines) == 1
    scene.memory.fails = True
    scene.heard.clear()
    await scene.play(100)
    assert scene.heard == []


class TestOnDisk:
    """The memory as a file."""

    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"

    async def test_a_file_remembers(self, tmp_path: Path) -> None:
        """What is kept is there for the next process; for another network it is nothing."""
        path = tmp_path / "witness" / "node.json"
        seen = Seen(5, b"r" * 32, "note")
        assert await WitnessFile(path, "A").load() == Seen()
        await WitnessFile(path, "A").keep(seen)
        assert await WitnessFile(path, "A").load() == seen
        assert await WitnessFile(path, "B").load() == Seen()
        assert path.stat().st_mode & 0o077 == 0

    @pytest.mark.parametrize("content", [b"", b"{}", b"\x00", b'{"account":"A","seen":{"size":-}}'])
    async def test_a_damaged_file_is_no_memory(self, tmp_path: Path, content: bytes) -> None:
        """A file that cannot be read is an error: to begin anew would be to be deceived."""
        path = tmp_path / "node.json"
        path.write_bytes(content)
        with pytest.raises(ConfigurationRefused):
            await WitnessFile(path, "A").load()

    async def test_a_restart_goes_on(self, tmp_path: Path) -> None:
        """After a restart the witness asks from the size it had seen."""
        path = tmp_path / "node.json"
        async with MemoryNetwork() as network:
            scene = Scene(network, Kept())
            wire = network.connect(REGISTRY.party, Role.REGISTRY)
            async with wire.subscribe(registry_all("witness"), scene.hear):
                for size in (5, 9):
                    scene.answer = honest(log_of(9), size)
                    async with cosigning(scene.member, Role.NODE, path):
                        with anyio.fail_after(5):
                            while len(scene.lines) < (1 if size == 5 else 2):
                                await anyio.sleep(0.01)
        sizes = [said.size for _, said in scene.heard]
        assert sizes[0] == 0
        assert sizes[-1] == 9
        assert 5 in sizes
