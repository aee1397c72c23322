"""Beam search on the text engine: beams are forks, so that they share all memory they can.

A step forks each beam's sequence for every token that it goes on with and forgets the old one:
the first continuation inherits the blocks, the others share them and copy only what they write.
Knows nothing about which beams are good.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby

from starai.core.errors import ERRORS_BY_CODE, InternalFault, InvalidRequest
from starai.core.limits import TOP_LOGPROBS_MAX
from starai.engines.base import Emitted
from starai.engines.decoding.beams import BeamSearch, Hypothesis, Tops, run
from starai.engines.text.engine import TextEngine
from starai.protocol.generation import Generation

#: Makes the generation that goes on behind these tokens of the answer.
Continue = Callable[[Sequence[int]], Generation]
_ROOT = b""


class EngineBeams:
    """A `starai.engines.decoding.beams.Host`: beams by the sequence that computed their memory."""

    def __init__(
        self,
        engine: TextEngine,
        go_on: Continue,
        new_key: Callable[[], bytes],
        step: Callable[[], None],
    ) -> None:
        """Drive ``engine`` by ``step``, which hands what is emitted for our keys to `take`."""
        self._engine = engine
        self._go_on = go_on
        self._new_key = new_key
        self._step = step
        self._beams: dict[bytes, tuple[bytes, tuple[int, ...]]] = {}
        self._tops: dict[bytes, Tops | None] = {}

    def search(self, search: BeamSearch) -> list[Hypothesis]:
        """A whole search; nothing of it is left in the engine, whatever happens.

        Raises:
            InvalidRequest: it needs more than the engine tells or has places for.
        """
        check_width(search, self._engine.info.slots)
        root = self._new_key()
        self._beams[_ROOT] = (root, ())
        self._tops[root] = None
        try:
            self._engine.admit(root, self._go_on(()))
            self._await()
            first = self._tops[root]
            return run(search, self, _ROOT, first or ())
        finally:
            for key in self._tops:
                self._engine.cancel(key)

    def owns(self, key: bytes) -> bool:
        """Whether a sequence is one of ours."""
        return key in self._tops

    def take(self, news: Emitted) -> None:
        """What the engine says of a sequence of ours; only its first word counts.

        Raises:
            StarAIError: it failed.
        """
        if news.error:
            raise ERRORS_BY_CODE.get(news.error, InternalFault)
        if self._tops.get(news.key) is None:
            self._tops[news.key] = news.logprobs[0].top

    def fork(self, key: bytes, new_key: bytes) -> None:
        """Begin ``new_key`` as a copy of ``key``: they part in the next step."""
        self._beams[new_key] = self._beams[key]

    def remove(self, key: bytes) -> None:
        """Forget a beam."""
        del self._beams[key]

    def step(self, feeds: Mapping[bytes, int], count: int) -> Mapping[bytes, Tops]:
        """Append a token to each beam; each one's likeliest next tokens, at least ``count``."""
        parents = {key: self._beams[key][0] for key in feeds}
        for gone in set(self._tops) - set(parents.values()):
            self._forget(gone)
        # A parent goes as soon as its children are there: places are few.
        for parent, beams in groupby(sorted(feeds, key=parents.__getitem__), parents.__getitem__):
            for beam in beams:
                ids = (*self._beams[beam][1], feeds[beam])
                key = self._new_key()
                self._engine.fork(parent, key, self._go_on(ids))
                self._tops[key] = None
                self._beams[beam] = (key, ids)
            self._forget(parent)
        self._await()
        return {beam: self._tops[self._beams[beam][0]] or () for beam in feeds}

    def _forget(self, key: bytes) -> None:
        self._engine.cancel(key)
        del self._tops[key]

    def _await(self) -> None:
        while None in self._tops.values():
            self._step()


def check_width(search: BeamSearch, slots: int) -> None:
    """See that an engine can follow a search.

    Raises:
        InvalidRequest: it is too wide.
    """
    if search.num_candidates > TOP_LOGPROBS_MAX:
        widest = TOP_LOGPROBS_MAX * search.width // search.num_candidates
        raise InvalidRequest(f"this model's beam searches have up to {widest} beams", param="width")
    if 2 * search.width > slots:
        raise InvalidRequest(
            f"{search.width} beams need {2 * search.width} slots, the engine has {slots}",
            param="width",
        )
