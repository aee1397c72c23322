"""When a candidate would have finished a task: the figure by which candidates are compared.

The parts are those of network.md 3.4: what it has before this, reading the prompt less what its
prefix cache holds, writing the answer, the way there and back, loading the model, times how
often it failed lately. It does not know who may take the task.
"""

from __future__ import annotations

from typing import Final

from starai.matching.base import Candidate, Demand

#: Speeds assumed of a node that has not been measured: modest, so that it gets work but not all.
ASSUMED_PREFILL_TPS: Final = 200.0
ASSUMED_DECODE_TPS: Final = 20.0
#: How much slower each sequence gets when all slots are in use, beside an idle node: a device
#: offers about as many slots as its memory can feed at little more than twice the time.
BATCH_SLOWDOWN: Final = 1.2
#: A new or recovered node takes its full share of the work after so long, and begins with this
#: share: every distributor sees it idle at the same moment.
SLOW_START_S: Final = 10.0
SLOW_START_SHARE: Final = 0.2
#: No estimate is longer, whatever a beat claims: thirty years.
LONGEST_MS: Final = 1e12


def finish_ms(
    demand: Demand, candidate: Candidate, now_s: float, cached_tokens: float = 0.0
) -> float:
    """When it would have finished, in milliseconds from ``now_s``.

    ``cached_tokens`` of the prompt are in its memory already. Smaller is better, and it is no
    promise: failures lengthen it although they take no time.
    """
    # One token is always computed: the logits of a prompt's last are not kept.
    reading = max(demand.prompt_tokens - cached_tokens, 1.0)
    work_ms = 1000.0 * (
        reading / (candidate.prefill_tps or ASSUMED_PREFILL_TPS)
        + demand.answer_tokens / (candidate.decode_tps or ASSUMED_DECODE_TPS)
    )
    busy = candidate.running + candidate.unseen
    if busy:
        load = busy / (candidate.slots * candidate.share)
        work_ms *= 1.0 + BATCH_SLOWDOWN * load
    wait_s = candidate.free_at_s - now_s
    if wait_s > 0.0:
        work_ms += 1000.0 * wait_s
    work_ms += candidate.rtt_ms + candidate.cold_ms
    return min(work_ms * (1.0 + candidate.failures), LONGEST_MS)


def reading_s(demand: Demand, candidate: Candidate, cached_tokens: float = 0.0) -> float:
    """How long it reads the prompt when it has nothing else to do, in seconds."""
    reading = max(demand.prompt_tokens - cached_tokens, 1.0)
    return reading / (candidate.prefill_tps or ASSUMED_PREFILL_TPS)


def share_at(age_s: float) -> float:
    """The share of its place that a node has taken ``age_s`` after it came or recovered."""
    return min(1.0, max(SLOW_START_SHARE, age_s / SLOW_START_S))
