"""Control transfers and segment loads on both engines: what the core decides, the guest sees.

The checks themselves have their tests with the core (tests/unit): here is that each instruction
gets there, in each mode, and that a fault leaves everything as it was, at the instruction.
"""

from struct import pack

import pytest

from tests.conformance.tiny_guest import (
    ABSENT,
    BEYOND_GDT,
    CODE,
    CODE_32,
    CODE_32_USER,
    CODE_64,
    CODE_64_USER,
    DATA,
    DATA_0,
    DATA_3,
    GDT,
    OTHER_TASK,
    STACK,
    TASK,
    USER_STACK,
    VMCALL,
    Run,
    Tiny,
    begin,
    descriptor,
    gate,
    launch,
    prepare,
)
from trapgate.sdm.reasons import ExitReason

pytestmark = pytest.mark.conformance

ALL_EXCEPTIONS = {"EXCEPTION_BITMAP": 0xFFFFFFFF}
TARGET = CODE + 0x800
NT = 1 << 14
GATE = 0x48
"""Selector of a call gate of our own."""
UD, TS, NP, SS, GP, PF = 6, 10, 11, 12, 13, 14
FREE = 0x58


@pytest.fixture(params=["native", "portable"], name="engine")
def each_engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def ends(run: Run) -> tuple[int, int | None, int] | str:
    """Vector, error code and RIP from the code's start, or how else the guest left."""
    event = run.exit.interruption
    if event is None:
        return run.exit.reason.name
    assert event.error_code is not None or event.vector in (1, UD)
    return event.vector, event.error_code, run.vmcs["GUEST_RIP"] - CODE


def push_32(*words: int) -> bytes:
    return b"".join(b"\x68" + pack("<I", word) for word in words)


def push_64(*words: int) -> bytes:
    return b"".join(b"\x48\xb8" + pack("<Q", word) + b"\x50" for word in words)


def go(
    engine: str,
    mode: str,
    code: bytes,
    *,
    ring: int = 0,
    memory: dict[int, bytes] | None = None,
    fields: dict[str, int] | None = None,
) -> Run:
    parts = {TARGET: VMCALL} | (memory or {})
    guest = Tiny(mode, ring=ring, code=code, memory=parts, fields=fields or {})
    return begin(guest, ALL_EXCEPTIONS, engine=engine)


def place(run: Run) -> tuple[int, int, int]:
    """RIP, the selector of CS, and RSP."""
    return run.vmcs["GUEST_RIP"], run.vmcs["GUEST_CS_SELECTOR"], run.vmcs["GUEST_RSP"]


# IRET.


def test_iret_to_the_same_ring(engine: str) -> None:
    run = go(engine, "p32", push_32(0x202, CODE_32, TARGET) + b"\xcf")
    assert place(run) == (TARGET, CODE_32, STACK)
    assert run.vmcs["GUEST_RFLAGS"] == 0x202


def test_iret_to_ring_3_keeps_the_base_of_a_segment_that_becomes_null(engine: str) -> None:
    code = push_32(DATA_3, USER_STACK, 0x202, CODE_32_USER, TARGET) + b"\xcf"
    run = go(engine, "p32", code, fields={"GUEST_GS_BASE": 0x1234})
    assert place(run) == (TARGET, CODE_32_USER, USER_STACK)
    found = tuple(run.vmcs[f"GUEST_GS_{n}"] for n in ("SELECTOR", "BASE"))
    assert found == (0, 0x1234)
    assert run.vmcs["GUEST_GS_ACCESS_RIGHTS"] & 1 << 16


