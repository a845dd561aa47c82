"""INIT and start-up IPIs outside VMX operation: what they make of the guest's processor.

SDM, "Processor State After Reset" and, for what follows, "Multiple-Processor (MP) Initialization".
"""

from trapgate.processor.processor import VmExit
from trapgate.processor.reset import reset
from trapgate.sdm.state import ACTIVITY_ACTIVE, ACTIVITY_WAIT_FOR_SIPI
from trapgate.vmm.actions import RESUME, Action, End, Stop
from trapgate.vmm.platform import Platform


def reset_platform(vm: Platform) -> None:
    """What INIT does beside the processor itself: its local APIC, and whether it waits."""
    vm.devices.apic.initialise()
    bootstrap = vm.devices.apic.of_bootstrap_processor
    vm.vmcs["GUEST_ACTIVITY_STATE"] = ACTIVITY_ACTIVE if bootstrap else ACTIVITY_WAIT_FOR_SIPI


def initialise(vmexit: VmExit, vm: Platform) -> Action:
    """INIT: the bootstrap processor begins at its firmware, others wait for a start-up IPI.

    The machine ends with the wait: `Processor.start_up` and another run go on from there. It
    ends without firmware, too: there is nothing to begin with.
    """
    bootstrap = vm.devices.apic.of_bootstrap_processor
    if bootstrap and not vm.has_firmware:
        return Stop(End.RESET, "the guest reset the machine (INIT through the local APIC)")
    reset(vm.processor, vm.vmcs.cells)
    reset_platform(vm)
    if bootstrap:
        return RESUME
    return Stop(End.HALTED, "the guest waits for a start-up IPI, and no processor will send one")


def start_up(vmexit: VmExit, vm: Platform) -> Action:
    """A start-up IPI with vector VV: real mode at VV00:0000."""
    vector = vmexit.qualification & 0xFF
    vmcs = vm.vmcs
    vmcs["GUEST_CS_SELECTOR"], vmcs["GUEST_CS_BASE"] = vector << 8, vector << 12
    vmcs["GUEST_RIP"] = 0
    vmcs["GUEST_ACTIVITY_STATE"] = ACTIVITY_ACTIVE
    return RESUME
