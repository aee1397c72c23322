"""How a predicted speed becomes a measured one: the first real tasks correct it."""

from __future__ import annotations

from typing import Final

#: How much a new measurement counts against all the old ones together, in the long run.
WEIGHT: Final = 0.2


def corrected(expected: float, measured: float, number: int) -> float:
    """The speed to expect after the ``number``-th measurement, counted from 1.

    A prediction counts like one measurement: the first real one halves its error, and the fifth
    leaves little of it. From then on it is an exponential moving average.
    """
    if expected <= 0:
        return measured
    weight = max(WEIGHT, 1 / (number + 1))
    return expected + weight * (measured - expected)
