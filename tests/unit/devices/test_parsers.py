"""Each source's parser on text as its tool prints it.

The texts are reconstructions: written by hand in the form that each tool's documentation and users
show, not captured on the machines they describe.
"""

from __future__ import annotations

import json

from hypothesis import given, strategies as st

from starai.devices import amd, drm, intel, linux, macos, nvidia, windows
from starai.devices.base import Battery, Gpu
from starai.devices.fields import document, field, name, number, pairs, rows, whole

GIB, MIB = 1 << 30, 1 << 20

XEON = """\
processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 143
model name\t: Intel(R) Xeon(R) Platinum 8480+
physical id\t: 0
core id\t\t: 0
flags\t\t: fpu sse4_1 sse4_2 avx avx2 fma avx512f avx512_vnni amx_int8 amx_bf16 hypervisor

processor\t: 1
model\t\t: 143
model name\t: Intel(R) Xeon(R) Platinum 8480+
physical id\t: 0
core id\t\t: 0
flags\t\t: fpu sse4_1 sse4_2 avx avx2 fma avx512f avx512_vnni amx_int8 amx_bf16 hypervisor

processor\t: 2
model\t\t: 143
model name\t: Intel(R) Xeon(R) Platinum 8480+
physical id\t: 1
core id\t\t: 0
flags\t\t: fpu sse4_1 sse4_2 avx avx2 fma avx512f avx512_vnni amx_int8 amx_bf16 hypervisor
"""

PI_5 = """\
processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes pmull crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU part\t: 0xd0b

processor\t: 1
Features\t: fp asimd asimdhp asimddp
CPU part\t: 0xd0b

Revision\t: d04170
Serial\t\t: 0123456789abcdef
Model\t\t: Raspberry Pi 5 Model B Rev 1.0
"""

PHONE = """\
Processor\t: AArch64 Processor rev 14 (aarch64)
processor\t: 0
Features\t: fp asimd asimdhp asimddp i8mm bf16
CPU part\t: 0xd46

processor\t: 7
Features\t: fp asimd asimdhp asimddp i8mm bf16
CPU part\t: 0xd4e

Hardware\t: Qualcomm Technologies, Inc SM8550
"""

P550 = """\
processor\t: 0
hart\t\t: 0
isa\t\t: rv64imafdc_zicntr_zicsr_zifencei_zihpm_zba_zbb
mmu\t\t: sv48
uarch\t\t: sifive,p550
"""


def test_an_x86_server() -> None:
    """Cores are counted by socket and core, threads by processor; flags that matter stay."""
    cpu = linux.parse_cpuinfo(XEON, "x86_64")
    assert (cpu.cores, cpu.threads) == (2, 3)
    assert cpu.model == "Intel(R) Xeon(R) Platinum 8480+"
    assert cpu.flags[:3] == ("amx_bf16", "amx_int8", "avx")
    assert "hypervisor" not in cpu.flags


def test_arm_boards_and_telephones() -> None:
    """A processor that has a number for a name gets one; a telephone has several kinds of core."""
    pi, phone = linux.parse_cpuinfo(PI_5, "aarch64"), linux.parse_cpuinfo(PHONE, "aarch64")
    assert pi.model == "Cortex-A76 + Raspberry Pi 5 Model B Rev 1.0"
    assert (pi.cores, pi.flags) == (2, ("asimd", "asimddp", "asimdhp"))
    assert phone.model == "Cortex-A510 + Cortex-X3 + Qualcomm Technologies, Inc SM8550"
    assert "i8mm" in phone.flags


def test_a_riscv_board() -> None:
    """No vector unit is invented from the letters of other extensions."""
    cpu = linux.parse_cpuinfo(P550, "riscv64")
    assert (cpu.model, cpu.threads, cpu.flags) == ("sifive,p550", 1, ())
    with_vectors = P550.replace("rv64imafdc", "rv64imafdcv")
    assert linux.parse_cpuinfo(with_vectors, "riscv64").flags == ("v",)


def test_memory_with_and_without_what_is_available() -> None:
    """Old kernels tell what is free only."""
    new = "MemTotal:       16384000 kB\nMemFree:  100 kB\nMemAvailable:   8192000 kB\n"
    assert linux.parse_meminfo(new) == (16384000 * 1024, 8192000 * 1024)
    assert linux.parse_meminfo("MemTotal: 100 kB\nMemFree: 40 kB\n") == (102400, 40960)
    assert linux.parse_limit("max\n") == 0
    assert linux.parse_limit("1073741824\n") == GIB


