"""What is said about the registry's log: to witnesses on the wire, to people in answers.

The registry has one log for all records. Its checkpoints are signed by the network's own key, so
that everybody who knows the network can check them; witnesses add their own signatures. Names
follow C2SP's formats: the log and each witness have one without spaces.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from starai.protocol.fields import Count
from starai.protocol.frames import Message, travels
from starai.protocol.identity import PartyId, party_id
from starai.protocol.subjects import Role

#: A checkpoint is some 300 characters, a witness's line some 200.
CHECKPOINT_CHARS_MAX: Final = 2_048
#: Who may witness: the side that is paid, and the side that pays.
WITNESS_ROLES: Final = (Role.NODE, Role.GATEWAY)
#: Hashes of a proof; see `starai.ledger.merkle_log.PROOF_HASHES_MAX`.
_PROOF_HASHES_MAX: Final = 64

_Text = Annotated[str, msgspec.Meta(max_length=CHECKPOINT_CHARS_MAX)]
_Hash = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
_Hashes = Annotated[tuple[_Hash, ...], msgspec.Meta(max_length=_PROOF_HASHES_MAX)]


@travels(50)
class Witnessing(Message, frozen=True):
    """A witness to the registry: what it believes, and its signature under that, if it is new.

    ``note`` is the checkpoint of ``size`` records that it believed last, or empty; ``line`` its
    cosignature, or empty. It then hears what came after.
    """

    size: Count
    note: _Text = ""
    line: _Text = ""


@travels(51)
class Witnessed(Message, frozen=True):
    """The answer: the newest checkpoint, with a proof from ``size`` on; or no note, to wait.

    ``again_ms`` is when the registry would like to hear from the witness again.
    """

    size: Count
    again_ms: Count
    note: _Text = ""
    proof: _Hashes = ()


class ProvenRecord(msgspec.Struct, frozen=True):
    """One record of a task, and its place in the log: leaf ``index``, with the path to the root.

    ``record`` are its canonical bytes; ``state`` is its standing at present, which is in no log.
    """

    attempt: int
    state: str
    record: bytes
    index: int
    path: tuple[bytes, ...]


class TaskProof(msgspec.Struct, frozen=True):
    """A task's records in the log of the checkpoint ``note``, which is signed and cosigned."""

    note: str
    records: tuple[ProvenRecord, ...]


class ConsistencyProof(msgspec.Struct, frozen=True):
    """That the log of the checkpoint ``old_note`` begins the one of ``note``."""

    old_note: str
    note: str
    path: tuple[bytes, ...]


def log_origin(network: str) -> str:
    """The name of a network's log."""
    return f"starai/{network}"


def witness_name(network: str, role: Role, party: PartyId) -> str:
    """The name of a witness of that log."""
    return f"{log_origin(network)}/{role.value}/{party}"


def witness_of(network: str, name: str) -> tuple[Role, PartyId] | None:
    """Whose name that is, or None if it is no witness's of that log.

    Raises:
        MalformedFrame: it ends in no party's name.
    """
    for role in WITNESS_ROLES:
        prefix = witness_name(network, role, PartyId(""))
        if name.startswith(prefix):
            return role, party_id(name.removeprefix(prefix))
    return None
