"""Looking at a machine: made-up file systems and tools, and this machine."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from starai.core.clock import SystemClock
from starai.devices import Battery, fingerprint, profile
from starai.devices.gathering import run_tool
from starai.devices.measuring import measure

GIB = 1 << 30


def nothing(_command: Sequence[str]) -> str:
    return ""


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


@pytest.fixture
def board(tmp_path: Path) -> Path:
    """A small Linux machine with an AMD card, a battery and a wireless network."""
    write(tmp_path, "proc/cpuinfo", "processor : 0\nmodel name : Some CPU\nflags : avx2\n")
    write(tmp_path, "proc/meminfo", "MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\n")
    write(
        tmp_path,
        "proc/net/route",
        "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n"
        "wl0 00000000 0101A8C0 0003 0 0 600 00000000 0 0 0\n",
    )
    (tmp_path / "sys/class/net/wl0/wireless").mkdir(parents=True)
    write(tmp_path, "sys/class/drm/card1/device/vendor", "0x1002\n")
    write(tmp_path, "sys/class/drm/card1/device/mem_info_vram_total", str(8 * GIB))
    (tmp_path / "sys/class/drm/card1-DP-1").mkdir()
    write(
        tmp_path,
        "sys/class/power_supply/BAT0/uevent",
        "POWER_SUPPLY_TYPE=Battery\nPOWER_SUPPLY_STATUS=Discharging\nPOWER_SUPPLY_CAPACITY=40\n",
    )
    return tmp_path


def test_a_linux_machine(board: Path) -> None:
    """Everything that the files tell is there."""
    device = profile(board, root=board, run=nothing, system="linux")
    assert (device.cpu.model, device.memory_bytes) == ("Some CPU", 16 * GIB)
    assert [(gpu.vendor, gpu.memory_bytes) for gpu in device.gpus] == [("amd", 8 * GIB)]
    assert device.battery == Battery(40.0, on_mains=False)
    assert device.network == "wireless"
    assert device.disk_free_bytes > 0


def test_a_container_has_its_limit(board: Path) -> None:
    """A control group's memory is all there is."""
    write(board, "sys/fs/cgroup/memory.max", str(2 * GIB))
    device = profile(board, root=board, run=nothing, system="linux")
    assert (device.memory_bytes, device.available_bytes) == (2 * GIB, 2 * GIB)


def test_a_tool_speaks_before_the_kernel(board: Path) -> None:
    """A card that its vendor's tool told of is not counted again."""

    def run(command: Sequence[str]) -> str:
        if command[0] == "amd-smi":
            return '[{"asic": {"market_name": "Radeon RX 7600"}, "vram": {"size": 8176}}]'
        return "NVIDIA RTX A2000, 12282, 12000, 550\n" if command[0] == "nvidia-smi" else ""

    device = profile(board, root=board, run=run, system="linux")
    assert [gpu.name for gpu in device.gpus] == ["NVIDIA RTX A2000", "Radeon RX 7600"]


def test_unified_memory_is_the_machine_s(board: Path) -> None:
    """A GPU without memory of its own gets the machine's."""

    def run(command: Sequence[str]) -> str:
        return "NVIDIA GB10, [N/A], [N/A], 580\n" if command[0] == "nvidia-smi" else ""

    gpus = profile(board, root=board, run=run, system="linux").gpus
    assert gpus[0].memory_bytes == 16 * GIB


@pytest.mark.parametrize("system", ["linux", "darwin", "windows", "plan9"])
@pytest.mark.parametrize("output", ["", "Segmentation fault\n", "[[[", '{"cpu": 3}'])
def test_nothing_crashes_on_any_platform(tmp_path: Path, system: str, output: str) -> None:
    """Where every tool is missing or prints rubbish, a profile says so by saying nothing."""
    device = profile(tmp_path, root=tmp_path, run=lambda _command: output, system=system)
    assert (device.gpus, device.battery, device.memory_bytes) == ((), None, 0)


def test_tools_that_are_missing_fail_or_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tool that cannot be run to its end told nothing."""
    assert run_tool(["no-such-tool-anywhere"]) == ""
    assert run_tool([sys.executable, "-c", "print('yes')"]) == "yes\n"
    monkeypatch.setattr("starai.devices.gathering.TOOL_S", 0.2)
    assert run_tool([sys.executable, "-c", "import time; time.sleep(9)"]) == ""


def test_this_machine() -> None:
    """The machine that runs the tests has a processor and memory, and stays itself."""
    one, two = profile(Path.cwd()), profile(Path.cwd())
    assert one.cpu.threads >= 1
    assert one.memory_bytes > one.available_bytes > 0
    assert fingerprint(one) == fingerprint(two)


def test_other_hardware_has_another_fingerprint(board: Path) -> None:
    """A card more is another device; less free memory is not."""
    before = fingerprint(profile(board, root=board, run=nothing, system="linux"))
    write(board, "proc/meminfo", "MemTotal: 16777216 kB\nMemAvailable: 1388608 kB\n")
    assert fingerprint(profile(board, root=board, run=nothing, system="linux")) == before
    write(board, "sys/class/drm/card1/device/mem_info_vram_total", str(16 * GIB))
    assert fingerprint(profile(board, root=board, run=nothing, system="linux")) != before


def test_measuring_takes_little_time_and_says_something_possible() -> None:
    """Under two seconds, and figures between a telephone's and a supercomputer's."""
    clock = SystemClock()
    begun_s = clock.monotonic_s()
    rates = measure(1, clock)
    assert clock.monotonic_s() - begun_s < 5
    assert 1e8 < rates.read_bytes_per_s < 1e13
    assert 1e8 < rates.operations_per_s < 1e15
    assert rates.measured
