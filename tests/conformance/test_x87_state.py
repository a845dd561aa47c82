"""x87 state where instructions fault, and where MMX instructions use it."""

from struct import pack, unpack_from

import pytest

from tests.conformance.tiny_guest import ABSENT, CODE, DATA, VMCALL, Tiny, begin, handler
from trapgate.sdm.vectors import MF

pytestmark = pytest.mark.conformance


@pytest.mark.parametrize("engine", ["native", "portable"])
@pytest.mark.parametrize("operation", [b"\xda\x05", b"\xd8\x05", b"\xdd\x1d", b"\xdf\x35"])
def test_a_fault_of_its_operand_leaves_empty_registers_empty(operation: bytes, engine: str) -> None:
    """FIADD, FADD, FSTP and FBSTP of an absent page with nothing on the stack."""
    code = b"\xdb\xe3" + operation + pack("<I", ABSENT)
    guest = Tiny("p32", code=code, registers={"rbx": DATA})
    guest.memory[handler(14)] = b"\xd9\xe5\x9b\xdd\x33" + VMCALL  # fxam; fwait; fnsave [ebx]
    run = begin(guest, engine=engine)
    status, tags = unpack_from("<HxxH", run.processor.memory.read(DATA, 28), 4)
    assert run.vmcs["GUEST_RIP"] == handler(14) + 5
    assert tags == 0xFFFF
    # Empty: C3 and C0; and no exception.
    assert status & 0x4500 == 0x4100
    assert status & 0x7F == 0


@pytest.mark.parametrize("engine", ["native", "portable"])
@pytest.mark.parametrize("code", ["0f77", "0f6fc1", "0fefc0", "660f2ac1", "f30fd6c1", "0f3800c1"])
def test_mmx_instructions_wait_for_mf(code: str, engine: str) -> None:
    """Fninit; fldcw [ebx], which unmasks IE; fadd with nothing there: pending for what waits."""
    begins = b"\xdb\xe3\xd9\x2b\xd8\xc1"
    guest = Tiny("p32", code=begins + bytes.fromhex(code), registers={"rbx": DATA})
    guest.memory[DATA] = pack("<H", 0x37E)
    run = begin(guest, {"EXCEPTION_BITMAP": 1 << MF}, engine=engine)
    assert run.exit.interruption is not None, run.exit
    assert run.exit.interruption.vector == MF
    assert run.vmcs["GUEST_RIP"] == CODE + len(begins)


@pytest.mark.parametrize("engine", ["native", "portable"])
@pytest.mark.parametrize("code", ["0f57c0", "660fefc0", "f30f2ac1", "660fd6c1", "660f3800c1"])
def test_sse_instructions_do_not(code: str, engine: str) -> None:
    begins = b"\xdb\xe3\xd9\x2b\xd8\xc1"
    guest = Tiny("p32", code=begins + bytes.fromhex(code), registers={"rbx": DATA})
    guest.memory[DATA] = pack("<H", 0x37E)
    run = begin(guest, {"EXCEPTION_BITMAP": 1 << MF}, engine=engine)
    assert run.exit.interruption is None