def test_iret_in_64_bit_mode(engine: str) -> None:
    run = go(engine, "l64", push_64(DATA_0, STACK, 0x202, CODE_64, TARGET) + b"\x48\xcf")
    assert place(run) == (TARGET, CODE_64, STACK)
    code = push_64(DATA_3, USER_STACK, 0x202, CODE_64_USER, TARGET) + b"\x48\xcf"
    assert place(go(engine, "l64", code)) == (TARGET, CODE_64_USER, USER_STACK)
    code = push_64(DATA_3, USER_STACK, 0x202, CODE_32_USER, TARGET) + b"\x48\xcf"
    assert place(go(engine, "l64", code)) == (TARGET, CODE_32_USER, USER_STACK)
    null = go(engine, "l64", push_64(0, STACK, 0x202, CODE_64, TARGET) + b"\x48\xcf")
    assert (place(null), null.vmcs["GUEST_SS_SELECTOR"]) == ((TARGET, CODE_64, STACK), 0)


IRET_FAULTS = [
    ("p32", push_32(0x202, DATA_0, TARGET) + b"\xcf", (GP, DATA_0, 15)),
    ("p32", push_32(0x202, 0, TARGET) + b"\xcf", (GP, 0, 15)),
    ("p32", push_32(0x202, BEYOND_GDT, TARGET) + b"\xcf", (GP, BEYOND_GDT, 15)),
    ("p32", push_32(0x202, CODE_32_USER & ~3, TARGET) + b"\xcf", (GP, CODE_32_USER & ~3, 15)),
    ("p32", push_32(0, 0, 0x202, CODE_32_USER, TARGET) + b"\xcf", (GP, 0, 25)),
    (
        "l64",
        push_64(DATA_3, USER_STACK, 0x202, CODE_64_USER, 1 << 47) + b"\x48\xcf",
        (GP, 0, 55),
    ),
    ("l64", push_64(0, STACK, 0x202, CODE_64_USER, TARGET) + b"\x48\xcf", (GP, 0, 55)),
]


@pytest.mark.parametrize(("mode", "code", "fault"), IRET_FAULTS)
def test_iret_that_faults(engine: str, mode: str, code: bytes, fault: tuple[int, int, int]) -> None:
    run = go(engine, mode, code)
    assert ends(run) == fault
    pushed = code.count(b"\x68") * 4 if mode == "p32" else code.count(b"\x48\xb8") * 8
    assert run.vmcs["GUEST_RSP"] == STACK - pushed
    assert run.vmcs["GUEST_SS_ACCESS_RIGHTS"] >> 5 & 3 == 0


def test_iret_from_a_short_stack(engine: str) -> None:
    fields = {"GUEST_SS_LIMIT": STACK - 5, "GUEST_SS_ACCESS_RIGHTS": 0x4093, "GUEST_RSP": STACK - 8}
    assert ends(go(engine, "p32", b"\xcf", fields=fields)) == (SS, 0, 0)


def test_iret_to_virtual_8086_mode_and_its_limit(engine: str) -> None:
    segments = CODE >> 4
    frame = (segments, segments, segments, segments, segments, 0x8000, 0x23002, segments, 0x800)
    memory = {TARGET: bytes.fromhex("a1ffff")}  # mov ax, [FFFFH]
    run = go(engine, "p32", push_32(*frame) + b"\xcf", memory=memory)
    event = run.exit.interruption
    assert event is not None
    assert (event.vector, run.vmcs["GUEST_RIP"]) == (GP, 0x800)
    assert run.vmcs["GUEST_RFLAGS"] & 1 << 17


@pytest.mark.parametrize("middle", [b"", b"\x90", b"\x9c", b"\x90\x9c"])
def test_input_behind_arithmetic_in_virtual_8086_mode(middle: bytes, engine: str) -> None:
    """ADD AL, 1; (NOP, PUSHF;) IN AL, DX: the mode stays as it is, and IN is #GP(0).

    Run twice: on the portable path the address of an IN is known from the first time on.
    """
    segments = CODE >> 4
    frame = (segments, segments, segments, segments, segments, 0x8000, 0x23002, segments, 0x800)
    code = b"\x04\x01" + middle + b"\xec"
    guest = Tiny("p32", code=push_32(*frame) + b"\xcf", memory={TARGET: b"\x04\x01\xec" + code})
    run = begin(guest, ALL_EXCEPTIONS, engine=engine)
    for start in (0, 3):
        event = run.exit.interruption
        assert event is not None
        length = 3 if start == 0 else len(code)
        assert (event.vector, run.vmcs["GUEST_RIP"]) == (GP, 0x800 + start + length - 1)
        assert run.vmcs["GUEST_RFLAGS"] & 1 << 17
        run.vmcs["GUEST_RIP"] += 1
        run.resume()


