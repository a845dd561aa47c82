"""INT 15H with AH = 53H: power management (APM BIOS Interface Specification 1.2), in real mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from trapgate.vmm.bios.call import Call

_VERSION: Final = 0x0102
_SIGNATURE: Final = int.from_bytes(b"MP", "little")
_BIOS, _ALL_DEVICES = 0x0000, 0x0001
_OFF = 3
_IDLE_MICROSECONDS = 1000
_CONNECTED, _NOT_CONNECTED = 0x02, 0x03
_NOT_IN_16_BITS, _NOT_IN_32_BITS, _UNKNOWN_DEVICE, _OUT_OF_RANGE = 0x06, 0x08, 0x09, 0x0A
_UNSUPPORTED, _NO_EVENT = 0x0C, 0x80
_POWER_STATUS: Final = 0x01FF
"""On line; there is no battery."""


class Apm:
    """The services; there are no interfaces for protected mode. `power_off` turns the machine off.

    `wait` lets microseconds pass: what idles until something happens, asks again soon.
    """

    def __init__(self, power_off: Callable[[], None], wait: Callable[[int], None]) -> None:
        self._power_off = power_off
        self._wait = wait
        self._is_connected = False

    def call(self, call: Call) -> None:
        """INT 15H, AX = 53xxH."""
        function, device = call.low("ax"), call.get("bx") & 0xFFFF
        refusal = self._refusal(function, device)
        if refusal:
            call.fail(refusal)
            return
        call.succeed()
        if function == 0x00:
            call.put("ax", _VERSION)
            call.put("bx", _SIGNATURE)
            call.put("cx", 0)
        elif function in (0x01, 0x04):
            self._is_connected = function == 0x01
        elif function == 0x05:
            self._wait(_IDLE_MICROSECONDS)
        elif function == 0x07 and call.get("cx") & 0xFFFF == _OFF:
            self._power_off()
        elif function == 0x0A:
            call.put("bx", _POWER_STATUS)
            call.put("cx", 0x80FF)
            call.put("dx", 0xFFFF)
        elif function == 0x0C:
            call.put("cx", 0)
        elif function == 0x0E:
            call.put("ax", _VERSION)

    def _refusal(self, function: int, device: int) -> int:
        """The error that a function ends with; 0 if it is carried out."""
        if function > 0x0F or function == 0x0D:
            return _UNSUPPORTED
        if function in (0x02, 0x03):
            return _NOT_IN_16_BITS if function == 0x02 else _NOT_IN_32_BITS
        if function in (0x00, 0x01, 0x04, 0x0E) and device != _BIOS:
            return _UNKNOWN_DEVICE
        if function == 0x01 and self._is_connected:
            return _CONNECTED
        if function not in (0x00, 0x01) and not self._is_connected:
            return _NOT_CONNECTED
        if function in (0x07, 0x0A, 0x0C) and device != _ALL_DEVICES:
            return _OUT_OF_RANGE if function == 0x0A and device >> 12 == 8 else _UNKNOWN_DEVICE
        return _NO_EVENT if function == 0x0B else 0
