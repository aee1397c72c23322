"""Loads a model's weights into transformers' definition: local files only, and nothing amiss.

Plain folders are read by transformers. Everything else comes tensor by tensor from a checkpoint of
ours: dequantised, or straight into our own layers where the file has what they keep. Runs no code
from a model's folder. Knows nothing about serving.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging as transformers_logging

from starai.core.errors import ModelFileRefused
from starai.engines.linear.base import Linear
from starai.engines.linear.fusing import install
from starai.engines.linear.int4 import Int4Linear
from starai.engines.linear.int8 import Int8Linear
from starai.engines.text.absent import Cut, elsewhere
from starai.engines.text.lean import lean_imports
from starai.models.checkpoints.base import Checkpoint
from starai.models.checkpoints.opening import dense_config, open_checkpoint
from starai.models.manifest import ModelManifest

#: Below this many parameters float32 is as fast as bfloat16 on a CPU, and exact.
_FLOAT32_PARAMETERS_MAX: Final = 200_000_000
#: Where tensors have shapes and no numbers.
_META: Final = torch.device("meta")
#: How many names a refusal quotes.
_NAMES_QUOTED: Final = 3
#: What transformers raises at a model that it cannot make sense of.
_LIBRARY_ERRORS: Final = (
    *(OSError, ValueError, RuntimeError, TypeError, AttributeError, LookupError, ArithmeticError),
    *(AssertionError, StrictDataclassError),
)


def load_model(manifest: ModelManifest, attention: str, cut: Cut | None = None) -> Any:
    """The model in evaluation mode, on the GPU if there is one, with our attention.

    Weights that the file keeps as our int8 or int4 layers do become such layers; `refit` leaves
    those as they are and converts the others. With ``cut``, only a part is loaded.

    Raises:
        ModelFileRefused: weights are missing, unexpected or misshapen, or transformers does not
            know the architecture.
    """
    quiet: Any = transformers_logging
    quiet.set_verbosity_error()
    quiet.disable_progress_bar()
    dtype = _dtype(manifest)
    checkpoint = open_checkpoint(manifest)
    with lean_imports():  # of the model's own definition
        if manifest.kind == "huggingface" and not checkpoint.quantised:
            model = _load_folder(Path(manifest.path), dtype, attention, cut)
            return model.to(device(), dtype).eval().requires_grad_(False)
        return _load_checkpoint(dense_config(manifest), checkpoint, dtype, attention, cut)


class _Skeletons(TorchFunctionMode):
    """Makes modules without numbers (torch's meta device) with what that truly needs.

    Their first weights are not drawn, and rotary angles are counted on the CPU. For either on the
    meta device torch works out types of results, and imports sympy for that: a tenth of a start.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call ``func``, or what is enough instead."""
        given = kwargs or {}
        if getattr(func, "__module__", "") == nn.init.__name__:
            tensor = args[0] if args else given["tensor"]
            if tensor.is_meta:
                return tensor
        if func is torch.arange and given.get("device") == _META:
            given = {**given, "device": "cpu"}
        return func(*args, **given)


def _made(make: Callable[[], Any]) -> Any:
    """What ``make`` makes, with what skeletons need or, where that is not enough, with all."""
    try:
        with _Skeletons():
            return make()
    except RuntimeError:
        return make()  # the definition calculates with counts and weights together


def device() -> torch.device:
    """Where models run on this machine."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _dtype(manifest: ModelManifest) -> torch.dtype:
    # bfloat16, never float16: float16 matmuls are 10 times slower on CPUs.
    small = manifest.num_parameters < _FLOAT32_PARAMETERS_MAX
    return torch.float32 if small else torch.bfloat16


def _load_folder(folder: Path, dtype: torch.dtype, attention: str, cut: Cut | None) -> Any:
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        kind: Any = AutoModelForCausalLM
        if cut is not None:
            kind = cut.of(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)])
        model, report = _made(
            lambda: kind.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                attn_implementation=attention,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
        )
    except _LIBRARY_ERRORS as error:
        raise ModelFileRefused(f"transformers cannot load it: {str(error)[:300]}") from error
    _check_report(report, model)
    return model


