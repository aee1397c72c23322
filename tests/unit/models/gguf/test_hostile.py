"""Files that lie, are cut off, or are of a kind that cannot be read are refused with the reason."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, strategies as st

from starai.core.errors import ModelFileRefused
from starai.models.catalog import open_model
from starai.models.codec import open_codec
from starai.models.gguf.blocks import F32
from starai.models.gguf.export import export_gguf
from starai.models.gguf.header import read_header
from starai.models.gguf.writing import write_gguf


@pytest.fixture
def gguf(folder, tmp_path):
    path = tmp_path / "tiny.gguf"
    export_gguf(open_model(str(folder)), "q8_0", path)
    return path


def head(tensors=0, settings=0, version=3):
    return struct.pack("<4sIQQ", b"GGUF", version, tensors, settings)


def text(value):
    return struct.pack("<Q", len(value)) + value


def tensor(name=b"a", dims=(32,), kind=0, offset=0):
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


HOSTILE = {
    "no magic": (b"GGML" + bytes(40), "no GGUF"),
    "empty": (b"", "truncated"),
    "version 1": (head(version=1), "version 1"),
    "big-endian": (struct.pack(">4sIQQ", b"GGUF", 3, 0, 0), "version"),
    "many tensors": (head(tensors=1 << 60), "claims"),
    "many settings": (head(settings=1 << 60), "claims"),
    "long text": (head(settings=1) + struct.pack("<Q", 1 << 62), "claims a text"),
    "cut text": (head(settings=1) + struct.pack("<Q", 1 << 20), "truncated"),
    "unknown type": (head(settings=1) + text(b"a") + struct.pack("<I", 77), "unknown type 77"),
    "list of lists": (
        head(settings=1) + text(b"a") + struct.pack("<IIQ", 9, 9, 1 << 20),
        "unknown type 9",
    ),
    "long list": (head(settings=1) + text(b"a") + struct.pack("<IIQ", 9, 4, 1 << 50), "list of"),
    "cut list": (head(settings=1) + text(b"a") + struct.pack("<IIQ", 9, 4, 1 << 20), "truncated"),
    "twice": (head(settings=2) + 2 * (text(b"a") + struct.pack("<IB", 0, 1)), "twice"),
    "no dimensions": (head(1) + tensor(dims=()), "0 dimensions"),
    "dimensions": (head(1) + tensor(dims=(1,) * 5), "5 dimensions"),
    "huge": (head(1) + tensor(dims=(1 << 39, 1 << 39)), "impossible shape"),
    "zero": (head(1) + tensor(dims=(0,)), "impossible shape"),
    "no whole blocks": (head(1) + tensor(dims=(33,), kind=8), "whole blocks"),
    "k-quant": (head(1) + tensor(dims=(256,), kind=12), "Q4_K.*Q8_0"),
    "unheard-of": (head(1) + tensor(dims=(256,), kind=99), "type 99"),
    "beyond the end": (head(1) + tensor(dims=(1 << 20,)), "truncated"),
    "far": (head(1) + tensor(offset=1 << 62) + bytes(999), "truncated"),
    "overlap": (head(2) + tensor() + tensor(b"b", offset=64) + bytes(999), "overlaps 'a'"),
    "crooked": (head(1) + tensor(offset=31) + bytes(999), "overlaps"),
    "name twice": (head(2) + tensor() + tensor(offset=128) + bytes(999), "twice"),
    "alignment": (
        head(0, 1) + text(b"general.alignment") + struct.pack("<II", 4, 0),
        "alignment of 0",
    ),
    "alignment text": (
        head(0, 1) + text(b"general.alignment") + struct.pack("<I", 8) + text(b"x"),
        "alignment of 'x'",
    ),
}


@pytest.mark.parametrize(("raw", "said"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_heads_are_refused(tmp_path, raw, said):
    """Whatever a file claims, nothing is reserved for it, and the reason is told."""
    path = tmp_path / "bad.gguf"
    path.write_bytes(raw)
    with pytest.raises(ModelFileRefused, match=rf"bad\.gguf: .*{said}"):
        read_header(path)


def test_every_truncation_is_refused(gguf, tmp_path):
    """Cut anywhere, the file is refused, never half read."""
    raw = gguf.read_bytes()
    path = tmp_path / "cut.gguf"
    for length in [*range(0, 200, 7), *range(200, len(raw), len(raw) // 97), len(raw) - 200]:
        path.write_bytes(raw[:length])
        with pytest.raises(ModelFileRefused):
            open_model(str(path))


@given(at=st.integers(0, 20_000), value=st.integers(0, 255))
def test_a_damaged_byte_never_crashes(tmp_path_factory, at, value):
    """A wrong byte in the head gives another model or a refusal, nothing else."""
    folder = tmp_path_factory.getbasetemp()
    source = folder / "damage-source.gguf"
    if not source.exists():
        _write_small(source)
    raw = bytearray(source.read_bytes())
    raw[at % len(raw)] = value
    path = folder / "damaged.gguf"
    path.write_bytes(raw)
    try:
        open_codec(open_model(str(path))).encode("hello there")
    except ModelFileRefused as error:
        assert error.message  # noqa: PT017 - either outcome is right


SETTINGS = {
    "general.architecture": "llama",
    "llama.block_count": 1,
    "llama.context_length": 64,
    "llama.embedding_length": 32,
    "llama.feed_forward_length": 32,
    "llama.attention.head_count": 2,
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "▁", "a", "b", "ab", "▁ab"],
    "tokenizer.ggml.scores": [0.0, 0.0, 0.0, -3.0, -4.0, -5.0, -1.0, -2.0],
    "tokenizer.ggml.token_type": [2, 3, 3, 1, 1, 1, 1, 1],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
}
SHAPES = {
    "token_embd.weight": (8, 32),
    "output_norm.weight": (32,),
    "blk.0.attn_q.weight": (32, 32),
}


def _write_small(path, drop=(), shapes=SHAPES, **changes):
    settings = {k: v for k, v in {**SETTINGS, **changes}.items() if k not in drop}
    tensors = {name: (shape, F32) for name, shape in shapes.items()}
    parts = (np.ones(int(np.prod(s)), np.float32).view(np.uint8) for s in shapes.values())
    write_gguf(path, settings, tensors, parts)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"general.architecture": "mamba"}, "'mamba'.*folder"),
        ({"llama.expert_count": 8}, "experts"),
        ({"llama.block_count": 7}, "7 layers"),
        ({"llama.block_count": 1 << 31}, "block_count"),
        ({"llama.attention.head_count": 0}, "head_count"),
        ({"llama.attention.head_count": 3}, "head"),
        ({"llama.attention.head_count": [2, 2]}, "head_count"),
        ({"llama.attention.value_length": 8}, "differ in width"),
        ({"llama.rope.dimension_count": 8}, "rotated"),
        ({"llama.rope.scaling.type": "longrope"}, "longrope"),
        ({"llama.attention.layer_norm_rms_epsilon": "x"}, "epsilon"),
        ({"tokenizer.ggml.eos_token_id": 8}, "end token"),
    ],
)
def test_settings_that_make_no_model_are_refused(tmp_path, changes, said):
    """A setting out of its range is named."""
    path = tmp_path / "odd.gguf"
    _write_small(path, **changes)
    with pytest.raises(ModelFileRefused, match=rf"odd\.gguf.*{said}"):
        open_model(str(path))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tokenizer.ggml.model": "t5"}, "'t5'"),
        ({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "odd"}, "'odd'"),
        ({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.merges": ["ab"]}, "merge 'ab'"),
        ({"tokenizer.ggml.tokens": ["a", "a"]}, "twice"),
        ({"tokenizer.ggml.tokens": [1, 2]}, "list of str"),
        ({"tokenizer.ggml.scores": [1.0]}, "scores"),
        ({"tokenizer.ggml.token_type": [1]}, "tokens"),
    ],
)
def test_tokenizers_that_cannot_be_rebuilt_are_refused(tmp_path, changes, said):
    """Guessed tokens are worse than none."""
    path = tmp_path / "odd.gguf"
    _write_small(path, **changes)
    manifest = open_model(str(path))
    with pytest.raises(ModelFileRefused, match=said):
        open_codec(manifest)


def test_a_small_file_of_settings_is_a_model(tmp_path):
    """What the refusals above start from is sound, and its scores decide the merges."""
    path = tmp_path / "small.gguf"
    _write_small(path)
    assert open_codec(open_model(str(path))).encode("ab ab") == [1, 7, 7]


def test_tensors_of_another_architecture_are_refused(tmp_path):
    """A tensor without a place means that the model computes something else."""
    path = tmp_path / "odd.gguf"
    _write_small(path, shapes={**SHAPES, "blk.0.attn_sinks.weight": (2,)})
    with pytest.raises(ModelFileRefused, match="attn_sinks"):
        open_model(str(path))


def test_a_vocabulary_smaller_than_its_tokenizer_is_refused(tmp_path):
    """Ids that the model cannot take never reach it."""
    path = tmp_path / "odd.gguf"
    _write_small(path, shapes={**SHAPES, "token_embd.weight": (5, 32)})
    with pytest.raises(ModelFileRefused, match="reach 7"):
        open_codec(open_model(str(path)))
