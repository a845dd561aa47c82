"""Single instructions that a translator gets wrong: what faults first, what blocks.

SDM, volume 2, the instructions' pages; volume 3, "Interrupt 6 - Invalid Opcode Exception (#UD)",
"Masking Exceptions and Interrupts When Switching Stacks", "Debug Exceptions".
"""

from struct import pack

import pytest

from tests.conformance.tiny_guest import (
    BEYOND_GDT,
    CODE,
    CODE_32,
    DATA,
    GDT,
    HANDLERS,
    IF,
    MODES,
    OTHER_TASK,
    OTHER_TSS,
    RF,
    STACK,
    TF,
    Run,
    Tiny,
    begin,
    descriptor,
    handler,
    launch,
    prepare,
)
from trapgate.sdm import controls as ct
from trapgate.sdm.reasons import ExitReason
from trapgate.sdm.vectors import DB, GP, NP, SS, UD

pytestmark = pytest.mark.conformance

ENGINES = ("native", "portable")
EVERYTHING = {"EXCEPTION_BITMAP": 0xFFFFFFFF}
PRIMARY = "PRIMARY_PROCESSOR_BASED_CONTROLS"
AT_DATA = pack("<I", DATA)


def met(run: Run) -> tuple[int, int | None, int] | str:
    """Vector, error code and offset in the code of the exception that exited, or its reason."""
    event = run.exit.interruption
    if event is None:
        return run.exit.reason.name
    start = CODE if run.guest.mode != "r16" else 0
    return event.vector, event.error_code, run.vmcs["GUEST_RIP"] - start


def meets(guest: Tiny, engine: str, **controls: int) -> tuple[int, int | None, int] | str:
    return met(begin(guest, EVERYTHING | controls, engine=engine))


# Segment overrides in 64-bit mode.

NOT_CANONICAL = 1 << 63


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("override", [b"", b"\x26", b"\x2e", b"\x36", b"\x3e"])
@pytest.mark.parametrize(("base", "vector"), [("rbp", SS), ("rbx", GP)])
def test_overrides_mean_nothing_in_64_bit_mode(
    base: str, vector: int, override: bytes, engine: str
) -> None:
    modrm = b"\x45\x00" if base == "rbp" else b"\x43\x00"
    code = override + b"\x48\x8b" + modrm
    assert meets(Tiny("l64", code=code, registers={base: NOT_CANONICAL}), engine) == (vector, 0, 0)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_override_of_fs_makes_it_a_general_protection(engine: str) -> None:
    code = b"\x64\x48\x8b\x45\x00"
    assert meets(Tiny("l64", code=code, registers={"rbp": NOT_CANONICAL}), engine) == (GP, 0, 0)


# Table registers.

LGDT, LIDT, LLDT, LTR = b"\x0f\x01\x10", b"\x0f\x01\x18", b"\x0f\x00\xd0", b"\x0f\x00\xd8"
LDT, BUSY, ABSENT_LDT = 0x68, 0x70, 0x78


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("code", [LGDT, LIDT])
@pytest.mark.parametrize(
    ("base", "expected"),
    [(0xFFFF_8000_0000_0000, "VMCALL"), (0x00AA_AAAA_AAAA_AAAA, (GP, 0, 0)), (0x1000, "VMCALL")],
)
def test_the_base_of_a_table_is_canonical(
    code: bytes, base: int, expected: object, engine: str
) -> None:
    memory = {DATA: pack("<HQ", 0x7F, base)}
    run = begin(
        Tiny("l64", code=code, memory=memory, registers={"rax": DATA}), EVERYTHING, engine=engine
    )
    assert met(run) == expected
    name = "GDTR" if code == LGDT else "IDTR"
    loaded = (run.vmcs[f"GUEST_{name}_LIMIT"], run.vmcs[f"GUEST_{name}_BASE"])
    assert (loaded == (0x7F, base)) == (expected == "VMCALL")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("mode", "prefix"), [("r16", b""), ("p32", b"\x66")])
def test_a_16_bit_load_takes_24_bits_of_base(mode: str, prefix: bytes, engine: str) -> None:
    rm = b"\x17" if mode == "r16" else b"\x10"
    memory = {0x900 if mode == "r16" else DATA: pack("<HI", 0x123, 0xAB10_0000)}
    guest = Tiny(mode, 0, prefix + b"\x0f\x01" + rm, memory)
    guest.registers = {"rbx": 0x900, "rax": DATA}
    run = begin(guest, EVERYTHING, engine=engine)
    assert met(run) == "VMCALL"
    assert (run.vmcs["GUEST_GDTR_LIMIT"], run.vmcs["GUEST_GDTR_BASE"]) == (0x123, 0x10_0000)


