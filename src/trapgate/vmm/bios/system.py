"""INT 11H, 12H, 14H, 15H, 17H and 1AH: memory, serial port, waiting, time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from struct import pack
from typing import Final

from trapgate.vmm.bios.call import CARRY, Call
from trapgate.vmm.firmware.bios_image import CONFIGURATION, SEGMENT

_EQUIPMENT, _MEMORY_SIZE, _TICKS, _MIDNIGHT = 0x410, 0x413, 0x46C, 0x470
_UNSUPPORTED = 0x86
_SMAP: Final = 0x534D4150
_KIB, _MIB = 1 << 10, 1 << 20
_TICKS_A_DAY: Final = 0x1800B0
_MOST_BLOCK_WORDS = 0x8000


class System:
    """The services. `ranges` is the memory map, (start, length, type) each.

    `port_in` and `port_out` reach the machine's ports; `wait` lets microseconds pass.
    `power_management` and `pci` answer the calls that are theirs.
    """

    def __init__(
        self,
        ranges: Sequence[tuple[int, int, int]],
        port_in: Callable[[int], int],
        port_out: Callable[[int, int], None],
        wait: Callable[[int], None],
        power_management: Callable[[Call], None],
        pci: Callable[[Call], None],
    ) -> None:
        self._ranges = ranges
        self._in = port_in
        self._out = port_out
        self._wait = wait
        self._power_management = power_management
        self._pci = pci

    @property
    def _extended(self) -> int:
        """Bytes of RAM from 1 MiB on, without a gap."""
        return next((size for start, size, kind in self._ranges if start == _MIB and kind == 1), 0)

    def tick(self, call: Call) -> None:
        """INT 8: the timer, 18.2 times a second."""
        ticks = call.word(_TICKS, 4) + 1
        if ticks >= _TICKS_A_DAY:
            ticks = 0
            call.put_word(_MIDNIGHT, 1, 1)
        call.put_word(_TICKS, ticks, 4)

    def equipment(self, call: Call) -> None:
        """INT 11H."""
        call.put("ax", call.word(_EQUIPMENT))

    def memory_size(self, call: Call) -> None:
        """INT 12H: KiB of conventional memory."""
        call.put("ax", call.word(_MEMORY_SIZE))

    def serial(self, call: Call) -> None:
        """INT 14H, for COM1 only."""
        function, port = call.high("ax"), call.get("dx") & 0xFFFF
        if port != 0:
            call.put_high("ax", 0x80)
        elif function == 1:
            self._out(0x3F8, call.low("ax"))
            call.put_high("ax", self._in(0x3FD) & 0x7F)
        elif function == 2:
            status = self._in(0x3FD)
            if status & 1:
                call.put_low("ax", self._in(0x3F8))
                call.put_high("ax", 0)
            else:
                call.put_high("ax", 0x80)
        else:
            call.put_high("ax", self._in(0x3FD))
            call.put_low("ax", self._in(0x3FE))

    def printer(self, call: Call) -> None:
        """INT 17H: there is none."""
        call.put_high("ax", 0x01)

    def call(self, call: Call) -> None:
        """INT 15H."""
        function = call.get("ax") & 0xFFFF
        if function == 0xE820 and call.get("dx") == _SMAP:
            self._map(call)
        elif function == 0xE801:
            low = min(self._extended, 15 * _MIB) // _KIB
            high = max(self._extended - 15 * _MIB, 0) // (64 * _KIB)
            for register, value in (("ax", low), ("cx", low), ("bx", high), ("dx", high)):
                call.put(register, value)
            call.flag(CARRY, on=False)
        elif function >> 8 == 0x24:
            self._a20(call, function & 0xFF)
        elif function >> 8 == 0x53:
            self._power_management(call)
        elif function >> 8 == 0x86:
            self._wait((call.get("cx") & 0xFFFF) << 16 | call.get("dx") & 0xFFFF)
            call.succeed()
        elif function >> 8 == 0x87:
            self._move(call)
        elif function >> 8 == 0x88:
            call.put("ax", min(self._extended // _KIB, 0xFC00))
            call.flag(CARRY, on=False)
        elif function >> 8 == 0xC0:
            call.put_segment("ES", SEGMENT)
            call.put("bx", CONFIGURATION)
            call.succeed()
        elif function >> 8 in (0x4F, 0x90, 0x91):
            # Keys pass as they are; nobody waits for devices.
            call.flag(CARRY, on=function >> 8 == 0x4F)
        else:
            call.fail(_UNSUPPORTED)

    def _map(self, call: Call) -> None:
        number = call.get("bx")
        if number >= len(self._ranges) or call.get("cx") < 20:
            call.fail(_UNSUPPORTED)
            return
        at = call.segment("ES") + (call.get("di") & 0xFFFF)
        call.write(at, pack("<QQI", *self._ranges[number]))
        call.put("ax", _SMAP, 32)
        call.put("cx", 20, 32)
        call.put("bx", (number + 1) % len(self._ranges), 32)
        call.flag(CARRY, on=False)

    def _a20(self, call: Call, function: int) -> None:
        gate = self._in(0x92)
        if function in (0, 1):
            self._out(0x92, gate & ~3 | function << 1)
        elif function == 2:
            call.put_low("ax", gate >> 1 & 1)
        elif function == 3:
            call.put("bx", 3)
        else:
            call.fail(_UNSUPPORTED)
            return
        call.succeed()

    def _move(self, call: Call) -> None:
        """Copy words between places anywhere below 4 GiB, by descriptors of the caller's."""
        table = call.segment("ES") + (call.get("si") & 0xFFFF)
        count = call.get("cx") & 0xFFFF
        if count > _MOST_BLOCK_WORDS:
            call.fail(2)
            return

        def base(descriptor: int) -> int:
            return call.word(descriptor + 2, 3) | call.word(descriptor + 7, 1) << 24

        call.write(base(table + 0x18), call.read(base(table + 0x10), 2 * count))
        call.succeed()

    def time(self, call: Call) -> None:
        """INT 1AH: ticks since midnight, the clock, and PCI."""
        function = call.high("ax")
        if function == 0xB1:
            self._pci(call)
        elif function == 0x00:
            ticks = call.word(_TICKS, 4)
            call.put("dx", ticks & 0xFFFF)
            call.put("cx", ticks >> 16)
            call.put_low("ax", call.word(_MIDNIGHT, 1))
            call.put_word(_MIDNIGHT, 0, 1)
        elif function == 0x01:
            call.put_word(_TICKS, (call.get("cx") & 0xFFFF) << 16 | call.get("dx") & 0xFFFF, 4)
        elif function == 0x02:
            call.put("cx", self._clock(4) << 8 | self._clock(2))
            call.put("dx", self._clock(0) << 8)
            call.flag(CARRY, on=False)
        elif function == 0x04:
            call.put("cx", self._clock(0x32) << 8 | self._clock(9))
            call.put("dx", self._clock(8) << 8 | self._clock(7))
            call.flag(CARRY, on=False)
        else:
            call.flag(CARRY, on=True)

    def _clock(self, register: int) -> int:
        self._out(0x70, register)
        return self._in(0x71)
