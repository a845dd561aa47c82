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


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("ignored", ["26", "2e", "36", "3e"])
def test_other_segments_leave_fs_and_gs_in_force_in_64_bit_mode(ignored: str, engine: str) -> None:
    """SDM, volume 2, "Instruction Prefixes": they are ignored there, wherever they stand."""
    memory = {DATA: b"\x11\x11\x11\x11", DATA + 0x100: b"\x22\x22\x22\x22"}
    fields = {"GUEST_FS_BASE": 0x100, "GUEST_GS_BASE": 0x100}
    for override in ("64", "65"):
        for prefixes in (override + ignored, ignored + override, override + ignored * 6):
            # Mov eax, [rdi]; a load by translated code, then one by the core (LGDT).
            code = bytes.fromhex(prefixes) + b"\x8b\x07"
            guest = Tiny("l64", 0, code, memory, fields, {"rdi": DATA})
            run = begin(guest, engine=engine)
            assert end(run)[0] == ExitReason.VMCALL
            assert run.processor.registers.rax == 0x22222222
            table = {DATA + 0x100: b"\x77\x02" + bytes(8)}
            code = bytes.fromhex(prefixes) + b"\x0f\x01\x17"
            run = begin(Tiny("l64", 0, code, table, fields, {"rdi": DATA}), engine=engine)
            assert run.vmcs["GUEST_GDTR_LIMIT"] == 0x277


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("prefixes", "left"), [("f2f3", 0), ("f3f2", 3), ("f2", 3), ("f3", 0)])
def test_the_last_of_two_repeat_prefixes_counts(prefixes: str, left: int, engine: str) -> None:
    """SCASB over bytes that equal AL."""
    guest = Tiny("p32", 0, bytes.fromhex(prefixes) + b"\xae", {DATA: bytes(8)})
    guest.registers = {"rdi": DATA, "rcx": 4, "rax": 0}
    run = begin(guest, engine=engine)
    assert (end(run)[0], run.processor.registers.rcx) == (ExitReason.VMCALL, left)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("opcode", ["3800", "3801", "381c", "3820", "3a0f", "3a08", "3882"])
def test_repeat_prefixes_make_three_byte_opcodes_undefined(opcode: str, engine: str) -> None:
    tail = b"\x07\x00"
    for prefixes in ("f2", "f3", "66f2", "f366", "f2f3"):
        code = bytes.fromhex(prefixes + "0f" + opcode) + tail
        guest = Tiny("p32", 0, code, registers={"rdi": DATA})
        run = begin(guest, {"EXCEPTION_BITMAP": 0xFFFFFFFF}, engine=engine)
        assert run.exit.interruption is not None
        assert (run.exit.interruption.vector, run.vmcs["GUEST_RIP"]) == (6, CODE)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("code", "eax"),
    [
        ("f30fb8c3", 0xAAAA_0008),  # popcnt ax, bx
        ("66f30fb8c3", 16),
        ("f30fb807", 0xAAAA_0004),  # popcnt ax, [bx]
        ("66f30fb807", 5),
        ("f20f38f1c3", 0x4EDA_EB40),  # crc32 eax, bx
        ("66f20f38f1c3", 0x264D_AF7C),
    ],
)
def test_popcnt_and_crc32_in_16_bit_code(code: str, eax: int, engine: str) -> None:
    """66H makes their operand wide, its absence narrow."""
    guest = Tiny("r16", 0, bytes.fromhex(code), {0x800: b"\x11\x11\x01\x00"})
    guest.registers = {"rax": 0xAAAA_AAAA, "rbx": 0x00FF_0F0F if code[-2:] == "c3" else 0x800}
    run = begin(guest, engine=engine)
    assert (end(run)[0], run.processor.registers.rax) == (ExitReason.VMCALL, eax)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("operand", [0x44, 0, 0x80, 0xFF, 0x10])
def test_lock_neg_sets_the_flags_of_its_result(operand: int, engine: str) -> None:
    """SDM, "NEG": CF is 0 only if the operand is 0; the others are set by the result."""
    result = -operand & 0xFF
    flags = 2 | (operand != 0) | (result == 0) << 6 | result & 0x80
    flags |= (
        (result.bit_count() % 2 == 0) << 2 | (operand & 0xF != 0) << 4 | (operand == 0x80) << 11
    )
    for mode, prefixes in ((mode, n) for mode in MODES[1:] for n in (b"\xf0", b"\xf0\x3e")):
        guest = Tiny(mode, 0, prefixes + b"\xf6\x1f" + VMCALL, registers={"rdi": DATA})
        guest.memory |= {DATA: bytes([operand])}
        run = begin(guest, engine=engine)
        assert run.exit.reason == ExitReason.VMCALL, mode
        assert run.processor.memory.read(DATA, 1) == bytes([result]), mode
        assert run.vmcs["GUEST_RFLAGS"] & 0x8D7 == flags, mode
