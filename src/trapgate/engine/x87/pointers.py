"""FOP, FIP and FDP, the pointers to the latest x87 instruction that computes, and to its operand.

Compiled only; Linux wheels. The engine has cells for them, which it stores with FNSTENV and leaves
as they are. Translated code notes the address of an x87 instruction's operand (X87_AT); after an
instruction that computes `set_pointers` sets the pointers, and after one that stores or loads the
x87 state `on_x87_image` does what the engine leaves undone. FOP tells of instructions that raised
an unmasked exception only (SDM, volume 1, "Fopcode Compatibility Sub-mode").
"""

from trapgate.compiler.dialect import Cells, inlined
from trapgate.compiler.kinds import INT64, RETURN_ADDRESS, VOID
from trapgate.compiler.program import callback, jit
from trapgate.compiler.raw import (
    call,
    cells,
    peek16,
    peek32,
    peek64,
    poke16,
    poke64,
)
from trapgate.decode.x87_pointers import (
    ACTION,
    ACTION_SHIFT,
    CLEARS,
    EXTENDED,
    IN_MEMORY,
    LOADS_ENVIRONMENT,
    LOADS_IMAGE,
    OPCODE,
    OPCODE_SHIFT,
    SEGMENT,
    STORES_IMAGE,
    STORES_STATE,
    WIDE,
    default_segment,
    overriding_segment,
)
from trapgate.engine import emission as em
from trapgate.engine import machine as mc
from trapgate.engine.library import layout as at
from trapgate.engine.x87.registers import CONTROL, STATUS, state_of
from trapgate.sdm import registers as reg

_CS, _FS = 1, 4
_LOW = 0xFFFF_FFFF
_VM = 1 << 17
_EXCEPTIONS = 0x3F
_ONES = 0xFFFF
_SUMMARY_AND_BUSY = 0x8080
_HEADER = 512
"""Where XSTATE_BV is in the area of XSAVE."""


@jit
def look_at_operand(reader: int, env: int, start: int, form_at: int, flags: int) -> int:
    """Segment, IN_MEMORY and, of REX.W, WIDE of the instruction at `start`.

    Its ModR/M byte is at `form_at`; `flags` are those of its block, `reader` reads code.
    """
    form = call(reader, (env, form_at)) & 0xFF
    if form >= 0xC0:
        return 0
    long = flags & at.HF_CS64 != 0
    short = not long and flags & at.HF_CS32 == 0
    override = -1
    rex = 0
    for n in range(form_at - start):
        byte = call(reader, (env, start + n)) & 0xFF
        if long and byte & 0xF0 == 0x40:
            rex = byte
        elif byte == 0x67 and not long:
            short = not short
        elif overriding_segment(byte) >= (_FS if long else 0):
            override = overriding_segment(byte)
    sib = 0
    if form & 7 == 4 and not short:
        sib = call(reader, (env, form_at + 1)) & 0xFF
    if override < 0:
        override = default_segment(form, sib, rex, short)
    return override | IN_MEMORY | (WIDE if rex & 8 else 0)


@jit
def emit_address(t: Cells, m: Cells, context: int, address: int) -> None:
    """Emit the store of the operand's linear address; `address` is that of a temporary."""
    machine = em.new_constant(t, context, m[mc.SELF])
    em.emit_3(t, context, em.STORE, address, context + machine, 8 * mc.X87_AT)
    em.release(t, context, machine)
    m[mc.X87_POINTS] = 0


@jit
@inlined
def set_pointers(m: Cells, env: int, rip: int, what: int, raises: bool) -> None:
    """Set the pointers to the instruction at offset `rip`, which `what` describes."""
    selector = peek16(env + at.SEGMENTS + at.SEGMENT_SIZE * _CS + at.SELECTOR)
    poke64(env + at.FPU_IP, rip)
    poke16(env + at.FPU_CS, selector)
    if what & IN_MEMORY:
        segment = env + at.SEGMENTS + at.SEGMENT_SIZE * (what & SEGMENT)
        offset = m[mc.X87_AT]
        if peek32(env + at.HFLAGS) & at.HF_CS64 == 0:
            offset = (offset - peek64(segment + at.BASE)) & _LOW
        elif what & SEGMENT >= _FS:
            offset -= peek64(segment + at.BASE)
        poke64(env + at.FPU_DP, offset)
        poke16(env + at.FPU_DS, peek16(segment + at.SELECTOR))
    if raises:
        poke16(env + at.FPU_OP, (what >> OPCODE_SHIFT) & OPCODE)


@jit
def write_pointers(env: int, opcode: int, rip: int, cs: int, offset: int, ds: int) -> None:
    """Load all of them."""
    poke16(env + at.FPU_OP, opcode & OPCODE)
    poke64(env + at.FPU_IP, rip)
    poke16(env + at.FPU_CS, cs)
    poke64(env + at.FPU_DP, offset)
    poke16(env + at.FPU_DS, ds)


@jit
def is_real(env: int) -> bool:
    """Whether the environment has the layout of real-address and virtual-8086 mode."""
    return peek32(env + at.HFLAGS) & at.HF_PE == 0 or peek64(env + at.EFLAGS) & _VM != 0


@jit
def load(t: Cells, env: int, function: int, address: int, back: int) -> int:
    """Load from memory by one of the engine's functions; LOAD_DATA_16 has no upper bits."""
    mask = 0xFFFF if function == em.LOAD_DATA_16 else _LOW
    value = call(t[function], (env, address, back))
    return value if function == em.LOAD_DATA_64 else value & mask


