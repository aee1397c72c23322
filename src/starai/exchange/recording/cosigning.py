"""A witness: a party that cosigns the registry's log, so that nobody can rewrite it unseen.

It asks the registry for news, believes a checkpoint only with a proof that everything it knew
before is still there, remembers that durably, and only then signs. It is a side job: whatever
fails here costs nothing but the signature. Knows nothing of records.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Protocol

import anyio
import anyio.to_thread
import msgspec

from starai.core.concurrency import task_group
from starai.core.errors import (
    ERRORS_BY_CODE,
    ConfigurationRefused,
    Conflict,
    NotFound,
    StarAIError,
    Unavailable,
)
from starai.core.logging import event
from starai.exchange.member import Member
from starai.ledger.checkpoints import Note, cosign
from starai.ledger.witnessing import Seen, advance
from starai.protocol.frames import decode, encode, peek
from starai.protocol.identity import KeyKind, raw_public
from starai.protocol.log import Witnessed, Witnessing, log_origin, witness_name
from starai.protocol.registry import Acknowledged
from starai.protocol.subjects import Role, registry
from starai.wire.keeping import write_secret

_LOG = logging.getLogger(__name__)

ANSWER_S: Final = 5.0
#: After a question without an answer, and after a log that cannot be believed.
RETRY_S: Final = 30.0
#: The registry is not asked more often than this, nor less, whatever it says.
PAUSE_LEAST_S: Final = 0.2
PAUSE_MOST_S: Final = 600.0


class Memory(Protocol):
    """Where a witness keeps what it has seen."""

    async def load(self) -> Seen:
        """What it had seen; nothing at first."""
        ...

    async def keep(self, seen: Seen) -> None:
        """Keep it; returns once that is durable."""
        ...


class _Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    account: str
    seen: Seen


class WitnessFile:
    """A witness's memory in a file; ``account`` is the nkey of the network whose log it is."""

    def __init__(self, path: Path, account: str) -> None:
        """Another network's memory is forgotten."""
        self._path = path
        self._account = account

    async def load(self) -> Seen:
        """What was kept for this network; nothing at first.

        Raises:
            ConfigurationRefused: the file cannot be read.
        """
        try:
            raw = await anyio.to_thread.run_sync(self._path.read_bytes)
            kept = msgspec.json.decode(raw, type=_Kept)
        except FileNotFoundError:
            return Seen()
        except (OSError, msgspec.DecodeError) as error:
            raise ConfigurationRefused(f"cannot read {self._path}: {error}") from error
        return kept.seen if kept.account == self._account else Seen()

    async def keep(self, seen: Seen) -> None:
        """Write it.

        Raises:
            StoreFailed: the disk does not take it.
        """
        raw = msgspec.json.encode(_Kept(self._account, seen))
        await anyio.to_thread.run_sync(write_secret, self._path, raw)


class Witness:
    """Cosigns for one party, which is a node or a gateway; `run` while its service runs."""

    def __init__(self, member: Member, role: Role, memory: Memory) -> None:
        """Sign as ``member``, remembering in ``memory``."""
        self._member = member
        self._memory = memory
        self._name = witness_name(member.network, role, member.identity.party)
        self._origin = log_origin(member.network)
        self._account = raw_public(member.account, KeyKind.ACCOUNT)
        self._problem = ""
        #: What it believes; for people to look at.
        self.seen = Seen()

    async def run(self) -> None:
        """Cosign until cancelled; a memory that cannot be read ends it, and nothing else."""
        try:
            self.seen = await self._memory.load()
        except StarAIError as error:  # without memory it could be deceived, so it says nothing
            event(_LOG, "witness_without_memory", logging.ERROR, why=error.message)
            return
        line = ""
        while True:
            try:
                line, pause_s = await self._round(line)
                self._problem = ""
            except StarAIError as error:
                line, pause_s = "", RETRY_S
                self._tell(error)
            await anyio.sleep(min(max(pause_s, PAUSE_LEAST_S), PAUSE_MOST_S))

    async def _round(self, line: str) -> tuple[str, float]:
        """Say what is believed, with the signature under it; the next one, and when to say it."""
        told = await self._ask(line)
        if not told.note or told.size != self.seen.size:
            return "", told.again_ms / 1000
        seen = advance(self.seen, told.note, told.proof, self._origin, self._account)
        await self._memory.keep(seen)
        self.seen = seen
        identity, now_s = self._member.identity, self._member.clock.now_ms() // 1000
        text = Note.parse(seen.note).text
        return cosign(text, self._name, identity.raw, now_s, identity.sign), 0.0

    async def _ask(self, line: str) -> Witnessed:
        member = self._member
        said = Witnessing(self.seen.size, self.seen.note, line)
        subject = registry("witness", member.identity.party)
        frame = await member.wire.request(subject, encode(said), timeout_s=ANSWER_S)
        if peek(frame) is Acknowledged:
            refusal = decode(frame, Acknowledged)
            raise ERRORS_BY_CODE.get(refusal.code, Unavailable)(refusal.message)
        return decode(frame, Witnessed)

    def _tell(self, error: StarAIError) -> None:
        """Once for each problem: loud if the log is not what it was, else for those who look."""
        if error.code == self._problem:
            return
        self._problem = error.code
        is_grave = isinstance(error, Conflict | NotFound)
        level = logging.ERROR if is_grave else logging.DEBUG
        event(_LOG, "not_cosigned", level, code=error.code, why=error.message)


@asynccontextmanager
async def cosigning(member: Member, role: Role, path: Path) -> AsyncIterator[None]:
    """Have a party witness the registry's log inside the context; ``path`` is its memory."""
    witness = Witness(member, role, WitnessFile(path, member.account))
    async with task_group() as group:
        group.start_soon(witness.run)
        yield
        group.cancel_scope.cancel()
