"""Quantised folders open again, answer alike, and what is lost is measured."""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from starai.core.errors import ConfigurationRefused, ModelFileRefused  # noqa: E402
from starai.engines.linear.embedding import TiedEmbedding  # noqa: E402
from starai.engines.linear.fusing import refit  # noqa: E402
from starai.engines.linear.offline import quantise_model  # noqa: E402
from starai.engines.linear.quality import perplexity, windows_of  # noqa: E402
from starai.engines.linear.saving import save  # noqa: E402
from starai.engines.text.loading import load_model  # noqa: E402
from starai.models.catalog import open_model  # noqa: E402

IDS = torch.tensor([[5, 9, 200, 17, 33, 4]])


def logits(model):
    with torch.inference_mode():
        return model(IDS, use_cache=False).logits


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "gpt_oss", "gpt2", "qwen3_moe"])
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_saved_model_opens_as_it_was(folder_of, tmp_path, family, kind):
    """What a folder gives back computes the very same logits, in the same few bytes."""
    manifest = open_model(str(folder_of(family)))
    model = load_model(manifest, "eager")
    report = refit(model, kind)
    save(model, manifest, kind, tmp_path / "out")
    found = open_model(str(tmp_path / "out"))
    assert found.num_parameters == manifest.num_parameters
    assert found.root != manifest.root
    again = load_model(found, "eager")
    second = refit(again, kind)
    assert torch.equal(logits(again), logits(model))
    assert second.layers == report.layers
    assert second.bytes_after == report.bytes_after
    if report.tied:
        assert isinstance(again.get_input_embeddings(), TiedEmbedding)


def test_a_folder_in_use_is_not_overwritten(folder_of, tmp_path):
    """Neither a model nor anything else of the user's is lost."""
    (tmp_path / "precious").write_text("x")
    with pytest.raises(ConfigurationRefused, match="not empty"):
        quantise_model(open_model(str(folder_of("llama"))), "int8", tmp_path)
    assert (tmp_path / "precious").read_text() == "x"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 2}, "quantise the model again"),
        ({"quant_method": "unheard-of"}, "unheard-of"),
    ],
)
def test_folders_of_another_kind_are_refused(folder_of, tmp_path, change, said):
    """A newer version or an unknown method is named, with what to do."""
    manifest = open_model(str(folder_of("llama")))
    model = load_model(manifest, "eager")
    refit(model, "int8")
    save(model, manifest, "int8", tmp_path / "out")
    path = tmp_path / "out" / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] |= change
    path.write_text(json.dumps(config))
    with pytest.raises(ModelFileRefused, match=said):
        open_model(str(tmp_path / "out"))


def test_windows_begin_with_the_begin_token_and_lose_nothing():
    """Every id is predicted once, but for the first of a model without a begin token."""
    assert windows_of([1, 5, 6, 7, 8, 9], 1, 3) == [[1, 5, 6], [1, 7, 8], [1, 9]]
    assert windows_of([5, 6, 7, 8, 9], None, 3) == [[5, 6, 7], [8, 9]]
    with pytest.raises(ConfigurationRefused, match="too short"):
        windows_of([1], 1, 16)


def test_perplexity_is_what_transformers_says(folder_of):
    """Equal to the exponential of transformers' own loss."""
    model = load_model(open_model(str(folder_of("llama"))), "sdpa")
    loss = model(IDS, labels=IDS).loss
    assert perplexity(model, IDS.tolist()) == pytest.approx(float(loss.exp()), rel=1e-4)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(("kind", "most", "tokens"), [("int8", 0.003, 12288), ("int4", 0.1, 2048)])
def test_stories260k_predicts_wikitext_as_well(shared_data, tmp_path, kind, most, tokens):
    """int8 is within 0.3 % of float32, int4 within what 4 bits cost so small a model."""
    path = shared_data / "models/stories260K/stories260K.bin"
    text = shared_data / "text/wikitext2/valid.txt"
    if not (path.is_file() and text.is_file()):
        pytest.skip("no stories260K or no WikiText")
    manifest = open_model(str(path))
    seen = []
    outcome = quantise_model(
        manifest,
        kind,
        tmp_path / "out",
        text=text,
        tokens=tokens,
        progress=lambda what, done, total: seen.append((what, done, total)),
    )
    assert abs(outcome.after / outcome.before - 1) < most
    assert outcome.refitted.bytes_after < 0.32 * outcome.refitted.bytes_before
    assert seen[-1][0] == "perplexity after"
    assert seen[-1][1] == seen[-1][2] > outcome.tokens
