"""What is sealed opens for its receiver alone, unchanged and in order."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from starai.core.clock import Clock
from starai.core.errors import MalformedFrame, PartyRefused, SealBroken
from starai.core.randomness import SeededRandomness
from starai.protocol import tokens
from starai.protocol.credentials import issue_credential
from starai.protocol.generation import Finish, Generation, Sampling
from starai.protocol.identity import Identity, KeyKind
from starai.protocol.subjects import Role
from starai.protocol.tasks import TaskHeader
from starai.sealing import (
    AnswerOpener,
    AnswerSealer,
    PrekeyRing,
    accept_session,
    check_prekey,
    derive_keys,
    encode_request,
    open_request,
    open_session,
    request_hash,
    seal_request,
)

NOW_MS = 1_800_000_000_000


class StoppedClock(Clock):
    """A clock that stands where it is put."""

    def __init__(self) -> None:
        self.ms = NOW_MS

    def now_ms(self) -> int:
        return self.ms

    def monotonic_s(self) -> float:
        return self.ms / 1000


RANDOM = SeededRandomness(7)
ACCOUNT = Identity.create(RANDOM, KeyKind.ACCOUNT)
CALLER = Identity.create(RANDOM)
CALLEE = Identity.create(RANDOM)
STRANGER = Identity.create(RANDOM)


def credential(role: Role = Role.DISTRIBUTOR, identity: Identity = CALLER) -> str:
    return issue_credential(ACCOUNT, identity.party, role, 3_600_000, NOW_MS)


def generation(prompt: bytes = tokens.pack([1, 2, 3])) -> Generation:
    return Generation(
        prompt=prompt,
        max_tokens=5,
        sampling=Sampling(sample_key=b"k" * 32),
        stop_token_ids=(2,),
        salt=b"s" * 16,
    )


def header_for(plaintext: bytes, session_id: bytes = b"i" * 16) -> TaskHeader:
    return TaskHeader(
        task_id=b"t" * 16,
        attempt=0,
        caller=CALLER.party,
        callee=CALLEE.party,
        session_id=session_id,
        model_root=b"m" * 32,
        prompt_tokens=3,
        max_tokens=5,
        offered_ms=NOW_MS,
        deadline_ms=NOW_MS + 1000,
        customer=9,
        price_id=0,
        input_nano_usd=0,
        output_nano_usd=0,
        request_hash=request_hash(plaintext),
    )


def test_a_session_gives_both_sides_the_same_secret() -> None:
    """The secret that the callee opens is the one that the caller sealed."""
    ring = PrekeyRing(CALLEE, StoppedClock(), RANDOM)
    session, opening = open_session(ring.current(), CALLER, credential(), RANDOM)
    accepted = accept_session(
        opening, ring, CALLEE.party, ACCOUNT.nkey, (Role.DISTRIBUTOR,), NOW_MS
    )
    assert accepted.secret == session.secret
    assert accepted.caller == CALLER.party


@pytest.mark.parametrize("field", ["session_id", "prekey_id", "box", "signature"])
def test_a_changed_opening_is_refused(field: str) -> None:
    """Every field of an opening is bound: one flipped bit and it is refused."""
    ring = PrekeyRing(CALLEE, StoppedClock(), RANDOM)
    _, opening = open_session(ring.current(), CALLER, credential(), RANDOM)
    value = bytearray(getattr(opening, field))
    value[0] ^= 1
    changed = msgspec.structs.replace(opening, **{field: bytes(value)})
    with pytest.raises(SealBroken):
        accept_session(changed, ring, CALLEE.party, ACCOUNT.nkey, (Role.DISTRIBUTOR,), NOW_MS)


def test_a_session_cannot_be_opened_with_anothers_credential() -> None:
    """Showing somebody else's credential does not help: the opening is signed by its holder."""
    ring = PrekeyRing(CALLEE, StoppedClock(), RANDOM)
    _, opening = open_session(ring.current(), STRANGER, credential(), RANDOM)
    with pytest.raises(SealBroken):
        accept_session(opening, ring, CALLEE.party, ACCOUNT.nkey, (Role.DISTRIBUTOR,), NOW_MS)


def test_a_node_may_not_offer_tasks() -> None:
    """A credential of another role is refused by name."""
    ring = PrekeyRing(CALLEE, StoppedClock(), RANDOM)
    _, opening = open_session(ring.current(), CALLER, credential(Role.NODE), RANDOM)
    with pytest.raises(PartyRefused, match="node"):
        accept_session(opening, ring, CALLEE.party, ACCOUNT.nkey, (Role.DISTRIBUTOR,), NOW_MS)


def test_a_forgotten_prekey_opens_nothing() -> None:
    """Once a prekey's life is over its secret is gone, and what was sealed to it stays shut."""
    clock = StoppedClock()
    ring = PrekeyRing(CALLEE, clock, RANDOM, lifetime_s=60)
    first = ring.current()
    _, opening = open_session(first, CALLER, credential(), RANDOM)
    clock.ms += 31_000
    assert ring.current() != first
    ring.private_key(first.prekey_id)
    clock.ms += 31_000
    with pytest.raises(SealBroken, match="gone"):
        accept_session(opening, ring, CALLEE.party, ACCOUNT.nkey, (Role.DISTRIBUTOR,), clock.ms)


