"""Sequences that give way to a tier come back exactly, whatever the tier does meanwhile."""

from __future__ import annotations

import errno
import threading
import time

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from starai.core.randomness import SeededRandomness  # noqa: E402
from starai.engines.base import EngineSpec  # noqa: E402
from starai.engines.paging.cost import Action  # noqa: E402
from starai.engines.registry import open_engine  # noqa: E402
from starai.engines.text import memory as engine_memory, tier as engine_tier  # noqa: E402
from starai.engines.text.shelf import File  # noqa: E402
from starai.engines.text.tier import Tier  # noqa: E402
from starai.protocol import tokens  # noqa: E402
from starai.protocol.generation import Generation, Sampling  # noqa: E402

ANSWER = 40


class Halving(Tier):
    """Reads the tails and computes the heads of all that comes back, however fast the disk is."""

    def choose(self, private_tokens, cached_tokens, others):
        return Action.SWAP

    def head(self, lost_tokens, start, others):
        return min(-(-lost_tokens // 32) * 16, lost_tokens)


class Reading(Halving):
    """Reads all."""

    def head(self, lost_tokens, start, others):
        return 0


class Slow(File):
    """A disk that takes its time."""

    def write(self, slot, row):
        time.sleep(0.001)
        super().write(slot, row)

    def read(self, slot, row):
        time.sleep(0.004)
        super().read(slot, row)


class Failing(Slow):
    """A disk that cannot write or read at times; knows no trial."""

    calls = 0

    def write(self, slot, row):
        self._fail(7)
        super().write(slot, row)

    def read(self, slot, row):
        self._fail(5)
        super().read(slot, row)

    def _fail(self, each):
        self.calls += 1
        if self.calls > 16 and self.calls % each == 0:
            raise OSError(errno.EIO, "broken")


def prompts():
    """Sixteen: some equal, some that begin alike, some short."""
    chance = SeededRandomness(3)

    def some(count):
        return [int(chance.fraction() * 290) for _ in range(count)]

    system = some(40)
    asked = [system + some(n) for n in (5, 30, 12)]
    asked += [asked[0], system, some(70)]
    return asked + [some(3 + 6 * n) for n in range(10)]


def opened(folder, blocks, **options):
    spec = EngineSpec("text", str(folder), slots=17, threads=1, options=options)
    block = open_engine(spec)._memory.pool.bytes_per_block
    options = {"kv_gib": blocks * block / (1 << 30) * 1.0001, **options}
    spec = EngineSpec("text", str(folder), slots=17, threads=1, options=options)
    return open_engine(spec)


def run(engine, cancelled=()):
    """Answers of all prompts; the ``cancelled`` are cancelled when they have so many tokens."""
    ids = {}
    for number, prompt in enumerate(prompts()):
        ids[b"%d" % number] = []
        sampling = Sampling(b"k" * 32, temperature=0.0)
        asked = Generation(tokens.pack(prompt), ANSWER, sampling, (), b"s" * 16)
        engine.admit(b"%d" % number, asked)
    forked = False
    while engine.has_work:
        for news in engine.step():
            assert not news.error
            ids[news.key] += news.ids
        engine.check_integrity()
        for key, length in dict(cancelled).items():
            if len(ids[key]) >= length:
                engine.cancel(key)
        if not forked and len(ids[b"5"]) > 20:
            forked = True
            so_far = tokens.pack(ids[b"5"])
            sampling = Sampling(b"k" * 32, temperature=0.0)
            prompt = tokens.pack(prompts()[5])
            begun = Generation(prompt, ANSWER, sampling, (), b"s" * 16, accepted=so_far)
            engine.fork(b"5", b"fork", begun)
            ids[b"fork"] = list(ids[b"5"])
    return ids


def idle(engine):
    """Nothing is left of what waited for the tier."""
    report, shelf = engine.memory_report(), engine.memory.tier._shelf
    assert report.tier_used == report.blocks_used == shelf.asked_rows == 0
    assert shelf.take() == []
    until = time.monotonic() + 10
    while any(thread.name == "kv-shelf" for thread in threading.enumerate()):
        assert time.monotonic() < until
        time.sleep(0.001)
    assert not getattr(shelf, "_writes", ())


@pytest.fixture(scope="module")
def roomy(folder_of):
    """What an engine with memory for all answers."""
    made = {}

    def make(family, **options):
        known = (family, *sorted(options.items()))
        if known not in made:
            made[known] = run(opened(folder_of(family), 400, **options))
        return made[known]

    return make


@pytest.mark.parametrize(
    ("disk", "tier", "options"),
    [
        (Slow, Halving, {}),
        (Slow, Reading, {}),
        (Failing, Halving, {"kv_bits": 8}),
        (Failing, Reading, {"prefixes": 0}),
        (Failing, Halving, {"native": 0}),
    ],
)
def test_who_comes_back_goes_on_exactly(folder_of, monkeypatch, roomy, disk, tier, options):
    """Read, computed or both, on a slow disk or a broken one, with hits and forks: same tokens."""
    monkeypatch.setattr(engine_memory, "Tier", tier)
    monkeypatch.setattr(engine_tier, "File", disk)
    engine = opened(folder_of("llama"), 36, swap="disk", **options)
    assert run(engine) == roomy("llama", **options)
    report = engine.memory_report()
    assert report.swapped_in_blocks > 0
    if tier is Halving:
        assert report.head_tokens > 0
    idle(engine)


@pytest.mark.parametrize("tier", [Halving, Reading])
def test_cancelling_while_reading_leaves_nothing(folder_of, monkeypatch, roomy, tier):
    """Whoever is cancelled at any moment is gone; the others' answers are their own."""
    monkeypatch.setattr(engine_memory, "Tier", tier)
    monkeypatch.setattr(engine_tier, "File", Slow)
    engine = opened(folder_of("llama"), 36, swap="disk")
    expected = roomy("llama")
    gone = {b"%d" % n: 5 + 3 * n for n in range(6, 16, 2)}
    found = run(engine, gone)
    assert {key: ids for key, ids in found.items() if key not in gone} == {
        key: ids for key, ids in expected.items() if key not in gone
    }
    idle(engine)


def test_steps_do_not_wait_for_a_slow_disk(folder_of, monkeypatch):
    """While one is read back the others get their tokens."""

    class VerySlow(Slow):
        def read(self, slot, row):
            time.sleep(0.03)
            super().read(slot, row)

    monkeypatch.setattr(engine_memory, "Tier", Reading)
    monkeypatch.setattr(engine_tier, "File", VerySlow)
    engine = opened(folder_of("llama"), 36, swap="disk")
    for number, prompt in enumerate(prompts()):
        sampling = Sampling(b"k" * 32, temperature=0.0)
        asked = Generation(tokens.pack(prompt), ANSWER, sampling, (), b"s" * 16)
        engine.admit(b"%d" % number, asked)
    meanwhile = 0
    while engine.has_work:
        news = engine.step()
        meanwhile += bool(news) and engine.memory.tier.reading
    assert meanwhile > 3
    assert engine.memory_report().swapped_in_blocks > 0
    idle(engine)