def supply(**told: str) -> dict[str, str]:
    return {f"POWER_SUPPLY_{key}": value for key, value in told.items()}


def test_batteries_on_linux() -> None:
    """A laptop's battery counts, a mouse's does not, and a full one needs no mains to be fed."""
    battery = supply(TYPE="Battery", STATUS="Discharging", CAPACITY="81")
    mains = supply(TYPE="Mains", ONLINE="1")
    mouse = supply(TYPE="Battery", SCOPE="Device", CAPACITY="50", STATUS="Discharging")
    assert linux.parse_supplies([battery, mouse]) == Battery(81.0, on_mains=False)
    assert linux.parse_supplies([battery, mains]) == Battery(81.0, on_mains=True)
    assert linux.parse_supplies([mouse, mains]) is None


def test_the_default_route() -> None:
    """Of several default routes the one with the least metric is taken."""
    head = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
    wifi = "wlp2s0\t00000000\t0101A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0\n"
    wire = "enp3s0\t00000000\t0101A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n"
    near = "enp3s0\t0001A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0\n"
    assert linux.parse_route(head + wifi + wire + near) == "enp3s0"
    assert linux.parse_route(head + near) == ""
    assert linux.kind_of_interface("wlp2s0", has_wireless=False) == "wireless"
    assert linux.kind_of_interface("rmnet0", has_wireless=False) == "mobile"
    assert linux.kind_of_interface("enp3s0", has_wireless=False) == "wired"
    assert linux.kind_of_interface("tun0", has_wireless=False) == "unknown"


def test_nvidia_gpus() -> None:
    """Several cards, one that shares the machine's memory, and a driver that failed."""
    text = (
        "NVIDIA GeForce RTX 3060, 12288, 11812, 550.54.14\nNVIDIA GB10, [N/A], [N/A], 580.95.05\n"
    )
    card, spark = nvidia.parse(text)
    assert card == Gpu(
        "nvidia", "NVIDIA GeForce RTX 3060", 12 * GIB, 11812 * MIB, driver="550.54.14"
    )
    assert (spark.unified, spark.memory_bytes, spark.free_bytes) == (True, 0, None)
    failed = (
        "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure "
        "that the latest NVIDIA driver is installed and running.\n"
    )
    assert nvidia.parse(failed) == ()
    assert (
        nvidia.parse("Unable to determine the device handle for GPU0000:0A:00.0: Unknown Error\n")
        == ()
    )


AMD_SMI = json.dumps(
    [
        {
            "gpu": 0,
            "asic": {"market_name": "Radeon RX 7900 XTX", "vendor_id": "0x1002"},
            "driver": {"name": "amdgpu", "version": "6.8.5"},
            "vram": {"type": "GDDR6", "vendor": "SAMSUNG", "size": {"value": 24560, "unit": "MB"}},
        }
    ]
)
ROCM_SMI = json.dumps(
    {
        "card0": {
            "Card Series": "AMD Instinct MI210",
            "VRAM Total Memory (B)": "68702699520",
            "VRAM Total Used Memory (B)": "11730944",
        },
        "system": {"Driver version": "6.3.6"},
    }
)


def test_amd_gpus_by_both_tools() -> None:
    """The newer tool's list, wrapped or not, and the older one's object."""
    (card,) = amd.parse(AMD_SMI)
    assert (card.name, card.memory_bytes) == ("Radeon RX 7900 XTX", 24560 * MIB)
    assert card.driver == "6.8.5"
    assert amd.parse(json.dumps({"gpu_data": json.loads(AMD_SMI)})) == (card,)
    assert amd.parse("WARNING: no permission\n" + AMD_SMI) == (card,)
    (older,) = amd.parse_rocm(ROCM_SMI)
    assert (older.name, older.memory_bytes) == ("AMD Instinct MI210", 68702699520)
    assert older.free_bytes == 68702699520 - 11730944


def test_intel_gpus() -> None:
    """The list, then one by one."""
    listed = {
        "device_list": [{"device_id": 0, "device_name": "Intel Arc B580", "device_type": "GPU"}]
    }
    one = {
        "device_id": 0,
        "device_name": "Intel(R) Arc(TM) B580 Graphics",
        "driver_version": "I915_23.10.54",
        "memory_physical_size_byte": "12884901888",
        "memory_free_size_byte": "12000000000",
    }
    assert intel.parse_list(json.dumps(listed)) == (0,)
    gpu = intel.parse_one(json.dumps(one))
    assert gpu is not None
    assert (gpu.memory_bytes, gpu.free_bytes) == (12 * GIB, 12000000000)
    assert intel.parse_one('{"error": "device not found"}') is None


