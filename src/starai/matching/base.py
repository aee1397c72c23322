"""The kernel's values: what is asked for, and who could do it."""

from __future__ import annotations

from typing import Final

import msgspec

#: Tokens that are expected of an answer of unknown length: ``max_tokens`` is a bound that most
#: answers stay far below (the mean of the Azure 2023 conversations is 211, of Mooncake's 343).
TYPICAL_ANSWER_TOKENS: Final = 256


class Demand(msgspec.Struct, frozen=True):
    """What a task needs: ``max_tokens`` bounds the answer that is still to come.

    Empty ``quantisations`` and ``regions`` admit all. A region ``eu`` admits ``eu-west`` too.
    ``trust`` is the least class of trust that will do.
    """

    prompt_tokens: int
    max_tokens: int
    modality: str = "text"
    quantisations: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    trust: int = 0

    @property
    def answer_tokens(self) -> int:
        """How long the answer is expected to be."""
        return min(self.max_tokens, TYPICAL_ANSWER_TOKENS)


class Candidate(msgspec.Struct, frozen=True, gc=False):
    """A node as matching sees it. Speeds are tokens per second (0: not measured yet).

    ``running`` counts its tasks, ``slots`` how many it runs at once, ``failures`` its recent
    failures (decayed, not whole), ``rtt_ms`` the round trip to it, ``cold_ms`` what it takes to
    load the model. ``unseen`` counts tasks that it probably has besides: each of ours since its
    last beat speaks for one of each other distributor's. ``free_at_s`` is when it will have read
    the prompts that it was given, on the caller's monotonic clock; ``share`` (up to 1) how much of
    its place in the network a new or recovered node has taken
    (`starai.matching.finish_time.share_at`). A ``resting`` one is asked only when there is no
    other; a ``banned`` one never.
    """

    party: str
    slots: int
    running: int
    context_length: int
    prefill_tps: float = 0.0
    decode_tps: float = 0.0
    rtt_ms: float = 0.0
    failures: float = 0.0
    cold_ms: float = 0.0
    unseen: int = 0
    free_at_s: float = 0.0
    share: float = 1.0
    quantisation: str = ""
    modality: str = "text"
    region: str = ""
    trust: int = 0
    draining: bool = False
    paused: bool = False
    resting: bool = False
    banned: bool = False
