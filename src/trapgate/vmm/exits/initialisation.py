"""INIT and start-up IPIs outside VMX operation: what they make of the guest's processor.

SDM, "Processor State After Reset" and, for what follows, "Multiple-Processor (MP) Initialization".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trapgate.processor.reset import begin_at
from trapgate.processor.vm_exit import VmExit
from trapgate.vmm.actions import RESUME, Action, End, Stop

if TYPE_CHECKING:
    from trapgate.vmm.exits.platform import Platform


def initialise(vmexit: VmExit, vm: Platform) -> Action:
    """INIT: the bootstrap processor begins at its firmware, others wait for a start-up IPI.

    A machine with one processor ends with the wait: `Processor.start_up` and another run continue
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
    begin_at(vm.vmcs.cells, vmexit.qualification & 0xFF)
    return RESUME