# Near returns.


def test_near_return_that_releases_much(engine: str) -> None:
    """The number of bytes is unsigned."""
    for mode, push in (("p32", b"\x68"), ("pae", b"\x68"), ("l64", b"\x68")):
        code = push + pack("<I", CODE + 8) + b"\xc2\x00\x90"
        run = begin(Tiny(mode, code=code), ALL_EXCEPTIONS, engine=engine)
        assert (run.exit.reason.name, run.vmcs["GUEST_RIP"]) == ("VMCALL", CODE + 8)
        assert run.vmcs["GUEST_RSP"] == STACK + 0x9000
    code = bytes.fromhex("680600c20090")  # push 6; ret 9000H
    run = begin(Tiny("r16", code=code), ALL_EXCEPTIONS, engine=engine)
    assert (run.vmcs["GUEST_RIP"], run.vmcs["GUEST_RSP"]) == (6, (STACK + 0x9000) & 0xFFFF)


def test_faults_of_a_near_return_that_releases_much(engine: str) -> None:
    wide = b"\x48\xb8" + pack("<Q", 1 << 47) + b"\x50"  # mov rax, 2^47; push rax
    code = wide + b"\xc2\xff\xff"
    assert ends(go(engine, "l64", code)) == (GP, 0, len(wide))
    fields = {"GUEST_RSP": ABSENT}
    assert ends(go(engine, "p32", b"\xc2\xff\xff", fields=fields)) == (PF, 0, 0)


def test_a_trap_behind_a_near_return_that_releases_much(engine: str) -> None:
    fields = {"GUEST_RFLAGS": 0x102, "GUEST_RIP": CODE + 4, "GUEST_RSP": STACK - 4}
    memory = {STACK - 4: pack("<I", CODE)}
    guest = Tiny("p32", code=bytes.fromhex("90909090c20080"), fields=fields, memory=memory)
    run = begin(guest, ALL_EXCEPTIONS, engine=engine)
    assert run.exit.interruption is not None
    assert (run.exit.interruption.vector, run.vmcs["GUEST_RIP"]) == (1, CODE)
    assert run.vmcs["GUEST_RSP"] == STACK + 0x8000


# Fast system calls.

STAR = CODE_64 << 32 | 0x33 << 48
LONG_MODE = 0xD00


def fast(engine: str, guest: Tiny, **registers: int) -> Run:
    processor, vmcs = prepare(guest, ALL_EXCEPTIONS, engine=engine)
    for name, value in registers.items():
        setattr(processor.registers, name, value)
    return launch(guest, processor, vmcs)


def test_syscall_and_sysret(engine: str) -> None:
    guest = Tiny("l64", ring=3, code=b"\x0f\x05", memory={TARGET: b"\x48\x0f\x07"})
    run = fast(engine, guest, star=STAR, lstar=TARGET, fmask=0x200)
    assert ends(run) == "VMCALL"
    assert run.vmcs["GUEST_RIP"] == CODE + 2
    assert run.processor.registers.rcx == CODE + 2


def test_syscall_without_sce(engine: str) -> None:
    guest = Tiny("l64", ring=3, code=b"\x0f\x05", fields={"GUEST_IA32_EFER": LONG_MODE})
    assert ends(fast(engine, guest, star=STAR, lstar=TARGET)) == (UD, None, 0)


