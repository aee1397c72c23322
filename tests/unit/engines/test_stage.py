"""Parts of a model, chained, compute what the whole model computes; what cannot is refused."""

from __future__ import annotations

import json
import os
import shutil
from itertools import pairwise
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.numpy import load_file, save_file  # noqa: E402
from transformers.models.llama import modeling_llama  # noqa: E402

from starai.core.clock import SystemClock  # noqa: E402
from starai.core.errors import (  # noqa: E402
    ConfigurationRefused,
    InvalidRequest,
    ModelFileRefused,
)
from starai.engines.linear.fusing import weight_bytes  # noqa: E402
from starai.engines.native import library  # noqa: E402
from starai.engines.text.absent import find_layers  # noqa: E402
from starai.engines.text.attention import NAME, Pass, Span  # noqa: E402
from starai.engines.text.forward import forward  # noqa: E402
from starai.engines.text.loading import load_model  # noqa: E402
from starai.engines.text.model import TextModel  # noqa: E402
from starai.engines.text.options import TextOptions  # noqa: E402
from starai.engines.text.pool import KeyValuePool  # noqa: E402
from starai.engines.text.stage import open_stage  # noqa: E402
from starai.models.catalog import open_model  # noqa: E402

FAMILIES = [
    *("llama", "qwen3", "gemma2", "gemma3", "mistral", "gpt_oss", "qwen3_moe", "phi3"),
    *("granite", "olmo2", "smollm3", "gpt2", "opt"),
]
SHARED = Path(os.environ.get("STARAI_SHARED_DATA", "../shared/data"))
#: Two sequences: prompts side by side, then a piece with a past beside a single token, twice.
STEPS = [[(0, 0, 9), (1, 0, 7)], [(0, 9, 1), (1, 7, 12)], [(0, 10, 1), (1, 19, 1)]]
TABLES = [(0,), (2, 1)]


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def run_whole(manifest, bits=16, *, native=False):
    """Logits of all rows of all steps by the whole model."""
    model = TextModel(load_model(manifest, NAME), TextOptions(bits=bits, native=native)).module
    steps = passes(model, KeyValuePool(3), native=native)
    with torch.inference_mode():
        return [forward(model, run, ids, range(len(ids))) for run, ids in steps]


def passes(model, pool, *, native):
    """Each step's pass and token ids."""
    size = model.config.get_text_config().vocab_size
    for step in STEPS:
        spans = [Span(TABLES[n], start, count) for n, start, count in step]
        places = [(n, start + k) for n, start, count in step for k in range(count)]
        ids = [(37 * place + 101 * n + 5) % size for n, place in places]
        yield Pass(pool, spans, native=native), ids


def run_chain(stages, *, native=False):
    """The same by stages, each with its own KV memory."""
    pools = [KeyValuePool(3) for _ in stages]
    found = []
    plans = [passes(s.module, p, native=native) for s, p in zip(stages, pools, strict=True)]
    for steps in zip(*plans, strict=True):
        states = steps[0][1]
        for stage, (run, _) in zip(stages, steps, strict=True):
            states = stage.forward(run, states)
        found.append(states)
    return found


def chain(manifest, *cuts, bits=16, native=False):
    """Stages between the cuts."""
    ranges = pairwise(cuts)
    return [open_stage(manifest, a, b, bits=bits, native=native) for a, b in ranges]


