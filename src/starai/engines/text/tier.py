"""What carries KV blocks between the pool and the tier behind it, and what that costs.

Blocks that others take are copied out of the pool before the step goes on, and brought to the tier
behind the steps; what is read comes into the pool between steps. Every transfer is timed, and so is
every prompt: `choose` and `head` compare what it takes to read tokens with what it takes to compute
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from starai.core.clock import Clock
from starai.engines.paging.cost import Action, Gap, Rates, choose
from starai.engines.paging.memory import Copy, Return
from starai.engines.text.pool import KeyValuePool
from starai.engines.text.shelf import Arrived, Behind, File, InMemory, Shelf

#: What a machine is taken for until it was measured; the trial below measures the tier.
_FIRST_RATES: Final = Rates(0.0, 0.0, 500.0)
#: Blocks that are carried to the tier and back once, to know its speed before it matters.
_TRIAL_BLOCKS: Final = 8
#: The share of the pool's bytes that may wait in memory on their way to a file, and as many on
#: their way back: enough for a prompt that takes a crowd's blocks, and little beside the pool.
_WAITING: Final = 1 / 8
#: The most of that, in bytes: a second of a good disk.
_WAITING_BYTES_MAX: Final = 1 << 28
#: Reads that take no longer than this, in seconds, are waited for: a fraction of a step, while who
#: comes back a step later needs a whole one more.
_SOON_S: Final = 0.005


class Tier:
    """The blocks behind a pool, and the measured rates."""

    def __init__(
        self,
        pool: KeyValuePool,
        tier_blocks: int,
        clock: Clock,
        *,
        disk: bool,
        always: Action | None = None,
    ) -> None:
        """Set ``tier_blocks`` aside, on disk or in memory; the pool's layers must be there.

        ``always`` takes the choice away.

        Raises:
            ConfigurationRefused: there is no room for the file.
        """
        self.rates = _FIRST_RATES
        self._always = always
        self._pool = pool
        self._clock = clock
        row_bytes = pool.bytes_per_block
        trial = [Copy(n, n) for n in range(min(_TRIAL_BLOCKS, tier_blocks, pool.num_blocks))]
        if disk:
            file = File(tier_blocks, row_bytes)
            most = min(int(_WAITING * pool.num_blocks * row_bytes), _WAITING_BYTES_MAX)
            self._shelf: Shelf = Behind(file, row_bytes, most, clock, len(trial))
        else:
            self._shelf = InMemory(tier_blocks, row_bytes)
            self.swap_out(trial)
            self.bring(Return(b"", tuple(trial)))
            for arrived in self.collect():
                self.load(arrived, trial)
        self._observe()

    def swap_out(self, copies: Sequence[Copy]) -> list[int]:
        """Carry blocks to tier slots, behind the steps; returns the slots that it did not take."""
        if not copies:
            return []
        begun = self._clock.monotonic_s()
        rows = self._pool.rows([copy.source for copy in copies])
        refused = self._shelf.put([copy.target for copy in copies], rows)
        if not self._shelf.behind:
            self._shelf.written.add(rows.numel(), self._since(begun))
        return refused

    def bring(self, back: Return) -> None:
        """Begin to read what a sequence needs; `collect` has it later."""
        if back.reads:
            self._shelf.ask(back.key, back.reads)

    def forget(self, key: bytes) -> None:
        """The sequence ended, or gives way again: nothing is read for it any more."""
        self._shelf.forget(key)

    def collect(self) -> list[Arrived]:
        """What came from the tier, or is lost; `load` puts it into the pool."""
        self._observe()
        begun = self._clock.monotonic_s()
        taken = self._shelf.take()
        if taken and not self._shelf.behind:
            rows = sum(len(arrived.copies) for arrived in taken)
            self._shelf.read.add(rows * self._pool.bytes_per_block, self._since(begun))
        return taken

    def load(self, arrived: Arrived, wanted: Sequence[Copy]) -> None:
        """Put those of the rows that are ``wanted`` into their blocks."""
        if arrived.rows is None or not wanted:
            return
        begun, rows = self._clock.monotonic_s(), arrived.rows
        if len(wanted) < len(arrived.copies):
            rows = rows[[n for n, copy in enumerate(arrived.copies) if copy in wanted]]
        self._pool.put_rows([copy.target for copy in wanted], rows)
        if not self._shelf.behind:
            self._shelf.read.add(0, self._since(begun))

    @property
    def reading(self) -> bool:
        """Whether something is still to come from the tier."""
        return self._shelf.asked_rows > 0

    @property
    def soon(self) -> bool:
        """Whether all of that should be here before a step would be missed for it."""
        return self.rates.read_seconds(self._queued_bytes) <= _SOON_S

    def wait(self, seconds: float) -> None:
        """Until something came from the tier, there is nothing to wait for, or time is over."""
        self._shelf.wait(seconds)

    def note_prefill(self, tokens: int, start: int, seconds: float) -> None:
        """A pass over ``tokens`` of a prompt from ``start`` on took ``seconds``."""
        self.rates = self.rates.observe_prefill(tokens, seconds, start)

    def choose(self, private_tokens: int, cached_tokens: int, others: int) -> Action:
        """Whether to keep what others take for the sequence; see `Costs.choose`."""
        return self._always or choose(self._gap(private_tokens, cached_tokens, others), self.rates)

    def head(self, lost_tokens: int, start: int, others: int) -> int:
        """How much of what is lost to compute; see `Costs.head`."""
        if self._always is Action.SWAP:
            return 0
        return self._gap(lost_tokens, start, others).head(self.rates)

    def _gap(self, tokens: int, start: int, others: int) -> Gap:
        size, queued = self._pool.bytes_per_token, self._queued_bytes
        return Gap(tokens, start, size, others, queued, self._pool.block_tokens)

    @property
    def _queued_bytes(self) -> int:
        return self._shelf.asked_rows * self._pool.bytes_per_block

    def _observe(self) -> None:
        """Learn from what was carried since."""
        written, read = self._shelf.written.reset(), self._shelf.read.reset()
        self.rates = self.rates.observe_write(*written).observe_read(*read)

    def _since(self, begun: float) -> float:
        return self._clock.monotonic_s() - begun
