"""Devices of a PC, on virtual time: what a guest finds at its I/O ports and in memory.

`bus` defines what a device is and finds the device for a port, `clock` is virtual time, and `pc`
puts the devices together; each other module is one device. It may import `processor` and below,
but nothing else of `vmm`. Begin with `bus`.
"""

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