def test_the_operand_of_lgdt_is_checked_against_the_limit() -> None:
    for engine in ENGINES:
        guest = Tiny("r16", code=b"\x0f\x01\x17", registers={"rbx": 0xFFFB})
        assert meets(guest, engine) == (GP, None, 0)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("mode", ["p32", "pae"])
@pytest.mark.parametrize(
    ("code", "selector", "expected"),
    [
        (LTR, 0, (GP, 0, 0)),
        (LTR, 3, (GP, 0, 0)),
        (LTR, OTHER_TASK, "VMCALL"),
        (LTR, OTHER_TASK | 4, (GP, OTHER_TASK | 4, 0)),
        (LTR, BUSY, (GP, BUSY, 0)),
        (LTR, BEYOND_GDT, (GP, BEYOND_GDT, 0)),
        (LTR, CODE_32, (GP, CODE_32, 0)),
        (LLDT, 0, "VMCALL"),
        (LLDT, LDT, "VMCALL"),
        (LLDT, ABSENT_LDT, (NP, ABSENT_LDT, 0)),
        (LLDT, OTHER_TASK, (GP, OTHER_TASK, 0)),
    ],
)
def test_loads_of_system_segments(
    code: bytes, selector: int, expected: object, mode: str, engine: str
) -> None:
    memory = {
        GDT + LDT: pack("<Q", descriptor(DATA, 0x3F, 0x82)),
        GDT + BUSY: pack("<Q", descriptor(OTHER_TSS, 0x67, 0x8B)),
        GDT + ABSENT_LDT: pack("<Q", descriptor(DATA, 0x3F, 0x02)),
    }
    run = begin(Tiny(mode, 0, code, memory, registers={"rax": selector}), EVERYTHING, engine=engine)
    assert met(run) == expected
    name = "TR" if code == LTR else "LDTR"
    if expected == "VMCALL":
        assert run.vmcs[f"GUEST_{name}_SELECTOR"] == selector
    if code == LTR and expected == "VMCALL":
        assert run.vmcs["GUEST_TR_BASE"] == OTHER_TSS
        assert run.processor.memory.read(GDT + OTHER_TASK + 5, 1) == b"\x8b"


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("upper", "expected"),
    [
        (0, "VMCALL"),
        (0xFFFF_8000, "VMCALL"),
        (0x8000, (GP, OTHER_TASK, 0)),
        (9 << 40, (GP, OTHER_TASK, 0)),
    ],
)
def test_ltr_in_64_bit_mode(upper: int, expected: object, engine: str) -> None:
    memory = {GDT + OTHER_TASK + 8: pack("<Q", upper)}
    guest = Tiny("l64", 0, LTR, memory, registers={"rax": OTHER_TASK})
    run = begin(guest, EVERYTHING, engine=engine)
    assert met(run) == expected
    if expected == "VMCALL":
        assert run.vmcs["GUEST_TR_BASE"] == OTHER_TSS | upper << 32


@pytest.mark.parametrize("engine", ENGINES)
def test_system_segments_and_modes_and_rings(engine: str) -> None:
    assert meets(Tiny("r16", code=LTR), engine) == (UD, None, 0)
    assert meets(Tiny("p32", 3, LTR), engine) == (GP, 0, 0)
    assert meets(Tiny("l64", 3, LGDT), engine) == (GP, 0, 0)


# MOV CR and MOV DR above ring 0.

MOV_DR_EXITING = {PRIMARY: ct.PRIMARY_MOV_DR_EXITING}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("ring", [0, 3])
@pytest.mark.parametrize("opcode", ["20", "22"])
@pytest.mark.parametrize(("number", "defined"), [(0, True), (1, False), (3, True), (7, False)])
def test_control_registers_that_are_none(
    opcode: str, number: int, defined: bool, ring: int, engine: str
) -> None:
    if ring == 0 and defined:
        return
    code = bytes.fromhex("0f" + opcode) + bytes([0xC0 | number << 3])
    for mode in ("p32", "l64"):
        assert meets(Tiny(mode, ring, code), engine) == ((GP, 0, 0) if defined else (UD, None, 0))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("ring", [0, 3])
