"""Reads LoRA adapters as PEFT writes them: ``adapter_config.json``, ``adapter_model.safetensors``.

An adapter adds ``scale * B A x`` to what some linear layers give (Hu et al. 2021, "LoRA"). Whatever
would make the result another one (DoRA, trained biases, whole modules, base weights that were
changed) is refused by name, and so is what this file never heard of. Knows nothing about models.
"""

from __future__ import annotations

import hashlib
import math
import re
from pathlib import Path
from typing import Final

import numpy as np

from starai.core.errors import ModelFileRefused
from starai.models.checkpoints.base import Floats
from starai.models.checkpoints.files import SafetensorsSource
from starai.models.folder import read_json
from starai.models.manifest import file_sha256

CONFIG_FILE: Final = "adapter_config.json"
WEIGHTS_FILE: Final = "adapter_model.safetensors"
_PICKLE_FILE: Final = "adapter_model.bin"
#: The layer that a tensor belongs to, and which factor it is.
_TENSOR: Final = re.compile(r"base_model\.model\.(.+)\.lora_(A|B)\.weight")
#: A layer's name or the end of it, as ``rank_pattern`` may give it; no regular expressions.
_PLAIN_NAME: Final = re.compile(r"\^?[A-Za-z0-9_.]+")
#: Bounds that no adapter reaches; numbers of a file may be longer than any float.
_RANK_MAX: Final = 1 << 20
_ALPHA_MAX: Final = 1e9
#: Fields that say how it was trained or made, or that the tensors' names say again.
_IRRELEVANT: Final = frozenset(
    {
        *("auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "eva_config"),
        *("exclude_modules", "fan_in_fan_out", "inference_mode", "layers_pattern"),
        *("layers_to_transform", "lora_dropout", "megatron_core", "peft_version"),
        *("qalora_group_size", "revision", "runtime_config", "task_type"),
    }
)
#: Fields that are read here.
_READ: Final = frozenset(
    {
        *("alpha_pattern", "bias", "init_lora_weights", "lora_alpha", "peft_type", "r"),
        *("rank_pattern", "target_modules", "use_rslora"),
    }
)
#: Ways to begin that leave the base model as it is; others (pissa, olora, loftq) change it.
_BEGINNINGS: Final = (None, True, False, "gaussian", "eva", "orthogonal")


class AdapterFile:
    """An adapter's file, its header and config checked.

    Attributes:
        modules: names of the layers that it changes, sorted.
        digest: SHA-256 over both files: what the adapter is.
    """

    def __init__(self, folder: Path) -> None:
        """Read config and header of the adapter in ``folder``.

        Raises:
            ModelFileRefused: something is missing, damaged, or means what cannot be done here.
        """
        if not (folder / WEIGHTS_FILE).is_file():
            pickled = (folder / _PICKLE_FILE).is_file()
            hint = "; pickled weights are never read: save it as safetensors" if pickled else ""
            raise _refused(folder, f"it has no {WEIGHTS_FILE}{hint}")
        self._folder = folder
        self._config = read_json(folder / CONFIG_FILE)
        self._check_config()
        self._source = SafetensorsSource(folder, [WEIGHTS_FILE])
        self._sides = self._find_sides()
        self.modules: tuple[str, ...] = tuple(sorted(self._sides))
        self._check_targets()
        digests = [file_sha256(folder / name) for name in (CONFIG_FILE, WEIGHTS_FILE)]
        self.digest: bytes = hashlib.sha256(b"".join(digests)).digest()

    @property
    def num_parameters(self) -> int:
        """How many numbers it holds."""
        return sum(info.num_elements for info in self._source.tensors.values())

    def shapes(self, module: str) -> tuple[int, int, int]:
        """Width of the input, rank, and width of the output of a layer's change.

        Raises:
            ModelFileRefused: its factors do not fit each other or the config.
        """
        names = self._sides[module]
        down, up = (self._source.tensors[names[side]].shape for side in "AB")
        if len(down) != 2 or len(up) != 2 or down[0] != up[1] or down[0] != self._rank(module):
            raise _refused(
                self._folder,
                f"the factors of {module[:80]!r} are {list(down)} and {list(up)}, the rank is "
                f"{self._rank(module)}",
            )
        return down[1], down[0], up[0]

    def factors(self, module: str) -> tuple[Floats, Floats]:
        """``A`` [rank, inputs] and ``scale * B`` [outputs, rank] of a layer, float32.

        Raises:
            ModelFileRefused: they are no numbers, or do not fit.
        """
        _, rank, _ = self.shapes(module)
        down, up = (self._source.floats(self._sides[module][side]) for side in "AB")
        alpha = self._of("lora_alpha", "alpha_pattern", module)
        root = math.sqrt(rank) if self._config.get("use_rslora") else rank
        scaled = up * np.float32(alpha / root)
        if not (np.isfinite(down).all() and np.isfinite(scaled).all()):
            raise _refused(self._folder, f"{module[:80]!r} holds what is no number")
        return down, scaled

    def _rank(self, module: str) -> int:
        return int(self._of("r", "rank_pattern", module))

    def _of(self, field: str, pattern: str, module: str) -> float:
        """A number of the config, unless a pattern gives a layer its own."""
        for name, value in (self._config.get(pattern) or {}).items():
            whole = name.startswith("^")
            if module == name.lstrip("^") or (not whole and module.endswith("." + name)):
                return float(value)
        return float(self._config.get(field, 8))  # PEFT's default for both

    def _check_config(self) -> None:
        config, folder = self._config, self._folder
        if config.get("peft_type") != "LORA":
            raise _refused(folder, f"it is {repr(config.get('peft_type'))[:40]}, LORA is supported")
        if config.get("bias", "none") != "none":
            raise _refused(folder, "it has trained biases (bias is not 'none')")
        if config.get("init_lora_weights") not in _BEGINNINGS:
            way = repr(config["init_lora_weights"])[:40]
            raise _refused(folder, f"it belongs to a changed base ({way}): convert it with PEFT")
        for name in sorted(config.keys() - _IRRELEVANT - _READ):
            if config[name]:
                raise _refused(folder, f"{name[:60]!r} is set, which is not supported")
        for name in ("rank_pattern", "alpha_pattern"):
            pattern = config.get(name) or {}
            if not isinstance(pattern, dict) or not all(map(_PLAIN_NAME.fullmatch, pattern)):
                raise _refused(folder, f"{name} has more than names of layers")
        self._check_numbers()

    def _check_numbers(self) -> None:
        config = self._config
        ranks = [config.get("r", 8), *(config.get("rank_pattern") or {}).values()]
        alphas = [config.get("lora_alpha", 8), *(config.get("alpha_pattern") or {}).values()]
        natural = all(type(rank) is int and 0 < rank <= _RANK_MAX for rank in ranks)
        finite = all(type(a) in (int, float) and abs(a) <= _ALPHA_MAX for a in alphas)
        if not (natural and finite and isinstance(config.get("use_rslora") or False, bool)):
            raise _refused(self._folder, "r and lora_alpha are not numbers that make sense")

    def _find_sides(self) -> dict[str, dict[str, str]]:
        """By layer: the tensor names of its factors A and B."""
        found: dict[str, dict[str, str]] = {}
        for name in self._source.tensors:
            match = _TENSOR.fullmatch(name)
            if match is None:
                raise _refused(self._folder, f"tensor {name[:80]!r} is no factor of a layer")
            found.setdefault(match[1], {})[match[2]] = name
        for module, sides in found.items():
            if len(sides) < 2:
                raise _refused(self._folder, f"{module[:80]!r} lacks one of its two factors")
        return found

    def _check_targets(self) -> None:
        """Compare what the config names with what is there; a regular expression is not run."""
        targets = self._config.get("target_modules")
        if not isinstance(targets, list):
            return
        ends = {str(target) for target in targets}
        used: set[str] = set()
        for name in self.modules:
            parts = name.split(".")
            fitting = ends & {".".join(parts[n:]) for n in range(len(parts))}
            used |= fitting
            if not fitting:
                raise _refused(self._folder, f"{name[:80]!r} is none of its target_modules")
        if ends - used:
            lacking = min(ends - used)[:60]
            raise _refused(self._folder, f"target_modules names {lacking!r}: no tensor is for it")


def _refused(folder: Path, reason: str) -> ModelFileRefused:
    return ModelFileRefused(f"adapter {folder.name[:80]!r}: {reason}")