@pytest.mark.parametrize("code", [b"\x0f\x05", b"\x0f\x07"], ids=["syscall", "sysret"])
@pytest.mark.parametrize("mode", ["r16", "p32", "pae"])
def test_syscall_and_sysret_are_for_64_bit_mode(mode: str, code: bytes, engine: str) -> None:
    run = begin(Tiny(mode, code=code), ALL_EXCEPTIONS, engine=engine)
    assert run.exit.interruption is not None
    assert run.exit.interruption.vector == UD
    assert run.vmcs["GUEST_RIP"] == (0 if mode == "r16" else CODE)


def test_sysret_to_a_non_canonical_address(engine: str) -> None:
    guest = Tiny("l64", code=b"\x48\xb9" + pack("<Q", 1 << 47) + b"\x48\x0f\x07")
    run = fast(engine, guest, star=STAR)
    assert ends(run) == (GP, 0, 10)
    assert run.vmcs["GUEST_CS_SELECTOR"] == CODE_64


@pytest.mark.parametrize("mode", ["p32", "l64"])
def test_sysenter_without_a_code_segment(engine: str, mode: str) -> None:
    assert ends(fast(engine, Tiny(mode, ring=3, code=b"\x0f\x34"))) == (GP, 0, 0)


def test_sysenter_and_sysexit(engine: str) -> None:
    # The GDT has a ring-3 code segment two places behind CODE_32.
    fields = {
        "GUEST_IA32_SYSENTER_CS": CODE_32,
        "GUEST_IA32_SYSENTER_EIP": TARGET,
        "GUEST_IA32_SYSENTER_ESP": STACK,
    }
    back = b"\xba" + pack("<I", CODE + 2) + b"\xb9" + pack("<I", USER_STACK) + b"\x0f\x35"
    guest = Tiny("p32", ring=3, code=b"\x0f\x34", memory={TARGET: back}, fields=fields)
    assert place(fast(engine, guest)) == (CODE + 2, CODE_32_USER, USER_STACK)


# Far transfers.


def far(selector: int, offset: int = TARGET) -> bytes:
    return pack("<IH", offset, selector)


@pytest.mark.parametrize("opcode", [b"\xea", b"\x9a"])
@pytest.mark.parametrize(
    ("selector", "fault"),
    [
        (0, (GP, 0, 0)),
        (DATA_0, (GP, DATA_0, 0)),
        (CODE_32_USER & ~3, (GP, CODE_32_USER & ~3, 0)),
        (BEYOND_GDT, (GP, BEYOND_GDT, 0)),
    ],
)
def test_far_transfers_that_fault(
    engine: str, opcode: bytes, selector: int, fault: tuple[int, int, int]
) -> None:
    run = go(engine, "p32", opcode + far(selector))
    assert ends(run) == fault
    assert run.vmcs["GUEST_RSP"] == STACK


def test_far_call_and_return(engine: str) -> None:
    run = go(engine, "p32", b"\x9a" + far(CODE_32), memory={TARGET: b"\xcb"})
    assert place(run) == (CODE + 7, CODE_32, STACK)


@pytest.mark.parametrize("opcode", [b"\xea", b"\x9a"])
@pytest.mark.parametrize("selector", [OTHER_TASK, TASK | 0])
def test_far_transfers_to_tasks(engine: str, opcode: bytes, selector: int) -> None:
    run = go(engine, "p32", opcode + far(selector))
    if selector == TASK:
        assert ends(run) == (GP, TASK, 0), "it is busy"
    else:
        assert run.exit.reason is ExitReason.TASK_SWITCH
        assert run.exit.qualification & 0xFFFF == OTHER_TASK


def test_iret_to_a_task(engine: str) -> None:
    run = go(engine, "p32", b"\xcf", fields={"GUEST_RFLAGS": 2 | NT})
    assert ends(run) == (TS, 0, 0)


