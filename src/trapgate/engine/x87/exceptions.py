"""x87 exceptions: what the engine's arithmetic has met, in the status word, and #MF from it.

SDM, volume 1, "x87 FPU Exception Handling" and "x87 FPU Floating-Point Exception Conditions". The
engine computes with flags of its own that nobody looks at, and sets ZE by itself where a divisor is
0. So a call of ours is before and after each x87 instruction that computes: the status word
gets the flags, and ES if one of them is unmasked. The next waiting instruction raises #MF.

The engine knows neither denormal operands nor an empty or full register stack. The call before
the instruction looks at the registers that it uses (`decode.x87_operands`), and puts the
indefinite NaN into an empty one. The call after it undoes everything where an exception that is
found before the result is unmasked.
"""

from trapgate.compiler.dialect import Cells, core, inlined
from trapgate.compiler.kinds import BOUND, INT64, RETURN_ADDRESS, UINT32, VOID
from trapgate.compiler.program import callback, jit
from trapgate.compiler.raw import (
    call,
    cells,
    peek8,
    peek16,
    peek32,
    peek64,
    poke8,
    poke16,
    poke32,
    poke64,
)
from trapgate.decode.x87_operands import (
    EXCHANGES,
    FINDS_DENORMALS,
    LEAVES_C1,
    OTHER_SHIFT,
    PUSHES,
    READS_OTHER,
    READS_TOP,
    STORES,
    WRITES_OTHER,
    WRITES_TOP,
)
from trapgate.engine import emission as em
from trapgate.engine import machine as mc
from trapgate.engine.library import layout as at
from trapgate.engine.x87.pointers import set_pointers
from trapgate.engine.x87.registers import (
    CONTROL,
    REGISTERS,
    STATUS,
    TAGS,
    TOP,
    register_of,
    state_of,
    tag_of,
)
from trapgate.engine.x87.rounding import AS_IT_IS, DOWN

_INVALID = 1
_DENORMAL = 2
_ZERO_DIVIDE = 4
_BEFORE_THE_RESULT = _INVALID | _DENORMAL | _ZERO_DIVIDE
BEFORE_THE_STORE = _BEFORE_THE_RESULT | 0x18
"""Overflow and underflow as well."""
_EXCEPTIONS = 0x3F
_STACK_FAULT = 0x40
_CONTROL_BITS, _ALWAYS_1 = 0x1F3F, 0x40
"""Of the control word: what is there, and a reserved bit."""
_SUMMARY = 0x80
_BUSY = 0x8000
_C1 = 0x200
_OF_SF_AF = 0x890
_MF = 16

_UNDERFLOW, _OVERFLOW = 1, 2
"""What X87_FAULT may hold: an empty register was read; a full one pushed to."""
_ONE_IS_A_NAN = -1
"""What X87_DENORMAL may hold besides 0 and 1: NaNs count before denormal operands."""

_EXPONENT = 0x7FFF
_INDEFINITE = -(1 << 62)
_INDEFINITE_HIGH = 0xFFFF
_FRACTION = (1 << 63) - 1

ENTERS_MMX = -1
SPARES_X87 = -2
"""In place of operands: an MMX instruction, which makes all registers valid and TOP 0; or
what the engine takes for one."""

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
@inlined
def with_summary_bits(status: int, control: int) -> int:
    """The status word with ES and B as its flags and the masks make them."""
    if status & ~control & _EXCEPTIONS != 0:
        return status | _SUMMARY | _BUSY
    return status & ~(_SUMMARY | _BUSY)


@jit
def put_indefinite(env: int, number: int) -> None:
    """Put the indefinite NaN into ST(`number`)."""
    poke64(register_of(env, number), _INDEFINITE)
    poke16(register_of(env, number) + 8, _INDEFINITE_HIGH)
    poke8(tag_of(env, number), 0)


@jit
@inlined
def fill_empty(m: Cells, env: int, number: int) -> None:
    """ST(`number`) is read: an empty register is a stack fault and counts as the indefinite NaN."""
    if peek8(tag_of(env, number)) != 0:
        n = (peek32(env + TOP) + number) & 7
        place = env + REGISTERS + 16 * n
        m[mc.X87_EMPTIED + 2 * n] = peek64(place)
        m[mc.X87_EMPTIED + 2 * n + 1] = peek16(place + 8)
        put_indefinite(env, number)
        m[mc.X87_FAULT] = _UNDERFLOW
        m[mc.X87_FILLED] |= 1 << n


