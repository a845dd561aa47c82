"""Memory-type range registers: kept and reported, without an effect, for there are no caches.

SDM, "Memory Type Range Registers (MTRRs)".
"""

from __future__ import annotations

from trapgate.vmm.devices.polled import Wired

_CAPABILITY, _DEFAULT = 0xFE, 0x2FF
_VARIABLE = range(0x200, 0x210)
_FIXED = (0x250, 0x258, 0x259, *range(0x268, 0x270))
_COUNT = 8
_HAS_FIXED, _HAS_WRITE_COMBINING = 1 << 8, 1 << 10
_TYPES = frozenset({0, 1, 4, 5, 6})
_ADDRESS = (1 << 40) - 0x1000
_VALID = 1 << 11
_ENABLE = 1 << 11 | 1 << 10


class Mtrrs(Wired):
    """Eight variable ranges, the fixed ones, and the default type: off, as after a reset."""

    def __init__(self) -> None:
        self._values = dict.fromkeys((*_VARIABLE, *_FIXED, _DEFAULT), 0)

    def read(self, index: int) -> int | None:
        """RDMSR of 64 bits, or None if MSR `index` is none of these."""
        if index == _CAPABILITY:
            return _COUNT | _HAS_FIXED | _HAS_WRITE_COMBINING
        return self._values.get(index)

    def write(self, index: int, value: int) -> bool:
        """WRMSR of 64 bits to one of these; False for #GP."""
        if index not in self._values or not _fits(index, value):
            return False
        self._values[index] = value
        return True


def _fits(index: int, value: int) -> bool:
    if index == _DEFAULT:
        return value & 0xFF in _TYPES and not value & ~(0xFF | _ENABLE)
    if index in _FIXED:
        return all(one in _TYPES for one in value.to_bytes(8, "little"))
    if index & 1:
        return not value & ~(_ADDRESS | _VALID)
    return value & 0xFF in _TYPES and not value & ~(_ADDRESS | 0xFF)
