"""Cases of records on which two sides do not agree: opened by time, decided by deadline or person.

`Disputes.run` opens a case for each record that has waited too long for its other side, and gives
each case whose deadline has passed the outcome that `starai.ledger.outcomes` says. Contested
records have their cases from the moment that they are contested (see
`starai.registry.reconciling.contests`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import anyio

from starai.core.clock import Clock
from starai.core.errors import Conflict, InvalidRequest, NotFound, StarAIError, StoreFailed
from starai.core.logging import event
from starai.ledger.events import Slashed, event_id
from starai.ledger.outcomes import (
    OPEN_AFTER_MS,
    REOPEN_MS,
    Verdict,
    blamed,
    default_outcome,
)
from starai.ledger.reconciling import Standing
from starai.protocol.identity import KeyKind, public_nkey
from starai.protocol.registry import Side
from starai.registry.log.believing import Believed
from starai.registry.money.books import apply_event
from starai.registry.reconciling.contests import (
    ClaimRow,
    claims_of,
    open_case,
    pay_row,
    rejudge,
    take_back,
)
from starai.registry.reconciling.insuring import at_risk, insure
from starai.registry.schema import rows
from starai.registry.storage import Connection, Store

_LOG = logging.getLogger(__name__)

#: How often it is looked after cases: deadlines are a day away.
SWEEP_S: Final = 30.0
#: Rows of `task` looked through, and cases decided, in one transaction: some milliseconds each.
ROWS_AT_ONCE: Final = 20_000
CASES_AT_ONCE: Final = 200
#: Cases in one report.
REPORT_CASES_MAX: Final = 500

#: When a distributor last confirmed anything; its index has the answer, whatever it has said.
LAST_HEARD: Final = "SELECT max(at_ms) FROM confirm WHERE side = 2 AND signer = ?"
_CASE: Final = (
    "SELECT dispute.id, dispute.task_seq, dispute.reason, dispute.opened_ms, dispute.deadline_ms,"
    " dispute.state, dispute.verdict, task.task_id, task.attempt, task.node, task.dist,"
    " task.sides, task.charge, task.event_id IS NOT NULL AND dispute.event_id IS NULL"
    " FROM dispute JOIN task ON task.seq = dispute.task_seq"
)


class Case(NamedTuple):
    """A case, with what its record says."""

    case_id: int
    seq: int
    reason: str
    opened_ms: int
    deadline_ms: int
    state: str
    verdict: str | None
    task_id: bytes
    attempt: int
    node: bytes
    distributor: bytes
    sides: int
    charge: int
    is_paid: bool


class Disputes:
    """Looks after cases."""

    def __init__(self, store: Store, clock: Clock) -> None:
        """Take the store."""
        self._store = store
        self._clock = clock
        self._believed = Believed(clock)
        #: All rows up to this one were looked at when they were old enough.
        self._seen: int | None = None

    async def run(self) -> None:
        """Open and decide cases until cancelled.

        Raises:
            StoreFailed: the disk failed.
        """
        while True:
            try:
                await self.sweep()
            except StoreFailed:
                raise
            except StarAIError as error:  # what was not done now is done the next time
                event(_LOG, "sweep_failed", logging.ERROR, code=error.code, why=error.message)
            await anyio.sleep(SWEEP_S)

    async def sweep(self) -> None:
        """Open the cases of records that wait for too long, and decide what is due.

        Raises:
            InternalFault: the clock jumped ahead: a deadline is neither past nor begins then.
            Overloaded, StoreFailed: it could not be written.
        """
        now_ms = await self._believed.now_ms(self._store)
        while await self._look_on(now_ms):
            pass
        while await self._store.write(lambda connection: decide_due(connection, now_ms)):
            pass

    async def _look_on(self, now_ms: int) -> bool:
        """Look at the next rows; whether there are more."""
        seen = self._seen
        if seen is None:
            await self._store.write(lambda connection: rejudge_old(connection, now_ms))
            seen = await self._store.read(_seen)
        self._seen, more = await self._store.write(
            lambda connection: open_waiting(connection, seen, now_ms)
        )
        return more

    async def cases(self, node: bytes | None, *, only_open: bool) -> list[Case]:
        """The newest cases, of one node or of all."""
        return await self._store.read(
            lambda connection: _cases(connection, node, only_open=only_open)
        )

    async def strikes(self) -> dict[str, int]:
        """How often each party was to blame for a refused record; who never was is not in it."""
        return await self._store.read(_strikes)

    async def open(self, node: bytes | None, task_id: bytes, attempt: int) -> list[Case]:
        """Have the records of an attempt that are not paid looked at by a person.

        ``node``: only its own. A case that was refused is opened again, within `REOPEN_MS`.

        Raises:
            NotFound: there is no such record.
            Conflict: all of them are agreed, or decided for good.
        """
        now_ms = self._clock.now_ms()
        return await self._store.write(
            lambda connection: _open(connection, node, task_id, attempt, now_ms)
        )

    async def decide(self, task_seq: int, verdict: str) -> Case:
        """Decide a case as a person: ``paid``, ``refused`` or ``slashed``.

        Raises:
            NotFound: there is no such case.
            InvalidRequest: there is no such verdict.
            Conflict: what was paid cannot be taken back any more, or not be paid.
        """
        now_ms = self._clock.now_ms()
        return await self._store.write(
            lambda connection: _decide(connection, task_seq, verdict, now_ms)
        )


def _seen(connection: Connection) -> int:
    """Where the last run had got to: the newest record that got a case by waiting."""
    ((seen,),) = rows(
        connection,
        "SELECT max(task_seq) FROM dispute WHERE reason IN ('node_only', 'dist_only')",
    )
    return seen or 0


def rejudge_old(connection: Connection, now_ms: int) -> None:
    """Give contradictions of before there were cases their standing and case, once.

    The oldest confirmation says whether the database is that old: it does not name its distributor.
    """
    oldest = next(rows(connection, "SELECT dist FROM confirm ORDER BY seq LIMIT 1"), None)
    if oldest is None or oldest[0] is not None:
        return
    found = rows(
        connection,
        "SELECT DISTINCT task.task_id, task.attempt FROM task LEFT JOIN dispute"
        " ON dispute.task_seq = task.seq WHERE task.state IN (4, 5) AND dispute.id IS NULL",
    )
    for task_id, attempt in list(found):
        rejudge(connection, task_id, attempt, 0, now_ms)


def open_waiting(connection: Connection, seen: int, now_ms: int) -> tuple[int, bool]:
    """Open the cases of the next records that have waited for `OPEN_AFTER_MS`.

    Returns up to which row all is seen to, and whether there is more to see to.
    """
    ((last,),) = rows(connection, "SELECT max(seq) FROM task")
    end = seen + ROWS_AT_ONCE
    found = rows(
        connection,
        "SELECT task.seq, task.state, confirm.at_ms FROM task JOIN confirm"
        " ON confirm.seq = coalesce(task.node_confirm, task.dist_confirm)"
        " WHERE task.seq > ? AND task.seq <= ? AND task.state IN (1, 2) ORDER BY task.seq",
        seen,
        end,
    )
    for seq, state, at_ms in list(found):
        if at_ms + OPEN_AFTER_MS > now_ms:
            return seq - 1, False
        open_case(connection, seq, Standing(state), now_ms)
    return (end, True) if last is not None and end < last else (last or seen, False)


def decide_due(connection: Connection, now_ms: int) -> int:
    """Give cases whose deadline has passed their default outcome; how many."""
    found = rows(
        connection,
        f"{_CASE} WHERE dispute.state = 'open' AND dispute.deadline_ms <= ?"
        " ORDER BY dispute.deadline_ms LIMIT ?",
        now_ms,
        CASES_AT_ONCE,
    )
    due = [Case(*row) for row in found]
    heard = _heard(connection, due)
    for case in due:
        row = _row(connection, case)
        spoke = heard.get(case.distributor, -1) > case.opened_ms
        verdict = default_outcome(Standing(row.state), distributor_spoke=spoke)
        verdict = _carry_out(connection, row, verdict, now_ms)
        _close(connection, case, verdict)
        event(
            _LOG,
            "case_decided",
            task=case.task_id.hex(),
            reason=case.reason,
            verdict=verdict.value,
        )
    return len(due)


def _heard(connection: Connection, due: list[Case]) -> dict[bytes, int]:
    """When each distributor of a case that only a node speaks of last confirmed anything."""
    heard = {}
    for distributor in {case.distributor for case in due if case.sides == Side.NODE}:
        ((at_ms,),) = rows(connection, LAST_HEARD, distributor)
        if at_ms is not None:
            heard[distributor] = at_ms
    return heard


def _row(connection: Connection, case: Case) -> ClaimRow:
    found = claims_of(connection, case.task_id, case.attempt)
    return next(row for row in found if row.seq == case.seq)


def _carry_out(connection: Connection, row: ClaimRow, verdict: Verdict, now_ms: int) -> Verdict:
    """Move the money; the verdict as it then is."""
    record = row.claim.record
    if verdict is Verdict.PAID:
        others = claims_of(connection, record.task_id, record.attempt)
        if any(
            other.is_paid and other.claim.record.distributor == record.distributor
            for other in others
            if other.seq != row.seq
        ):
            return Verdict.REFUSED  # a distributor pays for an attempt once
        pay_row(connection, row, now_ms)
    elif verdict is Verdict.INSURED:
        return insure(connection, row, at_risk(connection, record.node), now_ms)
    return verdict


def _close(connection: Connection, case: Case, verdict: Verdict) -> None:
    connection.execute(
        "UPDATE dispute SET state = 'closed', verdict = ? WHERE id = ?",
        (verdict.value, case.case_id),
    )


def _cases(connection: Connection, node: bytes | None, *, only_open: bool) -> list[Case]:
    wanted = ["task.node = ?"] * (node is not None) + ["dispute.state = 'open'"] * only_open
    where = f" WHERE {' AND '.join(wanted)}" if wanted else ""
    found = rows(
        connection,
        f"{_CASE}{where} ORDER BY dispute.id DESC LIMIT ?",
        *([] if node is None else [node]),
        REPORT_CASES_MAX,
    )
    return [Case(*row) for row in found]


def _strikes(connection: Connection) -> dict[str, int]:
    strikes: dict[str, int] = {}
    for reason, verdict, sides, node, distributor, num in rows(
        connection,
        "SELECT dispute.reason, dispute.verdict, task.sides, task.node, task.dist, count(*)"
        " FROM dispute JOIN task ON task.seq = dispute.task_seq"
        " WHERE dispute.verdict IN ('refused', 'slashed')"
        " GROUP BY dispute.reason, dispute.verdict, task.sides, task.node, task.dist",
    ):
        side = blamed(Standing[reason.upper()], sides)
        if verdict == Verdict.SLASHED:
            side = Side.NODE
        if side is not None:
            party = public_nkey(KeyKind.USER, node if side is Side.NODE else distributor)
            strikes[party] = strikes.get(party, 0) + num
    return strikes


def _open(
    connection: Connection, node: bytes | None, task_id: bytes, attempt: int, now_ms: int
) -> list[Case]:
    mine = [
        row
        for row in claims_of(connection, task_id, attempt)
        if node in {None, row.claim.record.node}
    ]
    if not mine:
        raise NotFound("there is no record of that attempt")
    for row in mine:
        if row.is_paid or row.state == Standing.MATCHED:
            continue
        open_case(connection, row.seq, Standing(row.state), now_ms)
        connection.execute(
            "UPDATE dispute SET state = 'open', deadline_ms = ? WHERE task_seq = ?"
            " AND state = 'closed' AND event_id IS NULL AND opened_ms > ?",
            (now_ms + REOPEN_MS, row.seq, now_ms - REOPEN_MS),
        )
    opened = [case for case in _of_rows(connection, mine) if case.state == "open"]
    if not opened:
        raise Conflict("these records are agreed, paid, or decided for good")
    return opened


def _of_rows(connection: Connection, found: list[ClaimRow]) -> Iterator[Case]:
    for row in found:
        for case in rows(connection, f"{_CASE} WHERE dispute.task_seq = ?", row.seq):
            yield Case(*case)


def _decide(connection: Connection, task_seq: int, verdict: str, now_ms: int) -> Case:
    found: Any = rows(connection, f"{_CASE} WHERE dispute.task_seq = ?", task_seq)
    case = next((Case(*row) for row in found), None)
    if case is None:
        raise NotFound(f"there is no case of record {task_seq}")
    row = _row(connection, case)
    if verdict in {Verdict.REFUSED, Verdict.SLASHED}:
        done = Verdict(verdict)
        if row.is_paid and not take_back(connection, row, now_ms, now_ms):
            raise Conflict("what was paid for this record cannot be taken back any more")
        if done is Verdict.SLASHED:
            _slash(connection, row, now_ms)
    elif verdict == Verdict.PAID:
        done = _pay_by_verdict(connection, row, now_ms)
    else:
        raise InvalidRequest("a verdict is 'paid', 'refused' or 'slashed'", param="verdict")
    _close(connection, case, done)
    return next(_of_rows(connection, [row]))


def _slash(connection: Connection, row: ClaimRow, now_ms: int) -> None:
    record = row.claim.record
    if record.charge_nano_usd:
        slashed = Slashed(
            event_id=event_id(b"slashed", row.leaf),
            at_ms=now_ms,
            node=record.node,
            amount=record.charge_nano_usd,
            ref=row.leaf,
        )
        apply_event(connection, slashed)


def _pay_by_verdict(connection: Connection, row: ClaimRow, now_ms: int) -> Verdict:
    if row.claim.dist_ms is not None:
        if not pay_row(connection, row, now_ms):
            raise Conflict("the customer cannot pay for this record any more")
        return Verdict.PAID
    done = insure(connection, row, row.owed.charge, now_ms)
    if done is Verdict.REFUSED:
        raise Conflict("the insurance cannot pay for this record")
    return done