@jit
@inlined
def note_operand(m: Cells, exponent: int, largest: int, fraction: int) -> None:
    """Note an operand that is a NaN or denormal; `largest` is its format's exponent of NaNs."""
    if exponent == largest and fraction != 0:
        m[mc.X87_DENORMAL] = _ONE_IS_A_NAN
    elif exponent == 0 and fraction != 0 and m[mc.X87_DENORMAL] == 0:
        m[mc.X87_DENORMAL] = 1


@jit
@inlined
def note_register(m: Cells, env: int, number: int) -> None:
    """The same of ST(`number`); without the integer bit a NaN's fraction is all of the rest."""
    place = register_of(env, number)
    exponent = peek16(place + 8) & _EXPONENT
    mantissa = peek64(place)
    fraction = mantissa if exponent == 0 else mantissa & _FRACTION
    note_operand(m, exponent, _EXPONENT, fraction)


@jit
def save_register_stack(m: Cells, env: int) -> None:
    """Keep the register stack, for `restore_register_stack`."""
    for n in range(16):
        m[mc.X87_KEPT + n] = peek64(env + REGISTERS + 8 * n)
    m[mc.X87_KEPT + 16] = peek64(env + TAGS)
    m[mc.X87_KEPT + 17] = peek32(env + TOP)


@jit
def restore_register_stack(m: Cells, env: int) -> None:
    """The register stack as it was."""
    for n in range(16):
        poke64(env + REGISTERS + 8 * n, m[mc.X87_KEPT + n])
    poke64(env + TAGS, m[mc.X87_KEPT + 16])
    poke32(env + TOP, m[mc.X87_KEPT + 17])


@jit
def look_at_operands(m: Cells, env: int, operands: int) -> None:
    """What an instruction is about to read and push to: stack faults and denormal operands."""
    other = operands >> OTHER_SHIFT
    top = peek32(env + TOP)
    m[mc.X87_WRITTEN] = 0
    if operands & WRITES_TOP:
        m[mc.X87_WRITTEN] = 1 << (top & 7)
    if operands & WRITES_OTHER:
        m[mc.X87_WRITTEN] |= 1 << ((top + other) & 7)
    if operands & PUSHES:
        m[mc.X87_WRITTEN] |= 1 << ((top - 1) & 7)
        if peek8(tag_of(env, -1)) == 0:
            m[mc.X87_FAULT] = _OVERFLOW
    if operands & READS_TOP:
        fill_empty(m, env, 0)
    if operands & READS_OTHER:
        fill_empty(m, env, other)
    elif operands & WRITES_OTHER:
        # The engine's FST leaves an empty register empty.
        poke8(tag_of(env, other), peek8(tag_of(env, other)) & peek8(tag_of(env, 0)))
    if operands & EXCHANGES:
        m[mc.X87_FILLED] = 0
    if operands & FINDS_DENORMALS:
        if operands & READS_TOP:
            note_register(m, env, 0)
        if operands & READS_OTHER:
            note_register(m, env, other)


@callback(VOID, INT64, INT64, RETURN_ADDRESS)
def on_x87_begins(machine: int, operands: int, return_address: int) -> None:
    """Before a waiting instruction: #MF if an unmasked exception is pending."""
    m = cells(machine, mc.CELLS)
    env = state_of(m)
    status = peek16(env + STATUS)
    if status & _SUMMARY:
        poke32(env + at.ERROR_CODE, 0)
        poke32(m[mc.EXCEPTION_INDEX], at.EXCP_VMEXIT + at.SVM_EXCEPTION + _MF)
        call(m[mc.CPU_LOOP_EXIT_RESTORE], (env - at.CPU_SIZE, return_address))
    if operands == ENTERS_MMX:
        return
    m[mc.X87_STATUS] = status
    poke8(env + at.X87_FLAGS, 0)
    # MXCSR is none of the x87's.
    poke8(env + at.X87_FLUSHES, 0)
    m[mc.X87_FAULT] = 0
    m[mc.X87_FILLED] = 0
    m[mc.X87_DENORMAL] = 0
    m[mc.X87_UNDONE_BY] = _BEFORE_THE_RESULT
    if operands & STORES:
        m[mc.X87_UNDONE_BY] = BEFORE_THE_STORE
    elif operands & PUSHES and operands & READS_TOP == 0:
        # FLD of a denormal number pushes it even so.
        m[mc.X87_UNDONE_BY] = _INVALID
    m[mc.X87_ROUNDED] = AS_IT_IS if operands & LEAVES_C1 else DOWN
    if peek16(env + CONTROL) & _EXCEPTIONS != _EXCEPTIONS:
        save_register_stack(m, env)
    if operands != 0:
        look_at_operands(m, env, operands)


