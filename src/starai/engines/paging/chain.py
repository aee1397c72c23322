"""Names blocks by content: a chained SHA-256 over all tokens up to a block's end.

Equal names mean equal KV, because the KV of a block depends on its own tokens, on all before them
and on what the salt stands for. It does not know where blocks are.

Chained hashes of full blocks as in vLLM's prefix caching; SHA-256 and a salt per tenant, so that
neither collisions nor answer times tell one tenant what another asked.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from typing import NamedTuple

#: Separates these hashes from every other use of SHA-256.
_DOMAIN = b"starai kv block 1\0"


class Link(NamedTuple):
    """A full block's name, and the bytes of its token ids, which a hit is checked against."""

    digest: bytes
    content: bytes


def chain_root(salt: bytes) -> bytes:
    """The digest before the first block. ``salt`` is all that KV depends on besides the tokens."""
    return hashlib.sha256(_DOMAIN + salt).digest()


def chain_link(parent: bytes, ids: Sequence[int]) -> Link:
    """The name of the block with ``ids`` that follows ``parent``'s digest."""
    content = array("i", ids).tobytes()
    return Link(hashlib.sha256(parent + content).digest(), content)
