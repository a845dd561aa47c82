"""#DB behind instructions that the engine does not execute as they are, or not alone.

SDM, "Debug Exceptions": data breakpoints and single steps are traps behind the instruction, RF is
what the instruction has left. Compared with Bochs and QEMU, which have a translator and an
interpreter of their own.
"""

from struct import pack

import pytest

from tests.conformance.tiny_guest import CODE, CODE_32, DATA, RF, STACK, TF, Run, Tiny, begin
from trapgate.sdm.vectors import DB

pytestmark = pytest.mark.conformance

EVERYTHING = {"EXCEPTION_BITMAP": 0xFFFFFFFF}
AT_DATA = pack("<I", DATA)
B0, BS = 1, 1 << 14
EXECUTION, STORES, ACCESSES = 0x1, 0xD0001, 0xF0001
"""DR7: breakpoint 0, of four bytes for data."""


@pytest.fixture(params=["native", "portable"], name="engine")
def each_engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def watched(code: bytes, dr7: int, dr0: int = DATA, flags: int = 0, mode: str = "p32") -> Tiny:
    fields = {"GUEST_DR7": 0x400 | dr7, "GUEST_RFLAGS": 2 | flags}
    registers = {"dr0": dr0, "rcx": 3, "rsi": DATA, "rdi": DATA + 0x20, "rax": 0x33}
    return Tiny(mode, 0, code, {}, fields, registers)


def trap(run: Run) -> tuple[int, int]:
    """Where the #DB was found, from the code's start, and its causes."""
    event = run.exit.interruption
    assert event is not None, run.exit
    assert event.vector == DB
    place = run.vmcs["GUEST_CS_BASE"] + run.vmcs["GUEST_RIP"] - CODE
    return place, run.exit.qualification


INSTRUCTIONS: dict[str, tuple[bytes, int]] = {
    "ARPL": (b"\x63\x05" + AT_DATA, ACCESSES),
    "ARPL that stores": (b"\x63\x05" + AT_DATA, STORES),
    "CLFLUSH": (b"\x0f\xae\x3d" + AT_DATA, ACCESSES),
    "SMSW": (b"\x0f\x01\x25" + AT_DATA, STORES),
    "LMSW": (b"\x0f\x01\x35" + AT_DATA, ACCESSES),
    "FXSAVE": (b"\x0f\xae\x05" + AT_DATA, STORES),
}


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_a_data_breakpoint_and_a_single_step_are_one_trap(name: str, engine: str) -> None:
    code, dr7 = INSTRUCTIONS[name]
    assert trap(begin(watched(code, dr7), EVERYTHING, engine=engine)) == (len(code), B0)
    stepped = watched(code, dr7, flags=TF)
    assert trap(begin(stepped, EVERYTHING, engine=engine)) == (len(code), B0 | BS)
    assert trap(begin(watched(code, 0, flags=TF), EVERYTHING, engine=engine)) == (len(code), BS)


def test_the_operand_of_a_far_jump_in_real_mode(engine: str) -> None:
    guest = watched(b"\x66\xff\x2e\x00\x09", ACCESSES, CODE + 0x904, mode="r16")
    guest.fields["GUEST_DS_BASE"] = CODE
    guest.memory[CODE + 0x900] = pack("<IH", 0x800, CODE >> 4)
    assert trap(begin(guest, EVERYTHING, engine=engine)) == (0x800, B0)


@pytest.mark.parametrize("code", [b"\xf3\xa4", b"\xf3\xac"])
def test_the_last_iteration_ends_the_instruction(code: bytes, engine: str) -> None:
    run = begin(watched(code, ACCESSES), EVERYTHING, engine=engine)
    found = [(*trap(run), run.processor.registers.rcx)]
    for _ in range(2):
        run.resume()
        found.append((*trap(run), run.processor.registers.rcx))
    assert found == [(0, B0, 2), (0, B0, 1), (2, B0, 0)]


@pytest.mark.parametrize("code", [b"\xf3\xa4", b"\xf3\xab", b"\xf3\x6e"])
def test_rf_counts_for_all_iterations(code: bytes, engine: str) -> None:
    """SDM, "Instruction-Breakpoint Exception Condition": RF ends with the instruction."""
    guest = watched(code, EXECUTION, CODE, flags=RF)
    run = begin(guest, EVERYTHING, engine=engine)
    assert run.exit.reason.name == "VMCALL"
    assert run.processor.registers.rcx == 0


@pytest.mark.parametrize("flags", [0, RF])
def test_rf_that_iret_loads(flags: int, engine: str) -> None:
    """SDM, "Resume Flag": it stays behind an IRET, also behind one that RF was set for."""
    target = CODE + 0x800
    for loaded in (0, RF):
        guest = watched(b"\xcf", EXECUTION, target, flags=flags)
        guest.fields["GUEST_RSP"] = STACK - 12
        guest.memory |= {
            STACK - 12: pack("<III", target, CODE_32, 2 | loaded),
            target: b"\x90\x0f\x01\xc1",
        }
        run = begin(guest, EVERYTHING, engine=engine)
        if loaded:
            assert run.exit.reason.name == "VMCALL"
        else:
            assert trap(run) == (0x800, B0)
