"""The MSRs of last-branch records, which model 1AH has: kept, whoever writes them."""

from struct import pack

import pytest

from tests.conformance.tiny_guest import Tiny, begin
from tests.conformance.x86_vmm import AREA, EXITED, X86Vmm
from trapgate.sdm.reasons import ExitReason
from trapgate.sdm.vectors import GP

pytestmark = pytest.mark.conformance

ENGINES = ("native", "portable")
EVERYTHING = {"EXCEPTION_BITMAP": 0xFFFFFFFF}
MSRS = (0x1C8, 0x1C9, 0x1DD, 0x40, 0x4F, 0x60, 0x6F, 0x680, 0x68F, 0x6C0, 0x6CF)


def write_and_read(index: int, value: int) -> Tiny:
    """WRMSR, then RDMSR with EAX and EDX cleared between."""
    code = b"\x0f\x30\x31\xc0\x31\xd2\x0f\x32"
    registers = {"rcx": index, "rax": value & 0xFFFFFFFF, "rdx": value >> 32}
    return Tiny("l64", code=code, registers=registers)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("index", MSRS)
def test_they_keep_what_is_written(index: int, engine: str) -> None:
    run = begin(write_and_read(index, 5), EVERYTHING, engine=engine)
    assert run.exit.reason is ExitReason.VMCALL
    assert run.processor.registers.rax == 5


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("index", "value"),
    [(0x1C8, 0x200), (0x1C9, 0x10), (0x680, 1 << 47), (0x690, 0), (0x6D0, 0), (0x48, 0), (0x49, 1)],
)
def test_what_they_cannot_hold(index: int, value: int, engine: str) -> None:
    run = begin(write_and_read(index, value), EVERYTHING, engine=engine)
    assert run.exit.interruption is not None
    assert run.exit.interruption.vector == GP


def test_a_vm_entry_loads_them() -> None:
    area = b"".join(pack("<IIQ", index, 0, 0) for index in MSRS)
    fields = {"VM_ENTRY_MSR_LOAD_ADDRESS": AREA, "VM_ENTRY_MSR_LOAD_COUNT": len(MSRS)}
    vmm = X86Vmm("l64", fields=fields, memory={AREA: area})
    assert vmm.run() == EXITED
    assert vmm.reason == ExitReason.CPUID