@pytest.mark.parametrize(
    ("family", "cuts"),
    [(family, (0, 1, 3)) for family in FAMILIES]
    + [(family, (0, 1, 2, 3)) for family in ("qwen3", "gemma2", "gpt2")],
)
def test_chained_stages_equal_the_whole_model(folder_of, family, cuts):
    """Logits of prompts, pieces and single tokens are the same to the last bit in float32."""
    manifest = open_model(str(folder_of(family)))
    stages = chain(manifest, *cuts)
    assert [s.takes_ids for s in stages] == [True] + [False] * (len(stages) - 1)
    assert [s.gives_logits for s in stages] == [False] * (len(stages) - 1) + [True]
    for found, expected in zip(run_chain(stages), run_whole(manifest), strict=True):
        assert found.dtype == torch.float32
        assert torch.equal(found, expected)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_chained_quantised_stages_equal_the_whole_model(folder_of, family, bits):
    """Stages quantised one by one are what the quantised whole is, tied embeddings included."""
    manifest = open_model(str(folder_of(family)))
    stages = chain(manifest, 0, 1, 2, 3, bits=bits)
    assert all(("int8" if bits == 8 else "int4") in s.refitted.layers for s in stages)
    for found, expected in zip(run_chain(stages), run_whole(manifest, bits), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.skipif(library.load() is None, reason="no compiled kernels here")
@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_native_stages_equal_the_native_whole(folder_of, family, bits):
    """A stage's layers run as one C++ call, and chained they are the whole's one call."""
    manifest = open_model(str(folder_of(family)))
    stages = chain(manifest, 0, 1, 3, bits=bits, native=True)
    calls = []
    for stage in stages:
        layer = find_layers(stage.module)[1][stage.first]
        layer.self_attn.register_forward_hook(lambda *_: calls.append(1))
    found = run_chain(stages, native=True)
    assert len(calls) == len(stages)  # of three passes only the first, which makes the KV memory
    for one, expected in zip(found, run_whole(manifest, bits, native=True), strict=True):
        assert torch.equal(one, expected)


@pytest.mark.skipif(not (SHARED / "models").is_dir(), reason="no shared data here")
def test_stages_of_a_llama2c_file_equal_the_whole(folder_of):
    """A file that is read tensor by tensor can be read in part."""
    files = sorted((SHARED / "models").rglob("stories260K.bin"))
    if not files:
        pytest.skip("no stories260K.bin in the shared data")
    manifest = open_model(str(files[0]))
    stages = chain(manifest, 0, 2, 5)
    for found, expected in zip(run_chain(stages), run_whole(manifest), strict=True):
        assert torch.equal(found, expected)


def test_a_stage_has_only_the_keys_and_values_of_its_layers(folder_of):
    """KV memory is reserved for the stage's layers, under their numbers in the whole model."""
    stage = open_stage(open_model(str(folder_of("llama"))), 1, 3)
    memory = stage.reserve(TextOptions(kv_gib=0.001), 2, 32, SystemClock())
    assert sorted(memory.pool.layers) == [1, 2]
    assert memory.room_tokens == 64


def test_only_the_wanted_rows_become_logits(folder_of):
    """The last stage computes logits for the rows asked for, and states of all."""
    stage = open_stage(open_model(str(folder_of("llama"))), 1, 3)
    states = torch.linspace(-1, 1, 4 * 32).reshape(4, 32)
    every = stage.forward(Pass(KeyValuePool(1), [Span((0,), 0, 4)]), states)
    some = stage.forward(Pass(KeyValuePool(1), [Span((0,), 0, 4)]), states, [3, 1])
    none = stage.forward(Pass(KeyValuePool(1), [Span((0,), 0, 4)]), states, [])
    torch.testing.assert_close(some, every[[3, 1]])
    assert none.shape == (0, 300)
    assert stage.final_states.shape == (4, 32)


def test_a_stage_holds_about_its_share(tmp_path):
    """Resident memory grows by a stage's share of the weights, not by the whole model."""
    if not Path("/proc/self/status").exists():
        pytest.skip("resident memory is read from /proc")
    config = transformers.LlamaConfig(
        vocab_size=300,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=10,
        num_attention_heads=8,
        eos_token_id=2,
    )
    whole = weight_bytes(_save(config, tmp_path))
    before = _resident_bytes()
    stage = open_stage(open_model(str(tmp_path)), 4, 6)
    grown = _resident_bytes() - before
    layers = 2 * (4 * 512 * 512 + 3 * 512 * 1536 + 2 * 512) * 4
    # No table, no head: the final norm is all that it has beside its layers.
    assert layers <= stage.weight_bytes <= layers + 4096
    assert stage.weight_bytes < 0.21 * whole
    # Fusing holds one layer twice for a moment, and the allocator keeps some of that.
    assert grown < 0.45 * whole


def _save(config, folder):
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    vocabulary = {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}
    (folder / "tokenizer.json").write_text(json.dumps(vocabulary))
    return model


def _resident_bytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS"))


@pytest.mark.parametrize(("first", "end"), [(0, 4), (3, 4), (-1, 2), (2, 2), (2, 1), (0, 10**30)])
def test_layers_that_are_not_there_are_refused(folder_of, first, end):
    """A range outside the model, empty or the wrong way round says so."""
    with pytest.raises(ConfigurationRefused, match=rf"layers {first} to {end}"):
        open_stage(open_model(str(folder_of("llama"))), first, end)


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("gemma4", "besides hidden states and positions"),
        ("bloom", "does not run here|attention interface"),
        ("falcon", "."),
        ("mamba", "linear_attention"),
        ("falcon_h1", "."),
        ("llama4", "chunked_attention"),
    ],
)
def test_models_that_parts_would_get_wrong_are_refused(folder_of, family, reason):
    """A layer that is told more than hidden states and positions, or keeps state, is refused."""
    with pytest.raises(ModelFileRefused, match=reason):
        open_stage(open_model(str(folder_of(family))), 1, 2)


