"""What INIT and start-up IPIs make of the guest's processor.

SDM, "Processor State After Reset" and "Multiple-Processor (MP) Initialization".
"""

from __future__ import annotations

from typing import Final

from trapgate.compiler.dialect import Cells
from trapgate.sdm import cells as f
from trapgate.sdm import registers
from trapgate.sdm.controls import ENTRY_IA32E_MODE_GUEST
from trapgate.sdm.state import ACTIVITY_ACTIVE, CR0_NE, CR4_VMXE

_ET = 1 << 4
_CD_NW = 3 << 29
_SIGNATURE = 0x106A5
"""EDX: family, model and stepping."""
_CODE, _DATA, _LDT, _BUSY_TSS = 0x9B, 0x93, 0x82, 0x8B

_FIELDS: Final = {
    f.GUEST_RIP: 0xFFF0,
    f.GUEST_RSP: 0,
    f.GUEST_RFLAGS: 2,
    f.GUEST_CR3: 0,
    f.GUEST_CR4: CR4_VMXE,
    f.CR4_READ_SHADOW: 0,
    f.GUEST_DR7: 0x400,
    f.GUEST_IA32_EFER: 0,
    f.GUEST_GDTR_BASE: 0,
    f.GUEST_GDTR_LIMIT: 0xFFFF,
    f.GUEST_IDTR_BASE: 0,
    f.GUEST_IDTR_LIMIT: 0xFFFF,
    f.GUEST_INTERRUPTIBILITY_STATE: 0,
    f.GUEST_PENDING_DEBUG_EXCEPTIONS: 0,
    f.GUEST_ACTIVITY_STATE: ACTIVITY_ACTIVE,
    f.VM_ENTRY_INTERRUPTION_INFORMATION: 0,
}
_RIGHTS: Final = (_DATA, _CODE, _DATA, _DATA, _DATA, _DATA, _LDT, _BUSY_TSS)
"""Of ES, CS, SS, DS, FS, GS, LDTR and TR, as the fields lie."""


def begin_at(v: Cells, vector: int) -> None:
    """What a start-up IPI with vector VV does to the guest of `v`: real mode at VV00:0000."""
    v[f.GUEST_CS_SELECTOR], v[f.GUEST_CS_BASE] = vector << 8, vector << 12
    v[f.GUEST_RIP] = 0
    v[f.GUEST_ACTIVITY_STATE] = ACTIVITY_ACTIVE


def reset(r: Cells, v: Cells) -> None:
    """Put the guest with the registers `r` and the VMCS `v` into the state that INIT leaves.

    Cached translations are the caller's to flush.

    CS is F000H with the base F0000H, where this machine's firmware lies (FFFF0000H on boards
    that show it below 4 GiB). x87 and SSE registers, the time-stamp counter and most MSRs stay.
    """
    for field, value in _FIELDS.items():
        v[field] = value
    for number, rights in enumerate(_RIGHTS):
        v[f.GUEST_ES_SELECTOR + number] = v[f.GUEST_ES_BASE + number] = 0
        v[f.GUEST_ES_LIMIT + number] = 0xFFFF
        v[f.GUEST_ES_ACCESS_RIGHTS + number] = rights
    v[f.GUEST_CS_SELECTOR], v[f.GUEST_CS_BASE] = 0xF000, 0xF_0000
    cr0 = int(v[f.CR0_READ_SHADOW]) & CR0_NE | int(v[f.GUEST_CR0]) & ~CR0_NE
    v[f.CR0_READ_SHADOW] = cr0 & _CD_NW | _ET
    v[f.GUEST_CR0] = cr0 & _CD_NW | _ET | CR0_NE
    v[f.VM_ENTRY_CONTROLS] &= ~ENTRY_IA32E_MODE_GUEST
    r[:16] = 0
    r[registers.RDX] = _SIGNATURE
    for number in (registers.CR2, registers.DR0, registers.DR1, registers.DR2, registers.DR3):
        r[number] = 0
    r[registers.DR6] = 0xFFFF_0FF0
