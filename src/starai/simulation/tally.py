"""Counts what happened in a simulation, minute by minute; it judges nothing."""

from __future__ import annotations

from array import array
from collections import Counter
from typing import Final

from starai.exchange.base import AttemptFailed
from starai.exchange.standing.ladder import Rung
from starai.protocol.identity import PartyId

MINUTE_S: Final = 60.0


class Tally:
    """Numbers of one run."""

    def __init__(self, num_nodes: int, num_cities: int) -> None:
        """Nothing has happened."""
        self.ttft_s = array("d")
        self.finish_s = array("d")
        self.gaps_s = array("d")
        self.num_attempts = 0
        #: How attempts ended; empty: with the answer's end.
        self.endings: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()
        self.steps: Counter[str] = Counter()
        self.moves: Counter[str] = Counter()
        #: What happened in which minute.
        self.minutes: Counter[tuple[str, int]] = Counter()
        self.node_tokens = array("l", [0]) * num_nodes
        #: For each city of users: answers, and the sum of times to the first token.
        self.city_answers = array("l", [0]) * num_cities
        self.city_ttft_s = array("d", [0.0]) * num_cities
        self.num_broken = 0
        #: Nodes that were there, at each full half minute.
        self.up: list[tuple[float, int]] = []

    def happened(self, what: str, now_s: float, number: int = 1) -> None:
        """Something of the kind ``what`` happened."""
        self.minutes[what, int(now_s // MINUTE_S)] += number

    def moved(self, how: str, now_s: float) -> None:
        """A node came, or left in some way."""
        self.moves[how] += 1
        self.happened(how, now_s)

    def ended(self, failure: AttemptFailed | None, now_s: float) -> None:
        """An attempt ended."""
        kind = "" if failure is None else failure.kind.value
        if failure is not None and failure.refusal:
            kind = f"{kind}: {failure.refusal}"
        self.endings[kind] += 1
        if kind:
            self.happened(f"attempt {kind}", now_s)

    def stepped(self, party: PartyId, rung: Rung, why: str) -> None:
        """A node was put on another rung of the ladder."""
        self.steps[rung.value] += 1

    def served(self, node: int, num_tokens: int) -> None:
        """Tokens of a node were accepted."""
        self.node_tokens[node] += num_tokens

    def answered(self, city: int, ttft_s: float, finish_s: float, offers: int) -> None:
        """An answer has come whole, over so many attempts."""
        self.ttft_s.append(ttft_s)
        self.finish_s.append(finish_s)
        self.city_answers[city] += 1
        self.city_ttft_s[city] += ttft_s
        self.num_broken += offers > 1
