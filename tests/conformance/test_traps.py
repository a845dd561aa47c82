"""Single-step traps behind what core and Python carry out, and what DR6 says of breakpoints."""

from struct import pack

import pytest

from tests.conformance.tiny_guest import (
    CODE,
    CODE_32,
    DATA,
    GDT,
    OTHER_TASK,
    TF,
    Tiny,
    begin,
)
from trapgate.sdm.vectors import DB

pytestmark = pytest.mark.conformance

ENGINES = ("native", "portable")
BS = 1 << 14
WATCH_DB = {"EXCEPTION_BITMAP": 1 << DB}

INSTRUCTIONS = {
    "insb": (b"\x6c", {}),
    "outsb": (b"\x6e", {}),
    "in": (b"\xe4\x80", {}),
    "out": (b"\xe6\x80", {}),
    "lgdt": (b"\x0f\x01\x13", {}),
    "sgdt": (b"\x0f\x01\x03", {}),
    "smsw [ebx]": (b"\x0f\x01\x23", {}),
    "smsw eax": (b"\x0f\x01\xe0", {}),
    "lmsw [esi]": (b"\x0f\x01\x36", {}),
    "lmsw eax": (b"\x0f\x01\xf0", {"rax": 1}),
    "invlpg": (b"\x0f\x01\x3b", {}),
    "clts": (b"\x0f\x06", {}),
    "mov eax, cr0": (b"\x0f\x20\xc0", {}),
    "mov cr0, eax": (b"\x0f\x22\xc0", {"rax": 0x80010031}),
    "rdtsc": (b"\x0f\x31", {}),
    "lldt": (b"\x0f\x00\xd0", {"rax": 0}),
    "ltr": (b"\x0f\x00\xd8", {"rax": OTHER_TASK}),
    "mov eax, dr0": (b"\x0f\x21\xc0", {}),
    "rdmsr": (b"\x0f\x32", {"rcx": 0x174}),
    "xgetbv": (b"\x0f\x01\xd0", {"rcx": 0}),
    "clflush": (b"\x0f\xae\x3b", {}),
    "far jmp": (b"\xea" + pack("<IH", CODE + 7, CODE_32), {}),
}
REPEATED = {
    "rep insb": (b"\xf3\x6c", {"rcx": 2}),
    "rep outsb": (b"\xf3\x6e", {"rcx": 2}),
    "rep movsb": (b"\xf3\xa4", {"rcx": 2}),
}


def stepped(code: bytes, registers: dict[str, int], engine: str) -> tuple[int, int]:
    """Where the first #DB comes behind code that is executed with TF, and its qualification."""
    common = {"rbx": DATA, "rsi": DATA + 64, "rdi": DATA + 128, "rdx": 0x80}
    guest = Tiny("p32", code=code + b"\x90\x90", registers=common | registers)
    guest.memory |= {DATA: pack("<HI", 0x7F, GDT), DATA + 64: b"\x31\0"}
    guest.fields |= {"GUEST_RFLAGS": 2 | TF, "GUEST_CR4": 0x2610 | 1 << 18}
    run = begin(guest, WATCH_DB, engine=engine)
    assert run.exit.interruption is not None, run.exit
    return run.vmcs["GUEST_RIP"] - CODE, run.exit.qualification


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_a_trap_comes_right_behind(name: str, engine: str) -> None:
    code, registers = INSTRUCTIONS[name]
    assert stepped(code, registers, engine) == (len(code), BS)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", REPEATED)
def test_a_trap_comes_behind_each_iteration(name: str, engine: str) -> None:
    code, registers = REPEATED[name]
    assert stepped(code, registers, engine) == (0, BS)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", [1, 3])
@pytest.mark.parametrize("code", [b"\x90", b"\xaa"])
def test_a_breakpoint_on_data_is_not_met_by_execution(code: bytes, kind: int, engine: str) -> None:
    """NOP, and STOSB elsewhere: of a trap behind them only TF is a cause."""
    registers = {"rdi": DATA, "dr0": CODE + 1}
    guest = Tiny("p32", code=code + b"\x90", registers=registers)
    guest.fields |= {"GUEST_RFLAGS": 2 | TF, "GUEST_DR7": 0x401 | kind << 16}
    run = begin(guest, WATCH_DB, engine=engine)
    assert (run.vmcs["GUEST_RIP"], run.exit.qualification) == (CODE + 1, BS)
