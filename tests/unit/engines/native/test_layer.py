"""Whole decoder layers in C++, against the same layers written plainly in torch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from starai.core.errors import InternalFault
from starai.engines.native import library, linear
from starai.engines.native.attention import paged_attention
from starai.engines.native.layer import LayerWeights, Matrix, NativeLayers

if library.load() is None:
    pytest.skip(library.why_not(), allow_module_level=True)

F32, BF16 = torch.float32, torch.bfloat16
WIDTH, INNER, HEADS, KV_HEADS, DIM = 64, 96, 4, 2, 32
KINDS = ["float32", "bfloat16", "int8", "int4"]
#: Relative error of hidden states and keys, root mean square, after two layers. Integer kinds
#: round activations as the reference does, but a tie may fall the other way; bfloat16 rounds
#: between all parts.
TOLERANCE = {"float32": 2e-6, "bfloat16": 2.5e-2, "int8": 3e-3, "int4": 3e-3}
#: The worst single number, in such root mean squares.
WORST = 16


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def matrix(kind, n, k, seed, bias=False):
    weight = normal(n, k, seed=seed) * k**-0.5
    added = normal(n, seed=seed + 1000) * 0.3 if bias else None
    if kind == "int8":
        scale = weight.abs().amax(1) / 127
        return Matrix((weight / scale[:, None]).round().to(torch.int8), scale, added)
    if kind == "int4":
        groups = weight.unflatten(1, (-1, 32))
        scale = (groups.abs().amax(2) / 7).half()
        codes = (groups / scale[..., None].float()).round().clamp(-8, 7) + 8
        return Matrix(linear.pack_int4(codes.flatten(1).to(torch.uint8)), scale, added)
    return Matrix(weight.to(getattr(torch, kind)), None, added)


def layer(kind, seed=0, **options):
    bias = options.pop("bias", False)
    rows = (HEADS + 2 * KV_HEADS) * DIM
    return LayerWeights(
        qkv=matrix(kind, rows, WIDTH, seed + 1, bias),
        out=matrix(kind, WIDTH, HEADS * DIM, seed + 2, bias),
        gate_up=matrix(kind, 2 * INNER, WIDTH, seed + 3, bias),
        down=matrix(kind, WIDTH, INNER, seed + 4, bias),
        heads=HEADS,
        kv_heads=KV_HEADS,
        head_dim=DIM,
        eps=1e-6,
        scale=DIM**-0.5,
        **{"input_norm": norm(WIDTH, seed), "inner_norm": norm(WIDTH, seed + 9), **options},
    )


def norm(width, seed=0):
    return 1 + normal(width, seed=seed + 77) * 0.2


def multiply(x, m):
    """A linear layer in float64, activations rounded to int8 where the weight is of integers."""
    if m.weight.dtype == torch.int8:
        weight = m.weight.double() * m.scale.double()[:, None]
    elif m.weight.dtype == torch.uint8:
        weight = linear.unpack_int4(m.weight).double() - 8
        weight = weight * m.scale.double().repeat_interleave(32, 1)
    else:
        weight = m.weight.double()
    if m.scale is not None:
        step = x.abs().amax(1, keepdim=True).clamp(min=1e-30) / 127
        x = (x / step).round() * step
    return x @ weight.T + (0 if m.bias is None else m.bias.double())


def normed(x, weight, lay):
    if weight is None:
        return x
    scale = (x.pow(2).mean(-1, keepdim=True) + lay.eps).rsqrt()
    return x * scale * (weight.double() + lay.norm_offset)


def turned(x, cosine, sine):
    width = cosine.shape[-1]
    head, rest = x[..., :width], x[..., width:]
    half = torch.cat((-head[..., width // 2 :], head[..., : width // 2]), -1)
    return torch.cat((head * cosine[:, None] + half * sine[:, None], rest), -1)


def near(got, want, tolerance):
    error, size = got.double() - want.double(), float(want.double().square().mean().sqrt())
    assert float(error.square().mean().sqrt()) <= tolerance * size
    assert float(error.abs().max()) <= WORST * tolerance * size


class Setting:
    """Sequences with a past in random pools, and new rows of them."""

    def __init__(self, layers, spans, dtype=F32, pool_dtype=None, ropes=1, width=DIM, seed=5):
        self.layers, self.spans = layers, spans
        self.rows = sum(count for _, count in spans)
        needed = [-(-(abs(start) + count) // 16) for start, count in spans]
        blocks = sum(needed) + 2
        order = torch.randperm(blocks, generator=torch.Generator().manual_seed(seed)).int()
        self.tables = torch.full((len(spans), max(needed)), -1, dtype=torch.int32)
        for s, count in enumerate(needed):
            self.tables[s, :count] = order[sum(needed[:s]) :][:count]
        shape = (KV_HEADS, blocks, 16, DIM)
        self.pools = [
            tuple(normal(*shape, seed=seed + 2 * i + j).to(pool_dtype or dtype) for j in (0, 1))
            for i in range(len(layers))
        ]
        self.starts = torch.tensor([start for start, _ in spans], dtype=torch.int32)
        self.counts = torch.tensor([count for _, count in spans], dtype=torch.int32)
        angles = normal(ropes, self.rows, width // 2, seed=seed).repeat(1, 1, 2)
        self.cosine, self.sine = angles.cos(), angles.sin()
        self.hidden = normal(self.rows, WIDTH, seed=seed).to(dtype)

    def run(self, **options):
        hidden = self.hidden.clone()
        NativeLayers(self.layers).run(
            hidden,
            *(self.cosine, self.sine, self.pools, self.tables, self.starts, self.counts),
            **options,
        )
        return hidden

    def attend(self, index, q, k, v, limits):
        lay, (keys, values) = self.layers[index], self.pools[index]
        slots, row = [], 0
        for s, (start, count) in enumerate(self.spans):
            slots += [
                int(self.tables[s, p // 16]) * 16 + p % 16 for p in range(start, start + count)
            ]
        flat = [x.flatten(1, 2) for x in (keys, values)]
        flat[0][:, slots] = k.transpose(0, 1).to(keys.dtype)
        flat[1][:, slots] = v.transpose(0, 1).to(keys.dtype)
        outs = []
        for s, (start, count) in enumerate(self.spans):
            for i in range(count):
                high = start + i + 1 if limits is None else int(limits[row])
                low = max(0, high - lay.window) if lay.window else 0
                places = [int(self.tables[s, p // 16]) * 16 + p % 16 for p in range(low, high)]
                group = lay.heads // lay.kv_heads
                key, value = (x[:, places].double().repeat_interleave(group, 0) for x in flat)
                scores = torch.einsum("hd,htd->ht", q[row], key) * lay.scale
                if lay.softcap:
                    scores = lay.softcap * torch.tanh(scores / lay.softcap)
                if lay.sinks is not None:
                    scores = torch.cat((scores, lay.sinks.double()[:, None]), 1)
                weights = scores.softmax(1)[:, : high - low]
                outs.append(torch.einsum("ht,htd->hd", weights, value).flatten())
                row += 1
        return torch.stack(outs)

    def plainly(self, limits=None):
        """What `run` should give, in float64; leaves the pools as `run` should."""
        x = self.hidden.double()
        for i, lay in enumerate(self.layers):
            qkv = multiply(normed(x, lay.input_norm, lay), lay.qkv).unflatten(1, (-1, DIM))
            q, k, v = qkv.split([HEADS, KV_HEADS, KV_HEADS], 1)
            q, k = normed(q, lay.query_norm, lay), normed(k, lay.key_norm, lay)
            if lay.rope >= 0:
                angles = self.cosine[lay.rope].double(), self.sine[lay.rope].double()
                q, k = turned(q, *angles), turned(k, *angles)
            attended = self.attend(i, q, k, v, limits)
            x = x + normed(multiply(attended, lay.out), lay.attention_norm, lay)
            gate, up = multiply(normed(x, lay.inner_norm, lay), lay.gate_up).chunk(2, 1)
            if lay.activation == "silu":
                opened = functional.silu(gate)
            else:
                opened = functional.gelu(gate, approximate="tanh")
            x = x + normed(multiply(opened * up, lay.down), lay.output_norm, lay)
        return x

    def check(self, kind, limits=None):
        pools = [tuple(x.clone() for x in pool) for pool in self.pools]
        got = self.run(limits=limits)
        written, self.pools = self.pools, pools
        want = self.plainly(limits)
        tolerance = TOLERANCE[kind]
        if BF16 in {self.hidden.dtype, self.pools[0][0].dtype}:
            tolerance = max(tolerance, TOLERANCE["bfloat16"])
        near(got, want, tolerance)
        for pair, expected in zip(written, self.pools, strict=True):
            for x, y in zip(pair, expected, strict=True):
                near(x, y, tolerance)


SPANS = [(0, 1), (37, 1), (0, 20), (130, 3)]


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("float32", F32), ("bfloat16", BF16)]
    + [(k, t) for k in ("int8", "int4") for t in (F32, BF16)],
)
@pytest.mark.parametrize("bias", [False, True])
def test_two_layers_of_every_kind_of_weight(kind, dtype, bias):
    """Hidden states and what lies in the pools afterwards, prompts and single tokens together."""
    layers = [layer(kind, seed, bias=bias) for seed in (0, 50)]
    Setting(layers, SPANS, dtype).check(kind)


@pytest.mark.parametrize("kind", ["float32", "int8"])
@pytest.mark.parametrize(
    "options",
    [
        {"query_norm": norm(DIM, 1), "key_norm": norm(DIM, 2)},
        {"norm_offset": 1.0, "activation": "gelu_tanh"},
        {"attention_norm": norm(WIDTH, 3), "output_norm": norm(WIDTH, 4), "softcap": 5.0},
        {"input_norm": None, "inner_norm": None, "attention_norm": norm(WIDTH, 3)},
        {"sinks": torch.tensor([0.3, -1.0, 2.0, 0.0]), "window": 16},
        {"rope": -1, "window": 5},
    ],
    ids=["head norms", "gemma", "gemma2", "norms behind", "sinks", "no rotation"],
)
def test_what_layers_may_have_besides(kind, options):
    """Each option, in the first layer of two only, so that layers may differ."""
    Setting([layer(kind, 0, **options), layer(kind, 50)], SPANS).check(kind)


@pytest.mark.parametrize("width", [8, 16, 32])
def test_a_part_of_each_head_may_turn(width):
    """Rotary positions of the first components only."""
    Setting([layer("float32")], SPANS, width=width).check("float32")


def test_layers_may_turn_by_different_angles():
    """As Gemma 3's local and global layers do."""
    layers = [layer("float32", rope=1), layer("float32", 50, rope=0)]
    Setting(layers, SPANS, ropes=2).check("float32")


