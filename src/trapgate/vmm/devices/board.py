"""What is plugged into a PC: drives, and what its firmware is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from trapgate.vmm.devices.atapi import CdDrive
from trapgate.vmm.devices.bus import Bus, Device, Line
from trapgate.vmm.devices.ide import AtaChannel, BusMaster, Drive, GuestMemory, HardDisk
from trapgate.vmm.devices.pci import Function, IoRegion
from trapgate.vmm.devices.storage import Sectors

MOST_DRIVES = 4
_CHANNELS = ((0x1F0, 0x3F6, 14), (0x170, 0x376, 15))
_BUS_MASTER_PORTS = 16


@dataclass(frozen=True)
class Board:
    """A machine's drives in their order (at most four), and files for its firmware.

    `firmware` says that real firmware starts the machine: it makes the memory map itself, and its
    messages (port 402H) go to `log`. `files` are those of the firmware configuration device.
    """

    disks: tuple[Sectors, ...] = ()
    cds: tuple[Sectors, ...] = ()
    firmware: bool = False
    files: Mapping[str, bytes] = field(default_factory=dict)
    log: Callable[[int], None] | None = None

    @property
    def drives(self) -> tuple[Drive | None, ...]:
        """First and second drive of the first channel, then of the second."""
        drives: list[Drive | None] = [HardDisk(disk) for disk in self.disks]
        drives += [CdDrive(disc) for disc in self.cds]
        return (*drives, *[None] * (MOST_DRIVES - len(drives)))


def ide_interface(
    drives: tuple[Drive | None, ...], bus: Bus, memory: GuestMemory, line: Callable[[int], Line]
) -> tuple[Function, list[Device]]:
    """The PIIX3's IDE function, and its two channels; `line` gives an interrupt line by number."""
    channels = []
    for n, (base, control, irq) in enumerate(_CHANNELS):
        channel = AtaChannel(base, control, line(irq), (drives[2 * n], drives[2 * n + 1]))
        bus.read_blocks(base, channel.read_block)
        channels.append(channel)
    masters = [BusMaster(channel, memory) for channel in channels]

    def moved(base: int | None) -> None:
        for n, master in enumerate(masters):
            if len(master.ports):
                bus.detach(master)
                master.ports = range(0)
            start = None if base is None else base + 8 * n
            if start is not None and bus.is_free(range(start, start + 8)):
                master.ports = range(start, start + 8)
                bus.attach(master)

    function = Function(0x7010_8086, 0x0101_8000, regions={4: IoRegion(_BUS_MASTER_PORTS, moved)})
    function.put(0x40, 0x8000_8000, 4, 0xFFFF_FFFF)
    return function, list(channels)
