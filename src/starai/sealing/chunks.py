"""Answer chunks: sealed, numbered, and each bound to the one before by the secret-code chain.

``code_0 = HMAC(K, header hash)``, ``code_i = HMAC(K, code_{i-1} | i | content)[:16]`` (proof
design, section 4.5); an embedding is the last of the content. Chunk i is sealed with nonce i and
``code_{i-1}`` as associated data, so a chunk that is missing, moved, repeated or from another task
does not open.
"""

from __future__ import annotations

import hmac
import struct
from typing import Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from starai.core.errors import SealBroken
from starai.protocol.generation import Finish, Part, TokenLogprobs
from starai.sealing.mac import Mac
from starai.sealing.tasks import TaskKeys

_FINISH_BYTE: Final = {None: 0, Finish.STOP: 1, Finish.LENGTH: 2}
_CONTENT: Final = struct.Struct("<16sIIIIB")
_ENCODE: Final = msgspec.msgpack.Encoder().encode
_DECODER: Final = msgspec.msgpack.Decoder(Part)


class _Chain:
    """Where a chain stands: the next chunk's number and the last code."""

    def __init__(self, keys: TaskKeys) -> None:
        self._mac = Mac(keys.chain)
        self._aead = ChaCha20Poly1305(keys.answer)
        self.seq = 0
        self.code = self._mac.tag(b"starai/v1/chain" + keys.header_hash)[:16]

    def next_code(
        self, ids: bytes, finish: Finish | None, sketch: bytes, spots: bytes, embedding: bytes
    ) -> bytes:
        head = _CONTENT.pack(
            self.code, self.seq, len(ids), len(sketch), len(spots), _FINISH_BYTE[finish]
        )
        return self._mac.tag(head + ids + sketch + spots + embedding)[:16]

    def nonce(self) -> bytes:
        return self.seq.to_bytes(12, "little")

    def advance(self, code: bytes) -> None:
        self.code = code
        self.seq += 1


class AnswerSealer(_Chain):
    """The callee's end: seals the next part."""

    def __init__(self, keys: TaskKeys) -> None:
        """Stand at the beginning of the task's chain."""
        super().__init__(keys)

    def seal(
        self,
        ids: bytes,
        finish: Finish | None = None,
        logprobs: tuple[TokenLogprobs, ...] = (),
        sketch: bytes = b"",
        spots: bytes = b"",
        embedding: bytes = b"",
    ) -> bytes:
        """The next chunk; its number is ``seq`` before the call, its code ``code`` after."""
        code = self.next_code(ids, finish, sketch, spots, embedding)
        plaintext = _ENCODE(Part(ids, code, finish, logprobs, sketch, spots, embedding))
        sealed = self._aead.encrypt(self.nonce(), plaintext, self.code)
        self.advance(code)
        return sealed


class AnswerOpener(_Chain):
    """The caller's end: opens the next part."""

    def __init__(self, keys: TaskKeys) -> None:
        """Stand at the beginning of the task's chain."""
        super().__init__(keys)

    def open(self, sealed: bytes) -> Part:
        """Part number ``seq``.

        Raises:
            SealBroken: it is not the next chunk of this task, or its code is not the chain's.
        """
        try:
            plaintext = self._aead.decrypt(self.nonce(), sealed, self.code)
            part = _DECODER.decode(plaintext)
        except InvalidTag as error:
            raise SealBroken(f"answer chunk {self.seq} does not open") from error
        except (msgspec.DecodeError, ValueError, OverflowError) as error:
            raise SealBroken(f"answer chunk {self.seq} is malformed") from error
        if len(part.ids) % 4:
            raise SealBroken(f"answer chunk {self.seq} holds broken token ids")
        if part.logprobs and len(part.logprobs) != len(part.ids) // 4:
            raise SealBroken(f"answer chunk {self.seq} holds log-probabilities of other tokens")
        if len(part.embedding) % 4:
            raise SealBroken(f"answer chunk {self.seq} holds a broken embedding")
        code = self.next_code(part.ids, part.finish, part.sketch, part.spots, part.embedding)
        if not hmac.compare_digest(code, part.code):
            raise SealBroken(f"answer chunk {self.seq} breaks the chain of codes")
        self.advance(code)
        return part
