"""Two sides' confirmations of many tasks, with faults of every class seeded among them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import cycle
from typing import NamedTuple, TypeAlias, TypeVar

import msgspec

from starai.core.randomness import SeededRandomness
from starai.ledger.reconciling import Standing
from starai.protocol.identity import Identity
from starai.protocol.records import TaskRecord, leaf_hash
from starai.protocol.registry import Confirm, Side
from starai.testing.money import priced
from starai.testing.records import (
    BLOCK_MS,
    DISTRIBUTOR,
    NODES,
    START_MS,
    STRANGER,
    confirm,
    record,
)

T = TypeVar("T")

#: Who says what of whom in which slot, whether forged, and whether of attempts spoken of before.
_Group: TypeAlias = tuple[Side, bytes, bytes, int, bool, bool]

#: Tasks of one slot of one node.
SLOT_TASKS = 1_000
_FAULTS = tuple(standing for standing in Standing if standing is not Standing.MATCHED)
_BY_PARTY = {one.raw: one for one in (*NODES, DISTRIBUTOR, STRANGER)}


class Seeded(NamedTuple):
    """What is said, in any order; what comes after the window; what each leaf must come to."""

    said: list[Confirm]
    late: list[Confirm]
    expected: dict[bytes, Standing]


class _Words:
    """Records to be confirmed, by who says them about whom in which slot, and whether well."""

    def __init__(self) -> None:
        self.groups: dict[_Group, list[TaskRecord]] = defaultdict(list)
        self.late: list[TaskRecord] = []
        self.expected: dict[bytes, Standing] = {}

    def says(
        self,
        side: Side,
        one: TaskRecord,
        standing: Standing,
        *,
        forged: bool = False,
        again: bool = False,
    ) -> None:
        self.expected[leaf_hash(one.canonical())] = standing
        key = (side, one.node, one.distributor, one.block(BLOCK_MS), forged, again)
        self.groups[key].append(one)

    def confirms(self) -> Iterator[Confirm]:
        for (side, node, distributor, _, forged, _), records in self.groups.items():
            signer: Identity = _BY_PARTY[node if side is Side.NODE else distributor]
            yield confirm(side, records, STRANGER if forged else signer)


def seed_faults(num_tasks: int, share: float, chance: SeededRandomness) -> Seeded:
    """Confirmations of ``num_tasks`` tasks, a ``share`` of them faulty, all classes alike."""
    words = _Words()
    faulty = set(_shuffled(range(num_tasks), chance)[: int(num_tasks * share)])
    faults = cycle(_FAULTS)
    for number in range(num_tasks):
        node = NODES[number % 2]
        slot = number // (2 * SLOT_TASKS)
        one = priced(record(number, node=node, closed_ms=START_MS + slot * BLOCK_MS))
        if number in faulty:
            _seed(words, one, next(faults))
        else:
            for side in Side:
                words.says(side, one, Standing.MATCHED)
    said = _shuffled(words.confirms(), chance)
    late = [confirm(Side.NODE, [one], _BY_PARTY[one.node]) for one in words.late]
    return Seeded(said, late, words.expected)


def _shuffled(values: Iterable[T], chance: SeededRandomness) -> list[T]:
    return sorted(values, key=lambda _: chance.fraction())


def _seed(words: _Words, one: TaskRecord, fault: Standing) -> None:
    """Have both sides say something of a task that comes to ``fault``."""
    swap = msgspec.structs.replace
    match fault:
        case Standing.NODE_ONLY:
            words.says(Side.NODE, one, fault)
        case Standing.DIST_ONLY:
            words.says(Side.DISTRIBUTOR, one, fault)
        case Standing.AMOUNT:
            more = priced(swap(one, answer_tokens=one.answer_tokens + 1))
            _contradict(words, one, more, fault)
        case Standing.CONTENT:
            _contradict(words, one, swap(one, answer_hash=b"x" * 32), fault)
        case Standing.PROOF_FAIL:
            _contradict(words, one, swap(one, proof_hash=b"x" * 32), fault)
        case Standing.WRONG_NODE:
            _contradict(words, swap(one, node=NODES[2].raw), one, fault)
        case Standing.DUP:
            for side in Side:
                words.says(side, one, Standing.MATCHED)
            words.says(Side.NODE, swap(one, answer_hash=b"x" * 32), fault, again=True)
        case Standing.LATE:
            words.says(Side.DISTRIBUTOR, one, Standing.DIST_ONLY)
            late = swap(one, answer_hash=b"x" * 32)
            words.late.append(late)
            words.expected[leaf_hash(late.canonical())] = fault
        case Standing.UNKNOWN:
            words.says(Side.NODE, swap(one, distributor=STRANGER.raw), fault)
        case _:
            words.says(Side.NODE, one, fault, forged=True)


def _contradict(
    words: _Words, distributors: TaskRecord, nodes: TaskRecord, fault: Standing
) -> None:
    words.says(Side.DISTRIBUTOR, distributors, fault)
    words.says(Side.NODE, nodes, fault)


def scores(
    expected: dict[bytes, Standing], found: dict[bytes, Standing]
) -> dict[Standing, tuple[int, float, float]]:
    """For each class: how many there are, precision and recall."""
    made = {}
    for standing in Standing:
        true = {leaf for leaf, is_ in expected.items() if is_ is standing}
        said = {leaf for leaf, is_ in found.items() if is_ is standing}
        hits = len(true & said)
        made[standing] = (
            len(true),
            hits / len(said) if said else float(not true),
            hits / len(true) if true else 1.0,
        )
    return made
