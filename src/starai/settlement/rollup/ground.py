"""What a person does on a chain beside settling: deploy a vault, mint play money, deposit, veto.

Works on any chain for which there is a key with some gas, each call waited for. `Staged` is a
vault with a token of its own, for demonstrations, tests and measurements; what is shown on it runs
the bytecode that a real one runs.
"""

from __future__ import annotations

from typing import Any, Final

from eth_account import Account
from web3 import HTTPProvider, Web3

from starai.core.errors import InvalidRequest
from starai.settlement.contract import Artefact, play_token, vault
from starai.settlement.rollup.json_rpc import ANSWER_S, Web3Chain, asking

#: More than any call here needs, and below what one transaction may use (EIP-7825).
GAS_MAX: Final = 12_000_000
#: How long a root waits for a veto: half a day, so that a daily post is active before the next.
DELAY_S: Final = 43_200
#: By how much the totals may grow in a day, in base units: a million dollars.
MAX_DAILY: Final = 1_000_000 * 10**6


def address_of(key: bytes) -> bytes:
    """The address of a secret key."""
    return bytes.fromhex(Account.from_key(key).address[2:])


def checksummed(address: bytes) -> Any:
    """An address as web3 wants it."""
    return Web3.to_checksum_address(address)


class Ground:
    """Contracts and calls on a chain, each waited for; fails loudly, as a demonstration should."""

    def __init__(self, web3: Web3) -> None:
        """Take a connected web3."""
        self.web3 = web3

    def deploy(self, key: bytes, artefact: Artefact, *arguments: Any) -> Any:
        """Deploy a contract; returns web3's handle of it."""
        made = self.web3.eth.contract(abi=artefact.abi, bytecode=artefact.bytecode)
        receipt = self._sent(key, made.constructor(*arguments))
        return self.web3.eth.contract(receipt["contractAddress"], abi=artefact.abi)

    def call(self, key: bytes, function: Any) -> Any:
        """Send a call of a contract's function; returns the receipt.

        Raises:
            InvalidRequest: the contract refused.
            Unavailable: the chain does not answer.
        """
        return self._sent(key, function)

    def _sent(self, key: bytes, function: Any) -> Any:
        account = Account.from_key(key)
        with asking():
            base = self.web3.eth.get_block("latest").get("baseFeePerGas", 0)
            made = function.build_transaction(
                {
                    "from": account.address,
                    "nonce": self.web3.eth.get_transaction_count(account.address),
                    "gas": GAS_MAX,
                    "maxFeePerGas": 2 * base + 10**9,
                    "maxPriorityFeePerGas": 10**9,
                    "chainId": self.web3.eth.chain_id,
                }
            )
            raw = account.sign_transaction(made).raw_transaction
            tx_hash = self.web3.eth.send_raw_transaction(raw)
            receipt = self.web3.eth.wait_for_transaction_receipt(tx_hash)
        if receipt["status"] != 1:
            raise InvalidRequest("the contract refused")
        return receipt


class Staged:
    """A vault with its token, deployed for a demonstration or a test by the ground's first key."""

    def __init__(
        self,
        ground: Ground,
        owner: bytes,
        poster: bytes,
        guardian: bytes,
        *,
        token: Artefact | None = None,
        delay_s: int = DELAY_S,
        max_daily: int = MAX_DAILY,
    ) -> None:
        """Deploy both; the three are secret keys."""
        self.ground = ground
        self.token = ground.deploy(owner, token or play_token())
        self.vault = ground.deploy(
            owner,
            vault(),
            self.token.address,
            Web3.to_checksum_address(address_of(poster)),
            Web3.to_checksum_address(address_of(guardian)),
            delay_s,
            max_daily,
        )

    @property
    def address(self) -> bytes:
        """The vault's address."""
        return bytes.fromhex(self.vault.address[2:])

    def chain(self, key: bytes) -> Web3Chain:
        """The vault as ``key`` sees it."""
        return Web3Chain(self.ground.web3, self.address, key)

    def deposit(self, key: bytes, units: int) -> None:
        """Mint play money for ``key`` and pay it in."""
        self.ground.call(key, self.token.functions.mint(checksummed(address_of(key)), units))
        self.ground.call(key, self.token.functions.approve(self.vault.address, units))
        self.ground.call(key, self.vault.functions.deposit(units))

    def balance(self, address: bytes) -> int:
        """What an address has of the token."""
        units: int = self.token.functions.balanceOf(checksummed(address)).call()
        return units


def deploy_vault(
    url: str,
    owner: bytes,
    token: bytes,
    poster: bytes,
    guardian: bytes,
    *,
    delay_s: int,
    max_daily: int,
) -> tuple[int, bytes]:
    """Deploy a vault on the chain behind a URL; ``owner`` is a secret key, the rest addresses.

    Returns the chain's number and the vault's address.

    Raises:
        InvalidRequest: the contract refuses these terms.
        Unavailable: the chain does not answer.
    """
    ground = Ground(Web3(HTTPProvider(url, request_kwargs={"timeout": ANSWER_S})))
    roles = (checksummed(token), checksummed(poster), checksummed(guardian))
    made = ground.deploy(owner, vault(), *roles, delay_s, max_daily)
    return ground.web3.eth.chain_id, bytes.fromhex(made.address[2:])