def test_a_model_that_changes_states_between_layers_is_refused(folder_of, monkeypatch):
    """Code between two layers belongs to neither stage: it is noticed."""

    def call(self, states, *args, **more):
        return torch.nn.Module.__call__(self, states * 1.0, *args, **more)

    monkeypatch.setattr(modeling_llama.LlamaDecoderLayer, "__call__", call)
    with pytest.raises(ModelFileRefused, match="comes out of layer 1"):
        open_stage(open_model(str(folder_of("llama"))), 1, 3)


@pytest.mark.parametrize(
    "given",
    [
        torch.zeros(4, 31),
        torch.zeros(3, 32),
        torch.zeros(1, 4, 32),
        torch.zeros(4, 32, dtype=torch.bfloat16),
        [1, 2, 3, 4],
    ],
)
def test_hidden_states_of_another_form_are_refused(folder_of, given):
    """Shape and type must be what the stage before would give."""
    stage = open_stage(open_model(str(folder_of("llama"))), 1, 2)
    with pytest.raises(InvalidRequest, match="hidden states"):
        stage.forward(Pass(KeyValuePool(1), [Span((0,), 0, 4)]), given)


@pytest.mark.parametrize("given", [[1, 2], [1, 2, 300], [-1, 2, 3], torch.zeros(3, 32)])
def test_token_ids_of_another_form_are_refused(folder_of, given):
    """The first stage takes as many ids of the vocabulary as the pass has tokens."""
    stage = open_stage(open_model(str(folder_of("llama"))), 0, 1)
    with pytest.raises(InvalidRequest, match="token ids"):
        stage.forward(Pass(KeyValuePool(1), [Span((0,), 0, 3)]), given)


@pytest.mark.parametrize("layer", [1, 2])
def test_what_a_stage_lacks_it_does_not_miss(folder_of, tmp_path, layer):
    """A tensor too few is refused in the stage that needs it, and in no other."""
    folder = shutil.copytree(folder_of("llama"), tmp_path / "missing")
    weights = load_file(folder / "model.safetensors")
    del weights[f"model.layers.{layer}.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    manifest = open_model(str(folder))
    for first in range(3):
        if first == layer:
            with pytest.raises(ModelFileRefused, match=f"layers.{layer}.mlp.up_proj"):
                open_stage(manifest, first, first + 1)
        else:
            assert open_stage(manifest, first, first + 1).first == first
