"""Delivery through the interrupt vector table of an 8086: far pointers of four bytes.

Real-address mode delivers everything so; virtual-8086 mode the INT n that CR4.VME
redirects to the 8086 program's own handlers (SDM, "Real-Address Mode Operation" and "Class
3 - Software Interrupt Handling in Virtual-8086 Mode").
"""

from trapgate.compiler.dialect import Cells, Memory, core
from trapgate.events.descriptors import NO_FAULT
from trapgate.events.frame import probe_frame, push_word, stack_has_room
from trapgate.paging.walk import REFUSED_GP, read_system
from trapgate.sdm import cells as f
from trapgate.sdm.interruption import TYPE_SOFTWARE_INTERRUPT
from trapgate.sdm.state import (
    AR_DB,
    CR4_VME,
    RFLAGS_AC,
    RFLAGS_IF,
    RFLAGS_IOPL,
    RFLAGS_RF,
    RFLAGS_TF,
    RFLAGS_VIF,
    RFLAGS_VM,
)
from trapgate.sdm.vectors import GP, PF, SS

_IO_MAP_BASE = 102
_REDIRECTION_SIZE = 32


@core
def is_redirected(v: Cells, mem: Memory, vector: int, kind: int) -> tuple[bool, int, int, int]:
    """Whether this event is an INT n that CR4.VME gives to the 8086 program's own handler.

    A 0 in the software interrupt redirection bitmap, the 32 bytes below the TSS's I/O map,
    says so. Returns (answer, NO_FAULT, 0, 0), or (False, fault, its error code, linear
    address of a page fault) if the bitmap cannot be read.
    """
    if (
        kind != TYPE_SOFTWARE_INTERRUPT
        or v[f.GUEST_RFLAGS] & RFLAGS_VM == 0
        or v[f.GUEST_CR4] & CR4_VME == 0
    ):
        return False, NO_FAULT, 0, 0
    if v[f.GUEST_TR_LIMIT] <= _IO_MAP_BASE:
        return False, GP, 0, 0
    base, error, address = read_system(v, mem, v[f.GUEST_TR_BASE] + _IO_MAP_BASE, 2, REFUSED_GP)
    if error >= 0:
        return False, PF, error, address
    offset = base - _REDIRECTION_SIZE + (vector >> 4) * 2
    if offset < 0 or offset + 1 > v[f.GUEST_TR_LIMIT]:
        return False, GP, 0, 0
    bits, error, address = read_system(v, mem, v[f.GUEST_TR_BASE] + offset, 2, REFUSED_GP)
    if error >= 0:
        return False, PF, error, address
    return (bits >> (vector & 15)) & 1 == 0, NO_FAULT, 0, 0


@core
def deliver_redirected(v: Cells, mem: Memory, vector: int, rip: int) -> tuple[int, int, int]:
    """INT n to the 8086 program's handler, by the table at linear address 0.

    `rip` is the return address. Below IOPL 3 the program sees VIF where IF is, and IOPL as
    3. Returns (NO_FAULT, bytes of a word of the frame, number of its words),
    or (fault, error code, linear address of a page fault) with nothing changed.
    """
    rflags = v[f.GUEST_RFLAGS]
    pushed = rflags
    interrupts = RFLAGS_IF
    if rflags & RFLAGS_IOPL != RFLAGS_IOPL:
        pushed = (rflags | RFLAGS_IOPL) & ~RFLAGS_IF
        if rflags & RFLAGS_VIF:
            pushed |= RFLAGS_IF
        interrupts = RFLAGS_VIF
    cleared = interrupts | RFLAGS_TF | RFLAGS_RF
    return _enter(v, mem, vector << 2, rip, 1, pushed, cleared, 0)


@core
def deliver_real(v: Cells, mem: Memory, vector: int, rip: int) -> tuple[int, int, int]:
    """Any event in real-address mode: no error codes, no rings. Returns as `deliver_redirected`."""
    if (vector << 2) + 3 > v[f.GUEST_IDTR_LIMIT]:
        return GP, -1, 0
    linear = v[f.GUEST_IDTR_BASE] + (vector << 2)
    cleared = RFLAGS_IF | RFLAGS_TF | RFLAGS_AC | RFLAGS_RF
    return _enter(v, mem, linear, rip, 0, v[f.GUEST_RFLAGS], cleared, -1)


@core
def _enter(
    v: Cells,
    mem: Memory,
    linear: int,
    rip: int,
    user: int,
    pushed: int,
    cleared: int,
    stack_error: int,
) -> tuple[int, int, int]:
    """Push FLAGS, CS and IP, and go where the pointer at `linear` leads."""
    pointer, error, address = read_system(v, mem, linear, 4, REFUSED_GP)
    if error >= 0:
        return PF, error, address
    base = v[f.GUEST_SS_BASE]
    rights = v[f.GUEST_SS_ACCESS_RIGHTS]
    mask = 0xFFFF_FFFF if rights & AR_DB else 0xFFFF
    rsp = v[f.GUEST_RSP]
    sp = rsp & mask
    if not stack_has_room(v[f.GUEST_SS_LIMIT], rights, sp, 2, 3):
        return SS, stack_error, 0
    physical, error, address = probe_frame(v, mem, base, sp, mask, 2, 3, user)
    if error >= 0:
        return PF, error, address
    if physical >= 0:
        physical += 6
    push_word(v, mem, physical, base, sp, mask, 2, user, 0, pushed)
    push_word(v, mem, physical, base, sp, mask, 2, user, 1, v[f.GUEST_CS_SELECTOR])
    push_word(v, mem, physical, base, sp, mask, 2, user, 2, rip)
    selector = (pointer >> 16) & 0xFFFF
    v[f.GUEST_CS_SELECTOR] = selector
    v[f.GUEST_CS_BASE] = selector << 4
    v[f.GUEST_RIP] = pointer & 0xFFFF
    v[f.GUEST_RSP] = (rsp & 0xFFFF_FFFF & ~mask) | ((sp - 6) & mask)
    v[f.GUEST_RFLAGS] = v[f.GUEST_RFLAGS] & ~cleared
    return NO_FAULT, 2, 3
