"""Norms, gates and rotations of rows, against their formulas in float64."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from starai.core.errors import InternalFault
from starai.engines.native import library
from starai.engines.native.rows import add_rms_norm, gated, qk_norm, rms_norm, rotary, silu_mul

if library.load() is None:
    pytest.skip(library.why_not(), allow_module_level=True)

#: Of the largest result: a few roundings of float32, one of bfloat16.
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2**-8}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE)
WIDTHS = pytest.mark.parametrize("width", [1, 15, 16, 63, 64, 100, 1024])
EPS = 1e-6


def normal(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def close(got, want):
    assert got.dtype in TOLERANCE
    error = (got.double() - want).abs().max()
    assert error <= TOLERANCE[got.dtype] * max(1.0, float(want.abs().max()))


def norm_of(x, weight, offset=0.0):
    x = x.double()
    return x / (x.pow(2).mean(-1, keepdim=True) + EPS).sqrt() * (weight.double() + offset)


@DTYPES
@WIDTHS
@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("weight_dtype", TOLERANCE)
def test_rms_norm(dtype, width, offset, weight_dtype):
    """Rows of any width, weights of either type, as they are or as differences from one."""
    x, weight = normal(5, width, dtype=dtype), normal(width, dtype=weight_dtype, seed=1)
    want = norm_of(x, weight, offset)
    close(rms_norm(x, weight, EPS, offset), want)
    assert rms_norm(x, weight, EPS, offset, out=x) is x
    close(x, want)


@DTYPES
@WIDTHS
def test_add_rms_norm(dtype, width):
    """The residual takes the sum in, rounded once, and the norm is of what it then holds."""
    residual, x = normal(4, width, dtype=dtype), normal(4, width, dtype=dtype, seed=1)
    weight = normal(width, dtype=dtype, seed=2)
    want = (residual.double() + x.double()).to(dtype)
    out = add_rms_norm(residual, x, weight, EPS)
    assert torch.equal(residual, want)
    close(out, norm_of(want, weight))


def test_a_row_of_zeros_stays_one():
    """Nothing is divided by zero."""
    assert torch.equal(rms_norm(torch.zeros(2, 20), torch.ones(20), EPS), torch.zeros(2, 20))


@DTYPES
@pytest.mark.parametrize("width", [1, 16, 48, 77, 3072])
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_gated(dtype, width, activation):
    """Small and large gates, both activations."""
    gate_up = normal(3, 2 * width, dtype=dtype) * 4
    gate, up = gate_up.double().chunk(2, 1)
    by = {"silu": functional.silu, "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh")}
    close(gated(gate_up, activation), by[activation](gate) * up)
    if activation == "silu":
        assert torch.equal(silu_mul(gate_up), gated(gate_up))


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_gates_far_from_zero_do_not_overflow(activation):
    """Far below zero a gate is shut, far above it is the identity."""
    gate = torch.tensor([[-1e30, -200.0, -90.0, 0.0, 90.0, 200.0, 1e30]])
    out = gated(torch.cat((gate, torch.ones_like(gate)), 1), activation)
    assert torch.allclose(out, gate.clamp(min=0), atol=1e-30)


@DTYPES
@pytest.mark.parametrize(("dim", "turned"), [(8, 8), (64, 64), (80, 80), (96, 24), (128, 32)])
def test_rotary(dtype, dim, turned):
    """Whole heads and parts of them, rows that lie apart."""
    rows, heads = 5, 3
    fused = normal(rows, heads * dim + 7, dtype=dtype)
    before = fused.clone()
    x = fused[:, : heads * dim].unflatten(1, (heads, dim))
    angle = normal(rows, turned // 2, seed=1).repeat(1, 2)
    cosine, sine = angle.cos(), angle.sin()
    old = x.double()
    first, second = old[..., : turned // 2], old[..., turned // 2 : turned]
    want = old.clone()
    want[..., :turned] *= cosine.double()[:, None]
    want[..., :turned] += torch.cat((-second, first), -1) * sine.double()[:, None]
    rotary(x, cosine, sine)
    close(x, want)
    assert torch.equal(x[..., turned:], old[..., turned:].to(dtype))
    assert torch.equal(fused[:, heads * dim :], before[:, heads * dim :])


@DTYPES
@pytest.mark.parametrize("dim", [8, 80, 128])
def test_qk_norm(dtype, dim):
    """Each head by itself, its neighbours untouched."""
    fused = normal(4, 3 * dim + 5, dtype=dtype)
    tail = fused[:, 3 * dim :].clone()
    x = fused[:, : 3 * dim].unflatten(1, (3, dim))
    weight = normal(dim, dtype=dtype, seed=1)
    want = norm_of(x, weight, 1.0)
    qk_norm(x, weight, EPS, 1.0)
    close(x, want)
    assert torch.equal(fused[:, 3 * dim :], tail)


@DTYPES
def test_a_row_gives_the_same_bits_in_any_company(dtype):
    """Many rows on two threads give what each gives alone."""
    x, weight = normal(300, 512, dtype=dtype), normal(512, dtype=dtype, seed=1)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        normed, opened = rms_norm(x, weight, EPS), gated(x)
    finally:
        torch.set_num_threads(before)
    for row in (0, 7, 299):
        assert torch.equal(rms_norm(x[row : row + 1], weight, EPS)[0], normed[row])
        assert torch.equal(gated(x[row : row + 1])[0], opened[row])


def test_nan_stays_in_its_row():
    """Broken numbers are carried on, not spread and not hidden."""
    x = normal(3, 40)
    x[1, 5] = torch.nan
    normed = rms_norm(x, torch.ones(40), EPS)
    assert bool(normed[1].isnan().all())
    assert bool(normed[[0, 2]].isfinite().all())
    assert gated(x).isnan().sum() == 1


def test_tensors_that_do_not_fit_are_refused():
    """Shapes and types are checked before an address is taken."""
    x = normal(3, 40)
    with pytest.raises(InternalFault, match="rms_norm"):
        rms_norm(x, torch.ones(39), EPS)
    with pytest.raises(InternalFault, match="add_rms_norm"):
        add_rms_norm(x[:2], x, torch.ones(40), EPS)
    with pytest.raises(InternalFault, match="gated"):
        gated(x[:, :39])
    with pytest.raises(InternalFault, match="into"):
        rms_norm(x, torch.ones(40), EPS, out=x[:2])
    with pytest.raises(InternalFault, match="into"):
        gated(x, out=torch.empty(3, 40))
    with pytest.raises(InternalFault, match="qk_norm"):
        qk_norm(x.unflatten(1, (4, 10)), torch.ones(9), EPS)
    with pytest.raises(InternalFault, match="angles"):
        rotary(x.unflatten(1, (4, 10)), torch.ones(3, 10).double(), torch.ones(3, 10))
    with pytest.raises(InternalFault, match="components"):
        rotary(x.unflatten(1, (4, 10)), torch.ones(3, 12), torch.ones(3, 12))
