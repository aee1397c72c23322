"""Claims: against which root, for whom, how much, and everything that must not be paid."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.settlement.labs import (
    CUSTOMER,
    DEPOSIT,
    GUARDIAN,
    NODE,
    OTHER,
    OWNER,
    POSTER,
    RELAYER,
    Lab,
    Tree,
    artefact,
)

from starai.settlement.leaves import LeafKind
from starai.settlement.rollup.ground import DELAY_S, address_of, checksummed
from starai.settlement.tree import keccak256

NODE_AT, OTHER_AT, CUSTOMER_AT = address_of(NODE), address_of(OTHER), address_of(CUSTOMER)
USD = 10**6


def claim(lab: Lab, at: bytes, units: int, proof: list[bytes]) -> Any:
    return lab.staged.vault.functions.claim(checksummed(at), units, proof)


def activated(lab: Lab, tree: Tree) -> Tree:
    lab.post(tree)
    lab.travel(DELAY_S)
    return tree


def test_anyone_may_ask_and_the_payee_is_paid(lab: Lab) -> None:
    """A claim pays what the active root says, to whom it says, whoever sends it."""
    tree = activated(lab, Tree(1, {NODE_AT: 5 * USD, OTHER_AT: 7 * USD}))
    lab.send(RELAYER, claim(lab, NODE_AT, 5 * USD, tree.proof(NODE_AT)))
    assert (lab.staged.balance(NODE_AT), lab.staged.balance(address_of(RELAYER))) == (5 * USD, 0)
    assert lab.staged.chain(NODE).claimed(NODE_AT) == 5 * USD
    assert lab.staged.chain(NODE).funds().paid == 5 * USD


def test_a_claim_is_paid_once(lab: Lab) -> None:
    """The same claim again is refused; a later root pays only what it adds."""
    tree = activated(lab, Tree(1, {NODE_AT: 5 * USD}))
    call = claim(lab, NODE_AT, 5 * USD, tree.proof(NODE_AT))
    lab.send(NODE, call)
    assert "nothing new" in lab.refusal(NODE, call)
    later = activated(lab, Tree(2, {NODE_AT: 6 * USD}))
    lab.send(NODE, claim(lab, NODE_AT, 6 * USD, later.proof(NODE_AT)))
    assert lab.staged.balance(NODE_AT) == 6 * USD


def test_the_old_root_is_claimable_during_the_delay(lab: Lab) -> None:
    """While a root waits, claims hold against the one before it and not against the new one."""
    old = activated(lab, Tree(1, {NODE_AT: 5 * USD, OTHER_AT: USD}))
    new = Tree(2, {NODE_AT: 9 * USD, OTHER_AT: USD})
    lab.post(new)
    early = claim(lab, NODE_AT, 9 * USD, new.proof(NODE_AT))
    stale = claim(lab, OTHER_AT, USD, old.proof(OTHER_AT))
    assert "claim: proof" in lab.refusal(NODE, early)
    lab.send(NODE, claim(lab, NODE_AT, 5 * USD, old.proof(NODE_AT)))
    lab.travel(DELAY_S)
    assert "claim: proof" in lab.refusal(OTHER, stale)
    lab.send(NODE, early)
    assert lab.staged.balance(NODE_AT) == 9 * USD


def test_what_is_not_in_the_tree_is_not_paid(lab: Lab) -> None:
    """An inflated amount, another's proof, a broken proof, a customer's leaf: all refused."""
    tree = activated(lab, Tree(1, {NODE_AT: 5 * USD, OTHER_AT: 7 * USD}))
    mine, others = tree.proof(NODE_AT), tree.proof(OTHER_AT)
    spent = tree.proof(CUSTOMER_AT, LeafKind.SPENT)
    for at, units, proof in (
        (NODE_AT, 6 * USD, mine),
        (NODE_AT, 5 * USD, others),
        (OTHER_AT, 5 * USD, mine),
        (NODE_AT, 5 * USD, mine[:-1]),
        (NODE_AT, 5 * USD, [*mine, bytes(32)]),
        (NODE_AT, 5 * USD, []),
        (NODE_AT, 5 * USD, [bytes(32), *mine[1:]]),
        (CUSTOMER_AT, tree.units(CUSTOMER_AT, LeafKind.SPENT), spent),
    ):
        assert "claim: proof" in lab.refusal(NODE, claim(lab, at, units, proof))


def test_an_inner_node_is_no_leaf(lab: Lab) -> None:
    """A root made so that 64 bytes of two hashes would be a leaf pays nobody: leaves have 96."""
    tree = activated(lab, Tree(1, {NODE_AT: 5 * USD, OTHER_AT: 7 * USD}))
    leaf = tree.leaves[LeafKind.EARNED, NODE_AT].hash()
    sibling, *rest = tree.proof(NODE_AT)
    inner = keccak256(min(leaf, sibling) + max(leaf, sibling))
    for units in (int.from_bytes(inner, "big"), int.from_bytes(leaf, "big")):
        for proof in (rest, [leaf, *rest], [sibling, *rest]):
            assert "claim: proof" in lab.refusal(NODE, claim(lab, NODE_AT, units, proof))


def test_a_proof_longer_than_32_is_refused(lab: Lab) -> None:
    """A proof of 32 hashes is read, one of 33 is not even that."""
    activated(lab, Tree(1, {NODE_AT: 5 * USD}))
    assert "claim: proof" in lab.refusal(NODE, claim(lab, NODE_AT, 5 * USD, [bytes(32)] * 32))
    long = lab.refusal(NODE, claim(lab, NODE_AT, 5 * USD, [bytes(32)] * 33))
    assert long
    assert "claim: proof" not in long


def test_no_more_is_paid_than_was_posted_as_earned(lab: Lab) -> None:
    """A root whose leaves add up to more than its total pays up to the total."""
    tree = Tree(1, {NODE_AT: 5 * USD, OTHER_AT: 7 * USD})
    tree.post = tree.post._replace(earned=8 * USD)
    activated(lab, tree)
    lab.send(NODE, claim(lab, NODE_AT, 5 * USD, tree.proof(NODE_AT)))
    beyond = claim(lab, OTHER_AT, 7 * USD, tree.proof(OTHER_AT))
    assert "more than was earned" in lab.refusal(OTHER, beyond)


def test_claims_can_be_paused(lab: Lab) -> None:
    """While claims are paused nothing is paid, alone or together."""
    tree = activated(lab, Tree(1, {NODE_AT: 5 * USD}))
    lab.send(GUARDIAN, lab.staged.vault.functions.pause(2))
    many = lab.staged.vault.functions.claim_many(rows([tree], [NODE_AT]))
    for call in (claim(lab, NODE_AT, 5 * USD, tree.proof(NODE_AT)), many):
        assert "claim: paused" in lab.refusal(NODE, call)


def test_a_payee_chooses_where_its_money_goes(lab: Lab) -> None:
    """After set_payout claims go there, until it is set back; what was claimed stays known."""
    tree = activated(lab, Tree(1, {NODE_AT: 5 * USD}))
    vault = lab.staged.vault.functions
    lab.send(NODE, vault.set_payout(checksummed(OTHER_AT)))
    lab.send(RELAYER, claim(lab, NODE_AT, 5 * USD, tree.proof(NODE_AT)))
    assert (lab.staged.balance(OTHER_AT), lab.staged.balance(NODE_AT)) == (5 * USD, 0)
    lab.send(NODE, vault.set_payout("0x" + "00" * 20))
    assert vault.payee(checksummed(NODE_AT)).call() == [5 * USD, checksummed(NODE_AT)]


def rows(trees: list[Tree], addresses: list[bytes]) -> list[Any]:
    (tree,) = trees
    return [(checksummed(at), tree.units(at), tree.proof(at)) for at in addresses]


def test_many_are_paid_at_once(lab: Lab) -> None:
    """One transaction pays all who have something new and passes over who has not."""
    payees = {n.to_bytes(20, "big"): n * USD for n in range(100, 110)}
    tree = activated(lab, Tree(1, payees))
    first, *others = payees
    lab.send(NODE, claim(lab, first, payees[first], tree.proof(first)))
    lab.send(RELAYER, lab.staged.vault.functions.claim_many(rows([tree], [*payees, others[0]])))
    assert [lab.staged.balance(at) for at in payees] == [*payees.values()]
    assert lab.staged.chain(NODE).funds().paid == sum(payees.values())
    assert len(lab.events("Claimed")) == len(payees)


def test_a_bad_proof_spoils_a_batch_and_65_are_too_many(lab: Lab) -> None:
    """Whoever relays must bring proofs; the contract reads 64 claims and no more."""
    tree = activated(lab, Tree(1, {NODE_AT: 5 * USD, OTHER_AT: USD}))
    good = rows([tree], [NODE_AT])
    bad = [(checksummed(OTHER_AT), 2 * USD, tree.proof(OTHER_AT))]
    many = lab.staged.vault.functions.claim_many
    assert "claim: proof" in lab.refusal(RELAYER, many([*good, *bad]))
    assert lab.refusal(RELAYER, many(good * 64)) == ""
    assert lab.refusal(RELAYER, many(good * 65))


def rude(lab: Lab) -> Any:
    """A vault over a token that misbehaves, with a deposit and an active root."""
    staged = lab.stage(token=artefact("rude_token"))
    staged.deposit(CUSTOMER, DEPOSIT)
    tree = Tree(1, {NODE_AT: 5 * USD, OTHER_AT: 7 * USD})
    staged.ground.call(CUSTOMER, staged.token.functions.behave(False, 0, "0x" + "00" * 20))
    staged.ground.call(POSTER, staged.vault.functions.post(*tree.post))
    lab.travel(DELAY_S)
    return staged, tree


def test_one_payee_that_cannot_be_paid_stops_nobody_else(lab: Lab) -> None:
    """Whom the token refuses is passed over, keeps its claim, and can be paid later."""
    staged, tree = rude(lab)
    call = staged.ground.call
    call(OWNER, staged.token.functions.behave(False, 0, checksummed(NODE_AT)))
    alone = staged.vault.functions.claim(checksummed(NODE_AT), 5 * USD, tree.proof(NODE_AT))
    assert "claim: transfer" in lab.refusal(NODE, alone)
    call(RELAYER, staged.vault.functions.claim_many(rows([tree], [NODE_AT, OTHER_AT])))
    assert (staged.balance(NODE_AT), staged.balance(OTHER_AT)) == (0, 7 * USD)
    assert (staged.chain(NODE).claimed(NODE_AT), staged.chain(NODE).funds().paid) == (0, 7 * USD)
    call(OWNER, staged.token.functions.behave(False, 0, "0x" + "00" * 20))
    call(NODE, alone)
    assert staged.balance(NODE_AT) == 5 * USD


def test_a_token_that_says_false_has_not_paid(lab: Lab) -> None:
    """A transfer that returns false is no payment: nothing counts as claimed."""
    staged, tree = rude(lab)
    staged.ground.call(OWNER, staged.token.functions.behave(True, 0, "0x" + "00" * 20))
    alone = staged.vault.functions.claim(checksummed(NODE_AT), 5 * USD, tree.proof(NODE_AT))
    assert "claim: transfer" in lab.refusal(NODE, alone)
    staged.ground.call(RELAYER, staged.vault.functions.claim_many(rows([tree], [NODE_AT])))
    assert staged.chain(NODE).claimed(NODE_AT) == 0


def test_a_token_that_calls_back_gets_nothing_twice(lab: Lab) -> None:
    """A claim inside the transfer of a claim is refused, so the outer one is paid alone."""
    staged, tree = rude(lab)
    again = staged.token.functions.call_back(checksummed(OTHER_AT), 7 * USD, tree.proof(OTHER_AT))
    staged.ground.call(OWNER, again)
    alone = staged.vault.functions.claim(checksummed(NODE_AT), 5 * USD, tree.proof(NODE_AT))
    assert "claim: transfer" in lab.refusal(NODE, alone)
    staged.ground.call(RELAYER, staged.vault.functions.claim_many(rows([tree], [NODE_AT])))
    assert staged.chain(NODE).funds().paid == 0


def test_a_token_that_returns_nothing_works(lab: Lab) -> None:
    """Old tokens return nothing; deposits and claims work with them."""
    staged = lab.stage(token=artefact("silent_token"))
    staged.deposit(CUSTOMER, DEPOSIT)
    tree = Tree(1, {NODE_AT: 5 * USD})
    staged.ground.call(POSTER, staged.vault.functions.post(*tree.post))
    lab.travel(DELAY_S)
    staged.ground.call(
        NODE, staged.vault.functions.claim(checksummed(NODE_AT), 5 * USD, tree.proof(NODE_AT))
    )
    assert staged.balance(NODE_AT) == 5 * USD


def test_a_token_that_keeps_a_fee_is_refused(lab: Lab) -> None:
    """What arrives must be what was sent, or the books would say more than is there."""
    staged = lab.stage(token=artefact("rude_token"))
    staged.ground.call(CUSTOMER, staged.token.functions.mint(checksummed(CUSTOMER_AT), USD))
    staged.ground.call(OWNER, staged.token.functions.behave(False, 1, "0x" + "00" * 20))
    assert "keeps a fee" in lab.refusal(CUSTOMER, staged.vault.functions.deposit(USD))
    staged.ground.call(OWNER, staged.token.functions.behave(True, 0, "0x" + "00" * 20))
    assert "deposit: transfer" in lab.refusal(CUSTOMER, staged.vault.functions.deposit(USD))


@pytest.mark.parametrize("units", [0, 1 << 96])
def test_a_deposit_of_nothing_or_of_too_much_is_refused(lab: Lab, units: int) -> None:
    """Amounts are positive and fit 96 bits."""
    assert "deposit: " in lab.refusal(CUSTOMER, lab.staged.vault.functions.deposit(units))
