"""Quantised files of others become our layers where they can, and floats where not."""

from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from starai.core.errors import ModelFileRefused  # noqa: E402
from starai.engines.linear.base import Linear  # noqa: E402
from starai.engines.linear.fusing import refit  # noqa: E402
from starai.engines.text.loading import load_model  # noqa: E402
from starai.models.catalog import open_model  # noqa: E402
from starai.models.checkpoints.files import write_safetensors  # noqa: E402
from starai.models.checkpoints.opening import open_checkpoint  # noqa: E402
from starai.models.gguf.export import export_gguf  # noqa: E402

IDS = torch.tensor([[5, 9, 200, 17, 33, 4]])


def logits(model):
    with torch.inference_mode():
        return model(IDS, use_cache=False).logits


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize(
    ("kind", "kinds", "off"),
    [("bf16", {"bf16"}, 0.03), ("q8_0", {"int8", "bf16"}, 0.15), ("q4_0", {"int4"}, 1.0)],
)
def test_gguf_computes_what_its_folder_does(folder_of, tmp_path, family, kind, kinds, off):
    """Within what the type costs; rows without whole blocks stay floats."""
    manifest = open_model(str(folder_of(family)))
    export_gguf(manifest, kind, tmp_path / "x.gguf")
    model = load_model(open_model(str(tmp_path / "x.gguf")), "eager")
    expected = logits(load_model(manifest, "eager"))
    found = logits(model)
    assert (found - expected).norm() < off * expected.norm()
    layers = {module.kind for module in model.modules() if isinstance(module, Linear)}
    assert layers - {"int8"} <= kinds
    report = refit(model, "bf16")
    assert kinds <= set(report.layers)
    assert report.tied == (family == "qwen3")


def test_q4_0_layers_hold_the_files_own_numbers(folder_of, tmp_path):
    """Nothing is rounded twice."""
    export_gguf(open_model(str(folder_of("llama"))), "q4_0", tmp_path / "x.gguf")
    manifest = open_model(str(tmp_path / "x.gguf"))
    model, checkpoint = load_model(manifest, "eager"), open_checkpoint(manifest)
    name = "model.layers.1.self_attn.k_proj"
    layer = model.get_submodule(name)
    assert layer.kind == "int4"
    assert np.array_equal(layer.dequantised().numpy(), checkpoint.floats(name + ".weight"))


def gptq_folder(source, target):
    """The same model with every projection of its layers in GPTQ's layout, groups of 16."""
    checkpoint = open_checkpoint(open_model(str(source)))
    tensors = {}
    for name in checkpoint.shapes:
        weight = checkpoint.floats(name)
        if "_proj" not in name:
            tensors[name] = weight
            continue
        groups = weight.reshape(len(weight), -1, 16)
        scale = (np.abs(groups).max(-1) / 7).astype(np.float16)
        codes = np.rint(groups / scale[..., None].astype(np.float32)).astype(np.int64) + 8
        codes = codes.clip(0, 15).reshape(weight.shape)
        shifts = np.arange(8, dtype=np.uint32) * 4
        words = (codes.T.reshape(-1, 8, len(weight)).astype(np.uint32) << shifts[:, None]).sum(1)
        stem = name.removesuffix("weight")
        tensors[stem + "qweight"] = words.astype(np.uint32).view(np.int32)
        tensors[stem + "scales"] = np.ascontiguousarray(scale.T)
        tensors[stem + "qzeros"] = np.full(
            (weight.shape[1] // 16, len(weight) // 8), 0x77777777, np.int32
        )
    names = {"float32": "F32", "float16": "F16", "int32": "I32"}
    kinds = {name: (names[str(a.dtype)], a.shape) for name, a in tensors.items()}
    write_safetensors(target / "model.safetensors", kinds, tensors.values())
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 16}
    (target / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "generation_config.json"):
        (target / name).write_bytes((source / name).read_bytes())


def test_a_gptq_folder_runs(folder_of, tmp_path):
    """Opened, counted, dequantised at load, and quantised anew if asked."""
    source = folder_of("llama")
    gptq_folder(source, tmp_path)
    manifest = open_model(str(tmp_path))
    assert manifest.num_parameters == open_model(str(source)).num_parameters
    model = load_model(manifest, "eager")
    expected = logits(load_model(open_model(str(source)), "eager"))
    found = logits(model)
    assert torch.cosine_similarity(found.flatten(), expected.flatten(), dim=0) > 0.9
    assert type(model.model.layers[0].mlp.up_proj) is torch.nn.Linear
    assert refit(model, "int8").layers == {"int8": 13}


def test_a_gptq_folder_without_a_layer_is_refused(folder_of, tmp_path):
    """What is missing is named."""
    gptq_folder(folder_of("llama"), tmp_path)
    manifest = open_model(str(tmp_path))
    checkpoint = open_checkpoint(manifest)
    kept = {n: i for n, i in checkpoint.source.tensors.items() if "layers.1.mlp.up_proj" not in n}
    arrays = [checkpoint.source.raw(name) for name in kept]
    kinds = {name: (info.dtype, info.shape) for name, info in kept.items()}
    write_safetensors(tmp_path / "model.safetensors", kinds, arrays)
    with pytest.raises(ModelFileRefused, match=r"layers\.1\.mlp\.up_proj"):
        load_model(open_model(str(tmp_path)), "eager")
