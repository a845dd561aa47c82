"""The I/O APIC, an 82093AA: from interrupt lines to messages to local APICs.

Edges at a masked pin are lost, as its data sheet says. A level-triggered pin that the
local APIC has accepted waits (remote IRR) until that interrupt ends. Lines are told as
"asserted", so the polarity bits are kept and mean nothing.
"""

from trapgate.vmm.devices.bus import UntimedDevice
from trapgate.vmm.devices.interconnect import Interconnect

BASE_ADDRESS = 0xFEC0_0000
"""Where its page of registers lies."""
PINS = 24

_SELECT, _WINDOW = 0x00, 0x10
_ID, _VERSION, _ARBITRATION, _TABLE = 0x00, 0x01, 0x02, 0x10
_MASKED, _LEVEL, _REMOTE_IRR, _LOGICAL = 1 << 16, 1 << 15, 1 << 14, 1 << 11
_WRITABLE_LOW = 0x1AFFF
_FIXED, _LOWEST_PRIORITY, _NMI = 0, 1, 4


class IoApic(UntimedDevice):
    """24 pins and their redirection table, indexed at offset 0 and accessed at offset 10H.

    `number` is its APIC ID, as firmware leaves it: that of no local APIC.
    """

    ports = ()
    wide = True

    def __init__(self, interconnect: Interconnect, number: int = 0) -> None:
        self._interconnect = interconnect
        interconnect.enders += (self,)
        self._selected = 0
        self._id = number << 24
        self._table = [_MASKED] * PINS
        self._lines = 0

    def set_line(self, pin: int, level: bool) -> None:
        """Drive pin 0..23."""
        bit = 1 << pin
        rises = level and not self._lines & bit
        self._lines = self._lines | bit if level else self._lines & ~bit
        entry = self._table[pin]
        if entry & _LEVEL:
            self._offer(pin)
        elif rises and not entry & _MASKED:
            self._send(entry)

    def end(self, vector: int) -> None:
        """A level-triggered interrupt ended: pins that still ask get another."""
        for pin, entry in enumerate(self._table):
            if entry & _REMOTE_IRR and entry & 0xFF == vector:
                self._table[pin] = entry & ~_REMOTE_IRR
                self._offer(pin)

    def read(self, port: int, size: int, now: int) -> int:
        """Load `size` bytes at offset `port` of the page; what is not a register is 0."""
        register, lane = port & ~0xF, port & 0xF
        value = {_SELECT: self._selected, _WINDOW: self._get()}.get(register, 0)
        return value >> 8 * lane & (1 << 8 * size) - 1

    def write(self, port: int, size: int, value: int, now: int) -> None:
        """Store at offset `port` of the page: a byte selects, 32 bits write what is selected."""
        if port == _SELECT:
            self._selected = value & 0xFF
        elif port == _WINDOW and size >= 4:
            self._put(value & 0xFFFF_FFFF)

    def _get(self) -> int:
        if self._selected in (_ID, _ARBITRATION):
            return self._id
        if self._selected == _VERSION:
            return 0x11 | (PINS - 1) << 16
        pin, high = divmod(self._selected - _TABLE, 2)
        return self._table[pin] >> 32 * high & 0xFFFF_FFFF if 0 <= pin < PINS else 0

    def _put(self, value: int) -> None:
        if self._selected == _ID:
            self._id = value & 0x0F00_0000
        pin, high = divmod(self._selected - _TABLE, 2)
        if not 0 <= pin < PINS:
            return
        entry = self._table[pin]
        if high:
            self._table[pin] = (value & 0xFF00_0000) << 32 | entry & 0xFFFF_FFFF
            return
        kept = entry & _REMOTE_IRR if value & _LEVEL else 0
        self._table[pin] = entry >> 32 << 32 | value & _WRITABLE_LOW | kept
        if value & _LEVEL:
            self._offer(pin)

    @property
    def sends_nmis(self) -> bool:
        """Whether an interrupt of some pin would be an NMI."""
        return any(entry & (_MASKED | 0x700) == _NMI << 8 for entry in self._table)

    def _offer(self, pin: int) -> None:
        """Send a level-triggered pin's interrupt if it asks, may, and none is under way."""
        entry = self._table[pin]
        if self._lines >> pin & 1 and not entry & (_MASKED | _REMOTE_IRR) and self._send(entry):
            self._table[pin] |= _REMOTE_IRR

    def _send(self, entry: int) -> bool:
        mode = entry >> 8 & 7
        level = bool(entry & _LEVEL) and mode in (_FIXED, _LOWEST_PRIORITY)
        return self._interconnect.send(
            entry & 0xFF, mode, entry >> 56, logical=bool(entry & _LOGICAL), level=level
        )
