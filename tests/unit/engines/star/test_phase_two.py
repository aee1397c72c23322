"""The second phase is chosen by what the network costs."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from starai.core.errors import Overloaded
from starai.engines.star.phase_two import (
    Link,
    PhaseTwo,
    choose_phase_two,
    exchange_bytes,
    kv_bytes,
)
from starai.engines.star.planning import ModelShape

QWEN = ModelShape(28, 16, 128, 440_000_000, 114_688)
INTERNET = Link(0.050, 12.5e6)
BACKPLANE = Link(20e-6, 10e9)


def choose(link, output=100, context=16384, **more):
    return choose_phase_two(
        link, QWEN, context_tokens=context, query_tokens=50, output_tokens=output, hosts=4, **more
    )


def test_the_figures_of_the_small_model():
    """231 KB a token and host up over 28 layers; 1.88 GB to gather 16k tokens, half as int8."""
    up = QWEN.layers * QWEN.heads * (QWEN.head_width + 1) * 4
    assert up == 231_168
    both = QWEN.layers * exchange_bytes(QWEN, hosts=1)
    assert both == up + QWEN.layers * QWEN.heads * QWEN.head_width * 4
    assert kv_bytes(QWEN, 16384, int8=False) == 1_879_048_192
    assert kv_bytes(QWEN, 16384, int8=True) == 1_879_048_192 // 2 * 132 // 128


def test_long_answers_over_the_internet_are_gathered():
    """At 50 ms and 100 Mbit/s every token pays 28 round trips; a short answer still wins so."""
    long = choose(INTERNET, output=1000)
    assert long.mode is PhaseTwo.GATHERED
    assert long.distributed_s > 1000 * 28 * 0.05
    assert choose(INTERNET, output=1).mode is PhaseTwo.DISTRIBUTED


def test_short_answers_in_a_rack_stay_distributed():
    """Where a round trip is microseconds, moving gigabytes for a few tokens loses."""
    assert choose(BACKPLANE, output=10).mode is PhaseTwo.DISTRIBUTED


def test_int8_moves_the_border():
    """Half the bytes make gathering pay earlier."""
    crossing = [
        next(n for n in range(1, 5000) if choose(INTERNET, n, int8=i).mode is PhaseTwo.GATHERED)
        for i in (False, True)
    ]
    assert crossing[1] < 0.55 * crossing[0]


def test_memory_decides_first():
    """A context that does not fit the query host stays where it is; an answer must fit."""
    assert choose(INTERNET, 1000, room_tokens=10_000).mode is PhaseTwo.DISTRIBUTED
    assert choose(INTERNET, 1000, room_tokens=20_000).mode is PhaseTwo.GATHERED
    with pytest.raises(Overloaded):
        choose(INTERNET, 1000, room_tokens=1000)


@given(st.floats(1e-5, 1.0), st.floats(1e5, 1e11), st.integers(1, 5000), st.integers(16, 200_000))
def test_the_cheaper_one_is_chosen(rtt, rate, output, context):
    """Whatever the network, the choice has the smaller predicted time."""
    found = choose(Link(rtt, rate), output, context)
    cheaper = found.gathered_s <= found.distributed_s
    assert found.mode is (PhaseTwo.GATHERED if cheaper else PhaseTwo.DISTRIBUTED)
