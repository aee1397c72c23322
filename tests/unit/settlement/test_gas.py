"""What the vault costs, with ceilings: gas follows the forks, so equality would not last."""

from __future__ import annotations

import pytest
from tests.unit.settlement.labs import DAY_S, NODE, RELAYER, Lab, Tree

from starai.settlement.rollup.ground import DELAY_S, address_of, checksummed

POST_MAX, CLAIM_MAX, RELAYED_MAX = 60_000, 70_000, 35_000
RELAYED = 50
USD = 10**6
PAYEES = [address_of(NODE), *(n.to_bytes(20, "big") for n in range(300, 300 + RELAYED))]


def costs(lab: Lab, num_payees: int) -> dict[str, list[int]]:
    """Gas of posts, and of claims alone and relayed, with a tree of so many leaves.

    The first of each writes storage that was empty; the later ones are the steady state.
    """
    trees = [
        Tree(n, dict.fromkeys(PAYEES, n * USD), padding=num_payees - len(PAYEES)) for n in (1, 2, 3)
    ]
    found: dict[str, list[int]] = {"post": [], "claim": [], "relayed": []}
    vault = lab.staged.vault.functions
    for tree in trees:
        found["post"].append(lab.post(tree)["gasUsed"])
        lab.travel(max(DELAY_S, DAY_S))
        own, *others = (tree.claim(at) for at in PAYEES)
        alone = vault.claim(checksummed(own.account), own.units, list(own.proof))
        found["claim"].append(lab.send(NODE, alone)["gasUsed"])
        many = [(checksummed(one.account), one.units, list(one.proof)) for one in others]
        found["relayed"].append(lab.send(RELAYER, vault.claim_many(many))["gasUsed"] // RELAYED)
    return found


@pytest.mark.parametrize("num_payees", [1000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_costs_stay_below_their_ceilings(lab: Lab, num_payees: int) -> None:
    """A post costs the same whatever the number of payees; claims grow with the proof only."""
    found = costs(lab, num_payees)
    assert max(found["post"][2:]) <= POST_MAX
    assert max(found["claim"][1:]) <= CLAIM_MAX
    assert max(found["relayed"][1:]) <= RELAYED_MAX


def test_anvil_counts_the_same_gas(lab: Lab, anvil: Lab) -> None:
    """Two independent machines agree on the gas of each call, to the unit."""
    with anvil.undone():
        assert costs(lab, 1000) == costs(anvil, 1000)
