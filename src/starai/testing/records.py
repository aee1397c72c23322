"""Task records and signed confirmations for tests and simulations; the same ones every time."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from starai.core.randomness import SeededRandomness
from starai.protocol.identity import Identity, KeyKind, PartyId, public_nkey
from starai.protocol.records import TaskRecord, leaf_hash, set_root
from starai.protocol.registry import Confirm, Side, part_of

NETWORK = "test"
BLOCK_MS = 2_000
START_MS = 1_800_000_000_000

_RANDOMNESS = SeededRandomness(1)
NODES = tuple(Identity.create(_RANDOMNESS) for _ in range(3))
DISTRIBUTOR = Identity.create(_RANDOMNESS)
STRANGER = Identity.create(_RANDOMNESS)


def record(number: int, *, node: Identity = NODES[0], **changes: object) -> TaskRecord:
    """Record ``number`` of ``node`` and `DISTRIBUTOR`, with any field changed."""
    made = TaskRecord(
        task_id=number.to_bytes(16, "big"),
        attempt=0,
        node=node.raw,
        distributor=DISTRIBUTOR.raw,
        customer=7,
        model_root=b"m" * 32,
        prompt_tokens=10,
        answer_tokens=20 + number,
        price_id=0,
        charge_nano_usd=0,
        offered_ms=START_MS,
        closed_ms=START_MS + 5,
        request_hash=b"q" * 32,
        answer_hash=b"a" * 32,
        proof_hash=b"p" * 32,
    )
    return msgspec.structs.replace(made, **changes)


def confirm(
    side: Side,
    records: Sequence[TaskRecord],
    signer: Identity,
    /,
    *,
    by_root: bool = False,
    **changes: object,
) -> Confirm:
    """A confirmation as ``signer`` signs it; ``changes`` are made before the signing.

    ``by_root``: without the records.
    """
    canonical = [one.canonical() for one in records]
    root = set_root(leaf_hash(one) for one in canonical)
    made = Confirm(
        network=NETWORK,
        block=records[0].block(BLOCK_MS),
        part=part_of(root),
        side=side,
        node=PartyId(public_nkey(KeyKind.USER, records[0].node)),
        distributor=PartyId(public_nkey(KeyKind.USER, records[0].distributor)),
        count=len(records),
        charge_nano_usd=sum(one.charge_nano_usd for one in records),
        root=root,
        signature=b"",
        records=b"" if by_root else b"".join(canonical),
    )
    made = msgspec.structs.replace(made, **changes)
    return msgspec.structs.replace(made, signature=signer.sign(made.signed_bytes()))
