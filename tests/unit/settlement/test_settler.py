"""The settler: exactly one post per epoch, whatever crashes, is slow, dear, displaced or undone."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
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
    Days,
    Lab,
)

from starai.core.errors import Conflict, Unavailable
from starai.settlement.rollup.base import Fee
from starai.settlement.rollup.ground import DELAY_S, address_of
from starai.settlement.settler import ATTEMPTS_MAX, Settler, Stage, outbid

NODE_AT = address_of(NODE)
USD = 10**6
DEPTH = 3
BUMP_S = 60.0


class Crash(BaseException):
    """The process ends here."""


class Ticking:
    """A clock that goes on when it is told."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def now_ms(self) -> int:
        return int(self.now_s * 1000)

    def monotonic_s(self) -> float:
        return self.now_s


class Broken:
    """Something whose calls fail, or are lost on their way back, as often as told."""

    def __init__(self, real: Any, name: str, *, after: bool, error: BaseException, times: int = 1):
        self._real, self._name, self._after, self._error = real, name, after, error
        self.left = times

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._real, name)
        if name != self._name or not self.left:
            return real

        def failing(*arguments: Any) -> Any:
            self.left -= 1
            if self._after:
                real(*arguments)
            raise self._error

        return failing


class Desk:
    """A settler at work, and what it works on."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.beginning = lab.snapshot()
        self.chain: Any = lab.staged.chain(POSTER)
        self.days = Days(self.chain.chain_id, self.chain.contract)
        self.clock = Ticking()
        self.restart()

    def restart(self, chain: Any = None, journal: Any = None) -> Settler:
        """A new process, which knows nothing."""
        self.settler = Settler(
            chain or self.chain,
            journal or self.days.settlement,
            self.clock,
            confirmations=DEPTH,
            bump_after_s=BUMP_S,
        )
        return self.settler

    def finish(self, epochs: int = 1) -> None:
        """Step until all is final, and see that each epoch was posted once."""
        for _ in range(4 * epochs + 2):
            if {self.days.state(epoch) for epoch in range(1, epochs + 1)} == {"final"}:
                break
            stage = self.settler.step().stage
            self.lab.travel(DELAY_S) if stage is Stage.IDLE else self.lab.mine(DEPTH + 1)
        assert [one["epoch"] for one in self.lab.events("Posted")] == [*range(1, epochs + 1)]
        assert {self.days.state(epoch) for epoch in range(1, epochs + 1)} == {"final"}

    def run(self, steps: int) -> None:
        """Step, with half a day in between."""
        for _ in range(steps):
            self.settler.step()
            self.lab.travel(DELAY_S)
            self.lab.mine(DEPTH + 1)

    def attempts(self, epoch: int = 1) -> list[Any]:
        return [*self.days.settlement.attempts(epoch)]


@pytest.fixture
def desk(lab: Lab) -> Desk:
    made = Desk(lab)
    made.days.close(1, {NODE_AT: 5 * USD})
    return made


def test_a_day_is_posted_and_becomes_final(desk: Desk) -> None:
    """Signed, sent, mined, and final once it is deep enough and past its delay."""
    assert desk.settler.step() == (Stage.SENT, 1, "")
    assert desk.days.state(1) == "sent"
    assert desk.settler.step() == (Stage.IDLE, 1, "")
    assert desk.days.state(1) == "mined"
    desk.finish()
    assert len(desk.attempts()) == 1


def test_days_are_posted_in_order(desk: Desk) -> None:
    """The next one waits for the delay of the one before."""
    desk.days.close(2, {NODE_AT: 6 * USD})
    desk.settler.step()
    waiting = desk.settler.step()
    assert (waiting.stage, waiting.epoch) == (Stage.WAITING, 2)
    assert "inside its delay" in waiting.why
    desk.lab.travel(DELAY_S)
    desk.finish(2)


#: What only reads does not differ by whether the answer came.
READS = ("standing", "next_post", "attempts", "next_nonce", "estimate")
WRITES = ("sign", "keep", "broadcast", "sent", "mined", "final")
CRASHES = [(call, False) for call in READS + WRITES] + [(call, True) for call in WRITES]


@pytest.mark.parametrize(
    ("call", "after"),
    CRASHES,
    ids=[f"{'after' if after else 'before'} {c}" for c, after in CRASHES],
)
def test_a_crash_anywhere_costs_nothing(desk: Desk, call: str, after: bool) -> None:
    """The process dies before or after any call; the next one posts once, with what is there."""
    where, real = (
        ("chain", desk.chain)
        if hasattr(desk.chain, call)
        else (
            "journal",
            desk.days.settlement,
        )
    )
    desk.restart(**{where: Broken(real, call, after=after, error=Crash())})
    with pytest.raises(Crash):
        desk.run(6)
    desk.restart()
    desk.finish()
    assert len(desk.attempts()) == 1


@pytest.mark.parametrize(
    ("call", "late"),
    [("tip", False), ("standing", True), ("next_nonce", False), ("estimate", True)],
    ids=["tip, never", "standing, late", "next_nonce, never", "estimate, late"],
)
def test_a_chain_that_does_not_answer_is_asked_again(desk: Desk, call: str, late: bool) -> None:
    """A question whose answer is missing, or comes too late, ends the step and nothing else."""
    error = Unavailable("no answer")
    settler = desk.restart(chain=Broken(desk.chain, call, after=late, error=error, times=2))
    for _ in range(2):
        with pytest.raises(Unavailable):
            settler.step()
    desk.finish()
    assert len(desk.attempts()) == 1


def test_an_answer_that_is_lost_after_sending_is_no_failure(desk: Desk) -> None:
    """The chain took the transaction, its yes was lost: it is not signed again."""
    lost = Broken(desk.chain, "broadcast", after=True, error=Unavailable("lost"))
    with pytest.raises(Unavailable):
        desk.restart(chain=lost).step()
    assert len(desk.attempts()) == 1
    desk.restart()
    desk.finish()
    assert len(desk.attempts()) == 1


def test_the_same_bytes_are_sent_again_while_nothing_is_mined(desk: Desk) -> None:
    """A transaction that waits is pressed, not replaced, until it waits too long."""
    desk.lab.hold_back(True)
    for _ in range(3):
        assert desk.settler.step().stage is Stage.SENT
        desk.clock.now_s += BUMP_S / 4
    assert len(desk.attempts()) == 1
    desk.lab.mine()
    assert desk.settler.step().stage is Stage.IDLE
    desk.lab.hold_back(False)
    desk.finish()


def test_a_higher_fee_has_the_same_nonce(desk: Desk) -> None:
    """What waits too long is offered for more, and only one of the offers is ever mined."""
    desk.lab.hold_back(True)
    for _ in range(3):
        desk.settler.step()
        desk.clock.now_s += BUMP_S
    signed = [one.signed for one in desk.attempts()]
    assert len({one.nonce for one in signed}) == 1
    assert len(signed) == 3
    for cheaper, dearer in pairwise(signed):
        assert dearer.fee.most >= cheaper.fee.most * 1.1
        assert dearer.fee.tip >= cheaper.fee.tip * 1.1
    desk.lab.mine()
    desk.lab.hold_back(False)
    desk.finish()


def test_offers_end_somewhere(desk: Desk) -> None:
    """After many offers a person is called, instead of bidding without end."""
    silent = Broken(desk.chain, "broadcast", after=False, error=Crash(), times=0)
    silent.broadcast = lambda _: "no room"  # type: ignore[attr-defined]
    desk.restart(chain=silent)
    for _ in range(ATTEMPTS_MAX):
        assert desk.settler.step().why == "no room"
        desk.clock.now_s += BUMP_S
    with pytest.raises(Conflict, match="look at the chain"):
        desk.settler.step()
    assert len(desk.attempts()) == ATTEMPTS_MAX


def test_a_restart_does_not_bid_at_once(desk: Desk) -> None:
    """A new process presses what waits; it does not take it for old."""
    desk.lab.hold_back(True)
    desk.clock.now_s = 10 * BUMP_S
    desk.settler.step()
    desk.restart().step()
    assert len(desk.attempts()) == 1


@pytest.mark.parametrize("blocks", [0, 1, DEPTH])
def test_a_post_that_a_reorganisation_undoes_is_sent_again(desk: Desk, blocks: int) -> None:
    """The chain goes back behind the post: the same bytes bring it in again."""
    before = desk.lab.snapshot()
    desk.settler.step()
    desk.lab.mine(blocks)
    assert desk.settler.step().stage is Stage.IDLE
    assert desk.days.state(1) == "mined"
    desk.lab.go_back(before)
    assert desk.lab.events("Posted") == []
    assert desk.settler.step().stage is Stage.SENT
    assert len(desk.attempts()) == 1
    desk.finish()


def test_a_nonce_that_was_used_elsewhere_is_left(desk: Desk) -> None:
    """Somebody used the key for something else: the transaction gets another nonce."""
    desk.lab.hold_back(True)
    desk.settler.step()
    desk.lab.hold_back(False)  # mines what waits: so go back before it, and send another
    desk.lab.go_back(desk.beginning)
    desk.lab.send(POSTER, desk.lab.staged.token.functions.mint("0x" + "01" * 20, 1))
    assert desk.settler.step().stage is Stage.SENT
    first, second = desk.attempts()
    assert second.signed.nonce == first.signed.nonce + 1
    assert first.state == "displaced"
    desk.finish()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda lab: lab.send(GUARDIAN, lab.staged.vault.functions.pause(1)), "paused"),
        (lambda lab: lab.send(OWNER, set_poster(lab, OTHER)), "not the poster"),
        (lambda lab: lab.send(OWNER, set_poster(lab, POSTER, 1)), "post: earned"),
    ],
    ids=["paused", "not the poster", "limit"],
)
def test_what_the_contract_would_refuse_is_not_sent(
    desk: Desk, spoil: Callable[[Lab], Any], words: str
) -> None:
    """The settler asks first, says why it waits, burns nothing, and posts once that is mended."""
    spoil(desk.lab)
    for _ in range(2):
        waiting = desk.settler.step()
        assert waiting.stage is Stage.WAITING
        assert words in waiting.why
    assert desk.attempts() == []
    desk.lab.send(OWNER, desk.lab.staged.vault.functions.pause(0))
    desk.lab.send(OWNER, set_poster(desk.lab, POSTER))
    desk.finish()


def set_poster(lab: Lab, key: bytes, limit: int = 1_000_000 * USD) -> Any:
    address = lab.web3.to_checksum_address(address_of(key))
    return lab.staged.vault.functions.set_poster(address, limit)


def test_a_vault_without_funds_waits_for_a_deposit(lab: Lab) -> None:
    """More spent than deposited: the post waits, and goes on after the deposit."""
    desk = Desk(lab)
    desk.days.close(1, {NODE_AT: DEPOSIT + USD})
    assert "more spent than deposited" in desk.settler.step().why
    lab.staged.deposit(CUSTOMER, 2 * USD)
    desk.finish()


def test_a_post_that_is_refused_in_its_block_is_tried_again(desk: Desk) -> None:
    """Paused between estimate and block: the reverted transaction is noted, the next one posts."""
    desk.lab.hold_back(True)
    pause = desk.lab.staged.vault.functions.pause

    def mined_with(key: bytes, call: Any) -> None:
        account = desk.lab.web3.eth.account.from_key(key)
        made = call.build_transaction(
            {
                "from": account.address,
                "nonce": desk.lab.web3.eth.get_transaction_count(account.address),
                "gas": 200_000,
                "maxFeePerGas": 10**11,
                "maxPriorityFeePerGas": 5 * 10**10,
            }
        )
        raw = account.sign_transaction(made).raw_transaction
        desk.lab.web3.eth.send_raw_transaction(raw)

    mined_with(OWNER, pause(1))
    desk.settler.step()
    desk.lab.mine()
    desk.lab.hold_back(False)
    assert "paused" in desk.settler.step().why
    assert [one.state for one in desk.attempts()] == ["reverted"]
    desk.lab.send(OWNER, pause(0))
    assert desk.settler.step().stage is Stage.SENT
    desk.finish()
    assert [one.state for one in desk.attempts()] == ["reverted", "signed"]


def test_a_root_that_nobody_here_closed_raises_the_alarm(desk: Desk) -> None:
    """A stolen key posted another root: the settler stops and says so."""
    other = Days(desk.chain.chain_id, desk.chain.contract)
    forged = other.close(1, {address_of(OTHER): 7 * USD})
    desk.lab.post(forged)
    with pytest.raises(Conflict, match="did not close"):
        desk.settler.step()


def test_an_epoch_that_builds_on_another_head_is_not_posted(desk: Desk) -> None:
    """A day closed upon another past than the chain's stops for a person."""
    desk.days.trees[1].post = desk.days.trees[1].post._replace(head=b"\7" * 32)
    desk.days.close(2, {NODE_AT: 6 * USD})
    desk.settler.step()
    desk.lab.travel(DELAY_S)
    with pytest.raises(Conflict, match="another head"):
        desk.settler.step()


