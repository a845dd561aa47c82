"""Encodings that are not an instruction, though a translator may take them for one.

SDM, volume 2, "Instruction Prefixes" for LOCK, the "NP" of the instruction pages for prefixes
that an instruction does not take, and appendix "Opcode Map" for the rest. What AMD's processors
have and Intel's do not (EXTRQ, INSERTQ, MOVNTSS, MOVNTSD, XOP) is among them, and TSX, which
this processor does not have.

A form is a ModR/M byte's mod and reg: bit 3 says that mod is 3 (a register), bits 2:0 are reg.
Sets of forms are 16 bits, those of an opcode after each prefix 64.
"""

from collections.abc import Iterable

import numpy as np

from trapgate.compiler.dialect import Cells, core, inlined

ONE_BYTE = 0
TWO_BYTES = 1
"""Opcode maps: no escape, and 0FH."""
THREE_BYTES = 2
"""0FH 38H or 0FH 3AH."""

_MEMORY = 0x00FF
_REGISTER = 0xFF00
ALL_FORMS = _MEMORY | _REGISTER
_NONE, _66, _F3, _F2 = 1, 2, 4, 8
"""Prefixes, as sets: F3H and F2H count before 66H."""
_ANY = _NONE | _66 | _F3 | _F2


def _memory(*fields: int) -> int:
    return sum(1 << field for field in fields)


def _register(*fields: int) -> int:
    return sum(0x100 << field for field in fields)


def _table(rows: Iterable[tuple[int, int, int, int]]) -> Cells:
    """A cell for each opcode of two maps: undefined forms, 16 bits for each prefix."""
    table = np.zeros(512, np.uint64)
    for opcode_map, opcode, prefixes, forms in rows:
        for n in range(4):
            if prefixes >> n & 1:
                table[opcode_map << 8 | opcode] |= np.uint64(forms << 16 * n)
    return table.view(np.int64)


_UNDEFINED = _table(
    (
        (ONE_BYTE, 0x8F, _ANY, ALL_FORMS & ~(_memory(0) | _register(0))),  # POP; XOP
        (ONE_BYTE, 0xC6, _ANY, _register(7)),  # XABORT
        (ONE_BYTE, 0xC7, _ANY, _register(7)),  # XBEGIN
        (ONE_BYTE, 0xFF, _ANY, _memory(7) | _register(7)),
        # VMCALL to VMXOFF; MONITOR, MWAIT, CLAC, STAC; XGETBV, XSETBV, VMFUNC.
        (TWO_BYTES, 0x01, _66 | _F3 | _F2, _register(0, 1, 2)),
        *((TWO_BYTES, n, _ANY, ALL_FORMS) for n in (0x0E, 0x0F)),  # FEMMS and 3DNow!
        (TWO_BYTES, 0x12, _66, _REGISTER),  # MOVLPD
        (TWO_BYTES, 0x13, _ANY, _REGISTER),
        (TWO_BYTES, 0x16, _66, _REGISTER),  # MOVHPD
        (TWO_BYTES, 0x17, _ANY, _REGISTER),
        (TWO_BYTES, 0x2B, _F3 | _F2, ALL_FORMS),  # MOVNTSS, MOVNTSD
        (TWO_BYTES, 0x2B, _NONE | _66, _REGISTER),  # MOVNTPS, MOVNTPD
        (TWO_BYTES, 0x50, _ANY, _MEMORY),  # MOVMSKPS, MOVMSKPD
        (TWO_BYTES, 0x71, _ANY, _MEMORY | _register(0, 1, 3, 5, 7)),  # shifts by a constant
        (TWO_BYTES, 0x72, _ANY, _MEMORY | _register(0, 1, 3, 5, 7)),
        (TWO_BYTES, 0x73, _ANY, _MEMORY | _register(0, 1, 4, 5)),
        (TWO_BYTES, 0x73, _NONE, _register(3, 7)),  # PSRLDQ, PSLLDQ are SSE2's
        (TWO_BYTES, 0x78, _66 | _F3 | _F2, ALL_FORMS),  # VMREAD; EXTRQ, INSERTQ
        (TWO_BYTES, 0x79, _66 | _F3 | _F2, ALL_FORMS),  # VMWRITE
        (TWO_BYTES, 0xAE, _66 | _F3 | _F2, _memory(0, 1, 2, 3) | _register(5)),  # FXSAVE, LFENCE
        (TWO_BYTES, 0xAE, _F3, _register(6, 7)),  # UMONITOR
        (TWO_BYTES, 0xAE, _66 | _F2, _register(0, 1, 2, 3, 6, 7)),  # TPAUSE, UMWAIT
        (TWO_BYTES, 0xAE, _F3 | _F2, _memory(7)),  # CLFLUSH
        (TWO_BYTES, 0xBA, _ANY, _memory(0, 1, 2, 3) | _register(0, 1, 2, 3)),  # BT by a constant
        (TWO_BYTES, 0xC3, _66 | _F3 | _F2, ALL_FORMS),  # MOVNTI
        *((TWO_BYTES, n, _ANY, _MEMORY) for n in (0xC5, 0xD7, 0xF7)),  # PEXTRW, PMOVMSKB, MASKMOVQ
        (TWO_BYTES, 0xD6, _F3 | _F2, _MEMORY),  # MOVQ2DQ, MOVDQ2Q
        *((TWO_BYTES, n, _ANY, _REGISTER) for n in (0xE7, 0xF0)),  # MOVNTQ, MOVNTDQ, LDDQU
    )
)

