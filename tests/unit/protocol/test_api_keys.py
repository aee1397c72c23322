"""API keys: what one looks like, and what is known of it."""

from __future__ import annotations

import hashlib

from starai.core.randomness import SeededRandomness
from starai.protocol.api_keys import KEY_HASH_BYTES, KEY_PREFIX, hash_api_key, new_api_key


def test_a_key_is_recognised_and_never_the_same() -> None:
    """A key begins as keys do, is one URL-safe word of 256 random bits, and comes once."""
    chance = SeededRandomness(1)
    made = {new_api_key(chance) for _ in range(1000)}
    assert len(made) == 1000
    for key in made:
        assert key.startswith(KEY_PREFIX)
        assert len(key) == len(KEY_PREFIX) + 43
        assert key.removeprefix(KEY_PREFIX).replace("-", "a").replace("_", "a").isalnum()


def test_the_hash_is_sha256() -> None:
    """Gateways and registry know a key by the SHA-256 of its text."""
    assert hash_api_key("sk-starai-x") == hashlib.sha256(b"sk-starai-x").digest()
    assert len(hash_api_key("")) == KEY_HASH_BYTES
