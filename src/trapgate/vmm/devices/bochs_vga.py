"""The VGA of Bochs and QEMU: modes with a frame buffer by ports 1CEH and 1CFH, and by PCI.

Source: Bochs, "VBE Display API". Video memory is RAM that the memory map keeps from the guest; the
PCI function's first base address register says where the guest finds it, and in modes with banks
64 KiB of it are at A0000H.
"""

from __future__ import annotations

from typing import Final

from trapgate.vmm.devices.bus import UntimedDevice
from trapgate.vmm.devices.guest_memory import GuestMemory
from trapgate.vmm.devices.pci import Function, MemoryRegion
from trapgate.vmm.devices.pixels import LinearMode
from trapgate.vmm.devices.vga import BANK, VgaRegisters, Windows

_ID, _WIDTH, _HEIGHT, _BITS, _ENABLE, _BANK, _PITCH, _LINES, _LEFT, _TOP, _MEMORY = range(11)
_IDENTITY: Final = 0xB0C5
_ENABLED, _CAPABILITIES, _LINEAR, _KEEP = 0x01, 0x02, 0x40, 0x80
_MOST: Final = {_WIDTH: 2560, _HEIGHT: 1600, _BITS: 32}
_NUMBER = 0x1FF


class BochsVga(UntimedDevice):
    """Its registers and its PCI function; the frame buffer has `size` bytes at `address`."""

    wide = True
    ports = range(0x1CE, 0x1D1)

    def __init__(
        self, vga: VgaRegisters, address: int, size: int, windows: Windows, memory: GuestMemory
    ) -> None:
        self._vga, self._windows, self._memory = vga, windows, memory
        self._address, self._size = address, size
        self._index = 0
        self._registers = [0] * (_MEMORY + 1)
        self._registers[_ID] = _IDENTITY
        self._registers[_MEMORY] = size // BANK
        self.function = Function(
            0x1111_1234, 0x0300_0002, regions={0: MemoryRegion(size, self._move)}
        )

    def _move(self, base: int | None) -> None:
        """The frame buffer is there from now on, or nowhere."""
        if base is None:
            self._windows.open_window(1, 0, 0, 0)
        else:
            self._windows.open_window(1, base, self._size, self._address)

    def read(self, port: int, size: int, now: int) -> int:
        """The index, or the register that it chooses."""
        value = self._index if port == 0x1CE else self._chosen()
        return value & (1 << 8 * size) - 1

    def _chosen(self) -> int:
        chosen = self._index
        if chosen in _MOST and self._registers[_ENABLE] & _CAPABILITIES:
            return _MOST[chosen]
        return self._registers[chosen] if chosen < len(self._registers) else 0

    def write(self, port: int, size: int, value: int, now: int) -> None:
        """The index, or the register that it chooses; what makes no mode is not shown."""
        value &= 0xFFFF
        if port == 0x1CE:
            self._index = value
            return
        chosen = self._index
        if chosen >= _MEMORY or (chosen == _ID and not 0xB0C0 <= value <= _IDENTITY):
            return
        if chosen == _PITCH:
            value = max(value, self._registers[_WIDTH])
        begins = chosen == _ENABLE and value & _ENABLED
        if begins and not self._registers[_ENABLE] & _ENABLED:
            self._begin(clear=not value & _KEEP)
        self._registers[chosen] = value
        if chosen != _ID:
            self._show()

    def _begin(self, *, clear: bool) -> None:
        """A mode is set: its screen is its memory's beginning."""
        registers = self._registers
        registers[_PITCH], registers[_LEFT], registers[_TOP] = registers[_WIDTH], 0, 0
        registers[_BANK] = 0
        if clear:
            self._memory.write(self._address, bytes(self._size))

    def _show(self) -> None:
        """Make the VGA show the mode, and map its banks for the processor."""
        mode = self._mode()
        bank = self._registers[_BANK] % (self._size // BANK)
        is_linear = self._registers[_ENABLE] & _LINEAR
        self._vga.show_linear(mode, None if is_linear else self._address + bank * BANK)

    def _mode(self) -> LinearMode | None:
        """The mode in the registers; None if there is none, or its screen exceeds its memory."""
        registers = self._registers
        width, height, bits = registers[_WIDTH], registers[_HEIGHT], registers[_BITS]
        possible = 0 < width <= _MOST[_WIDTH] and 0 < height <= _MOST[_HEIGHT]
        if not registers[_ENABLE] & _ENABLED or not possible or bits not in (8, 15, 16, 24, 32):
            return None
        wide = (bits + 7) // 8
        pitch = max(registers[_PITCH], width) * wide
        start = registers[_TOP] * pitch + registers[_LEFT] * wide
        if start + pitch * (height - 1) + width * wide > self._size:
            return None
        return LinearMode(_NUMBER, width, height, bits, pitch, self._address, start)
