"""Least estimated finish time, made worse by recent failures."""

from __future__ import annotations

from collections.abc import Iterable

from starai.matching.base import Candidate, Demand

#: Speeds assumed of a node that has not been measured: modest, so that it gets work but not all.
ASSUMED_PREFILL_TPS = 200.0
ASSUMED_DECODE_TPS = 20.0
#: How much one more running sequence slows a batched decode step, as a share of the step.
BATCH_SLOWDOWN = 0.15


class FinishTime:
    """Ranks by `estimate_ms`; equal estimates by name, so that a ranking is reproducible."""

    def rank(self, demand: Demand, candidates: Iterable[Candidate]) -> list[Candidate]:
        """Best first; full nodes and those whose context is too short are left out."""
        able = [
            candidate
            for candidate in candidates
            if candidate.running < candidate.slots
            and demand.prompt_tokens < candidate.context_length
        ]
        return sorted(able, key=lambda one: (estimate_ms(demand, one), one.party))


def estimate_ms(demand: Demand, candidate: Candidate) -> float:
    """When the candidate would have finished, in milliseconds from now."""
    prefill_s = demand.prompt_tokens / (candidate.prefill_tps or ASSUMED_PREFILL_TPS)
    decode_s = demand.max_tokens / (candidate.decode_tps or ASSUMED_DECODE_TPS)
    slowdown = 1 + BATCH_SLOWDOWN * candidate.running
    work_ms = 1000 * (prefill_s + decode_s) * slowdown
    return (candidate.rtt_ms + work_ms) * (1 + candidate.failures)