def test_a_vetoed_day_is_built_anew_and_posted(desk: Desk) -> None:
    """After a veto nothing is sent until the day is closed again; then the new root is posted."""
    desk.settler.step()
    desk.lab.send(GUARDIAN, desk.lab.staged.vault.functions.veto(1))
    assert desk.settler.step().stage is Stage.VETOED
    assert desk.days.state(1) == "vetoed"
    assert desk.settler.step().stage is Stage.IDLE
    rebuilt = desk.days.close(1, {NODE_AT: 4 * USD}, note=1)
    assert desk.settler.step().stage is Stage.SENT
    tip = desk.chain.tip().number
    assert desk.chain.standing(tip).root == rebuilt.tree.root
    desk.settler.step()
    assert desk.days.state(1) == "mined"
    assert [one["epoch"] for one in desk.lab.events("Posted")] == [1, 1]


def test_a_veto_by_mistake_does_not_block_the_same_day(desk: Desk) -> None:
    """Closed again with the very same content, it is posted again, by a new transaction."""
    desk.settler.step()
    desk.lab.send(GUARDIAN, desk.lab.staged.vault.functions.veto(1))
    desk.settler.step()
    desk.days.close(1, {NODE_AT: 5 * USD})
    assert desk.settler.step().stage is Stage.SENT
    assert desk.settler.step().stage is Stage.IDLE
    assert desk.days.state(1) == "mined"


