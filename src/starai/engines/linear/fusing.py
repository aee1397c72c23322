"""Refits a transformers model with our linear layers, fused where they read the same input.

Works on the tree of modules, without knowing the architecture: what it changes is proved by the
model's own logits on a few tokens. Layer by layer, so that memory never holds the model twice.
What is no linear layer stays as it is: expert stacks of MoE models and their routers, convolutions.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from starai.core.errors import ModelFileRefused
from starai.engines.linear.base import Linear
from starai.engines.linear.embedding import TiedEmbedding, multiplier_of
from starai.engines.linear.floating import FloatLinear
from starai.engines.linear.groups import SIBLINGS, FusedGroup, Share
from starai.engines.linear.int8 import Int8Linear
from starai.engines.linear.norms import native_norm
from starai.engines.linear.registry import quantise

#: Routers choose experts: a rounded router sends tokens elsewhere, and it is tiny.
_ROUTERS: Final = ("gate", "router", "shared_expert_gate")
#: Largest difference of logits from before, relative to the largest, where nothing was rounded.
_TOLERANCE: Final = {torch.float32: 1e-3, torch.bfloat16: 6e-2}
#: Least cosine between logits before and after rounding. A layer that a model uses in some way of
#: its own gives noise, which is near 0; int4 of a model of random weights is above 0.9.
_COSINE_MIN: Final = 0.5
#: Tokens of the proof.
_TOKENS_TRIED: Final = 8
#: Largest difference of a tied embedding from the model's own, relative to its largest number.
_EMBEDDING_TOLERANCE: Final = 0.2
_WAY_OUT: Final = "run it as it is, with bits=16"

#: Layers that a file brings already quantised, by the name of the module that they replace.
Ready = Mapping[str, Callable[[Tensor | None], Linear]]


@dataclass(slots=True)
class Refitted:
    """What `refit` did.

    Attributes:
        layers: how many layers are now kept in which kind.
        groups: fused groups by the name of their parent and their first layer.
        norms: how many norms go through the compiled kernel.
        tied: whether the embedding is looked up in the output layer's one copy.
        kept: modules that were left as they are, with the reason.
        bytes_before: memory of all weights before.
        bytes_after: and after.
        difference: largest difference of logits, relative to the largest.
    """

    layers: dict[str, int] = field(default_factory=dict)
    groups: dict[str, FusedGroup] = field(default_factory=dict)
    norms: int = 0
    tied: bool = False
    kept: dict[str, str] = field(default_factory=dict)
    bytes_before: int = 0
    bytes_after: int = 0
    difference: float = 0.0


def install(model: Any, ready: Ready) -> None:
    """Put layers that come from a quantised file in the places that ``ready`` names."""
    tied = _is_tied(model)
    head_name = _name_of(model, model.get_output_embeddings())
    for name, make in ready.items():
        bias = getattr(model.get_submodule(name), "bias", None)
        _put(model, name, make(None if bias is None else bias.detach()).eval())
    if tied and head_name in ready:
        embedding = model.get_input_embeddings()
        tied_to_it = TiedEmbedding(
            model.get_submodule(head_name), embedding.weight.dtype, multiplier_of(embedding)
        )
        _put(model, _name_of(model, embedding), tied_to_it.eval())


@torch.inference_mode()
def refit(model: Any, kind: str, *, head: str = "") -> Refitted:
    """Replace the linear layers and norms of ``model`` in place; those of ours stay as they are.

    Args:
        model: a causal language model in evaluation mode, on its device.
        kind: ``bf16`` (as they are, only fused), ``int8`` or ``int4``.
        head: kind of the output layer; by default int8 in int4 models too, since every token
            passes it, and it costs little (GGUF's Q4_0 does likewise).

    Raises:
        ModelFileRefused: the model does not compute the same any more; says what to do.
        ConfigurationRefused: there is no such kind.
    """
    report = Refitted(
        bytes_before=weight_bytes(model),
        tied=isinstance(model.get_input_embeddings(), TiedEmbedding),
    )
    expected = _logits(model)
    if not torch.isfinite(expected).all():
        raise ModelFileRefused("its logits are no numbers: the weights are damaged")
    head_name = _name_of(model, model.get_output_embeddings())
    kinds = {head_name: head or (Int8Linear.kind if kind == "int4" else kind)} if head_name else {}
    tied = _is_tied(model)
    for name in _linear_names(model, report):
        _replace(model, name, kinds.get(name, kind))
    if tied:
        _tie(model, model.get_submodule(head_name), report)
    for parent in [name for name, _ in model.named_modules()]:
        _fuse(model.get_submodule(parent), parent, report)
    _refit_norms(model, report)
    for module in model.modules():
        if isinstance(module, Linear):
            report.layers[module.kind] = report.layers.get(module.kind, 0) + 1
    report.bytes_after = weight_bytes(model)
    _give_back()
    # Rounded inputs magnify the last bits of what comes before, a norm for example.
    rounded = set(report.layers) != {FloatLinear.kind}
    report.difference = _prove(model, expected, rounded=rounded)
    return report


def weight_bytes(model: nn.Module) -> int:
    """Memory of a model's weights and tables; what two modules share counts once."""
    tensors = [*model.parameters(), *model.buffers()]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def _give_back() -> None:
    """Have the C library return what was freed: it would keep a good part of the old weights."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _linear_names(model: nn.Module, report: Refitted) -> list[str]:
    names = []
    for name, module in model.named_modules():
        if type(module) in (nn.Linear, Conv1D):
            if name.rpartition(".")[2] in _ROUTERS:
                report.kept[name] = "a router"
            else:
                names.append(name)
        elif isinstance(module, nn.Linear):
            report.kept[name] = "a linear layer of the model's own kind"
        elif any(parameter.ndim == 3 for parameter in module.parameters(recurse=False)):
            report.kept[name] = "a stack of experts"
    return names


def _replace(model: nn.Module, name: str, kind: str) -> None:
    old: Any = model.get_submodule(name)
    bias: Tensor | None = None if old.bias is None else old.bias.detach()
    weight: Tensor = old.weight.detach()
    new = quantise(weight.t() if isinstance(old, Conv1D) else weight, kind, bias)
    _put(model, name, new.eval())


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def _name_of(model: nn.Module, wanted: nn.Module | None) -> str:
    return next((name for name, module in model.named_modules() if module is wanted), "")


def _is_tied(model: Any) -> bool:
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if type(head) is not nn.Linear or not isinstance(embedding, nn.Embedding):
        return False
    return head.weight is embedding.weight


def _tie(model: Any, head: Any, report: Refitted) -> None:
    """Have the embedding look into the head, if that gives what it gave."""
    old = model.get_input_embeddings()
    name = _name_of(model, old)
    if head.kind == FloatLinear.kind:
        report.tied = True  # both have the same tensor still
        return
    new = TiedEmbedding(head, old.weight.dtype, multiplier_of(old)).eval()
    ids = torch.arange(min(_TOKENS_TRIED, old.num_embeddings), device=old.weight.device)
    expected, found = old(ids).float(), new(ids).float()
    off = (found - expected).abs().max() / expected.abs().max().clamp_min(1e-12)
    if not off <= _EMBEDDING_TOLERANCE:
        report.kept[name] = "an embedding that does more than look up"
        return
    _put(model, name, new)
    report.tied = True


def _fuse(parent: nn.Module, name: str, report: Refitted) -> None:
    for names in SIBLINGS:
        parts = [getattr(parent, child, None) for child in names]
        linears = [part for part in parts if isinstance(part, Linear)]
        kinds = {(type(part), part.in_features) for part in linears}
        if len(linears) < len(names) or len(kinds) > 1:
            continue
        group = FusedGroup(names, linears)
        for index, child in enumerate(names):
            setattr(parent, child, Share(group, index).eval())
        report.groups[f"{name}.{names[0]}"] = group


def _refit_norms(model: nn.Module, report: Refitted) -> None:
    for name in [name for name, _ in model.named_modules()]:
        new = native_norm(model.get_submodule(name))
        if new is not None:
            _put(model, name, new.eval())
            report.norms += 1


def _logits(model: Any) -> Tensor:
    before = model.config._attn_implementation
    vocab_size = model.config.get_text_config().vocab_size
    ids = [(7919 * n + 13) % vocab_size for n in range(_TOKENS_TRIED)]
    model.set_attn_implementation("eager")
    try:
        logits: Tensor = model(torch.tensor([ids], device=model.device), use_cache=False).logits[0]
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ModelFileRefused(
            f"{type(model).__name__} does not run here: {str(error)[:200]}"
        ) from error
    finally:
        model.set_attn_implementation(before)
    return logits.float()


def _prove(model: Any, expected: Tensor, *, rounded: bool) -> float:
    """The relative difference of logits; refuses a model that computes something else."""
    try:
        found = _logits(model)
    except ModelFileRefused as error:
        raise ModelFileRefused(f"{error.message}: {_WAY_OUT}") from error
    difference = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-6))
    cosine = float(torch.cosine_similarity(found.flatten(), expected.flatten(), dim=0))
    wrong = cosine < _COSINE_MIN if rounded else difference > _TOLERANCE.get(model.dtype, 1e-3)
    if wrong or not torch.isfinite(found).all():
        raise ModelFileRefused(
            f"{type(model).__name__} uses its linear layers in a way of its own (its logits are "
            f"off by {difference:.2g} once they are replaced): {_WAY_OUT}"
        )
    return difference
