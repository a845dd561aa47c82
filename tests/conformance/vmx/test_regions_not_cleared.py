"""VMCS regions of which software has written the revision identifier only, as it may.

SDM, "Software Use of Virtual-Machine Control Structures": VMCLEAR initialises what is the
implementation's own.
"""

import random
from struct import pack

import pytest

from tests.conformance.x86_vmm import EXITED, FELL_THROUGH, MODES, VMCS_REGION, X86Vmm
from trapgate.sdm import vmx
from trapgate.sdm.fields import EXTENSION_FIELDS, Field
from trapgate.sdm.reasons import ExitReason

pytestmark = pytest.mark.conformance

EXTENSION = Field.FAULT_FILTER


def garbage(seed: int) -> dict[int, bytes]:
    """A region with the revision identifier and 4,092 bytes of anything."""
    return {VMCS_REGION: pack("<I", vmx.REVISION) + random.Random(seed).randbytes(4092)}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("extended", [False, True])
@pytest.mark.parametrize("seed", [1, 2])
def test_an_entry_with_a_region_of_garbage(mode: str, extended: bool, seed: int) -> None:
    vmm = X86Vmm(mode, memory=garbage(seed), extended=extended)
    vmm.boot()
    assert vmm.run() == EXITED
    assert vmm.reason == ExitReason.CPUID
    assert all(
        vmm[field.name] == 0 for field in EXTENSION_FIELDS if field is not Field.FAILED_CHECK
    )


def test_vmptrld_alone_initialises_too() -> None:
    vmm = X86Vmm("l64", memory=garbage(3))
    a = vmm.assembler
    vmm.program = a.vmxon() + a.vmptrld() + a.vmread(int(EXTENSION))
    vmm.boot()
    assert vmm.run() == FELL_THROUGH
    assert vmm.processor.registers.rax == 0
    assert vmm.processor.x86_vmm.state[vmx.LAUNCHED] == vmx.CLEAR


def test_vmclear_keeps_what_software_has_written() -> None:
    vmm = X86Vmm("l64", memory=garbage(4))
    a = vmm.assembler
    written = a.vmwrite(int(EXTENSION), 0x1F)
    vmm.program = (
        a.vmxon() + a.vmclear() + a.vmptrld() + written + a.vmclear() + a.vmptrld()
    ) + a.vmread(int(EXTENSION))
    vmm.boot()
    assert vmm.run() == FELL_THROUGH
    assert vmm.processor.registers.rax == 0x1F
