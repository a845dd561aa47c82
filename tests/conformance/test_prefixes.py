"""Instructions that the core decodes, behind more prefixes than they need: up to fifteen bytes."""

import pytest

from tests.conformance.tiny_guest import (
    CODE,
    DATA,
    MODES,
    STACK,
    VMCALL,
    Run,
    Tiny,
    begin,
    handler,
)
from trapgate.sdm import controls as ct
from trapgate.sdm.reasons import ExitReason

pytestmark = pytest.mark.conformance

PRIMARY = "PRIMARY_PROCESSOR_BASED_CONTROLS"
DS, CS, DATA_SIZE, REPEAT = b"\x3e", b"\x2e", b"\x66", b"\xf3"
COUNTS = (3, 6, 7, 8, 11)
ENGINES = ("native", "portable")

TRAPS = {"int3": (b"\xcc", 3), "int n": (b"\xcd\x61", 0x61), "int1": (b"\xf1", 1)}
PLAIN = {
    "cpuid": b"\x0f\xa2",
    "rdtsc": b"\x0f\x31",
    "clts": b"\x0f\x06",
    "wbinvd": b"\x0f\x09",
    "mov cr0": b"\x0f\x20\xc0",
}
EXITING = {
    "rdtsc": (b"\x0f\x31", ct.PRIMARY_RDTSC_EXITING, ExitReason.RDTSC),
    "hlt": (b"\xf4", ct.PRIMARY_HLT_EXITING, ExitReason.HLT),
    "out": (b"\xe6\x80", ct.PRIMARY_UNCONDITIONAL_IO_EXITING, ExitReason.IO_INSTRUCTION),
}


def end(run: Run) -> tuple[ExitReason, int]:
    return run.exit.reason, run.vmcs["GUEST_RIP"]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", TRAPS)
def test_software_interrupts(name: str, count: int, engine: str) -> None:
    code, vector = TRAPS[name]
    for mode in MODES[1:]:
        run = begin(Tiny(mode, 0, DS * count + code), engine=engine)
        assert end(run) == (ExitReason.VMCALL, handler(vector)), mode
        # What was pushed is where the next instruction begins.
        frame = run.processor.memory.read(run.vmcs["GUEST_RSP"], 4)
        assert int.from_bytes(frame, "little") == CODE + count + len(code)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", PLAIN)
def test_what_is_carried_out(name: str, count: int, engine: str) -> None:
    code = DS * (count - 1) + CS + PLAIN[name]
    for mode in MODES[1:]:
        if name == "cpuid":
            run = begin(Tiny(mode, 0, code), engine=engine)
            assert end(run) == (ExitReason.CPUID, CODE)
            assert run.exit.instruction_length == len(code)
        else:
            run = begin(Tiny(mode, 0, code), engine=engine)
            assert end(run) == (ExitReason.VMCALL, CODE + len(code)), mode


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", EXITING)
def test_lengths_of_exits(name: str, count: int, engine: str) -> None:
    code, control, reason = EXITING[name]
    for prefix in (DS, DATA_SIZE):
        run = begin(Tiny("l64", 0, prefix * count + code), {PRIMARY: control}, engine=engine)
        assert end(run) == (reason, CODE)
        assert run.exit.instruction_length == count + len(code)


@pytest.mark.parametrize("engine", ENGINES)
def test_rex_counts_right_before_the_opcode_only(engine: str) -> None:
    """MOV R8, CR0 with REX.R in the wrong place is MOV RAX, CR0."""
    for prefixes, register in ((DS * 4 + b"\x41", "r8"), (DS * 3 + b"\x41" + DS, "rax")):
        run = begin(Tiny("l64", 0, prefixes + b"\x0f\x20\xc0"), engine=engine)
        assert end(run)[0] == ExitReason.VMCALL
        assert getattr(run.processor.registers, register) == run.vmcs["GUEST_CR0"]


NEAR_BRANCHES = {
    "call": b"\xe8\x10\x00\x00\x00",
    "jmp": b"\xe9\x10\x00\x00\x00",
    "jmp short": b"\xeb\x10",
    "jz": b"\x0f\x84\x10\x00\x00\x00",
    "jz short": b"\x74\x10",
    "jrcxz": b"\xe3\x10",
    "loop": b"\xe2\x10",
    "jmp rbx": b"\xff\xe3",
    "call rbx": b"\xff\xd3",
    "jmp [rdi]": b"\xff\x27",
    "ret": b"\xc3",
    "ret 4": b"\xc2\x04\x00",
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", NEAR_BRANCHES)
def test_near_branches_in_64_bit_mode_have_64_bits(name: str, engine: str) -> None:
    """SDM, "Near Branches" in 64-bit mode: 66H changes neither operand nor displacement."""
    code = DATA_SIZE + NEAR_BRANCHES[name]
    target = CODE + len(code) + 0x10
    count = 2 if name == "loop" else 0
    stack = {STACK: target.to_bytes(8, "little"), DATA: target.to_bytes(8, "little")}
    registers = {"rbx": target, "rdi": DATA, "rcx": count}
    guest = Tiny("l64", 0, code, stack | {target: VMCALL}, registers=registers)
    guest.fields["GUEST_RFLAGS"] = 0x42
    run = begin(guest, engine=engine)
    assert end(run) == (ExitReason.VMCALL, target)
    moved = {"call": -8, "call rbx": -8, "ret": 8, "ret 4": 12}.get(name, 0)
    assert run.vmcs["GUEST_RSP"] == STACK + moved
    if moved < 0:
        assert run.pushed(1) == [CODE + len(code)]
