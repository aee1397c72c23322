"""Checkpoints and cosignatures: C2SP's formats to the letter, and nothing else gets through."""

from __future__ import annotations

import base64

import msgspec
import pytest
from hypothesis import given, strategies as st

from starai.core.errors import MalformedFrame, SealBroken
from starai.core.randomness import SeededRandomness
from starai.ledger.checkpoints import (
    NOTE_CHARS_MAX,
    Checkpoint,
    Note,
    Signature,
    cosign,
    open_checkpoint,
    sign_checkpoint,
    verify_cosignature,
    with_cosignatures,
)
from starai.protocol.identity import Identity, KeyKind, verify

_CHANCE = SeededRandomness(3)
LOG, WITNESS, STRANGER = (Identity.create(_CHANCE) for _ in range(3))
ORIGIN = "starai/test"
CHECKPOINT = Checkpoint(ORIGIN, 20_852_163, bytes(range(32)))
NOTE = sign_checkpoint(CHECKPOINT, LOG.raw, LOG.sign)
NAME = f"{ORIGIN}/node/{WITNESS.party}"
LINE = cosign(CHECKPOINT.text(), NAME, WITNESS.raw, 1_679_315_147, WITNESS.sign)


def test_the_text_is_as_tlog_checkpoint_has_it() -> None:
    """Origin, size and root in base64, each on a line; then a blank line and the signature."""
    root = base64.b64encode(bytes(range(32))).decode()
    assert CHECKPOINT.text() == f"starai/test\n20852163\n{root}\n"
    text, line = NOTE.split("\n\n")
    assert text + "\n" == CHECKPOINT.text()
    mark, name, blob = line.removesuffix("\n").split(" ")
    assert (mark, name) == ("\u2014", ORIGIN)
    assert base64.b64decode(blob)[4:] == LOG.sign(CHECKPOINT.text().encode())


def test_key_ids_are_as_signed_note_has_them() -> None:
    """The id of Go's public checksum database follows from its name and its key.

    Its verifier key is sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8.
    """
    public = base64.b64decode("Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8")[1:]
    checkpoint = Checkpoint("sum.golang.org", 1, bytes(32))
    (made,) = Note.parse(sign_checkpoint(checkpoint, public, lambda _: b"s" * 64)).signatures
    assert made.key_id.hex() == "033de0ae"


def test_a_cosignature_is_as_tlog_cosignature_has_it() -> None:
    """Eight bytes of time and a signature over two lines and the checkpoint's text."""
    blob = base64.b64decode(LINE.rpartition(" ")[2])
    assert len(blob) == 4 + 8 + 64
    assert int.from_bytes(blob[4:12], "big") == 1_679_315_147
    signed = f"cosignature/v1\ntime 1679315147\n{CHECKPOINT.text()}".encode()
    verify(WITNESS.nkey, signed, blob[12:])
    assert verify_cosignature(CHECKPOINT.text(), LINE, NAME, WITNESS.raw) == 1_679_315_147


def test_an_opened_checkpoint_is_the_signed_one() -> None:
    """Extensions are kept, and others' signatures under it change nothing."""
    extended = msgspec.structs.replace(CHECKPOINT, extensions=("block 7 ab",))
    for checkpoint in (CHECKPOINT, extended):
        note = sign_checkpoint(checkpoint, LOG.raw, LOG.sign)
        line = cosign(checkpoint.text(), NAME, WITNESS.raw, 5, WITNESS.sign)
        for text in (note, with_cosignatures(note, [line, line])):
            assert open_checkpoint(text, ORIGIN, LOG.raw) == checkpoint
            assert str(Note.parse(text)) == text


