"""How the processor executes code: what the size of operands, and who may do what, depend on."""

from trapgate.compiler.dialect import Cells, core
from trapgate.sdm.cells import GUEST_CS_ACCESS_RIGHTS, GUEST_IA32_EFER, GUEST_SS_ACCESS_RIGHTS
from trapgate.sdm.state import AR_DPL_SHIFT, AR_L, EFER_LMA


@core
def privilege_level(v: Cells) -> int:
    """CPL: the DPL of SS (SDM, "Guest Register State")."""
    return int((v[GUEST_SS_ACCESS_RIGHTS] >> AR_DPL_SHIFT) & 3)


@core
def in_64_bit_mode(v: Cells) -> bool:
    """Whether the guest runs 64-bit code."""
    in_ia32e = (v[GUEST_IA32_EFER] & EFER_LMA) != 0
    return bool(in_ia32e and (v[GUEST_CS_ACCESS_RIGHTS] & AR_L) != 0)
