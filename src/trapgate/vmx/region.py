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

from trapgate.compiler.dialect import Cells, Memory, core
from trapgate.paging.memory import load32, load64, store32, store64
from trapgate.sdm.cells import ENCODINGS
from trapgate.sdm.fields import EXTENSION_INDEX, Field
from trapgate.sdm.vmx import CURRENT, EXTENDED, LAUNCHED, NONE, REVISION

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
def read_field(n: Cells, cell: int, encoding: int, long: bool) -> int:
    """What VMREAD of the field in `cell` gives: 64 bits, or 32 outside 64-bit mode."""
    value = int(n[cell])
    if encoding & 1 != 0:
        return (value >> 32) & 0xFFFF_FFFF
    return value if long else value & 0xFFFF_FFFF


@core
def write_field(n: Cells, cell: int, encoding: int, value: int, long: bool) -> None:
    """VMWRITE; bits beyond the field's width are ignored, and a narrow write clears the rest."""
    width = int(_WIDTH_OF[cell])
    if encoding & 1 != 0:
        high = ((value & 0xFFFF_FFFF) ^ 0x8000_0000) - 0x8000_0000
        n[cell] = (n[cell] & 0xFFFF_FFFF) | high << 32
    elif width == 64:
        n[cell] = value if long else value & 0xFFFF_FFFF
    else:
        n[cell] = value & ((1 << width) - 1)


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
    for cell in range(_FIELDS):
        value = load64(mem, pointer + _FIELDS_OFFSET + 8 * cell)
        width = int(_WIDTH_OF[cell])
        if width != 64:
            value = value & ((1 << width) - 1)
        n[cell] = value


@core
def clear_launch_state(mem: Memory, pointer: int) -> None:
    """The launch state of a VMCS that is not current becomes clear."""
    initialise_region(mem, pointer)
    store64(mem, pointer + _LAUNCH_OFFSET, _KNOWN)


@core
def initialise_region(mem: Memory, pointer: int) -> None:
    """Let the fields be 0 and the launch state clear, unless that was done before."""
    if load64(mem, pointer + _LAUNCH_OFFSET) & ~1 == _KNOWN:
        return
    store64(mem, pointer + _LAUNCH_OFFSET, _KNOWN)
    for cell in range(_FIELDS):
        store64(mem, pointer + _FIELDS_OFFSET + 8 * cell, 0)


@core
def revision_matches(mem: Memory, pointer: int) -> bool:
    """Whether a region has this processor's revision identifier, and is no shadow VMCS."""
    return load32(mem, pointer) == REVISION


@core
def record_abort(mem: Memory, pointer: int, code: int) -> None:
    """Write a VMX-abort indicator (SDM, "VMX Aborts")."""
    store32(mem, pointer + _ABORT_OFFSET, code)
