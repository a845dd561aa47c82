"""How the processor executes code: what the size of operands, and who may do what, depend on."""

from trapgate.compiler.dialect import Cells, core, inlined
from trapgate.sdm.cells import (
    GUEST_CR0,
    GUEST_CS_ACCESS_RIGHTS,
    GUEST_IA32_EFER,
    GUEST_RFLAGS,
    GUEST_SS_ACCESS_RIGHTS,
)
from trapgate.sdm.state import AR_DPL_SHIFT, AR_L, CR0_PE, EFER_LMA, RFLAGS_VM


@core
def privilege_level(v: Cells) -> int:
    """CPL: the DPL of SS (SDM, "Guest Register State")."""
    return int((v[GUEST_SS_ACCESS_RIGHTS] >> AR_DPL_SHIFT) & 3)


@core
@inlined
def in_8086_mode(v: Cells) -> bool:
    """Whether the guest is in real-address or virtual-8086 mode."""
    return bool(v[GUEST_CR0] & CR0_PE == 0 or v[GUEST_RFLAGS] & RFLAGS_VM != 0)


@core
@inlined
def in_64_bit_mode(v: Cells) -> bool:
    """Whether the guest runs 64-bit code."""
    in_ia32e = (v[GUEST_IA32_EFER] & EFER_LMA) != 0
    return bool(in_ia32e and (v[GUEST_CS_ACCESS_RIGHTS] & AR_L) != 0)