def test_gpus_that_linux_itself_shows() -> None:
    """Cards with memory of their own count; a processor's graphics and a connector do not."""
    cards = {
        "card0": {"vendor": "0x1002\n", "mem_info_vram_total": str(512 * MIB)},
        "card1": {
            "vendor": "0x1002\n",
            "device": "0x73df\n",
            "mem_info_vram_total": str(12 * GIB),
            "mem_info_vram_used": str(GIB),
        },
        "card3": {"vendor": "0x10de\n", "mem_info_vram_total": str(12 * GIB)},
    }
    (gpu,) = drm.parse(cards)
    assert (gpu.name, gpu.memory_bytes, gpu.free_bytes) == ("AMD 0x73df", 12 * GIB, 11 * GIB)
    assert drm.is_card("card10")
    assert not drm.is_card("card0-HDMI-A-1")


WINDOWS = {
    "cpu": [
        {
            "Name": "AMD Ryzen 7 7840U w/ Radeon  780M ",
            "NumberOfCores": 8,
            "NumberOfLogicalProcessors": 16,
        }
    ],
    "system": {"TotalVisibleMemorySize": 32767344, "FreePhysicalMemory": 20123456},
    "video": [
        {"Name": "AMD Radeon 780M Graphics", "AdapterRAM": 536870912, "DriverVersion": "31.0.22"},
        {
            "Name": "NVIDIA GeForce RTX 4070 Laptop GPU",
            "AdapterRAM": 4293918720,
            "DriverVersion": "32.0",
        },
    ],
    "sizes": [
        {
            "DriverDesc": "NVIDIA GeForce RTX 4070 Laptop GPU",
            "HardwareInformation.qwMemorySize": 8585740288,
        },
        {"DriverDesc": "AMD Radeon 780M Graphics", "HardwareInformation.qwMemorySize": 536870912},
    ],
    "battery": [{"EstimatedChargeRemaining": 64, "BatteryStatus": 1}],
    "network": {"Name": "WLAN", "PhysicalMediaType": "Native 802.11"},
}


def test_a_windows_laptop() -> None:
    """A GPU's true size is the registry's: the other field ends at 4 GiB."""
    device = windows.parse(json.dumps(WINDOWS), "amd64")
    assert (device.cpu.model, device.cpu.cores) == ("AMD Ryzen 7 7840U w/ Radeon 780M", 8)
    assert device.memory_bytes == 32767344 * 1024
    (gpu,) = device.gpus
    assert (gpu.vendor, gpu.memory_bytes) == ("nvidia", 8585740288)
    assert device.battery == Battery(64.0, on_mains=False)
    assert device.network == "wireless"


def test_a_windows_desktop_without_most_things() -> None:
    """Parts that a machine does not have are null."""
    told = {**WINDOWS, "battery": None, "network": None, "video": None, "sizes": None}
    device = windows.parse(json.dumps(told), "amd64")
    assert (device.battery, device.network, device.gpus) == (None, "unknown", ())


SYSCTL = """\
hw.ncpu: 12
hw.memsize: 34359738368
hw.physicalcpu: 12
hw.logicalcpu: 12
hw.optional.neon: 1
hw.optional.arm.FEAT_DotProd: 1
hw.optional.arm.FEAT_I8MM: 1
hw.optional.arm.FEAT_SME: 0
machdep.cpu.brand_string: Apple M2 Max
machdep.cpu.core_count: 12
"""
VM_STAT = """\
Mach Virtual Memory Statistics: (page size of 16384 bytes)
Pages free:                              100000.
Pages active:                            500000.
Pages inactive:                           50000.
Pages speculative:                        10000.
Pages wired down:                        200000.
Pages purgeable:                           5000.
"""


def test_a_mac_of_apple_silicon() -> None:
    """Its GPU has the machine's memory."""
    cpu, memory = macos.parse_sysctl(SYSCTL, "arm64")
    assert (cpu.model, cpu.cores, memory) == ("Apple M2 Max", 12, 32 * GIB)
    assert cpu.flags == ("asimd", "asimddp", "i8mm")
    assert macos.parse_vm_stat(VM_STAT) == 165000 * 16384
    shown = {
        "SPDisplaysDataType": [
            {
                "_name": "Apple M2 Max",
                "spdisplays_vendor": "sppci_vendor_Apple",
                "sppci_model": "Apple M2 Max",
            }
        ]
    }
    (gpu,) = macos.parse_displays(json.dumps(shown), memory)
    assert (gpu.vendor, gpu.unified, gpu.memory_bytes) == ("apple", True, 32 * GIB)


