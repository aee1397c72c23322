"""LoRA adapters beside one base model, batched together.

In one packed pass each piece may have its own adapter or none. The base layers run once for all
rows; then each adapter adds its change to its own rows, two small matrix products a layer::

    y = base(x)            x: [ a5 a6 | b9 | c1 c2 c3 ]
    y[a] += scale * B1 A1 x[a]      b has no adapter
    y[c] += scale * B2 A2 x[c]

It hangs on the layers by forward hooks, so it is all the same whether they are transformers' own,
quantised or fused. Knows nothing about requests.
"""

from __future__ import annotations

import difflib
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from starai.core.errors import (
    ConfigurationRefused,
    InternalFault,
    InvalidRequest,
    ModelFileRefused,
    Overloaded,
)
from starai.engines.linear.base import Linear
from starai.engines.linear.groups import Share
from starai.engines.linear.kernels import linear
from starai.engines.text.adapter_files import CONFIG_FILE, AdapterFile
from starai.engines.text.attention import CURRENT, Pass, Span
from starai.engines.text.forward import forward
from starai.engines.text.pool import KeyValuePool

#: Adapters in one folder: each costs a look when a name is not known.
ADAPTERS_MAX: Final = 1000
#: Names that a refusal quotes.
_NAMES_QUOTED: Final = 5
#: Tokens of the trial of a new adapter.
_TOKENS_TRIED: Final = 2


@dataclass(frozen=True, eq=False, slots=True)
class Adapter:
    """A loaded adapter: by layer, ``A`` [rank, inputs] and ``scale * B`` [outputs, rank].

    ``digest`` says what it is, whatever its name: keys and values depend on it.
    """

    name: str
    digest: bytes
    factors: Mapping[str, tuple[Tensor, Tensor]]

    @property
    def num_bytes(self) -> int:
        """Memory that it holds."""
        return sum(one.nbytes for pair in self.factors.values() for one in pair)


