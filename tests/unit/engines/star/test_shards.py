"""Keys and values on the road: bit by bit as floats, within their scale as int8."""

from __future__ import annotations

import io

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from hypothesis import given, strategies as st  # noqa: E402

from starai.core.errors import MalformedFrame  # noqa: E402
from starai.engines.star.messages import (  # noqa: E402
    Array,
    Ask,
    Shipped,
    read_command,
    read_reply,
    write_frame,
)
from starai.engines.star.shards import (  # noqa: E402
    export,
    quantise,
    take,
    to_array,
    to_tensor,
)
from starai.engines.text.pool import KeyValuePool  # noqa: E402


def pool(dtype, pages=6, page=4, seed=0):
    made = KeyValuePool(pages, page)
    generator = torch.Generator().manual_seed(seed)
    for layer in range(2):
        keys = torch.randn(1, 2, 1, 8, generator=generator).to(dtype)
        values = torch.randn(1, 2, 1, 6, generator=generator).to(dtype)
        for states in made.layer(layer, keys, values):
            states.data.copy_(torch.randn(states.data.shape, generator=generator))
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_shard_arrives_bit_by_bit(dtype):
    """Through frames and at an odd place of another table, floats are the same bits."""
    source, target = pool(dtype), pool(dtype, seed=1)
    stream = io.BytesIO()
    for shipped in export(source, [3, 0, 5], 10, int8=False):
        write_frame(stream, shipped)
    stream.seek(0)
    while (reply := read_reply(stream)) is not None:
        assert isinstance(reply, Shipped)
        take(target, [4, 1, 2, 0], 3, reply)
    for layer in range(2):
        for a, b in zip(source.layers[layer], target.layers[layer], strict=True):
            sent = a.read([3, 0, 5], 0, 10, dtype)
            assert torch.equal(sent, b.read([4, 1, 2, 0], 3, 13, dtype))


def test_int8_keeps_the_promise():
    """An int8 number is off by at most half its token's and head's scale; a zero token stays."""
    states = torch.randn(3, 50, 16) * torch.logspace(-3, 3, 50).view(1, 50, 1)
    states[:, 7] = 0
    data, scales = quantise(states)
    assert data.dtype == torch.int8
    error = (data.float() * scales.unsqueeze(-1) - states).abs()
    assert bool((error <= 0.5001 * scales.unsqueeze(-1)).all())
    assert bool((data[:, 7] == 0).all())
    assert int(data.abs().max()) == 127


@given(st.lists(st.integers(0, 4), min_size=0, max_size=4), st.sampled_from(["f4", "bf16", "i1"]))
def test_arrays_round_trip(shape, kind):
    """Any shape, empty ones included, comes back as it was."""
    dtype = {"f4": torch.float32, "bf16": torch.bfloat16, "i1": torch.int8}[kind]
    tensor = torch.arange(24 * 24)[: int(torch.tensor(shape).prod())].reshape(shape).to(dtype)
    array = to_array(tensor)
    assert array.kind == kind
    assert torch.equal(to_tensor(array), tensor)


@pytest.mark.parametrize(
    "array",
    [
        Array("f8", (1,), bytes(8)),
        Array("f4", (2,), bytes(4)),
        Array("f4", (-1,), bytes(4)),
        Array("f4", (1 << 40, 1 << 40), b""),
        Array("f4", (1,), bytes(5)),
    ],
)
def test_lying_arrays_are_refused(array):
    """Kinds, shapes and bytes that do not fit together are refused, whatever they claim."""
    with pytest.raises(MalformedFrame):
        to_tensor(array)


def test_foreign_shards_are_refused():
    """Another model's layer, head or width, and a shard past the table, write nothing."""
    target = pool(torch.float32)
    good = next(export(target, [0, 1], 8, int8=False))
    wide = to_array(torch.zeros(2, 8, 9))
    for wrong in (
        Shipped(7, good.keys, good.values),
        Shipped(0, wide, good.values),
        Shipped(0, good.keys, to_array(torch.zeros(2, 7, 6))),
        Shipped(0, to_array(torch.zeros(8)), good.values),
        Shipped(0, good.keys, good.values, to_array(torch.zeros(3)), None),
    ):
        with pytest.raises(MalformedFrame):
            take(target, [0, 1], 0, wrong)
    with pytest.raises(MalformedFrame, match="longer"):
        take(target, [0, 1], 1, good)


def test_nonsense_on_the_pipe_is_refused():
    """A huge frame, another message and garbage are errors; a cut frame is an end."""
    for data in (b"\xff\xff\xff\xff", b"\x02\x00\x00\x00\xc1\xc1"):
        with pytest.raises(MalformedFrame):
            read_command(io.BytesIO(data))
    stream = io.BytesIO()
    write_frame(stream, Ask(b"abcd", 3))
    with pytest.raises(MalformedFrame):
        read_reply(io.BytesIO(stream.getvalue()))
    assert read_command(io.BytesIO(stream.getvalue()[:-1])) is None
    assert read_command(io.BytesIO(stream.getvalue())) == Ask(b"abcd", 3)
