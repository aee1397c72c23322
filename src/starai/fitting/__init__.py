"""Which models fit a device, how fast they would be there, and whether a node's claims are true."""

from starai.fitting.base import Choice, Need, Plan, Pool, Prediction, Wishes, Work
from starai.fitting.choosing import fit
from starai.fitting.memory import need
from starai.fitting.pools import pools
from starai.fitting.speed import FACTORS, Factors, from_slice, predict, work_of

__all__ = [
    "FACTORS",
    "Choice",
    "Factors",
    "Need",
    "Plan",
    "Pool",
    "Prediction",
    "Wishes",
    "Work",
    "fit",
    "from_slice",
    "need",
    "pools",
    "predict",
    "work_of",
]
