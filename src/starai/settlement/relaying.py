"""Claims for many payees in one transaction, so that who has no gas is paid all the same.

The money goes to the payee whoever asks for it, so relaying needs no trust and no signature of
theirs. Nothing need be durable: what was claimed already is passed over by the contract, so asking
again costs gas and nothing else. The relayer's key is not the poster's: their transactions must
not wait for each other. Knows nothing of who the payees are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

from starai.core.errors import Unavailable
from starai.settlement.rollup.base import Chain, Claim, Receipt

#: Claims of one transaction: 50 times 35,000 gas stays well below any block's limit, and the
#: contract takes 64.
CLAIMS_MAX: Final = 50
#: A claim of less than this many base units (a cent) costs more than it brings on most chains.
LEAST_UNITS: Final = 10_000
#: Room above the estimate: a payee's first claim in between makes another's no dearer.
_GAS_MARGIN: Final = 1.2


class Relayed(NamedTuple):
    """One transaction: how many claims it carried, and what became of it."""

    claims: int
    tx_hash: bytes
    receipt: Receipt


def due(chain: Chain, claims: Iterable[Claim], least_units: int = LEAST_UNITS) -> Iterator[Claim]:
    """Those of ``claims`` that have at least ``least_units`` to claim."""
    for one in claims:
        if one.units - chain.claimed(one.account) >= max(1, least_units):
            yield one


def relay(
    chain: Chain,
    claims: Iterable[Claim],
    wait: Callable[[], None],
    *,
    at_once: int = CLAIMS_MAX,
    waits_max: int = 60,
) -> Iterator[Relayed]:
    """Send ``claims`` in transactions of ``at_once``, each once the one before is in a block.

    Args:
        chain: the vault, asked with the relayer's key.
        claims: what is due, with proofs against the active root.
        at_once: claims of one transaction.
        wait: returns after a moment; called between two looks for a receipt.
        waits_max: how many looks before giving up.

    Raises:
        Unavailable: the chain refuses, or the transaction is in no block after ``waits_max``
            looks; relaying again later is safe.
    """
    batch: list[Claim] = []
    for one in claims:
        batch.append(one)
        if len(batch) == at_once:
            yield _send(chain, batch, wait, waits_max)
            batch = []
    if batch:
        yield _send(chain, batch, wait, waits_max)


def _send(chain: Chain, batch: list[Claim], wait: Callable[[], None], waits_max: int) -> Relayed:
    data = chain.claim_data(batch)
    estimate = chain.estimate(data)
    if estimate.refusal:
        raise Unavailable(f"the vault would refuse these claims: {estimate.refusal}")
    gas = int(estimate.gas * _GAS_MARGIN)
    signed = chain.sign(data, chain.next_nonce(), gas, chain.suggested_fee())
    said = chain.broadcast(signed.raw)
    for _ in range(waits_max):
        receipt = chain.receipt(signed.tx_hash)
        if receipt is not None:
            return Relayed(len(batch), signed.tx_hash, receipt)
        wait()
    raise Unavailable(f"the claims are in no block yet: {said or 'the chain is slow'}")