@pytest.mark.parametrize(
    ("note", "origin", "public"),
    [
        (NOTE, "starai/other", LOG.raw),
        (NOTE, ORIGIN, STRANGER.raw),
        (sign_checkpoint(CHECKPOINT, STRANGER.raw, STRANGER.sign), ORIGIN, LOG.raw),
        (sign_checkpoint(CHECKPOINT, LOG.raw, STRANGER.sign), ORIGIN, LOG.raw),
        (sign_checkpoint(CHECKPOINT, LOG.raw, lambda _: b"short"), ORIGIN, LOG.raw),
        (NOTE.replace("20852163", "20852164"), ORIGIN, LOG.raw),
        (with_cosignatures(CHECKPOINT.text() + "\n", [LINE]), ORIGIN, LOG.raw),
    ],
)
def test_what_the_log_did_not_sign_is_refused(note: str, origin: str, public: bytes) -> None:
    """Another log's name or key, another text, or only a witness's signature opens nothing."""
    with pytest.raises(SealBroken):
        open_checkpoint(note, origin, public)


@pytest.mark.parametrize(
    ("text", "line", "name", "public"),
    [
        (CHECKPOINT.text(), LINE, NAME + "x", WITNESS.raw),
        (CHECKPOINT.text(), LINE, NAME, STRANGER.raw),
        (CHECKPOINT.text().replace("20852163", "3"), LINE, NAME, WITNESS.raw),
        (CHECKPOINT.text(), cosign("", NAME, WITNESS.raw, 9, STRANGER.sign), NAME, WITNESS.raw),
        (CHECKPOINT.text(), NOTE.rstrip("\n").rpartition("\n")[2], ORIGIN, LOG.raw),
    ],
)
def test_foreign_cosignatures_are_refused(text: str, line: str, name: str, public: bytes) -> None:
    """Another witness's line, one under another text, and a log's own signature are none."""
    with pytest.raises(SealBroken):
        verify_cosignature(text, line, name, public)


def test_a_cosignature_without_its_time_is_refused() -> None:
    """A line whose signature has another length than time and signature is none."""
    (found,) = (Signature.parse(LINE),)
    cut = msgspec.structs.replace(found, signature=found.signature[8:])
    with pytest.raises(SealBroken, match="length"):
        verify_cosignature(CHECKPOINT.text(), cut.line(), NAME, WITNESS.raw)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "a\n1\n",
        "\n1\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n",
        "a\n01\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n",
        "a\n-1\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n",
        "a\n\u0661\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n",
        "a\n9223372036854775808\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n",
        f"a\n{'9' * 5000}\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n",
        "a\n1\nAAAA\n",
        "a\n1\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAB=\n",
        "a\n1\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
        "a\n1\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n\n",
        "a\n1\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\nx\n\ny\n",
    ],
)
def test_what_is_no_checkpoint_is_refused(text: str) -> None:
    """One form each: no missing line, no other number, no other base64, no empty line."""
    with pytest.raises(MalformedFrame):
        Checkpoint.parse(text)


@pytest.mark.parametrize(
    "note",
    [
        NOTE[:-1],
        NOTE + "x" * NOTE_CHARS_MAX + "\n",
        NOTE.replace("\n\n", "\n"),
        NOTE + "\n",
        NOTE + "no line\n",
        NOTE + "\u2014 name\n",
        NOTE + "\u2014 name AAAA\n",
        NOTE + "\u2014  AAAAAAAA\n",
        NOTE.replace("starai/test\n", "starai/\ttest\n"),
        CHECKPOINT.text() + "\n",
    ],
)
def test_what_is_no_note_is_refused(note: str) -> None:
    """Cut, long, without signatures, with malformed lines or control characters: no note."""
    with pytest.raises(MalformedFrame):
        Note.parse(note)


@given(st.text(max_size=300), st.integers(0, len(NOTE)), st.integers(0, 20))
def test_no_damaged_note_opens(text: str, start: int, length: int) -> None:
    """Whatever replaces a piece of a note, it opens only if it is the same note again."""
    damaged = NOTE[:start] + text + NOTE[start + length :]
    try:
        found = open_checkpoint(damaged, ORIGIN, LOG.raw)
    except (MalformedFrame, SealBroken):
        return
    assert found == CHECKPOINT


def test_the_networks_own_key_signs() -> None:
    """A network's account key, which is not a user's, signs and opens in the same way."""
    account = Identity.create(_CHANCE, KeyKind.ACCOUNT)
    note = sign_checkpoint(CHECKPOINT, account.raw, account.sign)
    assert open_checkpoint(note, ORIGIN, account.raw) == CHECKPOINT
