"""Who can take a task at all, and why the others cannot.

It does not know who would be best.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable

from starai.matching.base import Candidate, Demand


class Reason(enum.Enum):
    """Why a candidate is left out; the value is what a person reads."""

    DRAINING = "it is leaving"
    PAUSED = "its owner needs it"
    RESTING = "it rests after failures"
    BANNED = "it is shut out"
    FULL = "all its slots are taken"
    CONTEXT = "its context is too short"
    MODALITY = "it serves another modality"
    QUANTISATION = "its weights are quantised otherwise"
    TRUST = "it is not trusted enough"
    REGION = "it is in another region"
    FAILED = "it failed this very task"


def closed(candidate: Candidate) -> Reason | None:
    """Why it can take no task whatever now, if so."""
    if candidate.draining:
        return Reason.DRAINING
    if candidate.paused:
        return Reason.PAUSED
    if candidate.banned:
        return Reason.BANNED
    if candidate.resting:
        return Reason.RESTING
    if candidate.running >= candidate.slots:
        return Reason.FULL
    return None


def unfit(demand: Demand, candidate: Candidate) -> Reason | None:
    """Why it could not take this task even if it were idle, if so."""
    if demand.prompt_tokens >= candidate.context_length:
        return Reason.CONTEXT
    if demand.modality != candidate.modality:
        return Reason.MODALITY
    if demand.trust > candidate.trust:
        return Reason.TRUST
    if demand.regions and not in_region(candidate.region, demand.regions):
        return Reason.REGION
    if demand.quantisations and candidate.quantisation not in demand.quantisations:
        return Reason.QUANTISATION
    return None


def in_region(region: str, allowed: Iterable[str]) -> bool:
    """Whether ``region`` is one of the allowed or lies inside one: ``eu-west`` is in ``eu``."""
    for one in allowed:
        if region.startswith(one) and region[len(one) : len(one) + 1] in ("", "-"):
            return True
    return False


def reasons(
    demand: Demand, candidates: Iterable[Candidate], failed: Iterable[str] = ()
) -> Counter[Reason]:
    """How many of the candidates are left out for which reason; each counts once."""
    counted: Counter[Reason] = Counter()
    excluded = frozenset(failed)
    for candidate in candidates:
        # What never changes is said first: to wait for it would be in vain.
        reason = unfit(demand, candidate) or closed(candidate)
        if reason is None and candidate.party in excluded:
            reason = Reason.FAILED
        if reason is not None:
            counted[reason] += 1
    return counted
