# pragma version ~=0.4.3
"""
@title A batch push
@notice What a network without a tree would do: send to everybody. For comparison.
"""

from ethereum.ercs import IERC20

TOKEN: immutable(IERC20)


@deploy
def __init__(token: address):
    TOKEN = IERC20(token)


@external
def push(to: DynArray[address, 600], amounts: DynArray[uint256, 600]):
    total: uint256 = 0
    for amount: uint256 in amounts:
        total += amount
    assert extcall TOKEN.transferFrom(msg.sender, self, total)
    for i: uint256 in range(len(to), bound=600):
        assert extcall TOKEN.transfer(to[i], amounts[i])
