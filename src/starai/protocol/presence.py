"""How a party tells that it is there and what it can do: the beat, and the control of a node."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from starai.protocol.fields import U32, Bytes32, Count, Name, Party, Speed, UnixMs
from starai.protocol.frames import Message, travels
from starai.protocol.tasks import Prekey

#: Models of one beat: everybody who hears beats looks through all of them for each task.
MODELS_MAX: Final = 256
#: Round trips that a beat tells of: the nearest gateways and distributors.
RTTS_MAX: Final = 32
#: Models that a beat names as what the device could serve instead of what it serves.
FITS_MAX: Final = 32
#: `ServedModel.quantisation` of a program that does not say how it keeps its weights, nor draws by
#: our sampler: its tokens cannot be compared with others'.
UNKNOWN_QUANTISATION: Final = "unknown"
#: Slots that a party can claim, alone or for all behind it.
SLOTS_MAX: Final = (1 << 32) - 1


class ServedModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """A model that a party serves, with measured speeds in tokens per second (0: not yet known).

    ``slots`` is how many tasks it runs at once, ``quantisation`` how its weights are kept there
    (``int8``, ``Q4_K_M``; empty: as the model's root says), ``modality`` what it takes and gives.
    ``sampler`` is ``keyed`` where another such party would go on with the very same tokens, else
    ``own`` or ``text`` (see `starai.engines.base.EngineInfo`).
    """

    name: Name
    model_root: Bytes32
    context_length: U32
    slots: U32
    prefill_tps: Speed = 0.0
    decode_tps: Speed = 0.0
    quantisation: Name = ""
    modality: Name = "text"
    sampler: Name = "keyed"


class RoundTrip(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """How far a party is: measured milliseconds there and back, smoothed."""

    party: Party
    rtt_ms: Speed


@travels(10)
class Beat(Message, frozen=True):
    """A sign of life every half second.

    ``boot`` is the start time in milliseconds: a higher one supersedes the old self. ``running``
    and ``queued`` count tasks; ``done`` and ``tokens`` count since the start.

    ``region`` is what its owner says of where it is (``eu-west``, free text), ``rtts`` what it
    measured. ``paused`` says in a word why it takes no new tasks for now (its owner's work, heat,
    battery, no readiness); empty when it does. ``fits`` names models it could load instead,
    ``unread`` counts the tokens of prompts whose first token is still to come.
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
    region: Name = ""
    paused: Name = ""
    rtts: Annotated[tuple[RoundTrip, ...], msgspec.Meta(max_length=RTTS_MAX)] = ()
    fits: Annotated[tuple[Name, ...], msgspec.Meta(max_length=FITS_MAX)] = ()
    unread: Count = 0


@travels(11)
class Control(Message, frozen=True):
    """An order to a node from its owner or the operator.

    ``drain`` (hand running streams over, take no new ones), ``resume``, ``leave`` (drain, confirm
    what is owed, end), ``load`` (serve the model that ``argument`` names instead).
    """

    order: Name
    argument: Name = ""


@travels(14)
class Ping(Message, frozen=True):
    """Asks whoever hears it to send it back at once: `starai.exchange.standing.pinging`."""

    number: Count
