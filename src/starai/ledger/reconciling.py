"""What two sides said about one attempt at a task, and what follows: agreed, waiting, or a fault.

Both sides derive the same record, so agreement is equality of leaves (ledger design, section 4.3).
A standing follows from what was said, by whom, and when it was heard; never from the order in
which it was looked at. Whoever names somebody else's attempt contests nothing: a word counts
against those whose partner its speaker is. Knows nothing of signatures, storage or money.
"""

from __future__ import annotations

import enum
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple, TypeAlias

from starai.protocol.records import Side, TaskRecord

#: How long a contradiction may come after the first word on an attempt: a day of outage is
#: forgiven. What a node earned matures later than this, so what is contested can be taken back.
WINDOW_MS: Final = 86_400_000


class Standing(enum.IntEnum):
    """The standing of one record of one attempt."""

    #: Only the node confirmed it; the distributor may still.
    NODE_ONLY = 1
    #: Only the distributor confirmed it; the node may still.
    DIST_ONLY = 2
    #: Both sides confirmed exactly this record.
    MATCHED = 3
    #: The other side says something else was asked or answered, or when.
    CONTENT = 4
    #: Its speaker confirmed several records of one attempt.
    DUP = 5
    #: The other side counts other tokens, or another charge.
    AMOUNT = 6
    #: The distributor says that another node did it, or that one does not say so and this one does.
    WRONG_NODE = 7
    #: All is equal but the end of the code chain: the answer's codes are not those that were read.
    PROOF_FAIL = 8
    #: It came when the window was over, and nobody else says the same: it contests nothing.
    LATE = 9
    #: It names a party that is not in the network.
    UNKNOWN = 10
    #: Its signature does not verify: nobody has said it.
    BAD_SIG = 11


_Speaker: TypeAlias = tuple[Side, bytes]

#: Nobody contests these; time decides.
WAITING: Final = (Standing.NODE_ONLY, Standing.DIST_ONLY)


class Claim(NamedTuple):
    """One record of an attempt; when each side's word for it was heard (Unix ms), if it was.

    ``flaw`` is what its bearer found: `Standing.UNKNOWN` or `Standing.BAD_SIG`, or None.
    """

    record: TaskRecord
    node_ms: int | None = None
    dist_ms: int | None = None
    flaw: Standing | None = None

    @property
    def agreed_ms(self) -> int | None:
        """When both sides had said it, or None."""
        if self.node_ms is None or self.dist_ms is None:
            return None
        return max(self.node_ms, self.dist_ms)

    def words(self) -> list[tuple[_Speaker, int]]:
        """Who said it, and when."""
        said = (
            ((Side.NODE, self.record.node), self.node_ms),
            ((Side.DISTRIBUTOR, self.record.distributor), self.dist_ms),
        )
        return [(speaker, at_ms) for speaker, at_ms in said if at_ms is not None]


def compare(one: TaskRecord, other: TaskRecord) -> Standing:
    """What two different records of one attempt, from two sides, disagree on."""
    if one.node != other.node:
        return Standing.WRONG_NODE
    if _request(one) != _request(other):
        return Standing.CONTENT
    if _amounts(one) != _amounts(other):
        return Standing.AMOUNT  # fewer tokens have another hash and another chain, too
    if (one.answer_hash, one.closed_ms) != (other.answer_hash, other.closed_ms):
        return Standing.CONTENT
    return Standing.PROOF_FAIL


def _request(record: TaskRecord) -> tuple[object, ...]:
    """What was asked, by whom, of whom."""
    return (
        record.distributor,
        record.customer,
        record.model_root,
        record.offered_ms,
        record.request_hash,
    )


def _amounts(record: TaskRecord) -> tuple[int, ...]:
    return (
        record.prompt_tokens,
        record.answer_tokens,
        record.price_id,
        record.charge_nano_usd,
    )


def judge(claims: Sequence[Claim], window_ms: int = WINDOW_MS) -> list[Standing]:
    """The standing of each distinct record of one attempt.

    A record that both sides confirmed is MATCHED whatever one of them says besides; two such
    records of one speaker contradict each other, and neither is. A word that comes more than
    ``window_ms`` after the first one of its distributor or that one's nodes changes nothing that
    was said in time; but two who agree then, and said nothing else, agree.
    """
    case = _Case([claim for claim in claims if claim.flaw is not Standing.BAD_SIG], window_ms)
    return [
        Standing.BAD_SIG if claim.flaw is Standing.BAD_SIG else case.standing(claim)
        for claim in claims
    ]


