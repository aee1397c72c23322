"""The table of known devices: unique, found by the names that drivers write, and plausible."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from starai.core.errors import ConfigurationRefused
from starai.devices import Gpu
from starai.devices.presets import find_preset, look_up, presets

GIB = 1 << 30


def test_ids_are_unique_and_found() -> None:
    """Each id leads to its preset; an unknown one names some like it."""
    assert len({preset.id for preset in presets()}) == len(presets())
    assert find_preset("RTX3060-12GB").name == "RTX 3060"
    with pytest.raises(ConfigurationRefused, match="rtx3060-12gb"):
        find_preset("rtx3-giant")


@pytest.mark.parametrize(
    ("name", "gib", "wanted"),
    [
        ("NVIDIA GeForce RTX 3060", 12, "rtx3060-12gb"),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", 16, "rtx4070tisuper-16gb"),
        ("NVIDIA GeForce RTX 4070 Ti", 12, "rtx4070ti-12gb"),
        ("NVIDIA A100-SXM4-40GB", 40, "a100-40gb"),
        ("NVIDIA A100 80GB PCIe", 80, "a100-80gb"),
        ("NVIDIA H100 80GB HBM3", 80, "h100-80gb"),
        ("Tesla V100-SXM2-32GB", 32, "v100-32gb"),
        ("Tesla T4", 15, "t4-16gb"),
        ("NVIDIA RTX A4000", 16, "rtx-a4000-16gb"),
    ],
)
def test_names_that_drivers_write(name: str, gib: int, wanted: str) -> None:
    """A driver's name and the memory find the data sheet."""
    found = look_up(Gpu("nvidia", name, gib * GIB))
    assert found is not None
    assert found.id == wanted


def test_no_device_is_taken_for_its_neighbour() -> None:
    """A variant that is not in the table has no data sheet, rather than another's."""
    assert look_up(Gpu("nvidia", "NVIDIA GeForce RTX 3060 Ti", 8 * GIB)) is None
    assert look_up(Gpu("nvidia", "NVIDIA GeForce RTX 4090 Laptop GPU", 16 * GIB)) is None
    assert look_up(Gpu("amd", "NVIDIA GeForce RTX 3060", 12 * GIB)) is None
    assert look_up(Gpu("apple", "Apple M1 Pro", 16 * GIB)) is None


def test_a_preset_is_a_device() -> None:
    """It has the memory where its kind has it."""
    card, mac, phone = (find_preset(i).device() for i in ("rtx3060-12gb", "m1-16gb", "phone-6gb"))
    assert (card.gpus[0].memory_bytes, card.memory_bytes) == (12 * GIB, 32 * GIB)
    assert (mac.gpus[0].unified, mac.memory_bytes) == (True, 16 * GIB)
    assert (phone.gpus, phone.battery is not None) == ((), True)


def test_a_second_table_agrees(shared_data: Path) -> None:
    """Memory in mlco2's table of accelerators is ours, where both know a device."""
    same = 0
    with (shared_data / "devices/gpus_mlco2.csv").open() as file:
        for row in csv.DictReader(file):
            memory = row["memory"] or ""
            if row["type"] != "gpu" or not memory.isdigit():
                continue
            found = look_up(Gpu("nvidia", row["name"], int(memory) * GIB))
            if found is not None and row["name"] != "H100 NVL":  # which has 94 GB
                assert found.memory_gib == int(memory), row["name"]
                same += 1
    assert same >= 8
