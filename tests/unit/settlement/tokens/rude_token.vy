# pragma version ~=0.4.3
"""
@title A token that misbehaves as it is told
@notice It can return false, keep a fee, refuse one receiver, or call back. For tests.
"""

interface Vault:
    def claim(account: address, cum: uint256, proof: DynArray[bytes32, 32]): nonpayable

balanceOf: public(HashMap[address, uint256])
returns_false: public(bool)
fee: public(uint256)
refused: public(address)
again_account: address
again_cum: uint256
again_proof: DynArray[bytes32, 32]


@external
def mint(to: address, amount: uint256):
    self.balanceOf[to] += amount


@external
def approve(spender: address, amount: uint256) -> bool:
    return True


@external
def behave(returns_false: bool, fee: uint256, refused: address):
    self.returns_false = returns_false
    self.fee = fee
    self.refused = refused


@external
def call_back(account: address, cum: uint256, proof: DynArray[bytes32, 32]):
    self.again_account = account
    self.again_cum = cum
    self.again_proof = proof


@external
def transfer(to: address, amount: uint256) -> bool:
    assert to != self.refused, "refused"
    if self.returns_false:
        return False
    if self.again_cum > 0:
        extcall Vault(msg.sender).claim(self.again_account, self.again_cum, self.again_proof)
    self.balanceOf[msg.sender] -= amount
    self.balanceOf[to] += amount - self.fee
    return True


@external
def transferFrom(owner: address, to: address, amount: uint256) -> bool:
    if self.returns_false:
        return False
    self.balanceOf[owner] -= amount
    self.balanceOf[to] += amount - self.fee
    return True
