"""A TCP line between a node and NATS that can be cut, frozen or bent, in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time

ANSWER = b"PUB starai.answer."


class Line:
    """One node's way to NATS. Its methods may be called from any thread."""

    def __init__(self, upstream_port: int) -> None:
        """Listen on a free port; forward to ``upstream_port`` on loopback."""
        self.upstream_port = upstream_port
        self.port = 0
        #: When the node last sent a piece of an answer.
        self.last_answer_s = 0.0
        self._closed_until_s = self._frozen_until_s = 0.0
        self._damage = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        listening = threading.Event()
        threading.Thread(target=self._run, args=(listening,), daemon=True).start()
        listening.wait()

    def cut(self, seconds: float) -> None:
        """Abort all connections and take no new ones for a while."""
        self._closed_until_s = time.monotonic() + seconds
        self._loop.call_soon_threadsafe(self._abort)

    def freeze(self, seconds: float) -> None:
        """Let nothing through for a while, and then all of it."""
        self._frozen_until_s = time.monotonic() + seconds

    def damage(self) -> None:
        """Flip a bit of the next piece of an answer."""
        self._damage = True

    def _run(self, listening: threading.Event) -> None:
        async def serve() -> None:
            server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
            self.port = server.sockets[0].getsockname()[1]
            listening.set()
            await server.serve_forever()

        self._loop.run_until_complete(serve())

    def _abort(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _connected(self, near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        if time.monotonic() < self._closed_until_s:
            back.transport.abort()
            return
        far, on = await asyncio.open_connection("127.0.0.1", self.upstream_port)
        self._writers |= {back, on}
        pumps = [asyncio.create_task(self._pump(near, on, bend=True)),
                 asyncio.create_task(self._pump(far, back, bend=False))]  # fmt: skip
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for pump in pumps:
            pump.cancel()
        for writer in (back, on):
            writer.transport.abort()
            self._writers.discard(writer)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, bend: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                while (left_s := self._frozen_until_s - time.monotonic()) > 0:
                    await asyncio.sleep(left_s)
                writer.write(self._bent(data) if bend else data)
                await writer.drain()

    def _bent(self, data: bytes) -> bytes:
        at = data.find(ANSWER)
        if at < 0:
            return data
        self.last_answer_s = time.monotonic()
        place = data.find(b"\r\n", at) + 2 + 40
        if not self._damage or place < at or place >= len(data):
            return data
        self._damage = False
        return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
