"""What follows an instruction that the VMM in Python has carried out for the guest."""

from trapgate.compiler.dialect import Cells, core
from trapgate.decode.execute import end_instruction, move_rip
from trapgate.events.breakpoints import single_steps
from trapgate.sdm.cells import (
    GUEST_PENDING_DEBUG_EXCEPTIONS,
    PRIMARY_PROCESSOR_BASED_CONTROLS,
    VM_ENTRY_INTERRUPTION_INFORMATION,
)
from trapgate.sdm.controls import PRIMARY_MONITOR_TRAP_FLAG
from trapgate.sdm.interruption import INFO_VALID, TYPE_OTHER_EVENT
from trapgate.sdm.state import PENDING_BS
from trapgate.sdm.vmx import GUEST_IN_VMCS0

_MONITOR_TRAP = INFO_VALID | TYPE_OTHER_EVENT << 8


@core
def end_emulated_instruction(v: Cells, x: Cells, n: Cells) -> None:
    """End an instruction, or an iteration of one, whose guest state is in VMCS `v`.

    RF and the shadow of STI or MOV SS end, a single-step trap becomes pending. `x` and `n` are the
    VMX state and the x86 VMM's VMCS: where it is that one's guest, and the x86 VMM wants an exit
    after each instruction (monitor trap flag), the next VM entry injects one.
    """
    end_instruction(v)
    if single_steps(v):
        v[GUEST_PENDING_DEBUG_EXCEPTIONS] = v[GUEST_PENDING_DEBUG_EXCEPTIONS] | PENDING_BS
    if (
        x[GUEST_IN_VMCS0] != 0
        and n[PRIMARY_PROCESSOR_BASED_CONTROLS] & PRIMARY_MONITOR_TRAP_FLAG != 0
    ):
        v[VM_ENTRY_INTERRUPTION_INFORMATION] = _MONITOR_TRAP


@core
def step_over(v: Cells, x: Cells, n: Cells, length: int) -> None:
    """The same, after an instruction of `length` bytes that RIP still points to."""
    move_rip(v, length)
    end_emulated_instruction(v, x, n)
