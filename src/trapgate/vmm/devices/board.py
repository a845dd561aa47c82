"""What is plugged into a PC: processors, drives, and what its firmware is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from trapgate.vmm.devices.atapi import CdDrive
from trapgate.vmm.devices.bus import Bus, Line
from trapgate.vmm.devices.bus_master import BusMaster
from trapgate.vmm.devices.guest_memory import GuestMemory
from trapgate.vmm.devices.ide import AtaChannel, Drive, HardDisk
from trapgate.vmm.devices.pci import Function, IoRegion
from trapgate.vmm.devices.polled import PolledPorts
from trapgate.vmm.devices.storage import Sectors

MOST_DRIVES, MOST_FLOPPIES = 4, 2
MOST_PROCESSORS = 32
"""More would need tables longer than the firmware's area, and a second APIC ID space."""
_CHANNELS = ((0x1F0, 0x3F6, 14), (0x170, 0x376, 15))
_BUS_MASTER_PORTS = 16


@dataclass(frozen=True)
class Board:
    """A machine's drives in their order (at most four), and files for its firmware.

    `processors` is their number, 1 to `MOST_PROCESSORS`. `testdev` plugs in QEMU's pc-testdev, for
    test guests.
    There are at most two floppies. `bios` says that our own BIOS
    boots from the drives (`VirtualMachine.boot`).
    `firmware` says that real firmware starts the machine: it makes the memory map itself, and its
    messages (port 402H) go to `log`. `files` are those of the firmware configuration device.
    """

    disks: tuple[Sectors, ...] = ()
    cds: tuple[Sectors, ...] = ()
    floppies: tuple[Sectors, ...] = ()
    firmware: bool = False
    bios: bool = False
    files: Mapping[str, bytes] = field(default_factory=dict)
    log: Callable[[int], None] | None = None
    processors: int = 1
    testdev: bool = False

    @property
    def drives(self) -> tuple[Drive | None, ...]:
        """First and second drive of the first channel, then of the second."""
        drives: list[Drive | None] = [HardDisk(disk) for disk in self.disks]
        drives += [CdDrive(disc) for disc in self.cds]
        return (*drives, *[None] * (MOST_DRIVES - len(drives)))


class IdeInterface:
    """The PIIX3's IDE interface: two channels, their bus masters, and the PCI function of both.

    `line` gives an interrupt line by its number; `ports` are answered without asking.
    """

    def __init__(
        self,
        drives: tuple[Drive | None, ...],
        bus: Bus,
        memory: GuestMemory,
        line: Callable[[int], Line],
        ports: PolledPorts,
    ) -> None:
        self._bus = bus
        self.channels = [
            AtaChannel(base, control, line(irq), (drives[2 * n], drives[2 * n + 1]), ports)
            for n, (base, control, irq) in enumerate(_CHANNELS)
        ]
        for (base, _, _), channel in zip(_CHANNELS, self.channels, strict=True):
            bus.read_blocks(base, channel.read_block)
            bus.write_blocks(base, channel.write_block)
        self._masters = [BusMaster(memory) for _ in self.channels]
        for channel, master in zip(self.channels, self._masters, strict=True):
            channel.master = master
        region = IoRegion(_BUS_MASTER_PORTS, self._move)
        self.function = Function(0x7010_8086, 0x0101_8000, regions={4: region})
        self.function.put(0x40, 0x8000_8000, 4, 0xFFFF_FFFF)

    def _move(self, base: int | None) -> None:
        """The bus masters' ports are there from now on, or nowhere."""
        for n, master in enumerate(self._masters):
            if master.ports:
                self._bus.detach(master)
                master.ports = range(0)
            ports = range(0) if base is None else range(base + 8 * n, base + 8 * n + 8)
            if ports and self._bus.is_free(ports):
                master.ports = ports
                self._bus.attach(master)
