# pragma version ~=0.4.3
"""
@title StarAI vault
@license Apache-2.0
@notice Customers deposit here. Once a day the network posts one Merkle root over what each node
        has earned and each customer has spent since the beginning; nodes claim against it.
@dev    Amounts are base units of one ERC-20 token and fit 96 bits. What is posted and claimed is
        cumulative, so a later root can only add to an earlier one. Two roots live at a time, in
        rings of two by the epoch's parity: the newest, once its delay is over, and the one
        before it, which stays claimable until then. A veto only steps the epoch back.
"""

from ethereum.ercs import IERC20

struct Claim:
    account: address
    cum: uint256
    proof: DynArray[bytes32, 32]

struct Withdrawal:
    amount: uint256
    since: uint256
    epoch: uint256

event Deposited:
    account: indexed(address)
    amount: uint256

event Posted:
    epoch: indexed(uint256)
    root: bytes32
    head: bytes32
    earned: uint256
    spent: uint256

event Vetoed:
    epoch: indexed(uint256)
    root: bytes32

event Claimed:
    account: indexed(address)
    to: address
    amount: uint256

event ClaimFailed:
    account: indexed(address)
    amount: uint256

event WithdrawalRequested:
    account: indexed(address)
    amount: uint256

event Withdrawn:
    account: indexed(address)
    amount: uint256

event PayoutSet:
    account: indexed(address)
    to: address

event Paused:
    what: uint256

event RoleSet:
    role: String[8]
    holder: address

# Kinds of leaves.
EARNED: constant(uint256) = 0
SPENT: constant(uint256) = 1

# What can be paused.
POSTS: constant(uint256) = 1
CLAIMS: constant(uint256) = 2

AMOUNT_MASK: constant(uint256) = 2**96 - 1
ADDRESS_MASK: constant(uint256) = 2**160 - 1
EPOCH_MASK: constant(uint256) = 2**56 - 1
TIME_MASK: constant(uint256) = 2**64 - 1

DAY: constant(uint256) = 86400
# A poster that was silent may catch up on this much, and no thief on more.
CATCH_UP: constant(uint256) = 7 * DAY
# If nothing is posted any more, customers get their money without waiting for a root.
ESCAPE: constant(uint256) = 30 * DAY

TOKEN: immutable(IERC20)
DELAY: immutable(uint256)

owner: public(address)
next_owner: public(address)
guardian: public(address)

# poster: 160 bits | max_daily: 96
_posting: uint256
# paused: 8 bits | epoch: 56 | deposited: 96 | paid: 96
_state: uint256
# By epoch's parity. A total is posted_at: 64 bits | spent: 96 | earned: 96
_roots: bytes32[2]
_heads: bytes32[2]
_totals: uint256[2]
# payout address: 160 bits | claimed: 96
_payees: HashMap[address, uint256]

# Deposits less withdrawals; what was spent is in the leaves.
deposit_of: public(HashMap[address, uint256])
withdrawal_of: public(HashMap[address, Withdrawal])


@deploy
def __init__(token: address, poster: address, guardian: address, delay: uint256, max_daily: uint256):
    """
    @param delay seconds that a root waits for a veto, less than a day
    @param max_daily base units by which the totals may grow in a day
    """
    assert token.is_contract, "no token"
    assert delay < DAY, "delay"
    assert max_daily <= AMOUNT_MASK, "max_daily"
    TOKEN = IERC20(token)
    DELAY = delay
    self.owner = msg.sender
    self.guardian = guardian
    self._posting = (convert(poster, uint256) << 96) | max_daily
    # Epoch 0 has no root; it counts as posted yesterday, so that the first may come at once.
    self._totals[0] = (block.timestamp - DAY) << 192


# ---------------------------------------------------------------------------------- customers


