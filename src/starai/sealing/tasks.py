"""The keys of one task, and the seal of its request.

All keys come from the session's secret by HKDF-SHA256 (RFC 5869) with the hash of the task's
header as salt: a header changed in any bit gives other keys, and nothing opens. Costs 5 us where
an HPKE seal per task would cost 180.
"""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from starai.core.errors import SealBroken
from starai.protocol import tokens
from starai.protocol.generation import Generation
from starai.protocol.tasks import Close, TaskHeader
from starai.sealing.mac import Mac

# A task's request key seals exactly one message, so a fixed nonce is never used twice.
_REQUEST_NONCE: Final = b"\x00" * 12
_ENCODE: Final = msgspec.msgpack.Encoder().encode
_DECODER: Final = msgspec.msgpack.Decoder(Generation)


class TaskKeys(msgspec.Struct, frozen=True):
    """The four 32-byte keys of one attempt of one task."""

    header_hash: bytes
    request: bytes
    answer: bytes
    chain: bytes
    close: bytes

    def __repr__(self) -> str:
        return f"TaskKeys(of {self.header_hash.hex()[:8]})"


def derive_keys(secret: bytes, header: TaskHeader) -> TaskKeys:
    """The keys of the task under ``header`` in the session of ``secret``."""
    header_hash = hashlib.sha256(header.canonical()).digest()
    material = HKDF(SHA256(), 128, header_hash, b"starai/v1/task").derive(secret)
    return TaskKeys(header_hash, material[:32], material[32:64], material[64:96], material[96:128])


def encode_request(generation: Generation) -> bytes:
    """The plaintext of a request; its hash goes into the header."""
    return _ENCODE(generation)


def request_hash(plaintext: bytes) -> bytes:
    """The header's commitment to the request; its salt keeps a short prompt from being guessed."""
    return hashlib.sha256(b"starai/v1/request" + plaintext).digest()


def seal_request(keys: TaskKeys, plaintext: bytes) -> bytes:
    """The request, sealed for the callee alone."""
    return ChaCha20Poly1305(keys.request).encrypt(_REQUEST_NONCE, plaintext, keys.header_hash)


def open_request(keys: TaskKeys, header: TaskHeader, sealed: bytes) -> Generation:
    """The request of a task.

    Raises:
        SealBroken: the seal, the hash in the header or the content is wrong, or the header
            counts other tokens than the content asks for: the header is what gets on record.
    """
    try:
        plaintext = ChaCha20Poly1305(keys.request).decrypt(_REQUEST_NONCE, sealed, keys.header_hash)
    except InvalidTag as error:
        raise SealBroken("a request's seal does not open") from error
    if request_hash(plaintext) != header.request_hash:
        raise SealBroken("a request is not the one that its header commits to")
    try:
        generation = _DECODER.decode(plaintext)
    except (msgspec.DecodeError, ValueError, OverflowError) as error:
        raise SealBroken("a request's content is malformed") from error
    if len(generation.sampling.sample_key) != 32 or len(generation.salt) != 16:
        raise SealBroken("a request's key or salt has the wrong length")
    if len(generation.prompt) % 4 or len(generation.accepted) % 4:
        raise SealBroken("a request holds broken token ids")
    asked = (tokens.count(generation.prompt), generation.max_tokens)
    if asked != (header.prompt_tokens, header.max_tokens):
        raise SealBroken("a request is not of the size that its header states")
    return generation


def close_tag(keys: TaskKeys, close: Close) -> bytes:
    """The tag that shows that the caller said this close."""
    return Mac(keys.close).tag(close.tagged_bytes())[:16]
