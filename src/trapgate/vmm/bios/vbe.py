"""INT 10H with AH = 4FH: modes with a linear frame buffer (VESA BIOS Extension Core 3.0).

The frame buffer is RAM that the memory map keeps from the guest, as that of graphics on a
mainboard. There is no window at A0000H, and no interface for protected mode.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from trapgate.vmm.bios.call import Call
from trapgate.vmm.devices.pixels import DIRECT, Layout, LinearMode
from trapgate.vmm.devices.vga import VgaRegisters

VBE = 0x4F
_SUCCEEDED, _FAILED, _INVALID_IN_MODE = 0x004F, 0x014F, 0x034F

_SIZES = ((640, 480), (800, 600), (1024, 768), (1280, 1024))
_NUMBERS: Final = {
    8: (0x101, 0x103, 0x105, 0x107),
    15: (0x110, 0x113, 0x116, 0x119),
    16: (0x111, 0x114, 0x117, 0x11A),
    24: (0x112, 0x115, 0x118, 0x11B),
    32: (0x142, 0x143, 0x144, 0x145),
}
"""VESA's numbers, by bits of a pixel and in the order of `_SIZES`; 32 bits as Bochs has them."""

_ATTRIBUTES = 0xFB
"""Supported, in colour, graphics, no VGA, no windows, a linear frame buffer."""
_PACKED, _DIRECT = 4, 6
_LINEAR, _KEEP = 1 << 14, 1 << 15
_NUMBER = 0x3FFF
_BLOCK = 0x10000
_INFORMATION, _MODES, _TEXTS = 512, 34, 256
"""A controller's information, and where the list of modes and the strings lie in it."""
_MODE_INFORMATION = 256


