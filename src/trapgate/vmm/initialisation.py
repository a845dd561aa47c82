"""INIT and start-up IPIs outside VMX operation: what they make of the guest's processor.

SDM, "Processor State After Reset" and, for what follows, "Multiple-Processor (MP) Initialization".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trapgate.processor.logical import Registers
from trapgate.processor.processor import VmExit
from trapgate.sdm import registers
from trapgate.sdm.controls import ENTRY_IA32E_MODE_GUEST
from trapgate.sdm.state import ACTIVITY_ACTIVE, CR0_NE, CR4_VMXE
from trapgate.vmcs.vmcs import Vmcs
from trapgate.vmm.actions import RESUME, Action, End, Stop
from trapgate.vmm.devices.apic import LocalApic

if TYPE_CHECKING:
    from trapgate.vmm.platform import Platform

_ET = 1 << 4
_CD_NW = 3 << 29
_SIGNATURE = 0x106A5
"""EDX: family, model and stepping."""
_CODE, _DATA, _LDT, _BUSY_TSS = 0x9B, 0x93, 0x82, 0x8B

_FIELDS = {
    "GUEST_RIP": 0xFFF0,
    "GUEST_RSP": 0,
    "GUEST_RFLAGS": 2,
    "GUEST_CR3": 0,
    "GUEST_CR4": CR4_VMXE,
    "CR4_READ_SHADOW": 0,
    "GUEST_DR7": 0x400,
    "GUEST_IA32_EFER": 0,
    "GUEST_GDTR_BASE": 0,
    "GUEST_GDTR_LIMIT": 0xFFFF,
    "GUEST_IDTR_BASE": 0,
    "GUEST_IDTR_LIMIT": 0xFFFF,
    "GUEST_INTERRUPTIBILITY_STATE": 0,
    "GUEST_PENDING_DEBUG_EXCEPTIONS": 0,
    "GUEST_ACTIVITY_STATE": ACTIVITY_ACTIVE,
    "VM_ENTRY_INTERRUPTION_INFORMATION": 0,
}
_RIGHTS = dict.fromkeys(("ES", "SS", "DS", "FS", "GS"), _DATA) | {
    "CS": _CODE,
    "LDTR": _LDT,
    "TR": _BUSY_TSS,
}


def reset_processor(vmcs: Vmcs, file: Registers, apic: LocalApic) -> None:
    """Put a processor of the guest's into the state that INIT leaves.

    CS is F000H with the base F0000H, where this machine's firmware lies (FFFF0000H on boards
    that show it below 4 GiB). x87 and SSE registers, the time-stamp counter and most MSRs stay.
    """
    for name, value in _FIELDS.items():
        vmcs[name] = value
    for name, rights in _RIGHTS.items():
        vmcs[f"GUEST_{name}_SELECTOR"] = vmcs[f"GUEST_{name}_BASE"] = 0
        vmcs[f"GUEST_{name}_LIMIT"] = 0xFFFF
        vmcs[f"GUEST_{name}_ACCESS_RIGHTS"] = rights
    vmcs["GUEST_CS_SELECTOR"], vmcs["GUEST_CS_BASE"] = 0xF000, 0xF_0000
    cr0 = vmcs["CR0_READ_SHADOW"] & CR0_NE | vmcs["GUEST_CR0"] & ~CR0_NE
    vmcs["CR0_READ_SHADOW"] = cr0 & _CD_NW | _ET
    vmcs["GUEST_CR0"] = cr0 & _CD_NW | _ET | CR0_NE
    vmcs["VM_ENTRY_CONTROLS"] &= ~ENTRY_IA32E_MODE_GUEST
    r = file.cells
    r[:16] = 0
    r[registers.RDX] = _SIGNATURE
    for number in (registers.CR2, registers.DR0, registers.DR1, registers.DR2, registers.DR3):
        r[number] = 0
    r[registers.DR6] = 0xFFFF_0FF0
    apic.initialise()


def begin_at(vmcs: Vmcs, vector: int) -> None:
    """What a start-up IPI with vector VV does: real mode at VV00:0000."""
    vmcs["GUEST_CS_SELECTOR"], vmcs["GUEST_CS_BASE"] = vector << 8, vector << 12
    vmcs["GUEST_RIP"] = 0
    vmcs["GUEST_ACTIVITY_STATE"] = ACTIVITY_ACTIVE


def initialise(vmexit: VmExit, vm: Platform) -> Action:
    """INIT: the bootstrap processor begins at its firmware, others wait for a start-up IPI.

    A machine with one processor ends with the wait: `Processor.start_up` and another run go on
    from there. It ends without firmware, too: there is nothing to begin with.
    """
    bootstrap = vm.devices.apic.of_bootstrap_processor
    if bootstrap and not vm.has_firmware:
        return Stop(End.RESET, "the guest reset the machine (INIT through the local APIC)")
    vm.cpu.reset()
    vm.processor.engine.flush_translations()
    if bootstrap or len(vm.cpus) > 1:
        return RESUME
    return Stop(End.HALTED, "the guest waits for a start-up IPI, and no processor will send one")


def start_up(vmexit: VmExit, vm: Platform) -> Action:
    """A start-up IPI."""
    begin_at(vm.vmcs, vmexit.qualification & 0xFF)
    return RESUME
