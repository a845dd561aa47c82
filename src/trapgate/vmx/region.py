"""The VMCS region in memory, and the fields of the processor's copy of it.

SDM, "Format of the VMCS Region" and "VMREAD, VMWRITE, and Encodings of VMCS Fields". The
format is the processor's own: the revision identifier and the VMX-abort indicator (32 bits
each), the launch state (64 bits), then 64 bits for each field, in the order of `sdm.cells`.
Software may have written anything there, so every field is cut to its width on the way in.

Software need not have cleared a region either, and writes only the fields that it knows ("Software
Use of the VMCS"). The launch state has a mark, so that one without it is known to be new: all
its fields start as 0.
"""

import numpy as np

from trapgate.compiler.dialect import Cells, Memory, core, inlined
from trapgate.paging.memory import load32, load64, store32, store64
from trapgate.sdm.cells import ENCODINGS
from trapgate.sdm.fields import EXTENSION_INDEX, Field
from trapgate.sdm.vmx import (
    CURRENT,
    EXTENDED,
    LAUNCHED,
    NONE,
    REVISION,
    SHADOW,
    SHADOW_INDICATOR,
)

_ABORT_OFFSET = 4
_LAUNCH_OFFSET = 8
_FIELDS_OFFSET = 16
_FIELDS = len(ENCODINGS)
_KNOWN = 0x2A39_30B8_33B0_BA32 << 1
"""What the launch state has above bit 0 in a region that this processor has initialised."""

_GROUP = 128
"""Cells of `_CELL_OF` for one width and type: 64 of the SDM's indexes, 64 of ours."""

UNSUPPORTED = -1


def _place(encoding: int) -> int:
    index = encoding >> 1 & 0x1FF
    group = (encoding >> 13 & 3) << 2 | encoding >> 10 & 3
    return group * _GROUP + (index >> 8) * 64 + (index & 63)


def _cells_by_encoding() -> Cells:
    table = np.full(16 * _GROUP, UNSUPPORTED, np.int64)
    for cell, encoding in enumerate(ENCODINGS.values()):
        table[_place(encoding)] = cell
    return table


_CELL_OF = _cells_by_encoding()
_WIDTH_OF = np.array([Field(encoding).width for encoding in ENCODINGS.values()], np.int64)
_EXTENSION = np.array([Field(encoding).extension for encoding in ENCODINGS.values()], np.int64)


@core
@inlined
def cell_of_encoding(x: Cells, encoding: int) -> int:
    """The cell of the field with this encoding (bit 0, access to the high half, aside).

    UNSUPPORTED if the processor has no such field, or the encoding has reserved bits set.
    """
    index = (encoding >> 1) & 0x1FF
    if encoding & ~0x6FFF != 0 or index & 0x1C0 not in (0, EXTENSION_INDEX):
        return UNSUPPORTED
    if encoding & 1 != 0 and (encoding >> 13) & 3 != 1:
        return UNSUPPORTED
    group = ((encoding >> 13) & 3) << 2 | ((encoding >> 10) & 3)
    cell = int(_CELL_OF[group * _GROUP + (index >> 8) * 64 + (index & 63)])
    if cell >= 0 and _EXTENSION[cell] != 0 and x[EXTENDED] == 0:
        return UNSUPPORTED
    return cell


@core
def value_read(value: int, encoding: int, long: bool) -> int:
    """What VMREAD of a field that holds `value` gives: 64 bits, or 32 outside 64-bit mode."""
    if encoding & 1 != 0:
        return (value >> 32) & 0xFFFF_FFFF
    return value if long else value & 0xFFFF_FFFF


@core
@inlined
def value_written(old: int, cell: int, encoding: int, value: int, long: bool) -> int:
    """What a field that held `old` holds after a VMWRITE of `value`.

    Bits beyond the field's width are ignored, and a narrow write clears the rest.
    """
    width = int(_WIDTH_OF[cell])
    if encoding & 1 != 0:
        high = ((value & 0xFFFF_FFFF) ^ 0x8000_0000) - 0x8000_0000
        return (old & 0xFFFF_FFFF) | high << 32
    if width == 64:
        return value if long else value & 0xFFFF_FFFF
    return value & ((1 << width) - 1)


@core
@inlined
def load_field(mem: Memory, pointer: int, cell: int) -> int:
    """The field of `cell` in the region at `pointer`, which `initialise_region` has seen."""
    value = load64(mem, pointer + _FIELDS_OFFSET + 8 * cell)
    width = int(_WIDTH_OF[cell])
    return value if width == 64 else value & ((1 << width) - 1)


@core
def store_field(mem: Memory, pointer: int, cell: int, value: int) -> None:
    """Give the field of `cell` in the region at `pointer` a value of its width."""
    store64(mem, pointer + _FIELDS_OFFSET + 8 * cell, value)


@core
def store_region(x: Cells, n: Cells, mem: Memory) -> None:
    """Write the current VMCS back to its region, if there is one; nothing is current then."""
    pointer = x[CURRENT]
    if pointer == NONE:
        return
    store64(mem, pointer + _LAUNCH_OFFSET, _KNOWN | x[LAUNCHED])
    for cell in range(_FIELDS):
        store64(mem, pointer + _FIELDS_OFFSET + 8 * cell, n[cell])
    x[CURRENT] = NONE


@core
def load_region(x: Cells, n: Cells, mem: Memory, pointer: int) -> None:
    """Make the VMCS at `pointer` current."""
    x[CURRENT] = pointer
    initialise_region(mem, pointer)
    x[LAUNCHED] = load64(mem, pointer + _LAUNCH_OFFSET) & 1
    x[SHADOW] = 1 if is_shadow(mem, pointer) else 0
    for cell in range(_FIELDS):
        n[cell] = load_field(mem, pointer, cell)


@core
def clear_launch_state(mem: Memory, pointer: int) -> None:
    """The launch state of a VMCS that is not current becomes clear."""
    initialise_region(mem, pointer)
    store64(mem, pointer + _LAUNCH_OFFSET, _KNOWN)


@core
def initialise_region(mem: Memory, pointer: int) -> None:
    """Set the fields to 0 and the launch state to clear, unless that was done before."""
    if load64(mem, pointer + _LAUNCH_OFFSET) & ~1 == _KNOWN:
        return
    store64(mem, pointer + _LAUNCH_OFFSET, _KNOWN)
    for cell in range(_FIELDS):
        store64(mem, pointer + _FIELDS_OFFSET + 8 * cell, 0)


@core
def revision_matches(mem: Memory, pointer: int) -> bool:
    """Whether a region has this processor's revision identifier, be it a shadow VMCS's or not."""
    return load32(mem, pointer) & ~SHADOW_INDICATOR == REVISION


@core
def is_shadow(mem: Memory, pointer: int) -> bool:
    """Whether the region at `pointer` says that it is a shadow VMCS's."""
    return load32(mem, pointer) & SHADOW_INDICATOR != 0


@core
def record_abort(mem: Memory, pointer: int, code: int) -> None:
    """Write a VMX-abort indicator (SDM, "VMX Aborts")."""
    store32(mem, pointer + _ABORT_OFFSET, code)
