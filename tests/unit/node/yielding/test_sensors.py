"""What sensors make of a device's files and programs, here and as other platforms print them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from starai.node.yielding.base import Reading
from starai.node.yielding.sensors import (
    battery,
    graphics,
    heat,
    looking,
    memory,
    pressure,
    processor,
    screen,
    sensors_here,
    windows,
)

STAT = """cpu  1000 500 300 9000 100 0 50 0 0 0
cpu0 500 250 150 4500 50 0 25 0 0 0
intr 1 2 3
"""


def test_the_time_of_lowered_processes_is_left_out():
    """/proc/stat: user, system and interrupts count; nice, idle and waiting for disks do not."""
    total = 1000 + 500 + 300 + 9000 + 100 + 50
    assert processor.parse_stat(STAT) == (1000 + 300 + 50, 500, total)


def test_a_process_is_counted_as_the_kernel_counts_it():
    """A lowered process is busy with its kernel time only; the name may hold anything."""
    line = "42 (a) b (c) S 1 1 1 0 -1 4194304 100 0 0 0 70 30 0 0 20 {nice} 1 0 100"
    assert processor.parse_process(line.format(nice=0)) == (100, 0)
    assert processor.parse_process(line.format(nice=19)) == (30, 70)
    assert processor.parse_process(line.format(nice=-5)) == (100, 0)


def test_others_are_all_but_us(tmp_path):
    """A core that we keep busy is ours; one that others keep busy is theirs."""
    own = tmp_path / "7"
    own.mkdir()
    made = processor.LinuxProcessor(lambda: [7], proc=tmp_path)
    cores = os.cpu_count() or 1

    def look(user, idle, ours):
        (tmp_path / "stat").write_text(f"cpu  {user} 0 0 {1000 + idle} 0 0 0 0 0 0\n")
        (own / "stat").write_text(f"7 (x) R {' 0' * 10} {ours} 0 0 0 20 0 1 0 0")
        return made.read().others_cores

    assert look(0, 0, 0) is None
    # 100 ticks pass on each core: 100 of busy time, of which 60 are ours.
    assert look(100, 100 * cores - 100, 60) == pytest.approx(0.4)
    assert look(100, 200 * cores - 100, 60) == pytest.approx(0.2)
    assert look(100, 300 * cores - 100, 60) == pytest.approx(0.0)


def test_lowered_work_of_others_is_told_apart_from_ours(tmp_path):
    """A lowered engine of ours and a lowered build of others share one column of the kernel's."""
    (tmp_path / "7").mkdir()
    made = processor.LinuxProcessor(lambda: [7], proc=tmp_path)
    cores = os.cpu_count() or 1
    for lowered, ours in ((1000, 1000), (1000 + 100 * cores, 1060)):
        idle = 5000 + 100 * cores - lowered
        (tmp_path / "stat").write_text(f"cpu  0 {lowered} 0 {idle + lowered - 1000} 0 0 0 0 0 0\n")
        (tmp_path / "7" / "stat").write_text(f"7 (x) R {' 0' * 10} {ours} 0 0 0 20 19 1 0 0")
        seen = made.read()
    assert seen.others_cores == 0
    assert seen.lowered_cores == pytest.approx(cores - 0.6)


def test_a_macs_ps_is_understood():
    """Columns pid, nice, percent; ours and lowered ones are left out; a comma is a point."""
    text = "  1   0   3,0\n 20   0  97.0\n 30  10 100.0\n 40   0  50.0\nrubbish\n"
    assert processor.parse_ps(text, [40]) == pytest.approx(1.0)


def test_pressure_is_a_share():
    """The kernel's own format."""
    text = "some avg10=12.50 avg60=1.00 avg300=0.10 total=5\nfull avg10=0.00 avg60=0.00 avg300=0\n"
    assert pressure.parse_pressure(text) == pytest.approx(0.125)
    assert pressure.parse_pressure("") is None


