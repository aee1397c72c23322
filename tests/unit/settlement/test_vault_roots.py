"""The vault's roots: who may post what and when, what a thief of the key could do, the veto."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.settlement.labs import (
    CUSTOMER,
    DAY_S,
    DEPOSIT,
    GUARDIAN,
    NODE,
    OTHER,
    OWNER,
    POSTER,
    Lab,
    Tree,
    head_of,
)

from starai.core.errors import InvalidRequest
from starai.settlement.rollup.ground import DELAY_S, MAX_DAILY, address_of, checksummed

NODE_AT = address_of(NODE)
USD = 10**6


def standing(lab: Lab) -> Any:
    chain = lab.staged.chain(POSTER)
    return chain.standing(chain.tip().number)


def test_a_root_counts_after_its_delay(lab: Lab) -> None:
    """A posted root is the newest at once, and the active one when its delay is over."""
    tree = Tree(1, {NODE_AT: 5 * USD})
    lab.post(tree)
    fresh = standing(lab)
    assert (fresh.epoch, fresh.active_epoch, fresh.root) == (1, 0, tree.tree.root)
    lab.travel(DELAY_S)
    later = standing(lab)
    assert (later.epoch, later.active_epoch) == (1, 1)
    assert (later.head, later.earned, later.spent) == (head_of(1), 5 * USD, 5 * USD)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"epoch": 2}, "post: epoch"),
        ({"epoch": 0}, "post: epoch"),
        ({"prev_head": head_of(7)}, "post: prev_head"),
        ({"earned": 6 * USD}, "post: more earned than spent"),
        ({"spent": DEPOSIT + 1}, "post: more spent than deposited"),
        ({"spent": 5 * MAX_DAILY}, "post: spent"),
    ],
)
def test_a_post_that_breaks_a_rule_is_refused(
    lab: Lab, changed: dict[str, Any], words: str
) -> None:
    """Epochs follow each other, heads chain, totals are covered by deposits."""
    tree = Tree(1, {NODE_AT: 5 * USD})
    assert lab.refusal(POSTER, lab.posting(tree)) == ""
    assert words in lab.refusal(POSTER, lab.posting(tree, **changed))


def test_only_the_poster_posts(lab: Lab) -> None:
    """Not the owner, not the guardian, not a stranger."""
    call = lab.posting(Tree(1, {NODE_AT: USD}))
    for key in (OWNER, GUARDIAN, OTHER):
        assert "not the poster" in lab.refusal(key, call)


def test_one_root_waits_at_a_time(lab: Lab) -> None:
    """While a root is inside its delay none is posted upon it."""
    lab.post(Tree(1, {NODE_AT: USD}))
    call = lab.posting(Tree(2, {NODE_AT: 2 * USD}))
    assert "inside its delay" in lab.refusal(POSTER, call)
    lab.travel(DELAY_S)
    assert lab.refusal(POSTER, call) == ""


def test_totals_never_fall(lab: Lab) -> None:
    """A later root cannot say that less was earned or spent."""
    lab.post(Tree(1, {NODE_AT: 5 * USD}))
    lab.travel(DELAY_S)
    less = Tree(2, {NODE_AT: 4 * USD})
    assert "post: earned" in lab.refusal(POSTER, lab.posting(less))
    assert "post: spent" in lab.refusal(POSTER, lab.posting(less, earned=5 * USD))


def test_a_stolen_poster_key_is_bounded_by_the_daily_limit(lab: Lab) -> None:
    """However often it posts, a thief adds no more than a day's limit in a day."""
    staged = lab.stage(max_daily=100 * USD)
    staged.deposit(CUSTOMER, DEPOSIT)
    post = staged.vault.functions.post

    def stolen(epoch: int, total: int) -> Any:
        return post(epoch, head_of(epoch - 1), head_of(epoch), b"\1" * 32, total, total)

    assert "post: earned" in lab.refusal(POSTER, stolen(1, 200 * USD))
    total, epoch, start_s = 0, 0, staged.chain(POSTER).tip().time_s
    while staged.chain(POSTER).tip().time_s - start_s < 3 * DAY_S:
        grown = next(
            n * USD
            for n in range(200, 0, -10)
            if not lab.refusal(POSTER, stolen(epoch + 1, total + n * USD))
        )
        epoch, total = epoch + 1, total + grown
        staged.ground.call(POSTER, stolen(epoch, total))
        lab.travel(DELAY_S)
    assert total <= (1 + 3 + 1) * 100 * USD


def test_a_silent_poster_catches_up_on_a_week_at_most(lab: Lab) -> None:
    """After a month without a post, seven days' growth can be posted at once, and not more."""
    staged = lab.stage(max_daily=100 * USD)
    staged.deposit(CUSTOMER, DEPOSIT)
    lab.travel(30 * DAY_S)
    for units, refused in ((700 * USD, False), (701 * USD, True)):
        call = staged.vault.functions.post(1, head_of(0), head_of(1), b"\1" * 32, units, units)
        assert bool(lab.refusal(POSTER, call)) is refused


