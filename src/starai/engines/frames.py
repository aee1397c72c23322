"""What parent and worker say to each other: length-prefixed MessagePack over the child's pipes.

A frame is ``u32 little-endian length | MessagePack``. Parent to worker: `Command`; the first is
`Open`. Worker to parent: `Report`; the first is `Opened` or `Refused`. Either side ends by closing.
Knows nothing about processes or loops.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Final

import msgspec

from starai.core.errors import MalformedFrame
from starai.engines.base import Emitted, EngineInfo, EngineSpec
from starai.protocol.generation import Generation

#: A 128k-token prompt is 512 KiB; a step's log-probabilities of 64 slots far less.
FRAME_BYTES_MAX: Final = 16 << 20
_LENGTH_BYTES: Final = 4


class Open(msgspec.Struct, frozen=True, tag="open"):
    """Load this; must be the first command."""

    spec: EngineSpec


class Admit(msgspec.Struct, frozen=True, tag="admit"):
    """Take a sequence; a refusal comes back as an `Emitted` with an error."""

    key: bytes
    generation: Generation


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """Forget a sequence."""

    key: bytes


class Pace(msgspec.Struct, frozen=True, tag="pace"):
    """Compute for this share of the time, above 0 and up to 1; rest for the other."""

    share: float


class Opened(msgspec.Struct, frozen=True, tag="opened"):
    """The engine is ready."""

    info: EngineInfo


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """The engine could not be opened; the worker ends. ``code`` names an error class."""

    code: str
    message: str


class Stepped(msgspec.Struct, frozen=True, tag="stepped"):
    """What a step emitted, or several (see `gathered`); nothing is a pulse."""

    emitted: tuple[Emitted, ...]


Command = Open | Admit | Cancel | Pace
Report = Opened | Refused | Stepped

_ENCODE: Final = msgspec.msgpack.Encoder().encode
_COMMAND: Final = msgspec.msgpack.Decoder(Command)
_REPORT: Final = msgspec.msgpack.Decoder(Report)


def gathered(news: Sequence[Emitted]) -> tuple[Emitted, ...]:
    """What several steps emitted, in order, as if it had been one step."""
    by_key: dict[bytes, list[Emitted]] = {}
    for one in news:
        by_key.setdefault(one.key, []).append(one)
    return tuple(group[0] if len(group) == 1 else _joined(group) for group in by_key.values())


def _joined(group: Sequence[Emitted]) -> Emitted:
    last = group[-1]
    return Emitted(
        last.key,
        tuple(chain.from_iterable(one.ids for one in group)),
        tuple(chain.from_iterable(one.logprobs for one in group)),
        *(last.finish, last.error, last.embedding),
    )


def frame(message: Command | Report) -> bytes:
    """A message as it goes through the pipe."""
    payload = _ENCODE(message)
    return len(payload).to_bytes(_LENGTH_BYTES, "little") + payload


class FrameReader:
    """Cuts a stream of bytes into frames."""

    def __init__(self) -> None:
        """Start at the beginning of a frame."""
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The frames that ``data`` completes.

        Raises:
            MalformedFrame: a frame claims to be larger than any may be.
        """
        self._buffer += data
        frames: list[bytes] = []
        at = 0
        while len(self._buffer) - at >= _LENGTH_BYTES:
            length = int.from_bytes(self._buffer[at : at + _LENGTH_BYTES], "little")
            if length > FRAME_BYTES_MAX:
                raise MalformedFrame("a frame of the engine's pipe is too large")
            end = at + _LENGTH_BYTES + length
            if end > len(self._buffer):
                break
            frames.append(bytes(self._buffer[at + _LENGTH_BYTES : end]))
            at = end
        del self._buffer[:at]
        return frames


def read_command(payload: bytes) -> Command:
    """A command from its frame.

    Raises:
        MalformedFrame: it is none.
    """
    try:
        command: Command = _COMMAND.decode(payload)
    except msgspec.DecodeError as error:
        raise MalformedFrame("not a command of an engine's pipe") from error
    return command


def read_report(payload: bytes) -> Report:
    """A report from its frame.

    Raises:
        MalformedFrame: it is none.
    """
    try:
        report: Report = _REPORT.decode(payload)
    except msgspec.DecodeError as error:
        raise MalformedFrame("not a report of an engine's pipe") from error
    return report