class Adapters:
    """The adapters of a folder, loaded when they are asked for, the least recently used let go."""

    def __init__(self, module: Any, folder: str, bytes_max: int) -> None:
        """Serve the subfolders of ``folder``, by their names, on the model ``module``.

        Args:
            module: a causal language model with the packed attention, refitted or not.
            folder: where they are; empty for none.
            bytes_max: bounds the memory of those that are loaded.

        Raises:
            ConfigurationRefused: there is no such folder, or too much in it.
        """
        self._module = module
        self._folder = Path(folder) if folder else None
        self._bytes_max = bytes_max
        self._loaded: OrderedDict[str, Adapter] = OrderedDict()
        self._hooked: set[str] = set()
        self._tried: set[str] | None = None
        if self._folder is not None and not self._folder.is_dir():
            raise ConfigurationRefused(f"adapters: {folder[:200]} is not a folder")
        if len(self.names()) > ADAPTERS_MAX:
            raise ConfigurationRefused(f"adapters: more than {ADAPTERS_MAX} in one folder")

    def names(self) -> list[str]:
        """What can be asked for now, sorted."""
        if self._folder is None:
            return []
        found = (path.parent.name for path in self._folder.glob(f"*/{CONFIG_FILE}"))
        return sorted(islice(found, ADAPTERS_MAX + 1))

    @property
    def loaded_bytes(self) -> int:
        """Memory of what is loaded."""
        return sum(adapter.num_bytes for adapter in self._loaded.values())

    def find(self, name: str, in_use: Collection[Adapter | None] = ()) -> Adapter | None:
        """The adapter of that name; None for the empty name.

        Args:
            name: one of `names`.
            in_use: adapters of what is running: these stay loaded.

        Raises:
            InvalidRequest: there is no such adapter.
            ModelFileRefused: it is damaged, or does not fit the model.
            Overloaded: those in use leave no memory for it.
        """
        if not name:
            return None
        if name not in self._loaded:
            self._loaded[name] = self._load(name, in_use)
        self._loaded.move_to_end(name)
        return self._loaded[name]

    def _load(self, name: str, in_use: Collection[Adapter | None]) -> Adapter:
        names = self.names()
        if self._folder is None or name not in names:
            raise InvalidRequest(_unknown(name, names), param="adapter")
        file = AdapterFile(self._folder / name)
        self._check_fit(name, file)
        self._make_room(name, file.num_parameters * self._module.dtype.itemsize, in_use)
        like = {"dtype": self._module.dtype, "device": self._module.device}
        factors = {}
        for path in file.modules:
            down, up = (torch.from_numpy(one).to(**like) for one in file.factors(path))
            factors[path] = (down.contiguous(), up.contiguous())
        adapter = Adapter(name, file.digest, factors)
        for path in factors.keys() - self._hooked:
            hook = partial(self._add, path)
            self._module.get_submodule(path).register_forward_hook(hook)
            self._hooked.add(path)
        self._try(adapter)
        return adapter

    def _check_fit(self, name: str, file: AdapterFile) -> None:
        modules = dict(self._module.named_modules())
        for path in file.modules:
            module = modules.get(path)
            if module is None:
                raise _refused(name, f"this model has no {path[:80]!r}")
            if module is self._module.get_output_embeddings():
                raise _refused(name, "it changes the output layer, which is not supported")
            sizes = _sizes(module)
            if sizes is None:
                raise _refused(name, f"{path[:80]!r} of this model is no linear layer")
            inputs, _, outputs = file.shapes(path)
            if sizes != (inputs, outputs):
                raise _refused(
                    name,
                    f"it was made for {inputs} to {outputs} in {path[:80]!r}, this model has "
                    f"{sizes[0]} to {sizes[1]}: is it for another one?",
                )

    def _make_room(self, name: str, needed: int, in_use: Collection[Adapter | None]) -> None:
        if needed > self._bytes_max:
            raise _refused(name, f"it takes {needed} bytes: raise adapters_gib")
        for other in list(self._loaded):
            if self.loaded_bytes + needed <= self._bytes_max:
                return
            if not any(self._loaded[other] is one for one in in_use):
                del self._loaded[other]
        if self.loaded_bytes + needed > self._bytes_max:
            raise Overloaded("the memory for adapters is in use: try again, or raise adapters_gib")

    @torch.inference_mode()
    def _try(self, adapter: Adapter) -> None:
        """Run a few tokens, and see that every changed layer saw each of them.

        Raises:
            ModelFileRefused: one does not (an expert, for example), or the result is no number.
        """
        run = Pass(KeyValuePool(1), [Span((0,), 0, _TOKENS_TRIED)], adapters=[adapter])
        self._tried = set()
        try:
            logits = forward(self._module, run, [0] * _TOKENS_TRIED, [0])
            unseen = adapter.factors.keys() - self._tried
        except (InternalFault, RuntimeError) as error:
            raise _refused(adapter.name, str(error)[:200]) from error
        finally:
            self._tried = None
        if unseen:
            raise _refused(adapter.name, f"{min(unseen)[:80]!r} is never called in this model")
        if not torch.isfinite(logits).all():
            raise _refused(adapter.name, "with it the model gives what is no number")

    def _add(self, path: str, module: nn.Module, args: tuple[Tensor], output: Tensor) -> Any:
        """Behind the layer ``path``: add to each row what its adapter changes."""
        run = CURRENT.get()
        if run is None or not run.adapters:
            return None
        rows = args[0].reshape(-1, args[0].shape[-1])
        if len(rows) != len(run.positions):
            raise InternalFault(f"{path[:80]!r} sees {len(rows)} of {len(run.positions)} tokens")
        if self._tried is not None:
            self._tried.add(path)
        sums = output.reshape(-1, output.shape[-1])
        for adapter, own in run.adapter_rows:
            if path in adapter.factors:
                down, up = adapter.factors[path]
                sums[own] += linear(linear(rows[own].contiguous(), down, None), up, None)
        return sums.view(output.shape)


def _sizes(module: nn.Module) -> tuple[int, int] | None:
    """Inputs and outputs of a linear layer, ours or another's; None for anything else."""
    if isinstance(module, Conv1D):
        return int(module.nx), int(module.nf)
    if isinstance(module, Linear | Share | nn.Linear):
        return module.in_features, module.out_features
    return None


def _unknown(name: str, names: list[str]) -> str:
    if not names:
        return "there are no adapters here: the engine's option 'adapters' names their folder"
    near = difflib.get_close_matches(name[:256], names, _NAMES_QUOTED) or names[:_NAMES_QUOTED]
    return f"there is no adapter {name[:80]!r}; there is {', '.join(near)}"


def _refused(name: str, reason: str) -> ModelFileRefused:
    return ModelFileRefused(f"adapter {name[:80]!r}: {reason}")
