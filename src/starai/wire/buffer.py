"""What is said while nobody can hear it: kept in order, within bounds, until a link is there."""

from __future__ import annotations

from typing import Final

from starai.core.errors import Unavailable
from starai.wire.link import Link

#: Some seconds of a busy gateway.
BUFFER_BYTES_MAX: Final = 8 << 20


class Buffer:
    """Protocol lines that wait for a connection."""

    def __init__(self) -> None:
        """Begin empty."""
        self._commands: list[bytes] = []
        self._num_bytes = 0

    def fits(self, command: bytes) -> bool:
        """Whether there is room for ``command``."""
        return self._num_bytes + len(command) <= BUFFER_BYTES_MAX

    def keep(self, command: bytes) -> None:
        """Keep ``command`` for later.

        Raises:
            Unavailable: there is no more room.
        """
        if not self.fits(command):
            raise Unavailable("the connection is down and its buffer is full; try again shortly")
        self._commands.append(command)
        self._num_bytes += len(command)

    def send_to(self, link: Link) -> None:
        """Send all that was kept."""
        for command in self._commands:
            link.send(command)
        self._commands.clear()
        self._num_bytes = 0
