"""Manifests: one spelling, a chain of heads, and a signature that can be taken off again."""

from __future__ import annotations

import msgspec
import pytest

from starai.core.errors import MalformedFrame
from starai.settlement.manifest import (
    FIRST_HEAD,
    Manifest,
    signed_bytes,
    split_signature,
    with_signature,
)

MANIFEST = Manifest(
    network="home",
    chain_id=31_337,
    contract=b"\x11" * 20,
    epoch=1,
    from_block=0,
    to_block=9,
    block_hash=b"\x22" * 32,
    closed_ms=1_800_000_000_000,
    log_size=100,
    log_root=b"\x33" * 32,
    last_confirm=12,
    maturity_ms=172_800_000,
    previous_head=FIRST_HEAD,
    leaves_sha256=b"\x44" * 32,
    num_leaves=3,
    root=b"\x55" * 32,
    earned_units=5,
    spent_units=6,
    unplaced_nano=7,
    dust_nano=8,
    balances=(("chain.pool", -10), ("fee", 10)),
)


def test_a_manifest_is_sorted_lines() -> None:
    """The text is a title and sorted facts, one a line."""
    title, *lines = MANIFEST.text().splitlines()
    assert title == "starai/v1/manifest"
    assert lines == sorted(lines)
    assert "balance chain.pool -10" in lines
    assert f"root {'55' * 32}" in lines
    assert Manifest.parse(MANIFEST.text()) == MANIFEST


def test_heads_are_a_chain() -> None:
    """Any other fact gives another head, that of the day before included."""
    other = msgspec.structs.replace(MANIFEST, previous_head=MANIFEST.head())
    assert len({MANIFEST.head(), other.head()}) == 2
    assert len(MANIFEST.head()) == 32


def _changed(old: str, new: str) -> str:
    assert old in MANIFEST.text()
    return MANIFEST.text().replace(old, new)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "starai/v1/manifest\n",
        MANIFEST.text().replace("manifest", "manifesto", 1),
        MANIFEST.text()[:-1],
        MANIFEST.text() + "\n",
        _changed("epoch 1\n", ""),
        _changed("epoch 1\n", "epoch 01\n"),
        _changed("epoch 1\n", "epoch one\n"),
        _changed("epoch 1\n", "epoch 1\nepoch 2\n"),
        _changed("epoch 1\n", "epoch 1\nepoche 1\n"),
        _changed("fee 10\n", "fee\n"),
        _changed("55555555", "5555555X"),
    ],
)
def test_no_other_spelling_is_a_manifest(text: str) -> None:
    """A text that is not exactly what would be written is refused."""
    with pytest.raises(MalformedFrame):
        Manifest.parse(text)


def test_a_name_of_two_lines_is_refused() -> None:
    """A network's name cannot smuggle in another fact."""
    forged = msgspec.structs.replace(MANIFEST, network="home\nearned_units 9")
    with pytest.raises(MalformedFrame):
        forged.text()


def test_a_signature_is_a_line_of_its_own() -> None:
    """What was signed comes back as it was, with the signature beside it."""
    text = MANIFEST.text()
    assert split_signature(text) == (text, b"")
    assert split_signature(with_signature(text, b"s" * 64)) == (text, b"s" * 64)
    assert signed_bytes(text) != signed_bytes(text + " ")
    with pytest.raises(MalformedFrame):
        split_signature(f"{text}signature xyz\n")
