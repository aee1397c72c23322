"""Speed on this machine: the limits are of the right size, the rows add up, nothing is left."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from starai.core.clock import SystemClock  # noqa: E402
from starai.core.randomness import SeededRandomness  # noqa: E402
from starai.engines.base import EngineSpec  # noqa: E402
from starai.engines.native import limits as machine  # noqa: E402
from starai.engines.native.limits import KINDS, Limits, measure_limits  # noqa: E402
from starai.engines.text.engine import TextEngine  # noqa: E402
from starai.engines.text.roofline import Roofline, roofline_of  # noqa: E402
from starai.engines.text.speed import Figure, Speed  # noqa: E402
from starai.models.catalog import open_model  # noqa: E402

LIMITS = Limits(1, 1e9, 2e9, {"float32": 1e11, "bfloat16": 2e11, "int8": 4e11})


def test_the_machine_has_limits(monkeypatch):
    """Every kind is measured, told of before, and between what a toy and a cluster reach."""
    monkeypatch.setattr(machine, "READ_BYTES", 1 << 24)
    monkeypatch.setattr(machine, "_SIZE", 128)
    threads = torch.get_num_threads()
    told = []
    found = measure_limits(2, SystemClock(), told.append)
    assert torch.get_num_threads() == threads
    assert len(told) == 2 + len(KINDS)
    assert found.operations_per_s.keys() == KINDS.keys()
    assert 1e8 < found.read_bytes_per_s_one <= found.read_bytes_per_s < 1e13
    assert all(1e8 < rate < 1e16 for rate in found.operations_per_s.values())


def test_a_limit_is_the_slower_of_reading_and_multiplying():
    """By hand: one sequence is bound by memory, a long prompt by arithmetic."""
    roofline = Roofline(LIMITS, "int8", 2000, 1500, 500, 10, 4)
    one = roofline.decode(1, 100)
    assert one.by == "memory"
    assert one.seconds == pytest.approx((2000 + 100 * 4) / 2e9)
    prompt = roofline.prefill(1000)
    assert prompt.by == "arithmetic"
    looked_back = 4 * 10 * 1000 * 1001 / 2 / 2e11
    assert prompt.seconds == pytest.approx(2 * (1000 * 1500 + 500) / 4e11 + looked_back)


@pytest.mark.parametrize(("family", "tied"), [("llama", False), ("qwen3", True)])
@pytest.mark.parametrize("bits", [16, 8])
def test_weights_are_counted_as_they_are_used(folder_of, family, tied, bits):
    """All linear weights are multiplied once, a table that is only looked up in is not read."""
    folder = str(folder_of(family))
    spec = EngineSpec("text", folder, threads=1, slots=1, options={"bits": bits})
    engine = TextEngine(open_model(folder), spec)
    found = roofline_of(engine, open_model(folder), bits, LIMITS)
    module = engine.model.module
    width, head = 32, 300 * 32
    layer = width * (32 + 16 + 16) + 32 * width + 3 * width * 48
    norms = width + 3 * (2 * width + (2 * 8 if family == "qwen3" else 0))
    assert found.head_weights == head
    assert found.weights == 3 * layer + norms
    assert found.attention_weights == 3 * 4 * 8
    # 3 layers, keys and values, 2 heads of 8 floats of 4 bytes.
    assert found.kv_bytes == 3 * 2 * 2 * 8 * 4
    every = engine.model.refitted.bytes_after
    assert found.read_bytes == every - (0 if tied else module.get_input_embeddings().weight.nbytes)
    assert found.kind == ("int8" if bits == 8 else "float32")


def test_experts_have_no_limit(folder_of):
    """A model that uses some of its weights for a token is not held to all of them."""
    folder = str(folder_of("qwen3_moe"))
    engine = TextEngine(open_model(folder), EngineSpec("text", folder, threads=1, slots=1))
    assert roofline_of(engine, open_model(folder), 16, LIMITS) is None


def test_every_row_is_measured(monkeypatch):
    """All rows of the embedded model, in order, each with a limit; the engine ends idle."""
    told = []
    speed = Speed(
        open_model("embedded"),
        EngineSpec("text", "embedded", threads=1),
        LIMITS,
        SystemClock(),
        SeededRandomness(1),
        quick=True,
    )
    rows = {row.name: row for row in speed.figures(lambda *now: told.append(now))}
    assert list(rows) == [
        "ready after",
        "weights",
        "KV memory of a token",
        "prefill 256",
        "decode",
        "decode B=8",
        "decode B=16",
        "decode B=32",
        "first token of 544",
        "the same, 512 of them known",
    ]
    assert rows["KV memory of a token"].value == pytest.approx(7 * 2 * 2 * 32 * 4 / 1e3)
    for row in list(rows.values())[3:]:
        assert row.limited_by in ("memory", "arithmetic")
        assert row.share > 0
        assert min(row.samples) <= row.value <= max(row.samples)
    assert rows["decode B=32"].limit > 4 * rows["decode"].limit
    assert rows["the same, 512 of them known"].value < rows["first token of 544"].value
    assert [done for _, done, _ in told] == list(range(6))
    assert not speed._engine.has_work
    speed._engine.check_integrity()


def test_what_would_take_too_long_is_left_out(monkeypatch):
    """On a machine that reads three tokens a second, prompts and batches are left out."""
    speed = Speed(
        open_model("embedded"),
        EngineSpec("text", "embedded", threads=1),
        LIMITS,
        SystemClock(),
        SeededRandomness(1),
        quick=True,
    )
    monkeypatch.setattr(speed, "_first_token", lambda prompt: len(prompt) / 11)
    monkeypatch.setattr(speed, "_decode_rate", lambda batch, steps: 1.0)
    names = [row.name for row in speed.figures(lambda *now: None)]
    assert names[3:] == ["prefill 256", "decode"]


def test_a_share_is_of_the_better_end():
    """More tokens a second are better, fewer milliseconds are; without a limit there is none."""
    assert Figure("a", 5.0, "tok/s", (), 10.0).share == 0.5
    assert Figure("a", 10.0, "ms", (), 5.0).share == 0.5
    assert Figure("a", 10.0, "MB").share is None