def test_the_guardian_takes_a_root_back_inside_its_delay(lab: Lab) -> None:
    """After a veto the epoch is open again, and the one before it is as it was."""
    first = Tree(1, {NODE_AT: USD})
    lab.post(first)
    lab.travel(DELAY_S)
    lab.post(Tree(2, {OTHER[-20:]: 1}, {address_of(CUSTOMER): 2 * USD}), earned=2 * USD)
    lab.send(GUARDIAN, lab.staged.vault.functions.veto(2))
    back = standing(lab)
    assert (back.epoch, back.active_epoch, back.head) == (1, 1, head_of(1))
    assert (back.root, back.earned, back.spent) == (first.tree.root, USD, USD)
    lab.post(Tree(2, {NODE_AT: 2 * USD}))
    assert standing(lab).epoch == 2


def test_a_veto_is_the_guardians_and_ends_with_the_delay(lab: Lab) -> None:
    """Nobody else vetoes, no other epoch, and not in the second in which the root is active."""
    veto = lab.staged.vault.functions.veto
    assert "veto: too late" in lab.refusal(GUARDIAN, veto(0))
    lab.post(Tree(1, {NODE_AT: USD}))
    for key in (OWNER, POSTER, OTHER):
        assert "not the guardian" in lab.refusal(key, veto(1))
    assert "veto: epoch" in lab.refusal(GUARDIAN, veto(2))
    lab.travel(DELAY_S - 10)
    assert lab.refusal(GUARDIAN, veto(1)) == ""
    lab.travel(10)
    assert "veto: too late" in lab.refusal(GUARDIAN, veto(1))


def test_the_guardian_stops_and_only_the_owner_starts(lab: Lab) -> None:
    """Pausing posts stops them; the guardian can add to what is paused and not take away."""
    pause = lab.staged.vault.functions.pause
    call = lab.posting(Tree(1, {NODE_AT: USD}))
    assert "neither owner nor guardian" in lab.refusal(POSTER, pause(1))
    lab.send(GUARDIAN, pause(1))
    assert "post: paused" in lab.refusal(POSTER, call)
    assert "only the owner starts" in lab.refusal(GUARDIAN, pause(2))
    lab.send(GUARDIAN, pause(3))
    assert "pause: what" in lab.refusal(OWNER, pause(4))
    lab.send(OWNER, pause(0))
    assert lab.refusal(POSTER, call) == ""


def test_ownership_moves_in_two_steps(lab: Lab) -> None:
    """A new owner must accept, so that a mistyped address gets nothing."""
    vault, new = lab.staged.vault.functions, checksummed(address_of(OTHER))
    assert "not the owner" in lab.refusal(OTHER, vault.transfer_ownership(new))
    lab.send(OWNER, vault.transfer_ownership(new))
    assert vault.owner().call() == checksummed(address_of(OWNER))
    assert "not offered" in lab.refusal(POSTER, vault.accept_ownership())
    lab.send(OTHER, vault.accept_ownership())
    assert vault.owner().call() == new
    assert "not the owner" in lab.refusal(OWNER, vault.set_guardian(new))


def test_the_owner_replaces_the_other_keys(lab: Lab) -> None:
    """After a theft: another poster and limit, another guardian; nobody else may."""
    vault, new = lab.staged.vault.functions, checksummed(address_of(OTHER))
    for call in (vault.set_poster(new, 5), vault.set_guardian(new)):
        assert "not the owner" in lab.refusal(POSTER, call)
        lab.send(OWNER, call)
    assert vault.posting().call() == [new, 5]
    assert "not the poster" in lab.refusal(POSTER, lab.posting(Tree(1, {NODE_AT: 1})))
    lab.send(OTHER, lab.posting(Tree(1, {NODE_AT: 5})))
    lab.send(OTHER, vault.veto(1))


def test_a_day_without_tasks_is_posted_like_any_other(lab: Lab) -> None:
    """An empty tree has an empty root, against which nothing can be claimed."""
    empty = Tree(1, {}, {})
    lab.post(empty)
    lab.travel(DELAY_S)
    assert standing(lab).active_epoch == 1
    claim = lab.staged.vault.functions.claim(checksummed(NODE_AT), 1, [])
    assert "claim: proof" in lab.refusal(NODE, claim)


def test_a_delay_of_a_day_is_refused(lab: Lab) -> None:
    """Daily posts would never become active."""
    with pytest.raises(InvalidRequest, match="refused"):
        lab.stage(delay_s=DAY_S)
    lab.stage(delay_s=DAY_S - 1)
