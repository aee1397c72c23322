"""What the registry says of its log is checked against the network's key, and nothing else."""

from __future__ import annotations

import msgspec
import pytest

from starai.core.errors import MalformedFrame, SealBroken, StarAIError
from starai.core.randomness import SeededRandomness
from starai.ledger.checkpoints import Checkpoint, cosign, sign_checkpoint, with_cosignatures
from starai.ledger.merkle_log import MemoryTiles, MerkleLog
from starai.local.proving import check_checkpoint, check_consistency, check_task
from starai.protocol.identity import Identity, KeyKind, PartyId
from starai.protocol.log import (
    ConsistencyProof,
    ProvenRecord,
    TaskProof,
    log_origin,
    witness_name,
    witness_of,
)
from starai.protocol.records import leaf_hash
from starai.protocol.subjects import Role
from starai.testing.records import NETWORK, NODES, record

_CHANCE = SeededRandomness(41)
ACCOUNT, OTHER = (Identity.create(_CHANCE, KeyKind.ACCOUNT) for _ in range(2))
RECORDS = [record(number).canonical() for number in range(1, 12)]
LOG = MerkleLog(MemoryTiles())
LOG.extend(map(leaf_hash, RECORDS))
TASK = record(5).task_id.hex()


def note(size: int, signer: Identity = ACCOUNT, network: str = NETWORK) -> str:
    checkpoint = Checkpoint(log_origin(network), size, LOG.root(size))
    text = checkpoint.text()
    node = NODES[0]
    name = witness_name(network, Role.NODE, node.party)
    line = cosign(text, name, node.raw, 1_800_000_000, node.sign)
    return with_cosignatures(sign_checkpoint(checkpoint, signer.raw, signer.sign), [line])


def task_proof(**changes: object) -> TaskProof:
    made = ProvenRecord(0, "matched", RECORDS[4], 4, tuple(LOG.inclusion(4)))
    return TaskProof(note(11), (msgspec.structs.replace(made, **changes),))


def test_a_sound_proof_holds() -> None:
    """The task is in the signed log, and the witness is named; also after a way through JSON."""
    sent = msgspec.json.decode(msgspec.json.encode(task_proof()))
    proof = msgspec.convert(sent, TaskProof)
    assert proof == task_proof()
    checked = check_task(proof, TASK.upper(), NETWORK, ACCOUNT.nkey)
    assert (checked.size, checked.root) == (11, LOG.root())
    ((witness),) = checked.cosignatures
    assert (witness.role, witness.party, witness.unix_s) == (
        Role.NODE,
        NODES[0].party,
        1_800_000_000,
    )
    consistent = ConsistencyProof(note(5), note(11), tuple(LOG.consistency(5)))
    old, new = check_consistency(consistent, NETWORK, ACCOUNT.nkey)
    assert (old.size, new) == (5, checked)


@pytest.mark.parametrize(
    "proof",
    [
        task_proof(index=5),
        task_proof(record=RECORDS[5]),
        task_proof(record=RECORDS[4][:-1]),
        task_proof(attempt=1),
        task_proof(path=()),
        task_proof(path=(bytes(31),)),
        msgspec.structs.replace(task_proof(), note=note(10)),
        msgspec.structs.replace(task_proof(), note=note(11, OTHER)),
        msgspec.structs.replace(task_proof(), note=note(11, network="other")),
        msgspec.structs.replace(task_proof(), note="rubbish"),
        msgspec.structs.replace(task_proof(), records=()),
    ],
)
def test_a_lie_is_found(proof: TaskProof) -> None:
    """Another place, record, attempt, path, log, key or network: nothing of it is believed."""
    with pytest.raises((SealBroken, MalformedFrame)):
        check_task(proof, TASK, NETWORK, ACCOUNT.nkey)


def test_a_proof_of_another_task_is_none() -> None:
    """A sound proof of a task that was not asked for."""
    with pytest.raises(SealBroken, match="another task"):
        check_task(task_proof(), record(6).task_id.hex(), NETWORK, ACCOUNT.nkey)


def test_other_logs_are_not_consistent() -> None:
    """A proof between sizes that it is not of."""
    for old, path in ((4, LOG.consistency(5)), (5, []), (5, LOG.consistency(4))):
        with pytest.raises(SealBroken):
            check_consistency(
                ConsistencyProof(note(old), note(11), tuple(path)), NETWORK, ACCOUNT.nkey
            )


def test_a_forged_witness_is_found() -> None:
    """A line in a witness's name that it did not sign; lines of others mean nothing."""
    base = sign_checkpoint(
        Checkpoint(log_origin(NETWORK), 11, LOG.root()), ACCOUNT.raw, ACCOUNT.sign
    )
    text, node, liar = note(11).split("\n\n")[0] + "\n", NODES[0], NODES[1]
    name = witness_name(NETWORK, Role.GATEWAY, node.party)
    foreign = cosign(text, "witness.example.com/w1", liar.raw, 5, liar.sign)
    passed = check_checkpoint(with_cosignatures(base, [foreign]), NETWORK, ACCOUNT.nkey)
    assert passed.cosignatures == ()
    for line in (
        cosign(text, name, node.raw, 5, liar.sign),
        cosign(text, name, liar.raw, 5, liar.sign),
        cosign(text, witness_name(NETWORK, Role.NODE, PartyId("nobody")), liar.raw, 5, liar.sign),
    ):
        with pytest.raises(StarAIError):
            check_checkpoint(with_cosignatures(base, [line]), NETWORK, ACCOUNT.nkey)


def test_witnesses_names() -> None:
    """A name says the network, the role and the party; other names are no witness's."""
    name = witness_name(NETWORK, Role.GATEWAY, NODES[0].party)
    assert witness_of(NETWORK, name) == (Role.GATEWAY, NODES[0].party)
    assert witness_of("other", name) is None
    assert witness_of(NETWORK, name.replace("gateway", "distributor")) is None
    assert witness_of(NETWORK, log_origin(NETWORK)) is None
