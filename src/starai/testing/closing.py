"""A network's books for tests and benchmarks: paid work, confirmed by both sides, in blocks.

Rows are written as the registry writes them; money moves by the registry's own functions. The same
arguments give the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

from starai.ledger.events import Deposited, HoldPlaced, event_id
from starai.protocol.identity import Identity, KeyKind
from starai.protocol.payouts import sign_payout
from starai.protocol.records import TaskRecord, leaf_hash, set_root
from starai.protocol.registry import Confirm, Side, part_of
from starai.registry.log.blocks import close_block
from starai.registry.money.books import Invoice, Owed, apply_event, capture
from starai.registry.schema import bind_network
from starai.registry.storage.base import Connection

NETWORK: Final = "books"
BLOCK_MS: Final = 10_000
#: Midnight (UTC) of the first day.
FIRST_DAY_MS: Final = 1_800_057_600_000
DAY_MS: Final = 86_400_000
ACCOUNT: Final = Identity(hashlib.sha256(b"account").digest(), KeyKind.ACCOUNT)
DISTRIBUTOR: Final = Identity(hashlib.sha256(b"distributor").digest())
INPUT_NANO: Final = 21
OUTPUT_NANO: Final = 63
NODE_BPS: Final = 9_001
DEPOSIT_NANO: Final = 50_000_000_000
#: Records of a confirmation, at most.
_MOST: Final = 500
_PAYER: Final = 100
_INSERT_CONFIRM: Final = (
    "INSERT INTO confirm (block, signer, side, node, part, root, sig, leaves, at_ms, dist, charge)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING seq"
)
_INSERT_TASK: Final = (
    "INSERT INTO task (task_id, attempt, leaf, sides, state, block, node, dist, cust, model,"
    " in_tok, out_tok, price_id, charge, closed_ms, rec, dist_confirm, node_confirm)"
    " VALUES (?, 0, ?, 3, 3, ?, ?, ?, ?, ?, ?, ?, 1, ?, ?, ?, ?, ?)"
)


def node(number: int) -> Identity:
    """Node ``number``'s keys."""
    return Identity(hashlib.sha256(b"node %d" % number).digest())


def address(number: int) -> bytes:
    """A payout address."""
    return hashlib.sha256(b"address %d" % number).digest()[:20]


