"""Customers take money back: not before what was in work is counted, never what was spent."""

from __future__ import annotations

from typing import Any

from tests.unit.settlement.labs import CUSTOMER, DAY_S, DEPOSIT, GUARDIAN, NODE, OTHER, Lab, Tree

from starai.settlement.leaves import Leaf, LeafKind, Owner, Placed, advance, leaves_of, tree_of
from starai.settlement.rollup.ground import DELAY_S, address_of, checksummed

NODE_AT, CUSTOMER_AT = address_of(NODE), address_of(CUSTOMER)
USD = 10**6


def withdraw(lab: Lab, units: int, spent: int, proof: list[bytes]) -> Any:
    return lab.staged.vault.functions.withdraw(units, spent, proof)


def day(lab: Lab, epoch: int, spent: int) -> Tree:
    """A day after which the customer has spent so much ever; its root is active."""
    tree = Tree(epoch, {NODE_AT: spent}, {CUSTOMER_AT: spent})
    lab.post(tree)
    lab.travel(DAY_S)
    return tree


def test_a_withdrawal_waits_until_work_in_flight_is_counted(lab: Lab) -> None:
    """Two roots after the request; what was spent in between is kept back."""
    tree = day(lab, 1, 10 * USD)
    lab.send(CUSTOMER, lab.staged.vault.functions.request_withdrawal(DEPOSIT - 10 * USD))

    def taking(units: int, tree: Tree) -> Any:
        spent = tree.units(CUSTOMER_AT, LeafKind.SPENT)
        return withdraw(lab, units, spent, tree.proof(CUSTOMER_AT, LeafKind.SPENT))

    assert "too early" in lab.refusal(CUSTOMER, taking(DEPOSIT - 10 * USD, tree))
    tree = day(lab, 2, 12 * USD)
    assert "too early" in lab.refusal(CUSTOMER, taking(DEPOSIT - 12 * USD, tree))
    tree = day(lab, 3, 15 * USD)
    assert "withdraw: spent" in lab.refusal(CUSTOMER, taking(DEPOSIT - 10 * USD, tree))
    lab.send(CUSTOMER, taking(DEPOSIT - 15 * USD, tree))
    assert lab.staged.balance(CUSTOMER_AT) == DEPOSIT - 15 * USD
    assert lab.staged.chain(CUSTOMER).funds().deposited == 15 * USD
    claim = lab.staged.vault.functions.claim(checksummed(NODE_AT), 15 * USD, tree.proof(NODE_AT))
    lab.send(NODE, claim)
    assert lab.staged.balance(lab.staged.address) == 0


def test_who_spent_nothing_takes_all_of_it_back(lab: Lab) -> None:
    """A customer that never spent proves it by its leaf of nothing, while others spend."""
    other = address_of(OTHER)
    lab.staged.deposit(OTHER, DEPOSIT)
    lab.send(CUSTOMER, lab.staged.vault.functions.request_withdrawal(DEPOSIT))
    owners = {Owner(LeafKind.EARNED, b"n" * 32): NODE_AT}
    for number, at in enumerate((CUSTOMER_AT, other), 1):
        owners[Owner(LeafKind.SPENT, number.to_bytes(8, "big"))] = at
    node, _, spender = owners
    sums: dict[Placed, int] = {}
    for epoch in (1, 2):
        sums |= advance(sums, {node: 10**9, spender: 10**9}, owners)
        leaves = leaves_of(sums)
        tree = tree_of(leaves)
        posted = Tree(epoch, {NODE_AT: USD * epoch}, {other: USD * epoch})
        lab.post(posted, root=tree.root)
        lab.travel(DAY_S)
    mine = next(leaf for leaf in leaves if leaf.address == CUSTOMER_AT)
    assert mine == Leaf(LeafKind.SPENT, CUSTOMER_AT, 0)
    lab.send(CUSTOMER, withdraw(lab, DEPOSIT, 0, list(tree.proof(mine.hash()))))
    assert lab.staged.balance(CUSTOMER_AT) == DEPOSIT
    assert "withdraw: amount" in lab.refusal(OTHER, withdraw(lab, 1, 0, tree.proof(mine.hash())))


