"""A closed-loop load generator: some connections, each asks again as soon as it has its answer.

Raw sockets on uvloop, so that it takes little of the machine from what it measures. Prints one JSON
object: requests, failures, and the latencies' median and 99th percentile in milliseconds (``first``
is the time to the first event of a stream).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time

import uvloop


class Client(asyncio.Protocol):
    """One connection that asks until the time is up."""

    #: Whether to leave in the middle of every answer; its owner connects anew.
    hang_up = False

    def __init__(self, request: bytes, until: float, done: asyncio.Future[None]) -> None:
        """Take the ready-made bytes of a request."""
        self.request = request
        self.until = until
        self.done = done
        self.latencies: list[float] = []
        self.firsts: list[float] = []
        self.failed = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask at once."""
        self.transport = transport
        self.ask()

    def ask(self) -> None:
        """Send the request, or stop when the time is up."""
        self.asked = time.perf_counter()
        if self.asked >= self.until:
            self.transport.close()
            return
        self.buffer = b""
        self.first = 0.0
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        """Collect an answer; when it is whole, ask again."""
        self.buffer += data
        split = self.buffer.find(b"\r\n\r\n")
        if split < 0:
            return
        head = self.buffer[:split].lower()
        if not self.first and (b"data:" in self.buffer):
            self.first = time.perf_counter() - self.asked
        at = head.find(b"content-length:")
        if at >= 0:
            length = int(head[at + 15 :].split(b"\r\n", 1)[0])
            whole = len(self.buffer) >= split + 4 + length
            good = head.startswith(b"http/1.1 200")
        else:
            whole = self.buffer.endswith(b"0\r\n\r\n")
            good = head.startswith(b"http/1.1 200") and b"[DONE]" in self.buffer
        if whole:
            self.finish(good)
        elif self.hang_up and self.first:
            self.transport.abort()

    def finish(self, good: bool) -> None:
        """Note the latency and go on."""
        self.failed += not good
        self.latencies.append(time.perf_counter() - self.asked)
        if self.first:
            self.firsts.append(self.first)
        self.ask()

    def connection_lost(self, _: Exception | None) -> None:
        """End; a connection that was cut counts as a failure."""
        if time.perf_counter() < self.until and not self.hang_up:
            self.failed += 1
        if not self.done.done():
            self.done.set_result(None)


async def run(options: argparse.Namespace) -> dict[str, float]:
    """Drive the connections and sum up."""
    body = json.dumps(
        {
            "model": options.model,
            "messages": [{"role": "user", "content": "Say twenty words."}],
            "max_tokens": 20,
            **({"stream": True} if options.stream else {}),
        },
        separators=(",", ":"),
    ).encode()
    request = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{options.port}\r\n"
        f"authorization: Bearer {options.key}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    ).encode() + body
    loop = asyncio.get_running_loop()
    until = time.perf_counter() + options.seconds
    clients = [Client(request, until, loop.create_future()) for _ in range(options.connections)]
    hung_up = 0
    leavers = clients[::2] if options.hang_up else []

    async def leave(client: Client) -> None:
        """Connect, ask, leave in the middle, until the time is up."""
        nonlocal hung_up
        client.hang_up = True
        while time.perf_counter() < until:
            client.done = loop.create_future()
            await loop.create_connection(lambda: client, "127.0.0.1", options.port)
            await client.done
            hung_up += 1

    for client in clients:
        if client not in leavers:
            await loop.create_connection(lambda c=client: c, "127.0.0.1", options.port)
    tasks = [loop.create_task(leave(client)) for client in leavers]
    # An answer that never comes must not hang the benchmark.
    staying = [client.done for client in clients if client not in leavers]
    await asyncio.wait([*staying, *tasks], timeout=options.seconds + 30)
    latencies = sorted(latency for client in clients for latency in client.latencies)
    firsts = [first for client in clients for first in client.firsts]
    if not latencies:
        return {"requests": 0, "failed": sum(c.failed for c in clients)}
    return {
        "requests": len(latencies),
        "failed": sum(client.failed for client in clients),
        "hung_up": hung_up,
        "rps": len(latencies) / options.seconds,
        "p50_ms": statistics.median(latencies) * 1000,
        "p99_ms": latencies[int(len(latencies) * 0.99)] * 1000,
        "first_p50_ms": statistics.median(firsts) * 1000 if firsts else 0.0,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--key", default="none")
    parser.add_argument("--model", default="mock")
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--hang-up", action="store_true", help="every second client leaves early")
    print(json.dumps(uvloop.run(run(parser.parse_args()))))
