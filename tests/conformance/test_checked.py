"""Checks that the engine leaves out, where the guest itself asks for them while it runs."""

from struct import pack

import pytest

from tests.conformance.tiny_guest import CODE, DATA, Run, Tiny, begin
from trapgate.sdm.reasons import ExitReason

pytestmark = pytest.mark.conformance

EVERYTHING = {"EXCEPTION_BITMAP": 0xFFFFFFFF}
DB, AC, XM, UD = 1, 17, 19, 6
CR0_AM = 0x80050031
MXCSR_AT = DATA + 0x100


@pytest.fixture(params=["native", "portable"])
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def vector(run: Run) -> int | None:
    """The vector of the exception that exited; None at the VMCALL behind the code."""
    if run.exit.interruption is None:
        assert run.exit.reason == ExitReason.VMCALL
        return None
    return run.exit.interruption.vector


def test_popf_turns_alignment_checks_on(engine: str) -> None:
    code = b"\x8b\x1d" + pack("<I", DATA + 1) + b"\x9c\x81\x0c\x24\x00\x00\x04\x00\x9d"
    guest = Tiny("p32", ring=3, fields={"GUEST_CR0": CR0_AM}, code=code + code[:6])
    run = begin(guest, EVERYTHING, engine=engine)
    assert vector(run) == AC
    assert run.vmcs["GUEST_RIP"] == CODE + len(code)


def test_popf_without_am_does_not(engine: str) -> None:
    code = b"\x9c\x81\x0c\x24\x00\x00\x04\x00\x9d\x8b\x1d" + pack("<I", DATA + 1)
    assert vector(begin(Tiny("p32", ring=3, code=code), EVERYTHING, engine=engine)) is None


@pytest.mark.parametrize(("osxmmexcpt", "expected"), [(True, XM), (False, UD)])
def test_ldmxcsr_unmasks_in_the_middle_of_a_block(
    engine: str, osxmmexcpt: bool, expected: int
) -> None:
    # Inc eax; ldmxcsr; xorps xmm1, xmm1; movups xmm0, [DATA]; divss xmm0, xmm1.
    before = b"\x40\x0f\xae\x15" + pack("<I", MXCSR_AT) + b"\x0f\x57\xc9"
    before += b"\x0f\x10\x05" + pack("<I", DATA)
    memory = {MXCSR_AT: pack("<I", 0x1F80 & ~0x200), DATA: pack("<ffff", 1, 1, 1, 1)}
    fields = {"GUEST_CR4": 0x2010 | 0x200 | osxmmexcpt << 10}
    guest = Tiny("p32", code=before + b"\xf3\x0f\x5e\xc1", memory=memory, fields=fields)
    run = begin(guest, EVERYTHING, engine=engine)
    assert vector(run) == expected
    assert run.vmcs["GUEST_RIP"] == CODE + len(before)


def test_masked_exceptions_stay_quiet_and_leave_flags(engine: str) -> None:
    # Ldmxcsr with only invalid-operand unmasked; 1/0; stmxcsr.
    code = b"\x0f\xae\x15" + pack("<I", MXCSR_AT) + b"\x0f\x57\xc9\x0f\x10\x05" + pack("<I", DATA)
    code += b"\xf3\x0f\x5e\xc1\x0f\xae\x1d" + pack("<I", MXCSR_AT + 4)
    memory = {MXCSR_AT: pack("<I", 0x1F80 & ~0x80), DATA: pack("<ffff", 1, 1, 1, 1)}
    run = begin(Tiny("p32", code=code, memory=memory), EVERYTHING, engine=engine)
    assert vector(run) is None
    assert run.processor.memory.read(MXCSR_AT + 4, 4) == pack("<I", 0x1F80 & ~0x80 | 4)


def test_a_guest_watches_its_own_data(engine: str) -> None:
    # Mov eax, DATA; mov dr0, eax; mov eax, write/4 bytes/L0; mov dr7, eax; read; write.
    code = b"\xb8" + pack("<I", DATA) + b"\x0f\x23\xc0"
    code += b"\xb8" + pack("<I", 0x000D0401) + b"\x0f\x23\xf8"
    code += b"\xa1" + pack("<I", DATA) + b"\xa2" + pack("<I", DATA + 3)
    run = begin(Tiny("p32", code=code + b"\x90"), EVERYTHING, engine=engine)
    assert vector(run) == DB
    assert run.exit.qualification & 0xF == 1
    assert run.vmcs["GUEST_RIP"] == CODE + len(code)


@pytest.mark.native
def test_the_guest_is_fast_again_when_the_condition_is_gone() -> None:
    # Dr7 on, off, then a loop that single instructions in Python would take minutes for.
    code = b"\xb8" + pack("<I", 0x000D0401) + b"\x0f\x23\xf8\x31\xc0\x0f\x23\xf8"
    code += b"\xb9" + pack("<I", 50_000_000) + b"\x49\x75\xfd"
    guest = Tiny("p32", code=code)
    run = begin(guest, {**EVERYTHING, "VMX_PREEMPTION_TIMER_VALUE": 1 << 31}, engine="native")
    assert vector(run) is None
    assert run.processor.registers.rcx == 0