def test_an_old_mac() -> None:
    """A card of another maker counts, the processor's own graphics does not."""
    shown = {
        "SPDisplaysDataType": [
            {"sppci_model": "Intel UHD Graphics 630", "spdisplays_vram_shared": "1536 MB"},
            {
                "sppci_model": "AMD Radeon Pro 5500M",
                "spdisplays_vendor": "sppci_vendor_amd",
                "spdisplays_vram": "8 GB",
            },
        ]
    }
    (gpu,) = macos.parse_displays(json.dumps(shown), 16 * GIB)
    assert (gpu.vendor, gpu.memory_bytes) == ("amd", 8 * GIB)


def test_power_and_network_of_a_mac() -> None:
    """Mains or battery, Wi-Fi or cable."""
    laptop = (
        "Now drawing from 'Battery Power'\n"
        " -InternalBattery-0 (id=22413411)\t57%; discharging; 4:10 remaining present: true\n"
    )
    assert macos.parse_power(laptop) == Battery(57.0, on_mains=False)
    assert macos.parse_power(laptop.replace("Battery Power", "AC Power")) == Battery(57.0, True)
    assert macos.parse_power("Now drawing from 'AC Power'\n") is None
    route = "   route to: default\ndestination: default\n  interface: en0\n"
    ports = (
        "Hardware Port: Ethernet\nDevice: en4\nEthernet Address: 00:00:00:00:00:00\n\n"
        "Hardware Port: Wi-Fi\nDevice: en0\nEthernet Address: 00:00:00:00:00:01\n"
    )
    assert macos.parse_network(route, ports) == "wireless"
    assert macos.parse_network(route.replace("en0", "en4"), ports) == "wired"
    assert macos.parse_network("not connected", ports) == "unknown"


# What tools print when they are broken: anything, and their own answers damaged.
KNOWN = st.sampled_from(
    [XEON, PI_5, PHONE, P550, AMD_SMI, ROCM_SMI, json.dumps(WINDOWS), SYSCTL, VM_STAT]
)
KEYS = (
    *("gpu_data", "asic", "market_name", "vram", "size", "value", "unit", "card0", "system"),
    *("device_list", "device_id", "SPDisplaysDataType", "spdisplays_vram", "cpu", "video"),
    *("Name", "battery", "network", "sizes", "VRAM Total Memory (B)", "sppci_model"),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(KEYS),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
).map(json.dumps)
CUT = st.tuples(KNOWN, st.integers(0, 999), st.integers(0, 99)).map(
    lambda cut: cut[0][: cut[1]] + cut[0][cut[1] + cut[2] :]
)


@given(st.text() | CUT | JSON)
def test_rubbish_is_nothing_and_never_an_exception(text: str) -> None:
    """Whatever a tool prints, a parser returns; and what it returns is within bounds."""
    gpus = [*nvidia.parse(text), *amd.parse(text), *amd.parse_rocm(text)]
    gpus += [*macos.parse_displays(text, GIB), *windows.parse(text, "x").gpus]
    one = intel.parse_one(text)
    gpus += [one] if one else []
    intel.parse_list(text)
    for gpu in gpus:
        assert 0 <= gpu.memory_bytes <= 1 << 62
        assert len(gpu.name) <= 128
        assert gpu.name.isprintable()
    cpu = linux.parse_cpuinfo(text, "x")
    assert len(cpu.model) <= 128
    total, available = linux.parse_meminfo(text)
    assert 0 <= available <= total
    linux.parse_limit(text)
    linux.parse_route(text)
    linux.parse_supplies([dict(pairs(text, "="))])
    drm.parse({"card0": dict(pairs(text))})
    macos.parse_sysctl(text, "x")
    macos.parse_vm_stat(text)
    macos.parse_power(text)
    macos.parse_network(text, text)


@given(JSON)
def test_fields_of_anything(text: str) -> None:
    """The readers of fields take any value."""
    value = document(text)
    assert 0 <= number(value) <= 1 << 62
    assert 0 <= whole(value, 1 << 40) <= 1 << 62
    assert len(name(value)) <= 128
    assert all(isinstance(row, dict) for row in rows(value))
    field(value, "cpu", "Name")


def test_deep_json_is_nothing() -> None:
    """A document that is nested without end does not exhaust the stack."""
    assert document("[" * 100_000) is None
