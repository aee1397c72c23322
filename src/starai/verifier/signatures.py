"""Ed25519 signatures, one by one or many on all cores. Knows nothing of what was signed."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import chain, islice
from typing import Final

from nacl.bindings import crypto_sign_open
from nacl.exceptions import BadSignatureError

#: Signatures that one process checks at a time: some tenths of a second of work.
_BATCH: Final = 4_000

#: The public key, what was signed, the signature.
Signed = tuple[bytes, bytes, bytes]


def is_signed(key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether ``signature`` is that of ``key`` over ``message`` (RFC 8032)."""
    if len(key) != 32 or len(signature) != 64:
        return False
    try:
        crypto_sign_open(signature + message, key)
    except (BadSignatureError, ValueError):
        return False
    return True


def _wrong(batch: list[Signed]) -> list[int]:
    return [index for index, one in enumerate(batch) if not is_signed(*one)]


def wrong_signatures(signed: Iterable[Signed], num_processes: int = 1) -> Iterator[int]:
    """The places, counted from 0, of those that do not verify."""
    stream = iter(signed)
    batches = iter(lambda: list(islice(stream, _BATCH)), [])
    first = next(batches, [])
    if num_processes == 1 or len(first) < _BATCH:  # not worth starting processes for
        for number, batch in enumerate(chain([first], batches)):
            yield from (number * _BATCH + index for index in _wrong(batch))
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_processes, mp_context=context) as pool:
        for number, wrong in enumerate(pool.map(_wrong, chain([first], batches))):
            yield from (number * _BATCH + index for index in wrong)
