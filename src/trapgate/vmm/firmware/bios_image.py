"""What a BIOS leaves in memory: interrupt vectors, the stubs behind them, its data area.

A stub writes to a port, which brings the VMM here with CS:IP saying which service is meant, and
returns. A virtual-8086 monitor may keep the port to itself, so VMCALL follows, which no monitor
sees, but the VMM of a guest would. Hardware interrupts are acknowledged in the guest's own code.
"""

from collections.abc import Mapping
from struct import pack
from typing import Final

SEGMENT: Final = 0xF000
STUBS: Final = 0x2000
"""Offset of the stub of vector 0; each has STUB bytes."""
STUB: Final = 32
DATA_AREA: Final = 0x400
EXTENDED_DATA: Final = 0x9FC0
"""Segment of the extended BIOS data area; conventional memory ends there."""
DISK_TABLE: Final = 0x1F00
CONFIGURATION: Final = 0x1F40
_RESTART, _RESET = 0xE05B, 0xFFF0
"""Where programs jump that want the machine to start anew, and where a processor begins."""
_RELEASED: Final = b"01/01/04"
_MODEL: Final = 0xFC
"""A PC AT, or what came later."""
FONTS: Final = {8: 0xA000, 14: 0xA800, 16: 0xB600}
"""Where fonts are, by the lines of a character."""

PORT: Final = 0xE4
"""What a stub writes to, and nothing else is at."""
_VMCALL = b"\x0f\x01\xc1"
BEHIND_PORT: Final = len(_VMCALL)
"""Bytes to skip once a write to PORT has been answered."""
_CALL = bytes((0xE6, PORT)) + _VMCALL
_IRET = b"\xcf"
_FIRST_ACKNOWLEDGE = b"\x50\xb0\x20\xe6\x20\x58"  # push ax; mov al, 20h; out 20h, al; pop ax
_BOTH_ACKNOWLEDGE = b"\x50\xb0\x20\xe6\xa0\xe6\x20\x58"
_TICK = _CALL + b"\xcd\x1c" + _FIRST_ACKNOWLEDGE + _IRET
# sti; again: call; jz wait; iret; wait: hlt; jmp again
_WAITING = b"\xfb" + _CALL + b"\x74\x01" + _IRET + b"\xf4\xeb\xf5"

BOOT_AGAIN: Final = 0x19
SERVICES: Final = (0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x17, 0x18, 0x19, 0x1A)
"""Vectors whose stub is just a call and a return."""


def _stub(vector: int) -> bytes:
    if vector == 0x08:
        return _TICK
    if vector == 0x09:
        return _CALL + _FIRST_ACKNOWLEDGE + _IRET
    if vector == 0x16:
        return _WAITING
    if vector in SERVICES:
        return _CALL + _IRET
    if 0x0A <= vector <= 0x0F:
        return _FIRST_ACKNOWLEDGE + _IRET
    if 0x70 <= vector <= 0x77:
        return _BOTH_ACKNOWLEDGE + _IRET
    return _IRET


def vector_at(offset: int) -> int | None:
    """The vector whose stub holds the instruction at that offset of SEGMENT, if one does."""
    vector, within = divmod(offset - STUBS, STUB)
    return vector if 0 <= vector < 256 and within < STUB else None


def code() -> bytes:
    """The stubs, to be put at SEGMENT:STUBS."""
    return b"".join(_stub(vector).ljust(STUB, b"\xcf") for vector in range(256))


def _vectors(places: Mapping[int, tuple[int, int]], other: tuple[int, int]) -> bytes:
    """The interrupt vector table: segment and offset of each vector, `other` for the rest."""
    entries = (places.get(vector, other) for vector in range(256))
    return b"".join(pack("<HH", offset, segment) for segment, offset in entries)


