"""Ed25519 signatures: one at once, or many in other processes while this one goes on.

Knows nothing of what was signed.
"""

from __future__ import annotations

import multiprocessing
from collections import deque
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Final

from nacl.bindings import crypto_sign_open
from nacl.exceptions import BadSignatureError

from starai.verifier.reading import Findings

#: Signatures that one process checks at a time: some tenths of a second of work.
_BATCH: Final = 2_000
#: Batches that wait: a bound on memory.
_WAITING: Final = 64

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


class Signatures:
    """Signatures that are to be checked by `finish`; complains about those that are wrong."""

    def __init__(self, findings: Findings, num_processes: int) -> None:
        """Take how many processes may help; a few signatures are not worth starting one for."""
        self._findings = findings
        self._num_processes = num_processes
        self._pool: ProcessPoolExecutor | None = None
        self._names: list[str] = []
        self._batch: list[Signed] = []
        self._running: deque[tuple[list[str], Future[list[int]]]] = deque()

    def add(self, name: str, *signed: bytes) -> None:
        """Check that a key signed a message: ``key, message, signature``."""
        key, message, signature = signed
        self._names.append(name)
        self._batch.append((key, message, signature))
        if len(self._batch) == _BATCH:
            self._send()

    def _send(self) -> None:
        names, batch = self._names, self._batch
        self._names, self._batch = [], []
        if self._num_processes == 1:
            self._complain(names, _wrong(batch))
            return
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self._num_processes, mp_context=context)
        self._running.append((names, self._pool.submit(_wrong, batch)))
        if len(self._running) > _WAITING:
            self._receive()

    def _receive(self) -> None:
        names, future = self._running.popleft()
        self._complain(names, future.result())

    def _complain(self, names: list[str], wrong: list[int]) -> None:
        for index in wrong:
            self._findings.complain(f"{names[index]} is not signed")

    def finish(self) -> None:
        """Wait for all that was added."""
        self._complain(self._names, _wrong(self._batch))
        self._names, self._batch = [], []
        while self._running:
            self._receive()

    def close(self) -> None:
        """End the helping processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
