"""Which registers of the x87 stack an instruction reads or pushes to, from its opcode and ModR/M.

SDM, volume 2, the pages of the x87 instructions: their stack faults (#IS) and denormal operands
(#D).
"""

from trapgate.compiler.dialect import core

READS_TOP = 1
"""ST(0)."""
READS_OTHER = 2
"""The register whose number stands from OTHER_SHIFT on."""
PUSHES = 4
FINDS_DENORMALS = 8
"""A denormal operand sets DE."""
WRITES_TOP = 16
WRITES_OTHER = 32
"""Which of the registers that it reads is the destination."""
EXCHANGES = 64
"""FXCH: neither register is empty after it."""
OTHER_SHIFT = 7
LEAVES_C1 = 1 << 10
"""FCMOVcc, FCOMI, FUCOMI, FNOP; of FXAM C1 is the sign."""
STORES = 1 << 11
"""The destination is memory, which an unmasked exception leaves as it is."""

_BOTH = READS_TOP | READS_OTHER
_COMPARES = READS_TOP | FINDS_DENORMALS
_COMPUTES = _COMPARES | WRITES_TOP
_COMPARES_BOTH = _BOTH | FINDS_DENORMALS
_COMPUTES_BOTH = _COMPARES_BOTH | WRITES_TOP
_WITH_ST1 = 1 << OTHER_SHIFT


@core
def x87_operands(opcode: int, form: int) -> int:
    """What an instruction with an opcode of D8H to DFH and this ModR/M byte uses."""
    field = (form >> 3) & 7
    other = (form & 7) << OTHER_SHIFT
    if form < 0xC0:
        return _operands_beside_memory(opcode, field)
    if opcode in (0xD8, 0xDC, 0xDE):
        written = WRITES_TOP if opcode == 0xD8 else WRITES_OTHER
        return _COMPARES_BOTH | other | (0 if field in (2, 3) else written)
    if opcode == 0xD9:
        if field == 0:
            return READS_OTHER | PUSHES | other
        if field == 1:
            return _BOTH | EXCHANGES | other
        if field == 3:
            # FSTPNCE, which copies even an empty register.
            return WRITES_OTHER | other
        return _operands_of_d9(form)
    if opcode in (0xDA, 0xDB) and field < 4:
        # FCMOVcc.
        return _BOTH | WRITES_TOP | LEAVES_C1 | other
    if opcode == 0xDA:
        return _COMPARES_BOTH | _WITH_ST1 if form == 0xE9 else 0
    if opcode in (0xDB, 0xDF) and field in (5, 6):
        return _COMPARES_BOTH | LEAVES_C1 | other
    if opcode == 0xDB:
        return 0
    # Of DDH; DFH has other encodings of FXCH and FSTP.
    if field == 1:
        return _BOTH | EXCHANGES | other
    if field in (2, 3):
        return READS_TOP | WRITES_OTHER | other
    return _COMPARES_BOTH | other if opcode == 0xDD and field in (4, 5) else 0


@core
def _operands_beside_memory(opcode: int, field: int) -> int:
    if opcode & 1 == 0:
        # Arithmetic and comparisons with real numbers and integers.
        return _COMPARES if field in (2, 3) else _COMPUTES
    if field == 0 or (field == 5 and opcode in (0xDB, 0xDF)) or (field == 4 and opcode == 0xDF):
        return PUSHES
    if opcode in (0xD9, 0xDD) and field >= 4:
        return 0
    return READS_TOP | STORES


@core
def _operands_of_d9(form: int) -> int:
    if 0xE8 <= form <= 0xEE:
        return PUSHES
    if form in (0xF2, 0xF4, 0xFB):
        # FPTAN, FXTRACT, FSINCOS.
        return _COMPUTES | PUSHES
    if form in (0xF1, 0xF3, 0xF9):
        # FYL2X, FPATAN, FYL2XP1.
        return _COMPARES_BOTH | WRITES_OTHER | _WITH_ST1
    if form in (0xF5, 0xF8, 0xFD):
        # FPREM1, FPREM, FSCALE.
        return _COMPUTES_BOTH | _WITH_ST1
    if form in (0xE0, 0xE1):
        # FCHS, FABS.
        return READS_TOP | WRITES_TOP
    if form == 0xE4:
        # FTST.
        return _COMPARES
    if form in (0xF0, 0xFA, 0xFC, 0xFE, 0xFF):
        # F2XM1, FSQRT, FRNDINT, FSIN, FCOS.
        return _COMPUTES
    if form == 0xE5:
        return LEAVES_C1
    # FDECSTP and FINCSTP read nothing, nor does FNOP.
    return LEAVES_C1 if form == 0xD0 else 0
