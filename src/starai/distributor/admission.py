"""The distributor's own measurement of nodes: it believes no speed that it has not seen.

A node that is new, or has not been looked at for a while, is asked to continue a prompt made from a
fresh seed when it has nothing else to do; up to two others of the same model get the same. What it
took is the node's speed from then on, should it claim more; an answer that the majority does not
give is held against it. Nobody pays for these answers, and they are on no record.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Final

import anyio
import msgspec

from starai.core.errors import StarAIError
from starai.core.logging import event
from starai.core.randomness import uuid7
from starai.exchange.base import short
from starai.exchange.caller.offering import Ask, Offering
from starai.exchange.member import Member
from starai.exchange.routes.routing import Routing
from starai.exchange.standing.ladder import Fault
from starai.fitting.admission import (
    ANSWER_TOKENS,
    PROMPT_TOKENS,
    SMALL_PROMPT_TOKENS,
    Measured,
    Timing,
    believed,
    compare,
    measured,
    prompt_of,
)
from starai.protocol import tokens
from starai.protocol.generation import Generation, Sampling
from starai.protocol.identity import PartyId
from starai.protocol.presence import UNKNOWN_QUANTISATION, Beat, ServedModel
from starai.protocol.subjects import Role

_LOG = logging.getLogger(__name__)

#: How often it is looked whether somebody is to be measured.
LOOK_S: Final = 1.0
#: A node is measured when it has been idle for so long: whoever waits for it goes first.
IDLE_S: Final = 5.0
#: Measured again after about this long; the moment is random, so that nobody can be ready for it.
AGAIN_S: Final = 900.0
#: After a measurement that came to nothing.
RETRY_S: Final = 30.0
#: How long one may take: 256 tokens read and 32 written at the pace of the slowest of devices.
LONGEST_S: Final = 60.0
#: Nodes whose measurements are kept, and how many others are asked the same.
NODES_MAX: Final = 4096
PEERS: Final = 2
#: The network itself asks; no customer does.
_CUSTOMER: Final = 0

_Key = tuple[PartyId, bytes]


class _Known(msgspec.Struct):
    """What was found of one node and model: ``right`` is None while nobody could say."""

    boot: int
    rates: Measured | None
    right: bool | None
    due_s: float


class Admission:
    """Measures nodes one at a time. ``believed`` corrects what they say of themselves."""

    def __init__(self, member: Member, offering: Offering, nodes: Routing) -> None:
        """Ask through ``offering`` whoever ``nodes`` sees."""
        self._member = member
        self._offering = offering
        self._nodes = nodes
        self._known: OrderedDict[_Key, _Known] = OrderedDict()
        self._idle_since_s: dict[PartyId, float] = {}
        nodes.roster.believe = self.believed

    def believed(self, party: PartyId, model: ServedModel) -> ServedModel:
        """A node's model with the speeds that are believed of it."""
        known = self._known.get((party, model.model_root))
        if known is None or known.rates is None:
            return model
        return msgspec.structs.replace(
            model,
            prefill_tps=believed(model.prefill_tps, known.rates.prefill),
            decode_tps=believed(model.decode_tps, known.rates.decode),
        )

    async def run(self) -> None:
        """Measure whoever is due, until cancelled."""
        while True:
            await anyio.sleep(LOOK_S)
            found = min(self._due(), key=lambda one: one[0], default=None)
            if found is not None:
                await self._examine(*found[1])

    def _due(self) -> Iterator[tuple[float, tuple[Beat, ServedModel]]]:
        """Idle nodes whose turn it is, with since when; nodes never measured go first."""
        now_s = self._member.clock.monotonic_s()
        serving = list(self._nodes.roster.serving())
        there = {beat.party for beat, _ in serving}
        self._idle_since_s = {p: s for p, s in self._idle_since_s.items() if p in there}
        for beat, model in serving:
            if beat.running or beat.queued:
                self._idle_since_s.pop(beat.party, None)
                continue
            since_s = self._idle_since_s.setdefault(beat.party, now_s)
            known = self._known.get((beat.party, model.model_root))
            due_s = known.due_s if known is not None and known.boot == beat.boot else -1.0
            if now_s - since_s >= IDLE_S and now_s >= due_s:
                yield due_s, (beat, model)

    async def _examine(self, beat: Beat, model: ServedModel) -> None:
        seed = self._member.randomness.take(32)
        clock, key = self._member.clock, (beat.party, model.model_root)
        before = self._known.get(key)
        answer = await self._measure(beat, model, seed)
        if answer is None:
            rates = before.rates if before is not None and before.boot == beat.boot else None
            self._keep(key, _Known(beat.boot, rates, None, clock.monotonic_s() + RETRY_S))
            return
        ids, rates = answer
        if self._exaggerates(model, rates):
            # Something else may have been in its way, once.
            again = await self._measure(beat, model, self._member.randomness.take(32))
            rates = rates.better(again[1]) if again is not None else rates
        answers: dict[str, list[int]] = {beat.party: ids}
        for peer, served in self._peers(beat, model):
            other = await self._measure(peer, served, seed)
            if other is not None:
                answers[peer.party] = other[0]
        right = compare(answers)
        wait_s = AGAIN_S * (0.5 + self._member.randomness.fraction())
        known = _Known(beat.boot, rates, right[beat.party], clock.monotonic_s() + wait_s)
        self._keep(key, known)
        self._tell(beat, model, known)
        if known.right is False:
            # One that was asked beside it gets its own turn: nobody is blamed twice for one lie.
            self._nodes.blame(beat.party, Fault.WRONG_ANSWER)
        self._nodes.roster.changed(beat.party)

    def _peers(self, beat: Beat, model: ServedModel) -> list[tuple[Beat, ServedModel]]:
        """Others that should give the same answer, those found right before first."""
        if model.quantisation == UNKNOWN_QUANTISATION:
            return []
        same = [
            (other, served)
            for other, served in self._nodes.roster.serving()
            if other.party != beat.party
            and served.model_root == model.model_root
            and served.quantisation == model.quantisation
        ]

        def is_unproven(pair: tuple[Beat, ServedModel]) -> bool:
            known = self._known.get((pair[0].party, model.model_root))
            return known is None or not known.right

        return sorted(same, key=is_unproven)[:PEERS]

    async def _measure(
        self, beat: Beat, model: ServedModel, seed: bytes
    ) -> tuple[list[int], Measured] | None:
        """The answer of a node and its speed; None when it gave none."""
        num_prompt = max(1, min(PROMPT_TOKENS, model.context_length // 2))
        num_answer = max(1, min(ANSWER_TOKENS, model.context_length // 4))
        small = await self._ask(beat, model, seed, min(SMALL_PROMPT_TOKENS, num_prompt), 1)
        whole = await self._ask(beat, model, seed, num_prompt, num_answer) if small else None
        if small is None or whole is None:
            return None
        ids, timing = whole
        return ids, measured(timing, num_prompt, small[1].first_s)

    async def _ask(
        self, beat: Beat, model: ServedModel, seed: bytes, num_prompt: int, num_answer: int
    ) -> tuple[list[int], Timing] | None:
        """A timed answer; None when there was none."""
        if beat.prekey is None:
            return None
        clock, randomness = self._member.clock, self._member.randomness
        prompt = prompt_of(seed, num_prompt)
        generation = Generation(
            prompt=tokens.pack(prompt),
            max_tokens=num_answer,
            sampling=Sampling(seed, temperature=0.0),
            stop_token_ids=(),
            salt=randomness.take(16),
            # Of nobody else's: an answer from memory would look fast.
            cache_salt=randomness.take(32),
        )
        ask = Ask(
            task_id=uuid7(clock, randomness),
            attempt=0,
            callee=beat.party,
            role=Role.NODE,
            prekey=beat.prekey,
            model_root=model.model_root,
            customer=_CUSTOMER,
            deadline_ms=clock.now_ms() + int(LONGEST_S * 1000),
            generation=generation,
        )
        try:
            with anyio.fail_after(LONGEST_S):
                return await self._timed(ask)
        except (TimeoutError, StarAIError):
            return None  # busy, gone or broken: that costs it elsewhere

    async def _timed(self, ask: Ask) -> tuple[list[int], Timing] | None:
        """An answer, and when its parts came; None when it has no token."""
        now_s: Callable[[], float] = self._member.clock.monotonic_s
        begun_s = now_s()
        first_s = last_s = 0.0
        num_first, ids = 0, list[int]()
        async with self._offering.offer(ask) as stream:
            try:
                while not stream.finished:
                    part = await stream.receive()
                    at_s = now_s() - begun_s
                    new = list(tokens.unpack(part.ids))
                    if new and not ids:
                        first_s, num_first = at_s, len(new)
                    last_s = at_s if new else last_s
                    ids += new
            finally:
                stream.forgo()
        return (ids, Timing(first_s, last_s, num_first, len(ids))) if ids else None

    @staticmethod
    def _exaggerates(model: ServedModel, rates: Measured) -> bool:
        """Whether a node claims more than what was seen allows."""
        return (
            believed(model.prefill_tps, rates.prefill) < model.prefill_tps
            or believed(model.decode_tps, rates.decode) < model.decode_tps
        )

    def _keep(self, key: _Key, known: _Known) -> None:
        self._known[key] = known
        self._known.move_to_end(key)
        while len(self._known) > NODES_MAX:
            self._known.popitem(last=False)

    def _tell(self, beat: Beat, model: ServedModel, known: _Known) -> None:
        doubtful = known.rates is not None and self._exaggerates(model, known.rates)
        event(
            _LOG,
            "node_measured",
            logging.WARNING if doubtful or known.right is False else logging.INFO,
            party=short(beat.party),
            model=model.name,
            right=known.right,
            claimed_decode_tps=round(model.decode_tps, 1),
            decode_tps=round(known.rates.decode.tps, 1) if known.rates else 0.0,
            claimed_prefill_tps=round(model.prefill_tps, 1),
            prefill_tps=round(known.rates.prefill.tps, 1) if known.rates else 0.0,
        )
