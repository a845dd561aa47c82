"""Recording a VM exit in the VMCS.

Source: SDM, "Recording VM-Exit Information and Updating VM-entry Control Fields";
the seed's figure 2, block 206. Guest state already lies in the VMCS's cells, so an
exit is only the information about it.
"""

from trapgate.compiler.dialect import Cells, core
from trapgate.sdm.cells import (
    EXIT_QUALIFICATION,
    EXIT_REASON,
    GUEST_IA32_EFER,
    GUEST_LINEAR_ADDRESS,
    GUEST_PHYSICAL_ADDRESS,
    IDT_VECTORING_ERROR_CODE,
    IDT_VECTORING_INFORMATION,
    VM_ENTRY_CONTROLS,
    VM_ENTRY_INTERRUPTION_INFORMATION,
    VM_EXIT_INSTRUCTION_INFORMATION,
    VM_EXIT_INSTRUCTION_LENGTH,
    VM_EXIT_INTERRUPTION_ERROR_CODE,
    VM_EXIT_INTERRUPTION_INFORMATION,
)
from trapgate.sdm.controls import ENTRY_IA32E_MODE_GUEST
from trapgate.sdm.interruption import (
    INFO_DELIVER_ERROR_CODE,
    INFO_TYPE_SHIFT,
    INFO_VALID,
)
from trapgate.sdm.reasons import REASON_ENTRY_FAILURE
from trapgate.sdm.state import EFER_LMA


@core
def vm_exit(v: Cells, reason: int, qualification: int, length: int) -> None:
    """Record a VM exit: its reason (32 bits), qualification (64) and instruction length (bytes).

    Everything that only some exits report is cleared; whoever knows more writes it
    afterwards (`record_interruption`, `record_idt_vectoring`). `length` is 0 where the
    SDM leaves it undefined. With bit 31 of `reason` set the VM entry has failed, and
    then no other field changes (SDM, "VM-Entry Failures During or After Loading Guest
    State").
    """
    v[EXIT_REASON] = reason
    v[EXIT_QUALIFICATION] = qualification
    if (reason & REASON_ENTRY_FAILURE) != 0:
        return
    v[VM_EXIT_INSTRUCTION_LENGTH] = length
    v[VM_EXIT_INTERRUPTION_INFORMATION] = 0
    v[VM_EXIT_INTERRUPTION_ERROR_CODE] = 0
    v[IDT_VECTORING_INFORMATION] = 0
    v[IDT_VECTORING_ERROR_CODE] = 0
    v[VM_EXIT_INSTRUCTION_INFORMATION] = 0
    v[GUEST_LINEAR_ADDRESS] = 0
    v[GUEST_PHYSICAL_ADDRESS] = 0
    v[VM_ENTRY_INTERRUPTION_INFORMATION] = v[VM_ENTRY_INTERRUPTION_INFORMATION] & ~INFO_VALID
    save_ia32e_mode(v)


@core
def save_ia32e_mode(v: Cells) -> None:
    """The VM-entry control "IA-32e mode guest" becomes what IA32_EFER.LMA is.

    A VM exit does so; a VMM that carries out a MOV to CR0 for its guest has to, too.
    """
    controls = v[VM_ENTRY_CONTROLS] & ~ENTRY_IA32E_MODE_GUEST
    if (v[GUEST_IA32_EFER] & EFER_LMA) != 0:
        controls = controls | ENTRY_IA32E_MODE_GUEST
    v[VM_ENTRY_CONTROLS] = controls


@core
def interruption_information(vector: int, kind: int, error_code: int) -> int:
    """An interruption-information word, valid; `error_code` is -1 if the event has none."""
    word = INFO_VALID | (kind << INFO_TYPE_SHIFT) | vector
    if error_code >= 0:
        word = word | INFO_DELIVER_ERROR_CODE
    return word


@core
def record_interruption(v: Cells, vector: int, kind: int, error_code: int) -> None:
    """Say which vectored event caused the exit just recorded (`error_code` -1: none)."""
    v[VM_EXIT_INTERRUPTION_INFORMATION] = interruption_information(vector, kind, error_code)
    v[VM_EXIT_INTERRUPTION_ERROR_CODE] = max(error_code, 0)


@core
def record_idt_vectoring(v: Cells, vector: int, kind: int, error_code: int) -> None:
    """Say which event was being delivered when the exit just recorded happened."""
    v[IDT_VECTORING_INFORMATION] = interruption_information(vector, kind, error_code)
    v[IDT_VECTORING_ERROR_CODE] = max(error_code, 0)