def test_a_late_node_is_not_taken_for_a_veto(desk: Desk) -> None:
    """One node has the post, the one behind it not yet: what it does not know is no veto."""
    before = desk.chain.tip()
    desk.settler.step()
    late = Broken(desk.chain, "tip", after=False, error=Crash(), times=0)
    late.tip = lambda: before  # type: ignore[attr-defined]
    assert desk.restart(chain=late).step().stage is not Stage.VETOED
    assert desk.days.state(1) == "sent"


def test_the_wrong_address_is_no_vault(desk: Desk) -> None:
    """Nothing is sent to an address without a vault."""
    from starai.settlement.rollup.json_rpc import Web3Chain  # noqa: PLC0415 - needs the extra

    nowhere = Web3Chain(desk.lab.web3, b"\1" * 20, POSTER)
    with pytest.raises(Conflict, match="no vault"):
        desk.restart(chain=nowhere).step()


def test_an_offer_beats_all_before_it() -> None:
    """Each part of the fee rises by more than a tenth, and never below what is asked now."""
    assert outbid(Fee(100, 10), []) == Fee(100, 10)
    assert outbid(Fee(100, 10), [Fee(100, 10)]) == Fee(113, 12)
    assert outbid(Fee(500, 10), [Fee(100, 10), Fee(120, 30)]) == Fee(500, 34)