def _check_report(report: dict[str, Any], model: Any) -> None:
    absent = elsewhere(model)
    for fault in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        names = sorted(map(str, report.get(fault) or ()))
        if fault == "unexpected_keys":
            names = [name for name in names if not absent(name)]
        if names:
            quoted = ", ".join(name[:80] for name in names[:_NAMES_QUOTED])
            more = f" and {len(names) - _NAMES_QUOTED} more" if len(names) > _NAMES_QUOTED else ""
            raise ModelFileRefused(f"the weights have {fault.replace('_', ' ')}: {quoted}{more}")


def _load_checkpoint(
    declared: dict[str, Any],
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    attention: str,
    cut: Cut | None,
) -> Any:
    try:
        config = AutoConfig.for_model(**declared)
        kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        if cut is not None:
            kind = cut.of(kind)
        skeleton = _made(lambda: _skeleton(kind, config))
        ready = _ready_layers(skeleton, checkpoint)
        state = _state(skeleton, checkpoint, ready, dtype)
        model, report = _made(
            lambda: kind.from_pretrained(
                None,
                config=config,
                state_dict=state,
                dtype=dtype,
                attn_implementation=attention,
                output_loading_info=True,
            )
        )
    except _LIBRARY_ERRORS as error:
        raise ModelFileRefused(f"transformers cannot load it: {str(error)[:300]}") from error
    _check_report(report, model)
    model.eval().requires_grad_(False)
    install(model, {name: make for name, (_, make) in ready.items()})
    return model.to(device(), dtype)


def _skeleton(kind: Any, config: Any) -> Any:
    with _META:
        return kind(config)


def _ready_layers(
    skeleton: Any, checkpoint: Checkpoint
) -> dict[str, tuple[str, Callable[[Tensor | None], Linear]]]:
    """By module: the tensor that the file has quantised as our layers are, and what makes one."""
    found: dict[str, tuple[str, Callable[[Tensor | None], Linear]]] = {}
    names = {name: name + ".weight" for name, m in skeleton.named_modules() if _is_linear(m)}
    head, embedding = skeleton.get_output_embeddings(), skeleton.get_input_embeddings()
    if isinstance(head, nn.Linear) and head.weight is embedding.weight:
        of = {module: name for name, module in skeleton.named_modules()}
        names[of[head]] = of[embedding] + ".weight"
    for name, tensor in names.items():
        if checkpoint.is_packed(tensor):
            found[name] = (tensor, partial(_layer, checkpoint, tensor))
    return found


def _is_linear(module: nn.Module) -> bool:
    return type(module) in (nn.Linear, Conv1D)


def _layer(checkpoint: Checkpoint, tensor: str, bias: Tensor | None) -> Linear:
    packed = checkpoint.packed(tensor)
    if packed is None:
        raise ModelFileRefused(f"tensor {tensor!r} is not quantised as it was said to be")
    codes, scale = torch.from_numpy(packed.codes), torch.from_numpy(packed.scale)
    if packed.kind == Int4Linear.kind:
        return Int4Linear.from_codes(codes, scale, bias)
    return Int8Linear(codes, scale, bias)


def _state(
    skeleton: Any, checkpoint: Checkpoint, ready: Any, dtype: torch.dtype
) -> dict[str, Tensor]:
    """The tensors for transformers; of those that `install` brings, only the shape, one number."""
    instead = {tensor for tensor, _ in ready.values()}
    turned = {n + ".weight" for n, m in skeleton.named_modules() if isinstance(m, Conv1D)}
    state = {}
    absent = elsewhere(skeleton)
    for name, shape in checkpoint.shapes.items():
        if absent(name):
            continue
        if name in instead:
            values = torch.zeros(1, dtype=dtype).expand(shape)
        else:
            values = torch.from_numpy(checkpoint.floats(name)).to(dtype)
        # A quantised weight is [outputs, inputs] always, GPT-2's own is the other way round.
        state[name] = values.t() if name in turned and name in checkpoint.quantised else values
    return state