@external
@nonreentrant
def deposit(amount: uint256):
    """
    @notice Pay in; the vault must be approved for it. Tokens that keep a fee are refused.
    """
    assert amount > 0, "deposit: nothing"
    state: uint256 = self._state
    total: uint256 = ((state >> 96) & AMOUNT_MASK) + amount
    assert total <= AMOUNT_MASK, "deposit: too much"
    self.deposit_of[msg.sender] += amount
    self._state = (state & ~(AMOUNT_MASK << 96)) | (total << 96)
    before: uint256 = staticcall TOKEN.balanceOf(self)
    assert extcall TOKEN.transferFrom(msg.sender, self, amount, default_return_value=True), "deposit: transfer"
    assert staticcall TOKEN.balanceOf(self) == before + amount, "deposit: the token keeps a fee"
    log Deposited(account=msg.sender, amount=amount)


@external
def request_withdrawal(amount: uint256):
    """
    @notice Ask for money back. It can be taken once two more roots have counted what is in work now.
    """
    assert amount > 0 and amount <= self.deposit_of[msg.sender], "request: amount"
    self.withdrawal_of[msg.sender] = Withdrawal(
        amount=amount, since=block.timestamp, epoch=self._last_epoch()
    )
    log WithdrawalRequested(account=msg.sender, amount=amount)


@external
@nonreentrant
def withdraw(amount: uint256, cum_spent: uint256, proof: DynArray[bytes32, 32]):
    """
    @notice Take back what was asked for, less what has been spent since.
    @param cum_spent what the active root says the caller has spent since the beginning
    """
    state: uint256 = self._state
    assert (state >> 248) & CLAIMS == 0, "withdraw: paused"
    asked: Withdrawal = self.withdrawal_of[msg.sender]
    assert amount > 0 and amount <= asked.amount, "withdraw: amount"
    last: uint256 = self._last_epoch()
    epoch: uint256 = self._active_epoch(last)
    waited: uint256 = block.timestamp - asked.since
    assert waited >= ESCAPE or (waited >= DELAY and epoch >= asked.epoch + 2), "withdraw: too early"
    # Before the first root nobody has spent anything.
    assert (epoch == 0 and cum_spent == 0) or self._is_proven(
        self._roots[epoch & 1], SPENT, msg.sender, cum_spent, proof
    ), "withdraw: proof"
    kept: uint256 = self.deposit_of[msg.sender] - amount
    assert kept >= cum_spent, "withdraw: spent"
    deposited: uint256 = ((state >> 96) & AMOUNT_MASK) - amount
    assert deposited >= (self._totals[last & 1] >> 96) & AMOUNT_MASK, "withdraw: owed to nodes"
    self.deposit_of[msg.sender] = kept
    self.withdrawal_of[msg.sender].amount = asked.amount - amount
    self._state = (state & ~(AMOUNT_MASK << 96)) | (deposited << 96)
    assert self._send(msg.sender, amount), "withdraw: transfer"
    log Withdrawn(account=msg.sender, amount=amount)


# -------------------------------------------------------------------------------------- roots


@external
def post(
    epoch: uint256,
    prev_head: bytes32,
    head: bytes32,
    root: bytes32,
    cum_earned: uint256,
    cum_spent: uint256,
):
    """
    @notice Post the next epoch's root. One that is inside its delay must pass or be vetoed first.
    """
    posting: uint256 = self._posting
    assert convert(msg.sender, uint256) == posting >> 96, "post: not the poster"
    state: uint256 = self._state
    assert (state >> 248) & POSTS == 0, "post: paused"
    last: uint256 = (state >> 192) & EPOCH_MASK
    assert epoch == last + 1, "post: epoch"
    assert prev_head == self._heads[last & 1], "post: prev_head"
    totals: uint256 = self._totals[last & 1]
    waited: uint256 = block.timestamp - (totals >> 192)
    assert waited >= DELAY, "post: the last root is inside its delay"
    growth: uint256 = (posting & AMOUNT_MASK) * min(waited, CATCH_UP) // DAY
    earned: uint256 = totals & AMOUNT_MASK
    spent: uint256 = (totals >> 96) & AMOUNT_MASK
    assert earned <= cum_earned and cum_earned <= earned + growth, "post: earned"
    assert spent <= cum_spent and cum_spent <= spent + growth, "post: spent"
    assert cum_earned <= cum_spent, "post: more earned than spent"
    assert cum_spent <= (state >> 96) & AMOUNT_MASK, "post: more spent than deposited"
    self._state = state + (1 << 192)
    self._roots[epoch & 1] = root
    self._heads[epoch & 1] = head
    self._totals[epoch & 1] = (block.timestamp << 192) | (cum_spent << 96) | cum_earned
    log Posted(epoch=epoch, root=root, head=head, earned=cum_earned, spent=cum_spent)


