"""What a decoded message cannot hold, whoever made it, so that nobody need fear its fields."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import msgspec
import pytest

from starai.core.errors import ConfigurationRefused, MalformedFrame
from starai.core.limits import (
    CHUNK_BYTES_MAX,
    EMBEDDING_BYTES_MAX,
    GRAMMAR_CHARACTERS_MAX,
    PRIORITY_MAX,
)
from starai.core.randomness import SeededRandomness
from starai.protocol import frames
from starai.protocol.frames import Message, decode, encode
from starai.protocol.generation import Generation, Grammar, Part, Sampling
from starai.protocol.identity import Identity
from starai.protocol.presence import MODELS_MAX, Beat, ServedModel
from starai.protocol.tasks import Answer, Close, Offer, Prekey, Refusal, TaskHeader
from starai.protocol.tickets import JoinTicket

ME = Identity.create(SeededRandomness(5))
PREKEY = Prekey(ME.party, b"i" * 16, b"p" * 32, 1, 2, b"s" * 64)
MODEL = ServedModel("m", b"m" * 32, 100, 1)
BEAT = Beat(ME.party, "node", 1, 1, 1, False, 0, 0, 0, 0, PREKEY, (MODEL,))
HEADER = TaskHeader(
    *(b"t" * 16, 0, ME.party, ME.party, b"s" * 16, b"m" * 32, 1, 1, 1, 2, 0, 0, 0, 0, b"h" * 32)
)
CLOSE = Close(b"t" * 16, 0, 1, 1, 1, b"g" * 16)


def changed(message: Any, **changes: object) -> Any:
    return msgspec.structs.replace(message, **changes)


HOSTILE: list[Message] = [
    *(changed(BEAT, party=name) for name in ("", "U.x", "*", ">", ME.party + "\n", "U\r\nPUB x")),
    *(changed(BEAT, **{field: -1}) for field in ("boot", "seq", "sent_ms", "running", "tokens")),
    *(changed(BEAT, **{field: 2**63}) for field in ("boot", "seq", "sent_ms", "running", "done")),
    changed(BEAT, label="x" * 257),
    changed(BEAT, models=(MODEL,) * (MODELS_MAX + 1)),
    *(
        changed(BEAT, models=(changed(MODEL, **{field: value}),))
        for field in ("prefill_tps", "decode_tps")
        for value in (float("nan"), float("inf"), -1.0)
    ),
    changed(BEAT, models=(changed(MODEL, slots=2**64 - 1),)),
    changed(BEAT, models=(changed(MODEL, context_length=-1),)),
    changed(BEAT, models=(changed(MODEL, model_root=b""),)),
    changed(BEAT, models=(changed(MODEL, name="x" * 257),)),
    changed(BEAT, prekey=changed(PREKEY, not_before_ms=-1)),
    changed(BEAT, prekey=changed(PREKEY, not_after_ms=2**64 - 1)),
    changed(BEAT, prekey=changed(PREKEY, public=b"")),
    changed(BEAT, prekey=changed(PREKEY, prekey_id=b"i" * 17)),
    *(
        Offer(changed(HEADER, **{field: value}), b"")
        for field in ("attempt", "prompt_tokens", "max_tokens", "offered_ms", "deadline_ms")
        for value in (-1, 2**63)
    ),
    Offer(changed(HEADER, task_id=b"t" * 100_000), b""),
    Offer(changed(HEADER, caller="> *"), b""),
    changed(CLOSE, accepted_seq=-1),
    changed(CLOSE, accepted_tokens=2**32),
    changed(CLOSE, closed_ms=-1),
    changed(CLOSE, tag=b""),
    Answer(b"t" * 16, 0, -1, b""),
    Answer(b"t" * 16, 0, 0, bytes(CHUNK_BYTES_MAX + 1)),
    Refusal(b"t" * 16, 0, "x" * 257),
    Refusal(b"t" * 16, 0, "busy", -1),
]


def test_a_frame_with_an_impossible_field_is_no_message() -> None:
    """A name that is none, a number out of range or a list without end is not decoded."""
    for message in HOSTILE:
        with pytest.raises(MalformedFrame):
            decode(encode(message), type(message))
    for sound in (BEAT, Offer(HEADER, b""), CLOSE):
        assert decode(encode(sound), type(sound)) == sound


def test_a_list_that_claims_billions_costs_no_memory() -> None:
    """A length is not believed before its items are there."""
    frame = encode(changed(BEAT, models=(), label=""))
    payload = frame[12:-2] + b"\xdd\xff\xff\xff\xff"
    bomb = frame[:4] + frames._check(frame[3], payload) + payload
    with pytest.raises(MalformedFrame):
        decode(bomb, Beat)


def test_a_ticket_with_a_sound_checksum_and_no_ticket_in_it_is_refused() -> None:
    """What is not a ticket is refused as damaged, whoever computed the checksum."""
    body = msgspec.msgpack.encode({"not": "a ticket"})
    raw = hashlib.sha256(body).digest()[:4] + body
    with pytest.raises(ConfigurationRefused, match="damaged"):
        JoinTicket.parse("sat_" + base64.urlsafe_b64encode(raw).decode().rstrip("="))


ASKED = Generation(b"", 1, Sampling(b"k" * 32), (), b"s" * 16)
BEYOND: list[Any] = [
    changed(ASKED, cache_salt=b"c" * 33),
    changed(ASKED, priority=PRIORITY_MAX + 1),
    changed(ASKED, priority=-PRIORITY_MAX - 1),
    changed(ASKED, adapter="a" * 257),
    changed(ASKED, grammar=Grammar("regex", "x" * (GRAMMAR_CHARACTERS_MAX + 1))),
    changed(ASKED, grammar=Grammar("yacc")),  # type: ignore[arg-type]
    Part(b"", b"", embedding=bytes(EMBEDDING_BYTES_MAX + 4)),
]


def test_what_is_sealed_is_bounded_too() -> None:
    """A request or an answer whose salt, priority, name, grammar or vector is too large is none."""
    for content in BEYOND:
        with pytest.raises(msgspec.ValidationError):
            msgspec.msgpack.decode(msgspec.msgpack.encode(content), type=type(content))
    full = changed(
        ASKED,
        cache_salt=b"c" * 32,
        priority=-PRIORITY_MAX,
        adapter="a" * 256,
        grammar=Grammar("choice", '["yes"]'),
        embed=True,
    )
    for sound in (full, Part(b"", b"", embedding=bytes(EMBEDDING_BYTES_MAX))):
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(sound), type=type(sound)) == sound


def test_what_is_not_asked_does_not_travel() -> None:
    """A party that never heard of a new field understands a request that does without it."""
    known = {"prompt", "max_tokens", "sampling", "stop_token_ids", "salt"}
    assert set(msgspec.msgpack.decode(msgspec.msgpack.encode(ASKED))) == known
    assert set(msgspec.msgpack.decode(msgspec.msgpack.encode(Part(b"", b"")))) == {"ids", "code"}
