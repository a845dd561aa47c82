"""The PC that guests see: its devices on one bus, its interrupt lines on one PIC pair."""

from collections.abc import Callable
from datetime import datetime

from trapgate.vmm.devices.bus import Bus
from trapgate.vmm.devices.clock import VirtualClock
from trapgate.vmm.devices.debug import DebugConsole, DebugExit, NoPci, PostPort
from trapgate.vmm.devices.keyboard import KeyboardController
from trapgate.vmm.devices.pic import IrqLine, PicPair
from trapgate.vmm.devices.pit import Pit8254
from trapgate.vmm.devices.rtc import DEFAULT_EPOCH, CmosRtc
from trapgate.vmm.devices.uart import Uart16550


class Pc:
    """A PC without firmware, PCI, ACPI or local APIC.

    `memory` is RAM in bytes. `emit` takes each byte the guest sends to COM1;
    `debug_emit` those for port E9h, and is `emit` if not given. The VMM calls `read` and
    `write` at I/O exits, `advance` when a deadline has come, and looks at `pending` and
    `event` afterwards.
    """

    def __init__(
        self,
        memory: int,
        emit: Callable[[int], None],
        *,
        clock: VirtualClock | None = None,
        epoch: datetime = DEFAULT_EPOCH,
        debug_emit: Callable[[int], None] | None = None,
    ) -> None:
        self.bus = Bus(clock)
        clock = self.bus.clock
        self.pic = PicPair()
        self.pit = Pit8254(IrqLine(self.pic, 0), clock)
        self.keyboard = KeyboardController(IrqLine(self.pic, 1), self.bus)
        self.uart = Uart16550(emit, IrqLine(self.pic, 4), clock)
        self.rtc = CmosRtc(IrqLine(self.pic, 8), clock, memory, epoch)
        self.post = PostPort()
        for device in (
            self.pic,
            self.pit,
            self.keyboard,
            self.uart,
            self.rtc,
            self.post,
            DebugConsole(emit if debug_emit is None else debug_emit),
            DebugExit(self.bus),
            NoPci(self.bus),
        ):
            self.bus.attach(device)
        self.read = self.bus.read
        self.write = self.bus.write
        self.advance = self.bus.advance
        self.next_deadline = self.bus.next_deadline
        self.pending = self.pic.pending
        self.acknowledge = self.pic.acknowledge
