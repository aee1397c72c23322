"""Which node should serve another model, because nobody asks for its own and somebody for that.

Slow on purpose: what is wanted must be wanted for a while, a node that changed stays for a longer
while, one change of a kind is awaited before the next, and a model that anybody asked for lately
keeps its last server. It does not know devices: a node says itself what it could load.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Final

import msgspec

#: A model is short of nodes when tasks have waited for it for so long without a pause.
WANTED_S: Final = 10.0
#: Without news of a shortage for so long it is over; shorter than that is only a gap.
PAUSE_S: Final = 3.0
#: A model that was asked for within this time keeps its last server.
REMEMBERED_S: Final = 300.0
#: A node keeps a model at least so long: loading takes a minute, and must be worth it.
SETTLED_S: Final = 180.0
#: How long a node that was told may take before another one is told for the same model.
LOADING_S: Final = 120.0
#: Models whose demand is remembered; what is beyond was made up.
MODELS_MAX: Final = 1024


class Server(msgspec.Struct, frozen=True):
    """A node as placement sees it: the model it serves, what it could, and how busy it is."""

    party: str
    model: str
    fits: Collection[str]
    running: int = 0


class Move(msgspec.Struct, frozen=True):
    """A node that should serve ``model`` instead of what it serves."""

    party: str
    model: str


class Placement:
    """What it remembers between two looks; times are monotonic seconds."""

    def __init__(self) -> None:
        """Remember nothing yet."""
        self._short_since: dict[str, float] = {}
        self._short_last: dict[str, float] = {}
        self._used_last: dict[str, float] = {}
        self._told: dict[str, float] = {}
        self._awaited: dict[str, float] = {}

    def decide(
        self, waiting: Mapping[str, int], servers: Iterable[Server], now_s: float
    ) -> Move | None:
        """One node to change, if that is called for; call it about once a second.

        ``waiting`` counts the tasks that wait for a model or were turned away, by its name.
        """
        nodes = sorted(servers, key=lambda one: one.party)
        self._notice(waiting, nodes, now_s)
        serving: dict[str, int] = {}
        for node in nodes:
            serving[node.model] = serving.get(node.model, 0) + 1
        # What nobody serves comes first, then what most wait for.
        for model in sorted(
            self._short(waiting, now_s), key=lambda one: (serving.get(one, 0), -waiting[one], one)
        ):
            able = [node for node in nodes if self._may_change(node, model, serving, now_s)]
            if not able:
                continue
            chosen = min(able, key=lambda one: self._worth(one, serving))
            self._told[chosen.party] = self._awaited[model] = now_s
            return Move(chosen.party, model)
        return None

    def _notice(self, waiting: Mapping[str, int], nodes: list[Server], now_s: float) -> None:
        for model, number in waiting.items():
            if number > 0 and (model in self._short_since or len(self._short_since) < MODELS_MAX):
                self._short_since.setdefault(model, now_s)
                self._short_last[model] = self._used_last[model] = now_s
        for node in nodes:
            if node.running:
                self._used_last[node.model] = now_s
        ended = [one for one, last_s in self._short_last.items() if now_s - last_s > PAUSE_S]
        for model in ended:
            del self._short_last[model], self._short_since[model]
        _forget(self._used_last, now_s - REMEMBERED_S)
        _forget(self._told, now_s - SETTLED_S)
        _forget(self._awaited, now_s - LOADING_S)

    def _short(self, waiting: Mapping[str, int], now_s: float) -> list[str]:
        return [
            model
            for model, since_s in self._short_since.items()
            if now_s - since_s >= WANTED_S and waiting.get(model) and model not in self._awaited
        ]

    def _may_change(
        self, node: Server, model: str, serving: Mapping[str, int], now_s: float
    ) -> bool:
        if node.running or node.party in self._told or model not in node.fits:
            return False
        if node.model == model or node.model in self._short_since:
            return False
        return serving[node.model] > 1 or node.model not in self._used_last

    def _worth(self, node: Server, serving: Mapping[str, int]) -> tuple[float, int, str]:
        """What the network would lose: the model asked for longest ago, then the most served."""
        return self._used_last.get(node.model, float("-inf")), -serving[node.model], node.party


def _forget(times: dict[str, float], oldest_s: float) -> None:
    for key in [key for key, at_s in times.items() if at_s < oldest_s]:
        del times[key]
