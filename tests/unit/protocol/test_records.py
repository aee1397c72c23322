"""A record is its bytes: the same on both sides, on every machine, for ever."""

from __future__ import annotations

import contextlib
import hashlib

import msgspec
import pytest
from hypothesis import given, strategies as st

from starai.core.errors import MalformedFrame
from starai.protocol import tokens
from starai.protocol.records import RECORD_BYTES, TaskRecord, leaf_hash, set_root

GOLDEN = "b1843dcc7cd147f911554bc1eb21c1b9c38beb1346f9e95fbe3fe4a48ef2c6df"
U32, U64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
HASH, KEY, ID = (st.binary(min_size=n, max_size=n) for n in (32, 32, 16))
RECORDS = st.builds(
    TaskRecord,
    task_id=ID,
    attempt=U32,
    node=KEY,
    distributor=KEY,
    customer=U64,
    model_root=HASH,
    prompt_tokens=U32,
    answer_tokens=U32,
    price_id=U32,
    charge_nano_usd=U64,
    offered_ms=U64,
    closed_ms=U64,
    request_hash=HASH,
    answer_hash=HASH,
    proof_hash=HASH,
)


@given(RECORDS)
def test_a_record_survives_its_bytes(record: TaskRecord) -> None:
    """Parsing the canonical bytes gives the record back."""
    assert TaskRecord.parse(record.canonical()) == record


@given(RECORDS, RECORDS)
def test_different_records_have_different_bytes(one: TaskRecord, other: TaskRecord) -> None:
    """The encoding is unambiguous."""
    assert (one == other) == (one.canonical() == other.canonical())


@given(RECORDS, st.integers(0, RECORD_BYTES - 1), st.integers(1, 255))
def test_a_flipped_byte_is_another_record_or_none(record: TaskRecord, at: int, by: int) -> None:
    """No byte of a record is without meaning: padding, magic and version are checked."""
    damaged = bytearray(record.canonical())
    damaged[at] ^= by
    with contextlib.suppress(MalformedFrame):
        assert TaskRecord.parse(bytes(damaged)) != record


@pytest.mark.parametrize("size", [0, 1, RECORD_BYTES - 1, RECORD_BYTES + 1])
def test_a_record_has_one_length(size: int) -> None:
    """Anything shorter or longer is refused."""
    with pytest.raises(MalformedFrame):
        TaskRecord.parse(bytes(size))


def test_the_layout_does_not_change() -> None:
    """A golden vector: old records must stay readable and their hashes the same."""
    record = TaskRecord(
        task_id=bytes(range(16)),
        attempt=1,
        node=b"n" * 32,
        distributor=b"d" * 32,
        customer=7,
        model_root=b"m" * 32,
        prompt_tokens=11,
        answer_tokens=13,
        price_id=0,
        charge_nano_usd=17,
        offered_ms=1_800_000_000_000,
        closed_ms=1_800_000_001_234,
        request_hash=b"q" * 32,
        answer_hash=b"a" * 32,
        proof_hash=b"p" * 32,
    )
    assert RECORD_BYTES == 264
    assert hashlib.sha256(record.canonical()).hexdigest() == GOLDEN
    assert record.block(2000) == 900_000_000


def test_numbers_out_of_range_are_refused() -> None:
    """A record that does not fit its fields has no bytes."""
    record = TaskRecord.parse(b"SAIR\x01\x01" + bytes(RECORD_BYTES - 6))
    with pytest.raises(MalformedFrame):
        msgspec.structs.replace(record, attempt=-1).canonical()
    with pytest.raises(MalformedFrame):
        msgspec.structs.replace(record, charge_nano_usd=2**64).canonical()


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=6), st.randoms(use_true_random=False))
def test_a_set_root_does_not_depend_on_order(leaves: list[bytes], chance: object) -> None:
    """Both sides sign the same root however their records came."""
    hashes = [leaf_hash(leaf) for leaf in leaves]
    shuffled = hashes[::-1]
    assert set_root(hashes) == set_root(shuffled)


@given(st.lists(st.integers(0, 2**32 - 1), max_size=50))
def test_packed_tokens_come_back(ids: list[int]) -> None:
    """Token ids survive their canonical bytes: four a token, little-endian."""
    packed = tokens.pack(ids)
    assert list(tokens.unpack(packed)) == ids
    assert packed == b"".join(one.to_bytes(4, "little") for one in ids)
    assert tokens.count(packed) == len(ids)
