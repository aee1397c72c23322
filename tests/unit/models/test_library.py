"""The library of open models: its numbers agree with each other and with published files."""

from __future__ import annotations

import msgspec
import pytest

from starai.core.errors import ModelNotFound
from starai.models.library import (
    QUANTISATIONS,
    LibraryModel,
    find,
    library,
    read_bytes,
    weight_bytes,
)


@pytest.mark.parametrize("model", library(), ids=lambda model: model.name)
def test_parameters_follow_from_the_shape(model: LibraryModel) -> None:
    """Counted from the shape they are the makers' to 1 %; encoders' position tables are 2 %."""
    allowed = 0.02 if model.modality == "embedding" else 0.01
    assert model.counted_parameters == pytest.approx(model.parameters, rel=allowed)


@pytest.mark.parametrize("model", library(), ids=lambda model: model.name)
def test_entries_are_plausible(model: LibraryModel) -> None:
    """Heads divide, windows are windows, and quantisations are known."""
    shape = model.shape
    assert shape.heads % shape.kv_heads == 0
    assert bool(shape.window) == bool(shape.full_layers)
    assert shape.full_layers < shape.layers
    assert set(model.quantisations) <= set(QUANTISATIONS)
    assert 0 < model.active_parameters <= model.parameters * 1.01
    assert model.kv_bytes(10_000) <= 10_000 * model.kv_bytes_per_token


def test_names_and_hubs_are_unique() -> None:
    """No model is in twice, and each is found by either name."""
    assert len(library()) >= 40
    assert len({model.name for model in library()}) == len(library())
    assert len({model.hub for model in library()}) == len(library())
    assert find("llama-3.1-8b") is find("meta-llama/Llama-3.1-8B-Instruct")
    with pytest.raises(ModelNotFound, match="models library"):
        find("gpt-4")


def test_the_library_spans_what_people_have() -> None:
    """From a tenth of a billion weights to more than any one device holds, of each kind."""
    sizes = [model.parameters for model in library() if model.modality == "text"]
    assert min(sizes) < 0.2e9
    assert max(sizes) > 400e9
    assert {model.modality for model in library()} == {"text", "text+image", "embedding"}


@pytest.mark.parametrize(
    ("name", "kind", "gigabytes"),
    [
        ("llama-3.2-3b", "Q4_K_M", 2.02),
        ("llama-3.1-8b", "Q4_K_M", 4.92),
        ("llama-3.1-8b", "Q5_K_M", 5.73),
        ("llama-3.1-8b", "Q6_K", 6.60),
        ("llama-3.1-8b", "Q8_0", 8.54),
        ("llama-3.1-70b", "Q4_K_M", 42.52),
        ("qwen2.5-7b", "Q4_K_M", 4.68),
        ("deepseek-r1-distill-14b", "Q4_K_M", 8.99),
        ("gemma-2-9b", "Q4_K_M", 5.76),
        ("gpt-oss-20b", "MXFP4", 12.1),
        ("gpt-oss-120b", "MXFP4", 63.4),
        ("deepseek-r1-671b", "Q4_K_M", 404.0),
    ],
)
def test_weights_are_as_heavy_as_published_files(name: str, kind: str, gigabytes: float) -> None:
    """Sizes of GGUF files on the hub, to 2 %."""
    found = weight_bytes(find(name), QUANTISATIONS[kind]) / 1e9
    assert found == pytest.approx(gigabytes, rel=0.02)


def test_a_mixture_reads_its_active_part() -> None:
    """A token of a mixture of experts reads a small share of the weights."""
    model, kind = find("qwen3-30b-a3b"), QUANTISATIONS["BF16"]
    assert model.active_parameters == pytest.approx(3.3e9, rel=0.1)
    assert read_bytes(model, kind) < 0.12 * weight_bytes(model, kind)
    assert find("gpt-oss-20b").active_parameters == pytest.approx(3.6e9, rel=0.01)


def test_keys_and_values() -> None:
    """Known sizes: 128 KiB a token of Llama 3.1 8B; windows stop growing; latents are small."""
    assert find("llama-3.1-8b").kv_bytes_per_token == 131072
    gemma = find("gemma-3-27b")
    assert gemma.kv_bytes(100_000) < 100_000 * gemma.kv_bytes_per_token / 4
    assert find("deepseek-r1-671b").kv_bytes_per_token == 61 * 576 * 2
    assert find("bge-m3").kv_bytes(8192) == 0


def test_a_misspelt_field_is_refused() -> None:
    """The data file cannot say something that is not read."""
    entry = msgspec.to_builtins(find("llama-3.2-1b")) | {"contxt": 1}
    with pytest.raises(msgspec.ValidationError, match="contxt"):
        msgspec.convert(entry, LibraryModel)
