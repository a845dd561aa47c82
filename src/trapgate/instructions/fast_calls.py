"""SYSCALL, SYSRET, SYSENTER and SYSEXIT (SDM, their entries in the instruction reference).

Each answers GO_ON, all done, or RAISE_UD or RAISE_GP, nothing changed. GUEST_RIP is that of
the instruction when they are called, and the target when they are done.
"""

from trapgate.compiler.dialect import Cells, core
from trapgate.events.descriptors import put_flat_segment
from trapgate.instructions.effects import address_is_canonical
from trapgate.instructions.intercepts import (
    GO_ON,
    RAISE_GP,
    RAISE_UD,
)
from trapgate.operands.mode import in_64_bit_mode, privilege_level
from trapgate.sdm.cells import (
    GUEST_CR0,
    GUEST_IA32_EFER,
    GUEST_IA32_SYSENTER_CS,
    GUEST_IA32_SYSENTER_EIP,
    GUEST_IA32_SYSENTER_ESP,
    GUEST_RFLAGS,
    GUEST_RIP,
    GUEST_RSP,
)
from trapgate.sdm.registers import FMASK, LSTAR, R11, RCX, RDX, STAR
from trapgate.sdm.state import (
    CR0_PE,
    EFER_LMA,
    EFER_SCE,
    RFLAGS_FIXED_1,
    RFLAGS_IF,
    RFLAGS_RF,
    RFLAGS_VM,
)

_CS, _SS = 1, 2
_LOW = 0xFFFF_FFFF
_CODE_64, _CODE_32, _DATA = 0xA09B, 0xC09B, 0xC093
_RING_3 = 3 << 5
_LOADED_BY_SYSRET = 0x3C7FD7


@core
def syscall(v: Cells, r: Cells, length: int) -> int:
    """SYSCALL, `length` bytes long. There is one in 64-bit mode only."""
    if not in_64_bit_mode(v) or v[GUEST_IA32_EFER] & EFER_SCE == 0:
        return RAISE_UD
    r[RCX] = v[GUEST_RIP] + length
    r[R11] = v[GUEST_RFLAGS] & ~RFLAGS_RF
    v[GUEST_RIP] = r[LSTAR]
    v[GUEST_RFLAGS] = (v[GUEST_RFLAGS] & ~r[FMASK] & ~RFLAGS_RF) | RFLAGS_FIXED_1
    selector = (r[STAR] >> 32) & 0xFFFC
    put_flat_segment(v, _CS, selector, _CODE_64)
    put_flat_segment(v, _SS, selector + 8, _DATA)
    return GO_ON


@core
def sysret(v: Cells, r: Cells, wide: bool) -> int:
    """SYSRET; `wide` says whether it returns to 64-bit mode (REX.W), or to compatibility mode."""
    if not in_64_bit_mode(v) or v[GUEST_IA32_EFER] & EFER_SCE == 0:
        return RAISE_UD
    if privilege_level(v) != 0:
        return RAISE_GP
    target = r[RCX]
    if wide and not address_is_canonical(target):
        return RAISE_GP
    v[GUEST_RIP] = target if wide else target & _LOW
    v[GUEST_RFLAGS] = (r[R11] & _LOADED_BY_SYSRET) | RFLAGS_FIXED_1
    selector = (r[STAR] >> 48) & 0xFFFF
    if wide:
        put_flat_segment(v, _CS, (selector + 16) | 3, _CODE_64 | _RING_3)
    else:
        put_flat_segment(v, _CS, selector | 3, _CODE_32 | _RING_3)
    put_flat_segment(v, _SS, (selector + 8) | 3, _DATA | _RING_3)
    return GO_ON


@core
def sysenter(v: Cells) -> int:
    """SYSENTER."""
    selector = v[GUEST_IA32_SYSENTER_CS] & 0xFFFC
    if v[GUEST_CR0] & CR0_PE == 0 or selector == 0:
        return RAISE_GP
    long = v[GUEST_IA32_EFER] & EFER_LMA != 0
    v[GUEST_RFLAGS] = v[GUEST_RFLAGS] & ~(RFLAGS_VM | RFLAGS_IF | RFLAGS_RF)
    target = v[GUEST_IA32_SYSENTER_EIP]
    stack = v[GUEST_IA32_SYSENTER_ESP]
    v[GUEST_RIP] = target if long else target & _LOW
    v[GUEST_RSP] = stack if long else stack & _LOW
    put_flat_segment(v, _CS, selector, _CODE_64 if long else _CODE_32)
    put_flat_segment(v, _SS, selector + 8, _DATA)
    return GO_ON


@core
def sysexit(v: Cells, r: Cells, wide: bool) -> int:
    """SYSEXIT; `wide` says whether it returns to 64-bit mode (REX.W)."""
    selector = v[GUEST_IA32_SYSENTER_CS] & 0xFFFC
    if v[GUEST_CR0] & CR0_PE == 0 or selector == 0 or privilege_level(v) != 0:
        return RAISE_GP
    target = r[RDX]
    stack = r[RCX]
    if wide and not (address_is_canonical(target) and address_is_canonical(stack)):
        return RAISE_GP
    v[GUEST_RIP] = target if wide else target & _LOW
    v[GUEST_RSP] = stack if wide else stack & _LOW
    selector = (v[GUEST_IA32_SYSENTER_CS] & 0xFFFF) | 3
    if wide:
        put_flat_segment(v, _CS, selector + 32, _CODE_64 | _RING_3)
        put_flat_segment(v, _SS, selector + 40, _DATA | _RING_3)
    else:
        put_flat_segment(v, _CS, selector + 16, _CODE_32 | _RING_3)
        put_flat_segment(v, _SS, selector + 24, _DATA | _RING_3)
    return GO_ON
