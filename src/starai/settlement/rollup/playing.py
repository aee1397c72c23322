"""A chain in memory with a vault and people on it, for `starai settle --demo`.

The people's keys are the embedded chain's: worth nothing, known to everybody.
"""

from __future__ import annotations

from typing import Final

from starai.settlement.rollup.embedded import embedded, key_of
from starai.settlement.rollup.ground import DELAY_S, Ground, Staged, address_of
from starai.settlement.rollup.json_rpc import Web3Chain

_OWNER, _POSTER, _GUARDIAN, _CUSTOMER, _RELAYER, _PAYEE = (key_of(n) for n in range(1, 7))


class Play:
    """The chain; time and blocks pass when they are told to."""

    poster: Final = _POSTER
    relayer: Final = _RELAYER

    def __init__(self) -> None:
        """Make the chain, and deploy a token and a vault."""
        web3, self._tester = embedded()
        self.staged = Staged(Ground(web3), _OWNER, _POSTER, _GUARDIAN)
        self.chain_id = web3.eth.chain_id
        self.customer = address_of(_CUSTOMER)
        self.payee = address_of(_PAYEE)

    def chain(self, key: bytes = _RELAYER) -> Web3Chain:
        """The vault, as ``key`` sees it."""
        return self.staged.chain(key)

    def deposit(self, units: int) -> None:
        """The customer pays in."""
        self.staged.deposit(_CUSTOMER, units)

    def mine(self, blocks: int) -> None:
        """Let so many blocks pass."""
        self._tester.mine_blocks(blocks)

    def travel_past_delay(self, blocks: int) -> None:
        """Let the delay of a root pass, and some blocks."""
        now_s = self._tester.get_block_by_number("pending")["timestamp"]
        self._tester.time_travel(now_s + DELAY_S)
        self.mine(blocks)
