"""A model as the library knows it: its shape, and what follows from the shape by counting.

Knows nothing about devices or speed, nor about any file of the model.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

#: A key or value is kept as a 16-bit float.
_KV_VALUE_BYTES: Final = 2

Positive = Annotated[int, Meta(gt=0)]
NotNegative = Annotated[int, Meta(ge=0)]
Text = Annotated[str, Meta(min_length=1, max_length=128)]
#: What a model takes and gives.
Modality = Literal["text", "text+image", "embedding"]


class Experts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The experts of a mixture: ``used`` of ``count`` see a token, and all ``shared`` ones.

    ``feed_forward`` is the inner width of one; the first ``dense_layers`` layers have none.
    """

    count: Positive
    used: Positive
    feed_forward: Positive
    shared: NotNegative = 0
    dense_layers: NotNegative = 0


class Shape(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A transformer's shape, in the words of its ``config.json``.

    Attributes:
        layers: blocks of attention and feed-forward.
        width: of the hidden states.
        heads: query heads.
        kv_heads: heads of keys and values.
        head_width: of one head.
        feed_forward: inner width of a dense feed-forward.
        vocabulary: rows of the table of tokens.
        tied: one table serves as input and output.
        gated: the feed-forward has three matrices, not two.
        window: tokens that a local layer looks back at; 0: there are no local layers.
        full_layers: layers that look back at everything, where the others are local.
        kv_values: numbers kept of a token in a layer where that is not 2 x kv_heads x head_width.
        attention_weights: of a layer where they are not the four usual matrices.
        experts: of a mixture of experts.
    """

    layers: Positive
    width: Positive
    heads: Positive
    kv_heads: Positive
    head_width: Positive
    feed_forward: Positive
    vocabulary: Positive
    tied: bool = False
    gated: bool = True
    window: NotNegative = 0
    full_layers: NotNegative = 0
    kv_values: NotNegative = 0
    attention_weights: NotNegative = 0
    experts: Experts | None = None

    @property
    def table(self) -> int:
        """Weights of one table of tokens."""
        return self.vocabulary * self.width

    @property
    def tables(self) -> int:
        """Weights of input and output tables together."""
        return self.table if self.tied else 2 * self.table

    @property
    def layer_weights(self) -> int:
        """Weights of all layers, norms and biases not counted."""
        return self.layers * self._attention + self._dense + self._experts(None)

    @property
    def used_layer_weights(self) -> int:
        """Weights of all layers that one token meets."""
        used = self.experts.used if self.experts else 0
        return self.layers * self._attention + self._dense + self._experts(used)

    @property
    def expert_weights(self) -> int:
        """Those of `layer_weights` that are in experts."""
        return self._experts(None)

    @property
    def used_expert_weights(self) -> int:
        """Those of `used_layer_weights` that are in experts."""
        return self._experts(self.experts.used if self.experts else 0)

    @property
    def _attention(self) -> int:
        if self.attention_weights:
            return self.attention_weights
        return 2 * self.width * self.head_width * (self.heads + self.kv_heads)

    @property
    def _matrices(self) -> int:
        return 3 if self.gated else 2

    @property
    def _dense(self) -> int:
        layers = self.experts.dense_layers if self.experts else self.layers
        return layers * self._matrices * self.width * self.feed_forward

    def _experts(self, used: int | None) -> int:
        if self.experts is None:
            return 0
        each = self._matrices * self.width * self.experts.feed_forward
        number = (self.experts.count if used is None else used) + self.experts.shared
        return (self.layers - self.experts.dense_layers) * number * each


class LibraryModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An open model.

    Attributes:
        name: short, lower case, unique in the library.
        hub: ``ORG/NAME`` on the hub.
        licence: an SPDX identifier, or the licence's own name.
        released: year and month.
        modality: what it takes and gives.
        context: tokens of prompt and answer that it was made for.
        parameters: all of them, as its makers count.
        extra_parameters: those beside the transformer of ``shape``: a vision tower.
        quantisations: what its weights come in; empty: everything in `QUANTISATIONS` but MXFP4.
        special: what it is made for, if not for everything: ``code``, or ``reasoning`` for those
            that always think at length before they answer.
        shape: see `Shape`.
    """

    name: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9.-]+\Z", max_length=64)]
    hub: Annotated[str, Meta(pattern=r"^[\w.-]+/[\w.-]+\Z")]
    licence: Text
    released: Annotated[str, Meta(pattern=r"^20\d\d-(0[1-9]|1[0-2])\Z")]
    modality: Modality
    context: Positive
    parameters: Positive
    shape: Shape
    extra_parameters: NotNegative = 0
    quantisations: tuple[str, ...] = ()
    special: Literal["", "code", "reasoning"] = ""

    @property
    def active_parameters(self) -> int:
        """Weights that a token is multiplied by, output table included, input table not."""
        return self.shape.used_layer_weights + self.shape.table

    @property
    def counted_parameters(self) -> int:
        """What the shape says that ``parameters`` should be, but for norms and biases."""
        return self.shape.layer_weights + self.shape.tables + self.extra_parameters

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of one more token in all layers, while no window is full."""
        return self.shape.layers * self._kv_layer_bytes

    def kv_bytes(self, context: int) -> int:
        """Keys and values of a sequence of ``context`` tokens; an embedding model keeps none."""
        shape = self.shape
        if self.modality == "embedding":
            return 0
        if not shape.window:
            return context * self.kv_bytes_per_token
        local = (shape.layers - shape.full_layers) * min(context, shape.window)
        return (shape.full_layers * context + local) * self._kv_layer_bytes

    @property
    def _kv_layer_bytes(self) -> int:
        values = self.shape.kv_values or 2 * self.shape.kv_heads * self.shape.head_width
        return _KV_VALUE_BYTES * values
