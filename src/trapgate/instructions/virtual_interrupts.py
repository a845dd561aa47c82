"""CLI, STI, PUSHF, POPF and IRET where they work on VIF (SDM, "Virtual Interrupts").

Two modes let software above ring 0 believe that it masks interrupts. With CR4.VME that is
an 8086 program below IOPL 3: all five see VIF in the place of IF. With CR4.PVI it is ring 3
of protected mode below IOPL 3: CLI and STI alone. The engine knows neither mode, and raises #GP(0)
for all of these instructions, and for INT n, which CR4.VME may redirect (`events.ivt`).
"""

from trapgate.compiler.dialect import Cells, Memory, core
from trapgate.events.descriptors import NO_FAULT
from trapgate.events.frame import probe_frame, push_word, stack_has_room
from trapgate.events.stack import probe_words, stack_holds, word_at
from trapgate.instructions.interrupt_return import interrupt_return
from trapgate.operands.mode import privilege_level
from trapgate.sdm.cells import (
    GUEST_CR0,
    GUEST_CR4,
    GUEST_CS_LIMIT,
    GUEST_RFLAGS,
    GUEST_RIP,
    GUEST_RSP,
    GUEST_SS_ACCESS_RIGHTS,
    GUEST_SS_BASE,
    GUEST_SS_LIMIT,
)
from trapgate.sdm.state import (
    AR_DB,
    CR0_PE,
    CR4_PVI,
    CR4_VME,
    RFLAGS_DF,
    RFLAGS_IF,
    RFLAGS_IOPL,
    RFLAGS_NT,
    RFLAGS_STATUS,
    RFLAGS_TF,
    RFLAGS_VIF,
    RFLAGS_VIP,
    RFLAGS_VM,
)
from trapgate.sdm.vectors import GP, PF, SS

PUSHF, POPF, IRET, CLI, STI = 0x9C, 0x9D, 0xCF, 0xFA, 0xFB
INT = 0xCD
_POPPED = RFLAGS_STATUS | RFLAGS_DF | RFLAGS_NT | RFLAGS_TF
"""What POPF loads besides VIF. TF is 0: a 1 faults."""


@core
def works_on_vif(v: Cells, opcode: int) -> bool:
    """Whether a one-byte opcode is one of the five, in a mode where it works on VIF."""
    rflags = v[GUEST_RFLAGS]
    if v[GUEST_CR0] & CR0_PE == 0 or rflags & RFLAGS_IOPL == RFLAGS_IOPL:
        return False
    if rflags & RFLAGS_VM:
        known = opcode in (PUSHF, POPF, IRET, CLI, STI)
        return known and v[GUEST_CR4] & CR4_VME != 0
    return opcode in (CLI, STI) and v[GUEST_CR4] & CR4_PVI != 0 and privilege_level(v) == 3


@core
def may_redirect(v: Cells, opcode: int, length: int) -> bool:
    """Whether `opcode` is INT n, of `length` bytes, that CR4.VME may redirect below IOPL 3."""
    return bool(
        opcode == INT
        and v[GUEST_CR0] & CR0_PE != 0
        and v[GUEST_RFLAGS] & RFLAGS_VM != 0
        and v[GUEST_RFLAGS] & RFLAGS_IOPL != RFLAGS_IOPL
        and v[GUEST_CR4] & CR4_VME != 0
        and v[GUEST_RIP] + length - 1 <= v[GUEST_CS_LIMIT]
    )


@core
def execute_on_vif(
    v: Cells, mem: Memory, opcode: int, wide: bool, length: int
) -> tuple[int, int, int]:
    """Carry one of the five out; `wide` says that its operands have 32 bits, `length` is its own.

    Returns (NO_FAULT, 0, 0), or (vector, error code, linear address of a page fault) with nothing
    changed. RIP moves with IRET alone.
    """
    rflags = v[GUEST_RFLAGS]
    if v[GUEST_RIP] + length - 1 > v[GUEST_CS_LIMIT]:
        return GP, 0, 0
    if opcode == CLI:
        v[GUEST_RFLAGS] = rflags & ~RFLAGS_VIF
        return NO_FAULT, 0, 0
    if opcode == STI:
        if rflags & RFLAGS_VIP:
            return GP, 0, 0
        v[GUEST_RFLAGS] = rflags | RFLAGS_VIF
        return NO_FAULT, 0, 0
    if wide:
        return GP, 0, 0
    if opcode == IRET:
        return interrupt_return(v, mem, 2)
    return _push_flags(v, mem) if opcode == PUSHF else _pop_flags(v, mem)


@core
def _push_flags(v: Cells, mem: Memory) -> tuple[int, int, int]:
    """PUSHF of 16 bits: IF is VIF, and IOPL is 3."""
    rflags = v[GUEST_RFLAGS]
    rights = v[GUEST_SS_ACCESS_RIGHTS]
    mask = 0xFFFF_FFFF if rights & AR_DB else 0xFFFF
    sp = v[GUEST_RSP] & mask
    if not stack_has_room(v[GUEST_SS_LIMIT], rights, sp, 2, 1):
        return SS, 0, 0
    physical, error, address = probe_frame(v, mem, v[GUEST_SS_BASE], sp, mask, 2, 1, 1)
    if error >= 0:
        return PF, error, address
    pushed = (rflags | RFLAGS_IOPL) & ~RFLAGS_IF | (RFLAGS_IF if rflags & RFLAGS_VIF else 0)
    top = physical + 2 if physical >= 0 else physical
    push_word(v, mem, top, v[GUEST_SS_BASE], sp, mask, 2, 1, 0, pushed)
    v[GUEST_RSP] = (v[GUEST_RSP] & ~mask) | ((sp - 2) & mask)
    return NO_FAULT, 0, 0


@core
def _pop_flags(v: Cells, mem: Memory) -> tuple[int, int, int]:
    """POPF of 16 bits: VIF is IF; IF and IOPL stay."""
    rflags = v[GUEST_RFLAGS]
    rights = v[GUEST_SS_ACCESS_RIGHTS]
    mask = 0xFFFF_FFFF if rights & AR_DB else 0xFFFF
    sp = v[GUEST_RSP] & mask
    if not stack_holds(v[GUEST_SS_LIMIT], rights, sp, 2, 1):
        return SS, 0, 0
    base = v[GUEST_SS_BASE]
    physical, error, address = probe_words(v, mem, base, sp, mask, 2, 1, 1)
    if error >= 0:
        return PF, error, address
    flags = word_at(v, mem, physical, base, sp, mask, 2, 1, 0)
    if flags & RFLAGS_TF or (flags & RFLAGS_IF and rflags & RFLAGS_VIP):
        return GP, 0, 0
    virtual = RFLAGS_VIF if flags & RFLAGS_IF else 0
    v[GUEST_RFLAGS] = (rflags & ~(_POPPED | RFLAGS_VIF)) | (flags & _POPPED) | virtual
    v[GUEST_RSP] = (v[GUEST_RSP] & ~mask) | ((sp + 2) & mask)
    return NO_FAULT, 0, 0