class Vbe:
    """The services, for a frame buffer of `size` bytes at physical address `address`.

    `out` writes a byte to a port of the VGA's.
    """

    def __init__(
        self, vga: VgaRegisters, address: int, size: int, out: Callable[[int, int], None]
    ) -> None:
        self._vga = vga
        self._size = size
        self._out = out
        self.modes: Final = {
            number: LinearMode(number, width, height, bits, width * ((bits + 7) // 8), address)
            for bits, numbers in _NUMBERS.items()
            for number, (width, height) in zip(numbers, _SIZES, strict=True)
        }
        self._services: dict[int, Callable[[Call], int]] = {
            0x00: self._controller,
            0x01: self._mode_information,
            0x02: self._set_mode,
            0x03: self._get_mode,
            0x06: self._line_length,
            0x07: self._start,
            0x08: self._palette_width,
            0x09: self._palette,
        }

    def call(self, call: Call) -> None:
        """INT 10H, AH = 4FH: AX is the status."""
        service = self._services.get(call.low("ax"))
        call.put("ax", _FAILED if service is None else service(call))

    def _controller(self, call: Call) -> int:
        base, offset = call.segment("ES"), call.get("di") & 0xFFFF
        whole = call.read(base + offset, 4) == b"VBE2"
        far = base >> 4 << 16
        modes = b"".join(mode.to_bytes(2, "little") for mode in (*self.modes, 0xFFFF))
        texts = b"Trapgate\0"
        block = bytearray(_INFORMATION)
        block[0:6] = b"VESA\x00\x03"
        block[6:10] = (far | offset + (_TEXTS if whole else _MODES + len(modes))).to_bytes(
            4, "little"
        )
        block[14:18] = (far | offset + _MODES).to_bytes(4, "little")
        block[18:20] = (self._size // _BLOCK).to_bytes(2, "little")
        block[_MODES : _MODES + len(modes)] = modes
        if whole:
            for field in (22, 26, 30):
                # Vendor, product and revision.
                block[field : field + 4] = block[6:10]
            block[_TEXTS : _TEXTS + len(texts)] = texts
        else:
            at = _MODES + len(modes)
            block[at : at + len(texts)] = texts
        call.write(base + offset, bytes(block if whole else block[:_TEXTS]))
        return _SUCCEEDED

    def _mode_information(self, call: Call) -> int:
        mode = self.modes.get(call.get("cx") & _NUMBER)
        if mode is None:
            return _FAILED
        layout = DIRECT.get(mode.bits, Layout((0, 0), (0, 0), (0, 0)))
        masks = bytes((*layout.red, *layout.green, *layout.blue, *layout.reserved))
        pages = self._size // (mode.pitch * mode.height) - 1
        block = bytearray(_MODE_INFORMATION)
        block[0:2] = _ATTRIBUTES.to_bytes(2, "little")
        for at, word in ((16, mode.pitch), (18, mode.width), (20, mode.height), (50, mode.pitch)):
            block[at : at + 2] = word.to_bytes(2, "little")
        block[22:28] = bytes((8, 16, 1, mode.bits, 1, _PACKED if mode.bits == 8 else _DIRECT))
        block[29:31] = bytes((min(pages, 255), 1))
        block[31:39] = block[54:62] = masks
        block[40:44] = mode.address.to_bytes(4, "little")
        call.write(call.segment("ES") + (call.get("di") & 0xFFFF), bytes(block))
        return _SUCCEEDED

    def _set_mode(self, call: Call) -> int:
        wanted = call.get("bx") & 0xFFFF
        mode = self.modes.get(wanted & _NUMBER)
        if mode is None or not wanted & _LINEAR:
            return _FAILED
        self._vga.show_linear(mode)
        if not wanted & _KEEP:
            call.write(mode.address, bytes(self._size))
        return _SUCCEEDED

    def _get_mode(self, call: Call) -> int:
        mode = self._vga.linear
        # Elsewhere the BIOS data area has the number.
        call.put("bx", call.word(0x449, 1) if mode is None else mode.number | _LINEAR)
        return _SUCCEEDED

    def _line_length(self, call: Call) -> int:
        mode = self._vga.linear
        if mode is None:
            return _INVALID_IN_MODE
        asked, wide = call.low("bx"), mode.bytes_per_pixel
        pitch = mode.pitch
        if asked in (0, 2):
            pitch = (call.get("cx") & 0xFFFF) * (wide if asked == 0 else 1)
            pitch = max(-(-pitch // wide) * wide, mode.width * wide)
            if pitch > 0xFFFF or pitch * mode.height > self._size:
                return 0x024F
            self._vga.show_linear(replace(mode, pitch=pitch))
        elif asked == 3:
            pitch = min(self._size // mode.height, 0xFFFF) // wide * wide
        call.put("bx", pitch)
        call.put("cx", pitch // wide)
        call.put("dx", min(self._size // pitch, 0xFFFF))
        return _SUCCEEDED

    def _start(self, call: Call) -> int:
        mode = self._vga.linear
        if mode is None:
            return _INVALID_IN_MODE
        wide = mode.bytes_per_pixel
        if call.low("bx") & 0x7F == 1:
            call.put("bx", 0)
            call.put("cx", mode.start % mode.pitch // wide)
            call.put("dx", mode.start // mode.pitch)
            return _SUCCEEDED
        start = (call.get("dx") & 0xFFFF) * mode.pitch + (call.get("cx") & 0xFFFF) * wide
        if start + mode.pitch * (mode.height - 1) + mode.width * wide > self._size:
            return _FAILED
        self._vga.show_linear(replace(mode, start=start))
        return _SUCCEEDED

    def _palette_width(self, call: Call) -> int:
        call.put_high("bx", 6)
        return _SUCCEEDED

    def _palette(self, call: Call) -> int:
        at = call.segment("ES") + (call.get("di") & 0xFFFF)
        first, count = call.get("dx") & 0xFF, call.get("cx") & 0xFFFF
        if call.low("bx") & 0x7F != 0 or first + count > 256:
            return _FAILED
        data = call.read(at, 4 * count)
        self._out(0x3C8, first)
        for n in range(count):
            for part in (2, 1, 0):
                self._out(0x3C9, data[4 * n + part])
        return _SUCCEEDED