class PaidNetwork:
    """A registry's database in which work is paid for."""

    def __init__(self, connection: Connection, num_nodes: int = 4, num_customers: int = 2) -> None:
        """Take an empty database; make customers with deposits, their keys, and a price."""
        self.connection = connection
        self.nodes = [node(number) for number in range(num_nodes)]
        self.num_customers = num_customers
        self._num_tasks = 0
        bind_network(connection, NETWORK, BLOCK_MS)
        connection.execute(
            "INSERT INTO price (id, model, input_nano, output_nano, node_bps, valid_from_ms)"
            " VALUES (1, '*', ?, ?, ?, 0)",
            (INPUT_NANO, OUTPUT_NANO, NODE_BPS),
        )
        for number in range(1, num_customers + 1):
            self._customer(number)

    def _customer(self, number: int) -> None:
        self.connection.execute(
            "INSERT INTO customer (id, name, created_ms, credit_nano, address)"
            " VALUES (?, ?, ?, 0, ?)",
            (number, f"Customer {number}", FIRST_DAY_MS, address(1_000_000 + number)),
        )
        self.connection.execute(
            "INSERT INTO key (key_id, key_hash, name, customer, rpm, tpm, created_ms, version,"
            " owner) VALUES (?, ?, 'key', ?, 0, 0, ?, ?, ?)",
            (f"k{number}", b"%32d" % number, _PAYER + number, FIRST_DAY_MS, number, number),
        )
        apply_event(
            self.connection,
            Deposited(
                event_id=event_id(b"deposit", b"%d" % number),
                at_ms=FIRST_DAY_MS,
                customer=number,
                amount=DEPOSIT_NANO * len(self.nodes),
                ref=b"paid in",
            ),
        )

    def hold(self, number: int, name: bytes, amount: int, at_ms: int) -> None:
        """Set money of customer ``number`` aside for its key."""
        hold_id = hashlib.sha256(name).digest()[:16]
        apply_event(
            self.connection,
            HoldPlaced(
                event_id=event_id(b"hold", name),
                at_ms=at_ms,
                hold_id=hold_id,
                customer=number,
                payer=_PAYER + number,
                amount=amount,
                expires_ms=at_ms + DAY_MS,
            ),
        )

    def bind(self, number: int, payee: bytes, at_ms: int) -> None:
        """Let node ``number`` be paid at an address from ``at_ms`` on."""
        self.connection.execute(
            "INSERT INTO payout (node, address, bound_ms, sig) VALUES (?, ?, ?, ?)",
            (
                *(self.nodes[number].raw, payee, at_ms),
                sign_payout(NETWORK, self.nodes[number], payee, at_ms),
            ),
        )

    def work(self, num_tasks: int, at_ms: int, nodes: Sequence[int] | None = None) -> None:
        """Let nodes do ``num_tasks`` tasks each, which both sides confirm and customers pay."""
        for number in nodes if nodes is not None else range(len(self.nodes)):
            for start in range(0, num_tasks, _MOST):
                self._confirmed(self.nodes[number], min(_MOST, num_tasks - start), at_ms)

    def _confirmed(self, by: Identity, num_tasks: int, at_ms: int) -> None:
        records = [self._record(by, at_ms) for _ in range(num_tasks)]
        canonical = [one.canonical() for one in records]
        leaves = [leaf_hash(one) for one in canonical]
        root, charge = set_root(leaves), sum(one.charge_nano_usd for one in records)
        seqs = [
            self._confirm(side, by, leaves, root, charge, at_ms)
            for side in (Side.DISTRIBUTOR, Side.NODE)
        ]
        slot = at_ms // BLOCK_MS
        ((last,),) = self.connection.execute("SELECT COALESCE(MAX(seq), 0) FROM task")
        self.connection.executemany(
            _INSERT_TASK,
            [
                (
                    *(one.task_id, leaf, slot, one.node, one.distributor, one.customer),
                    *(one.model_root, one.prompt_tokens, one.answer_tokens),
                    *(one.charge_nano_usd, one.closed_ms, data, *seqs),
                )
                for one, data, leaf in zip(records, canonical, leaves, strict=True)
            ],
        )
        owed = [
            Owed(
                *(last + 1 + place, leaf, one.customer, one.price_id),
                *(one.prompt_tokens, one.answer_tokens, one.charge_nano_usd),
            )
            for place, (one, leaf) in enumerate(zip(records, leaves, strict=True))
        ]
        capture(self.connection, [Invoice(by.raw, owed, at_ms, slot)])

    def _confirm(
        self, side: Side, by: Identity, leaves: list[bytes], root: bytes, charge: int, at_ms: int
    ) -> int:
        signer = by if side is Side.NODE else DISTRIBUTOR
        slot, part = at_ms // BLOCK_MS, part_of(root)
        said = Confirm(
            network=NETWORK,
            block=slot,
            part=part,
            side=side,
            node=by.party,
            distributor=DISTRIBUTOR.party,
            count=len(leaves),
            charge_nano_usd=charge,
            root=root,
            signature=b"",
        )
        ((seq,),) = self.connection.execute(
            _INSERT_CONFIRM,
            (
                *(slot, signer.raw, int(side), by.raw, part, root),
                *(signer.sign(said.signed_bytes()), b"".join(sorted(leaves)), at_ms),
                *(DISTRIBUTOR.raw, charge),
            ),
        )
        return int(seq)

    def _record(self, by: Identity, at_ms: int) -> TaskRecord:
        self._num_tasks += 1
        number = self._num_tasks
        prompt, answer = 10 + number % 7, 20 + number % 13
        return TaskRecord(
            task_id=number.to_bytes(16, "big"),
            attempt=0,
            node=by.raw,
            distributor=DISTRIBUTOR.raw,
            customer=_PAYER + 1 + number % self.num_customers,
            model_root=b"m" * 32,
            prompt_tokens=prompt,
            answer_tokens=answer,
            price_id=1,
            charge_nano_usd=prompt * INPUT_NANO + answer * OUTPUT_NANO,
            offered_ms=at_ms - 5,
            closed_ms=at_ms,
            request_hash=b"q" * 32,
            answer_hash=b"a" * 32,
            proof_hash=b"p" * 32,
        )

    def close_block(self, at_ms: int) -> None:
        """Close a block over all that is new."""
        close_block(self.connection, NETWORK, ACCOUNT, at_ms)
