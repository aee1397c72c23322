"""Linear layers of every kind compute what their kept weight says, whatever the batch."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from starai.core.errors import ConfigurationRefused  # noqa: E402
from starai.engines.linear import kernels  # noqa: E402
from starai.engines.linear.registry import KINDS, kind_of_bits, quantise  # noqa: E402
from starai.engines.native import library  # noqa: E402

#: Relative error of the weight (Gaussian) that each kind may have, and of a product with it.
ERRORS = {"bf16": (0.0, 1e-6), "int8": (0.008, 0.012), "int4": (0.09, 0.1)}


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=["native", "torch"])
def way(request, monkeypatch):
    """By the compiled kernels, and as on a machine without a compiler."""
    if request.param == "torch":
        monkeypatch.setattr(library._State, "loaded", None)
        monkeypatch.setattr(library._State, "tried", True)
    elif library.load() is None:
        pytest.skip(library.why_not())
    return request.param


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [0, 1, 3, 70])
def test_a_product_is_near_the_exact_one(kind, rows, way):
    """Inputs of any shape give W x + b within the error that the kind is known for."""
    weight, bias, x = gaussian(96, 160), gaussian(96, seed=1), gaussian(rows, 2, 160, seed=2)
    layer = quantise(weight, kind, bias)
    weight_error, product_error = ERRORS[kind]
    assert (layer.dequantised() - weight).norm() <= weight_error * weight.norm()
    expected = x.double() @ weight.double().t() + bias.double()
    found = layer(x)
    assert found.shape == expected.shape
    assert found.dtype == x.dtype
    assert (found - expected).norm() <= product_error * expected.norm()


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_machines_with_and_without_kernels_agree(kind, dtype, monkeypatch):
    """The compiled kernels and torch round the same way and differ by a last bit at most."""
    if library.load() is None:
        pytest.skip(library.why_not())
    layer = quantise(gaussian(100, 256), kind, gaussian(100, seed=1))
    x = gaussian(5, 256, seed=2).to(dtype)
    native = layer(x)
    monkeypatch.setattr(library._State, "loaded", None)
    plain = layer(x)
    bits = 2.0**-7 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(native, plain, rtol=bits, atol=bits)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_row_does_not_see_its_batch(kind, way):
    """The output of a row is bit-identical alone and among others."""
    layer, x = quantise(gaussian(64, 128), kind), gaussian(40, 128, seed=3)
    if (kind, way) == ("int4", "torch"):
        pytest.skip("floats of a matmul: close, not identical")
    assert torch.equal(layer(x)[7:8], layer(x[7:8]))


@pytest.mark.parametrize("kind", KINDS)
def test_parts_join_to_the_whole(kind):
    """Layers joined by rows compute what each computes, and are cut apart without loss."""
    weights = [gaussian(n, 64, seed=n) for n in (32, 8, 24)]
    biases = [gaussian(32), None, gaussian(24)]
    layers = [quantise(w, kind, b) for w, b in zip(weights, biases, strict=True)]
    joined = KINDS[kind].joined(layers)
    x = gaussian(3, 64, seed=9)
    assert torch.equal(joined(x), torch.cat([layer(x) for layer in layers], dim=-1))
    assert torch.equal(joined.part(32, 40).dequantised(), layers[1].dequantised())
    assert joined.part(32, 40).weight.data_ptr() > joined.weight.data_ptr()
    assert joined.weight_bytes == sum(layer.weight_bytes for layer in layers) + 8 * 4


def test_int4_maps_its_own_values_onto_themselves():
    """Weights that lie on the int4 grid are kept exactly, negative scales included."""
    codes = torch.randint(0, 16, (6, 64), dtype=torch.uint8)
    codes[:, ::32] = 0  # the end of the grid, which its largest weight takes
    scale = torch.tensor([[0.5, -0.25]] * 6, dtype=torch.float16)
    layer = KINDS["int4"].from_codes(codes, scale)
    again = quantise(layer.dequantised(), "int4")
    assert torch.equal(layer.codes(), codes)
    assert torch.equal(again.dequantised(), layer.dequantised())


def test_int4_chooses_scales_better_than_the_largest_weight_does():
    """Squared error is below that of Q4_0's rule, which looks at the largest weight only."""
    weight = gaussian(64, 1024)
    groups = weight.view(64, -1, 32)
    largest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True)) / -8
    plain = (groups / largest).round().clamp(-8, 7) * largest
    ours = quantise(weight, "int4").dequantised().view(64, -1, 32)
    assert (ours - groups).square().sum() < 0.9 * (plain - groups).square().sum()


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_rows_of_zeros_stay_zeros(kind, way):
    """Neither a weight nor an input of zeros divides by zero."""
    layer = quantise(torch.zeros(4, 64), kind)
    assert torch.equal(layer(torch.zeros(2, 64)), torch.zeros(2, 4))
    assert torch.equal(layer(gaussian(2, 64)), torch.zeros(2, 4))


def test_a_width_without_groups_of_32_is_kept_as_int8():
    """int4 gives way to int8 where a row cannot be cut."""
    assert quantise(gaussian(8, 172), "int4").kind == "int8"
    assert quantise(gaussian(8, 160), "int4").kind == "int4"


def test_scales_survive_a_change_of_type():
    """Moving a model to bfloat16 changes no code and no scale."""
    layer = quantise(gaussian(8, 64), "int8", gaussian(8)).to(torch.bfloat16)
    assert layer.scale.dtype == torch.float32
    assert layer.weight.dtype == torch.int8
    assert layer.bias.dtype == torch.bfloat16


def test_rows_are_looked_up_dequantised():
    """Chosen rows are those of the whole weight."""
    for kind in KINDS:
        layer = quantise(gaussian(20, 64), kind)
        ids = torch.tensor([3, 19, 3])
        assert torch.equal(layer.rows(ids), layer.dequantised()[ids])


@pytest.mark.parametrize("bits", [0, 5, 8.5, float("nan")])
def test_odd_numbers_of_bits_are_refused(bits):
    """Only 16, 8 and 4 name a kind."""
    assert [kind_of_bits(n) for n in (16, 8, 4)] == ["bf16", "int8", "int4"]
    with pytest.raises(ConfigurationRefused, match="16, 8 or 4"):
        kind_of_bits(bits)
    with pytest.raises(ConfigurationRefused, match="choose bf16, int8, int4"):
        quantise(gaussian(2, 32), "int3")


def test_the_group_is_that_of_the_kernels():
    """One number for all."""
    assert kernels.GROUP == 32
