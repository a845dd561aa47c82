"""Task switches that exit: the VMM in Python carries them out for its guest."""

from __future__ import annotations

from trapgate.decision.faults import Interruption
from trapgate.processor.task_switch import Switch, TaskFaultError, take_trap
from trapgate.processor.vm_exit import VmExit
from trapgate.sdm.interruption import InterruptionType
from trapgate.sdm.state import DR6_BREAKPOINTS
from trapgate.sdm.vectors import PF
from trapgate.vmm.actions import Action, End, Inject, StateReplaced, Stop
from trapgate.vmm.exits.platform import Platform


class _StoppedError(Exception):
    """The machine stops in the midst of the switch."""

    def __init__(self, stop: Stop) -> None:
        super().__init__()
        self.stop = stop


def switch_tasks(vmexit: VmExit, vm: Platform) -> Action:
    """Carry out the task switch that exited."""
    v = vmexit.vmcs.cells

    def take_cr3(value: int) -> None:
        stop = vm.take_cr3(value)
        if stop is not None:
            raise _StoppedError(stop)

    switch = Switch(vm.processor, v, take_cr3)
    try:
        switch.carry_out()
    except _StoppedError as stopped:
        return stopped.stop
    except TaskFaultError as fault:
        if fault.vector == PF:
            vm.processor.registers.cr2 = fault.address
        event = switch.combined(fault)
        if event is None:
            return Stop(End.TRIPLE_FAULT, "triple fault: no task could be entered for #DF", 1)
        return Inject(event)
    if causes := take_trap(v):
        vm.processor.registers.dr6 = vm.processor.registers.dr6 & ~DR6_BREAKPOINTS | causes
        return Inject(Interruption(1, InterruptionType.HARDWARE_EXCEPTION))
    return StateReplaced()
