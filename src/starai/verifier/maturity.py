"""Whether money matured when it should: not before its time, and not a day after it.

Time is that of blocks. What a node earned in a block is ripe ``maturity_ms`` after the block was
closed.
"""

from __future__ import annotations

from collections import defaultdict, deque
from itertools import chain
from typing import Final

import msgspec

from starai.verifier.books import Transfer
from starai.verifier.reading import Findings

_DAY_MS: Final = 86_400_000
_PENDING: Final = "node.pending"


class MaturityKept(msgspec.Struct, frozen=True, kw_only=True):
    """What nodes earned and had, between two checks.

    ``nodes`` are keys; in their order, what of each node's money is ripe, is overdue, was taken
    back, and matured. ``waiting`` are a block's time and what each node, named by its place in
    ``nodes``, earned in it; the last ``num_unripe`` of them are not ripe, the last ``num_due`` not
    overdue.
    """

    nodes: list[bytes] = []
    ripe: list[int] = []
    overdue: list[int] = []
    gone: list[int] = []
    matured: list[int] = []
    waiting: list[tuple[int, list[tuple[int, int]]]] = []
    num_unripe: int = 0
    num_due: int = 0


class _Ripening:
    """What each node had earned by a time that only goes forward."""

    def __init__(
        self, by_node: dict[bytes, int], waiting: list[tuple[int, dict[bytes, int]]]
    ) -> None:
        self.by_node = defaultdict(int, by_node)
        self.waiting = deque(waiting)

    def add(self, closed_ms: int, earned: dict[bytes, int]) -> None:
        self.waiting.append((closed_ms, earned))

    def advance(self, until_ms: int) -> None:
        while self.waiting and self.waiting[0][0] <= until_ms:
            for node, nano in self.waiting.popleft()[1].items():
                self.by_node[node] += nano


class Maturity:
    """What nodes earned, when, and how much of it matured."""

    def __init__(self, findings: Findings, kept: MaturityKept) -> None:
        """Start where an earlier check ended.

        Raises:
            IndexError, ValueError: what is kept does not fit together.
        """
        self._findings = findings
        nodes = kept.nodes
        waiting = [
            (closed_ms, {nodes[place]: nano for place, nano in earned})
            for closed_ms, earned in kept.waiting
        ]
        ripe, overdue, gone, matured = (
            dict(zip(nodes, sums, strict=True))
            for sums in (kept.ripe, kept.overdue, kept.gone, kept.matured)
        )
        self._ripe = _Ripening(ripe, waiting[len(waiting) - kept.num_unripe :])
        self._overdue = _Ripening(overdue, waiting[len(waiting) - kept.num_due :])
        self._gone = defaultdict(int, gone)
        self._matured = defaultdict(int, matured)
        self._earned: defaultdict[bytes, int] = defaultdict(int)

    def kept(self) -> MaturityKept:
        """What the next check begins with; after `end_day`."""
        sums = (self._ripe.by_node, self._overdue.by_node, self._gone, self._matured)
        # Both wait for the same blocks, in the same order, so the shorter one ends the longer.
        waiting = max(self._ripe.waiting, self._overdue.waiting, key=len)
        nodes = sorted(set(chain(*sums, *(earned for _, earned in waiting))))
        place = {node: number for number, node in enumerate(nodes)}
        ripe, overdue, gone, matured = ([one.get(node, 0) for node in nodes] for one in sums)
        return MaturityKept(
            nodes=nodes,
            ripe=ripe,
            overdue=overdue,
            gone=gone,
            matured=matured,
            waiting=[
                (closed_ms, [(place[node], nano) for node, nano in earned.items()])
                for closed_ms, earned in waiting
            ],
            num_unripe=len(self._ripe.waiting),
            num_due=len(self._overdue.waiting),
        )

    def add(self, transfer: Transfer, closed_ms: int, maturity_ms: int) -> None:
        """Take the next transfer, of a block that was closed at ``closed_ms``."""
        if transfer.credit[0] == _PENDING:
            self._earned[transfer.credit[1]] += transfer.amount
        if transfer.debit[0] != _PENDING:
            return
        node = transfer.debit[1]
        if transfer.code != "mature":
            self._gone[node] += transfer.amount
            return
        self._matured[node] += transfer.amount
        self._ripe.advance(min(transfer.at_ms, closed_ms) - maturity_ms)
        if self._matured[node] > self._ripe.by_node[node]:
            self._findings.complain(f"money of node {node.hex()} matured too early")

    def end_block(self, closed_ms: int) -> None:
        """What was earned in the block begins to ripen."""
        if self._earned:
            earned = dict(self._earned)
            self._earned.clear()
            self._ripe.add(closed_ms, earned)
            self._overdue.add(closed_ms, earned)

    def end_day(self, closed_ms: int, maturity_ms: int) -> None:
        """Check that nothing is withheld: what was ripe a day ago has matured."""
        self._overdue.advance(closed_ms - maturity_ms - _DAY_MS)
        gone, matured = self._gone, self._matured
        for node in sorted(
            node
            for node, nano in self._overdue.by_node.items()
            if nano > matured.get(node, 0) + gone.get(node, 0)
        ):
            self._findings.complain(f"money of node {node.hex()} does not mature")
