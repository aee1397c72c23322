"""What a machine can do, kept in its home, and what a node expects of its model."""

from __future__ import annotations

import threading
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


def test_two_nodes_do_not_measure_at_once(tmp_path: Path) -> None:
    """Whoever comes second waits for the first, and takes what it found."""
    home = Home(tmp_path)
    (tmp_path / "device.measuring").touch()
    before = fitness(home, SystemClock(), keep=False)

    def first() -> None:
        (tmp_path / "device.json").write_bytes(msgspec.json.encode(before))

    timer = threading.Timer(0.3, first)
    timer.start()
    assert fitness(home, SystemClock()).cpu == before.cpu
    timer.join()


def test_one_that_died_while_it_measured_stops_nobody(tmp_path: Path) -> None:
    """Its mark is waited for a few seconds, then ignored, then gone."""
    (tmp_path / "device.measuring").touch()
    assert fitness(Home(tmp_path), SystemClock()).cpu.measured
    assert sorted(path.name for path in tmp_path.iterdir()) == ["device.json"]


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


def test_a_beat_names_pulled_models_that_fit(tmp_path: Path) -> None:
    """What is on this disk and would have room in memory; nothing else can be loaded at once."""
    for name, size in (("org/small", 1 << 20), ("org/large", 3 << 30), ("org/empty", 0)):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        with (folder / "model.safetensors").open("wb") as file:
            file.truncate(size)
    assert of(4).fits(tmp_path) == ("org/small",)
    assert of(16).fits(tmp_path) == ("org/large", "org/small")
    assert of(0).fits(tmp_path) == ()
    assert of(16).fits(tmp_path / "nowhere") == ()


def test_gpus_that_cannot_be_measured_are_looked_up() -> None:
    """The engine does not run on them, so a data sheet counts; one without stays out."""
    known, unknown = Gpu("intel", "Intel Arc B580", 12 << 30), Gpu("intel", "Arc 1", 1 << 30)
    rates = module._gpu_rates(Device("linux", gpus=(known, unknown)))
    assert rates == {known.name: Rates(456e9, 116e12, measured=False)}
    found = Fitness(Device("linux", gpus=(known, unknown)), CPU, rates)
    assert [(pool.kind, pool.measured) for pool in found.pools] == [("intel", False)]
    assert found.own_pool.kind == "cpu"
    seen = msgspec.structs.replace(found, gpus={known.name: Rates(4e11, 1e14)})
    assert seen.own_pool.kind == "intel"


@pytest.mark.slow
def test_the_measuring_program_speaks_json() -> None:
    """Without a GPU that torch can use it finds nothing, and says so in JSON."""
    torch = pytest.importorskip("torch")
    assert (module._measured_gpus() == {}) == (not torch.cuda.is_available())
