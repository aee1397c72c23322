"""A model as the engine runs it: loaded, refitted, proved, and run by the fastest way there is.

Knows nothing about requests: packed tokens in, logits and hidden states out.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from starai.core.logging import event
from starai.engines.linear.fusing import refit
from starai.engines.text.absent import find_layers
from starai.engines.text.attention import Pass
from starai.engines.text.forward import forward
from starai.engines.text.layers import LayerStack
from starai.engines.text.options import TextOptions
from starai.engines.text.probe import agrees, probe

_LOG: Final = logging.getLogger(__name__)

#: Kinds of linear layers by the bits of their weights.
_KINDS: Final = {16: "bf16", 8: "int8", 4: "int4"}


@dataclass(frozen=True, slots=True)
class Output:
    """Of one pass: logits [kept rows, vocabulary], states after the final norm [tokens, width]."""

    logits: NDArray[np.float32]
    states: Tensor

    @property
    def hidden(self) -> NDArray[np.float32]:
        """The hidden states of all tokens."""
        return np.asarray(self.states.float().cpu().numpy())

    def hidden_rows(self, rows: Sequence[int]) -> NDArray[np.float32]:
        """The hidden states of some tokens."""
        return np.asarray(self.states[list(rows)].float().cpu().numpy())


class TextModel:
    """A causal language model with the packed attention."""

    def __init__(self, module: Any, options: TextOptions) -> None:
        """Refit ``module`` as the options say, and prove that it computes rightly.

        Raises:
            ModelFileRefused: it does not; says why.
        """
        self.module = module
        self._native = options.native
        self.windows = probe(module)
        self.refitted = refit(module, _KINDS[options.bits])
        _leave_the_file(module)
        self.stack = LayerStack.of(module, self.windows) if options.native else None
        if self.stack is not None and not agrees(module):
            self.stack.enabled = False
            event(_LOG, "engine.layers_differ", logging.WARNING, model=type(module).__name__)
        self._states: Tensor = torch.empty(0)
        decoder = module.get_submodule(find_layers(module)[0].rpartition(".")[0])
        decoder.register_forward_hook(self._see_states)

    def run(self, run: Pass, packed: Sequence[int], keep: Sequence[int]) -> Output:
        """One pass; ``keep`` are the rows of ``packed`` whose logits are wanted, maybe none."""
        run.native = run.native and self._native
        logits = forward(self.module, run, packed, keep)
        return Output(np.asarray(logits.float().cpu().numpy()), self._states[0])

    def context_length(self, own: int, asked: int) -> int:
        """The longest sequence that is computed rightly: the model's own, or less if asked."""
        asked = asked or own
        rope = getattr(self.module.config.get_text_config(), "rope_parameters", None) or {}
        if rope.get("rope_type") in ("dynamic", "longrope"):
            # Their angles depend on the longest sequence of a batch: stay where they do not.
            original = rope.get("original_max_position_embeddings") or own
            asked = min(asked, int(original))
        return min(own, asked)

    def _see_states(self, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        self._states = output.last_hidden_state


@torch.inference_mode()
def _leave_the_file(module: torch.nn.Module) -> None:
    """Copy what may still lie in the weights' mapped file: one small norm would keep all of it.

    Quantised weights were made here. Tied tensors stay one.
    """
    moved: dict[tuple[int, torch.Size], torch.Tensor] = {}
    for tensor in [*module.parameters(), *module.buffers()]:
        if tensor.is_floating_point() and tensor.device.type == "cpu":
            place = (tensor.data_ptr(), tensor.shape)
            if place not in moved:
                moved[place] = tensor.data.clone()
            tensor.data = moved[place]
