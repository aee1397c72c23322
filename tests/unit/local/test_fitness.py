"""What a machine can do, kept in its home, and what a node expects of its model."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from starai.core.clock import SystemClock
from starai.devices import Device, Gpu, Rates
from starai.engines.base import EngineSpec
from starai.local import fitness as module
from starai.local.fitness import Fitness, fitness, fitness_of_node
from starai.local.home import Home

pytestmark = pytest.mark.anyio
CPU = Rates(20e9, 0.2e12)


def of(memory_gib: int, **more: object) -> Fitness:
    return Fitness(Device("linux", memory_bytes=memory_gib << 30, **more), CPU)  # type: ignore[arg-type]


def test_other_hardware_is_measured_anew(tmp_path: Path) -> None:
    """What is kept belongs to one machine: a home that is carried to another is not believed."""
    home = Home(tmp_path)
    mine = fitness(home, SystemClock())
    assert fitness(home, SystemClock()).cpu == mine.cpu
    other = msgspec.structs.replace(mine, device=Device("linux"), cpu=Rates(1.0, 1.0))
    (tmp_path / "device.json").write_bytes(msgspec.json.encode(other))
    assert fitness(home, SystemClock()).cpu.read_bytes_per_s > 1e8


def test_what_changes_all_the_time_is_looked_at_again(tmp_path: Path) -> None:
    """Free memory is as of now, though the rates are as they were."""
    home = Home(tmp_path)
    kept = fitness(home, SystemClock())
    older = msgspec.structs.replace(kept.device, available_bytes=1)
    changed = msgspec.structs.replace(kept, device=older)
    (tmp_path / "device.json").write_bytes(msgspec.json.encode(changed))
    again = fitness(home, SystemClock())
    assert again.cpu == kept.cpu
    assert again.device.available_bytes > 1


def test_a_node_expects_less_of_wider_weights() -> None:
    """Eight bits are read faster than thirty-two, and both are below the memory's limit."""
    wide = of(16).expect(EngineSpec("text", "embedded"))
    narrow = of(16).expect(EngineSpec("text", "embedded", options={"bits": 8.0}))
    assert 100 < wide.decode_tps < narrow.decode_tps


async def test_engines_of_others_are_not_predicted(tmp_path: Path) -> None:
    """The mock has no weights to read: nothing is measured for it."""
    spec = EngineSpec("mock", "mock")
    assert await fitness_of_node(Home(tmp_path), spec, SystemClock()) is None
    assert not (tmp_path / "device.json").exists()


def test_a_beat_names_what_fits() -> None:
    """Names on the hub, best first, and nothing on a device that is too small."""
    assert of(32).fits[0].count("/") == 1
    assert of(0).fits == ()


def test_gpus_that_cannot_be_measured_are_looked_up() -> None:
    """Torch finds no such GPU here, so its data sheet counts; one without stays out."""
    known, unknown = Gpu("amd", "Radeon RX 7900 XTX", 24 << 30), Gpu("amd", "Radeon 1", 1 << 30)
    rates = module._gpu_rates(Device("linux", gpus=(known, unknown)))
    assert rates[known.name] == Rates(960e9, 123e12, measured=False)
    assert unknown.name not in rates
    (pool,) = Fitness(Device("linux", gpus=(known, unknown)), CPU, rates).pools
    assert (pool.kind, pool.measured) == ("amd", False)


def test_the_measuring_program_speaks_json() -> None:
    """Without a GPU that torch can use it finds nothing, and says so in JSON."""
    torch = pytest.importorskip("torch")
    assert (module._measured_gpus() == {}) == (not torch.cuda.is_available())
