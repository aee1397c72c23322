"""Linear kernels against products in float64, and rows against themselves in other company."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from starai.core.errors import InternalFault
from starai.engines.native import library, linear as native

if library.load() is None:
    pytest.skip(f"no native kernels: {library.why_not()}", allow_module_level=True)

_ABILITIES = library.function("starai_abilities", returns=ctypes.c_int64)
_WIDE = _ABILITIES is not None and bool(_ABILITIES() & 1)
#: Rows on both sides of every way of doing them: one, a few, blocks of 16, pieces of 128.
ROWS = (0, 1, 2, 3, 4, 5, 7, 8, 9, 12, 16, 17, 24, 31, 33, 48, 65, 129)
#: Columns and outputs that are no multiples of what is done at a time.
SHAPES = ((1, 32), (3, 64), (29, 96), (50, 544), (37, 1056))
KINDS = ("float", "int8", "int4")


class Layer:
    """A weight of some kind, with what it stands for in float64."""

    def __init__(self, kind: str, n: int, k: int, seed: int = 0) -> None:
        """Random weights, with all values of the integers among them."""
        self.kind = kind
        self.by = torch.Generator().manual_seed(1000 * n + k + seed)
        if kind == "int8":
            self.codes = torch.randint(-128, 128, (n, k), dtype=torch.int8, generator=self.by)
            self.scale = torch.rand(n, generator=self.by) + 0.1
            self.exact = self.codes.double() * self.scale[:, None].double()
        elif kind == "int4":
            codes = torch.randint(0, 16, (n, k), dtype=torch.uint8, generator=self.by)
            self.packed = native.pack_int4(codes)
            self.scale = torch.randn(n, k // 32, generator=self.by).half()
            self.exact = (codes.double() - 8) * self.scale.double().repeat_interleave(32, 1)
        else:
            self.exact = torch.randn(n, k, generator=self.by).bfloat16().double()
        self.bias = torch.randn(n, generator=self.by)

    def rows(self, m: int, dtype: torch.dtype) -> Tensor:
        """Random activations; the first row holds one outlier."""
        x = torch.randn(m, self.exact.shape[1], generator=self.by)
        if m:
            x[0, 0] = 50
        return x.to(dtype)

    def __call__(self, x: Tensor, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """What the kernel makes of x."""
        if self.kind == "int8":
            return native.linear_int8(x, self.codes, self.scale, bias, out)
        if self.kind == "int4":
            return native.linear_int4(x, self.packed, self.scale, bias, out)
        return native.linear(x, self.exact.to(x.dtype), bias, out)

    def expected(self, x: Tensor) -> Tensor:
        """What it should make of x: in float64, of rows rounded to int8 if weights are integers."""
        x = x.double()
        if self.kind != "float":
            step = x.abs().amax(1, keepdim=True) / 127
            x = torch.where(step > 0, (x / step).round() * step, 0)
        return x @ self.exact.t()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tests run beside others; who wants threads sets them."""
    native.set_threads(1)
    yield
    native.set_threads(0)