def test_keys_may_be_kept_shorter_than_hidden_states():
    """A bfloat16 pool under float32 hidden states."""
    Setting([layer("float32")], SPANS, pool_dtype=BF16).check("float32")


@pytest.mark.parametrize("rows", [127, 128, 129, 300])
@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_a_prompt_of_any_length(kind, rows):
    """More rows than a piece of the linear layers holds."""
    Setting([layer(kind)], [(3, rows), (40, 1)]).check(kind)


def test_limits_take_the_place_of_causality():
    """Rows that see as many tokens as they are told."""
    limits = torch.tensor([13, 11, 12, 202, 150], dtype=torch.int32)
    Setting([layer("float32")], [(10, 3), (200, 2)]).check("float32", limits)


def test_rows_that_only_look_leave_the_pool_alone():
    """A negative start: the rows see what is there and write nothing."""
    setting = Setting([layer("float32")], [(-60, 2), (-20, 1)])
    before = [x.clone() for x in setting.pools[0]]
    limits = torch.tensor([60, 60, 20], dtype=torch.int32)
    looked = setting.run(limits=limits)
    assert all(map(torch.equal, before, setting.pools[0]))
    assert not torch.equal(looked, setting.hidden)


def test_layers_in_two_calls_are_layers_in_one():
    """Layers [0, 2) and [2, 3) give what [0, 3) gives."""
    layers = [layer("int8", seed) for seed in (0, 50, 90)]
    one, two = Setting(layers, SPANS), Setting(layers, SPANS)
    whole = one.run()
    two.hidden = two.run(last=2)
    assert torch.equal(two.run(first=2, last=3), whole)
    assert all(torch.equal(*pair) for pair in zip(one.pools[2], two.pools[2], strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [5, 150])
def test_only_the_keys_of_a_layer_are_kept_if_nobody_reads_more(kind, rows):
    """The pools get the very bits that they get with all of the layer; hidden states stay."""
    dtype = BF16 if kind == "bfloat16" else F32
    layers = [layer(kind, seed, key_norm=norm(DIM)) for seed in (0, 50)]
    one, two = (Setting(layers, [(3, rows), (40, 1)], dtype) for _ in range(2))
    one.run()
    two.hidden = two.run(last=1)
    assert torch.equal(two.run(first=1, last=2, keys_only=True), two.hidden)
    assert all(torch.equal(*pair) for pair in zip(one.pools[1], two.pools[1], strict=True))


def test_keys_are_kept_of_one_layer_at_a_time():
    """Another layer needs the hidden states that this one would have given."""
    with pytest.raises(InternalFault, match="one layer"):
        Setting([layer("float32"), layer("float32", 50)], SPANS).run(keys_only=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_gives_the_same_bits_in_any_company(kind, threads):
    """Decoding alone or in a batch gives the same hidden states, on one thread or two."""
    dtype = BF16 if kind == "bfloat16" else F32
    layers = [layer(kind, seed, query_norm=norm(DIM), key_norm=norm(DIM)) for seed in (0, 50)]
    spans = [(5 + 97 * n, 1) for n in range(12)]
    setting = Setting(layers, spans, dtype)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        whole = setting.run()
        hidden, tables = setting.hidden, setting.tables
        angles = setting.cosine, setting.sine
        for row, span in enumerate(spans):
            setting.hidden, setting.tables = hidden[row : row + 1], tables[row : row + 1]
            setting.cosine, setting.sine = (x[:, row : row + 1].contiguous() for x in angles)
            setting.starts, setting.counts = torch.tensor([span], dtype=torch.int32).T.contiguous()
            assert torch.equal(setting.run()[0], whole[row])
    finally:
        torch.set_num_threads(before)


def test_layers_wide_enough_for_two_threads_meet_in_order():
    """The same on one thread and on two, over and over: no part starts before its input is done."""
    layers = [layer("int8", seed) for seed in range(0, 400, 50)]
    setting = Setting(layers, [(100, 30), (7, 1), (60, 40)])
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        want = setting.run()
        torch.set_num_threads(2)
        assert all(torch.equal(setting.run(), want) for _ in range(20))
    finally:
        torch.set_num_threads(before)


def test_new_pools_are_noticed():
    """Other memory, other result: addresses are not kept longer than their tensors are given."""
    native = NativeLayers([layer("float32")])
    results = []
    for seed in (5, 6, 5):
        setting = Setting([layer("float32")], [(30, 1)], seed=5)
        if seed != 5:
            setting.pools = Setting([layer("float32")], [(30, 1)], seed=seed).pools
        where = (setting.cosine, setting.sine, setting.pools, setting.tables)
        native.run(setting.hidden, *where, setting.starts, setting.counts)
        results.append(setting.hidden)
    assert torch.equal(results[0], results[2])
    assert not torch.equal(results[0], results[1])


def test_the_layer_attends_as_the_kernel_does():
    """Queries that come out of a layer's projection meet the same attention, bit for bit."""
    eye = Matrix(torch.eye(WIDTH))
    lay = replace(
        layer("float32", rope=-1, input_norm=None),
        qkv=Matrix(torch.cat([torch.eye(WIDTH)] * 3)),
        out=eye,
        down=Matrix(torch.zeros(WIDTH, INNER)),
        heads=2,
        kv_heads=2,
    )
    setting = Setting([lay], [(50, 2)])
    got = setting.run()
    where = (*setting.pools[0], setting.tables, setting.starts, setting.counts)
    attended = paged_attention(setting.hidden.unflatten(1, (2, DIM)), *where, lay.scale)
    assert torch.equal(got, setting.hidden + attended.flatten(1))


def test_what_does_not_fit_is_refused():
    """Weights of wrong shapes, hidden states of another type, layers that are not there."""
    good = layer("float32")
    for wrong in (
        replace(good, qkv=good.out),
        replace(good, heads=3),
        replace(good, input_norm=norm(WIDTH + 1)),
        replace(good, sinks=norm(HEADS + 1)),
    ):
        with pytest.raises(InternalFault, match="do not fit"):
            NativeLayers([wrong])
    with pytest.raises(InternalFault, match="no matrix"):
        NativeLayers([replace(good, out=Matrix(good.out.weight.to(torch.int8)))])
    with pytest.raises(InternalFault, match="several types"):
        NativeLayers([good, layer("bfloat16")])
    setting = Setting([good], SPANS)
    with pytest.raises(InternalFault, match="no layers"):
        setting.run(last=2)
    for change, message in (
        ({"hidden": setting.hidden.bfloat16()}, "hidden states"),
        ({"hidden": setting.hidden[:3]}, "hidden"),
        ({"cosine": setting.cosine.double()}, "layers"),
        ({"pools": []}, "pools"),
        ({"pools": [(setting.pools[0][0][:1],) * 2]}, "pool"),
        ({"tables": torch.full_like(setting.tables, 99)}, "block"),
    ):
        broken = Setting([good], SPANS)
        for name, value in change.items():
            setattr(broken, name, value)
        with pytest.raises(InternalFault, match=message):
            broken.run()
