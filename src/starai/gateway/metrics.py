"""What the gateway counts, in Prometheus' text format 0.0.4; labels come from closed sets."""

from __future__ import annotations

from collections import defaultdict
from typing import Final

#: Seconds; from a short answer of a mock to the longest that a deadline allows.
_BOUNDS: Final = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)

Labels = tuple[tuple[str, str], ...]


def _written(labels: Labels) -> str:
    inner = ",".join(f'{name}="{value}"' for name, value in labels)
    return f"{{{inner}}}" if inner else ""


class Histogram:
    """Counts of durations under growing bounds."""

    __slots__ = ("_counts", "_sum")

    def __init__(self) -> None:
        """Start at zero."""
        self._counts = [0] * (len(_BOUNDS) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        """Count one duration."""
        self._sum += seconds
        for place, bound in enumerate(_BOUNDS):
            if seconds <= bound:
                self._counts[place] += 1
                return
        self._counts[-1] += 1

    def lines(self, name: str, labels: Labels) -> list[str]:
        """The histogram's samples."""
        found = []
        total = 0
        for bound, count in zip((*_BOUNDS, float("inf")), self._counts, strict=True):
            total += count
            limit = "+Inf" if bound == float("inf") else f"{bound:g}"
            found.append(f"{name}_bucket{_written((*labels, ('le', limit)))} {total}")
        found.append(f"{name}_sum{_written(labels)} {self._sum:.6f}")
        found.append(f"{name}_count{_written(labels)} {total}")
        return found


class GatewayMetrics:
    """One gateway's counters."""

    def __init__(self) -> None:
        """Start at zero."""
        self._requests: defaultdict[tuple[str, int], int] = defaultdict(int)
        self._seconds: defaultdict[str, Histogram] = defaultdict(Histogram)
        self._first_token = Histogram()
        self._prompt_tokens = 0
        self._completion_tokens = 0
        self._hang_ups = 0
        #: Requests of the hot routes in progress.
        self.in_flight = 0

    def request(self, route: str, status: int, seconds: float) -> None:
        """A request was answered; ``route`` is one of the gateway's own names for them."""
        self._requests[route, status] += 1
        self._seconds[route].observe(seconds)

    def hang_up(self) -> None:
        """A client left before its answer was complete."""
        self._hang_ups += 1

    def first_token(self, seconds: float) -> None:
        """The first text of an answer came ``seconds`` after its request."""
        self._first_token.observe(seconds)

    def tokens(self, prompt: int, completion: int) -> None:
        """Tokens of a request that was at least begun."""
        self._prompt_tokens += prompt
        self._completion_tokens += completion

    def text(self) -> bytes:
        """All samples."""
        lines = ["# TYPE starai_gateway_requests_total counter"]
        for (route, status), count in sorted(self._requests.items()):
            labels = (("route", route), ("status", str(status)))
            lines.append(f"starai_gateway_requests_total{_written(labels)} {count}")
        lines += [
            "# TYPE starai_gateway_tokens_total counter",
            f'starai_gateway_tokens_total{{kind="prompt"}} {self._prompt_tokens}',
            f'starai_gateway_tokens_total{{kind="completion"}} {self._completion_tokens}',
            "# TYPE starai_gateway_hang_ups_total counter",
            f"starai_gateway_hang_ups_total {self._hang_ups}",
            "# TYPE starai_gateway_in_flight gauge",
            f"starai_gateway_in_flight {self.in_flight}",
            "# TYPE starai_gateway_first_token_seconds histogram",
            *self._first_token.lines("starai_gateway_first_token_seconds", ()),
            "# TYPE starai_gateway_request_seconds histogram",
        ]
        for route, histogram in sorted(self._seconds.items()):
            lines += histogram.lines("starai_gateway_request_seconds", (("route", route),))
        return ("\n".join(lines) + "\n").encode()
