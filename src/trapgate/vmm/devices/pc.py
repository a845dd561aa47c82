"""The PC that guests see: its devices on one bus, its interrupt lines on two controllers."""

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from functools import partial
from typing import Protocol

from trapgate.instructions import polled_ports as polled
from trapgate.vmm.devices import hpet, ioapic
from trapgate.vmm.devices.apic import ID, LocalApic, Pins
from trapgate.vmm.devices.board import Board, IdeInterface
from trapgate.vmm.devices.bochs_vga import BochsVga
from trapgate.vmm.devices.bus import Bus, Device, SlowDevice, Wires
from trapgate.vmm.devices.clock import VirtualClock
from trapgate.vmm.devices.debug import DebugConsole, DebugExit, PostPort
from trapgate.vmm.devices.dma import DmaControllers
from trapgate.vmm.devices.floppy import FloppyController, geometry
from trapgate.vmm.devices.fwcfg import FirmwareConfiguration, e820
from trapgate.vmm.devices.guest_memory import GuestMemory
from trapgate.vmm.devices.hpet import Hpet, LineGate
from trapgate.vmm.devices.interconnect import Interconnect
from trapgate.vmm.devices.ioapic import IoApic
from trapgate.vmm.devices.keyboard import KeyboardController
from trapgate.vmm.devices.pci import Function, HostBridge, PciHost, isa_bridge
from trapgate.vmm.devices.pic import IrqLine, PicPair
from trapgate.vmm.devices.pit import Pit8254
from trapgate.vmm.devices.planes import is_video
from trapgate.vmm.devices.polled import PolledPorts, Wired
from trapgate.vmm.devices.power import PowerManagement
from trapgate.vmm.devices.rtc import DEFAULT_EPOCH, CmosRtc
from trapgate.vmm.devices.testdev import MEMORY_PAGE, TestLines, TestMemory
from trapgate.vmm.devices.uart import Uart16550
from trapgate.vmm.devices.vga import VgaRegisters

_TIMER_PIN = 2  # where IRQ0 arrives at the I/O APIC
_SCI = 9
_FLOPPY_IRQ = 6


class Processor(Pins, Protocol):
    """The processor, as the devices see it."""

    def wait(self, microseconds: int) -> None:
        """Advance virtual time while the processor is stopped."""

    def protect_firmware(self, segments: int) -> None:
        """Drop stores to these sixteenths of C0000H-FFFFFH, a bit each."""

    def open_window(self, number: int, start: int, size: int, target: int) -> None:
        """Map `size` bytes at physical `start` to those at `target`; a size of 0 ends that.

        `number` is 0 for the window at A0000H, 1 for the frame buffer.
        """

    def open_planes(self) -> None:
        """Map A0000H to the devices, as window 0."""

    def hold_a20(self, *, low: bool) -> None:
        """Hold address line 20 low, or let it through."""


class NoProcessor:
    """A processor that is not there, with no memory; for a `Pc` by itself."""

    cr8 = 0

    def wait(self, microseconds: int) -> None:
        """Nothing."""

    def protect_firmware(self, segments: int) -> None:
        """Nothing."""

    def open_window(self, number: int, start: int, size: int, target: int) -> None:
        """Nothing."""

    def open_planes(self) -> None:
        """Nothing."""

    def hold_a20(self, *, low: bool) -> None:
        """Nothing."""

    def read(self, address: int, count: int) -> bytes:
        """All ones: there is no memory."""
        return b"\xff" * count

    def write(self, address: int, data: bytes) -> None:
        """Nothing."""

    def nmi(self) -> None:
        """Nothing."""

    def init(self) -> None:
        """Nothing."""

    def smi(self) -> None:
        """Nothing."""

    def start_up(self, vector: int) -> None:
        """Nothing."""


