"""A link reads the NATS protocol out of any bytes, in any pieces, without harm."""

from __future__ import annotations

import asyncio  # noqa: TID251 - a link is an asyncio protocol
from itertools import pairwise

from hypothesis import given, settings, strategies as st

from starai.protocol.ports import Delivery
from starai.wire.link import MESSAGE_BYTES_MAX, Link


def read(chunks: list[bytes]) -> tuple[list[tuple[int, Delivery, bool]], Link]:
    """What a link makes of bytes that come in these pieces."""
    heard: list[tuple[int, Delivery, bool]] = []

    async def run() -> Link:
        link = Link(lambda *one: heard.append(one), lambda _link, _fault: None)
        for chunk in chunks:
            link.data_received(chunk)
        return link

    return heard, asyncio.run(run())


MESSAGES = st.lists(
    st.tuples(
        st.integers(1, 99),
        st.from_regex(r"[a-z]{1,8}(\.[a-z]{1,8}){0,3}", fullmatch=True),
        st.sampled_from(["", "_INBOX.a.b"]),
        st.binary(max_size=200),
        st.booleans(),
    ),
    max_size=8,
)


@settings(deadline=None)
@given(MESSAGES, st.data())
def test_bytes_in_any_pieces(
    messages: list[tuple[int, str, str, bytes, bool]], data: st.DataObject
) -> None:
    """However the network cuts the stream, the same messages come out."""
    stream, expected = b"", []
    for sid, subject, reply, payload, headed in messages:
        to = f"{subject} {sid} {reply}".rstrip()
        if headed:
            head = b"NATS/1.0\r\nA: b\r\n\r\n"
            sizes = f"{len(head)} {len(head) + len(payload)}"
            stream += f"HMSG {to} {sizes}\r\n".encode() + head + payload + b"\r\n"
        else:
            stream += f"MSG {to} {len(payload)}\r\n".encode() + payload + b"\r\nPING\r\n"
        expected.append((sid, Delivery(subject, payload, reply), False))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    edges = [0, *cuts, len(stream)]
    heard, link = read([stream[a:b] for a, b in pairwise(edges)])
    assert heard == expected
    assert link.fault == ""


@settings(deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=5))
def test_any_bytes_are_read_calmly(chunks: list[bytes]) -> None:
    """Bytes that are no NATS end the connection with a reason, never with a crash."""
    read([b"MSG ", *chunks, b"\r\n"])


def test_a_message_without_end_is_not_waited_for() -> None:
    """A length beyond any message ends the connection instead of filling memory."""
    _, link = read([b"MSG a 1 %d\r\n" % (MESSAGE_BYTES_MAX + 1)])
    assert "not the NATS protocol" in link.fault


def test_no_responders_is_recognised() -> None:
    """The server's "503" is told apart from an empty answer."""
    heard, _ = read([b"HMSG _INBOX.a 1 16 16\r\nNATS/1.0 503\r\n\r\n\r\n"])
    assert heard == [(1, Delivery("_INBOX.a", b"", ""), True)]


class Sink(asyncio.Transport):
    """Keeps what is written, one entry a write."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.writes.append(bytes(data))

    def is_closing(self) -> bool:
        return False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass


def test_what_is_sent_in_one_turn_of_the_loop_is_written_once() -> None:
    """Commands of one turn travel together, in their order; nothing waits for a later turn."""

    async def run() -> list[bytes]:
        link, sink = Link(lambda *_: None, lambda _link, _fault: None), Sink()
        link.connection_made(sink)
        link.send(b"a")
        link.send(b"b")
        assert sink.writes == []
        await asyncio.sleep(0)
        link.send(b"c")
        await asyncio.sleep(0)
        return sink.writes

    assert asyncio.run(run()) == [b"ab", b"c"]
