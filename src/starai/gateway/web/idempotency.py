"""The same answer for the same ``Idempotency-Key``: while it is made, and for a while after.

The work of such a request belongs to nobody in particular: it writes into a `Recording`, and
every request with its key (the first one too) plays the recording to its client. When the last
of them leaves before the end, the work is cancelled and forgotten. Only complete, good answers
are kept; whatever failed can be tried again with the same key.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import anyio

from starai.core.clock import Clock
from starai.core.errors import Conflict, Overloaded
from starai.gateway.errors import Headers
from starai.gateway.web.incoming import Audience
from starai.gateway.web.replies import Reply

#: OpenAI's own limit on the header.
KEY_BYTES_MAX: Final = 255
#: Kept answers; with an average answer of 4 KB they fill 16 MB.
_ENTRIES_MAX: Final = 4096
#: One answer may fill this share of the memory for all.
_SHARE_OF_ONE: Final = 4

#: Who (key hash) used which idempotency key.
Name = tuple[bytes, bytes]


class Recording(Audience):
    """An answer (a `starai.gateway.web.replies.Outlet`), being made or complete.

    Whoever makes it has this for its audience, too: it leaves with the last who listens.
    """

    #: Memory takes whatever is said.
    congested = False

    def __init__(self, fingerprint: bytes, bytes_max: int) -> None:
        """Record the answer to the request with ``fingerprint``, up to ``bytes_max``."""
        super().__init__()
        self.fingerprint = fingerprint
        self.size = 0
        self.expires_s = float("inf")
        self.readers = 0
        self.finished = False
        #: The reply that is recorded here, once there is one.
        self.reply: Reply | None = None
        self._bytes_max = bytes_max
        self._began: tuple[int, Headers, bytes | None] | None = None
        self._pieces: list[bytes] = []
        self._ended = False
        self._news = anyio.Event()

    def begin(self, status: int, headers: Headers, body: bytes | None) -> None:
        """Take the beginning of the answer, or all of it."""
        self._began = status, headers, body
        self.size += len(body or b"")
        self._tell()

    def more(self, data: bytes) -> None:
        """Take a piece.

        Raises:
            Overloaded: the answer has outgrown its place; it ends with an error.
        """
        self.size += len(data)
        if self.size > self._bytes_max:
            raise Overloaded(
                "The answer is too long to be kept for its Idempotency-Key; ask again without one."
            )
        self._pieces.append(data)
        self._tell()

    def end(self, data: bytes) -> None:
        """Take the last piece."""
        self.size += len(data)
        self._pieces.append(data)
        self._ended = True
        self._tell()

    async def drained(self) -> None:
        """Memory does not make anybody wait."""

    def finish(self) -> None:
        """No more comes."""
        self.finished = True
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = anyio.Event()

    async def play(self, reply: Reply, *headers: tuple[bytes, bytes]) -> None:
        """Send the answer from its beginning, as far as it is and as it comes."""
        while self._began is None:
            if self.finished:
                return
            await self._news.wait()
        status, recorded, body = self._began
        reply.replay(status, [*recorded, *headers], body)
        position = 0
        while not reply.complete:
            for piece in self._pieces[position:-1] if self._ended else self._pieces[position:]:
                position += 1
                await reply.write(piece)
            if self._ended and position == len(self._pieces) - 1:
                reply.end(self._pieces[-1])
            elif self.finished:
                return
            elif position == len(self._pieces):
                await self._news.wait()


class Recordings:
    """All answers that can be asked for again; bounded in number, bytes and age."""

    def __init__(self, clock: Clock, *, ttl_s: float, bytes_max: int) -> None:
        """Keep answers for ``ttl_s``, the oldest leaving first when there is no room."""
        self._clock = clock
        self._ttl_s = ttl_s
        self._bytes_max = bytes_max
        self._found: OrderedDict[Name, Recording] = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        return len(self._found)

    @contextmanager
    def listen(self, name: Name, fingerprint: bytes) -> Iterator[tuple[Recording, bool]]:
        """The recording of a request, and whether it is new: then the caller must see to it.

        Raises:
            Conflict: the name was used for another request.
        """
        self._expire()
        recording = self._found.get(name)
        if recording is not None and recording.reply is not None and recording.reply.failed:
            # Its client may have read the error and be back before the work has wound up.
            recording = None
        fresh = recording is None
        if recording is None:
            recording = Recording(fingerprint, self._bytes_max // _SHARE_OF_ONE)
            self._found[name] = recording
        elif recording.fingerprint != fingerprint:
            raise Conflict(
                "This Idempotency-Key was already used for a different request; use a new key."
            )
        recording.readers += 1
        try:
            yield recording, fresh
        finally:
            recording.readers -= 1
            if recording.readers == 0 and not recording.finished:
                self._forget(name, recording)
                recording.leave()

    def close(self, name: Name, recording: Recording, *, keep: bool) -> None:
        """A recording is complete: keep it for later, or only for those who listen now."""
        recording.finish()
        if self._found.get(name) is not recording:
            return
        if not keep:
            self._forget(name, recording)
            return
        recording.expires_s = self._clock.monotonic_s() + self._ttl_s
        self._size += recording.size
        self._found.move_to_end(name)
        self._expire()

    def _forget(self, name: Name, recording: Recording) -> None:
        if self._found.get(name) is recording:
            del self._found[name]

    def _expire(self) -> None:
        """Drop what is too old, then the oldest until the rest fits; unfinished ones stay."""
        now_s = self._clock.monotonic_s()
        excess_bytes = self._size - self._bytes_max
        excess = len(self._found) - _ENTRIES_MAX
        doomed: list[Name] = []
        for name, recording in self._found.items():
            if not recording.finished:
                continue
            if excess_bytes <= 0 and excess <= 0 and recording.expires_s > now_s:
                break  # those behind it are younger
            doomed.append(name)
            excess_bytes -= recording.size
            excess -= 1
        for name in doomed:
            self._size -= self._found.pop(name).size