@jit
@inlined
def exceptions_met(m: Cells, env: int) -> int:
    """What the instruction has met, as flags of the status word."""
    if m[mc.X87_FAULT] != 0:
        return _INVALID | _STACK_FAULT
    met = peek8(env + at.X87_FLAGS) & _EXCEPTIONS & ~_DENORMAL
    if m[mc.X87_DENORMAL] == 1 and met & (_INVALID | _ZERO_DIVIDE) == 0:
        met |= _DENORMAL
    return met


@jit
def make_empty_again(m: Cells, env: int, registers: int) -> None:
    """Restore registers, a bit each, that were empty and were read."""
    for n in range(8):
        if (registers >> n) & 1:
            place = env + REGISTERS + 16 * n
            poke64(place, m[mc.X87_EMPTIED + 2 * n])
            poke16(place + 8, m[mc.X87_EMPTIED + 2 * n + 1])
            poke8(env + TAGS + n, 1)


@jit
def settle_stack_fault(m: Cells, env: int) -> None:
    """After a stack fault: destinations are indefinite, and what was only read is empty."""
    for n in range(8):
        if (m[mc.X87_WRITTEN] >> n) & 1:
            place = env + REGISTERS + 16 * n
            poke64(place, _INDEFINITE)
            poke16(place + 8, _INDEFINITE_HIGH)
    make_empty_again(m, env, m[mc.X87_FILLED] & ~m[mc.X87_WRITTEN])


@jit
def leave_unfinished(m: Cells, env: int) -> None:
    """An instruction that has begun is left by a fault: registers that it found empty stay so."""
    make_empty_again(m, env, m[mc.X87_FILLED])
    m[mc.X87_FILLED] = 0


@jit
def record_exceptions(m: Cells, env: int) -> None:
    """After an instruction that computes: what it has met joins what was there."""
    before = m[mc.X87_STATUS]
    control = peek16(env + CONTROL)
    met = exceptions_met(m, env)
    status = peek16(env + STATUS)
    undone_by = m[mc.X87_UNDONE_BY]
    if met & ~control & undone_by != 0:
        restore_register_stack(m, env)
        met &= undone_by | _STACK_FAULT
        if m[mc.X87_ROUNDED] != AS_IT_IS:
            m[mc.X87_ROUNDED] = DOWN
    elif m[mc.X87_FAULT] != 0:
        settle_stack_fault(m, env)
    if m[mc.X87_FAULT] != 0:
        status = status & ~_C1 | (_C1 if m[mc.X87_FAULT] == _OVERFLOW else 0)
    elif m[mc.X87_ROUNDED] != AS_IT_IS:
        status = status & ~_C1 | (_C1 if m[mc.X87_ROUNDED] != DOWN else 0)
    sticky = _EXCEPTIONS | _STACK_FAULT
    status = status & ~sticky | before & sticky | met
    poke16(env + STATUS, with_summary_bits(status, control))
    m[mc.X87_FILLED] = 0


@callback(VOID, INT64, INT64)
def on_mmx_ends(machine: int, destination: int) -> None:
    """After an MMX instruction: all registers are valid, its destination is a NaN to the x87.

    One that faults changes nothing (SDM, "MMX Registers", "Effect of MMX Instructions on the x87
    FPU Tag Word").
    """
    env = state_of(cells(machine, mc.CELLS))
    poke32(env + TOP, 0)
    poke64(env + TAGS, 0)
    if destination >= 0:
        poke16(env + REGISTERS + 16 * destination + 8, 0xFFFF)


