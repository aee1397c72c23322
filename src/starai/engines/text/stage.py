"""A part of a model: some of its layers, with hidden states in and out.

The part with layer 0 takes token ids, the one with the last layer gives logits; between them go
hidden states [tokens, width], as they are between two layers. Chained parts compute what the whole
model computes. What a part cannot know is refused at load: layers that are told more than hidden
states and positions, or whose results are changed on the way to the next. Knows nothing about who
has the other parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

import torch
from torch import Tensor, nn

from starai.core.clock import Clock
from starai.core.errors import ConfigurationRefused, InvalidRequest, ModelFileRefused
from starai.engines.linear.fusing import Refitted, refit, weight_bytes
from starai.engines.linear.registry import kind_of_bits
from starai.engines.text.absent import Cut, find_layers
from starai.engines.text.attention import NAME, Pass, Span
from starai.engines.text.forward import forward
from starai.engines.text.layers import LayerStack
from starai.engines.text.loading import load_model
from starai.engines.text.memory import KeyValueMemory, reserve_memory
from starai.engines.text.options import TextOptions
from starai.engines.text.pool import KeyValuePool
from starai.engines.text.probe import agrees, probe
from starai.models.manifest import ModelManifest

#: Tensors that a layer may get besides hidden states: what positions alone decide.
_OF_POSITIONS: Final = frozenset({"position_embeddings", "position_ids", "cache_position"})
#: Tokens of the trial, and how far its two inputs are apart.
_TOKENS_TRIED: Final = 3
_OTHER: Final = 1.5


class Stage:
    """Layers ``first`` to ``end`` - 1 of a model.

    Attributes:
        module: transformers' definition, absent modules in the place of what is elsewhere.
        first: the first layer.
        end: the layer behind the last.
        num_layers: layers of the whole model.
        width: of the hidden states.
        vocab_size: of the token ids.
        refitted: how the weights are kept.
    """

    def __init__(self, module: Any, cut: Cut, bits: int = 16, *, native: bool = True) -> None:
        """Take a cut model with the packed attention, and prove that it can stand alone.

        Without ``native``, its layers never run as one C++ call.

        Raises:
            ModelFileRefused: it cannot; says why.
            ConfigurationRefused: ``bits`` is not 16, 8 or 4.
        """
        kind = kind_of_bits(bits)
        self.module = module
        self.first, self.end = cut.first, cut.end
        config = module.config.get_text_config()
        self.num_layers = int(config.num_hidden_layers)
        self.width = int(config.hidden_size)
        self.vocab_size = int(config.vocab_size)
        self._given: Tensor | None = None
        self._left = self._final = torch.empty(0)
        path, layers = find_layers(module)
        own = list(layers)[cut.first : cut.end]
        # Hooks, because between two layers every definition has code of its own.
        own[0].register_forward_pre_hook(self._enter, with_kwargs=True)
        own[-1].register_forward_hook(self._leave)
        module.get_submodule(path.rpartition(".")[0]).register_forward_hook(self._finish)
        windows = probe(module, range(cut.first, cut.end))
        self._prove(own)
        self.refitted: Refitted = refit(module, kind)
        stack = LayerStack.of(module, windows) if native else None
        if stack is not None and not agrees(module):
            stack.enabled = False

    @property
    def takes_ids(self) -> bool:
        """Whether it has layer 0, and so the embedding."""
        return self.first == 0

    @property
    def gives_logits(self) -> bool:
        """Whether it has the last layer, and so the output layer."""
        return self.end == self.num_layers

    @property
    def weight_bytes(self) -> int:
        """Memory of its weights."""
        return weight_bytes(self.module)

    @property
    def final_states(self) -> Tensor:
        """Of the last pass of a stage that gives logits: states after the final norm."""
        return self._final

    def reserve(
        self, options: TextOptions, slots: int, context: int, clock: Clock
    ) -> KeyValueMemory:
        """KV memory for its layers; see `reserve_memory`.

        Raises:
            ConfigurationRefused: the memory cannot be had.
        """
        return reserve_memory(self.module, options, slots, context, clock)

    @torch.inference_mode()
    def forward(
        self, run: Pass, given: Sequence[int] | Tensor, keep: Sequence[int] | None = None
    ) -> Tensor:
        """One packed pass through its layers.

        Args:
            run: the spans, on KV memory of this stage's own.
            given: token ids of all spans for the stage with layer 0; for others hidden states
                [tokens, width] as the stage before gave them.
            keep: rows whose logits are wanted, by default all; a stage without the last layer
                gives the hidden states of all rows whatever this says.

        Returns:
            Hidden states [tokens, width], or logits [rows, vocabulary].

        Raises:
            InvalidRequest: ``given`` is not what this stage takes.
        """
        count = len(run.positions)
        ids = self._checked_ids(given, count) if self.takes_ids else [0] * count
        self._given = None if self.takes_ids else self._checked_states(given, count)
        wanted = range(count) if keep is None else keep
        if not (self.gives_logits and wanted):
            wanted = [count - 1]
        try:
            logits = forward(self.module, run, ids, list(wanted))
        finally:
            self._given = None
        if not self.gives_logits:
            return self._left
        return logits[:0] if keep is not None and not keep else logits

    def _checked_ids(self, given: Sequence[int] | Tensor, count: int) -> list[int]:
        if isinstance(given, Tensor):
            raise InvalidRequest("the stage with layer 0 takes token ids, not hidden states")
        if len(given) != count or count == 0:
            raise InvalidRequest(f"{len(given)} token ids for a pass of {count} tokens")
        if not 0 <= min(given) <= max(given) < self.vocab_size:
            raise InvalidRequest(f"token ids are from 0 to {self.vocab_size - 1}")
        return list(given)

    def _checked_states(self, given: Sequence[int] | Tensor, count: int) -> Tensor:
        wanted = (count, self.width)
        if not isinstance(given, Tensor) or tuple(given.shape) != wanted or count == 0:
            found = list(given.shape) if isinstance(given, Tensor) else "token ids"
            raise InvalidRequest(
                f"a stage from layer {self.first} takes hidden states {list(wanted)}, not {found}"
            )
        if given.dtype != self.module.dtype:
            # Another type would be another model: parts must round alike.
            raise InvalidRequest(
                f"the hidden states are {given.dtype}, this stage computes in {self.module.dtype}"
            )
        return given.to(self.module.device)

    def _enter(self, layer: nn.Module, args: Any, more: Any) -> Any:
        """Before the first layer: what came from the stage before takes the place of all else."""
        if self._given is None:
            return None
        given = self._given.unsqueeze(0)
        if args:
            return (given, *args[1:]), more
        return args, {**more, "hidden_states": given}

    def _leave(self, layer: nn.Module, args: Any, output: Any) -> None:
        self._left = _states_of(output)[0]

    def _finish(self, module: nn.Module, args: Any, output: Any) -> None:
        self._final = output.last_hidden_state[0]

    def _prove(self, own: Sequence[nn.Module]) -> None:
        """Watch the layers at work on two inputs; see the module's text.

        Raises:
            ModelFileRefused: they need more than a stage has.
        """
        calls = [self._watched(own, scale) for scale in (1.0, _OTHER)]
        name = type(self.module).__name__
        for watch in calls:
            if [call.layer for call in watch] != list(range(len(own))):
                raise ModelFileRefused(f"{name} does not call its layers once each, in order")
            for before, after in pairwise(watch):
                if after.taken is not before.given:
                    raise ModelFileRefused(
                        f"{name} changes what comes out of layer {self.first + before.layer} "
                        "before the next one sees it: it cannot be run in parts"
                    )
        for one, other in zip(*calls, strict=True):
            strange = one.strange() | other.strange() | one.differing(other)
            if strange:
                raise ModelFileRefused(
                    f"{name}: layer {self.first + one.layer} is told {min(strange)!r} besides "
                    "hidden states and positions: it cannot be run in parts"
                )

    @torch.inference_mode()
    def _watched(self, own: Sequence[nn.Module], scale: float) -> list[_Call]:
        """What each layer was told in a pass, in the order of the calls."""
        calls: list[_Call] = []

        def begin(layer: nn.Module, args: Any, more: Any) -> None:
            calls.append(_Call(own.index(layer), args, more))

        def end(layer: nn.Module, args: Any, output: Any) -> None:
            calls[-1].given = _states_of(output)

        hooks: list[Any] = []
        for layer in own:
            hooks.append(layer.register_forward_pre_hook(begin, with_kwargs=True))
            hooks.append(layer.register_forward_hook(end))
        run = Pass(KeyValuePool(1), [Span((0,), 0, _TOKENS_TRIED)])
        try:
            if self.takes_ids:
                ids = [int(scale * n) % self.vocab_size for n in range(1, _TOKENS_TRIED + 1)]
                self.forward(run, ids)
            else:
                states = torch.ones(_TOKENS_TRIED, self.width, dtype=self.module.dtype)
                states[:, ::2] = -scale
                self.forward(run, states)
        finally:
            for hook in hooks:
                hook.remove()
        return calls


class _Call:
    """A layer's arguments and its result."""

    def __init__(self, layer: int, args: Any, more: Mapping[str, Any]) -> None:
        self.layer = layer
        named = {f"argument {n}": value for n, value in enumerate(args)}
        named.update(more)
        self.taken = named.pop("argument 0" if args else "hidden_states")
        self.given: Tensor = torch.empty(0)
        self._others = named

    def strange(self) -> set[str]:
        """Arguments that are neither plain settings nor named after positions."""
        plain = (bool, int, float, str, type(None))
        return {
            name
            for name, value in self._others.items()
            if not isinstance(value, plain) and name not in _OF_POSITIONS
        }

    def differing(self, other: _Call) -> set[str]:
        """Arguments that are not the same in another pass over the same positions."""
        return {
            name
            for name, value in self._others.items()
            if not _same(value, other._others.get(name))
        }


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


def _states_of(output: Any) -> Tensor:
    """A layer's hidden states [1, tokens, width]; some definitions return more beside them."""
    states: Tensor = output[0] if isinstance(output, tuple) else output
    return states


def open_stage(
    manifest: ModelManifest, first: int, end: int, *, bits: int = 16, native: bool = True
) -> Stage:
    """Load layers ``first`` to ``end`` - 1 of a model, and nothing else; see `Stage`.

    Raises:
        ConfigurationRefused: the model has no such layers, or ``bits`` is not 16, 8 or 4.
        ModelFileRefused: the weights are wrong, or the architecture cannot be run in parts.
    """
    if not 0 <= first < end:
        raise ConfigurationRefused(f"layers {first} to {end} (not included) are none at all")
    cut = Cut(first, end)
    return Stage(load_model(manifest, NAME, cut), cut, bits, native=native)
