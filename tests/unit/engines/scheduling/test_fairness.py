"""Who was served how much, and what is remembered of it."""

from __future__ import annotations

from starai.engines.scheduling.fairness import IDLE_TENANTS_MAX, TokenCounters


def test_a_tenants_service_survives_a_pause() -> None:
    """Who leaves and comes back soon has not been forgotten, nor is anything given back."""
    counters = TokenCounters()
    counters.enter(b"a")
    counters.charge(b"a", input_tokens=10, output_tokens=3)
    counters.leave(b"a")
    counters.enter(b"a")
    assert counters.served(b"a") == 16
    counters.lift(b"a", 5)
    assert counters.served(b"a") == 16
    counters.lift(b"a", 20)
    assert counters.served(b"a") == 20


def test_forgotten_tenants_take_no_memory() -> None:
    """Of the tenants without a job only so many are remembered; those with one always are."""
    counters = TokenCounters()
    counters.enter(b"busy")
    for number in range(IDLE_TENANTS_MAX + 50):
        counters.enter(b"%d" % number)
        counters.leave(b"%d" % number)
    assert len(counters) == IDLE_TENANTS_MAX + 1
    assert counters.served(b"busy") == 0
