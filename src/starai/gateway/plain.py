"""The routes that are not hot: models, health, readiness, metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

import msgspec

from starai.gateway.catalogue import Catalogue, ModelCard, TextModel
from starai.gateway.errors import RequestRefused
from starai.gateway.metrics import GatewayMetrics
from starai.gateway.paying.keys import Account, KeyRing
from starai.gateway.paying.pricing import PriceBook
from starai.gateway.web.incoming import Head
from starai.gateway.web.replies import Reply

_ENCODE: Final = msgspec.json.Encoder().encode
_MODELS: Final = "/v1/models"
_PROMETHEUS: Final = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")


class ModelList(msgspec.Struct, frozen=True):
    """The body of ``GET /v1/models``."""

    data: list[ModelCard]
    object: Literal["list"] = "list"


class PlainRoutes:
    """Answers the routes that make no task."""

    def __init__(
        self,
        catalogue: Catalogue,
        keys: KeyRing | None,
        prices: PriceBook | None,
        metrics: GatewayMetrics,
        started_at: int,
    ) -> None:
        """``started_at`` (Unix seconds) stands as the creation time of all models."""
        self._catalogue = catalogue
        self._keys = keys
        self._prices = prices
        self._metrics = metrics
        self._started_at = started_at

    def answer(self, head: Head, reply: Reply, admit: Callable[[], Account]) -> bool:
        """Answer a request, if it is for one of these routes; ``admit`` checks the caller.

        Raises:
            RequestRefused: the route exists, but not for this method.
            ModelNotFound: no such model.
        """
        path = head.path
        model_id = path[len(_MODELS) + 1 :] if path.startswith(_MODELS + "/") else ""
        if not model_id and path not in (_MODELS, "/healthz", "/readyz", "/metrics"):
            return False
        if head.method not in ("GET", "HEAD"):
            raise RequestRefused(
                f"Not allowed to {head.method} on {path[:200]}; use GET.",
                reason="method_not_allowed",
                status=405,
            )
        if path == "/healthz":
            reply.whole(200, b'{"status":"ok"}')
        elif path == "/readyz":
            missing = self._missing()
            reply.whole(503 if missing else 200, _ENCODE({"status": missing or "ready"}))
        elif path == "/metrics":
            reply.whole(200, self._metrics.text(), content_type=_PROMETHEUS)
        else:
            admit()
            reply.whole(200, self._card(model_id) if model_id else self._list())
        return True

    def _missing(self) -> str:
        """What the gateway waits for before it can answer; empty when it is ready."""
        if self._keys is not None and not self._keys.loaded:
            return "waiting for API keys"
        if self._prices is not None and not self._prices.loaded:
            return "waiting for prices"
        return "" if self._catalogue.served() else "waiting for a node that serves a model"

    def _list(self) -> bytes:
        models = sorted(self._catalogue.served().values(), key=lambda model: model.name)
        return _ENCODE(ModelList([self._described(model) for model in models]))

    def _card(self, name: str) -> bytes:
        return _ENCODE(self._described(self._catalogue.find(name)))

    def _described(self, model: TextModel) -> ModelCard:
        return ModelCard(
            id=model.name, created=self._started_at, context_length=model.context_length
        )
