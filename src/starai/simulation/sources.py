"""Reads the measured data that scenarios name: distances, device speeds, requests, spot churn.

Where a file is absent it says which; a scenario may allow made-up distributions in its place. It
does not know what the data is used for.
"""

from __future__ import annotations

import csv
import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from starai.core.errors import ConfigurationRefused

Floats = npt.NDArray[np.float64]
T = TypeVar("T")

PING: Final = "geo/wondernetwork_222x222/ping.bin"
SPEEDS: Final = "devices/llm_speed_geerling.csv"
AZURE: Final = "traces/azure2023/AzureLLMInferenceTrace_conv.csv"
MOONCAKE: Final = "traces/mooncake/conversation_trace.jsonl"
SPOT: Final = "traces/bamboo_spot"
CITIES: Final = 222
#: Stands in the table where a distance was not measured.
UNKNOWN_RTT_S: Final = 0.3
#: Tokens of one block of a Mooncake prompt.
TRACE_BLOCK: Final = 512
#: Made-up distributions: the size of the world and of a trace, and its lengths (log-normal, with
#: the means of the Azure conversations).
SYNTHETIC_SEED: Final = 222
SYNTHETIC_REQUESTS: Final = 6000
SYNTHETIC_SPAN_S: Final = 1800.0


class Speed(msgspec.Struct, frozen=True):
    """A measured device: tokens a second when it writes one answer, and what computes."""

    system: str
    decode_tps: float
    is_gpu: bool


class Request(msgspec.Struct, frozen=True, gc=False):
    """A line of a trace; ``blocks`` name the prompt's blocks of `TRACE_BLOCK` tokens, if known."""

    at_s: float
    prompt: int
    answer: int
    blocks: tuple[int, ...] = ()


class _MooncakeLine(msgspec.Struct, frozen=True):
    timestamp: float
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...] = ()


class Sources:
    """The folder of measured data; ``made_up`` lists what was absent and stood in for."""

    def __init__(self, folder: Path, *, synthetic_if_absent: bool) -> None:
        """Read from ``folder``."""
        self._folder = folder
        self._synthetic = synthetic_if_absent
        self.made_up: list[str] = []

    def rtts_s(self, name: str) -> Floats:
        """Round trips between all cities in seconds, symmetric."""
        _known(name, ("wondernetwork",))
        return self._read(PING, _read_ping, _synthetic_ping)

    def speeds(self, name: str, model: str) -> list[Speed]:
        """The devices that ran ``model``."""
        _known(name, ("geerling",))
        return self._read(SPEEDS, lambda path: _read_speeds(path, model), _synthetic_speeds)

    def trace(self, name: str) -> list[Request]:
        """The requests of a trace, from second 0 on."""
        _known(name, ("azure", "mooncake"))
        if name == "azure":
            return self._read(AZURE, _read_azure, _synthetic_trace)
        return self._read(MOONCAKE, _read_mooncake, _synthetic_trace)

    def spot(self) -> list[list[tuple[float, float]]]:
        """For each recorded group: seconds, and the share of its instances that ran from then."""
        return self._read(SPOT, _read_spot, None)

    def _read(self, name: str, read: Callable[[Path], T], made_up: Callable[[], T] | None) -> T:
        path = self._folder / name
        if path.exists():
            return read(path)
        if made_up is None or not self._synthetic:
            raise ConfigurationRefused(
                f"the scenario needs {name}, which is not in {self._folder}; name the folder of "
                "the shared data with --data or STARAI_SHARED_DATA"
            )
        self.made_up.append(name)
        return made_up()


def _known(name: str, names: tuple[str, ...]) -> None:
    if name not in names:
        raise ConfigurationRefused(f"there is no data called {name!r}: {', '.join(names)}")


def _read_ping(path: Path) -> Floats:
    table = np.frombuffer(path.read_bytes(), "<u4").reshape(CITIES, CITIES, 4)
    average = table[:, :, 1].astype(np.float64) / 1e6
    average[average == 0] = UNKNOWN_RTT_S
    both = (average + average.T) / 2
    np.fill_diagonal(both, 0.001)
    return both


def _synthetic_ping() -> Floats:
    """Cities at random on a globe; light in glass, on a way half as long again."""
    points = np.random.default_rng(SYNTHETIC_SEED).normal(size=(CITIES, 3))
    points /= np.linalg.norm(points, axis=1)[:, None]
    angles = np.arccos(np.clip(points @ points.T, -1, 1))
    return 0.001 + angles * 6371 / 200_000 * 2 * 1.5


def _read_speeds(path: Path, model: str) -> list[Speed]:
    with path.open(encoding="utf-8") as file:
        found = [
            Speed(row["system"], float(row["tokens_per_s"]), "GPU" in row["processor"])
            for row in csv.DictReader(file)
            if row["model"] == model
        ]
    if not found:
        raise ConfigurationRefused(f"no measured device ran {model!r}")
    return found


def _synthetic_speeds() -> list[Speed]:
    """Log-normal around 20 tokens a second; what is faster than 30 counts as a GPU."""
    drawn = np.random.default_rng(SYNTHETIC_SEED).lognormal(3.0, 1.1, 52)
    return [Speed("made up", float(one), bool(one > 30)) for one in drawn]


def _read_azure(path: Path) -> list[Request]:
    with path.open(encoding="utf-8") as file:
        rows = [(row[0], int(row[1]), int(row[2])) for row in list(csv.reader(file))[1:]]
    times = [dt.datetime.fromisoformat(row[0][:26]) for row in rows]
    return [
        Request((at - times[0]).total_seconds(), max(1, prompt), max(1, answer))
        for at, (_, prompt, answer) in zip(times, rows, strict=True)
    ]


def _read_mooncake(path: Path) -> list[Request]:
    lines = msgspec.json.decode(
        b"[" + b",".join(path.read_bytes().splitlines()) + b"]", type=list[_MooncakeLine]
    )
    return [
        Request(
            line.timestamp / 1000,
            max(1, line.input_length),
            max(1, line.output_length),
            line.hash_ids,
        )
        for line in lines
    ]


def _synthetic_trace() -> list[Request]:
    chance = np.random.default_rng(SYNTHETIC_SEED)
    times = np.sort(chance.uniform(0, SYNTHETIC_SPAN_S, SYNTHETIC_REQUESTS))
    prompts = chance.lognormal(6.4, 1.1, SYNTHETIC_REQUESTS).astype(int) + 1
    answers = chance.lognormal(4.9, 0.9, SYNTHETIC_REQUESTS).astype(int) + 1
    columns = zip(times.tolist(), prompts.tolist(), answers.tolist(), strict=True)
    return [Request(at_s, prompt, answer) for at_s, prompt, answer in columns]


def _read_spot(path: Path) -> list[list[tuple[float, float]]]:
    found = []
    for file in sorted(path.glob("*.csv")):
        with file.open(encoding="utf-8") as opened:
            rows = [(float(at), int(number)) for at, number in csv.reader(opened)]
        # One of the files counts hours, the others seconds.
        unit_s = 3600.0 if rows[-1][0] < 1000 else 1.0
        most = max(number for _, number in rows)
        first = next(at for at, number in rows if number)
        found.append([((at - first) * unit_s, n / most) for at, n in rows if at >= first])
    return found
