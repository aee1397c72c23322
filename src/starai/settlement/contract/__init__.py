"""The contract's source and what it compiles to: who settles needs no compiler.

``vault.vy`` is what a network deploys; ``play_token.vy`` is money for demonstrations. The
``.json`` beside each is written by ``make contracts`` and compared with the source by the tests.
Knows nothing of any chain.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

import msgspec


class Artefact(msgspec.Struct, frozen=True):
    """A compiled contract: its interface, the bytecode that deploys it (hex), its compiler."""

    compiler: str
    bytecode: str
    abi: list[dict[str, Any]]


@cache
def vault() -> Artefact:
    """The contract that holds deposits and pays claims."""
    return _read("vault.json")


@cache
def play_token() -> Artefact:
    """A token that anybody may mint."""
    return _read("play_token.json")


def _read(name: str) -> Artefact:
    return msgspec.json.decode(files(__name__).joinpath(name).read_bytes(), type=Artefact)
