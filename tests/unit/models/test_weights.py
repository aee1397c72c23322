"""Safetensors headers from friends and from enemies; llama2.c's tensors under their new names."""

from __future__ import annotations

import contextlib
import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from starai.core.errors import ModelFileRefused
from starai.models.llama2c import read_llama2c
from starai.models.weights import read_safetensors_header


def file_of(tmp_path, header, data: bytes = b""):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


def entry(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_a_good_header_is_read(tmp_path):
    """Names, shapes and places, in the order of the bytes; metadata is no tensor."""
    header = {"__metadata__": {"a": "b"}, "y": entry([2], 16, 24), "x": entry([2, 2], 0, 16)}
    path = file_of(tmp_path, header, bytes(24))
    tensors = read_safetensors_header(path)
    assert list(tensors) == ["x", "y"]
    assert tensors["x"].shape == (2, 2)
    assert tensors["x"].num_elements == 4
    assert tensors["y"].end == path.stat().st_size


@pytest.mark.parametrize(
    ("header", "data", "reason"),
    [
        ({"x": entry([4], 0, 16)}, bytes(15), "truncated|describes"),
        ({"x": entry([4], 0, 16)}, bytes(17), "describes"),
        ({"x": entry([4], 0, 12)}, bytes(12), "shape"),
        ({"x": entry([4], 4, 20)}, bytes(20), "hole"),
        ({"x": entry([4], 0, 16), "y": entry([4], 8, 24)}, bytes(24), "overlaps"),
        ({"x": entry([4], 16, 0)}, bytes(16), "malformed"),
        ({"x": entry([-4], 0, 16)}, bytes(16), "malformed"),
        ({"x": entry([1 << 62, 1 << 62], 0, 16)}, bytes(16), "malformed"),
        ({"x": entry([1] * 9, 0, 4)}, bytes(4), "malformed"),
        ({"x": entry([True], 0, 4)}, bytes(4), "malformed"),
        ({"x": entry([4], 0, 16, "F33")}, bytes(16), "F33"),
        ({"x": {"dtype": "F32"}}, b"", "malformed"),
        ({"x": 5}, b"", "malformed"),
        ({}, b"", "0 tensors"),
        (b"[1]", b"", "JSON object"),
        (b"{" * 100, b"", "JSON object"),
    ],
)
def test_hostile_headers_are_refused(tmp_path, header, data, reason):
    """Each with its reason, none with a crash."""
    with pytest.raises(ModelFileRefused, match=reason):
        read_safetensors_header(file_of(tmp_path, header, data))


@pytest.mark.parametrize("raw", [b"", b"1234567", b"\xff" * 8, struct.pack("<Q", 1 << 40)])
def test_impossible_lengths_are_refused(tmp_path, raw):
    """A header length beyond the file is caught before anything is allocated."""
    path = tmp_path / "w.safetensors"
    path.write_bytes(raw)
    with pytest.raises(ModelFileRefused):
        read_safetensors_header(path)


def test_absent_files_are_refused(tmp_path):
    """A file that is not there is a refusal too."""
    with pytest.raises(ModelFileRefused, match="cannot be read"):
        read_safetensors_header(tmp_path / "gone")


@settings(max_examples=300)
@given(st.data())
def test_mutated_files_never_crash(tmp_path_factory, data):
    """Any bytes are read or refused."""
    header = json.dumps({"x": entry([2], 0, 8), "y": entry([2], 8, 16)}).encode()
    raw = bytearray(struct.pack("<Q", len(header)) + header + bytes(16))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "mutated.safetensors"
    path.write_bytes(bytes(raw[: data.draw(st.integers(0, len(raw)))]))
    with contextlib.suppress(ModelFileRefused):
        read_safetensors_header(path)


@pytest.mark.parametrize("tied", [True, False])
def test_llama2c_tensors_get_their_names_and_halves(tmp_path, tied):
    """Every number arrives once; query and key rows go from pairs to halves."""
    dim, hidden, layers, heads, kv_heads, vocab, context = 8, 12, 2, 2, 1, 10, 4
    shapes = [(vocab, dim), (layers, dim), (layers, dim, dim)]
    shapes += [(layers, 4, dim)] * 2 + [(layers, dim, dim), (layers, dim)]
    shapes += [(layers, hidden, dim), (layers, dim, hidden), (layers, hidden, dim), (dim,)]
    shapes += [(context, 2)] * 2 + ([] if tied else [(vocab, dim)])
    count = sum(int(np.prod(shape)) for shape in shapes)
    path = tmp_path / "m.bin"
    head = np.array(
        [dim, hidden, layers, heads, kv_heads, vocab if tied else -vocab, context], "<i4"
    )
    path.write_bytes(head.tobytes() + np.arange(count, dtype="<f4").tobytes())
    config, weights = read_llama2c(path)
    assert config["tie_word_embeddings"] is tied
    assert ("lm_head.weight" in weights) is not tied
    assert weights["model.layers.1.mlp.down_proj.weight"].shape == (dim, hidden)
    rope = 2 * context * 2
    assert sum(w.size for w in weights.values()) == count - rope
    first = vocab * dim + layers * dim  # where wq begins
    rows = weights["model.layers.0.self_attn.q_proj.weight"][:, 0]
    assert ((rows - first) / dim).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
