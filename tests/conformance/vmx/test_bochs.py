"""The same scripts on Bochs: it has to agree but where it is known to leave a check out."""

import pytest

from benchmarks.bochs import installed
from tests.conformance.vmx import bochs
from tests.conformance.vmx import test_ept as ept

pytestmark = [
    pytest.mark.conformance,
    pytest.mark.slow,
    pytest.mark.skipif(not installed(), reason="needs Debian's bochs, bochs-term, vgabios"),
]

KNOWN = {
    "INVEPT, single, uncacheable, flags": "this model of Bochs has no flags in EPT entries",
    "check 103, bad 0": 'Bochs has "virtualize APIC accesses"',
    "check 113, good": "this model of Bochs has no flags in EPT entries",
    "check 201, bad 1": 'Bochs has "load IA32_PERF_GLOBAL_CTRL"',
    "check 301, bad 1": 'Bochs takes "entry to SMM" outside SMM for bad guest state',
    "check 705, bad 0": "Bochs does not check CR0.PG of a 64-bit guest",
    "check 1104, bad 0": "Bochs does not check RFLAGS.VM in real-address mode",
    "EPT, flags": "this model of Bochs has no flags in EPT entries",
    "EPT, page of bit 30": "this model of Bochs has no pages of 1 GByte",
    "EPT, large page not aligned": "Bochs does not check these bits",
    "EPT, read that has to set flags": "Bochs does not check that it may write them",
    "EPT, write that has to set flags": "Bochs does not check that it may write them",
    "check 704": "Bochs does not check IA32_DEBUGCTL",
    "check 1102": "Bochs does not check that RIP is canonical",
    "check 1217": "Bochs gives qualification 0",
    "check 1218": "Bochs has this check commented out",
    "check 1221, bad 5": "Bochs takes bits 63:32 of the field for 0",
    "check 1222": "Bochs does not check BS",
    "check 1223": "Bochs does not check BS",
}


@pytest.mark.parametrize("bits", [64, 32])
def test_vmx_instructions(bits: int) -> None:
    unknown = [line for line in bochs.compare_instructions(bits) if not known(line)]
    assert unknown == []


@pytest.mark.parametrize("bits", [64, 32])
def test_entry_checks(bits: int) -> None:
    unknown = [line for line in bochs.compare_checks(bits) if not known(line)]
    assert unknown == []


@pytest.mark.parametrize("mode", ept.MODES)
def test_ept(mode: str) -> None:
    unknown = [line for line in bochs.compare_ept(mode) if not known(line)]
    assert unknown == []


def known(line: str) -> bool:
    return any(f": {name}" in line for name in KNOWN)
