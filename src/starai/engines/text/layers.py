"""Runs a model's decoder layers in one C++ call where they are of the common form.

transformers' modules stay in place and stay the reference: the first layer's ``forward`` runs the
whole stack when a pass allows it, the others then hand its result through. A layer is
recognised by its parts, and the proof is that the model's logits stay the same (`probe`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from starai.core.errors import InternalFault
from starai.engines.linear.base import Linear
from starai.engines.linear.groups import FusedGroup, Share
from starai.engines.native import library
from starai.engines.native.layer import LayerWeights, Matrix, NativeLayers, Pool
from starai.engines.native.rows import Activation
from starai.engines.text.attention import CURRENT, Pass
from starai.engines.text.pool import BLOCK_TOKENS

#: On a CPU with tile units (AMX) torch multiplies large bfloat16 matrices faster than our kernels,
#: so only passes of up to this many tokens run natively there.
_ROWS_MAX_BESIDE_TILES: Final = 64
#: Norms by the names of a layer's own: Llama's two, and Gemma 2's, which wrap each part.
_TWO_NORMS: Final = {"input_layernorm": "input_norm", "post_attention_layernorm": "inner_norm"}
_FOUR_NORMS: Final = {
    "input_layernorm": "input_norm",
    "post_attention_layernorm": "attention_norm",
    "pre_feedforward_layernorm": "inner_norm",
    "post_feedforward_layernorm": "output_norm",
}
_ACTIVATIONS: Final[Mapping[str, Activation]] = {
    "SiLUActivation": "silu",
    "SiLU": "silu",
    "GELUTanh": "gelu_tanh",
}
#: Largest difference of a norm from the formula it is taken for.
_NORM_TOLERANCE: Final = 1e-5


class LayerStack:
    """All decoder layers of a model, run natively where a pass allows it."""

    def __init__(self, layers: list[nn.Module], weights: list[LayerWeights]) -> None:
        """Take the modules, whose ``forward`` is replaced, and what they hold."""
        self.enabled = True
        tiles = bool(torch.cpu._is_amx_tile_supported())
        floats = weights[0].qkv.weight.dtype == torch.bfloat16
        self._rows_max = _ROWS_MAX_BESIDE_TILES if tiles and floats else sys.maxsize
        self._native = NativeLayers(weights)
        self._width = weights[0].width
        for index, layer in enumerate(layers):
            layer.forward = partial(self._forward, index, layer.forward)

    @classmethod
    def of(cls, model: Any, windows: Mapping[int, int | None]) -> LayerStack | None:
        """The stack of ``model``; None where its layers are not of the common form.

        Args:
            model: refitted with our linear layers.
            windows: the sliding window of each layer that is there, as it was seen to ask for.
        """
        layers = getattr(model.base_model, "layers", None)
        if library.load() is None or not isinstance(layers, nn.ModuleList) or not len(layers):
            return None
        listed: list[Any] = [layers[n] for n in sorted(windows)]
        weights = [_weights_of(layers[n], windows[n] or 0) for n in sorted(windows)]
        known = [one for one in weights if one is not None]
        if len(known) < len(weights):
            return None
        try:
            return cls(listed, known)
        except InternalFault:
            return None  # tensors of a form that the kernels do not take

    def takes(self, run: Pass) -> bool:
        """Whether a pass can go through the kernels as a whole."""
        pool = run.pool
        return (
            self.enabled
            and run.native
            and run.exchange is None
            and not run.adapters
            and not pool.int8
            and pool.block_tokens == BLOCK_TOKENS
            and len(run.positions) <= self._rows_max
            and len(pool.layers) == len(self._native)
            and all(span.write for span in run.spans)
        )

    def _forward(
        self,
        index: int,
        module: Callable[..., Tensor],
        hidden_states: Tensor,
        *args: Any,
        **more: Any,
    ) -> Tensor:
        """What stands in for the layer ``index``."""
        run = CURRENT.get()
        if run is None or not self.takes(run):
            return module(hidden_states, *args, **more)
        if index:
            return hidden_states
        cosine, sine = (x.reshape(-1, x.shape[-1]).float() for x in more["position_embeddings"])
        hidden = hidden_states.clone()
        states, angles = hidden.view(-1, self._width), (cosine.contiguous(), sine.contiguous())
        spans = (run.tables.tables, run.tables.starts, run.tables.counts)
        wanted = run.wanted
        if wanted is None or 2 * len(wanted) > len(states):
            self._native.run(states, *angles, run.pool.pairs, *spans)
        else:
            self._run_for(wanted, states, angles, run.pool.pairs, spans)
        return hidden

    def _run_for(
        self,
        wanted: Sequence[int],
        states: Tensor,
        angles: tuple[Tensor, Tensor],
        pools: Sequence[Pool],
        spans: tuple[Tensor, Tensor, Tensor],
    ) -> None:
        """All layers, but the last one of all rows keeps only the keys; for some it is complete.

        Nobody reads more of a prompt's chunk, and a row has the same bits in any company.
        """
        last = len(self._native) - 1
        self._native.run(states, *angles, pools, *spans, last=last)
        self._native.run(states, *angles, pools, *spans, first=last, keys_only=True)
        if not wanted:
            return
        tables, starts, counts = spans
        rows = torch.tensor(wanted)
        ends = counts.cumsum(0)
        span = torch.searchsorted(ends, rows, right=True)
        places = (starts[span] + rows - ends[span] + counts[span]).int()
        some, cosine, sine = states[rows], angles[0][rows], angles[1][rows]
        chosen = (tables[span].contiguous(), places, torch.ones_like(places))
        self._native.run(some, cosine, sine, pools, *chosen, first=last)
        states[rows] = some


def _weights_of(layer: Any, window: int) -> LayerWeights | None:
    """What a layer of the common form holds, or None."""
    children = {name for name, _ in layer.named_children()}
    norms = _FOUR_NORMS if "pre_feedforward_layernorm" in children else _TWO_NORMS
    if children != {"self_attn", "mlp", *norms}:
        return None
    attention, mlp = layer.self_attn, layer.mlp
    qkv = _group(attention, ("q_proj", "k_proj", "v_proj"))
    gate_up = _group(mlp, ("gate_proj", "up_proj"))
    out, down = getattr(attention, "o_proj", None), getattr(mlp, "down_proj", None)
    activation = _ACTIVATIONS.get(type(getattr(mlp, "act_fn", None)).__name__)
    if qkv is None or gate_up is None or activation is None:
        return None
    if not isinstance(out, Linear) or not isinstance(down, Linear):
        return None
    head_dim = int(attention.head_dim)
    found = {field: _norm(getattr(layer, name)) for name, field in norms.items()}
    for name, field in (("q_norm", "query_norm"), ("k_norm", "key_norm")):
        if getattr(attention, name, None) is not None:
            found[field] = _norm(getattr(attention, name))
    forms = {(one[1], one[2]) for one in found.values() if one is not None}
    if None in found.values() or len(forms) != 1:
        return None
    ((eps, offset),) = forms
    tensors: dict[str, Any] = {field: one[0] for field, one in found.items() if one is not None}
    return LayerWeights(
        qkv=_matrix(qkv.linear),
        out=_matrix(out),
        gate_up=_matrix(gate_up.linear),
        down=_matrix(down),
        heads=qkv.sizes[0] // head_dim,
        kv_heads=qkv.sizes[1] // head_dim,
        head_dim=head_dim,
        eps=eps,
        scale=float(attention.scaling),
        norm_offset=offset,
        window=window,
        softcap=float(getattr(attention, "attn_logit_softcapping", None) or 0.0),
        activation=activation,
        **tensors,
    )


def _group(parent: Any, names: tuple[str, ...]) -> FusedGroup | None:
    """The fused layers of these names, if they are all one group and nothing is beside them."""
    shares = [getattr(parent, name, None) for name in names]
    first = shares[0]
    if not isinstance(first, Share) or first.group.names != names:
        return None
    allowed = {*names, "o_proj", "down_proj", "q_norm", "k_norm", "act_fn", "rotary_emb"}
    children = {name for name, _ in parent.named_children()}
    return first.group if children <= allowed else None


def _matrix(linear: Linear) -> Matrix:
    return Matrix(linear.weight, linear.scale, linear.bias)


def _norm(module: Any) -> tuple[Tensor, float, float] | None:
    """Weight, epsilon and offset of a root-mean-square norm, found out by trying; or None."""
    weight = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not isinstance(weight, Tensor) or weight.ndim != 1 or not isinstance(eps, float):
        return None
    rows = torch.linspace(-2, 3, 3 * len(weight)).reshape(3, -1).to(weight.dtype)
    found = module(rows).float()
    wide = rows.float()
    scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    rounding = torch.finfo(weight.dtype).eps * 4 + _NORM_TOLERANCE
    for offset in (0.0, 1.0):
        expected = scaled * (weight.float() + offset)
        if torch.allclose(found, expected, rtol=rounding, atol=rounding):
            return weight, eps, offset
    return None
