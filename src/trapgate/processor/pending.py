"""What waits at a logical processor's pins, and which of it is taken next.

SDM, "Priority Among Concurrent Events".
"""

from __future__ import annotations

from trapgate.compiler.dialect import Cells
from trapgate.decision.criteria_table import RULE_DELIVER, decide_by_table
from trapgate.decision.faults import Interruption
from trapgate.events.exits import vm_exit
from trapgate.events.journal import HEAD_TIME
from trapgate.instructions.intercepts import EXITED, GO_ON, platform_exit, window_exit
from trapgate.instructions.virtual_apic import has_virtual_interrupt
from trapgate.processor.logical import LogicalProcessor
from trapgate.processor.pins import Smi
from trapgate.processor.reset import begin_at, reset
from trapgate.sdm import cells as f
from trapgate.sdm import controls as ct
from trapgate.sdm.interruption import InterruptionType
from trapgate.sdm.reasons import ExitReason
from trapgate.sdm.state import ACTIVITY_ACTIVE, ACTIVITY_SHUTDOWN, ACTIVITY_WAIT_FOR_SIPI

_BLOCKED_BY_STI_OR_SS = 3
_BLOCKED_BY_NMI = 8
_IF = 1 << 9


def take(processor: LogicalProcessor, v: Cells) -> bool:
    """Take what waits, if the guest of `v`, the VMCS in force, can take it; whether that exits."""
    pin = int(v[f.PIN_BASED_CONTROLS])
    state = int(v[f.GUEST_INTERRUPTIBILITY_STATE])
    activity = v[f.GUEST_ACTIVITY_STATE]
    pins = processor.pins
    start_up, pins.start_up = pins.start_up, None
    if activity == ACTIVITY_WAIT_FOR_SIPI:
        # SDM, "Activity State" of VM entries: everything else is blocked. INIT is forgotten, or
        # the INIT-SIPI-SIPI of "Handling Activity States by VMM" would leave the started guest.
        pins.init = False
        if start_up is None:
            return False
        if platform_exit(v, True, ExitReason.STARTUP_IPI, start_up) == EXITED:
            return True
        begin_at(v, start_up)
        return False
    smi, pins.smi = pins.smi, None
    if smi is not None and _smi_exits(processor, v, smi):
        return True
    if pins.init and not processor.x86_vmm.in_root_operation:
        pins.init = False
        if platform_exit(v, True, ExitReason.INIT_SIGNAL, 0) == EXITED:
            return True
        reset(processor.registers.cells, v)
        processor.engine.flush_translations()
        processor.platform_reset()
        return False
    if pins.nmi and not state & _BLOCKED_BY_STI_OR_SS:
        blocked = state & _BLOCKED_BY_NMI and not pin & ct.PIN_VIRTUAL_NMIS
        if not blocked:
            pins.nmi = False
            return _wake(processor, v, 2, 2)
    if activity == ACTIVITY_SHUTDOWN:
        return False
    if window_exit(v) != GO_ON:
        return True
    interruptible = bool(v[f.GUEST_RFLAGS] & _IF) and not state & _BLOCKED_BY_STI_OR_SS
    exiting = bool(pin & ct.PIN_EXTERNAL_INTERRUPT_EXITING)
    if v is processor.x86_vmm.vmcs and (interruptible or exiting) and _awaits_window(processor):
        vm_exit(processor.move_to_vmcs0(), ExitReason.INTERRUPT_WINDOW, 0, 0)
        return True
    if pins.interrupt is not None:
        vector = pins.interrupt
        if v is processor.x86_vmm.vmcs and processor.x86_vmm.is_notification(vector):
            pins.interrupt = None
            processor.engine.post_interrupts()
        elif exiting and _interrupt_exits(processor, v, vector):
            vm_exit(v, ExitReason.EXTERNAL_INTERRUPT, 0, 0)
            if v[f.VM_EXIT_CONTROLS] & ct.EXIT_ACKNOWLEDGE_INTERRUPT:
                pins.interrupt = None
                word, _ = Interruption(vector, 0).encode()  # type: ignore[arg-type]
                v[f.VM_EXIT_INTERRUPTION_INFORMATION] = word
            return True
        elif interruptible:
            pins.interrupt = None
            return _wake(processor, v, vector, 0)
    if interruptible and has_virtual_interrupt(v, processor.memory.cells):
        v[f.GUEST_ACTIVITY_STATE] = ACTIVITY_ACTIVE
        processor.head[HEAD_TIME] = processor.time
        return processor.engine.deliver_virtual_interrupt()
    return False


def _smi_exits(processor: LogicalProcessor, v: Cells, smi: Smi) -> bool:
    """Put an SMI to the criteria; whether it exits.

    One that does not is for system-management mode, whose handler is RSM alone. VT-x lets
    none exit without dual-monitor treatment, which there is not.
    """
    assert processor.vmcs is not None
    host = processor.move_to_vmcs0()
    usual = processor.vmcs.profile == "extended"
    if platform_exit(host, usual, smi.reason, smi.qualification) == GO_ON:
        if v is not host:
            processor.move_from_vmcs0()
        return False
    for cell, value in smi.fields.items():
        host[cell] = value
    return True


def _interrupt_exits(processor: LogicalProcessor, v: Cells, vector: int) -> bool:
    """Whether external-interrupt exiting holds for a vector: a criteria table may exempt it."""
    if v[f.CRITERIA_TABLE_RULES] == 0:
        return True
    action, _ = decide_by_table(
        v, processor.registers.cells, processor.memory.cells,
        vector, int(InterruptionType.EXTERNAL_INTERRUPT), -1, 0, 0, 0, -1, 0, 0, 0,
    )  # fmt: skip
    return action != RULE_DELIVER


def _awaits_window(processor: LogicalProcessor) -> bool:
    """Whether VMCS 0 asks for an exit as soon as interrupts are enabled."""
    assert processor.vmcs is not None
    primary = processor.vmcs.words[f.PRIMARY_PROCESSOR_BASED_CONTROLS]
    return bool(primary & ct.PRIMARY_INTERRUPT_WINDOW_EXITING)


def _wake(processor: LogicalProcessor, v: Cells, vector: int, kind: int) -> bool:
    """An interrupt or NMI: what it does not exit for, it wakes from HLT."""
    halted = int(v[f.GUEST_ACTIVITY_STATE])
    v[f.GUEST_ACTIVITY_STATE] = 0
    exited = processor.raise_event(vector, kind)
    if exited:
        v[f.GUEST_ACTIVITY_STATE] = halted
    return exited
