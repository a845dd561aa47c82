"""Devices of a PC, on virtual time: what a guest finds behind its I/O ports.

`pc.Pc` is all of them together, `bus` brings accesses to them, `board` is what is plugged in;
each other module is a device, or a part of one. It imports no other room of the VMM. Begin with
`bus`, then `pc`.
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