@external
def veto(epoch: uint256):
    """
    @notice Take the newest root back while it is inside its delay.
    """
    assert msg.sender == self.guardian, "veto: not the guardian"
    assert epoch == self._last_epoch(), "veto: epoch"
    assert self._active_epoch(epoch) != epoch, "veto: too late"
    self._state -= 1 << 192
    log Vetoed(epoch=epoch, root=self._roots[epoch & 1])


# -------------------------------------------------------------------------------------- nodes


@external
@nonreentrant
def claim(account: address, cum: uint256, proof: DynArray[bytes32, 32]):
    """
    @notice Pay `account` what it has earned and not had. Anyone may send this; it goes to `account`.
    @param cum what the active root says `account` has earned since the beginning
    """
    state: uint256 = self._state
    assert (state >> 248) & CLAIMS == 0, "claim: paused"
    active: uint256 = self._active_epoch((state >> 192) & EPOCH_MASK) & 1
    assert self._is_proven(self._roots[active], EARNED, account, cum, proof), "claim: proof"
    payee: uint256 = self._payees[account]
    claimed: uint256 = payee & AMOUNT_MASK
    assert cum > claimed, "claim: nothing new"
    amount: uint256 = cum - claimed
    paid: uint256 = (state & AMOUNT_MASK) + amount
    assert paid <= self._totals[active] & AMOUNT_MASK, "claim: more than was earned"
    self._payees[account] = payee + amount
    self._state = state + amount
    to: address = self._paid_to(account, payee)
    assert self._send(to, amount), "claim: transfer"
    log Claimed(account=account, to=to, amount=amount)


@external
@nonreentrant
def claim_many(claims: DynArray[Claim, 64]):
    """
    @notice Several claims for the price of less. Who has nothing new, or cannot be paid, is passed over.
    """
    state: uint256 = self._state
    assert (state >> 248) & CLAIMS == 0, "claim: paused"
    active: uint256 = self._active_epoch((state >> 192) & EPOCH_MASK) & 1
    root: bytes32 = self._roots[active]
    earned: uint256 = self._totals[active] & AMOUNT_MASK
    before: uint256 = state & AMOUNT_MASK
    paid: uint256 = 0
    for one: Claim in claims:
        assert self._is_proven(root, EARNED, one.account, one.cum, one.proof), "claim: proof"
        payee: uint256 = self._payees[one.account]
        claimed: uint256 = payee & AMOUNT_MASK
        if one.cum <= claimed:
            continue
        amount: uint256 = one.cum - claimed
        assert before + paid + amount <= earned, "claim: more than was earned"
        self._payees[one.account] = payee + amount
        to: address = self._paid_to(one.account, payee)
        if self._send(to, amount):
            paid += amount
            log Claimed(account=one.account, to=to, amount=amount)
        else:
            self._payees[one.account] = payee
            log ClaimFailed(account=one.account, amount=amount)
    # Added to what is there now: all that pays is nonreentrant, a pause in between is not.
    self._state += paid


@external
def set_payout(to: address):
    """
    @notice From now on the caller's claims go to `to`; to the caller itself if that is empty.
    """
    claimed: uint256 = self._payees[msg.sender] & AMOUNT_MASK
    self._payees[msg.sender] = (convert(to, uint256) << 96) | claimed
    log PayoutSet(account=msg.sender, to=to)


# -------------------------------------------------------------------------------------- roles


@external
def pause(what: uint256):
    """
    @notice Stop posts (1), all that pays (2), or both (3). The guardian may stop, only the owner start.
    """
    state: uint256 = self._state
    if msg.sender != self.owner:
        assert msg.sender == self.guardian, "pause: neither owner nor guardian"
        assert what & (state >> 248) == state >> 248, "pause: only the owner starts again"
    assert what <= 3, "pause: what"
    self._state = (state & (2**248 - 1)) | (what << 248)
    log Paused(what=what)


