"""A real registry for tests: over the wire in memory, with its books in a file of the test's."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from starai.core.concurrency import task_group
from starai.protocol.identity import PartyId
from starai.protocol.subjects import Role
from starai.registry.service import Registry, RegistryConfig
from starai.registry.storage import open_store
from starai.testing.parties import Parties


@asynccontextmanager
async def running_registry(
    parties: Parties,
    members: Mapping[PartyId, Role],
    folder: Path,
    *,
    maturity_ms: int = 172_800_000,
) -> AsyncIterator[Registry]:
    """A registry that knows ``members``, inside the context; again with the same books later."""
    member = parties.join(Role.REGISTRY)
    config = RegistryConfig(
        network=member.network,
        block_ms=member.block_ms,
        parties=members,
        maturity_ms=maturity_ms,
    )
    async with open_store(folder / "registry.db", inline=True) as store, task_group() as tasks:
        registry = Registry(
            *(config, member.wire, store, parties.account, parties.clock, parties.randomness)
        )
        await tasks.start(registry.run)
        yield registry
        tasks.cancel_scope.cancel()
