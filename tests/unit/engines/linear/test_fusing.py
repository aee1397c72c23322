"""Refitted models compute what they did, in fewer products and fewer bytes."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from transformers import AutoModelForCausalLM  # noqa: E402

from starai.core.errors import ModelFileRefused  # noqa: E402
from starai.engines.linear.base import Linear  # noqa: E402
from starai.engines.linear.embedding import TiedEmbedding  # noqa: E402
from starai.engines.linear.fusing import refit, weight_bytes  # noqa: E402
from starai.engines.linear.groups import FusedGroup, Share  # noqa: E402
from starai.engines.linear.registry import quantise  # noqa: E402
from starai.engines.native.linear import INT8_COLUMNS_MAX  # noqa: E402

IDS = torch.tensor([[5, 9, 200, 17, 33, 4]])


def model_of(folder_of, family):
    return AutoModelForCausalLM.from_pretrained(folder_of(family)).eval().requires_grad_(False)


def logits(model):
    with torch.inference_mode():
        return model(IDS, use_cache=False).logits


@pytest.mark.parametrize(
    ("family", "groups", "kept"),
    [
        ("llama", 6, 0),
        ("qwen3", 6, 0),
        ("gemma2", 6, 0),
        ("gemma3", 6, 0),
        ("gpt_oss", 3, 3),
        ("qwen3_moe", 3, 3),
        ("gpt2", 0, 0),
    ],
)
def test_fused_floats_change_nothing(folder_of, family, groups, kept):
    """Every family gives the same logits, with QKV and gate/up in one product where it has them."""
    model = model_of(folder_of, family)
    before = logits(model)
    report = refit(model, "bf16")
    assert len(report.groups) == groups
    assert len(report.kept) == kept
    assert report.bytes_after == report.bytes_before
    assert set(report.layers) == {"bf16"}
    torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "gpt2"])
@pytest.mark.parametrize(("kind", "cosine"), [("int8", 0.99), ("int4", 0.9)])
def test_rounded_weights_stay_near(folder_of, family, kind, cosine):
    """int8 and int4 models of random weights point where the float model points."""
    model = model_of(folder_of, family)
    before = logits(model)
    report = refit(model, kind)
    assert report.layers["int8"] > 0
    assert report.bytes_after < 0.95 * report.bytes_before
    after = logits(model)
    assert torch.cosine_similarity(after.flatten(), before.flatten(), dim=0) > cosine
    assert 0 < report.difference < 0.6


def test_a_tied_model_keeps_one_copy(folder_of):
    """The embedding is looked up in the quantised output layer; nothing of the table remains."""
    model = model_of(folder_of, "qwen3")
    table = model.get_input_embeddings().weight
    report = refit(model, "int8")
    embedding = model.get_input_embeddings()
    assert report.tied
    assert isinstance(embedding, TiedEmbedding)
    assert embedding.head is model.get_output_embeddings()
    torch.testing.assert_close(embedding(IDS), table[IDS], rtol=0, atol=0.02)
    assert max(p.numel() for p in model.parameters()) < 100  # norms alone are parameters now
    assert weight_bytes(model) == report.bytes_after


def test_a_scaled_embedding_keeps_its_scale(folder_of):
    """Gemma multiplies what it looks up; so does the tied one."""
    model = model_of(folder_of, "gemma3")
    before = model.get_input_embeddings()(IDS)
    report = refit(model, "int8")
    assert report.tied
    torch.testing.assert_close(model.get_input_embeddings()(IDS), before, rtol=0.02, atol=0.1)


def test_the_output_layer_of_an_int4_model_is_int8_unless_asked(folder_of):
    """As GGUF's Q4_0 does it; ``head`` says otherwise."""
    for head, expected in (("", "int8"), ("bf16", "bf16")):
        model = model_of(folder_of, "llama")
        refit(model, "int4", head=head)
        assert model.get_output_embeddings().kind == expected
    assert isinstance(model.model.layers[0].mlp.gate_proj, Share)


def test_refitting_twice_changes_nothing(folder_of):
    """Layers of ours stay as they are."""
    model = model_of(folder_of, "llama")
    first = refit(model, "int8")
    before = logits(model)
    second = refit(model, "int4")
    assert second.layers == first.layers
    assert torch.equal(logits(model), before)