class Pc(Wired):
    """A PC: an i440FX and what is plugged into its board.

    `memory` is RAM in bytes, `ranges` the memory map that firmware tells of, as
    (start, length, type). `emit` takes each byte the guest sends to COM1; `debug_emit`
    those for port E9h, and is `emit` if not given. `processor` is what the devices see
    of the first processor, `others` what local APICs see of further ones, `ram` what devices
    see of memory; `board` says which drives there are. `frame_buffer` are address and size of
    memory that is the screen's.

    The VMM calls `read` and `write` at I/O exits, `load` and `store` for accesses to the
    physical pages in `pages`, `advance` when a deadline has come, and looks at `pending`
    and `event` afterwards. `select` says which processor that is about.
    """

    def __init__(
        self,
        memory: int,
        emit: Callable[[int], None],
        *,
        clock: VirtualClock | None = None,
        epoch: datetime = DEFAULT_EPOCH,
        debug_emit: Callable[[int], None] | None = None,
        processor: Processor | None = None,
        others: Sequence[Pins] = (),
        ranges: Iterable[tuple[int, int, int]] = (),
        ram: GuestMemory | None = None,
        board: Board | None = None,
        frame_buffer: tuple[int, int] = (0, 0),
    ) -> None:
        nothing = NoProcessor()
        board = Board() if board is None else board
        self.bus = Bus(clock)
        clock = self.bus.clock
        self.ports = PolledPorts()
        """What the processor answers without asking."""
        self._apic_id = self.ports.slot(0, is_in=True)
        self.pic = PicPair()
        processor = nothing if processor is None else processor
        interconnect = Interconnect()
        self.apics = tuple(
            LocalApic(pins, self.pic, interconnect, number)
            for number, pins in enumerate((processor, *others))
        )
        self.io_apic = IoApic(interconnect, len(self.apics))
        self.pic.wire = self._ask_for_interrupt
        replaced = LineGate(self._line(0)), LineGate(self._line(8))
        self.hpet = Hpet(clock, self.io_apic.set_line, (self._line(0), self._line(8)), replaced)
        self.pit = Pit8254(replaced[0], clock, self.ports)
        self.power = PowerManagement(self._line(_SCI), self.bus, clock, self.ports)
        self.keyboard = KeyboardController(
            self._line(1),
            self._line(12),
            self.bus,
            processor.hold_a20,
            self.ports,
            self.power.call,
        )
        self.uart = Uart16550(emit, self._line(4), clock, ports=self.ports)
        self.rtc = CmosRtc(replaced[1], clock, memory, epoch, self.ports)
        self.post = PostPort(processor.wait, self.ports)
        self._fixed: dict[int, Device] = Wires(
            {
                ioapic.BASE_ADDRESS >> 12: self.io_apic,
                hpet.BASE_ADDRESS >> 12: SlowDevice(self.hpet, processor.wait),
                **({MEMORY_PAGE: TestMemory(range(0x1000))} if board.testdev else {}),
            }
        )
        self.vga = VgaRegisters(processor, self.ports)
        ranges = [(0, memory, 1)] if board.firmware else ranges
        files = {"etc/e820": e820(ranges), **board.files}
        firmware = FirmwareConfiguration(memory, files, len(self.apics))
        self.bus.read_blocks(0x511, firmware.read_block)
        devices: tuple[Device, ...] = (
            self.pic,
            *self.apics,
            self.io_apic,
            SlowDevice(self.pit, processor.wait),
            self.hpet,
            self.keyboard,
            self.uart,
            SlowDevice(self.rtc, processor.wait),
            self.post,
            DebugConsole(emit, ports=self.ports)
            if debug_emit is None
            else DebugConsole(debug_emit),
            DebugExit(self.bus),
            *self._test_devices(board),
            self.vga,
            *self._pci(board, processor, nothing if ram is None else ram, frame_buffer),
            SlowDevice(self.power, processor.wait),
            firmware,
        )
        for device in devices:
            self.bus.attach(device)
        self.read = self.bus.read
        self.write = self.bus.write
        self.read_string = self.bus.read_string
        self.write_string = self.bus.write_string
        self.advance = self.bus.advance
        self.next_deadline = self.bus.next_deadline
        self.select(0)

    def select(self, number: int) -> None:
        """From now on processor `number` is the one that reaches devices, and takes interrupts."""
        self.apic = self.apics[number]
        self.pending = self.apic.pending
        self.acknowledge = self.apic.acknowledge
        self.update_slots()

    def update_slots(self) -> None:
        """Say what loads of the APIC's ID find: kernels ask for it all the time."""
        page = self.apic.page
        where = -1 if page is None else polled.load_from(page << 12 | ID << 4)
        self._apic_id[polled.ACCESS] = where
        self._apic_id[polled.VALUE] = self.apic.read(ID << 4, 4, 0)

    @property
    def sends_nmis(self) -> bool:
        """Whether a device's interrupt may come as an NMI, which ends any halt."""
        return self.io_apic.sends_nmis or any(apic.takes_nmis for apic in self.apics)

    def _ask_for_interrupt(self, level: bool) -> None:
        """The 8259s' output, which goes to LINT0 of every processor."""
        for apic in self.apics:
            apic.lint(0, level)

    def _test_devices(self, board: Board) -> tuple[Device, ...]:
        if not board.testdev:
            return ()
        lines = [self._line(irq) for irq in range(16)]
        return TestMemory(range(0xE0, 0xE4)), TestLines(lines)

    def _pci(
        self,
        board: Board,
        processor: Processor,
        ram: GuestMemory,
        frame_buffer: tuple[int, int],
    ) -> list[Device]:
        """The bridges and, if there are drives, their interface; for firmware a VGA."""
        functions: dict[tuple[int, int], Function] = Wires(
            {(0, 0): HostBridge(processor.protect_firmware), (1, 0): isa_bridge()}
        )
        devices: list[Device] = [PciHost(functions, self.bus)]
        if board.disks or board.cds:
            interface = IdeInterface(board.drives, self.bus, ram, self._line, self.ports)
            functions[1, 1] = interface.function
            devices += interface.channels
        if board.floppies:
            dma = DmaControllers(ram)
            line = self._line(_FLOPPY_IRQ)
            devices += [dma, FloppyController(board.floppies, line, dma, self.ports)]
            self.rtc.describe_floppies([geometry(disk.count)[3] for disk in board.floppies])
        if board.firmware and frame_buffer[1]:
            adapter = BochsVga(self.vga, *frame_buffer, processor, ram)
            functions[2, 0] = adapter.function
            devices.append(adapter)
        if board.log is not None:
            devices.append(DebugConsole(board.log, 0x402))
        return devices

    def _line(self, irq: int) -> IrqLine:
        """An ISA interrupt line: it goes to the 8259s and to the I/O APIC."""
        pin = _TIMER_PIN if irq == 0 else irq
        return IrqLine(self.pic, irq, partial(self.io_apic.set_line, pin))

    @property
    def pages(self) -> tuple[int, ...]:
        """Numbers of the physical pages behind which there are devices."""
        own = self.apic.page
        return (*self._fixed, *(() if own is None else (own,)))

    def load(self, address: int, size: int, now: int) -> int:
        """Load `size` bytes (1 to 8) at a physical address: all ones where no device is."""
        if is_video(address):
            return self.vga.planes.read(address & 0xFFFF, size, now)
        device = self._at(address)
        if device is None:
            return (1 << 8 * size) - 1
        return device.read(address & 0xFFF, size, now)

    def store(self, address: int, size: int, value: int, now: int) -> None:
        """Store `size` bytes (1 to 8) at a physical address."""
        if is_video(address):
            self.vga.planes.write(address & 0xFFFF, size, value, now)
            return
        device = self._at(address)
        if device is not None:
            device.write(address & 0xFFF, size, value, now)
            if device is self.apic:
                self.update_slots()

    def _at(self, address: int) -> Device | None:
        page = address >> 12
        if page == self.apic.page:
            return self.apic
        return self._fixed.get(page)
