"""The contract of an engine. Synchronous; it lives in a worker process.

An engine knows token ids and nothing else: no text, no nodes, no network, no payment.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from starai.protocol.generation import Finish, Generation, TokenLogprobs


class EngineSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which engine to open, and on what.

    ``kind`` is ``text`` or ``mock``; ``model`` a reference of `starai.models.catalog.open_model`,
    ``store`` its folder of pulled models or empty. ``slots`` is how many sequences run at once,
    ``threads`` 0 leaves the number to the engine. ``options`` are the engine kind's own.
    """

    kind: str
    model: str
    store: str = ""
    slots: int = 8
    threads: int = 0
    options: dict[str, float | str] = {}


class EngineInfo(msgspec.Struct, frozen=True):
    """What an open engine serves.

    ``sampler`` says how tokens are drawn: ``keyed`` by the canonical sampler, so that any such node
    goes on with the same tokens; ``own`` by a server's own; ``text`` likewise, with ids that were
    worked out from text. After the latter two a resumed answer goes on sensibly, not identically.
    """

    name: str
    model_root: bytes
    vocab_size: int
    context_length: int
    slots: int
    sampler: str = "keyed"


class Emitted(msgspec.Struct, frozen=True):
    """One sequence's tokens of a step, or of several quick ones.

    ``finish`` or ``error`` (the code of an error class) end the sequence. The token that stopped
    an answer is the last of ``ids``: it is no text, but proofs and resumption must see it.
    ``logprobs`` has an entry for each id if the generation asked for them, else none.
    ``embedding`` (little-endian float32, unit length) is the whole answer to one with ``embed``.
    """

    key: bytes
    ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]
    finish: Finish | None = None
    error: str = ""
    embedding: bytes = b""


#: Called with a key, the position in prompt-and-answer of the first row, and the hidden states
#: [positions, width] after the final norm, float32: what a proof of inference sketches.
HiddenStatesHook = Callable[[bytes, int, NDArray[np.float32]], None]


class Engine(Protocol):
    """Runs several generations at once, step by step."""

    @property
    def info(self) -> EngineInfo:
        """What this engine serves."""
        ...

    def prepare(self, generation: Generation) -> bool:
        """Whether `admit` would take it, or refuse it, at once.

        If not, what it lacks (a compiled grammar) is made ready aside: ask again later.
        """
        ...

    def admit(self, key: bytes, generation: Generation) -> None:
        """Take a sequence; its tokens come from `step` under ``key``.

        Raises:
            ContextTooLong: the prompt leaves no room for one token.
            InvalidRequest: the generation makes no sense, or the key is in use.
            Overloaded: no slot is free.
        """
        ...

    def step(self) -> list[Emitted]:
        """One batched iteration over everything admitted; a sequence without news is absent.

        A sequence that cannot go on is emitted with its error; the others are not disturbed.
        """
        ...

    def cancel(self, key: bytes) -> None:
        """Forget a sequence; nothing of it is emitted from now on. Unknown keys are ignored."""
        ...

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        ...

    def on_hidden_states(self, hook: HiddenStatesHook | None) -> None:
        """Have ``hook`` called within each step; None stops it."""
        ...