def test_only_what_was_asked_for_is_taken_and_once(lab: Lab) -> None:
    """More than was asked for is refused, the same again too, and so is anybody else's."""
    lab.send(CUSTOMER, lab.staged.vault.functions.request_withdrawal(5 * USD))
    for epoch in (1, 2):
        tree = day(lab, epoch, USD * epoch)
    proof = tree.proof(CUSTOMER_AT, LeafKind.SPENT)
    assert "withdraw: amount" in lab.refusal(CUSTOMER, withdraw(lab, 6 * USD, 2 * USD, proof))
    assert "withdraw: amount" in lab.refusal(OTHER, withdraw(lab, USD, 2 * USD, proof))
    lab.send(CUSTOMER, withdraw(lab, 5 * USD, 2 * USD, proof))
    assert "withdraw: amount" in lab.refusal(CUSTOMER, withdraw(lab, USD, 2 * USD, proof))
    too_much = lab.staged.vault.functions.request_withdrawal(DEPOSIT)
    assert "request: amount" in lab.refusal(CUSTOMER, too_much)


def test_nobody_denies_what_it_spent(lab: Lab) -> None:
    """Without a proof, with a smaller amount or with the earner's leaf nothing is paid."""
    lab.send(CUSTOMER, lab.staged.vault.functions.request_withdrawal(5 * USD))
    for epoch in (1, 2):
        tree = day(lab, epoch, USD * epoch)
    proof = tree.proof(CUSTOMER_AT, LeafKind.SPENT)
    for spent, shown in ((0, []), (0, proof), (USD, proof), (2 * USD, tree.proof(NODE_AT))):
        assert "withdraw: proof" in lab.refusal(CUSTOMER, withdraw(lab, USD, spent, shown))


def test_withdrawals_stop_with_claims(lab: Lab) -> None:
    """While all that pays is paused customers wait, too."""
    lab.send(CUSTOMER, lab.staged.vault.functions.request_withdrawal(5 * USD))
    for epoch in (1, 2):
        tree = day(lab, epoch, USD * epoch)
    lab.send(GUARDIAN, lab.staged.vault.functions.pause(2))
    call = withdraw(lab, USD, 2 * USD, tree.proof(CUSTOMER_AT, LeafKind.SPENT))
    assert "withdraw: paused" in lab.refusal(CUSTOMER, call)


def test_money_comes_back_if_nothing_is_ever_posted(lab: Lab) -> None:
    """A network that dies before its first day keeps nobody's deposit: after 30 days it is free."""
    lab.send(CUSTOMER, lab.staged.vault.functions.request_withdrawal(DEPOSIT))
    lab.travel(29 * DAY_S)
    call = withdraw(lab, DEPOSIT, 0, [])
    assert "too early" in lab.refusal(CUSTOMER, call)
    lab.travel(DAY_S)
    lab.send(CUSTOMER, call)
    assert lab.staged.balance(CUSTOMER_AT) == DEPOSIT


def test_money_comes_back_if_posting_ends(lab: Lab) -> None:
    """A network that dies later pays back against its last root."""
    tree = day(lab, 1, 10 * USD)
    lab.send(CUSTOMER, lab.staged.vault.functions.request_withdrawal(DEPOSIT))
    lab.travel(30 * DAY_S)
    proof = tree.proof(CUSTOMER_AT, LeafKind.SPENT)
    assert "withdraw: spent" in lab.refusal(CUSTOMER, withdraw(lab, DEPOSIT, 10 * USD, proof))
    lab.send(CUSTOMER, withdraw(lab, DEPOSIT - 10 * USD, 10 * USD, proof))


def test_a_root_that_waits_does_not_stop_withdrawals_but_is_covered(lab: Lab) -> None:
    """What a waiting root says was spent stays in the vault, whoever spent it."""
    lab.send(CUSTOMER, lab.staged.vault.functions.request_withdrawal(DEPOSIT))
    for epoch in (1, 2):
        tree = day(lab, epoch, USD * epoch)
    lab.post(Tree(3, {NODE_AT: 9 * USD}, {CUSTOMER_AT: 9 * USD}))
    proof = tree.proof(CUSTOMER_AT, LeafKind.SPENT)
    beyond = withdraw(lab, DEPOSIT - 2 * USD, 2 * USD, proof)
    assert "owed to nodes" in lab.refusal(CUSTOMER, beyond)
    lab.send(CUSTOMER, withdraw(lab, DEPOSIT - 9 * USD, 2 * USD, proof))
    assert DELAY_S < DAY_S
