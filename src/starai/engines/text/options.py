"""What a text engine can be told besides its model: checked once, in one place.

Everything has a default that suits a machine that people also use for other things.
"""

from __future__ import annotations

import difflib
from typing import Final, Literal

import msgspec

from starai.core.errors import ConfigurationRefused
from starai.engines.base import EngineSpec


class TextOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The options of `EngineSpec.options` for the kind ``text``.

    Attributes:
        bits: of the weights: 16 leaves them as floats, 8 and 4 quantise them at load.
        kv_gib: bounds the KV memory, and with it the context.
        kv_bits: of the KV memory: 16 keeps the model's own float type, 8 halves it or better.
        context: shortens the context; 0 for the model's own.
        swap_gib: where preempted sequences may wait instead of being computed again; 0 for never.
        swap: whether that is memory or a nameless file on disk.
        preempt: what becomes of a sequence that must give way: ``swap``, ``recompute``, or
            ``measured``, which is whatever is predicted to cost least, some of both if need be.
        waiting: requests that may wait for a place, beyond those that run.
        prefixes: whether requests of one tenant share what their prompts begin with.
        speculate: tokens guessed ahead per step at most, from what was said before; 0 for never.
        attention: ``dense``, ``star`` or ``auto``, which is star for very long prompts.
        native: whether C++ kernels are used where there are any.
        adapters: a folder whose subfolders are LoRA adapters, served by their names; or empty.
        adapters_gib: bounds the memory of those that are loaded.
    """

    bits: Literal[16, 8, 4] = 16
    kv_gib: float = 4.0
    kv_bits: Literal[16, 8] = 16
    context: int = 0
    swap_gib: float = 1.0
    swap: Literal["memory", "disk"] = "memory"
    preempt: Literal["measured", "swap", "recompute"] = "measured"
    waiting: int = 0
    prefixes: bool = True
    speculate: int = 4
    attention: Literal["dense", "star", "auto"] = "dense"
    native: bool = True
    adapters: str = ""
    adapters_gib: float = 1.0


_NAMES: Final = tuple(TextOptions.__struct_fields__)


def read_options(spec: EngineSpec) -> TextOptions:
    """The options of ``spec``; whole numbers may be written as floats.

    Raises:
        ConfigurationRefused: an option is unknown or out of its range.
    """
    for name in spec.options:
        if name not in _NAMES:
            near = difflib.get_close_matches(name, _NAMES, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(_NAMES)}"
            raise ConfigurationRefused(f"the text engine has no option {name!r}: {hint}")
    whole = {
        name: int(value) if isinstance(value, float) and value.is_integer() else value
        for name, value in spec.options.items()
    }
    for name in ("prefixes", "native"):
        if whole.get(name) in (0, 1):
            whole[name] = bool(whole[name])
    try:
        options = msgspec.convert(whole, TextOptions)
    except msgspec.ValidationError as error:
        raise ConfigurationRefused(f"an option of the text engine is wrong: {error}") from error
    numbers = (options.kv_gib, options.context, options.swap_gib, options.waiting)
    if min(*numbers, options.speculate, options.adapters_gib) < 0 or options.kv_gib == 0:
        raise ConfigurationRefused("sizes of the text engine are positive")
    return options
