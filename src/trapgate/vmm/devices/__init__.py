"""Devices of a PC, on virtual time: what a guest finds behind its I/O ports."""

from trapgate.vmm.devices.bus import Bus, Device, MachineEvent, MachineEventKind
from trapgate.vmm.devices.clock import INSTRUCTIONS_PER_MICROSECOND, VirtualClock
from trapgate.vmm.devices.pc import Pc

__all__ = [
    "INSTRUCTIONS_PER_MICROSECOND",
    "Bus",
    "Device",
    "MachineEvent",
    "MachineEventKind",
    "Pc",
    "VirtualClock",
]