def off(found: Tensor, expected: Tensor) -> float:
    """The largest difference relative to the largest number expected."""
    if not found.numel():
        return 0.0
    return float((found.double() - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("n", "k"), SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_products_are_right(kind: str, n: int, k: int, dtype: torch.dtype) -> None:
    """Every kind of weight times any number of rows, plus a bias, is the product in float64."""
    layer = Layer(kind, n, k)
    # One rounding to bfloat16; in int8 also the rows that a rounding error puts one step off.
    limit = 6e-3 if dtype == torch.bfloat16 else 2e-3 if kind != "float" else 3e-6
    for m in ROWS:
        x = layer.rows(m, dtype)
        found = layer(x, layer.bias)
        assert found.shape == (m, n)
        assert found.dtype == dtype
        assert off(found, layer.expected(x) + layer.bias.double()) < limit, m


@pytest.mark.parametrize(("n", "k"), [(1, 1), (5, 7), (13, 33), (12, 130), (31, 515)])
@pytest.mark.parametrize("kind", ["float", "int8"])
def test_columns_may_be_odd(kind: str, n: int, k: int) -> None:
    """Rows that end inside a vector are neither cut short nor read beyond their end."""
    layer = Layer(kind, n, k)
    for m in (1, 3, 16, 50):
        for dtype in (torch.float32, torch.bfloat16):
            x = layer.rows(m, dtype)
            assert off(layer(x), layer.expected(x)) < (6e-3 if dtype == torch.bfloat16 else 2e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("n", "k"), SHAPES)
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_row_of_integers_does_not_depend_on_its_company(
    kind: str, n: int, k: int, dtype: torch.dtype
) -> None:
    """Each row is the same, bit for bit, alone and among any number of others."""
    layer = Layer(kind, n, k)
    x = layer.rows(max(ROWS), dtype)
    alone = torch.cat([layer(row[None], layer.bias) for row in x])
    for m in ROWS:
        assert torch.equal(layer(x[:m], layer.bias), alone[:m]), m


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_few_rows_of_floats_do_not_depend_on_their_company(dtype: torch.dtype) -> None:
    """Up to a decoding batch of 32, float rows are the same bit for bit too."""
    layer = Layer("float", 50, 544)
    x = layer.rows(32, dtype)
    alone = torch.cat([layer(row[None]) for row in x])
    for m in (2, 3, 5, 8, 9, 16, 32):
        assert torch.equal(layer(x[:m]), alone[:m]), m


@pytest.mark.skipif(not _WIDE, reason="without wide kernels torch multiplies many rows")
@pytest.mark.parametrize(("n", "k"), [*SHAPES, (203, 1024), (12, 80)])
def test_a_row_of_bfloat16_does_not_depend_on_its_company(n: int, k: int) -> None:
    """A row of a long prompt has the bits that it has alone, as a token of an answer."""
    layer = Layer("float", n, k)
    x = layer.rows(max(ROWS), torch.bfloat16)
    alone = torch.cat([layer(row[None], layer.bias) for row in x])
    for m in ROWS:
        assert torch.equal(layer(x[:m], layer.bias), alone[:m]), m


@pytest.mark.parametrize("kind", KINDS)
def test_the_number_of_threads_changes_nothing(kind: str) -> None:
    """One, two and five threads find the same bits."""
    layer = Layer(kind, 203, 1056)
    for m in (1, 9, 64):
        x = layer.rows(m, torch.float32)
        expected = layer(x)
        for threads in (2, 5):
            native.set_threads(threads)
            assert torch.equal(layer(x), expected)
        native.set_threads(1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_stays_in_its_row(kind: str, bad: float) -> None:
    """A row with NaN or infinity has no number for a result; the rows beside it keep theirs."""
    layer = Layer(kind, 29, 96)
    for m in (2, 7, 33, 64):
        x = layer.rows(m, torch.float32)
        expected = layer(x)
        x[1, 5] = bad
        found = layer(x)
        assert not bool(torch.isfinite(found[1]).any())
        others = torch.arange(m) != 1
        assert torch.equal(found[others], expected[others])


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_of_zeros_gives_the_bias(kind: str) -> None:
    """Nothing is divided by a row's largest number when that is zero, or next to it."""
    layer = Layer(kind, 29, 96)
    for m in (1, 20):
        x = torch.zeros(m, 96)
        assert torch.equal(layer(x, layer.bias), layer.bias.expand(m, -1))
        assert off(layer(x + 1e-38, layer.bias), layer.bias.double().expand(m, -1)) < 1e-6


@pytest.mark.parametrize("m", [1, 16])
def test_the_largest_integers_do_not_overflow(m: int) -> None:
    """8192 products of the extreme values of int8 add up exactly."""
    k = 8192
    for code in (-128, 127):
        codes = torch.full((5, k), code, dtype=torch.int8)
        y = native.linear_int8(torch.full((m, k), -1.0), codes, torch.ones(5))
        assert off(y, torch.full((m, 5), -1.0 * code * k).double()) < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_out_is_written_to(kind: str) -> None:
    """The result goes into the tensor that was given, with nothing beside it touched."""
    layer = Layer(kind, 29, 96)
    room = torch.full((2 * 20 * 29,), 7.0)
    for m in (1, 3, 20):
        x = layer.rows(m, torch.float32)
        out = room[: m * 29].view(m, 29)
        assert layer(x, None, out) is out
        assert torch.equal(out, layer(x))
        assert bool((room[m * 29 :] == 7).all())
        room.fill_(7)


def test_biases_may_be_of_either_type() -> None:
    """A bias in bfloat16 counts as what it is, whatever the activations' type."""
    layer = Layer("int8", 29, 96)
    x = layer.rows(3, torch.float32)
    half = layer.bias.bfloat16()
    assert torch.equal(layer(x, half), layer(x, half.float()))


def test_operands_that_do_not_fit_are_refused() -> None:
    """Wrong widths, types and strides raise instead of reading what is not there."""
    layer = Layer("int8", 29, 96)
    with pytest.raises(InternalFault, match="96"):
        layer(torch.zeros(2, 95))
    with pytest.raises(InternalFault):
        layer(torch.zeros(96, 2).t())
    with pytest.raises(InternalFault):
        native.linear(torch.zeros(2, 96), torch.zeros(3, 96, dtype=torch.bfloat16))
    with pytest.raises(InternalFault):
        native.linear_int4(torch.zeros(2, 96), torch.zeros(3, 96, dtype=torch.uint8), layer.scale)
    with pytest.raises(InternalFault):
        native.linear_int8(torch.zeros(2, 96), layer.codes, layer.scale[:28])
    with pytest.raises(InternalFault):
        layer(torch.zeros(2, 96), layer.bias[:28])


@pytest.mark.parametrize(
    "call",
    [
        lambda: native.linear(torch.ones(2, 0), torch.ones(3, 0)),
        lambda: native.linear_int8(torch.ones(2, 0), torch.ones(3, 0).char(), torch.ones(3)),
        lambda: native.linear(torch.ones(2, 8), torch.ones(3, 8), out=torch.ones(1, 1)),
        lambda: native.linear(torch.ones(2, 8), torch.ones(3, 8), out=torch.ones(2, 3).bfloat16()),
        lambda: native.linear(torch.ones(2, 8), torch.ones(3, 8), torch.ones(6)[::2]),
        lambda: native.linear_int8(torch.ones(1, 8), torch.ones(2, 8), torch.ones(2)),
        lambda: native.linear_int8(
            torch.ones(1, 8), torch.ones(2, 8).char(), torch.ones(2).double()
        ),
        lambda: native.linear_int8(torch.ones(1, 8), torch.ones(2, 8).char(), torch.ones(4)[::2]),
    ],
    ids=["no columns", "no codes", "room", "type", "bias", "weight", "scale type", "scale"],
)
def test_what_a_kernel_would_trip_over_is_refused(call: Callable[[], object]) -> None:
    """Nothing to divide by, results without room, numbers of another type: refused, not crashed."""
    with pytest.raises(InternalFault):
        call()


@pytest.mark.parametrize("code", [-127, 127])
def test_the_widest_rows_of_integers_do_not_overflow(code: int) -> None:
    """As many columns as are taken add up to less than 2^31; one more is refused."""
    k = native.INT8_COLUMNS_MAX
    codes = torch.full((1, k + 64), code, dtype=torch.int8)
    y = native.linear_int8(torch.ones(1, k), codes[:, :k].contiguous(), torch.ones(1))
    assert y.item() == pytest.approx(code * k, rel=1e-6)
    with pytest.raises(InternalFault):
        native.linear_int8(torch.ones(1, k + 64), codes, torch.ones(1))


@settings(deadline=None, max_examples=40)
@given(n=st.integers(1, 5), groups=st.integers(1, 40), seed=st.integers(0, 1 << 30))
def test_unpacking_undoes_packing(n: int, groups: int, seed: int) -> None:
    """All weights come back, from half the bytes."""
    by = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 16, (n, 32 * groups), dtype=torch.uint8, generator=by)
    packed = native.pack_int4(codes)
    assert packed.shape == (n, 16 * groups)
    assert torch.equal(native.unpack_int4(packed), codes)


def test_packing_is_what_is_documented() -> None:
    """Byte t*4G + 4g + i of a chunk of G groups holds columns 32g + 4t + i and 16 beyond."""
    by = torch.Generator().manual_seed(1)
    codes = torch.randint(0, 16, (1, 512 + 96), dtype=torch.uint8, generator=by)
    packed = native.pack_int4(codes)[0]
    for start, groups in ((0, 16), (512, 3)):
        for t, g, i in ((0, 0, 0), (1, 2, 3), (3, groups - 1, 2)):
            column = start + 32 * g + 4 * t + i
            byte = int(packed[start // 2 + t * 4 * groups + 4 * g + i])
            assert (byte & 15, byte >> 4) == (codes[0, column], codes[0, column + 16])


@pytest.mark.parametrize("kind", KINDS)
def test_torch_stands_in(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the library the same functions give the same numbers but for roundings."""
    layer = Layer(kind, 29, 96)
    x = layer.rows(5, torch.float32)
    expected = layer(x, layer.bias).double()
    monkeypatch.setattr(native._Kernel, "call", None)
    assert off(layer(x, layer.bias), expected) < 2e-3
    out = torch.empty(5, 29)
    assert layer(x, layer.bias, out) is out
    assert off(out, expected) < 2e-3
