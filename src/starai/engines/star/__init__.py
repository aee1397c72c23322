"""Star Attention: long contexts computed in blocks, on one machine or on several hosts.

After Acharya, Jia, Ginsburg: Star Attention: Efficient LLM Inference over Long Sequences (arXiv
2411.17116). `planning`, `splitting`, `phase_two` and `eligibility` are pure; the rest needs torch
and is imported when it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from starai.engines.star.eligibility import refuse_recurrent
from starai.engines.star.phase_two import Link, PhaseTwo, choose_phase_two
from starai.engines.star.planning import StarPlan, plan_blocks, plan_if_worth
from starai.engines.star.splitting import split_prompt

__all__ = [
    "Link",
    "PhaseTwo",
    "StarPlan",
    "choose_phase_two",
    "plan_blocks",
    "plan_if_worth",
    "refuse_recurrent",
    "split_prompt",
]

_NEEDS_TORCH = {
    "StarSession": "starai.engines.star.session",
    "ProcessHosts": "starai.engines.star.hosts",
    "prefill": "starai.engines.star.blockwise",
    "shape_of": "starai.engines.star.blockwise",
}


def __getattr__(name: str) -> Any:
    """The parts that need torch, by name."""
    if name not in _NEEDS_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_NEEDS_TORCH[name]), name)
