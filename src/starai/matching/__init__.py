"""Which node takes a task: values in, a ranking out. No I/O, no clock, no chance."""

from starai.matching.base import Candidate, Demand, Policy
from starai.matching.finish_time import FinishTime

POLICIES: dict[str, type[Policy]] = {"finish-time": FinishTime}

__all__ = ["POLICIES", "Candidate", "Demand", "FinishTime", "Policy"]
