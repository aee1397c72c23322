"""The least that a node works for: offers below a price it knows of are not served."""

import anyio
import pytest

from starai.core.clock import SystemClock
from starai.core.randomness import SeededRandomness
from starai.node.pricing import GRACE_MS, SKEW_MS, LeastPrices
from starai.protocol.identity import Identity
from starai.protocol.registry import PriceEntry, Prices
from starai.protocol.tasks import TaskHeader

pytestmark = pytest.mark.anyio

ME = Identity.create(SeededRandomness(1)).party
START_MS = 1_800_000_000_000


@pytest.fixture
def anyio_backend(virtual_time):
    return virtual_time


class SetClock(SystemClock):
    """A clock that stands still."""

    unix_ms = START_MS

    def now_ms(self) -> int:
        return self.unix_ms


def _offer(price_id, per_input, per_output, customer=7, max_tokens=100):
    return TaskHeader(
        *(b"t" * 16, 0, ME, ME, b"s" * 16, b"m" * 32, 10, max_tokens, 1, 2, customer),
        *(price_id, per_input, per_output, b"h" * 32),
    )


def _least(*rows, since_ms=0):
    clock = SetClock()
    least = LeastPrices(clock)
    least.apply(Prices(0, ()))
    clock.unix_ms += 2 * GRACE_MS
    if rows:
        entries = [PriceEntry(*row, since_ms) for row in rows]
        least.apply(Prices(max(one.price_id for one in entries), tuple(entries)))
    return least, clock


@pytest.mark.parametrize(
    ("offer", "model", "has_accepted", "enough"),
    [
        (_offer(1, 3, 4), "a", False, True),
        (_offer(1, 9, 9), "a", False, True),
        (_offer(0, 0, 0), "a", False, False),
        (_offer(0, 3, 4), "a", False, False),
        (_offer(1, 3, 3), "a", False, False),
        (_offer(1, 0, 4), "a", False, False),
        (_offer(1, 0, 4), "a", True, True),
        (_offer(1, 3, 4), "b", False, False),
        (_offer(2, 5, 6), "b", False, True),
        (_offer(2, 5, 6), "a", False, False),
        (_offer(9, 9, 9), "a", False, False),
        (_offer(0, 0, 0, customer=0, max_tokens=32), "a", False, True),
        (_offer(0, 0, 0, customer=0, max_tokens=33), "a", False, False),
    ],
)
async def test_an_offer_below_the_price_is_not_enough(offer, model, has_accepted, enough):
    """It names the model's row and pays by it; measurements, and prompts paid for, are free."""
    least, _ = _least((1, "*", 3, 4), (2, "b", 5, 6))
    assert await least.is_enough(offer, model, has_accepted=has_accepted) is enough


async def test_whatever_comes_is_enough_where_nothing_costs_anything():
    """Before a table has come, with an empty one, and by a row of zeros."""
    for least in (LeastPrices(SetClock()), _least()[0], _least((1, "*", 0, 0))[0]):
        assert await least.is_enough(_offer(0, 0, 0), "a", has_accepted=False)


async def test_a_replaced_price_is_good_as_long_as_requests_may_go_by_it():
    """One that begins is good a little before, the one before it for as long as a request lasts."""
    least, clock = _least((1, "*", 9, 9))
    begin_ms = clock.unix_ms + 3 * GRACE_MS
    old, new = _offer(1, 9, 9), _offer(2, 1, 1)
    least.apply(Prices(2, (PriceEntry(1, "*", 9, 9, 0), PriceEntry(2, "*", 1, 1, begin_ms))))

    async def good(now_ms):
        clock.unix_ms = now_ms
        return [await least.is_enough(one, "a", has_accepted=False) for one in (old, new)]

    assert await good(begin_ms - SKEW_MS - 1) == [True, False]
    assert await good(begin_ms - SKEW_MS) == [True, True]
    clock.unix_ms = begin_ms + 1
    least.apply(Prices(2, (PriceEntry(2, "*", 1, 1, begin_ms),)))
    assert await good(begin_ms + GRACE_MS - 1) == [True, True]
    assert await good(begin_ms + GRACE_MS) == [False, True]


async def test_a_row_that_is_still_to_come_is_waited_for():
    """A gateway may hear of a price first: its offer waits until the node has heard of it, too."""
    least, clock = _least((1, "*", 9, 9))
    found = []

    async def ask() -> None:
        found.append(await least.is_enough(_offer(2, 1, 1), "a", has_accepted=False))

    async with anyio.create_task_group() as group:
        group.start_soon(ask)
        await anyio.sleep(0.5)
        assert not found
        least.apply(Prices(2, (PriceEntry(2, "*", 1, 1, clock.unix_ms),)))
    assert found == [True]
