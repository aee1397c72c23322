"""The models that a gateway can offer: those it can read and write that somebody serves."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Final

import msgspec

from starai.core.errors import ModelNotFound, Unavailable
from starai.models.codec import TextCodec, open_codec
from starai.models.manifest import ModelManifest, SamplingDefaults
from starai.protocol.ports import TaskPort
from starai.protocol.presence import ServedModel

#: Names in an error message; more would bury the message.
_NAMES_LISTED_MAX: Final = 20


class TextModel(msgspec.Struct, frozen=True, gc=False):
    """A model with its codec. ``context_length`` is what its servers offer, in tokens."""

    name: str
    root: bytes
    context_length: int
    eos_token_ids: tuple[int, ...]
    codec: TextCodec
    fingerprint: str
    sampling: SamplingDefaults = SamplingDefaults()


class ModelCard(msgspec.Struct, frozen=True):
    """A model as OpenAI's API lists it, and its context length in tokens."""

    id: str
    created: int
    context_length: int
    object: str = "model"
    owned_by: str = "starai"


class Catalogue:
    """Finds models by name; a served model counts when its root is the one known here."""

    def __init__(self, manifests: Iterable[ModelManifest], port: TaskPort) -> None:
        """Open the codec of every model.

        Raises:
            ModelFileRefused: a tokenizer cannot be used.
        """
        self._port = port
        #: What was offered when it was last looked through, and what of it can be asked.
        self._offers: tuple[ServedModel, ...] = ()
        self._served: dict[str, TextModel] = {}
        self._models = {
            manifest.name: TextModel(
                name=manifest.name,
                root=manifest.root,
                context_length=manifest.context_length,
                eos_token_ids=manifest.eos_token_ids,
                codec=open_codec(manifest),
                fingerprint=f"fp_{manifest.root.hex()[:10]}",
                sampling=manifest.sampling,
            )
            for manifest in manifests
        }

    def served(self) -> dict[str, TextModel]:
        """The models that can be asked right now, by name."""
        offers = self._port.models()
        if offers is self._offers:
            return self._served
        found: dict[str, TextModel] = {}
        for offer in offers:
            known = self._models.get(offer.name)
            if known is None or known.root != offer.model_root:
                continue
            if offer.context_length < known.context_length:
                known = msgspec.structs.replace(known, context_length=offer.context_length)
            found[offer.name] = known
        self._offers, self._served = offers, found
        return found

    def find(self, name: str) -> TextModel:
        """The served model called ``name``.

        Raises:
            ModelNotFound: there is none; lists the nearest names and what there is.
            Unavailable: nobody serves it right now.
        """
        served = self.served()
        model = served.get(name)
        if model is not None:
            return model
        if name in self._models:
            self._port.missed(name, self._models[name].root)
            raise Unavailable(
                f"No node serves the model `{name}` right now; try again shortly.",
                param="model",
                retry_after_s=1.0,
            )
        message = f"The model `{name[:200]}` does not exist or you do not have access to it."
        near = difflib.get_close_matches(name[:200], served, n=3, cutoff=0.4)
        if near:
            message += " Did you mean " + " or ".join(f"`{match}`" for match in near) + "?"
        listed = ", ".join(f"`{known}`" for known in sorted(served)[:_NAMES_LISTED_MAX])
        message += f" Available models: {listed}." if listed else " No model is served right now."
        raise ModelNotFound(message, param="model")