def test_memory_of_linux_and_mac():
    """MemAvailable and MemTotal in KiB; statm in pages; vm_stat in pages of its own size."""
    text = "MemTotal:       16000000 kB\nMemFree: 100 kB\nMemAvailable:    8000000 kB\n"
    assert memory.parse_meminfo(text) == (8_000_000 << 10, 16_000_000 << 10)
    assert memory.parse_meminfo("MemTotal: 5 kB") is None
    assert memory.parse_statm("1000 250 50 1 0 100 0", 4096) == 250 * 4096
    mac = (
        "Mach Virtual Memory Statistics: (page size of 16384 bytes)\n"
        "Pages free:                               10.\nPages active:        99.\n"
        "Pages inactive:                           20.\nPages speculative:    5.\n"
        "Pages purgeable:                           1.\n"
    )
    assert memory.parse_vm_stat(mac) == 36 * 16384
    assert memory.parse_vm_stat("") is None


def test_batteries_of_linux():
    """A laptop's battery counts, a mouse's does not; mains that are plugged in win."""
    laptop = {"type": "Battery", "status": "Discharging", "capacity": "55"}
    mouse = {"type": "Battery", "status": "Discharging", "capacity": "5", "scope": "Device"}
    mains = {"type": "Mains", "online": "1"}
    assert battery.parse_supplies([laptop, mouse]) == Reading(on_battery=True, battery_percent=55)
    assert battery.parse_supplies([laptop, mains]).on_battery is False
    assert battery.parse_supplies([mouse, mains]) == Reading()


def test_the_battery_of_a_mac():
    """Pmset names where the power comes from, and a percentage."""
    text = (
        "Now drawing from 'Battery Power'\n"
        " -InternalBattery-0 (id=1234)\t83%; discharging; 4:11 remaining present: true\n"
    )
    assert battery.parse_pmset(text) == Reading(on_battery=True, battery_percent=83)
    assert battery.parse_pmset(text.replace("Battery Power", "AC Power")).on_battery is False
    assert battery.parse_pmset("Now drawing from 'AC Power'\n") == Reading()


def test_the_zone_nearest_to_its_limit_is_told():
    """A cool processor and a hot one; zones that make no sense are left out."""
    zones = [
        ("45000\n", [("critical\n", "105000\n")]),
        ("88000\n", [("passive", "80000"), ("hot", "95000"), ("critical", "100000")]),
        ("-274000", []),
        ("", []),
    ]
    assert heat.nearest_to_limit(zones) == Reading(hottest_c=88.0, critical_c=95.0)
    assert heat.nearest_to_limit([]) == Reading()
    assert heat.parse_therm("CPU_Speed_Limit \t= 62\n").throttled is True
    assert heat.parse_therm("CPU_Speed_Limit \t= 100\n").throttled is False
    assert heat.parse_therm("No thermal warning level has been recorded\n") == Reading()


def test_a_full_screen_on_x11():
    """Xprop names the active window, then its states."""
    root = "_NET_ACTIVE_WINDOW(WINDOW): window id # 0x3a00007, 0x0\n"
    assert screen.parse_active_window(root) == "0x3a00007"
    assert screen.parse_active_window("_NET_ACTIVE_WINDOW(WINDOW): window id # 0x0\n") is None
    state = "_NET_WM_STATE(ATOM) = _NET_WM_STATE_FULLSCREEN, _NET_WM_STATE_FOCUSED\n"
    assert screen.parse_state(state)
    assert not screen.parse_state("_NET_WM_STATE(ATOM) = \n")


PMON = """# gpu         pid   type     sm    mem    enc    dec    jpg    ofa    command
# Idx           #    C/G      %      %      %      %      %      %    name
    0       1111     C     80     20      -      -      -      -    starai
    0       2222     G     15      5      -      -      -      -    game
    0       3333     C     20      5      -      -      -      -    blender
    1          -     -      -      -      -      -      -      -    -
"""


