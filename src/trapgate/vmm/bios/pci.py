"""INT 1AH with AH = B1H: PCI functions and their registers (PCI BIOS Specification 2.1)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Final, Protocol

from trapgate.vmm.bios.call import Call

_SIGNATURE: Final = int.from_bytes(b"PCI ", "little")
_VERSION: Final = 0x0210
_BY_MECHANISM_1 = 0x01
_UNSUPPORTED, _BAD_VENDOR, _NOT_FOUND, _BAD_REGISTER = 0x81, 0x83, 0x86, 0x87
_ADDRESS, _DATA = 0xCF8, 0xCFC
_ENABLED = 1 << 31
_IDENTITY, _CLASS, _HEADER = 0x00, 0x08, 0x0C


class Ports(Protocol):
    """Accesses to the machine's ports, of 1, 2 or 4 bytes."""

    def __call__(self, port: int, size: int, value: int | None = None) -> int:
        """IN, or OUT of a value."""


class PciBios:
    """The services, by configuration mechanism 1; all functions are on bus 0."""

    def __init__(self, ports: Ports) -> None:
        self._ports = ports

    def call(self, call: Call) -> None:
        """INT 1AH, AX = B1xxH; AH = 0, or an error, and CF say how it went."""
        function = call.low("ax")
        if function == 0x01:
            call.succeed()
            call.put_low("ax", _BY_MECHANISM_1)
            call.put("bx", _VERSION)
            call.put_low("cx", 0)
            call.put("dx", _SIGNATURE, 32)
            call.put("di", 0, 32)
        elif function == 0x02:
            wanted = call.get("dx") & 0xFFFF | (call.get("cx") & 0xFFFF) << 16
            if wanted & 0xFFFF == 0xFFFF:
                call.fail(_BAD_VENDOR)
                return
            self._find(call, lambda device: self._register(device, _IDENTITY) == wanted)
        elif function == 0x03:
            kind = call.get("cx") & 0xFF_FFFF
            self._find(call, lambda device: self._register(device, _CLASS) >> 8 == kind)
        elif 0x08 <= function <= 0x0D:
            self._access(call, size=1 << (function - 8) % 3, is_write=function > 0x0A)
        else:
            call.fail(_UNSUPPORTED)

    def _find(self, call: Call, is_meant: Callable[[int], bool]) -> None:
        """Function SI of those that are meant: bus, device and function in BX."""
        number = call.get("si") & 0xFFFF
        there = filter(is_meant, filter(self._is_there, range(256)))
        found = next(islice(there, number, None), None)
        if found is None:
            call.fail(_NOT_FOUND)
            return
        call.succeed()
        call.put("bx", found)

    def _is_there(self, device: int) -> bool:
        """Whether there is a function; others than function 0 only in what has several."""
        several = device & 7 == 0 or self._register(device & ~7, _HEADER) >> 23 & 1
        return bool(several) and self._register(device, _IDENTITY) != 0xFFFF_FFFF

    def _access(self, call: Call, *, size: int, is_write: bool) -> None:
        register = call.get("di") & 0xFFFF
        if register > 0xFF or register % size:
            call.fail(_BAD_REGISTER)
            return
        device = call.get("bx") & 0xFFFF
        bits = 8 * size
        if is_write:
            self._register(device, register, size, call.get("cx") & (1 << bits) - 1)
        else:
            call.put("cx", self._register(device, register, size), bits)
        call.succeed()

    def _register(self, device: int, register: int, size: int = 4, value: int | None = None) -> int:
        """Read a register of bus, device and function, or write it; the address port is kept."""
        kept = self._ports(_ADDRESS, 4)
        self._ports(_ADDRESS, 4, _ENABLED | device << 8 | register & 0xFC)
        found = self._ports(_DATA + (register & 3), size, value)
        self._ports(_ADDRESS, 4, kept)
        return found
