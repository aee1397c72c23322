"""API keys: how one is made, and what others may know of it.

Whoever makes a key does so on the own machine and tells the registry its SHA-256; the text is in
no message and in no database. A key has 256 random bits: against that no dictionary helps and
nobody can search, so a slow, salted hash, which is for secrets that people choose, would protect
nothing; and the gateway hashes a key for every request. Knows nothing of who may make one.
"""

from __future__ import annotations

import base64
import hashlib
from typing import Final

from starai.core.randomness import Randomness

#: How a key begins, so that a person, or a scanner of leaked secrets, knows it for what it is.
KEY_PREFIX: Final = "sk-starai-"
#: The length of what is known of a key.
KEY_HASH_BYTES: Final = 32
_SECRET_BYTES: Final = 32


def new_api_key(randomness: Randomness) -> str:
    """A new key: `KEY_PREFIX` and 43 URL-safe characters."""
    secret = base64.urlsafe_b64encode(randomness.take(_SECRET_BYTES)).decode().rstrip("=")
    return KEY_PREFIX + secret


def hash_api_key(text: str) -> bytes:
    """What is known of a key: the 32-byte SHA-256 of its text."""
    return hashlib.sha256(text.encode()).digest()