@jit
def store_linear(t: Cells, env: int, address: int, wide: bool, extra: int, back: int) -> None:
    """Let offset and selector at an address be one linear address of 32 or 20 bits, and `extra`."""
    step = 4 if wide else 2
    offset = load(t, env, em.LOAD_DATA_32 if wide else em.LOAD_DATA_16, address, back)
    linear = offset + (load(t, env, em.LOAD_DATA_16, address + step, back) << 4)
    upper = ((linear >> 16) & (0xFFFF if wide else 0xF)) << 12 | extra
    store = t[em.STORE_DATA_32 if wide else em.STORE_DATA_16]
    call(store, (env, address, linear & 0xFFFF, back))
    call(store, (env, address + step, upper, back))


@jit
def finish_environment(t: Cells, env: int, address: int, wide: bool, back: int) -> None:
    """What the engine has stored of FNSTENV or FNSAVE has no opcode, and one layout only."""
    opcode = peek16(env + at.FPU_OP)
    if wide:
        # The upper halves of control, status and tag word.
        for n in range(3):
            call(t[em.STORE_DATA_16], (env, address + 4 * n + 2, _ONES, back))
    if is_real(env):
        store_linear(t, env, address + (12 if wide else 6), wide, opcode, back)
        store_linear(t, env, address + (20 if wide else 10), wide, 0, back)
    elif wide:
        call(t[em.STORE_DATA_16], (env, address + 18, opcode, back))
        call(t[em.STORE_DATA_16], (env, address + 26, _ONES, back))


@jit
def load_environment(t: Cells, env: int, address: int, wide: bool, back: int) -> None:
    """The pointers of what FLDENV or FRSTOR has loaded."""
    step = 4 if wide else 2
    word = em.LOAD_DATA_32 if wide else em.LOAD_DATA_16
    ip = load(t, env, word, address + 3 * step, back)
    cs = load(t, env, word, address + 4 * step, back)
    dp = load(t, env, word, address + 5 * step, back)
    ds = load(t, env, word, address + 6 * step, back)
    if is_real(env):
        ip = (ip & 0xFFFF) | (cs >> 12) << 16
        dp = (dp & 0xFFFF) | (ds >> 12) << 16
        write_pointers(env, cs, ip & _LOW, 0, dp & _LOW, 0)
    else:
        write_pointers(env, cs >> 16 if wide else 0, ip, cs & 0xFFFF, dp, ds & 0xFFFF)


@jit
def store_image(t: Cells, env: int, address: int, wide: bool, back: int) -> None:
    """The pointers of what FXSAVE or XSAVE has stored, where the engine stores zeros."""
    call(t[em.STORE_DATA_16], (env, address + 6, peek16(env + at.FPU_OP), back))
    if wide:
        call(t[em.STORE_DATA_64], (env, address + 8, peek64(env + at.FPU_IP), back))
        call(t[em.STORE_DATA_64], (env, address + 16, peek64(env + at.FPU_DP), back))
        return
    call(t[em.STORE_DATA_32], (env, address + 8, peek32(env + at.FPU_IP), back))
    call(t[em.STORE_DATA_32], (env, address + 12, peek16(env + at.FPU_CS), back))
    call(t[em.STORE_DATA_32], (env, address + 16, peek32(env + at.FPU_DP), back))
    call(t[em.STORE_DATA_32], (env, address + 20, peek16(env + at.FPU_DS), back))


@jit
def load_image(t: Cells, env: int, address: int, wide: bool, back: int) -> None:
    """The pointers of what FXRSTOR or XRSTOR has loaded."""
    opcode = load(t, env, em.LOAD_DATA_16, address + 6, back)
    ip = load(t, env, em.LOAD_DATA_64, address + 8, back)
    dp = load(t, env, em.LOAD_DATA_64, address + 16, back)
    if wide:
        write_pointers(env, opcode, ip, 0, dp, 0)
    else:
        write_pointers(env, opcode, ip & _LOW, ip >> 32 & 0xFFFF, dp & _LOW, dp >> 32 & 0xFFFF)


@callback(VOID, INT64, INT64, RETURN_ADDRESS)
def on_x87_image(machine: int, what: int, back: int) -> None:
    """After an instruction that stores or loads the x87 state, or clears it."""
    m = cells(machine, mc.CELLS)
    finish_image(m, state_of(m), what, back)


@jit
def finish_image(m: Cells, env: int, what: int, back: int) -> None:
    """Do what the engine has left undone of it."""
    t = cells(m[mc.TRANSLATOR], em.CELLS)
    address = m[mc.X87_AT]
    action = (what & ACTION) >> ACTION_SHIFT
    wide = what & WIDE != 0
    if action == CLEARS:
        poke16(env + at.FPU_OP, 0)
    elif action in (STORES_IMAGE, LOADS_IMAGE):
        if what & EXTENDED and peek64(env + at.REGS + 8 * reg.RAX) & 1 == 0:
            return
        if action == STORES_IMAGE:
            store_image(t, env, address, wide, back)
        elif what & EXTENDED and load(t, env, em.LOAD_DATA_64, address + _HEADER, back) & 1 == 0:
            write_pointers(env, 0, 0, 0, 0, 0)
        else:
            load_image(t, env, address, wide, back)
    elif action == LOADS_ENVIRONMENT:
        load_environment(t, env, address, wide, back)
    else:
        finish_environment(t, env, address, wide, back)
        if action == STORES_STATE:
            poke16(env + at.FPU_OP, 0)
        else:
            # FNSTENV masks all exceptions.
            poke16(env + CONTROL, peek16(env + CONTROL) | _EXCEPTIONS)
            poke16(env + STATUS, peek16(env + STATUS) & ~_SUMMARY_AND_BUSY)
