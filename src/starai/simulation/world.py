"""Makes the world of a scenario from data and a seed: who is where, how fast, and what is asked.

Everything is drawn here, before the first moment; how it goes on is not known here. What is
assumed and not measured is a constant with its reason.
"""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np

from starai.core.errors import ConfigurationRefused
from starai.exchange.standing.presence import PARTIES_MAX
from starai.simulation.scenario import Scenario
from starai.simulation.sources import Floats, Request, Sources, Speed

#: The last mile, there and back, of a home's line; drawn evenly.
LAST_MILE_S: Final = (0.004, 0.025)
#: How many tokens of a prompt a device reads while it writes one: a processor is bound by memory
#: when it writes and by arithmetic when it reads, a GPU has more arithmetic to spare.
READS_PER_WRITE_GPU: Final = (15.0, 30.0)
READS_PER_WRITE_CPU: Final = (4.0, 8.0)
#: Each further answer at once lengthens a step by this share; drawn evenly.
CROWDING: Final = (0.05, 0.25)
#: Devices of one kind differ, and what they tell of themselves is an average: log-normal spread.
SPREAD: Final = 0.1
#: From how many tokens a second on a device has so many slots, and so long a context.
SLOTS: Final = ((40.0, 8), (10.0, 4), (0.0, 2))
CONTEXTS: Final = ((60.0, 131_072), (15.0, 32_768), (0.0, 8192))
#: Users ask for at most this many tokens, or for what they got if that was more.
MAX_TOKENS: Final = 1024


class Device(msgspec.Struct, frozen=True, gc=False):
    """A node as it was made. ``told`` is what it says of its speed, as a factor of the truth."""

    city: int
    region: int
    last_mile_s: float
    prefill_tps: float
    decode_tps: float
    slots: int
    context: int
    crowding: float
    told: float


class Arrival(msgspec.Struct, frozen=True, gc=False):
    """A request: when, from which city and tenant, and what for."""

    at_s: float
    city: int
    tenant: int
    prompt: int
    answer: int
    blocks: tuple[int, ...]


class World(msgspec.Struct):
    """Everything that was drawn. ``regions[city]`` is the region of its users."""

    cities: list[int]
    rtt_s: list[list[float]]
    centres: list[int]
    regions: list[int]
    devices: list[Device]
    arrivals: list[Arrival]
    made_up: list[str]


def make_world(scenario: Scenario, sources: Sources) -> World:
    """Draw a world; the same for the same scenario, seed and data.

    Raises:
        ConfigurationRefused: data is absent, or too many nodes for so few regions.
    """
    # Each part has its own chance, so that more nodes do not change what is asked.
    seeds = np.random.SeedSequence(scenario.seed).spawn(3)
    place_chance, device_chance, ask_chance = (np.random.default_rng(seed) for seed in seeds)
    table = sources.rtts_s(scenario.places.ping)
    cities = _cities(table, min(scenario.places.cities, len(table)), place_chance)
    near = table[np.ix_(cities, cities)]
    centres = _centres(near, min(scenario.places.regions, len(cities)))
    devices = _devices(scenario, sources, near, centres, device_chance)
    arrivals = _arrivals(scenario, sources, devices, len(cities), ask_chance)
    return World(
        cities=cities,
        rtt_s=near.tolist(),
        centres=centres,
        regions=np.argmin(near[:, centres], axis=1).tolist(),
        devices=devices,
        arrivals=arrivals,
        made_up=sources.made_up,
    )


def _cities(table: Floats, number: int, chance: np.random.Generator) -> list[int]:
    first = int(chance.integers(len(table)))
    nearest = np.argsort(table[first], kind="stable")
    return sorted(int(city) for city in nearest[:number])


def _centres(near: Floats, number: int) -> list[int]:
    """The city nearest to all, then always the one farthest from those chosen (Gonzalez, 1985)."""
    chosen = [int(np.argmin(near.sum(axis=1)))]
    while len(chosen) < number:
        chosen.append(int(np.argmax(near[:, chosen].min(axis=1))))
    return chosen


def _devices(
    scenario: Scenario,
    sources: Sources,
    near: Floats,
    centres: list[int],
    chance: np.random.Generator,
) -> list[Device]:
    number = scenario.nodes
    speeds = sources.speeds(scenario.devices.speeds, scenario.devices.model)
    cities = chance.integers(len(near), size=number)
    regions = _regions(cities, near[:, centres])
    kinds = chance.integers(len(speeds), size=number)
    spread = chance.lognormal(0, SPREAD, size=(2, number))
    even = chance.uniform(size=(3, number))
    return [
        _device(speeds[kinds[n]], int(cities[n]), int(regions[n]), spread[:, n], even[:, n])
        for n in range(number)
    ]


