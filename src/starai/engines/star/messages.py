"""What a session and its hosts say to each other: length-prefixed MessagePack, arrays as bytes.

A frame is ``u32 little-endian length | MessagePack``. Session to host: `Command`; the first to a
process is `Load`. Host to session: `Reply`. Every command has one answer, except `Ship`, answered
by one `Shipped` a layer, and `Ask`, during which each layer exchanges `Part` and `Merged`. Nothing
is ever unpickled. Knows no tensors, pipes or models.
"""

from __future__ import annotations

import math
from typing import BinaryIO, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from starai.core.errors import MalformedFrame

#: One layer's keys and values of a shard: 128k tokens of 8 heads of 128 in bf16 are 512 MiB.
FRAME_BYTES_MAX: Final = 1 << 30
_LENGTH_BYTES: Final = 4
#: bfloat16 travels as the integers that its bits spell.
_DTYPES: Final = {"f4": np.float32, "bf16": np.int16, "f2": np.float16, "i1": np.int8}


class Array(msgspec.Struct, frozen=True, array_like=True):
    """Numbers with a shape: ``kind`` is f4, f2, bf16 or i1; ``data`` little-endian, C order."""

    kind: str
    shape: tuple[int, ...]
    data: bytes

    def numpy(self) -> NDArray[np.generic]:
        """The numbers, read-only; bf16 as int16 of its bits.

        Raises:
            MalformedFrame: kind, shape and bytes do not fit together.
        """
        dtype = _DTYPES.get(self.kind)
        if dtype is None or any(side < 0 for side in self.shape):
            raise MalformedFrame("an array of an unknown kind or shape")
        if len(self.data) != math.prod(self.shape) * np.dtype(dtype).itemsize:
            raise MalformedFrame("an array whose bytes do not fill its shape")
        return np.frombuffer(self.data, np.dtype(dtype).newbyteorder("<")).reshape(self.shape)


class Load(msgspec.Struct, frozen=True, tag="load"):
    """Load this model: a reference, store and threads as in `EngineSpec`."""

    model: str
    store: str = ""
    threads: int = 1


class Prefill(msgspec.Struct, frozen=True, tag="prefill"):
    """Compute a shard: the plan, which host this is, and packed ids of anchor and shard.

    ``groups`` are (first, behind last) block numbers of every host.
    """

    host: int
    context: int
    block: int
    anchor: int
    page: int
    groups: tuple[tuple[int, int], ...]
    anchor_ids: bytes
    ids: bytes


class Ship(msgspec.Struct, frozen=True, tag="ship"):
    """Send the shard's keys and values, as they are or as int8."""

    int8: bool


class Ask(msgspec.Struct, frozen=True, tag="ask"):
    """Run these packed ids from position ``position`` against the shard, layer by layer."""

    ids: bytes
    position: int


class Merged(msgspec.Struct, frozen=True, tag="merged"):
    """The attention over all shards: out float32 [1, heads, rows, width], lse [1, heads, rows]."""

    layer: int
    out: Array
    lse: Array


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The model is loaded."""

    layers: int


class Prefilled(msgspec.Struct, frozen=True, tag="prefilled"):
    """A shard is there: how many tokens were computed, anchor included, and in how long."""

    tokens: int
    seconds: float


class Shipped(msgspec.Struct, frozen=True, tag="shipped"):
    """A layer of the shard, [heads, tokens, width]; scales [heads, tokens] only with int8."""

    layer: int
    keys: Array
    values: Array
    key_scales: Array | None = None
    value_scales: Array | None = None


class Part(msgspec.Struct, frozen=True, tag="part"):
    """A host's attention to its shard in one layer, shaped as `Merged`."""

    layer: int
    out: Array
    lse: Array


class Asked(msgspec.Struct, frozen=True, tag="asked"):
    """The pass that `Ask` began is over."""


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """A command could not be carried out; ``code`` names an error class."""

    code: str
    message: str


Command = Load | Prefill | Ship | Ask | Merged
Reply = Ready | Prefilled | Shipped | Part | Asked | Failed

_ENCODE: Final = msgspec.msgpack.Encoder().encode
_COMMAND: Final = msgspec.msgpack.Decoder(Command)
_REPLY: Final = msgspec.msgpack.Decoder(Reply)


def write_frame(stream: BinaryIO, message: Command | Reply) -> None:
    """Send a message; blocks until the other side takes it."""
    payload = _ENCODE(message)
    if len(payload) > FRAME_BYTES_MAX:
        raise MalformedFrame("a message between Star hosts is too large: use smaller shards")
    for piece in (len(payload).to_bytes(_LENGTH_BYTES, "little"), payload):
        rest = memoryview(piece)
        while rest:
            rest = rest[stream.write(rest) or 0 :]
    stream.flush()


def read_command(stream: BinaryIO) -> Command | None:
    """The next command; None when the session is gone.

    Raises:
        MalformedFrame: it is none.
    """
    payload = _read_frame(stream)
    if payload is None:
        return None
    try:
        command: Command = _COMMAND.decode(payload)
    except msgspec.DecodeError as error:
        raise MalformedFrame("not a command to a Star host") from error
    return command


def read_reply(stream: BinaryIO) -> Reply | None:
    """The next reply; None when the host is gone.

    Raises:
        MalformedFrame: it is none.
    """
    payload = _read_frame(stream)
    if payload is None:
        return None
    try:
        reply: Reply = _REPLY.decode(payload)
    except msgspec.DecodeError as error:
        raise MalformedFrame("not a reply of a Star host") from error
    return reply


def _read_frame(stream: BinaryIO) -> bytes | None:
    head = _read_exactly(stream, _LENGTH_BYTES)
    if head is None:
        return None
    length = int.from_bytes(head, "little")
    if length > FRAME_BYTES_MAX:
        raise MalformedFrame("a frame between Star hosts is too large")
    return _read_exactly(stream, length)


def _read_exactly(stream: BinaryIO, count: int) -> bytes | None:
    """``count`` bytes, or None if the stream ends before them."""
    data = bytearray()
    while len(data) < count:
        more = stream.read(count - len(data))
        if not more:
            return None
        data += more
    return bytes(data)