_LOCKABLE = _table(
    (
        # ADD, OR, ADC, SBB, AND, SUB and XOR to memory.
        *((ONE_BYTE, row + n, _ANY, _MEMORY) for row in range(0, 0x38, 8) for n in (0, 1)),
        *((ONE_BYTE, n, _ANY, _MEMORY & ~_memory(7)) for n in (0x80, 0x81, 0x82, 0x83)),
        *((ONE_BYTE, n, _ANY, _MEMORY) for n in (0x86, 0x87)),  # XCHG
        *((ONE_BYTE, n, _ANY, _memory(2, 3)) for n in (0xF6, 0xF7)),  # NOT, NEG
        *((ONE_BYTE, n, _ANY, _memory(0, 1)) for n in (0xFE, 0xFF)),  # INC, DEC
        *((TWO_BYTES, n, _ANY, _MEMORY) for n in (0xAB, 0xB3, 0xBB)),  # BTS, BTR, BTC
        (TWO_BYTES, 0xBA, _ANY, _memory(5, 6, 7)),
        *((TWO_BYTES, n, _ANY, _MEMORY) for n in (0xB0, 0xB1, 0xC0, 0xC1)),  # CMPXCHG, XADD
        (TWO_BYTES, 0xC7, _ANY, _memory(1)),  # CMPXCHG8B
    )
)
"""Forms that LOCK may precede: their memory operand is the destination."""


_UNDEFINED_X87 = np.array(
    [
        sum(1 << (modrm & 0x3F) for modrm in forms)
        for forms in (
            (),
            (*range(0xD1, 0xD8), 0xE2, 0xE3, 0xE6, 0xE7, 0xEF),
            (*range(0xE0, 0xE9), *range(0xEA, 0x100)),
            (*range(0xE5, 0xE8), *range(0xF8, 0x100)),
            (),
            range(0xF0, 0x100),
            (0xD8, *range(0xDA, 0xE0)),
            (*range(0xE1, 0xE8), *range(0xF8, 0x100)),
        )
    ],
    np.uint64,
).view(np.int64)
"""A cell for each of D8H to DFH: a bit for each ModR/M byte from C0H on that is undefined."""
_UNDEFINED_X87_MEMORY = np.array([0, 1 << 1, 0, 1 << 4 | 1 << 6, 0, 1 << 5, 0, 0], np.int64)
"""... and REG fields beside a memory operand."""


@core
def is_undefined_x87(opcode: int, modrm: int) -> bool:
    """Whether an opcode of D8H to DFH is #UD with this ModR/M byte."""
    if modrm < 0xC0:
        return bool((_UNDEFINED_X87_MEMORY[opcode - 0xD8] >> ((modrm >> 3) & 7)) & 1)
    return bool((_UNDEFINED_X87[opcode - 0xD8] >> (modrm & 0x3F)) & 1)


@core
def is_undefined_behind_escape(escape: int, opcode: int, repeat: int) -> bool:
    """Whether F2H or F3H (`repeat`) makes 0FH `escape` (38H or 3AH) `opcode` #UD; CRC32 has F2H.

    So does 66H beside one of them: they count before it.
    """
    if repeat == 0:
        return False
    return not (escape == 0x38 and repeat == 0xF2 and opcode & 0xFE == 0xF0)


@core
@inlined
def undefined_forms(
    opcode_map: int, opcode: int, lock: bool, repeat: int, operand_size: bool
) -> int:
    """The forms in which an opcode of ONE_BYTE, TWO_BYTES or THREE_BYTES is #UD here, 16 bits.

    `repeat` is the last of F2H and F3H among the prefixes, or 0. Those that any processor
    refuses are not all among them.
    """
    if opcode_map == THREE_BYTES:
        return ALL_FORMS if lock else 0
    prefix = 0
    if repeat == 0xF3:
        prefix = 2
    elif repeat == 0xF2:
        prefix = 3
    elif operand_size:
        prefix = 1
    place = opcode_map << 8 | opcode
    forms = int(_UNDEFINED[place] >> (16 * prefix)) & ALL_FORMS
    if lock:
        forms = forms | ~int(_LOCKABLE[place]) & ALL_FORMS
    return forms


@core
@inlined
def has_form(forms: int, modrm: int) -> bool:
    """Whether a ModR/M byte is one of `forms`."""
    form = (modrm >> 3) & 7
    if modrm >= 0xC0:
        form = form | 8
    return (forms >> form) & 1 != 0


@core
def is_undefined(word: int, start: int) -> bool:
    """Whether the instruction with `start` prefix bytes in `word` (eight bytes) is #UD."""
    lock = operand_size = False
    repeat = 0
    for n in range(start):
        byte = (word >> (8 * n)) & 0xFF
        if byte == 0xF0:
            lock = True
        elif byte == 0x66:
            operand_size = True
        elif byte in (0xF2, 0xF3):
            repeat = byte
    opcode_map = ONE_BYTE
    opcode = (word >> (8 * start)) & 0xFF
    at = start + 1
    if opcode == 0x0F:
        opcode = (word >> (8 * at)) & 0xFF
        opcode_map = THREE_BYTES if opcode in (0x38, 0x3A) else TWO_BYTES
        at += 1
    if opcode_map == THREE_BYTES:
        third = (word >> (8 * at)) & 0xFF
        return lock or is_undefined_behind_escape(opcode, third, repeat)
    forms = undefined_forms(opcode_map, opcode, lock, repeat, operand_size)
    return forms == ALL_FORMS or has_form(forms, (word >> (8 * at)) & 0xFF)
