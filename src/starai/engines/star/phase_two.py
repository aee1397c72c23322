"""Chooses how the second phase reaches the context: one exchange a layer, or all of it once.

*Distributed*: keys and values stay where they were computed. Each query token and each generated
token costs one exchange a layer with every host, which waits for the slowest round trip.
*Gathered*: the hosts send their keys and values to the query host once; then it decodes as usual.
Few tokens over a fast network are cheaper distributed, everything over the Internet gathered.

Knows counts and rates only.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from starai.core.errors import Overloaded
from starai.engines.star.planning import ModelShape

#: Attention results and their log-sum-exp travel as float32.
_FLOAT_BYTES: Final = 4


class PhaseTwo(enum.Enum):
    """How query tokens reach the context's keys and values."""

    DISTRIBUTED = "distributed"
    GATHERED = "gathered"


@dataclass(frozen=True, slots=True)
class Link:
    """The network between the query host and its slowest peer.

    Attributes:
        rtt_s: round trip, seconds.
        bytes_per_s: what the query host can receive (or send) in a second, from all together.
    """

    rtt_s: float
    bytes_per_s: float


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen, and the predicted communication seconds of both ways."""

    mode: PhaseTwo
    distributed_s: float
    gathered_s: float


def exchange_bytes(shape: ModelShape, hosts: int, tokens: int = 1) -> int:
    """Bytes through the query host's link in one layer's exchange, both directions.

    Every host sends a vector and one log-sum-exp a head and token, and gets the merged vector.
    """
    up = shape.heads * (shape.head_width + 1) * _FLOAT_BYTES
    down = shape.heads * shape.head_width * _FLOAT_BYTES
    return hosts * tokens * (up + down)


def kv_bytes(shape: ModelShape, tokens: int, *, int8: bool) -> int:
    """Bytes of the keys and values of ``tokens``; int8 adds one float32 scale a head and token."""
    stored = tokens * shape.kv_bytes_per_token
    if not int8:
        return stored
    channels = stored // shape.kv_element_bytes
    return channels + channels // shape.head_width * _FLOAT_BYTES


def choose_phase_two(
    link: Link,
    shape: ModelShape,
    *,
    context_tokens: int,
    query_tokens: int,
    output_tokens: int,
    hosts: int,
    int8: bool = False,
    room_tokens: int | None = None,
) -> Choice:
    """The cheaper way by predicted communication time.

    Args:
        link: the network.
        shape: of the model.
        context_tokens: L.
        query_tokens: computed in one pass, one exchange a layer for all of them.
        output_tokens: expected; one pass each, the last needs none.
        hosts: that hold a part of the context.
        int8: whether gathered keys and values travel as int8.
        room_tokens: how many tokens the query host's memory can take; None for enough.

    Raises:
        Overloaded: neither way is possible: the answer itself does not fit the query host.
    """
    passes = [query_tokens] + [1] * max(0, output_tokens - 1)
    distributed_s = sum(
        shape.layers * (link.rtt_s + exchange_bytes(shape, hosts, count) / link.bytes_per_s)
        for count in passes
    )
    gathered = kv_bytes(shape, context_tokens, int8=int8)
    gathered_s = link.rtt_s + gathered / link.bytes_per_s
    own = query_tokens + output_tokens
    if room_tokens is not None and own > room_tokens:
        raise Overloaded("the query host has no memory for the query and its answer")
    fits = room_tokens is None or context_tokens + own <= room_tokens
    cheaper = PhaseTwo.GATHERED if gathered_s <= distributed_s else PhaseTwo.DISTRIBUTED
    return Choice(cheaper if fits else PhaseTwo.DISTRIBUTED, distributed_s, gathered_s)
