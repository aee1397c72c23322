"""One answer as its caller reads it: chunks put in order, opened, checked, and counted.

Knows nothing of the wire: `starai.exchange.caller.offering` hands in what came.
"""

from __future__ import annotations

from collections import deque

import anyio

from starai.core.errors import SealBroken
from starai.core.limits import ANSWER_PARTS_BUFFERED_MAX
from starai.core.waking import loop_time
from starai.exchange.base import SILENCE_S, AttemptFailed, FailureKind, Settled
from starai.exchange.mailboxes import Bell, Mailbox, MailboxOverflow
from starai.protocol.generation import Part
from starai.protocol.tasks import Answer, Refusal, TaskHeader
from starai.sealing import AnswerOpener
from starai.sealing.tasks import TaskKeys

#: Waking this much later than asked means that silence was not listened to.
OVERSLEPT_S = 0.25
#: Chunks that came before their turn; more than this is no reordering but a lost chunk.
EARLY_MAX = 64
#: Chunks that were read and are remembered, to tell a repeated one from a second answer.
READ_REMEMBERED_MAX = 256
#: Chunks without tokens that a callee may send: so many at once, and so many a second. It is to
#: send five a second; what is beyond these is a flood.
SIGNS_BURST = 200
SIGNS_PER_S = 50.0


class AnswerStream:
    """An answer as it arrives. Made by `starai.exchange.caller.offering.Offering`."""

    def __init__(
        self,
        header: TaskHeader,
        keys: TaskKeys,
        subject: str,
        tokens_max: int,
        bell: Bell | None = None,
    ) -> None:
        """Expect the answer to ``header``, offered on ``subject``: up to ``tokens_max`` tokens.

        ``bell`` rings when something has come; several answers may share one.
        """
        self.header = header
        self.keys = keys
        self.subject = subject
        self.bell = bell or Bell()
        self.finished = False
        #: Whether the callee would rather have somebody else go on.
        self.draining = False
        self._opener = AnswerOpener(keys)
        self._early: dict[int, bytes] = {}
        self._mail: Mailbox[Answer | Refusal | FailureKind] = Mailbox(
            ANSWER_PARTS_BUFFERED_MAX, self.bell
        )
        self._read: deque[int] = deque(maxlen=READ_REMEMBERED_MAX)
        self._ids = bytearray()
        self._embedding = b""
        self._tokens_max = tokens_max
        self._signs = 0
        #: When the first sign of life came.
        self._signs_s = 0.0
        self._closed_ms: int | None = None
        self._is_forgone = False

    def poll(self) -> Part | None:
        """The next part, in order, if it has come; parts without ids are signs of life.

        Chunks that are not next are no part and no sign: one was lost, and never comes.

        Raises:
            AttemptFailed: the callee refused, broke the chain, contradicts itself or is gone.
        """
        sealed = self._early.pop(self._opener.seq, None) if self._early else None
        while sealed is None:
            if not self._mail.has_news:
                return None
            sealed = self._sort()
        return self._open(sealed)

    async def receive(self, silence_s: float = SILENCE_S) -> Part:
        """The next part; waits for it.

        Raises:
            AttemptFailed: as `poll` says, or the callee fell silent.
        """
        while True:
            late_s = loop_time() + silence_s + OVERSLEPT_S
            with anyio.move_on_after(silence_s):
                while (part := self.poll()) is None:
                    await self.bell.wait()
                return part
            if loop_time() < late_s:
                raise AttemptFailed(FailureKind.SILENT)
            # It was this process that did not get its turn; the chunk may be here by now.

    def settle(self, now_ms: int) -> Settled:
        """How the exchange ends: what was accepted. The first call fixes the closing time."""
        if self._closed_ms is None:
            self._closed_ms = now_ms
        return Settled(
            self.header, bytes(self._ids), self._opener.code, self._closed_ms, self._embedding
        )

    def forgo(self) -> None:
        """Accept nothing of what was read: it was a question without a price, and is no record."""
        self._ids.clear()
        self._embedding = b""
        self._is_forgone = True

    @property
    def accepted_seq(self) -> int:
        """How many chunks have been accepted."""
        return 0 if self._is_forgone else self._opener.seq

    def deliver(self, mail: Answer | Refusal | FailureKind) -> None:
        """Hand in what came."""
        self._mail.put(mail)

    def _sort(self) -> bytes | None:
        """Put away what came next; the sealed chunk, if it is its turn."""
        try:
            mail = self._mail.pop()
        except MailboxOverflow as error:
            raise AttemptFailed(FailureKind.OVERFLOW) from error
        match mail:
            case Answer(seq=seq, sealed=sealed):
                ahead = seq - self._opener.seq
                if ahead == 0:
                    return sealed
                if ahead < 0:
                    self._check_repeated(ahead, sealed)
                elif ahead < EARLY_MAX and self._early.setdefault(seq, sealed) != sealed:
                    raise AttemptFailed(FailureKind.TWICE)  # further ahead, some were lost
            case Refusal(code=code, retry_after_ms=retry_after_ms):
                raise AttemptFailed(FailureKind.REFUSED, code, retry_after_ms)
            case FailureKind():
                raise AttemptFailed(mail)
        return None

    def _check_repeated(self, ahead: int, sealed: bytes) -> None:
        """A chunk that was read may come again, but not another one under its number."""
        if -ahead <= len(self._read) and self._read[ahead] != hash(sealed):
            raise AttemptFailed(FailureKind.TWICE)

    def _open(self, sealed: bytes) -> Part:
        try:
            part = self._opener.open(sealed)
        except SealBroken as error:
            raise AttemptFailed(FailureKind.MALFORMED) from error
        self._read.append(hash(sealed))
        if (len(self._ids) + len(part.ids)) // 4 > self._tokens_max:
            raise AttemptFailed(FailureKind.MALFORMED)
        # An answer without room for a token is a vector that comes with its end, and only there.
        is_vector = part.finish is not None and not self.header.max_tokens
        if bool(part.embedding) != is_vector:
            raise AttemptFailed(FailureKind.MALFORMED)
        if not part.ids and part.finish is None:
            self._count_sign()
        self._ids += part.ids
        self._embedding = part.embedding
        self.finished = part.finish is not None
        return part

    def _count_sign(self) -> None:
        now_s = loop_time()
        if not self._signs:
            self._signs_s = now_s
        self._signs += 1
        passed_s = now_s - self._signs_s
        if self._signs > SIGNS_BURST + SIGNS_PER_S * passed_s:
            raise AttemptFailed(FailureKind.FLOOD)
