"""What a server can do, what it is asked, what it says: the contract of a kind of server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from starai.engines.external.connection import Connection
from starai.models.manifest import ModelManifest
from starai.protocol.generation import Finish, Generation, TokenLogprobs


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What a probe found out about a server and the model on it.

    ``served`` is the model's name there. ``context_length`` and ``slots`` are 0 where the server
    does not say. With ``takes_ids`` a prompt goes as token ids, with ``gives_ids`` the answer's
    ids come back; without, they are worked out from text. ``grammars`` are the kinds of
    `starai.protocol.generation.Grammar` that it keeps to.
    """

    served: str
    version: str = ""
    context_length: int = 0
    slots: int = 0
    takes_ids: bool = False
    gives_ids: bool = False
    logprobs: bool = False
    grammars: frozenset[str] = frozenset()


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """One answer, or the rest of one, as a server is asked for it.

    ``ids`` (prompt, then what was accepted) or, for servers that take no ids, ``text``; ``tokens``
    how many more there may be; ``seed`` 31 bits that depend on the sample key and on how far the
    answer is.
    """

    generation: Generation
    ids: tuple[int, ...]
    text: str
    tokens: int
    seed: int


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """What one event of a server's stream says.

    ``ids`` where the server gives them, ``text`` where it does not, or where its ids may be
    incomplete. ``ended`` is why the answer is at its end.
    """

    ids: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[TokenLogprobs, ...] = ()
    ended: Finish | None = None


class Server(Protocol):
    """A kind of server.

    Attributes:
        name: what a person calls it.
        health: a path that a healthy server answers at once.
    """

    name: str
    health: str

    async def probe(self, connection: Connection, manifest: ModelManifest, served: str) -> Found:
        """Find out what a server of this kind can do for a model, named ``served`` if not empty.

        Raises:
            NotThis: it is no server of this kind.
            ConfigurationRefused: it is, but it cannot serve the model; says why.
            Unavailable: it cannot be reached, or is not ready yet.
        """
        ...

    def request(self, found: Found, wanted: Wanted) -> tuple[str, dict[str, Any]]:
        """Path and JSON body that ask for a stream."""
        ...

    def read(self, event: Mapping[str, Any]) -> Said:
        """What an event of the stream says.

        Raises:
            KeyError, TypeError, ValueError, IndexError: it is not of this server's form.
        """
        ...


class NotThis(Exception):
    """The server is of another kind."""
