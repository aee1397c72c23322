"""Handing a message to its handler: the one boundary at which a handler's fault stops."""

from __future__ import annotations

import logging

from starai.core.logging import event
from starai.protocol.ports import Delivery, Handler

_LOG = logging.getLogger(__name__)


def hand_over(handler: Handler, delivery: Delivery) -> None:
    """Call ``handler``; its fault is logged and goes no further, so that the others still hear."""
    try:
        handler(delivery)
    except Exception as error:  # noqa: BLE001 - boundary: one bad handler must not stop the rest
        fields = {"subject": delivery.subject, "fault": type(error).__name__}
        event(_LOG, "wire.handler_failed", logging.ERROR, **fields)
