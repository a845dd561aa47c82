"""Branches whose target is out of bounds fault at the branch, with the stack as before.

Compiled only; Linux wheels. 64-bit code must not jump to a non-canonical address, other
code not beyond the limit of CS (SDM, "JMP", "CALL", "RET", "Jcc", "LOOP"). Where the engine looks
for the block at a new RIP it calls one of two functions, in front of which stubs compare RIP; what
is out of bounds comes here. The engine has made the branch already, so it is taken back.
"""

from trapgate.compiler.dialect import Cells
from trapgate.compiler.program import jit, stub
from trapgate.compiler.raw import (
    call,
    cells,
    go_on,
    peek32,
    peek64,
    poke32,
    poke64,
    return_address,
)
from trapgate.engine import emission as em
from trapgate.engine import machine as mc
from trapgate.engine.guest.clock import locate
from trapgate.engine.library import layout as at
from trapgate.engine.translator.control_flow import machine_at
from trapgate.engine.translator.translator_errata import code_byte
from trapgate.operands.encoding import is_prefix

_RCX, _RSP = 1, 4
_GP = 13
_OPERATIONS = 256
"""A branch takes fewer."""


@jit
def stack_width(hflags: int) -> int:
    """The width of the stack pointer in bytes."""
    if hflags & at.HF_CS64:
        return 8
    return 4 if hflags & at.HF_SS32 else 2


@jit
def add_to_register(env: int, number: int, width: int, change: int) -> None:
    """Add to the low `width` bytes of a general register; 4 clear the upper half."""
    old = peek64(env + at.REGS + 8 * number)
    new = old + change
    if width == 2:
        new = (old & ~0xFFFF) | (new & 0xFFFF)
    elif width == 4:
        new &= 0xFFFFFFFF
    poke64(env + at.REGS + 8 * number, new)


@jit
def take_branch_back(reader: int, env: int, taken: bool) -> bool:
    """Undo what the near branch at RIP did to RSP or RCX; False if there is none.

    `reader` is the engine's function that reads a byte of code. A conditional branch that was not
    `taken` is none: what cannot be fetched is the next instruction.
    """
    hflags = peek32(env + at.HFLAGS)
    long = hflags & at.HF_CS64 != 0
    start = peek64(env + at.EIP)
    if not long:
        start = (start + peek64(env + at.SEGMENTS + at.SEGMENT_SIZE + at.BASE)) & 0xFFFFFFFF
    operand = 8 if long else 4 if hflags & at.HF_CS32 else 2
    address = operand
    byte = code_byte(reader, env, start)
    while is_prefix(byte, long):
        if byte == 0x66 and not long:
            operand = 2 if hflags & at.HF_CS32 else 4
        elif byte == 0x67:
            address = 4 if long or hflags & at.HF_CS32 == 0 else 2
        start += 1
        byte = code_byte(reader, env, start)
    pushed = 0
    if byte == 0x0F:
        return taken and code_byte(reader, env, start + 1) & 0xF0 == 0x80
    if not taken and (byte & 0xF0 == 0x70 or 0xE0 <= byte <= 0xE3):
        return False
    if byte == 0xC3:
        pushed = -operand
    elif byte == 0xC2:
        pushed = (
            -operand - code_byte(reader, env, start + 1) - (code_byte(reader, env, start + 2) << 8)
        )
    elif byte == 0xE8:
        pushed = operand
    elif byte == 0xFF:
        form = code_byte(reader, env, start + 1) & 0x38
        if form not in (0x10, 0x20):
            return False
        pushed = operand if form == 0x10 else 0
    elif 0xE0 <= byte <= 0xE2:
        add_to_register(env, _RCX, address, 1)
    elif byte not in (0xE3, 0xE9, 0xEB) and byte & 0xF0 != 0x70:
        return False
    if pushed != 0:
        add_to_register(env, _RSP, stack_width(hflags), pushed)
    return True


@jit
def refuse_target(m: Cells, env: int, return_address: int) -> None:
    """RIP is out of bounds: #GP(0) at the branch that led there.

    What merely continued past its block faults there, and that a far transfer or an event leads
    within bounds is checked elsewhere.
    """
    t = cells(m[mc.TRANSLATOR], em.CELLS)
    target = peek64(env + at.EIP)
    flags = peek32(env + at.CC_OP)
    locate(m, m[mc.CPU], return_address)
    taken = target != peek64(env + at.EIP) + m[mc.INSTRUCTION_LENGTH]
    if not take_branch_back(t[em.CODE_BYTE], env, taken):
        poke64(env + at.EIP, target)
        poke32(env + at.CC_OP, flags)
        return
    m[mc.FAULT_KIND] = 0
    poke32(env + at.ERROR_CODE, 0)
    poke32(m[mc.EXCEPTION_INDEX], at.EXCP_VMEXIT + at.SVM_EXCEPTION + _GP)
    call(m[mc.CPU_LOOP_EXIT], (m[mc.CPU],))


@jit
def wrap_targets(context: int, before: int) -> None:
    """Wrap the targets of a near branch that has been translated to 32 bits.

    `before` is the last operation from before. The engine adds a displacement of Jcc, LOOP and JCXZ
    to EIP in 64 bits.
    """
    op = em.last_op(context)
    for _ in range(_OPERATIONS):
        if op == before:
            break
        earlier = em.op_before(op)
        if em.is_store_at(op, at.EIP) and em.is_constant(earlier, peek64(em.argument(op, 0))):
            place = em.argument(earlier, 1)
            poke64(place, peek64(place) & 0xFFFFFFFF)
        op = earlier


@jit
def is_canonical(rip: int) -> bool:
    """Whether bits 63:47 of an address are all the same."""
    return -1 <= rip >> 47 <= 0


@jit
def is_within_limit(env: int) -> bool:
    """Whether RIP is not above the limit of CS."""
    limit = peek32(env + at.SEGMENTS + at.SEGMENT_SIZE + at.LIMIT)
    return 0 <= peek64(env + at.EIP) <= limit


@stub
def look_up_canonical(env: int) -> None:
    """helper_lookup_tb_ptr after a branch of 64-bit code."""
    if not is_canonical(peek64(env + at.EIP)):
        go_on(look_up_out_of_bounds, (env,))
    go_on(machine_at(env)[mc.LOOK_UP], (env,))


@stub
def look_up_within_limit(env: int) -> None:
    """The same of other code."""
    if not is_within_limit(env):
        go_on(look_up_out_of_bounds, (env,))
    go_on(machine_at(env)[mc.LOOK_UP], (env,))


@stub
def look_up_out_of_bounds(env: int) -> None:
    """The same, unless the branch is refused."""
    m = machine_at(env)
    refuse_target(m, env, return_address())
    go_on(m[mc.LOOK_UP], (env,))


@stub
def single_step_canonical(env: int) -> None:
    """helper_single_step after a branch of 64-bit code."""
    m = machine_at(env)
    if not is_canonical(peek64(env + at.EIP)):
        refuse_target(m, env, return_address())
    go_on(m[mc.SINGLE_STEP], (env,))


@stub
def single_step_within_limit(env: int) -> None:
    """The same of other code."""
    m = machine_at(env)
    if not is_within_limit(env):
        refuse_target(m, env, return_address())
    go_on(m[mc.SINGLE_STEP], (env,))
