"""How a party tells that it is there and what it can do: the beat, and the control of a node."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from starai.protocol.fields import U32, Bytes32, Count, Name, Party, Speed, UnixMs
from starai.protocol.frames import Message, travels
from starai.protocol.tasks import Prekey

#: Models of one beat: everybody who hears beats looks through all of them for each task.
MODELS_MAX: Final = 256
#: Slots that a party can claim, alone or for all behind it.
SLOTS_MAX: Final = (1 << 32) - 1


class ServedModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """A model that a party serves, with measured speeds in tokens per second (0: not yet known).

    ``slots`` is how many tasks it runs at once.
    """

    name: Name
    model_root: Bytes32
    context_length: U32
    slots: U32
    prefill_tps: Speed = 0.0
    decode_tps: Speed = 0.0


@travels(10)
class Beat(Message, frozen=True):
    """A sign of life every half second.

    ``boot`` is the start time in milliseconds: a higher one supersedes the old self. ``running``
    and ``queued`` count tasks; ``done`` and ``tokens`` count since the start.
    """

    party: Party
    role: Name
    boot: UnixMs
    seq: Count
    sent_ms: UnixMs
    draining: bool
    running: U32
    queued: U32
    done: Count
    tokens: Count
    prekey: Prekey | None = None
    models: Annotated[tuple[ServedModel, ...], msgspec.Meta(max_length=MODELS_MAX)] = ()
    label: Name = ""


@travels(11)
class Control(Message, frozen=True):
    """An order to a node from its owner or the operator: ``drain`` or ``resume``."""

    order: Name
