"""Relayed claims: who has no gas is paid all the same, and nobody twice."""

from __future__ import annotations

import pytest
from tests.unit.settlement.labs import RELAYER, Lab, Tree

from starai.core.errors import Unavailable
from starai.settlement.relaying import due, relay
from starai.settlement.rollup.ground import DELAY_S

USD = 10**6
PAYEES = {n.to_bytes(20, "big"): (n - 200) * USD for n in range(201, 213)}


def nothing() -> None:
    """No need to wait: blocks are made at once."""


def test_all_are_paid_in_as_few_transactions_as_fit(lab: Lab) -> None:
    """12 claims, 10 at a time, take two transactions; a second round finds nothing due."""
    tree = Tree(1, PAYEES)
    lab.post(tree)
    lab.travel(DELAY_S)
    chain = lab.staged.chain(RELAYER)
    claims = [tree.claim(at) for at in PAYEES]
    sent = [*relay(chain, due(chain, claims), nothing, at_once=10)]
    assert [one.claims for one in sent] == [10, 2]
    assert all(one.receipt.ok for one in sent)
    assert [lab.staged.balance(at) for at in PAYEES] == [*PAYEES.values()]
    assert [*due(chain, claims)] == []


def test_dust_is_left_until_it_is_worth_the_gas(lab: Lab) -> None:
    """Claims below the least amount wait; they are cumulative, so nothing is lost."""
    chain = lab.staged.chain(RELAYER)
    tree = Tree(1, PAYEES)
    claims = [tree.claim(at) for at in PAYEES]
    assert len([*due(chain, claims, 10 * USD)]) == len(PAYEES) - 9


def test_claims_against_a_root_that_is_not_active_are_not_sent(lab: Lab) -> None:
    """The vault is asked first: no gas is burnt for what it would refuse."""
    tree = Tree(1, PAYEES)
    lab.post(tree)
    chain = lab.staged.chain(RELAYER)
    nonce = chain.next_nonce()
    with pytest.raises(Unavailable, match="claim: proof"):
        [*relay(chain, [tree.claim(at) for at in PAYEES], nothing)]
    assert chain.next_nonce() == nonce


def test_a_transaction_that_is_not_mined_is_given_up(lab: Lab) -> None:
    """After so many looks the relayer stops; relaying again later does no harm."""
    tree = Tree(1, PAYEES)
    lab.post(tree)
    lab.travel(DELAY_S)
    chain = lab.staged.chain(RELAYER)
    claims = [tree.claim(at) for at in [*PAYEES][:2]]
    lab.hold_back(True)
    with pytest.raises(Unavailable, match="in no block"):
        [*relay(chain, claims, nothing, waits_max=3)]
    lab.hold_back(False)
    [*relay(chain, due(chain, claims), nothing)]
    assert [lab.staged.balance(one.account) for one in claims] == [one.units for one in claims]
