"""Layers in C++ against transformers' own modules: the conventions are those of real models."""

from __future__ import annotations

import pytest
import torch

from starai.engines.native import library
from starai.engines.native.layer import LayerWeights, Matrix, NativeLayers

if library.load() is None:
    pytest.skip(library.why_not(), allow_module_level=True)

transformers = pytest.importorskip("transformers")

TOKENS = 40
SHAPE = {
    "vocab_size": 50,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "pad_token_id": 0,
}
SLIDING = {
    "sliding_window": 7,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
FAMILIES = {
    "Llama": {"attention_bias": True, "rms_norm_eps": 1e-5},
    "Qwen2": {},
    "Qwen3": {},
    "Mistral": {"sliding_window": 9},
    "Gemma2": {**SLIDING, "query_pre_attn_scalar": 20, "attn_logit_softcapping": 3.0},
    "Gemma3Text": {**SLIDING, "query_pre_attn_scalar": 16},
}


def matrix(*linears):
    biases = [each.bias for each in linears if each.bias is not None]
    return Matrix(
        torch.cat([each.weight.detach() for each in linears]),
        bias=torch.cat([bias.detach() for bias in biases]) if biases else None,
    )


def taken(layer, index, config) -> LayerWeights:
    """A transformers layer as ours; Gemma's four norms have other names than Llama's two."""
    attention, mlp = layer.self_attn, layer.mlp
    four = hasattr(layer, "pre_feedforward_layernorm")
    everywhere = config.sliding_window if config.model_type == "mistral" else None
    weight = {
        "input_norm": layer.input_layernorm,
        "inner_norm": layer.pre_feedforward_layernorm if four else layer.post_attention_layernorm,
        "attention_norm": layer.post_attention_layernorm if four else None,
        "output_norm": layer.post_feedforward_layernorm if four else None,
        "query_norm": getattr(attention, "q_norm", None),
        "key_norm": getattr(attention, "k_norm", None),
    }
    return LayerWeights(
        qkv=matrix(attention.q_proj, attention.k_proj, attention.v_proj),
        out=matrix(attention.o_proj),
        gate_up=matrix(mlp.gate_proj, mlp.up_proj),
        down=matrix(mlp.down_proj),
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=attention.head_dim,
        eps=config.rms_norm_eps,
        scale=attention.scaling,
        **{name: None if norm is None else norm.weight for name, norm in weight.items()},
        norm_offset=1.0 if four else 0.0,
        window=getattr(attention, "sliding_window", everywhere) or 0,
        softcap=getattr(config, "attn_logit_softcapping", None) or 0.0,
        activation="gelu_tanh" if four else "silu",
        rope=index,
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_are_those_of_transformers(family):
    """A prompt, then one token more: after the last layer the same to float32's accuracy."""
    shape = dict(SHAPE)
    if family == "Qwen2":  # whose heads have to fill the hidden width
        shape = {**shape, "hidden_size": 64}
    config = getattr(transformers, f"{family}Config")(**shape, **FAMILIES[family])
    torch.manual_seed(3)
    model = transformers.AutoModel.from_config(config, attn_implementation="eager").eval()
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.3)
    ids = torch.randint(1, 50, (1, TOKENS + 1))
    entered: list[torch.Tensor] = []
    angles: list[tuple[torch.Tensor, torch.Tensor]] = []

    def enter(_, args, kwargs):
        entered.append(args[0][0])
        angles.append(kwargs["position_embeddings"])

    for layer in model.layers:
        layer.register_forward_pre_hook(enter, with_kwargs=True)
    model.norm.register_forward_pre_hook(lambda _, args: entered.append(args[0][0]))
    with torch.no_grad():
        model(ids)
    cosine, sine = (torch.cat([pair[i] for pair in angles]) for i in (0, 1))
    native = NativeLayers([taken(layer, i, config) for i, layer in enumerate(model.layers)])
    blocks = -(-(TOKENS + 1) // 16)
    dim = native.layers[0].head_dim
    shape = (2, blocks, 16, dim)
    pools = [(torch.empty(shape), torch.empty(shape)) for _ in native.layers]
    tables = torch.arange(blocks, dtype=torch.int32)[None]
    for start, count in ((0, TOKENS), (TOKENS, 1)):
        rows = slice(start, start + count)
        part = entered[0][rows].clone()
        where = torch.tensor([start], dtype=torch.int32), torch.tensor([count], dtype=torch.int32)
        turns = (x[:, rows].contiguous() for x in (cosine, sine))
        native.run(part, *turns, pools, tables, *where)
        want = entered[-1][rows]
        assert (part - want).abs().max() <= 1e-4 * want.abs().max()