@external
def set_poster(poster: address, max_daily: uint256):
    """
    @notice Another key that posts, or another limit of how much the totals may grow in a day.
    """
    assert msg.sender == self.owner, "not the owner"
    assert max_daily <= AMOUNT_MASK, "max_daily"
    self._posting = (convert(poster, uint256) << 96) | max_daily
    log RoleSet(role="poster", holder=poster)


@external
def set_guardian(guardian: address):
    """
    @notice Another key that can veto and pause.
    """
    assert msg.sender == self.owner, "not the owner"
    self.guardian = guardian
    log RoleSet(role="guardian", holder=guardian)


@external
def transfer_ownership(to: address):
    """
    @notice Offer the ownership; it moves once `to` accepts.
    """
    assert msg.sender == self.owner, "not the owner"
    self.next_owner = to


@external
def accept_ownership():
    """
    @notice Take the ownership that was offered.
    """
    assert msg.sender == self.next_owner, "not offered to you"
    self.owner = msg.sender
    self.next_owner = empty(address)
    log RoleSet(role="owner", holder=msg.sender)


# -------------------------------------------------------------------------------------- views


@external
@view
def standing() -> (uint256, uint256, bytes32, bytes32, uint256, uint256, uint256):
    """
    @return epoch, the epoch that can be claimed, head, root, when posted, earned, spent
    """
    epoch: uint256 = self._last_epoch()
    totals: uint256 = self._totals[epoch & 1]
    return (
        epoch,
        self._active_epoch(epoch),
        self._heads[epoch & 1],
        self._roots[epoch & 1],
        totals >> 192,
        totals & AMOUNT_MASK,
        (totals >> 96) & AMOUNT_MASK,
    )


@external
@view
def funds() -> (uint256, uint256, uint256):
    """
    @return deposited less withdrawn, paid to nodes, what is paused
    """
    state: uint256 = self._state
    return ((state >> 96) & AMOUNT_MASK, state & AMOUNT_MASK, state >> 248)


@external
@view
def posting() -> (address, uint256):
    """
    @return the key that posts, and how much the totals may grow in a day
    """
    posting: uint256 = self._posting
    return (convert(posting >> 96, address), posting & AMOUNT_MASK)


@external
@view
def payee(account: address) -> (uint256, address):
    """
    @return what `account` has been paid, and where its claims go
    """
    payee: uint256 = self._payees[account]
    return (payee & AMOUNT_MASK, self._paid_to(account, payee))


@external
@view
def terms() -> (address, uint256):
    """
    @return the token, and the delay in seconds
    """
    return (TOKEN.address, DELAY)


# ------------------------------------------------------------------------------------ internal


@internal
@view
def _last_epoch() -> uint256:
    return (self._state >> 192) & EPOCH_MASK


@internal
@view
def _active_epoch(last: uint256) -> uint256:
    if block.timestamp >= (self._totals[last & 1] >> 192) + DELAY:
        return last
    return last - 1


@internal
@pure
def _paid_to(account: address, payee: uint256) -> address:
    if payee >> 96 == 0:
        return account
    return convert(payee >> 96, address)


@internal
@pure
def _is_proven(
    root: bytes32, kind: uint256, account: address, cum: uint256, proof: DynArray[bytes32, 32]
) -> bool:
    # Hashed twice, so that no inner node of 64 bytes passes for a leaf.
    node: uint256 = convert(keccak256(keccak256(abi_encode(kind, account, cum))), uint256)
    for beside: bytes32 in proof:
        other: uint256 = convert(beside, uint256)
        if node < other:
            node = convert(keccak256(abi_encode(node, other)), uint256)
        else:
            node = convert(keccak256(abi_encode(other, node)), uint256)
    return convert(node, bytes32) == root


@internal
def _send(to: address, amount: uint256) -> bool:
    # Some tokens return nothing and some refuse certain receivers; neither may stop the others.
    called: bool = False
    answer: Bytes[32] = b""
    called, answer = raw_call(
        TOKEN.address,
        abi_encode(to, amount, method_id=method_id("transfer(address,uint256)")),
        max_outsize=32,
        revert_on_failure=False,
    )
    return called and (len(answer) == 0 or convert(answer, uint256) == 1)