@pytest.mark.parametrize("opcode", ["21", "23"])
def test_mov_dr_exits_before_its_privilege_is_looked_at(
    opcode: str, ring: int, engine: str
) -> None:
    code = bytes.fromhex("0f" + opcode + "c8")
    for mode in ("p32", "l64"):
        run = begin(Tiny(mode, ring, code), EVERYTHING | MOV_DR_EXITING, engine=engine)
        assert run.exit.reason is ExitReason.MOV_DR
        assert run.exit.qualification == 1 | (opcode == "21") << 4
        assert run.exit.instruction_length == 3


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("ring", [0, 3])
def test_debug_registers_that_are_none(ring: int, engine: str) -> None:
    with_de = {"GUEST_CR4": Tiny("l64").state()["GUEST_CR4"] | 8}
    dr4, dr8 = b"\x0f\x21\xe0", b"\x44\x0f\x21\xc0"
    assert meets(Tiny("l64", ring, dr4, fields=with_de), engine) == (UD, None, 0)
    assert meets(Tiny("l64", ring, dr4, fields=with_de), engine, **MOV_DR_EXITING) == "MOV_DR"
    assert meets(Tiny("l64", ring, dr8), engine, **MOV_DR_EXITING) == (UD, None, 0)
    assert meets(Tiny("l64", 3, dr4), engine) == (GP, 0, 0)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("mode", ["p32", "l64"])
def test_general_detect_counts_from_the_next_instruction_on(mode: str, engine: str) -> None:
    load = b"\xb8" + pack("<I", 0x2400) + b"\x0f\x23\xf8"  # mov eax, GD; mov dr7, eax
    run = begin(Tiny(mode, code=load + b"\x0f\x23\xc0"), EVERYTHING, engine=engine)
    assert met(run) == (DB, None, len(load))
    assert run.exit.qualification == 1 << 13


# PUSHF and RF.


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("mode", MODES)
def test_the_image_of_pushf_has_no_rf(mode: str, engine: str) -> None:
    fields = {"GUEST_RFLAGS": 2 | RF}
    run = begin(Tiny(mode, code=b"\x9c", fields=fields), engine=engine)
    assert run.exit.reason is ExitReason.VMCALL
    assert run.pushed(1) == [2]


def iret_frame(mode: str, flags: int, to: int) -> dict[int, bytes]:
    """A frame at `STACK - 0x80` that returns to `to` with `flags`."""
    words = (to, 0x38 if mode == "l64" else 0x08, flags, STACK, 0x10)
    return {STACK - 0x80: b"".join(w.to_bytes(8 if mode == "l64" else 4, "little") for w in words)}


def iret_guest(mode: str, flags: int, code: bytes, **registers: int) -> Tiny:
    """IRET with `flags` to `code`."""
    iret = b"\x48\xcf" if mode == "l64" else b"\xcf"
    guest = Tiny(mode, code=iret + code, memory=iret_frame(mode, flags, CODE + len(iret)))
    guest.fields["GUEST_RSP"] = STACK - 0x80
    guest.registers = registers
    return guest


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("mode", ["p32", "l64"])
def test_rf_holds_for_one_instruction(mode: str, engine: str) -> None:
    start = CODE + (2 if mode == "l64" else 1)
    # Breakpoints at both: that of the first instruction is suppressed.
    guest = iret_guest(mode, 2 | RF, b"\x90\x9c\xf4", dr0=start, dr1=start + 1)
    guest.fields["GUEST_DR7"] = 0x400 | 2 | 8
    run = begin(guest, EVERYTHING, engine=engine)
    assert run.exit.interruption is not None
    assert run.exit.qualification == 2
    assert run.vmcs["GUEST_RIP"] == start + 1


@pytest.mark.parametrize("engine", ENGINES)
def test_a_vm_exit_of_an_instruction_saves_no_rf(engine: str) -> None:
    fields = {"GUEST_RFLAGS": 2 | RF}
    run = begin(Tiny("p32", code=b"\x0f\xa2", fields=fields), engine=engine)
    assert run.exit.reason is ExitReason.CPUID
    assert run.vmcs["GUEST_RFLAGS"] & RF == 0


# Shadows of STI and MOV SS.

STI, MOV_SS, POP_SS, PUSH_SS = b"\xfb", b"\x8e\xd0", b"\x17", b"\x16"
LOADS = {"mov": b"\xb8\x10\x00\x00\x00" + MOV_SS, "pop": PUSH_SS + POP_SS}


