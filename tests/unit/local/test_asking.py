"""The operator's hands: keys and tokens are made here, and no secret of theirs travels."""

from __future__ import annotations

import base64
from pathlib import Path

import anyio
import pytest

from starai.core.clock import AnyioClock
from starai.core.randomness import SeededRandomness
from starai.exchange.member import Member
from starai.local.asking import Operator
from starai.protocol.api_keys import KEY_PREFIX, hash_api_key
from starai.protocol.frames import decode, encode
from starai.protocol.identity import Identity, KeyKind
from starai.protocol.ports import Delivery
from starai.protocol.presence import Beat
from starai.protocol.registry import Admitted, Join, KeyTable
from starai.protocol.subjects import KEYS_CHANGED, Role, beat, registry
from starai.protocol.tickets import JoinTicket
from starai.registry.service import RegistryConfig, run_registry
from starai.registry.storage import open_store
from starai.wire.memory import MemoryNetwork

pytestmark = pytest.mark.anyio

_CHANCE = SeededRandomness(21)
_ACCOUNT = Identity.create(_CHANCE, KeyKind.ACCOUNT)
_SELF, _OPERATOR, _WATCHER, _NEWCOMER = (Identity.create(_CHANCE) for _ in range(4))


@pytest.fixture
def anyio_backend(virtual_time):
    return virtual_time


def _member(network: MemoryNetwork) -> Member:
    return Member(
        wire=network.connect(_OPERATOR.party, Role.OPERATOR),
        identity=_OPERATOR,
        credential=lambda: "",
        account=_ACCOUNT.nkey,
        network="quiet",
        block_ms=1000,
        clock=AnyioClock(),
        randomness=_CHANCE,
    )


async def _join(network: MemoryNetwork, ticket: JoinTicket) -> Admitted:
    joiner = Identity.from_seed(ticket.seed)
    wire = network.connect(joiner.party, Role.JOINER)
    join = Join.signed(ticket.token_id, _NEWCOMER, joiner, "attic")
    frame = await wire.request(registry("join", joiner.party), encode(join), timeout_s=5)
    return decode(frame, Admitted)


def _spellings(*secrets: str) -> list[bytes]:
    """Each secret as text, and what its base64 or base32 stands for."""
    found = [secret.encode() for secret in secrets]
    for secret in secrets:
        if secret.startswith(KEY_PREFIX):
            body = secret.removeprefix(KEY_PREFIX)
            found += [body.encode(), base64.urlsafe_b64decode(body + "=")]
        else:
            raw = base64.b32decode(secret + "=" * (-len(secret) % 8))[2:-2]
            found += [raw, raw.hex().encode(), base64.b64encode(raw)[:40]]
    return found


async def test_no_secret_travels_or_rests(tmp_path: Path) -> None:
    """Whoever hears every message and has the registry's files learns no key and no token."""
    heard: list[bytes] = []
    told: list[KeyTable] = []
    async with (
        open_store(tmp_path / "registry.db", inline=True) as store,
        MemoryNetwork() as network,
        network.connect(_WATCHER.party).subscribe(">", lambda d: heard.append(d.payload)),
        network.connect(_WATCHER.party).subscribe(
            KEYS_CHANGED, lambda d: told.append(decode(d.payload, KeyTable))
        ),
        anyio.create_task_group() as tasks,
    ):
        config = RegistryConfig("quiet", 1000, ("nats://x",), {_OPERATOR.party: Role.OPERATOR})
        own = network.connect(_SELF.party, Role.REGISTRY)

        async def run(*, task_status) -> None:
            await run_registry(
                config, own, store, _ACCOUNT, AnyioClock(), _CHANCE, task_status=task_status
            )

        await tasks.start(run)
        asked = Operator(_member(network))
        key = await asked.create_key("alice", 60, 0)
        text = await asked.create_token(Role.NODE, 1, 3_600_000, "attic")
        ticket = JoinTicket.parse(text)
        admitted = await _join(network, ticket)
        stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
        tasks.cancel_scope.cancel()
    assert (admitted.network, admitted.account) == (ticket.network, ticket.account)
    assert [one.entries[0].key_hash for one in told] == [hash_api_key(key)]
    everything = b"\0".join((stored, *heard))
    for shown in (hash_api_key(key), ticket.token_id, ticket.credential.encode()):
        assert shown in everything  # the watcher did hear, and the files were read
    for secret in (text.encode(), *_spellings(key, ticket.seed, _NEWCOMER.seed)):
        assert secret not in everything


def _beat(of: Identity, draining: bool = False) -> bytes:
    return encode(Beat(of.party, "node", 1, 1, 1 << 46, draining, 0, 0, 0, 0))


async def test_nobody_is_seen_through_anothers_beat() -> None:
    """A node that beats in another's name is not heard; nor does a future date keep it alive."""
    async with MemoryNetwork() as network:
        asked = Operator(_member(network))
        asked.hear(Delivery(beat(Role.NODE, _WATCHER.party), _beat(_NEWCOMER, draining=True)))
        asked.hear(Delivery(beat(Role.GATEWAY, _WATCHER.party), _beat(_WATCHER)))
        assert asked.beats() == []
        asked.hear(Delivery(beat(Role.NODE, _NEWCOMER.party), _beat(_NEWCOMER)))
        assert [one.party for one in asked.beats(Role.NODE)] == [_NEWCOMER.party]
        await anyio.sleep(5)
        asked.forget_silent(3)
        assert asked.beats() == []