def test_a_prekey_is_believed_only_with_its_partys_signature() -> None:
    """A prekey with another public key, or out of its time, is refused."""
    prekey = PrekeyRing(CALLEE, StoppedClock(), RANDOM).current()
    check_prekey(prekey, NOW_MS)
    with pytest.raises(SealBroken):
        check_prekey(msgspec.structs.replace(prekey, public=b"x" * 32), NOW_MS)
    with pytest.raises(SealBroken):
        check_prekey(prekey, prekey.not_after_ms + 1)
    with pytest.raises(SealBroken):
        check_prekey(prekey, NOW_MS - 1_000_000)


def test_a_request_opens_only_under_its_own_header() -> None:
    """The same seal under a header that differs in any field does not open."""
    plaintext = encode_request(generation())
    header = header_for(plaintext)
    keys = derive_keys(b"S" * 32, header)
    sealed = seal_request(keys, plaintext)
    assert open_request(derive_keys(b"S" * 32, header), header, sealed) == generation()
    for change in ({"customer": 10}, {"deadline_ms": 1}, {"attempt": 1}, {"max_tokens": 6}):
        other = msgspec.structs.replace(header, **change)
        with pytest.raises(SealBroken):
            open_request(derive_keys(b"S" * 32, other), other, sealed)


def test_no_secret_shows_in_a_repr() -> None:
    """Printing a session or a task's keys shows no key."""
    plaintext = encode_request(generation())
    keys = derive_keys(b"S" * 32, header_for(plaintext))
    session, _ = open_session(
        PrekeyRing(CALLEE, StoppedClock(), RANDOM).current(), CALLER, credential(), RANDOM
    )
    assert repr(keys.answer) not in repr(keys)
    assert repr(session.secret) not in repr(session)


@given(st.lists(st.lists(st.integers(0, 2**32 - 1), max_size=5), min_size=1, max_size=8))
def test_an_answer_comes_out_as_it_went_in(parts: list[list[int]]) -> None:
    """Whatever the parts are, the opener yields the same ids and the same codes."""
    keys = derive_keys(b"S" * 32, header_for(b"x"))
    sealer, opener = AnswerSealer(keys), AnswerOpener(keys)
    for number, ids in enumerate(parts):
        finish = Finish.STOP if number == len(parts) - 1 else None
        part = opener.open(sealer.seal(tokens.pack(ids), finish))
        assert list(tokens.unpack(part.ids)) == ids
        assert part.finish is finish
    assert opener.code == sealer.code


@settings(max_examples=300)
@given(st.integers(0, 2), st.integers(0, 2), st.binary(min_size=0, max_size=40), st.data())
def test_a_chunk_out_of_place_or_changed_does_not_open(
    place: int, taken: int, rubbish: bytes, data: st.DataObject
) -> None:
    """Only chunk number i, unchanged, opens as chunk number i."""
    keys = derive_keys(b"S" * 32, header_for(b"x"))
    sealer, opener = AnswerSealer(keys), AnswerOpener(keys)
    chunks = [sealer.seal(tokens.pack([number])) for number in range(3)]
    for chunk in chunks[:place]:
        opener.open(chunk)
    if taken != place:
        with pytest.raises(SealBroken):
            opener.open(chunks[taken])
    damaged = bytearray(chunks[place])
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    for bad in (bytes(damaged), rubbish):
        with pytest.raises(SealBroken):
            opener.open(bad)
    opener.open(chunks[place])


@pytest.mark.parametrize("change", ["finish", "ids", "sketch", "embedding"])
def test_every_part_of_the_content_changes_the_code(change: str) -> None:
    """The chain covers ids, finish and proof fields."""
    keys = derive_keys(b"S" * 32, header_for(b"x"))
    plain, changed = AnswerSealer(keys), AnswerSealer(keys)
    plain.seal(tokens.pack([1]))
    match change:
        case "finish":
            changed.seal(tokens.pack([1]), Finish.STOP)
        case "ids":
            changed.seal(tokens.pack([2]))
        case "embedding":
            changed.seal(tokens.pack([1]), embedding=b"zzzz")
        case _:
            changed.seal(tokens.pack([1]), sketch=b"z")
    assert plain.code != changed.code


def test_a_header_with_a_field_of_the_wrong_length_has_no_canonical_bytes() -> None:
    """A header that cannot be written down canonically is malformed."""
    header = header_for(b"x")
    with pytest.raises(MalformedFrame):
        msgspec.structs.replace(header, task_id=b"short").canonical()
    with pytest.raises(MalformedFrame):
        msgspec.structs.replace(header, prompt_tokens=2**32).canonical()