def test_a_call_gate_to_ring_0_and_back(engine: str) -> None:
    made = gate("p32", 0, ring=3, kind=0xC)
    made = pack("<HHBB", TARGET & 0xFFFF, CODE_32, 2, made[5]) + pack("<H", TARGET >> 16)
    code = push_32(11, 22) + b"\x9a" + far(GATE | 3, 0)
    memory = {GDT + GATE: made, TARGET: VMCALL}
    run = go(engine, "p32", code, ring=3, memory=memory)
    assert run.vmcs["GUEST_CS_SELECTOR"] == CODE_32
    assert run.pushed(6) == [CODE + 17, CODE_32_USER, 22, 11, USER_STACK - 8, DATA_3]
    back = go(engine, "p32", code, ring=3, memory=memory | {TARGET: b"\xca\x08\x00"})
    assert place(back) == (CODE + 17, CODE_32_USER, USER_STACK)


# Loads of segment and system registers.


def test_ltr_of_nothing(engine: str) -> None:
    assert ends(go(engine, "p32", b"\x31\xc0\x0f\x00\xd8")) == (GP, 0, 2)


def test_ltr_and_lldt(engine: str) -> None:
    code = b"\xb8" + pack("<I", OTHER_TASK) + b"\x0f\x00\xd8"
    run = go(engine, "p32", code)
    assert run.vmcs["GUEST_TR_SELECTOR"] == OTHER_TASK
    assert run.processor.memory.read(GDT + OTHER_TASK + 5, 1) == b"\x8b"
    assert ends(go(engine, "p32", code + code[5:])) == (GP, OTHER_TASK, 8), "busy by now"
    ldt = {GDT + FREE: pack("<Q", descriptor(DATA, 0xFF, 0x82))}
    code = b"\xb8" + pack("<I", FREE) + b"\x0f\x00\xd0"
    assert go(engine, "p32", code, memory=ldt).vmcs["GUEST_LDTR_BASE"] == DATA


@pytest.mark.parametrize(
    ("register", "selector", "fault"),
    [
        (3, CODE_32_USER, None),
        (3, BEYOND_GDT, (GP, BEYOND_GDT, 5)),
        (3, TASK, (GP, TASK, 5)),
        (2, 0, (GP, 0, 5)),
        (2, DATA_3, (GP, DATA_3 & ~3, 5)),
        (2, 0x50, (SS, 0x50, 5)),
        (0, 0x48, (NP, 0x48, 5)),
    ],
)
def test_loads_of_segment_registers(
    engine: str, register: int, selector: int, fault: tuple[int, int, int] | None
) -> None:
    code = b"\xb8" + pack("<I", selector) + b"\x8e" + bytes([0xC0 | register << 3])
    assert ends(go(engine, "p32", code)) == (fault or "VMCALL")


@pytest.mark.parametrize(("field", "form"), [("GDTR", 0x14), ("IDTR", 0x1C)])
def test_descriptor_tables_at_a_non_canonical_base(engine: str, field: str, form: int) -> None:
    code = b"\x0f\x01" + bytes([form, 0x25]) + pack("<I", DATA)
    for base, fault in ((1 << 47, (GP, 0, 0)), (0x7FFF_1234_5000, "VMCALL")):
        run = go(engine, "l64", code, memory={DATA: pack("<HQ", 0x7F, base)})
        assert ends(run) == fault
        assert (run.vmcs[f"GUEST_{field}_BASE"] == base) == (fault == "VMCALL")


@pytest.mark.parametrize("rip", [1 << 47, (1 << 48) - 1, (1 << 64) - (1 << 48)])
def test_entry_where_bits_63_to_48_are_alike(engine: str, rip: int) -> None:
    """SDM, "Checks on Guest RIP, RFLAGS, and SSP": not canonical yet, so the fetch faults."""
    guest = Tiny("l64", fields={"GUEST_RIP": rip})
    done = begin(guest, {"EXCEPTION_BITMAP": 1 << 13}, engine=engine)
    assert done.exit.interruption is not None
    assert (done.exit.interruption.vector, done.exit.interruption.error_code) == (13, 0)
    assert done.vmcs["GUEST_RIP"] == rip
