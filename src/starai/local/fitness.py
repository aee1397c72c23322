"""What this machine can do, found out once: its profile and its rates, kept in the home folder."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import anyio.to_thread
import msgspec

from starai.core.clock import Clock
from starai.devices import Device, Rates, fingerprint, profile
from starai.devices.measuring import measure
from starai.devices.presets import look_up
from starai.engines.base import EngineSpec
from starai.fitting import Pool, Prediction, Work, pools, predict
from starai.fitting.memory import PROGRAM_BYTES
from starai.local.home import Home
from starai.models.catalog import open_model
from starai.protocol.presence import FITS_MAX

#: Importing torch takes seconds, and a GPU that wakes up some more.
_GPU_S: Final = 20.0
#: How often, and how many times, it is looked whether another node has measured this device.
_LOOK_S, _LOOKS = 0.05, 60
#: The engine's own bits of a weight, by its option.
_BITS: Final = {8: 8.01, 4: 4.5}
#: Below this many weights the engine computes in 32-bit floats (`starai.engines.text.loading`).
_SMALL: Final = 200_000_000


class Fitness(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A device and what was measured of it; ``gpus`` are rates by a GPU's name."""

    device: Device
    cpu: Rates
    gpus: dict[str, Rates] = {}

    @property
    def pools(self) -> tuple[Pool, ...]:
        """Where models may run."""
        return pools(self.device, self.cpu, self.gpus)

    @property
    def own_pool(self) -> Pool:
        """Where our own engine runs: a GPU that torch could use here, else the processor."""
        usable = {name: rates for name, rates in self.gpus.items() if rates.measured}
        return pools(self.device, self.cpu, usable)[0]

    def fits(self, store: Path) -> tuple[str, ...]:
        """Pulled models that there is memory for, ``ORG/NAME``: what could be served at once."""
        room = self.own_pool.memory_bytes
        found = [
            f"{folder.parent.name}/{folder.name}"
            for folder in sorted(store.glob("*/*"))
            if 0 < _weight_bytes(folder) <= room - PROGRAM_BYTES
        ]
        return tuple(found)[:FITS_MAX]

    def expect(self, spec: EngineSpec) -> Prediction:
        """How fast our engine would run its model here."""
        weights = open_model(spec.model, Path(spec.store)).num_parameters
        usual = 32.0 if weights < _SMALL else 16.0
        bits = _BITS.get(int(spec.options.get("bits", 16)), usual)
        return predict(Work(int(weights * bits / 8), weights), self.own_pool)


def fitness(
    home: Home, clock: Clock, threads: int = 0, *, again: bool = False, keep: bool = True
) -> Fitness:
    """This machine's, measured now if its hardware is not known in this home; takes a second.

    Args:
        home: keeps what was found.
        clock: tells the time.
        threads: that models would run on; 0: all of this machine's.
        again: measure although it is known.
        keep: write it to the home folder.
    """
    device = profile(home.models)
    known = None if again else _kept(home, device)
    if known is None and not again and keep:
        known = _by_neighbour(home, device)
    if known is None:
        known = Fitness(device, measure(threads or num_threads(), clock), _gpu_rates(device))
        if keep:
            _keep(home, known)
    return msgspec.structs.replace(known, device=device)


async def fitness_of_node(home: Home, spec: EngineSpec, clock: Clock) -> Fitness | None:
    """As `fitness`, for a node that is about to start; None where another program computes."""
    if spec.kind != "text":
        return None
    return await anyio.to_thread.run_sync(fitness, home, clock, spec.threads)


def num_threads() -> int:
    """Threads that this process may run at once."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _weight_bytes(folder: Path) -> int:
    """Size of a model's files; its root would take minutes to compute."""
    try:
        return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    except OSError:
        return 0


def _path(home: Home) -> Path:
    return home.path / "device.json"


def _kept(home: Home, device: Device) -> Fitness | None:
    """What was found before, unless the hardware is another by now."""
    try:
        known = msgspec.json.decode(_path(home).read_bytes(), type=Fitness)
    except (OSError, msgspec.DecodeError):
        return None
    return known if fingerprint(known.device) == fingerprint(device) else None


def _keep(home: Home, known: Fitness) -> None:
    """Whole or not at all for other nodes, but not at once on the disk: an engine waits for this.

    What a crash loses, or a disk does not take, is measured again.
    """
    beside = _path(home).with_suffix(f".{os.getpid()}")
    with contextlib.suppress(OSError):
        home.path.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(msgspec.json.encode(known))
        beside.replace(_path(home))
        _mark(home).unlink(missing_ok=True)


def _mark(home: Home) -> Path:
    return home.path / "device.measuring"


def _by_neighbour(home: Home, device: Device) -> Fitness | None:
    """What another node of this home finds out at this very moment: two at once would both be slow.

    None, and this node's turn, when there is no other or it takes too long.
    """
    home.path.mkdir(parents=True, exist_ok=True)
    for _ in range(_LOOKS):
        try:
            _mark(home).touch(exist_ok=False)
        except FileExistsError:
            time.sleep(_LOOK_S)
        else:
            return _kept(home, device)  # it may have been done between two looks
        known = _kept(home, device)
        if known is not None:
            return known
    return None


def _gpu_rates(device: Device) -> dict[str, Rates]:
    """Of each GPU by name: measured where our engine could use it, else looked up."""
    found = {gpu.name: preset.rates for gpu in device.gpus if (preset := look_up(gpu)) is not None}
    if any(gpu.vendor in ("nvidia", "amd") for gpu in device.gpus):
        found |= _measured_gpus()
    return found


def _measured_gpus() -> dict[str, Rates]:
    """By torch, in a process of its own: this one stays without it."""
    if importlib.util.find_spec("torch") is None:
        return {}
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "starai.engines.text.gpus"],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=_GPU_S,
            check=True,
        )
        return msgspec.json.decode(done.stdout, type=dict[str, Rates])
    except (OSError, subprocess.SubprocessError, msgspec.DecodeError):
        return {}
