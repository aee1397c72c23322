"""Frames: what was encoded is decoded, and nothing else is."""

from __future__ import annotations

import importlib
from typing import Any

import msgspec
import pytest

from starai.core.errors import MalformedFrame
from starai.core.limits import FRAME_BYTES_MAX
from starai.core.randomness import SeededRandomness
from starai.protocol import frames
from starai.protocol.frames import Message, decode, encode, message_types, peek
from starai.protocol.identity import Identity, party_id
from starai.protocol.registry import Renew
from starai.protocol.tasks import Answer

for module in ("tasks", "presence", "registry", "standing"):
    importlib.import_module(f"starai.protocol.{module}")

#: Random and mutated frames per message type.
NUM_FRAMES = 10_000


def made(kind: type[Any], chance: SeededRandomness) -> Any:
    """A value of a message type, every field filled by chance."""
    return value_of(msgspec.inspect.type_info(kind), chance)


def value_of(info: Any, chance: SeededRandomness) -> Any:
    pick = int(chance.fraction() * 6)
    match info:
        case msgspec.inspect.BytesType(min_length=size) if size:
            return chance.take(size)
        case msgspec.inspect.BytesType():
            return chance.take(pick * 8)
        case msgspec.inspect.StrType(pattern=pattern) if pattern:
            return Identity.create(chance).party
        case msgspec.inspect.StrType():
            return chance.take(pick).hex()
        case msgspec.inspect.IntType(le=most):
            return min(int.from_bytes(chance.take(1 + pick), "big"), most or 1 << 63)
        case msgspec.inspect.FloatType():
            return chance.fraction()
        case msgspec.inspect.BoolType():
            return bool(pick % 2)
        case msgspec.inspect.NoneType():
            return None
        case msgspec.inspect.EnumType():
            return list(info.cls)[pick % len(info.cls)]
        case msgspec.inspect.UnionType():
            return value_of(info.types[pick % len(info.types)], chance)
        case msgspec.inspect.VarTupleType():
            return tuple(value_of(info.item_type, chance) for _ in range(pick % 3))
        case msgspec.inspect.StructType():
            return info.cls(**{f.name: value_of(f.type, chance) for f in info.fields})
        case _:
            raise AssertionError(f"a message has a field of an unforeseen kind: {info}")


def mutated(frame: bytes, chance: SeededRandomness) -> bytes:
    """The frame with one thing wrong: a flipped bit, a cut, a repeat, a swap, or noise."""
    at = int(chance.fraction() * len(frame))
    match int(chance.fraction() * 6):
        case 0:
            return (
                frame[:at]
                + bytes([frame[at] ^ (1 << int(chance.fraction() * 8))])
                + frame[at + 1 :]
            )
        case 1:
            return frame[:at]
        case 2:
            return frame[:at] + chance.take(1 + at % 7) + frame[at:]
        case 3:
            return frame + frame[at:]
        case 4:
            return chance.take(len(frame))
        case _:
            return frame[:12] + chance.take(len(frame) - 12)


@pytest.mark.parametrize("kind", message_types(), ids=lambda kind: kind.__name__)
def test_every_message_survives_its_frame(kind: type[Message]) -> None:
    """Encoding and decoding gives the message back, whatever is in it."""
    chance = SeededRandomness(1)
    for _ in range(300):
        message = made(kind, chance)
        assert decode(encode(message), kind) == message
        assert peek(encode(message)) is kind


@pytest.mark.parametrize("kind", message_types(), ids=lambda kind: kind.__name__)
def test_no_damaged_frame_is_accepted_and_none_crashes(kind: type[Message]) -> None:
    """10,000 random and mutated frames: each is refused as malformed, by `decode` and by `peek`."""
    chance = SeededRandomness(2)
    accepted = 0
    good = [encode(made(kind, chance)) for _ in range(50)]
    for number in range(NUM_FRAMES):
        frame = good[number % len(good)]
        damaged = mutated(frame, chance)
        if damaged == frame:
            continue
        peek(damaged)
        try:
            decode(damaged, kind)
        except MalformedFrame:
            continue
        accepted += 1
    assert accepted == 0


def test_a_message_is_not_taken_for_another() -> None:
    """A good frame of one type is no frame of any other."""
    chance = SeededRandomness(3)
    for kind in message_types():
        frame = encode(made(kind, chance))
        for other in message_types():
            if other is not kind:
                with pytest.raises(MalformedFrame):
                    decode(frame, other)


def test_valid_checks_do_not_help_invalid_content() -> None:
    """Content of the wrong shape is refused even when its check is right."""
    number = encode(Renew(Identity.create(SeededRandomness(4)).party))[3]
    for payload in (b"\xc0", b"\x91\x01", b"\x92\xa1a\xa1b", b"\x90", b"\xc1", b"\x91" * 5000):
        frame = b"SA\x01" + bytes([number]) + frames._check(number, payload) + payload
        with pytest.raises(MalformedFrame):
            decode(frame, Renew)


def test_a_frame_has_a_largest_size() -> None:
    """Too large a message is refused by its sender, too large a frame by its receiver."""
    with pytest.raises(MalformedFrame, match="limit"):
        encode(Answer(b"t" * 16, 0, 0, bytes(FRAME_BYTES_MAX)))
    with pytest.raises(MalformedFrame):
        decode(bytes(FRAME_BYTES_MAX + 1), Answer)


def test_type_numbers_are_taken_once() -> None:
    """Claiming a number that is in use is our mistake, seen at import."""
    with pytest.raises(AssertionError, match="taken"):
        frames.travels(1)(Message)


@pytest.mark.parametrize("text", ["", "U", "UAAA", "not base32!", "A" * 56, "U" * 56])
def test_a_name_is_a_public_user_nkey_or_malformed(text: str) -> None:
    """Nothing but a checksummed public user key is a party's name."""
    with pytest.raises(MalformedFrame):
        party_id(text)
