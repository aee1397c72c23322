"""Why a candidate is left out: each reason by itself, and counted."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from starai.matching import Candidate, Demand, Reason
from starai.matching.filtering import closed, in_region, reasons, unfit

OPEN = Candidate("a", 4, 1, 4096, region="eu-west", quantisation="int8", trust=1)
DEMAND = Demand(100, 100)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"draining": True}, Reason.DRAINING),
        ({"paused": True}, Reason.PAUSED),
        ({"banned": True}, Reason.BANNED),
        ({"resting": True}, Reason.RESTING),
        ({"running": 4}, Reason.FULL),
        ({"slots": 0, "running": 0}, Reason.FULL),
        ({}, None),
    ],
    ids=str,
)
def test_what_closes_a_candidate_to_everything(
    changes: dict[str, object], reason: Reason | None
) -> None:
    """Leaving, paused, banned, resting and full ones take no task at all."""
    assert closed(replace(OPEN, **changes)) is reason


@pytest.mark.parametrize(
    ("demand", "reason"),
    [
        (Demand(4096, 1), Reason.CONTEXT),
        (Demand(1, 1, modality="image"), Reason.MODALITY),
        (Demand(1, 1, trust=2), Reason.TRUST),
        (Demand(1, 1, regions=("us", "eu-north")), Reason.REGION),
        (Demand(1, 1, quantisations=("", "bf16")), Reason.QUANTISATION),
        (Demand(4095, 1, trust=1, regions=("eu",), quantisations=("int8",)), None),
    ],
    ids=str,
)
def test_what_makes_a_candidate_unfit_for_a_task(demand: Demand, reason: Reason | None) -> None:
    """Context, modality, trust, region and quantisation are the task's own conditions."""
    assert unfit(demand, OPEN) is reason


def test_a_region_holds_its_parts_and_nothing_that_only_begins_alike() -> None:
    """``eu`` holds ``eu-west``, not ``europa``; an unnamed region is in none."""
    assert in_region("eu-west", ["eu"])
    assert in_region("eu", ["us", "eu"])
    assert not in_region("europa", ["eu"])
    assert not in_region("", ["eu"])


def test_each_candidate_counts_once_and_for_what_never_changes_first() -> None:
    """To wait for a full node whose context is too short would be in vain: the context is said."""
    short = replace(OPEN, context_length=10, running=4)
    failed = replace(OPEN, party="b")
    found = reasons(DEMAND, [OPEN, short, replace(OPEN, running=4), failed], ["b"])
    assert found == {Reason.CONTEXT: 1, Reason.FULL: 1, Reason.FAILED: 1}