class _Case:
    """All that was said of one attempt."""

    def __init__(self, claims: Sequence[Claim], window_ms: int) -> None:
        self._window_ms = window_ms
        self._opened_ms: dict[bytes, int] = {}
        self._naming: dict[bytes, list[Claim]] = defaultdict(list)
        self._spoken: dict[_Speaker, list[Claim]] = defaultdict(list)
        self._in_time_by: dict[_Speaker, list[Claim]] = defaultdict(list)
        for claim in claims:
            named = claim.record.distributor
            self._naming[named].append(claim)
            for _, at_ms in claim.words():
                self._opened_ms[named] = min(self._opened_ms.get(named, at_ms), at_ms)
        for claim in claims:
            for speaker, at_ms in claim.words():
                self._spoken[speaker].append(claim)
                if self._in_time(claim, at_ms):
                    self._in_time_by[speaker].append(claim)

    def standing(self, claim: Claim) -> Standing:
        if claim.agreed_ms is not None:
            return self._of_agreed(claim, claim.agreed_ms)
        if claim.flaw is not None:
            return claim.flaw
        ((speaker, at_ms),) = claim.words()
        if not self._in_time(claim, at_ms):
            return Standing.LATE
        if any(other is not claim for other in self._said_by(speaker)):
            return Standing.DUP
        side = speaker[0]
        if side is Side.NODE:
            answers = self._said_by((Side.DISTRIBUTOR, claim.record.distributor))
        else:
            answers = self._said_by((Side.NODE, claim.record.node))
        if not answers:
            return self._alone(claim, side)
        same_node = [one for one in answers if one.record.node == claim.record.node]
        answer = min(same_node or answers, key=lambda one: one.record.canonical())
        return compare(claim.record, answer.record)

    def _alone(self, claim: Claim, side: Side) -> Standing:
        """Of a record of which its other side has said nothing at all."""
        if side is Side.NODE:
            return Standing.NODE_ONLY
        named = claim.record.distributor
        others = self._naming[named]
        if any(one.node_ms is not None and self._in_time(one, one.node_ms) for one in others):
            return Standing.WRONG_NODE
        return Standing.DIST_ONLY

    def _of_agreed(self, claim: Claim, agreed_ms: int) -> Standing:
        speakers = {speaker for speaker, _ in claim.words()}
        if not self._in_time(claim, agreed_ms) and any(
            other is not claim for speaker in speakers for other in self._said_by(speaker)
        ):
            return Standing.LATE
        apart_ms = [
            agreed_ms - other.agreed_ms
            for speaker in speakers
            for other in self._spoken[speaker]
            if other is not claim and other.agreed_ms is not None
        ]
        if any(abs(apart) <= self._window_ms for apart in apart_ms):
            return Standing.DUP
        return Standing.LATE if any(apart > 0 for apart in apart_ms) else Standing.MATCHED

    def _in_time(self, claim: Claim, at_ms: int) -> bool:
        return at_ms <= self._opened_ms[claim.record.distributor] + self._window_ms

    def _said_by(self, speaker: _Speaker) -> Sequence[Claim]:
        """What a speaker said in time."""
        return self._in_time_by.get(speaker, ())


def due(claims: Sequence[Claim], standings: Iterable[Standing]) -> list[bool]:
    """Which of an attempt's records are paid at once: agreed ones, and of two amounts the lower.

    The lower of two different amounts is what both sides say at least; equal charges for
    different tokens are paid by the distributor's record.
    """
    judged = list(zip(claims, standings, strict=True))
    lower = {
        min(pair, key=lambda one: (one.record.charge_nano_usd, one.dist_ms is None))
        for pair in _amount_pairs([one for one, state in judged if state is Standing.AMOUNT])
    }
    return [state is Standing.MATCHED or claim in lower for claim, state in judged]


def _amount_pairs(contested: Sequence[Claim]) -> list[tuple[Claim, Claim]]:
    return [
        (one, other)
        for one in contested
        for other in contested
        if one.dist_ms is not None and other.node_ms is not None
        if (one.record.node, one.record.distributor)
        == (other.record.node, other.record.distributor)
    ]
