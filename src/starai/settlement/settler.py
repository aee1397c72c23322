"""Posts each epoch's root exactly once, whatever crashes, answers late, or is taken back.

Three things make it so. The contract takes an epoch once and in order. A signed transaction is
durable before it is sent, and sending the same bytes again changes nothing. And no step remembers
anything: each asks the chain how far it is, and the journal what was signed. So a step may be cut
off anywhere, repeated, or run against a chain that went back.

An unknown answer is not a failure: nothing is signed anew while something signed can still get
into a block, except with the same nonce and a higher fee, of which the chain takes one. Knows
nothing of how days are closed, where the journal is, or which chain it is.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

from starai.core.clock import Clock
from starai.core.errors import Conflict
from starai.settlement.rollup.base import Chain, Fee, Post, Signed, Standing

#: Blocks on top before something counts: a common choice for rollups, whose reorgs are short.
CONFIRMATIONS: Final = 12
#: How long a transaction may wait before a higher fee is offered for it.
BUMP_AFTER_S: Final = 180.0
#: Nodes replace a transaction from a tenth more on; this is an eighth.
_BUMP_NUMERATOR, _BUMP_DENOMINATOR = 9, 8
#: Fees offered for one nonce: after that many eighths (ten times the first) a person must look.
ATTEMPTS_MAX: Final = 20
#: Room above the estimate: storage that another transaction clears in between costs more.
_GAS_MARGIN: Final = 1.25


class AttemptState(enum.StrEnum):
    """What became of a signed transaction, as far as is known; for people to read."""

    SIGNED = "signed"
    MINED = "mined"
    REVERTED = "reverted"
    #: Its nonce was used for something else.
    DISPLACED = "displaced"
    #: It did post, and the guardian took that back.
    VETOED = "vetoed"


class Attempt(NamedTuple):
    """A signed transaction for an epoch; ``number`` counts them from 0."""

    epoch: int
    number: int
    signed: Signed
    state: AttemptState = AttemptState.SIGNED


class Journal(Protocol):
    """What the settler must have durable; every write is on disk when it returns."""

    def next_post(self, epoch: int) -> Post | None:
        """What is to be posted as ``epoch``; None if that is not closed, or was vetoed."""
        ...

    def attempts(self, epoch: int) -> Sequence[Attempt]:
        """All transactions signed for an epoch, oldest first."""
        ...

    def keep(self, attempt: Attempt) -> None:
        """Keep a transaction that is about to be sent."""
        ...

    def mark(self, epoch: int, number: int, state: AttemptState) -> None:
        """Note what became of a transaction."""
        ...

    def sent(self, epoch: int) -> None:
        """A transaction for this epoch is out."""
        ...

    def mined(self, epoch: int, head: bytes) -> None:
        """The chain is at this epoch with this head; it may still go back.

        Raises:
            Conflict: the journal knows another head for it.
        """
        ...

    def final(self, epoch: int, head: bytes) -> None:
        """This epoch and those before are past confirmations and delay.

        Raises:
            Conflict: the journal knows another head for it.
        """
        ...

    def vetoed(self, epoch: int) -> None:
        """The guardian took this epoch's root back: it must be built anew."""
        ...


class Stage(enum.StrEnum):
    """How far settling is."""

    #: All that is closed is on the chain.
    IDLE = "idle"
    #: The contract would refuse now; nothing is sent.
    WAITING = "waiting"
    #: A transaction is out.
    SENT = "sent"
    #: The guardian took the root back.
    VETOED = "vetoed"


class Progress(NamedTuple):
    """What a step found and did; ``epoch`` is the one that is worked on."""

    stage: Stage
    epoch: int
    why: str = ""


