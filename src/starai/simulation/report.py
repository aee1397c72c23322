"""What a run showed, as numbers: the same numbers for the same seed, and a fingerprint of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec
import numpy as np

from starai.simulation.oracle import Verdict
from starai.simulation.running import Outcome

SHARES = (0.5, 0.95, 0.99)
#: How many nodes are the busiest: their share of all tokens tells how work is spread.
TOP = 0.1


class Times(msgspec.Struct, frozen=True):
    """Percentiles of a time in seconds, over ``number`` measurements."""

    number: int
    p50_s: float
    p95_s: float
    p99_s: float

    def text(self) -> str:
        """As a person reads it."""
        return f"p50 {self.p50_s:.2f} s, p95 {self.p95_s:.2f} s, p99 {self.p99_s:.2f} s"


class Report(msgspec.Struct, frozen=True):
    """The numbers of one run. Everything here follows from scenario, seed and data."""

    title: str
    policy: str
    seed: int
    nodes: int
    hours: float
    requests: int
    made_up: tuple[str, ...]
    verdict: Verdict
    ttft: Times
    finish: Times
    gap: Times
    attempts: int
    carried_on: int
    hedged: int
    hedges_won: int
    endings: dict[str, int]
    refusals: dict[str, int]
    moves: dict[str, int]
    ladder: dict[str, int]
    nodes_used: int
    busiest_share: float
    events: int

    def digest(self) -> str:
        """A fingerprint of all numbers."""
        return hashlib.sha256(msgspec.json.encode(self, order="deterministic")).hexdigest()[:16]


def times(values: object) -> Times:
    """Percentiles of a series; zeros where it is empty."""
    series = np.asarray(values, dtype=np.float64)
    found = np.quantile(series, SHARES) if len(series) else np.zeros(3)
    p50, p95, p99 = (round(float(one), 6) for one in found)
    return Times(len(series), p50, p95, p99)


def make_report(outcome: Outcome) -> Report:
    """The numbers of a run."""
    tally, scenario = outcome.tally, outcome.scenario
    tokens = np.sort(np.asarray(tally.node_tokens))[::-1]
    busiest = tokens[: max(1, int(TOP * len(tokens)))].sum() / max(1, tokens.sum())
    return Report(
        title=scenario.title,
        policy=scenario.policy,
        seed=scenario.seed,
        nodes=scenario.nodes,
        hours=scenario.hours,
        requests=len(outcome.world.arrivals),
        made_up=tuple(outcome.world.made_up),
        verdict=outcome.verdict,
        ttft=times(tally.ttft_s),
        finish=times(tally.finish_s),
        gap=times(tally.gaps_s),
        attempts=tally.num_attempts,
        carried_on=tally.num_broken,
        hedged=outcome.num_hedged,
        hedges_won=outcome.num_won,
        endings=dict(sorted((kind or "answered", n) for kind, n in tally.endings.items())),
        refusals=dict(sorted(tally.refusals.items())),
        moves=dict(sorted(tally.moves.items())),
        ladder=dict(sorted(tally.steps.items())),
        nodes_used=int((tokens > 0).sum()),
        busiest_share=round(float(busiest), 6),
        events=outcome.num_events,
    )


def rows(report: Report) -> list[tuple[str, str]]:
    """The numbers as a person reads them."""
    verdict = report.verdict
    sound = "sound" if verdict.is_sound else "NOT SOUND: " + "; ".join(verdict.faults)
    unconfirmed = verdict.tokens_paid - verdict.tokens_confirmed
    found = [
        ("policy", report.policy),
        ("nodes", f"{report.nodes:,}, of which {report.nodes_used:,} served"),
        ("requests", f"{report.requests:,} in {report.hours:g} h, seed {report.seed}"),
        ("answered", f"{verdict.answered:,}, over {report.attempts:,} attempts"),
        ("refused", _counts(report.refusals)),
        ("books", f"{sound}; {verdict.lost} lost"),
        ("tokens paid", f"{verdict.tokens_paid:,}, {unconfirmed:,} of nodes that were gone"),
        ("first token", report.ttft.text()),
        ("last token", report.finish.text()),
        ("went on after a failure", f"{report.gap.number:,}, after {report.gap.text()}"),
        ("hedges", f"{report.hedged:,}, {report.hedges_won:,} were first"),
        ("ends of attempts", _counts(report.endings)),
        ("nodes that", _counts(report.moves)),
        ("steps on the ladder", _counts(report.ladder)),
        ("busiest tenth of nodes", f"{report.busiest_share:.0%} of all tokens"),
        ("fingerprint", report.digest()),
    ]
    if report.made_up:
        found.insert(1, ("MADE UP, as the data is absent", ", ".join(report.made_up)))
    return found


def comparison(reports: Sequence[Report]) -> list[tuple[str, ...]]:
    """One row a policy: what they differ in; times in seconds."""
    return [
        (
            one.policy,
            *(f"{value:.2f}" for value in (one.ttft.p50_s, one.ttft.p95_s, one.ttft.p99_s)),
            *(f"{value:.2f}" for value in (one.finish.p50_s, one.finish.p95_s, one.finish.p99_s)),
            f"{one.verdict.answered:,}",
            f"{one.verdict.refused:,}",
            f"{one.carried_on:,}",
        )
        for one in reports
    ]


COMPARED = (
    "policy",
    "first token p50",
    "p95",
    "p99",
    "last token p50",
    "p95",
    "p99",
    "answered",
    "refused",
    "more than one attempt",
)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{number:,} {what}" for what, number in counts.items()) or "none"
