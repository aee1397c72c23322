"""A vault on any chain that speaks Ethereum's JSON-RPC, through web3; signed by eth-account.

`Web3Chain` is also what runs the embedded chain: only the provider below web3 differs. What the
node behind the URL says is believed: run one, or ask one that you trust.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from eth_account import Account
from eth_account.signers.local import LocalAccount
from web3 import HTTPProvider, Web3
from web3.exceptions import (
    BadFunctionCallOutput,
    BlockNotFound,
    ContractLogicError,
    TransactionNotFound,
    Web3Exception,
)

from starai.core.errors import ConfigurationRefused, Unavailable
from starai.settlement.contract import vault
from starai.settlement.rollup import restore_recursion_limit
from starai.settlement.rollup.base import (
    BlockRef,
    Claim,
    Estimate,
    Fee,
    Funds,
    Happening,
    Post,
    Receipt,
    Signed,
    Standing,
    What,
)

restore_recursion_limit()

#: How long one answer may take: public nodes sometimes need seconds, and the next step asks again.
ANSWER_S: Final = 20.0
#: Offered over twice the base fee, which then may double before the transaction is stuck.
_LEAST_TIP_WEI: Final = 1_000_000_000


def connect(url: str, contract: bytes, key: bytes, *, answer_s: float = ANSWER_S) -> Web3Chain:
    """The vault at ``contract`` on the chain behind ``url``, asked with the secret ``key``."""
    provider = HTTPProvider(
        url, request_kwargs={"timeout": answer_s}, exception_retry_configuration=None
    )
    return Web3Chain(Web3(provider), contract, key)


class Web3Chain:
    """`starai.settlement.rollup.base.Chain` through web3."""

    def __init__(self, web3: Web3, contract: bytes, key: bytes) -> None:
        """Take a connected web3, the vault's address and the secret key that signs.

        Raises:
            ConfigurationRefused: the key is no key, or the address no address.
        """
        try:
            self._account: LocalAccount = Account.from_key(key)
            self.contract = contract
            self._vault = web3.eth.contract(Web3.to_checksum_address(contract), abi=vault().abi)
        except (TypeError, ValueError) as error:
            raise ConfigurationRefused("a key has 32 bytes and an address 20") from error
        self._web3 = web3
        self._chain_id: int | None = None
        self.sender = bytes.fromhex(self._account.address[2:])

    @property
    def chain_id(self) -> int:
        """The chain's number (EIP-155)."""
        if self._chain_id is None:
            with asking():
                self._chain_id = self._web3.eth.chain_id
        return self._chain_id

    def tip(self) -> BlockRef:
        """The newest block."""
        with asking():
            return _block_ref(self._web3.eth.get_block("latest"))

    def block_hash(self, number: int) -> bytes | None:
        """The hash of the block at a height, or None if the chain is not that long."""
        with asking():
            try:
                return bytes(self._web3.eth.get_block(number)["hash"])
            except BlockNotFound:
                return None

    def standing(self, block: int) -> Standing | None:
        """How far the vault was after block number ``block``; None if there was no vault then."""
        with asking():
            try:
                return Standing(*self._vault.functions.standing().call(block_identifier=block))
            except BadFunctionCallOutput:
                return None

    def funds(self) -> Funds:
        """What the vault holds."""
        with asking():
            return Funds(*self._vault.functions.funds().call())

    def claimed(self, account: bytes) -> int:
        """What an address has been paid since the beginning."""
        with asking():
            units: int = self._vault.functions.payee(Web3.to_checksum_address(account)).call()[0]
            return units

    def next_nonce(self) -> int:
        """How many transactions of the sender are in blocks."""
        with asking():
            count: int = self._web3.eth.get_transaction_count(self._account.address, "latest")
            return count

    def suggested_fee(self) -> Fee:
        """Twice the newest base fee, and the tip that the node suggests."""
        with asking():
            base = self._web3.eth.get_block("latest").get("baseFeePerGas", 0)
            tip = max(self._web3.eth.max_priority_fee, _LEAST_TIP_WEI)
            return Fee(2 * base + tip, tip)

    def post_data(self, post: Post) -> bytes:
        """The bytes that ask the vault to post."""
        return self._encoded("post", list(post))

    def claim_data(self, claims: Sequence[Claim]) -> bytes:
        """The bytes that ask the vault to pay these claims."""
        rows = [
            (Web3.to_checksum_address(one.account), one.units, list(one.proof)) for one in claims
        ]
        return self._encoded("claim_many", [rows])

    def _encoded(self, name: str, arguments: list[Any]) -> bytes:
        return bytes.fromhex(self._vault.encode_abi(name, args=arguments)[2:])

    def estimate(self, data: bytes) -> Estimate:
        """What sending ``data`` to the vault now would come to."""
        with asking():
            try:
                gas = self._web3.eth.estimate_gas(
                    {"from": self._account.address, "to": self._vault.address, "data": data},
                    "latest",
                )
            except ContractLogicError as error:
                return Estimate(0, str(error.message or error))
            return Estimate(gas)

    def sign(self, data: bytes, nonce: int, gas: int, fee: Fee) -> Signed:
        """A transaction to the vault; nothing is sent."""
        made = self._account.sign_transaction(
            {
                "type": 2,
                "chainId": self.chain_id,
                "to": self._vault.address,
                "data": data,
                "value": 0,
                "nonce": nonce,
                "gas": gas,
                "maxFeePerGas": fee.most,
                "maxPriorityFeePerGas": fee.tip,
            }
        )
        return Signed(bytes(made.raw_transaction), bytes(made.hash), nonce, fee)

    def broadcast(self, raw: bytes) -> str:
        """Send a signed transaction; empty, or what the chain says against it."""
        try:
            self._web3.eth.send_raw_transaction(raw)
        except (Web3Exception, OSError, ValueError) as error:
            return str(error) or type(error).__name__
        return ""

    def receipt(self, tx_hash: bytes) -> Receipt | None:
        """What became of a transaction; None as long as it is in no block."""
        with asking():
            try:
                found = self._web3.eth.get_transaction_receipt(tx_hash)
            except TransactionNotFound:
                return None
            if found["blockNumber"] is None:
                return None
            return Receipt(found["status"] == 1, found["blockNumber"], found["gasUsed"])

    def happenings(self, first: int, last: int) -> list[Happening]:
        """What the vault reported in the blocks from ``first`` to ``last``, in order."""
        found = []
        seen: Counter[bytes] = Counter()
        names = self._names()
        with asking():
            logs = self._web3.eth.get_logs(
                {"address": self._vault.address, "fromBlock": first, "toBlock": last}
            )
            for log in sorted(logs, key=lambda one: (one["blockNumber"], one["logIndex"])):
                index = seen[bytes(log["transactionHash"])]
                seen[bytes(log["transactionHash"])] += 1
                name = names.get(bytes(log["topics"][0]))
                if name is not None:
                    said = self._vault.events[name]().process_log(log)
                    block = _block_ref(self._web3.eth.get_block(log["blockHash"]))
                    found.append(_happening(What(name), block, index, said))
        return found

    def _names(self) -> dict[bytes, str]:
        """The events that matter, by their first topic."""
        kinds = set(What)
        return {
            bytes(
                Web3.keccak(text=f"{one['name']}({','.join(i['type'] for i in one['inputs'])})")
            ): (one["name"])
            for one in vault().abi
            if one["type"] == "event" and one["name"] in kinds
        }


@contextmanager
def asking() -> Iterator[None]:
    """Whatever keeps an answer away becomes `Unavailable`."""
    try:
        yield
    except (Web3Exception, OSError) as error:
        raise Unavailable(f"the chain does not answer: {error or type(error).__name__}") from error


def _block_ref(block: Any) -> BlockRef:
    return BlockRef(block["number"], bytes(block["hash"]), block["timestamp"])


def _happening(what: What, block: BlockRef, index: int, said: Any) -> Happening:
    values = said["args"]
    return Happening(
        what,
        block,
        bytes(said["transactionHash"]),
        index,
        bytes.fromhex(values["account"][2:]) if "account" in values else b"",
        values.get("amount", 0),
        values.get("epoch", 0),
        bytes(values.get("root", b"")),
    )