class Settler:
    """Brings one vault to where the journal is, a step at a time. One settler a key."""

    def __init__(
        self,
        chain: Chain,
        journal: Journal,
        clock: Clock,
        *,
        confirmations: int = CONFIRMATIONS,
        bump_after_s: float = BUMP_AFTER_S,
    ) -> None:
        """Take the chain, whose key posts and does nothing else, and the journal."""
        self._chain = chain
        self._journal = journal
        self._clock = clock
        self._confirmations = confirmations
        self._bump_after_s = bump_after_s
        #: When each transaction was first seen waiting, by its hash; a restart starts anew.
        self._waiting_since: dict[bytes, float] = {}

    def step(self) -> Progress:
        """Look at the chain, and do the one thing that is due, if any.

        Raises:
            Unavailable: the chain does not answer; step again later.
            Conflict: the chain has what the journal does not know; a person must look.
        """
        tip = self._chain.tip().number
        standing = self._chain.standing(tip)
        if standing is None:
            raise Conflict("there is no vault at this address: check the contract and the chain")
        self._note(standing, tip)
        epoch = standing.epoch + 1
        post = self._journal.next_post(epoch)
        if post is None:
            return Progress(Stage.IDLE, standing.epoch)
        data = self._chain.post_data(post)
        attempts = [one for one in self._journal.attempts(epoch) if data in one.signed.raw]
        if self._was_vetoed(attempts, tip):
            return Progress(Stage.VETOED, epoch, "the guardian took it back: build it anew")
        if post.prev_head != standing.head:
            raise Conflict(f"epoch {epoch} builds on another head than the one on the chain")
        nonce = self._chain.next_nonce()
        alive = [one for one in attempts if one.signed.nonce >= nonce]
        if alive:
            return self._press(alive[-1], data, nonce)
        return self._begin(epoch, data, nonce)

    def _note(self, standing: Standing, tip: int) -> None:
        """Tell the journal what the chain has, and what of it can no longer be taken back."""
        if standing.epoch:
            self._journal.mined(standing.epoch, standing.head)
        deep = self._chain.standing(max(0, tip - self._confirmations))
        if deep is not None and deep.epoch and deep.active_epoch == deep.epoch:
            self._journal.final(deep.epoch, deep.head)

    def _was_vetoed(self, attempts: Sequence[Attempt], tip: int) -> bool:
        """Whether one of these did post in a block up to ``tip``, and the epoch is open there.

        Notes what became of each. Only blocks that the standing has seen count: behind one
        address there may be several nodes, and some of them late.
        """
        for one in attempts:
            receipt = self._chain.receipt(one.signed.tx_hash)
            if receipt is None or receipt.block > tip or one.state is AttemptState.VETOED:
                continue
            if receipt.ok:
                self._journal.vetoed(one.epoch)
                self._journal.mark(one.epoch, one.number, AttemptState.VETOED)
                return True
            self._journal.mark(one.epoch, one.number, AttemptState.REVERTED)
        return False

    def _press(self, newest: Attempt, data: bytes, nonce: int) -> Progress:
        """Send what may still get into a block again; offer more once it has waited long."""
        now_s = self._clock.monotonic_s()
        since_s = self._waiting_since.setdefault(newest.signed.tx_hash, now_s)
        if now_s - since_s >= self._bump_after_s or newest.signed.nonce > nonce:
            return self._begin(newest.epoch, data, nonce)
        return self._send(newest)

    def _begin(self, epoch: int, data: bytes, nonce: int) -> Progress:
        """Sign and keep a transaction, then send it; unless the contract would refuse it."""
        estimate = self._chain.estimate(data)
        if estimate.refusal:
            return Progress(Stage.WAITING, epoch, estimate.refusal)
        everything = self._journal.attempts(epoch)
        rivals = [one.signed.fee for one in everything if one.signed.nonce == nonce]
        if len(rivals) >= ATTEMPTS_MAX:
            raise Conflict(f"epoch {epoch} waits behind {len(rivals)} offers: look at the chain")
        fee = outbid(self._chain.suggested_fee(), rivals)
        signed = self._chain.sign(data, nonce, int(estimate.gas * _GAS_MARGIN), fee)
        for one in everything:
            if one.state is AttemptState.SIGNED and one.signed.nonce < nonce:
                self._journal.mark(epoch, one.number, AttemptState.DISPLACED)
        attempt = Attempt(epoch, len(everything), signed)
        self._journal.keep(attempt)
        self._waiting_since = {signed.tx_hash: self._clock.monotonic_s()}
        return self._send(attempt)

    def _send(self, attempt: Attempt) -> Progress:
        said = self._chain.broadcast(attempt.signed.raw)
        self._journal.sent(attempt.epoch)
        return Progress(Stage.SENT, attempt.epoch, said)


def outbid(suggested: Fee, rivals: Sequence[Fee]) -> Fee:
    """A fee that replaces all of ``rivals`` in a node's pool, and is at least the suggested one."""
    most = [suggested.most, *(_raised(rival.most) for rival in rivals)]
    tip = [suggested.tip, *(_raised(rival.tip) for rival in rivals)]
    return Fee(max(most), max(tip))


def _raised(wei: int) -> int:
    return wei * _BUMP_NUMERATOR // _BUMP_DENOMINATOR + 1
