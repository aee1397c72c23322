"""The worker's pipe: frames survive any cutting, and nothing else is taken for one."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from starai.core.errors import MalformedFrame
from starai.engines.base import Emitted, EngineInfo, EngineSpec
from starai.engines.frames import (
    Admit,
    Cancel,
    FrameReader,
    Open,
    Opened,
    Refused,
    Stepped,
    frame,
    gathered,
    read_command,
    read_report,
)
from starai.protocol.generation import Finish, Generation, Sampling, TokenLogprobs

GENERATION = Generation(
    b"\1\0\0\0", 5, Sampling(b"k" * 32, logit_bias={3: -1.5}), (1, 2), b"s" * 16, top_logprobs=2
)
COMMANDS = [
    Open(EngineSpec("text", "embedded", options={"kv_gib": 1.0})),
    Admit(b"key", GENERATION),
    Cancel(b"key"),
]
REPORTS = [
    Opened(EngineInfo("m", b"r" * 32, 10, 20, 3)),
    Refused("code", "why"),
    Stepped(()),
    Stepped(
        (
            Emitted(b"k", (1, 2), (TokenLogprobs(1, -0.5, ((1, -0.5),)),), Finish.STOP),
            Emitted(b"l", (), (), error="internal_error"),
        )
    ),
]


def payloads_of(messages):
    return [frame(message)[4:] for message in messages]


def test_messages_come_back():
    """Every command and report is read as it was written."""
    assert [read_command(payload) for payload in payloads_of(COMMANDS)] == COMMANDS
    assert [read_report(payload) for payload in payloads_of(REPORTS)] == REPORTS


@given(st.lists(st.integers(1, 40), min_size=1))
def test_any_cutting_gives_the_same_frames(sizes):
    """Pipes cut where they like."""
    stream = b"".join(map(frame, REPORTS))
    reader, frames, at = FrameReader(), [], 0
    while at < len(stream):
        for size in sizes:
            frames += reader.feed(stream[at : at + size])
            at += size
    assert frames == payloads_of(REPORTS)


@given(st.binary(max_size=200))
def test_foreign_bytes_are_refused(data):
    """Bytes that are no message raise MalformedFrame and nothing else."""
    for read in (read_command, read_report):
        try:
            message = read(data)
        except MalformedFrame:
            continue
        assert frame(message)


def test_oversized_frames_are_refused():
    """A hostile length never allocates."""
    with pytest.raises(MalformedFrame):
        FrameReader().feed(b"\xff\xff\xff\xff")


def test_steps_that_share_a_report_lose_nothing():
    """Each sequence's tokens are in order, with its end, and apart from the others'."""
    likely = TokenLogprobs(1, -0.5, ())
    news = [
        Emitted(b"a", (1,), (likely,)),
        Emitted(b"b", (7,), ()),
        Emitted(b"a", (2, 3), (likely, likely)),
        Emitted(b"c", (), (), Finish.STOP, embedding=b"1234"),
        Emitted(b"b", (), (), error="internal_error"),
        Emitted(b"a", (4,), (likely,), Finish.LENGTH),
    ]
    assert gathered(news) == (
        Emitted(b"a", (1, 2, 3, 4), (likely,) * 4, Finish.LENGTH),
        Emitted(b"b", (7,), (), error="internal_error"),
        Emitted(b"c", (), (), Finish.STOP, embedding=b"1234"),
    )
    assert gathered([]) == ()
