"""The owner's own work comes first: a node that notices it gives way, and comes back after.

`policy` decides, `sensors` look, `watching` acts, `priority` and `caps` keep the engine small.
"""

from __future__ import annotations

from starai.node.yielding.base import Limits, Reading, Verdict, Yield
from starai.node.yielding.watching import Yielding

__all__ = ["Limits", "Reading", "Verdict", "Yield", "Yielding"]