def test_nvidia_smi_tells_ours_from_others():
    """The busiest GPU's share of others; our memory; the watts of all."""
    assert graphics.parse_pmon(PMON, [1111]) == pytest.approx(0.35)
    assert graphics.parse_pmon(PMON, [1111, 2222, 3333]) == 0
    assert graphics.parse_pmon("no such command", []) is None
    assert graphics.parse_memory("1111, 4000 MiB\n2222, 500 MiB\n", [1111]) == 4000 << 20
    assert graphics.parse_power("61.54 W\n 100.00 W\n") == pytest.approx(161.54)
    assert graphics.parse_power("[N/A]\n") is None


@given(st.text())
def test_no_parser_minds_rubbish(text):
    """Whatever a tool prints, it is a reading or nothing, never an error."""
    processor.parse_stat(text)
    processor.parse_process(text)
    processor.parse_ps(text, [1])
    pressure.parse_pressure(text)
    memory.parse_meminfo(text)
    memory.parse_statm(text, 4096)
    memory.parse_vm_stat(text)
    battery.parse_pmset(text)
    battery.parse_supplies([{"type": "Battery", "capacity": text, "status": text}])
    heat.parse_celsius(text)
    heat.parse_therm(text)
    screen.parse_active_window(text)
    screen.parse_state(text)
    graphics.parse_pmon(text, [1])
    graphics.parse_memory(text, [1])
    graphics.parse_power(text)


@given(st.lists(st.from_regex(r"[ 0-9a-z.,:%()-]{0,40}"), max_size=5))
def test_no_parser_minds_what_looks_almost_right(lines):
    """Lines of numbers and columns that are not there."""
    for head in (
        "cpu  ",
        "# gpu pid type sm\n0 1 C ",
        "some avg10=",
        "MemTotal:  ",
        "Pages free: ",
    ):
        test_no_parser_minds_rubbish.hypothesis.inner_test(head + "\n".join(lines))


def test_what_is_missing_is_nothing(tmp_path):
    """A missing file, a missing program, a failing one, one that takes too long."""
    assert looking.read_text(tmp_path / "nowhere") == ""
    assert looking.output_of("no-such-program-anywhere") == ""
    assert looking.output_of(sys.executable, "-c", "raise SystemExit(3)") == ""
    assert looking.output_of(sys.executable, "-c", "print('here')").strip() == "here"


@pytest.mark.skipif(sys.platform == "win32", reason="elsewhere than on Windows")
def test_windows_is_not_asked_elsewhere():
    """The Windows functions answer with nothing on other systems."""
    assert windows.system_times_s() == (0.0, 0.0)
    assert windows.process_times_s(1) == 0.0
    assert (windows.memory_bytes(), windows.power(), windows.full_screen()) == (None, None, None)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_this_machine_is_seen():
    """Real sensors on this machine: a program that spins shows within a second, and not as ours."""
    burner = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    began_s = time.monotonic()
    try:
        own = [os.getpid()]
        here = sensors_here(lambda: own)
        mine = sensors_here(lambda: [os.getpid(), burner.pid])
        seen, without = Reading(), Reading()
        for _ in range(5):
            time.sleep(0.25)
            for sensor, other in zip(here, mine, strict=True):
                seen = seen.with_known(sensor.read())
                without = without.with_known(other.read())
        ticks = sum(processor.parse_process(Path(f"/proc/{burner.pid}/stat").read_text()))
    finally:
        burner.kill()
        burner.wait()
    assert seen.others_cores is not None
    assert without.others_cores is not None
    # The machine may be busy with others, who then leave it a part of a core only.
    burnt = ticks / os.sysconf("SC_CLK_TCK") / (time.monotonic() - began_s)
    assert seen.others_cores > 0.3
    assert seen.others_cores - without.others_cores > burnt / 3 - 0.05
    assert seen.available_bytes
    assert seen.total_bytes
    assert seen.own_bytes
