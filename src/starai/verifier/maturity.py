"""Whether money matured when it should: not before its time, and not a day after it.

Time is that of blocks. What a node earned in a block is ripe ``maturity_ms`` after the block was
closed.
"""

from __future__ import annotations

from collections import defaultdict, deque
from typing import Final

from starai.verifier.books import Transfer
from starai.verifier.reading import Findings

_DAY_MS: Final = 86_400_000
_PENDING: Final = "node.pending"


class _Ripening:
    """What each node had earned by a time that only goes forward."""

    def __init__(self) -> None:
        self.by_node: defaultdict[bytes, int] = defaultdict(int)
        self._waiting: deque[tuple[int, dict[bytes, int]]] = deque()

    def add(self, closed_ms: int, earned: dict[bytes, int]) -> None:
        self._waiting.append((closed_ms, earned))

    def advance(self, until_ms: int) -> None:
        while self._waiting and self._waiting[0][0] <= until_ms:
            for node, nano in self._waiting.popleft()[1].items():
                self.by_node[node] += nano


class Maturity:
    """What nodes earned, when, and how much of it matured."""

    def __init__(self, findings: Findings) -> None:
        """Start with nothing earned."""
        self._findings = findings
        self._ripe = _Ripening()
        self._overdue = _Ripening()
        self._gone: defaultdict[bytes, int] = defaultdict(int)
        self._matured: defaultdict[bytes, int] = defaultdict(int)
        self._earned: defaultdict[bytes, int] = defaultdict(int)

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
        for node, nano in self._overdue.by_node.items():
            if nano > self._matured[node] + self._gone[node]:
                self._findings.complain(f"money of node {node.hex()} does not mature")