def test_a_model_that_reads_weights_itself_is_refused(folder_of):
    """Mamba uses a weight without calling its layer: it is told, not served wrongly."""
    with pytest.raises(ModelFileRefused, match=r"Mamba.*bits=16"):
        refit(model_of(folder_of, "mamba"), "int8")


def test_a_model_that_computes_something_else_is_refused(folder_of):
    """A layer that behaves differently once replaced is found by the logits."""

    class Doubling(torch.nn.Module):
        """Hands its layer's outputs on twice as large, unless the layer is torch's own."""

        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            y = self.layer(x)
            return y if type(self.layer) is torch.nn.Linear else -y

    model = model_of(folder_of, "llama")
    model.lm_head = Doubling(model.lm_head)
    with pytest.raises(ModelFileRefused, match="bits=16"):
        refit(model, "int8")


class Counted(Linear):
    """A float layer that counts its products."""

    kind = "counted"
    products = 0

    @classmethod
    def from_weight(cls, weight, bias=None):
        return cls(weight, None, bias)

    def multiply(self, rows):
        type(self).products += 1
        return rows @ self.weight.t()


@pytest.mark.parametrize("kind", ["bf16", "int8", "int4"])
def test_weights_that_are_no_numbers_are_refused(folder_of, kind):
    """Rounding would make zeros of them, and nobody would learn that the file is damaged."""
    model = model_of(folder_of, "llama")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[3, 5] = torch.nan
    with pytest.raises(ModelFileRefused, match="no numbers"):
        refit(model, kind)


def test_rows_too_wide_for_integers_stay_floats():
    """Sums of more products than fit 32 bits are never made."""
    assert quantise(torch.ones(1, INT8_COLUMNS_MAX + 32), "int8").kind == "bf16"
    assert quantise(torch.ones(1, 64), "int8").kind == "int8"


@pytest.fixture
def shares():
    """Three shares of one counted group."""
    Counted.products = 0
    parts = [Counted.from_weight(torch.randn(n, 16)) for n in (8, 4, 4)]
    group = FusedGroup(("q", "k", "v"), parts)
    return parts, [Share(group, n) for n in range(3)], group


def test_one_product_serves_all_that_read_the_same(shares):
    """Three calls with one tensor are one product, and nothing is held on to afterwards."""
    parts, (q, k, v), group = shares
    x = torch.randn(5, 16)
    found = [layer(x) for layer in (k, q, v)]
    assert Counted.products == 1
    for layer, y in zip((parts[1], parts[0], parts[2]), found, strict=True):
        torch.testing.assert_close(y, layer(x))
    assert group._input is None
    assert not group._outputs


def test_equal_tensors_are_not_the_same_tensor(shares):
    """Identity counts: another tensor of equal shape gets its own outputs."""
    parts, (q, k, _), _ = shares
    x, other = torch.randn(5, 16), torch.randn(5, 16)
    q(x)
    torch.testing.assert_close(k(other), parts[1](other))
    torch.testing.assert_close(q(other), parts[0](other))


def test_layers_that_read_different_inputs_are_computed_apart(shares):
    """Once siblings are seen with different inputs, each computes its own rows only."""
    parts, (q, k, v), _ = shares
    x, other = torch.randn(5, 16), torch.randn(5, 16)
    q(x)
    k(other)
    for layer, part in zip((q, k, v), parts, strict=True):
        torch.testing.assert_close(layer(other), part(other))


def test_a_step_broken_off_does_not_poison_the_next(shares):
    """Outputs that nobody fetched are forgotten when the next input comes."""
    parts, (q, k, v), _ = shares
    q(torch.randn(5, 16))
    x = torch.randn(5, 16)
    for layer, part in zip((q, k, v), parts, strict=True):
        torch.testing.assert_close(layer(x), part(x))


def test_a_group_tells_what_a_native_layer_needs():
    """Weight, scale, bias and sizes of the fused layer are in one place."""
    parts = [quantise(torch.randn(n, 64), "int4", torch.ones(n)) for n in (32, 8, 8)]
    group = FusedGroup(("q_proj", "k_proj", "v_proj"), parts)
    assert group.kind == "int4"
    assert group.sizes == (32, 8, 8)
    assert group.weight.shape == (48, 32)
    assert group.scale.shape == (48, 2)
    assert group.bias.shape == (48,)
    assert group.weight.is_contiguous()
