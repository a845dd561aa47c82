"""The BIOS as a whole: which drives it knows, what it starts, and who answers which interrupt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from trapgate.errors import TrapgateError
from trapgate.vmm import firmware
from trapgate.vmm.actions import EMULATED, Action, End, Stop
from trapgate.vmm.bios.apm import Apm
from trapgate.vmm.bios.boot import (
    BOOT_ADDRESS,
    BootImage,
    boot_image,
    can_boot,
    emulated_floppy,
    emulated_hard_disk,
)
from trapgate.vmm.bios.call import Call, Machine
from trapgate.vmm.bios.disk import BiosDrive, Disks, cd, floppy, hard_disk
from trapgate.vmm.bios.keyboard import Keyboard
from trapgate.vmm.bios.pci import PciBios
from trapgate.vmm.bios.system import System
from trapgate.vmm.bios.video import Video
from trapgate.vmm.devices.board import Board
from trapgate.vmm.devices.bus import MachineEvent, MachineEventKind
from trapgate.vmm.devices.pc import Pc
from trapgate.vmm.firmware import bios_image
from trapgate.vmm.loaders.image import GuestImage, GuestKind, Segment, guest_image
from trapgate.vmm.loaders.state import real_mode

_EQUIPMENT = 0x0026  # a mouse, a coprocessor, colour at 80 columns
_IF, _VM = 1 << 9, 1 << 17


class BootError(TrapgateError):
    """No drive can be booted; the message says what each of them lacks."""


class Emit(Protocol):
    """Where the machine's output goes, a byte at a time."""

    def __call__(self, byte: int) -> None:
        """Put one byte out."""


