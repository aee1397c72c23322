"""How a party tells that it is there and what it can do: the beat, and the control of a node."""

from __future__ import annotations

import msgspec

from starai.protocol.frames import Message, travels
from starai.protocol.identity import PartyId
from starai.protocol.tasks import Prekey


class ServedModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """A model that a party serves, with measured speeds in tokens per second (0: not yet known).

    ``slots`` is how many tasks it runs at once.
    """

    name: str
    model_root: bytes
    context_length: int
    slots: int
    prefill_tps: float = 0.0
    decode_tps: float = 0.0


@travels(10)
class Beat(Message, frozen=True):
    """A sign of life every half second.

    ``boot`` is the start time in milliseconds: a higher one supersedes the old self. ``running``
    and ``queued`` count tasks; ``done`` and ``tokens`` count since the start.
    """

    party: PartyId
    role: str
    boot: int
    seq: int
    sent_ms: int
    draining: bool
    running: int
    queued: int
    done: int
    tokens: int
    prekey: Prekey | None = None
    models: tuple[ServedModel, ...] = ()
    label: str = ""


@travels(11)
class Control(Message, frozen=True):
    """An order to a node from its owner or the operator: ``drain`` or ``resume``."""

    order: str