def _vectors_of_stubs(hard_disks: int) -> bytes:
    places = {vector: (SEGMENT, STUBS + STUB * vector) for vector in range(256)}
    places[0x1E] = (SEGMENT, DISK_TABLE)
    places[0x1F] = (SEGMENT, FONTS[8] + 8 * 0x80)
    places[0x43] = (SEGMENT, FONTS[16])
    if hard_disks == 0:
        places[0x41] = places[0x46] = (0, 0)
    return _vectors(places, (0, 0))


def _jump(offset: int) -> bytes:
    """A far jump within SEGMENT."""
    return b"\xea" + pack("<HH", offset, SEGMENT)


def tables() -> dict[int, bytes]:
    """What lies in SEGMENT beside the stubs, by offsets: tables, fonts, the reset vector."""
    # Machines without services need none.
    from trapgate.vmm.firmware.font import font

    return {
        DISK_TABLE: bytes.fromhex("df0225 0212 1bff 6cf6 0f08"),
        CONFIGURATION: pack("<HBBBBBBBB", 8, _MODEL, 0, 0, 0x74, 0, 0, 0, 0),
        _RESTART: _jump(STUBS + STUB * BOOT_AGAIN),
        _RESET: _jump(_RESTART) + _RELEASED + bytes((0, _MODEL)),
        **{offset: font(height) for height, offset in FONTS.items()},
    }


def _machine_data() -> bytearray:
    """The part of the BIOS data area that is true without services: COM1, and memory's end."""
    area = bytearray(256)
    area[0x00:0x02] = pack("<H", 0x3F8)
    area[0x0E:0x10] = pack("<H", EXTENDED_DATA)
    area[0x13:0x15] = pack("<H", EXTENDED_DATA >> 6)
    return area


def _data_area(equipment: int, hard_disks: int) -> bytearray:
    area = _machine_data()
    area[0x10:0x12] = pack("<H", equipment)
    area[0x1A:0x1E] = pack("<HH", 0x1E, 0x1E)
    area[0x49:0x4E] = pack("<BHH", 3, 80, 0x1000)
    area[0x60:0x62] = pack("<H", 0x0607)
    area[0x63:0x65] = pack("<H", 0x3D4)
    area[0x75] = hard_disks
    area[0x80:0x84] = pack("<HH", 0x1E, 0x3E)
    area[0x84:0x87] = pack("<BH", 24, 16)
    area[0x96] = 0x10
    return area


def with_services(*, equipment: int, hard_disks: int) -> dict[int, bytes]:
    """What the BIOS leaves in memory, by its addresses."""
    return {
        0: _vectors_of_stubs(hard_disks),
        DATA_AREA: bytes(_data_area(equipment, hard_disks)),
        EXTENDED_DATA << 4: b"\x01",
        (SEGMENT << 4) + STUBS: code(),
        **{(SEGMENT << 4) + offset: data for offset, data in tables().items()},
    }


_UNUSED = 0xFF53
"""Where a PC's firmware has its IRET for unused vectors."""
_TELETYPE = "80fc0e 7506 52 baf803 ee 5a cf"
"""cmp ah, 0Eh; jne out; push dx; mov dx, 3F8h; out dx, al; pop dx; out: iret"""
_REFUSAL = "55 89e5 804e0601 5d cf"
"""push bp; mov bp, sp; or byte [bp + 6], 1; pop bp; iret"""


def without_services() -> dict[int, bytes]:
    """The same where there is no BIOS.

    In real mode INT 10H with AH = 0EH writes AL to COM1, the disk and system services answer with
    CF = 1 that they are not there, and all other interrupts return.
    """
    teletype, refusal = bytes.fromhex(_TELETYPE), bytes.fromhex(_REFUSAL)
    at_teletype = SEGMENT, _UNUSED + len(_IRET)
    at_refusal = SEGMENT, _UNUSED + len(_IRET + teletype)
    return {
        0: _vectors({0x10: at_teletype, 0x13: at_refusal, 0x15: at_refusal}, (SEGMENT, _UNUSED)),
        (SEGMENT << 4) + _UNUSED: _IRET + teletype + refusal,
        DATA_AREA: bytes(_machine_data()),
        EXTENDED_DATA << 4: b"\x01",
    }
