"""Which node takes a task, who waits, who should serve another model: values in, a decision out.

No I/O, no clock; chance is an argument.
"""

from starai.matching.base import Candidate, Demand
from starai.matching.filtering import Reason
from starai.matching.placement import Move, Placement, Server
from starai.matching.pool import Pool
from starai.matching.prefixes import PrefixIndex, block_hashes
from starai.matching.queueing import FairQueue, Ticket

__all__ = [
    "Candidate",
    "Demand",
    "FairQueue",
    "Move",
    "Placement",
    "Pool",
    "PrefixIndex",
    "Reason",
    "Server",
    "Ticket",
    "block_hashes",
]
