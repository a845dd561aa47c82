"""x87 exceptions: what the engine's arithmetic has met, in the status word, and #MF from it.

SDM, volume 1, "x87 FPU Exception Handling" and "x87 FPU Floating-Point Exception Conditions". The
engine computes with flags of its own that nobody looks at, and sets ZE by itself where a divisor is
0. So a call of ours stands before and behind each x87 instruction that computes: the status word
gets the flags, and ES if one of them is unmasked. The next waiting instruction raises #MF.
"""

from trapgate.compiler.dialect import core
from trapgate.compiler.kinds import BOUND, INT64, RETURN_ADDRESS, VOID
from trapgate.compiler.program import callback
from trapgate.compiler.raw import call, cells, peek8, peek16, peek64, poke8, poke16, poke32, poke64
from trapgate.engine import layout as at
from trapgate.engine import machine as mc

_STATUS = at.FPU + 8
_CONTROL = at.FPU + 10
_INVALID = 1
_EXCEPTIONS = 0x3F
_KNOWN = 0x3D
"""All but that of a denormal operand, which the engine does not know."""
_SUMMARY = 0x80
_BUSY = 0x8000
_OF_SF_AF = 0x890
_MF = 16

NO_X87 = 0
COMPUTES = 1
COMPARES = 2
RELOADS = 3
"""What an x87 instruction does about exceptions: nothing; it may meet some; it may and sets EFLAGS;
or it loads the status or the control word."""


@core
def kind_of_x87(opcode: int, form: int) -> int:
    """Which of these an instruction with an opcode of D8H to DFH and this ModR/M byte is."""
    field = (form >> 3) & 7
    if form < 0xC0:
        if opcode == 0xD9 and field >= 4:
            # FLDENV, FLDCW; FNSTENV and FNSTCW wait for nothing.
            return RELOADS if field < 6 else NO_X87
        if opcode == 0xDD and field >= 4:
            return RELOADS if field == 4 else NO_X87
        return COMPUTES
    if opcode == 0xDB and field == 4:
        # FNCLEX, FNINIT and what is no longer anything.
        return NO_X87
    if opcode == 0xDF and form == 0xE0:
        return NO_X87
    if opcode in (0xDB, 0xDF) and field in (5, 6):
        return COMPARES
    return COMPUTES


@core
def summarised(status: int, control: int) -> int:
    """The status word with ES and B as its flags and the masks make them."""
    if status & ~control & _EXCEPTIONS != 0:
        return status | _SUMMARY | _BUSY
    return status & ~(_SUMMARY | _BUSY)


@callback(VOID, INT64, INT64, RETURN_ADDRESS)
def on_x87_begins(machine: int, env: int, return_address: int) -> None:
    """Before a waiting instruction: #MF if an unmasked exception is pending."""
    m = cells(machine, mc.CELLS)
    status = peek16(env + _STATUS)
    if status & _SUMMARY:
        poke32(env + at.ERROR_CODE, 0)
        poke32(m[mc.EXCEPTION_INDEX], at.EXCP_VMEXIT + at.SVM_EXCEPTION + _MF)
        call(m[mc.CPU_LOOP_EXIT_RESTORE], (env - at.CPU_SIZE, return_address))
    m[mc.X87_STATUS] = status
    poke8(env + at.X87_FLAGS, 0)


@callback(VOID, INT64, INT64)
def on_x87_ends(machine: int, env: int) -> None:
    """Behind an instruction that computes: what it has met joins what was there."""
    m = cells(machine, mc.CELLS)
    met = (m[mc.X87_STATUS] & _EXCEPTIONS) | (peek8(env + at.X87_FLAGS) & _KNOWN)
    status = peek16(env + _STATUS) & ~_EXCEPTIONS | met
    poke16(env + _STATUS, summarised(status, peek16(env + _CONTROL)))


@callback(VOID, INT64, INT64)
def on_x87_compares(machine: int, env: int) -> None:
    """Behind FCOMI and its like, which clear OF, SF and AF as well."""
    m = cells(machine, mc.CELLS)
    poke64(env + at.CC_SRC, peek64(env + at.CC_SRC) & ~_OF_SF_AF)
    met = (m[mc.X87_STATUS] & _EXCEPTIONS) | (peek8(env + at.X87_FLAGS) & _KNOWN)
    status = peek16(env + _STATUS) & ~_EXCEPTIONS | met
    poke16(env + _STATUS, summarised(status, peek16(env + _CONTROL)))


@callback(VOID, INT64, INT64)
def on_x87_reloads(machine: int, env: int) -> None:
    """Behind FLDCW, FLDENV and FRSTOR, which may unmask what is flagged."""
    poke16(env + _STATUS, summarised(peek16(env + _STATUS), peek16(env + _CONTROL)))


@callback(INT64, INT64, BOUND)
def on_truncation_to_32(env: int, helper: int) -> int:
    """FISTTP of 32 bits: the indefinite integer where the value does not fit."""
    value = call(helper, (env,))
    return 0x8000_0000 if peek8(env + at.X87_FLAGS) & _INVALID else value


@callback(INT64, INT64, BOUND)
def on_truncation_to_64(env: int, helper: int) -> int:
    """FISTTP of 64 bits."""
    value = call(helper, (env,))
    return -(1 << 63) if peek8(env + at.X87_FLAGS) & _INVALID else value


@callback(INT64, INT64, BOUND)
def on_store_of_32(env: int, helper: int) -> int:
    """FST of 32 bits: a signalling NaN, the only invalid operand, becomes a quiet one."""
    value = call(helper, (env,))
    return value | 1 << 22 if peek8(env + at.X87_FLAGS) & _INVALID else value


@callback(INT64, INT64, BOUND)
def on_store_of_64(env: int, helper: int) -> int:
    """FST of 64 bits."""
    value = call(helper, (env,))
    return value | 1 << 51 if peek8(env + at.X87_FLAGS) & _INVALID else value


RESULTS = {
    "helper_fisttl_ST0": on_truncation_to_32,
    "helper_fisttll_ST0": on_truncation_to_64,
    "helper_fsts_ST0": on_store_of_32,
    "helper_fstl_ST0": on_store_of_64,
}
"""Helpers of the engine's whose results are not those of an invalid operation; what mends them."""