@callback(VOID, INT64, INT64, INT64)
def on_x87_ends(machine: int, rip: int, what: int) -> None:
    """After an instruction that computes, at offset `rip`; `what`: see `decode.x87_pointers`."""
    m = cells(machine, mc.CELLS)
    env = state_of(m)
    record_exceptions(m, env)
    set_pointers(m, env, rip, what, peek16(env + STATUS) & _SUMMARY != 0)


@callback(VOID, INT64, INT64, INT64)
def on_x87_compares(machine: int, rip: int, what: int) -> None:
    """After FCOMI and its like, which clear OF, SF and AF as well."""
    m = cells(machine, mc.CELLS)
    env = state_of(m)
    record_exceptions(m, env)
    set_pointers(m, env, rip, what, peek16(env + STATUS) & _SUMMARY != 0)
    poke64(env + at.CC_SRC, peek64(env + at.CC_SRC) & ~_OF_SF_AF)


@callback(VOID, INT64, INT64, INT64)
def on_x87_reloads(machine: int, rip: int, what: int) -> None:
    """After FLDCW, FLDENV and FRSTOR, which may unmask what is flagged."""
    env = state_of(cells(machine, mc.CELLS))
    control = peek16(env + CONTROL) & _CONTROL_BITS | _ALWAYS_1
    poke16(env + CONTROL, control)
    poke16(env + STATUS, with_summary_bits(peek16(env + STATUS), control))


@jit
def note_single(env: int, value: int) -> None:
    """A single-precision operand is about to be converted."""
    m = cells(peek64(env + at.MACHINE), mc.CELLS)
    note_operand(m, (value >> 23) & 0xFF, 0xFF, value & 0x7F_FFFF)


@jit
def note_double(env: int, value: int) -> None:
    """A double-precision one."""
    m = cells(peek64(env + at.MACHINE), mc.CELLS)
    note_operand(m, (value >> 52) & 0x7FF, 0x7FF, value & 0xF_FFFF_FFFF_FFFF)


@jit
def make_quiet(env: int) -> None:
    """What FLD has pushed: a signalling NaN, the only invalid operand, becomes a quiet one."""
    if peek8(env + at.X87_FLAGS) & _INVALID:
        place = register_of(env, 0)
        poke64(place, peek64(place) | 1 << 62)


@callback(VOID, INT64, UINT32, BOUND)
def on_single(env: int, value: int, helper: int) -> None:
    """The operand of arithmetic."""
    note_single(env, value)
    call(helper, (env, value))


@callback(VOID, INT64, UINT32, BOUND)
def on_load_of_single(env: int, value: int, helper: int) -> None:
    """FLD."""
    note_single(env, value)
    call(helper, (env, value))
    make_quiet(env)


@callback(VOID, INT64, INT64, BOUND)
def on_double(env: int, value: int, helper: int) -> None:
    """The operand of arithmetic."""
    note_double(env, value)
    call(helper, (env, value))


@callback(VOID, INT64, INT64, BOUND)
def on_load_of_double(env: int, value: int, helper: int) -> None:
    """FLD."""
    note_double(env, value)
    call(helper, (env, value))
    make_quiet(env)


@callback(VOID, INT64, INT64, BOUND, RETURN_ADDRESS)
def on_load_of_decimal(env: int, address: int, helper: int, back: int) -> None:
    """FBLD: the engine reads its operand downwards, and would fault at the last byte."""
    m = cells(peek64(env + at.MACHINE), mc.CELLS)
    t = cells(m[mc.TRANSLATOR], em.CELLS)
    call(t[em.LOAD_DATA_64], (env, address, back))
    call(t[em.LOAD_DATA_16], (env, address + 8, back))
    call(helper, (env, address))


LOADS = {
    "helper_fbld_ST0": on_load_of_decimal,
    "helper_flds_ST0": on_load_of_single,
    "helper_flds_FT0": on_single,
    "helper_fldl_ST0": on_load_of_double,
    "helper_fldl_FT0": on_double,
}
"""Helpers of the engine's that convert operands in memory, and what calls them instead. A
signalling NaN becomes another one than the engine's, and denormal operands are noted."""