def _device(speed: Speed, city: int, region: int, spread: Floats, even: Floats) -> Device:
    decode_tps = speed.decode_tps * float(spread[0])
    reads = _between(READS_PER_WRITE_GPU if speed.is_gpu else READS_PER_WRITE_CPU, even[0])
    return Device(
        city=city,
        region=region,
        last_mile_s=_between(LAST_MILE_S, even[1]),
        prefill_tps=decode_tps * reads,
        decode_tps=decode_tps,
        slots=next(slots for least, slots in SLOTS if decode_tps >= least),
        context=next(context for least, context in CONTEXTS if decode_tps >= least),
        crowding=_between(CROWDING, even[2]),
        told=float(spread[1]),
    )


def _between(bounds: tuple[float, float], even: float) -> float:
    low, high = bounds
    return low + (high - low) * float(even)


def _regions(cities: np.typing.NDArray[np.int64], to_centres: Floats) -> list[int]:
    """Each node joins the nearest region that has room: a distributor keeps track of so many."""
    regions = [0] * len(cities)
    room = [PARTIES_MAX] * to_centres.shape[1]
    if len(cities) > sum(room):
        raise ConfigurationRefused(
            f"{len(cities)} nodes need {-(-len(cities) // PARTIES_MAX)} regions or more: "
            f"a distributor keeps track of {PARTIES_MAX}"
        )
    order = np.argsort(to_centres, axis=1, kind="stable").tolist()
    for number, city in enumerate(cities.tolist()):
        region = next(one for one in order[city] if room[one])
        room[region] -= 1
        regions[number] = region
    return regions


def capacity_rps(devices: list[Device], prompt: float, answer: float) -> float:
    """Requests a second that all devices serve when they are full, of such mean lengths."""
    total = 0.0
    for one in devices:
        if prompt < one.context:
            step_s = (1 + one.crowding * (one.slots - 1)) / one.decode_tps
            total += 1 / max(prompt / one.prefill_tps, step_s * answer / one.slots)
    return total


def _arrivals(
    scenario: Scenario,
    sources: Sources,
    devices: list[Device],
    num_cities: int,
    chance: np.random.Generator,
) -> list[Arrival]:
    traces = [sources.trace(name) for name in scenario.arrivals.traces]
    rate = scenario.arrivals.per_second or scenario.arrivals.load * _capacity(devices, traces)
    found: list[Arrival] = []
    for number, trace in enumerate(traces):
        span_s = trace[-1].at_s + len(trace) ** -1 * trace[-1].at_s
        copies = rate / len(traces) * span_s / len(trace)
        for copy in range(int(np.ceil(copies))):
            kept = min(1.0, copies - copy)
            tenant = copy * len(traces) + number + 1
            found += _copy(
                *(trace, span_s, scenario.seconds),
                tenant=tenant,
                kept=kept,
                num_cities=num_cities,
                chance=chance,
            )
    found.sort(key=lambda one: (one.at_s, one.tenant))
    return found


def _capacity(devices: list[Device], traces: list[list[Request]]) -> float:
    prompt = float(np.mean([np.mean([one.prompt for one in trace]) for trace in traces]))
    answer = float(np.mean([np.mean([one.answer for one in trace]) for trace in traces]))
    return capacity_rps(devices, prompt, answer)


def _copy(
    trace: list[Request],
    span_s: float,
    seconds: float,
    *,
    tenant: int,
    kept: float,
    num_cities: int,
    chance: np.random.Generator,
) -> list[Arrival]:
    """One tenant's requests: the trace from a random moment on, as often as it takes."""
    begins_s = float(chance.uniform(0, span_s))
    drawn = chance.uniform(size=len(trace))
    cities = chance.integers(num_cities, size=len(trace)).tolist()
    made = []
    for number, one in enumerate(trace):
        at_s = (one.at_s - begins_s) % span_s
        loop = 0
        while at_s < seconds:
            if drawn[number] < kept:
                # Blocks of another tenant, or of the trace's next turn, are other blocks.
                base = (tenant << 40) + (loop << 28)
                blocks = tuple(base + block for block in one.blocks)
                made.append(Arrival(at_s, cities[number], tenant, one.prompt, one.answer, blocks))
            at_s += span_s
            loop += 1
    return made
