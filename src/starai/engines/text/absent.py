"""Modules that stand where a part of a model has nothing, so that its definition runs unchanged.

A decoder's loop indexes its layers, their kinds and their windows by the layer's number. So a part
of a model is not a shorter model: it has as many layers, and those that are elsewhere let the
hidden states through. Knows which modules are layers, tables and head, and no architecture.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from starai.core.errors import ConfigurationRefused, ModelFileRefused

#: What a decoder's loop may ask a layer about besides calling it (``attention_type`` and the like).
_PLAIN: Final = (str, int, float, bool, type(None))


class AbsentLayer(nn.Module):
    """A layer that is elsewhere: hidden states pass through."""

    def __init__(self, original: nn.Module) -> None:
        """Take the place of ``original``, with what it says about itself."""
        super().__init__()
        for name, value in vars(original).items():
            if not name.startswith("_") and isinstance(value, _PLAIN):
                setattr(self, name, value)

    def forward(self, *args: Any, **more: Any) -> Any:
        """Return the hidden states as they came."""
        return args[0] if args else more["hidden_states"]


class AbsentTable(nn.Module):
    """An embedding that is elsewhere: gives vectors that only its numbers decide, of size one.

    They never reach a layer of a stage that serves, but let a part of a model be tried by itself.
    """

    like: Tensor

    def __init__(self, original: nn.Embedding) -> None:
        """Take the place of ``original``; results have its width and type."""
        super().__init__()
        self.embedding_dim = original.embedding_dim
        self.num_embeddings = original.num_embeddings
        like = torch.empty(0, dtype=original.weight.dtype)
        self.register_buffer("like", like, persistent=False)

    def forward(self, *args: Any, **more: Any) -> Tensor:
        """Numbers [...] to vectors [..., width]."""
        given = [*args, *more.values()]
        numbers = next(x for x in given if isinstance(x, Tensor) and not x.is_floating_point())
        columns = torch.arange(1, self.embedding_dim + 1, device=numbers.device)
        return torch.sin((numbers.unsqueeze(-1) + 1.0) * columns).to(self.like.dtype)


class AbsentHead(nn.Module):
    """An output layer that is elsewhere: the states after the final norm come out."""

    def forward(self, states: Tensor) -> Tensor:
        """Return the states as they came."""
        return states


@dataclass(frozen=True, slots=True)
class Cut:
    """Keeps the layers ``first`` to ``end`` - 1 of a model, and what stands before and behind.

    The embedding stays with layer 0 and the output layer with the last one. Where both have the
    same weight it is there at both ends, and both modules with it.
    """

    first: int
    end: int

    def of(self, kind: Any) -> Any:
        """The class ``kind``, but what it makes is cut before any weight is loaded."""

        def make(model: Any, config: Any, *args: Any, **more: Any) -> None:
            if self._middle(config):
                config.tie_word_embeddings = False  # there is nothing to tie
            kind.__init__(model, config, *args, **more)
            self.apply(model)

        # transformers finds renamings of weights by the name and the module of a class.
        own = {"__init__": make, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
        return type(kind.__name__, (kind,), own)

    def apply(self, model: Any) -> None:
        """Put absent modules in their places.

        Raises:
            ConfigurationRefused: the model has no such layers.
            ModelFileRefused: it cannot be told which modules are its layers.
        """
        path, layers = find_layers(model)
        if not 0 <= self.first < self.end <= len(layers):
            raise ConfigurationRefused(
                f"there are no layers {self.first} to {self.end} (the end is not included): "
                f"this model has 0 to {len(layers)}"
            )
        for index, layer in enumerate(layers):
            if not self.first <= index < self.end:
                layers[index] = AbsentLayer(layer)
        starts, ends = self.first == 0, self.end == len(layers)
        tied = model.config.get_text_config().tie_word_embeddings
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
        for name, module in list(model.named_modules()):
            inside = name.startswith(path + ".")
            kept = starts or inside or (module is embedding and tied and ends)
            if isinstance(module, nn.Embedding) and not kept:
                _put(model, name, AbsentTable(module))
            elif module is head and not (ends or (tied and starts)):
                _put(model, name, AbsentHead())

    def _middle(self, config: Any) -> bool:
        return self.first > 0 and self.end < config.get_text_config().num_hidden_layers


def find_layers(model: Any) -> tuple[str, nn.ModuleList]:
    """The decoder's list of layers and its path.

    Raises:
        ModelFileRefused: there is none, or more than one.
    """
    count = model.config.get_text_config().num_hidden_layers
    found: list[tuple[str, nn.ModuleList]] = []
    for name, module in model.named_modules():
        nested = any(name.startswith(path + ".") for path, _ in found)
        if isinstance(module, nn.ModuleList) and len(module) == count and not nested:
            found.append((name, module))
    if len(found) != 1:
        raise ModelFileRefused(
            f"{type(model).__name__} has {len(found)} lists of {count} layers instead of one: it "
            "cannot be run in parts"
        )
    return found[0]


def elsewhere(model: Any) -> Callable[[str], bool]:
    """Tells whether a tensor of a file, by its name there, belongs to an absent module."""
    prefix = model.base_model_prefix + "."
    kinds = (AbsentLayer, AbsentTable, AbsentHead)
    paths = [name for name, module in model.named_modules() if isinstance(module, kinds)]
    if not paths:
        return lambda _: False
    # Files of a bare decoder lack the prefix, those of larger models have more before it.
    names = "|".join(re.escape(path.removeprefix(prefix)) for path in paths)
    pattern = re.compile(rf"(?:^|\.)(?:{names})\.")
    return lambda tensor: pattern.search(tensor) is not None


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
