"""Each quantised format is read as its makers publish it; encoders here follow their layouts."""

from __future__ import annotations

import json

import numpy as np
import pytest

from starai.core.errors import ModelFileRefused
from starai.models.checkpoints.base import Packed
from starai.models.checkpoints.files import SafetensorsSource, write_safetensors
from starai.models.checkpoints.ours import stored
from starai.models.checkpoints.registry import checkpoint_of

N, K, GROUP = 32, 64, 16
NAME = "model.layers.0.mlp.up_proj"
TYPES = {"int32": "I32", "int64": "I64", "int8": "I8", "uint8": "U8", "float32": "F32"}
TYPES |= {"float16": "F16", "uint16": "BF16"}
RANDOM = np.random.default_rng(3)


def random_codes(*shape, bits=4):
    return RANDOM.integers(0, 1 << bits, shape, dtype=np.int64)


def random_scales(*shape):
    return RANDOM.uniform(0.01, 0.1, shape).astype(np.float16)


def packed_words(codes, bits, order=None):
    """Neighbouring codes of the last axis in 32-bit words, lowest first, or in ``order``."""
    fields = 32 // bits
    words = np.zeros((*codes.shape[:-1], codes.shape[-1] // fields), np.uint32)
    for field in range(fields):
        at = order[field] if order else field
        words |= codes[..., at::fields].astype(np.uint32) << np.uint32(field * bits)
    return words.view(np.int32)


def open_written(tmp_path, tensors, settings):
    """A checkpoint of these arrays and this ``quantization_config``."""
    kinds = {name: (TYPES[str(a.dtype)], a.shape) for name, a in tensors.items()}
    write_safetensors(tmp_path / "model.safetensors", kinds, tensors.values())
    source = SafetensorsSource(tmp_path, ["model.safetensors"])
    return checkpoint_of(source, {"quantization_config": settings})


def gptq(bits=4, version="gptq", act_order=False):
    """A layer as AutoGPTQ packs it, and the weight [N, K] that it means."""
    codes, scales = random_codes(K, N, bits=bits), random_scales(K // GROUP, N)
    zeros = random_codes(K // GROUP, N, bits=bits)
    group_of = np.arange(K, dtype=np.int32) // GROUP
    if act_order:
        RANDOM.shuffle(group_of)
    stored_zeros = zeros if version == "gptq_v2" else (zeros - 1) & ((1 << bits) - 1)
    tensors = {
        f"{NAME}.qweight": np.ascontiguousarray(packed_words(codes.T, bits).T),
        f"{NAME}.qzeros": packed_words(stored_zeros, bits),
        f"{NAME}.scales": scales,
        f"{NAME}.g_idx": group_of,
    }
    weight = (codes - zeros[group_of]) * scales.astype(np.float64)[group_of]
    return tensors, {"quant_method": "gptq", "bits": bits, "checkpoint_format": version}, weight.T


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("act_order", [False, True])
def test_gptq_is_dequantised(tmp_path, bits, version, act_order):
    """Codes, zeros (less one in version 1), scales and act-order give the weight."""
    tensors, settings, weight = gptq(bits, version, act_order)
    checkpoint = open_written(tmp_path, tensors, settings)
    assert dict(checkpoint.shapes) == {f"{NAME}.weight": (N, K)}
    assert checkpoint.quantised == {f"{NAME}.weight"}
    np.testing.assert_allclose(checkpoint.floats(f"{NAME}.weight"), weight, rtol=1e-6)


def test_gptq_without_group_indices_counts_in_order(tmp_path):
    """An absent g_idx means equal groups one after another."""
    tensors, settings, weight = gptq()
    del tensors[f"{NAME}.g_idx"]
    checkpoint = open_written(tmp_path, tensors, settings)
    np.testing.assert_allclose(checkpoint.floats(f"{NAME}.weight"), weight, rtol=1e-6)


def awq():
    """A layer as AutoAWQ packs it, and the weight that it means."""
    codes, zeros = random_codes(K, N), random_codes(K // GROUP, N)
    scales = random_scales(K // GROUP, N)
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    tensors = {
        f"{NAME}.qweight": packed_words(codes, 4, order),
        f"{NAME}.qzeros": packed_words(zeros, 4, order),
        f"{NAME}.scales": scales,
        f"{NAME}.bias": np.arange(N, dtype=np.float16),
    }
    group_of = np.arange(K) // GROUP
    weight = (codes - zeros[group_of]) * scales.astype(np.float64)[group_of]
    return tensors, {"quant_method": "awq", "bits": 4, "version": "gemm"}, weight.T


def test_awq_is_dequantised(tmp_path):
    """The interleaved order is undone; what is no weight stays what it is."""
    tensors, settings, weight = awq()
    checkpoint = open_written(tmp_path, tensors, settings)
    assert dict(checkpoint.shapes) == {f"{NAME}.weight": (N, K), f"{NAME}.bias": (N,)}
    np.testing.assert_allclose(checkpoint.floats(f"{NAME}.weight"), weight, rtol=1e-6)
    assert checkpoint.floats(f"{NAME}.bias").tolist() == list(range(N))


def compressed(bits=4, groups=K // GROUP, asymmetric=False, inputs=K):
    """A layer as compressed-tensors packs it, and the weight that it means."""
    half, fields = 1 << (bits - 1), 32 // bits
    size = GROUP if groups > 1 else inputs
    codes = random_codes(N, inputs, bits=bits)
    padded = np.zeros((N, -(-inputs // fields) * fields), np.int64)
    padded[:, :inputs] = codes
    scale = random_scales(N, groups)
    zero = random_codes(N, groups, bits=bits) if asymmetric else np.full((N, groups), half)
    tensors = {
        f"{NAME}.weight_packed": packed_words(padded, bits),
        f"{NAME}.weight_scale": scale,
        f"{NAME}.weight_shape": np.array([N, inputs], np.int64),
    }
    if asymmetric:
        words = packed_words(np.ascontiguousarray(zero.T), bits)
        tensors[f"{NAME}.weight_zero_point"] = np.ascontiguousarray(words.T)
    group_of = np.arange(inputs) // size
    weight = (codes - zero[:, group_of]) * scale.astype(np.float64)[:, group_of]
    settings = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"weights": {"num_bits": bits, "group_size": GROUP}}},
    }
    return tensors, settings, weight


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize(("groups", "inputs"), [(4, 64), (1, 64), (4, 56)])
def test_packed_compressed_tensors_are_dequantised(tmp_path, bits, asymmetric, groups, inputs):
    """Groups, whole rows, short last groups and zero points give the weight."""
    tensors, settings, weight = compressed(bits, groups, asymmetric, inputs)
    checkpoint = open_written(tmp_path, tensors, settings)
    assert dict(checkpoint.shapes) == {f"{NAME}.weight": (N, inputs)}
    np.testing.assert_allclose(checkpoint.floats(f"{NAME}.weight"), weight, rtol=1e-6)


@pytest.mark.parametrize("rows", [1, N])
def test_int8_compressed_tensors_are_dequantised(tmp_path, rows):
    """One scale a row, or one for all."""
    codes = RANDOM.integers(-128, 128, (N, K)).astype(np.int8)
    scale = random_scales(rows, 1)
    tensors = {f"{NAME}.weight": codes, f"{NAME}.weight_scale": scale}
    settings = {"quant_method": "compressed-tensors", "format": "int-quantized"}
    found = open_written(tmp_path, tensors, settings).floats(f"{NAME}.weight")
    np.testing.assert_allclose(found, codes * scale.astype(np.float64), rtol=1e-6)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_ours_gives_back_what_was_stored(tmp_path, kind):
    """Codes and scales come back bit for bit."""
    if kind == "int8":
        codes = RANDOM.integers(-127, 128, (N, K)).astype(np.int8)
        packed = Packed("int8", codes, random_scales(N).astype(np.float32))
    else:
        packed = Packed("int4", random_codes(N, K).astype(np.uint8), random_scales(N, K // 32))
    tensors = dict(stored(f"{NAME}.weight", packed))
    checkpoint = open_written(tmp_path, tensors, {"quant_method": "starai", "version": 1})
    found = checkpoint.packed(f"{NAME}.weight")
    assert dict(checkpoint.shapes) == {f"{NAME}.weight": (N, K)}
    assert checkpoint.is_packed(f"{NAME}.weight")
    assert np.array_equal(found.codes, packed.codes)
    assert np.array_equal(found.scale, packed.scale)
    assert np.array_equal(checkpoint.floats(f"{NAME}.weight"), packed.floats())


def test_bfloat16_is_widened_exactly(tmp_path):
    """Plain tensors of all float types become float32."""
    values = np.array([[1.5, -2.0, 2.0**-100]], np.float32)
    bits = (values.view(np.uint32) >> 16).astype(np.uint16)
    checkpoint = open_written(tmp_path, {"a": bits, "b": values.astype(np.float16)}, None)
    assert np.array_equal(checkpoint.floats("a"), values)
    assert checkpoint.floats("b").dtype == np.float32
    assert checkpoint.num_parameters == 6
    assert not checkpoint.quantised


def misshapen():
    """Damaged tensors by name: what is damaged, how, and what the refusal says."""
    less = {
        "gptq scales": (gptq, f"{NAME}.scales", lambda a: a[:, :-1], "scales"),
        "gptq zeros": (gptq, f"{NAME}.qzeros", lambda a: a[:-1], "qzeros"),
        "gptq zero type": (gptq, f"{NAME}.qzeros", lambda a: a.astype(np.int64), "I64"),
        "gptq group": (gptq, f"{NAME}.g_idx", lambda a: a + 1, "g_idx"),
        "gptq groups": (gptq, f"{NAME}.g_idx", lambda a: a[1:], "g_idx"),
        "gptq flat": (gptq, f"{NAME}.qweight", np.ravel, "qweight"),
        "awq scales": (awq, f"{NAME}.scales", lambda a: a[:, :-1], "scales"),
        "awq groups": (awq, f"{NAME}.scales", lambda a: a[:3], "groups"),
        "awq zeros": (awq, f"{NAME}.qzeros", lambda a: a[:, 1:], "qzeros"),
        "ct scale": (compressed, f"{NAME}.weight_scale", lambda a: a[1:], "weight_scale"),
        "ct shape": (compressed, f"{NAME}.weight_shape", lambda a: a * 2, "weight_shape"),
        "ct far": (
            compressed,
            f"{NAME}.weight_shape",
            lambda a: a + np.array([0, 1 << 40]),
            "weight_shape",
        ),
        "ct bits": (compressed, f"{NAME}.weight_shape", lambda a: a - np.array([0, 40]), "bits"),
    }
    return [pytest.param(*case, id=name) for name, case in less.items()]


@pytest.mark.parametrize(("made", "name", "damage", "said"), misshapen())
def test_damaged_layers_are_refused(tmp_path, made, name, damage, said):
    """Parts that do not fit each other are named."""
    tensors, settings, _ = made()
    tensors[name] = np.ascontiguousarray(damage(tensors[name]))
    with pytest.raises(ModelFileRefused, match=said):
        open_written(tmp_path, tensors, settings).floats(f"{NAME}.weight")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"quant_method": "gptq", "bits": 3}, "3 bits"),
        ({"quant_method": "gptq"}, "None bits"),
        ({"quant_method": "awq", "bits": 8}, "8 bits"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "gemv"),
        ({"quant_method": "compressed-tensors", "format": "float-quantized"}, "float-quantized"),
        ({"quant_method": "fp8"}, "fp8"),
        ({"bits": 4}, "an unnamed method"),
        ("gptq", "an unnamed method"),
    ],
)
def test_methods_that_cannot_be_read_are_named(tmp_path, settings, said):
    """Better no model than a wrong one."""
    with pytest.raises(ModelFileRefused, match=said):
        open_written(tmp_path, {"a": np.zeros((2, 2), np.float32)}, settings)


def test_a_missing_part_is_named(tmp_path):
    """A layer without its scales is no layer."""
    tensors, settings, _ = gptq()
    del tensors[f"{NAME}.scales"]
    checkpoint = open_written(tmp_path, tensors, settings)
    with pytest.raises(ModelFileRefused, match=r"lack.*scales"):
        checkpoint.floats(f"{NAME}.weight")


def test_layers_of_nothing_are_refused(tmp_path):
    """No rows, and codes that are no matrix, make no layer."""
    tensors, settings, _ = gptq()
    tensors[f"{NAME}.qweight"] = tensors[f"{NAME}.qweight"][:, :0]
    with pytest.raises(ModelFileRefused, match="none of it 0"):
        open_written(tmp_path, tensors, settings).floats(f"{NAME}.weight")
    flat = open_written(
        tmp_path, {"a": np.zeros(4, np.int8)}, {"quant_method": "starai", "version": 1}
    )
    assert not flat.is_packed("a")
    with pytest.raises(ModelFileRefused, match="no plain weight"):
        flat.floats("a")


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path):
    """The header was right once; the bytes are gone now."""
    checkpoint = open_written(tmp_path, {"a": np.zeros((64, 64), np.float32)}, None)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelFileRefused, match="shrank"):
        checkpoint.floats("a")


def test_writing_needs_what_was_announced(tmp_path):
    """A writer that is handed another shape leaves no file behind under the name."""
    with pytest.raises(ValueError, match="announced"):
        write_safetensors(tmp_path / "m", {"a": ("F32", (2, 2))}, [np.zeros((2, 3), np.float32)])
    assert not (tmp_path / "m").exists()
    assert json.dumps(sorted(p.name for p in tmp_path.iterdir())) == '["m.part"]'
