"""Seals what one party says to another: prekeys, sessions, requests and chained answer chunks.

Against everybody but the two parties. It knows nothing of nodes' duties, of wires or of models.
Usable alone: `PrekeyRing` on one side, `open_session` on the other, then `derive_keys` per task.
"""

from starai.sealing.chunks import AnswerOpener, AnswerSealer
from starai.sealing.prekeys import PrekeyRing, check_prekey
from starai.sealing.sessions import Session, accept_session, open_session
from starai.sealing.tasks import (
    TaskKeys,
    close_tag,
    derive_keys,
    encode_request,
    open_request,
    request_hash,
    seal_request,
)

__all__ = [
    "AnswerOpener",
    "AnswerSealer",
    "PrekeyRing",
    "Session",
    "TaskKeys",
    "accept_session",
    "check_prekey",
    "close_tag",
    "derive_keys",
    "encode_request",
    "open_request",
    "open_session",
    "request_hash",
    "seal_request",
]
