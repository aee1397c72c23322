"""The same small scenario through the real services and through the event-driven simulation."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from starai.core.errors import ConfigurationRefused
from starai.simulation.running import simulate
from starai.simulation.scenario import Arrivals, Churn, Places, Scenario
from starai.simulation.services import run_services
from starai.simulation.sources import Sources

SMALL = Scenario(
    title="Both ways",
    description="Small enough for the real services.",
    nodes=12,
    hours=0.02,
    places=Places(cities=1),
    arrivals=Arrivals(per_second=2.0),
)
MADE_UP = Sources(Path("no-such-folder"), synthetic_if_absent=True)
#: How far the two may be apart: the model leaves out what a wire's jitter, beats and parts add.
MEDIAN, TAIL = 0.2, 0.35


def test_both_ways_tell_the_same() -> None:
    """All is answered both ways; median and 95th percentile agree within a stated bound."""
    fast, real = simulate(SMALL, MADE_UP), run_services(SMALL, MADE_UP)
    assert real.verdict.is_sound, real.verdict.faults
    assert fast.verdict.answered == real.verdict.answered == real.requests
    assert real.changed == 0
    assert fast.verdict.tokens_paid == real.verdict.tokens_paid
    pairs = ((fast.tally.ttft_s, real.ttft_s), (fast.tally.finish_s, real.finish_s))
    for modelled, measured in pairs:
        for share, bound in ((0.5, MEDIAN), (0.95, TAIL)):
            expected = float(np.quantile(measured, share))
            assert float(np.quantile(modelled, share)) == pytest.approx(expected, rel=bound)


def test_real_services_survive_churn_with_sound_books() -> None:
    """Nodes vanish and leave within minutes; every answer is whole, right, and paid for once."""
    churn = Churn("weibull", session_h=0.02, absence_h=0.01)
    real = run_services(msgspec.structs.replace(SMALL, churn=churn, hours=0.006), MADE_UP)
    assert real.verdict.is_sound, real.verdict.faults
    assert real.left > 1  # how many depends on when the last answer is whole
    assert real.changed == 0
    assert real.verdict.answered + real.verdict.refused == real.requests


def test_what_is_too_large_for_the_real_services_is_refused() -> None:
    """Thousands of nodes would take days; the message says what to do."""
    with pytest.raises(ConfigurationRefused, match="--nodes"):
        run_services(msgspec.structs.replace(SMALL, nodes=1000), MADE_UP)
