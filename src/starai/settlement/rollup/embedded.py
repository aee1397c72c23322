"""A whole chain in this process: py-evm through eth-tester, with accounts that have play money.

Its blocks and its time are made by whoever has it. Everything else asks it as any other chain, by
`starai.settlement.rollup.json_rpc.Web3Chain`: what eth-tester raises in its own way is put as a
node would put it.
"""

from __future__ import annotations

from typing import Any

from eth_tester import EthereumTester, PyEVMBackend
from eth_tester.exceptions import TransactionFailed, ValidationError as RefusedByTester
from eth_utils.exceptions import ValidationError as RefusedByMachine
from web3 import EthereumTesterProvider, Web3
from web3.exceptions import ContractLogicError, Web3Exception

from starai.settlement.rollup import restore_recursion_limit

restore_recursion_limit()


class _Provider(EthereumTesterProvider):  # type: ignore[misc]
    """Raises what web3 raises for a node's refusals."""

    def make_request(self, method: Any, params: Any) -> Any:
        """Answer one request."""
        try:
            return super().make_request(method, params)
        except TransactionFailed as error:
            raise ContractLogicError(str(error)) from error
        except (RefusedByTester, RefusedByMachine) as error:
            raise Web3Exception(str(error)) from error


def embedded() -> tuple[Web3, EthereumTester]:
    """A fresh chain, and what makes its blocks; ten accounts have gas, see `key_of`."""
    tester = EthereumTester(PyEVMBackend())
    restore_recursion_limit()  # it imports py-evm only now
    return Web3(_Provider(tester)), tester


def key_of(number: int) -> bytes:
    """The secret key of a funded account; ``number`` counts from 1 to 10."""
    return number.to_bytes(32, "big")