class Bios:
    """Firmware for the drives of `board`; `ranges` is the memory map it tells of.

    `video` are address and size of the frame buffer; of size 0 if there is none.
    """

    def __init__(
        self,
        board: Board,
        devices: Pc,
        emit: Emit,
        ranges: Sequence[tuple[int, int, int]],
        video: tuple[int, int],
    ) -> None:
        self.drives: dict[int, BiosDrive] = {
            **{n: floppy(one) for n, one in enumerate(board.floppies)},
            **{0x80 + n: one for n, one in enumerate(_hard_disks(board))},
            **{0xE0 + n: cd(one) for n, one in enumerate(board.cds)},
        }
        if not board.floppies:
            shown = next(filter(None, map(emulated_floppy, map(cd, board.cds))), None)
            if shown is not None:
                self.drives[0] = shown
        self._devices = devices
        self._processors = board.processors
        self._machine: Machine | None = None
        self._video = Video(emit, self._out, devices.vga, *video)
        self._disks = Disks(self.drives, min(self.drives, default=None))
        self._keyboard = Keyboard(lambda: self._in(0x60), devices.uart.incoming, self._wait)
        apm = Apm(self._power_off, self._wait)
        pci = PciBios(self._access)
        self._system = System(ranges, self._in, self._out, self._wait, apm.call, pci.call)
        self._services: dict[int, Callable[[Call], None]] = {
            0x08: self._system.tick,
            0x09: self._keyboard.interrupt,
            0x10: self._video.call,
            0x11: self._system.equipment,
            0x12: self._system.memory_size,
            0x13: self._disks.call,
            0x14: self._system.serial,
            0x15: self._system.call,
            0x16: self._keyboard.call,
            0x17: self._system.printer,
            0x1A: self._system.time,
        }

    def _now(self) -> int:
        assert self._machine is not None
        return self._machine.processor.time

    def _in(self, port: int) -> int:
        return self._devices.read(port, 1, self._now())

    def _out(self, port: int, value: int) -> None:
        self._devices.write(port, 1, value, self._now())

    def _access(self, port: int, size: int, value: int | None = None) -> int:
        if value is None:
            return self._devices.read(port, size, self._now())
        self._devices.write(port, size, value, self._now())
        return value

    def _power_off(self) -> None:
        self._devices.bus.signal(MachineEvent(MachineEventKind.POWER_OFF, "APM"))

    def _wait(self, microseconds: int) -> None:
        assert self._machine is not None
        per_microsecond = self._devices.bus.clock.hertz // 1_000_000
        self._machine.processor.skip_to(self._now() + microseconds * per_microsecond)

    def guest(self) -> GuestImage:
        """What is in memory when the first drive's boot sector starts. Raises BootError."""
        found = boot_image(self.drives)
        if found is None:
            kinds = ", ".join(f"{number:02X}H" for number in sorted(self.drives)) or "none"
            raise BootError(
                f"there is nothing to boot (drives: {kinds}): a disk's first sector must end in "
                "55H AAH, and a CD needs a boot image; or give --bios FILE"
            )
        return self._image(found)

    def _image(self, found: BootImage) -> GuestImage:
        hard_disks = self._disks.hard_disks
        floppies = sum(number < 0x80 for number in self.drives)
        equipment = _EQUIPMENT | (1 | (floppies - 1) << 6 if floppies else 0)
        memory = bios_image.with_services(equipment=equipment, hard_disks=hard_disks)
        segments = [
            *(Segment(address, data) for address, data in memory.items()),
            Segment(firmware.AREA, firmware.bios_area(self._processors)),
            Segment(0xB8000, b" \x07" * 0x4000),
            Segment(found.address, found.data),
        ]
        at_0 = found.address == BOOT_ADDRESS
        fields = real_mode(BOOT_ADDRESS if at_0 else 0, BOOT_ADDRESS)
        if not at_0:
            fields["GUEST_CS_SELECTOR"] = found.address >> 4
            fields["GUEST_CS_BASE"] = found.address
        fields["GUEST_RFLAGS"] |= _IF
        return guest_image(
            GuestKind.BOOT_SECTOR,
            16,
            segments,
            fields,
            {"RDX": found.drive},
            f"boot sector of drive {found.drive:02X}H in real mode at {found.address:#x}",
        )

    def serve(self, machine: Machine) -> None:
        """Serve as the BIOS of a machine."""
        self._machine = machine

    def start(self, machine: Machine) -> None:
        """Leave the devices as a BIOS does: 8259s at 08H and 70H, the timer at 18.2 Hz, mode 3."""
        self.serve(machine)
        self._video.begin()
        for port, value in (
            *((0x20, 0x11), (0x21, 0x08), (0x21, 0x04), (0x21, 0x01), (0x21, 0xB8)),
            *((0xA0, 0x11), (0xA1, 0x70), (0xA1, 0x02), (0xA1, 0x01), (0xA1, 0x8F)),
            *((0x43, 0x36), (0x40, 0), (0x40, 0)),
            *((0x64, 0x60), (0x60, 0x61), (0x64, 0xAE)),
        ):
            self._out(port, value)

    def answers(self, machine: Machine) -> bool:
        """Whether a VMCALL is a stub's: in real or virtual-8086 mode, in the BIOS's segment."""
        vmcs = machine.vmcs
        real = not vmcs["GUEST_CR0"] & 1 or vmcs["GUEST_RFLAGS"] & _VM
        in_segment = vmcs["GUEST_CS_BASE"] == bios_image.SEGMENT << 4
        return bool(real and in_segment and bios_image.vector_at(vmcs["GUEST_RIP"]) is not None)

    def call(self, machine: Machine) -> Action:
        """Carry out the service whose stub the VMCALL is in."""
        self._machine = machine
        vector = bios_image.vector_at(machine.vmcs["GUEST_RIP"])
        assert vector is not None
        if vector in (0x18, bios_image.BOOT_AGAIN):
            return Stop(End.RESET, "the guest asked the BIOS to boot again")
        service = self._services.get(vector)
        if service is not None:
            service(Call(machine))
        return EMULATED


def _hard_disks(board: Board) -> list[BiosDrive]:
    """The hard disks from 80H on: before them, if none of them boots, the one that a CD has."""
    disks = [hard_disk(one) for one in board.disks]
    shown = next(filter(None, map(emulated_hard_disk, map(cd, board.cds))), None)
    return disks if shown is None or any(map(can_boot, disks)) else [shown, *disks]
