"""How a node learns where it stands with a distributor, and asks for another chance."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from starai.protocol.fields import U32, Name, Party
from starai.protocol.frames import Message, travels

#: Steps of a party's past that are kept: weeks of a sound node's, minutes of a failing one's.
NOTES_MAX: Final = 32
#: Standings of one answer: the lowest come first, and what is beyond is counted.
STANDINGS_MAX: Final = 64

#: Seconds, or a weight; not NaN, not infinite.
_Amount = Annotated[float, msgspec.Meta(ge=0.0, le=1e12)]


class Note(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """One step on the ladder: how many seconds ago, where to, and why."""

    ago_s: _Amount
    rung: Name
    reason: Name


class FaultCount(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """How often a kind of fault was seen."""

    fault: Name
    times: U32


class Standing(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """Where a node stands: see `starai.exchange.standing.ladder`.

    ``failures`` is what counts against it now, ``rests_s`` for how many seconds it gets nothing,
    ``faults`` how often each kind of fault was seen, ``notes`` its steps, the oldest first.
    """

    node: Party
    rung: Name
    failures: _Amount = 0.0
    rests_s: _Amount = 0.0
    faults: Annotated[tuple[FaultCount, ...], msgspec.Meta(max_length=32)] = ()
    notes: Annotated[tuple[Note, ...], msgspec.Meta(max_length=NOTES_MAX)] = ()


@travels(12)
class Plea(Message, frozen=True):
    """A node or the operator asks the distributors.

    ``why`` asks for the standing of ``node`` (empty: of all with a past, which only the operator
    is told), ``appeal`` for another chance, ``reset`` (the operator's alone) for forgiveness.
    """

    what: Name
    node: Name = ""


@travels(13)
class Standings(Message, frozen=True):
    """A distributor's answer: what became of the plea in words, and the standings it is about.

    ``left_off`` counts those for which there was no room.
    """

    distributor: Party
    said: Name
    entries: Annotated[tuple[Standing, ...], msgspec.Meta(max_length=STANDINGS_MAX)] = ()
    left_off: U32 = 0
