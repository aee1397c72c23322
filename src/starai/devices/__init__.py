"""What a device is: its processor, memory, disk, GPUs, battery and network, on any platform."""

from starai.devices.base import Battery, Cpu, Device, Gpu, Rates, fingerprint
from starai.devices.gathering import profile

__all__ = ["Battery", "Cpu", "Device", "Gpu", "Rates", "fingerprint", "profile"]
