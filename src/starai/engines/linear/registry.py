"""The kinds of linear layers by name."""

from __future__ import annotations

from typing import Final

from torch import Tensor

from starai.core.errors import ConfigurationRefused
from starai.engines.linear.base import Linear
from starai.engines.linear.floating import FloatLinear
from starai.engines.linear.int4 import Int4Linear
from starai.engines.linear.int8 import Int8Linear
from starai.engines.linear.kernels import GROUP
from starai.engines.native.linear import INT8_COLUMNS_MAX

KINDS: Final[dict[str, type[Linear]]] = {
    kind.kind: kind for kind in (FloatLinear, Int8Linear, Int4Linear)
}
#: What ``EngineSpec.options["bits"]`` calls them.
KIND_OF_BITS: Final = {16: FloatLinear.kind, 8: Int8Linear.kind, 4: Int4Linear.kind}


def quantise(weight: Tensor, kind: str, bias: Tensor | None = None) -> Linear:
    """A layer of ``kind`` from floats [out_features, in_features].

    A row that int4 cannot cut into groups is kept as int8, and one whose int8 sums could outgrow
    32 bits as floats.

    Raises:
        ConfigurationRefused: there is no such kind.
    """
    if kind not in KINDS:
        raise ConfigurationRefused(f"there is no linear layer {kind!r}: choose {', '.join(KINDS)}")
    if kind == Int4Linear.kind and weight.shape[1] % GROUP:
        kind = Int8Linear.kind
    if kind == Int8Linear.kind and weight.shape[1] > INT8_COLUMNS_MAX:
        kind = FloatLinear.kind
    return KINDS[kind].from_weight(weight, bias)


def kind_of_bits(bits: float) -> str:
    """The kind of ``options["bits"]``.

    Raises:
        ConfigurationRefused: it is not 16, 8 or 4.
    """
    if bits not in KIND_OF_BITS:
        raise ConfigurationRefused(f"weights have 16, 8 or 4 bits, not {bits:g}")
    return KIND_OF_BITS[int(bits)]
