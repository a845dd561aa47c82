"""The same scripts on Bochs: it has to agree but where it is known to leave a check out."""

import pytest

from tests.conformance.vmx import bochs

pytestmark = [
    pytest.mark.conformance,
    pytest.mark.slow,
    pytest.mark.skipif(not bochs.installed(), reason="needs Debian's bochs, bochs-term, vgabios"),
]

KNOWN = {
    "INVEPT": "Bochs has EPT",
    "check 201, bad 1": 'Bochs has "load IA32_PERF_GLOBAL_CTRL"',
    "check 301, bad 1": 'Bochs takes "entry to SMM" outside SMM for bad guest state',
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


def known(line: str) -> bool:
    return any(f": {name}" in line for name in KNOWN)
