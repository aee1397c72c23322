"""What becomes of a record on which two sides do not agree: every silence has its outcome.

A case is opened for each such record and decided when its deadline has passed, or earlier by the
operator (ledger design, section 4.3). Nobody is believed against the one who would pay: what the
distributor says was delivered is paid, what only a node says is paid by the insurance, and only
if its distributor has said nothing at all. Knows nothing of storage; moves no money.
"""

from __future__ import annotations

import enum
from typing import Final

from starai.ledger.reconciling import WINDOW_MS, Standing
from starai.protocol.records import Side

#: A record that waits for its other side this long becomes a case. Outages are mostly shorter.
OPEN_AFTER_MS: Final = 600_000
#: A case is decided this long after it was opened, unless the sides agree or a person decides.
DEADLINE_MS: Final = WINDOW_MS
#: A decided case may be opened again by whom it concerns for this long.
REOPEN_MS: Final = 7 * 86_400_000


class Verdict(enum.StrEnum):
    """How a case ended."""

    #: Both sides said the same after all.
    AGREED = "agreed"
    #: The customer pays the node.
    PAID = "paid"
    #: The insurance pays the node, up to what the node itself has to lose.
    INSURED = "insured"
    #: The lower of two amounts was paid at once, and stays all that is.
    LOWER = "lower"
    #: Nobody pays.
    REFUSED = "refused"
    #: Nobody pays, and the node loses as much of its stake as it asked for: only a person says so.
    SLASHED = "slashed"


def default_outcome(standing: Standing, *, distributor_spoke: bool) -> Verdict:
    """What becomes of a record whose case nobody decided in time.

    Args:
        standing: what it came to.
        distributor_spoke: whether its distributor confirmed anything else since the case was
            opened. One that is there and does not confirm this record denies it; one that is gone
            cannot, and its nodes shall not pay for that.
    """
    match standing:
        case Standing.MATCHED:
            return Verdict.AGREED
        case Standing.DIST_ONLY:
            return Verdict.PAID
        case Standing.NODE_ONLY:
            return Verdict.REFUSED if distributor_spoke else Verdict.INSURED
        case Standing.AMOUNT:
            return Verdict.LOWER
        case _:
            return Verdict.REFUSED


def blamed(standing: Standing, said_by: int) -> Side | None:
    """Who is to blame for a refused record by its own signatures, or None: one of two may lie.

    ``said_by`` is a bit set of `Side`. Who said two things of one attempt, or named a stranger, is
    to blame; where both did, the distributor, which gives out attempts.
    """
    if standing not in {Standing.DUP, Standing.UNKNOWN}:
        return None
    return Side.NODE if said_by == Side.NODE else Side.DISTRIBUTOR