def interrupted_at(code: bytes, flags: int, engine: str, mode: str = "p32") -> int:
    """Where in the code an interrupt that waits from the start is delivered."""
    processor, vmcs = prepare(
        Tiny(mode, code=code, fields={"GUEST_RFLAGS": flags}, registers={"rax": 0x10}),
        engine=engine,
    )
    processor.interrupt(0x30)
    run = launch(Tiny(mode), processor, vmcs)
    assert run.exit.reason is ExitReason.VMCALL
    assert vmcs["GUEST_RIP"] == handler(0x30)
    return run.pushed(1)[0] - CODE


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("code", "flags", "offset"),
    [
        (b"\x90\x90", 2 | IF, 0),
        (STI + b"\x90\x90", 2, 2),
        (STI + MOV_SS + b"\x90\x90", 2, 4),
        (b"\x90" + STI + MOV_SS + b"\x89\xe4\x90", 2, 6),
        (MOV_SS + STI + b"\x90\x90", 2, 4),
        (STI + STI + b"\x90", 2, 2),
        (STI + PUSH_SS + POP_SS + b"\x90\x90", 2, 2),
    ],
)
def test_where_an_interrupt_is_delivered(code: bytes, flags: int, offset: int, engine: str) -> None:
    assert interrupted_at(code, flags, engine) == offset


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("mode", ["p32", "l64"])
@pytest.mark.parametrize(
    ("code", "flags", "blocking"),
    [
        (b"\x90", 2, 0),
        (STI, 2, 1),
        (STI, 2 | IF, 0),
        (MOV_SS, 2, 2),
        (MOV_SS, 2 | IF, 2),
        (STI + MOV_SS, 2, 2),
        (MOV_SS + STI, 2, 1),
        (STI + b"\x90", 2, 0),
        # A MOV SS whose last byte is that of STI.
        (b"\x8e\x15" + pack("<I", DATA), 2, 2),
    ],
)
def test_what_blocks_at_a_vm_exit(
    code: bytes, flags: int, blocking: int, mode: str, engine: str
) -> None:
    guest = Tiny(mode, code=code, fields={"GUEST_RFLAGS": flags}, registers={"rax": 0x10})
    if code[:2] == b"\x8e\x15":
        address = DATA if mode == "p32" else DATA + CODE + len(code)
        guest.memory = {address: b"\x10\x00"}
    run = begin(guest, engine=engine)
    assert run.exit.reason is ExitReason.VMCALL
    assert run.vmcs["GUEST_INTERRUPTIBILITY_STATE"] == blocking


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("load", LOADS)
def test_a_breakpoint_behind_a_load_of_ss_is_suppressed(load: str, engine: str) -> None:
    code = LOADS[load]
    guest = Tiny("p32", code=code + b"\x90\x90")
    guest.registers = {"dr0": CODE + len(code), "dr1": CODE + len(code) + 1}
    guest.fields["GUEST_DR7"] = 0x400 | 2 | 8
    run = begin(guest, EVERYTHING, engine=engine)
    assert met(run) == (DB, None, len(code) + 1)
    assert run.exit.qualification == 2


@pytest.mark.parametrize("engine", ENGINES)
def test_a_breakpoint_behind_sti_is_not(engine: str) -> None:
    guest = Tiny("p32", code=STI + b"\x90", registers={"dr0": CODE + 1})
    guest.fields["GUEST_DR7"] = 0x400 | 2
    assert meets(guest, engine) == (DB, None, 1)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("watches", [False, True])
def test_push_ss_traps_as_other_pushes(watches: bool, engine: str) -> None:
    for mode in ("r16", "p32"):
        guest = Tiny(mode, code=PUSH_SS, fields={"GUEST_RFLAGS": 2 | TF})
        if watches:
            # A data breakpoint elsewhere makes every instruction a step of its own.
            guest.fields["GUEST_DR7"] = 0x400 | 2 | 1 << 16
            guest.registers = {"dr0": HANDLERS - 0x100}
        run = begin(guest, EVERYTHING, engine=engine)
        assert met(run) == (DB, None, 1)
        assert run.exit.qualification == 1 << 14


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("watches", [False, True])
def test_a_load_of_ss_holds_the_trap_back(watches: bool, engine: str) -> None:
    guest = Tiny("p32", code=MOV_SS + b"\x90", registers={"rax": 0x10})
    guest.fields["GUEST_RFLAGS"] = 2 | TF
    if watches:
        guest.fields["GUEST_DR7"] = 0x400 | 2 | 1 << 16
        guest.registers["dr0"] = HANDLERS - 0x100
    run = begin(guest, EVERYTHING, engine=engine)
    assert met(run) == (DB, None, 3)
