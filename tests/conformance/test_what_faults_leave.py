"""An instruction that faults leaves everything as it was, and reports its fault as a whole.

What is expected here was seen on processors as well, by random programs of the host
(`host_state` compares what such programs leave).
"""

from struct import pack

import pytest

from tests.conformance.tiny_guest import (
    ABSENT,
    CODE,
    DATA,
    READ_ONLY,
    READABLE,
    STACK,
    TF,
    Run,
    Tiny,
    begin,
    handler,
)
from trapgate.sdm.vectors import AC, DB, GP, PF, SS, UD

pytestmark = pytest.mark.conformance

ENGINES = ("native", "portable")
EVERYTHING = {"EXCEPTION_BITMAP": 0xFFFFFFFF}
IMAGE = DATA + 0x200
"""What FXSAVE and FXRSTOR use, aligned."""
VALID = DATA + 0x400
FXRSTOR, FXSAVE = b"\x0f\xae\x0d" + pack("<I", IMAGE), b"\x0f\xae\x05" + pack("<I", VALID)


def met(run: Run) -> tuple[int, int | None, int] | str:
    """Vector, error code, and how far RIP is from the code, or the exit's reason."""
    event = run.exit.interruption
    if event is None:
        return run.exit.reason.name
    base = 0 if run.guest.long else run.vmcs["GUEST_CS_BASE"]
    return event.vector, event.error_code, base + run.vmcs["GUEST_RIP"] - CODE


def run(code: bytes, engine: str, mode: str = "p32", **more: object) -> Run:
    return begin(Tiny(mode, code=code, **more), EVERYTHING, engine=engine)  # type: ignore[arg-type]


def image_after(code: bytes, engine: str, handled: bytes = FXSAVE) -> bytes:
    """FXSAVE's image behind code that faults, from a handler that stores it."""
    fx = pack("<HHBx", 0x37F, 0x1800, 0).ljust(24, b"\0") + pack("<II", 0x1F80, 0xFFFF)
    fx += b"\x11" * 480
    guest = Tiny("p32", code=FXRSTOR + code, memory={IMAGE: fx}, registers={"rdi": ABSENT})
    guest.memory[handler(PF)] = handled + b"\x0f\x01\xc1"
    done = begin(guest, engine=engine)
    assert done.exit.reason.name == "VMCALL"
    return done.processor.memory.read(VALID, 512)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("code", ["0f6f07", "0f7f07", "0f600f", "0ffc07", "0f3800 07", "0f2a07"])
def test_mmx_that_faults_does_not_enter_the_state_of_mmx(code: str, engine: str) -> None:
    """SDM, "Effect of MMX Instructions on the x87 FPU Tag Word"."""
    left = image_after(bytes.fromhex(code), engine)
    assert (left[2:4], left[4]) == (b"\x00\x18", 0)
    assert left[32:42] == b"\x11" * 10


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("code", ["0f1047f8", "f30f6f47f8", "f20ff047f8", "660f1047f8"])
def test_a_load_of_16_bytes_that_faults_changes_no_half(code: str, engine: str) -> None:
    left = image_after(bytes.fromhex(code), engine)
    assert left[160:176] == b"\x11" * 16
    # With the page there, both halves are loaded.
    data = bytes(range(16))
    load = bytes.fromhex(code[:-4]) + b"\x47\x03"
    whole = run(load + FXSAVE, engine, memory={DATA + 3: data}, registers={"rdi": DATA})
    assert met(whole) == "VMCALL"
    assert whole.processor.memory.read(VALID + 160, 16) == data


@pytest.mark.parametrize("engine", ENGINES)
def test_punpckl_of_mmx_registers_loads_32_bits(engine: str) -> None:
    for opcode in (0x60, 0x61, 0x62):
        code = bytes([0x0F, opcode, 0x47, 0xFC])
        assert met(run(code, engine, registers={"rdi": ABSENT})) == "VMCALL"
        assert met(run(code[:3] + b"\xfd", engine, registers={"rdi": ABSENT}))[0] == PF


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("code", ["df27", "db2f", "df2f", "0f1007", "0fae0f"])
def test_the_address_of_a_fault_is_the_operands(code: str, engine: str) -> None:
    done = run(b"\x90" + bytes.fromhex(code), engine, registers={"rdi": ABSENT})
    assert met(done) == (PF, 0, 1)
    assert done.exit.qualification == ABSENT


AT_ONCE = {
    "add": "0107",
    "xchg": "8707",
    "inc": "ff07",
    "not": "f717",
    "neg byte": "f61f",
    "shl": "d127",
    "bts": "0fab07",
    "btr, constant": "0fba3705",
    "cmpxchg": "0fb107",
    "xadd": "0fc107",
    "shld": "0fa40703",
    "or, constant": "830f01",
}
"""Instructions that write what they read at [EDI]."""


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", AT_ONCE)
def test_what_will_be_written_is_checked_before_it_is_read(name: str, engine: str) -> None:
    """A segment that must not be written to is #GP, even where the page is not there."""
    code = bytes.fromhex(AT_ONCE[name])
    assert met(run(b"\x2e" + code, engine, registers={"rdi": ABSENT})) == (GP, 0, 0)
    fields = {"GUEST_ES_ACCESS_RIGHTS": 0xC091, "GUEST_ES_SELECTOR": READABLE}
    read_only = run(b"\x26" + code, engine, registers={"rdi": ABSENT}, fields=fields)
    assert met(read_only) == (GP, 0, 0)
    assert met(run(b"\x26" + code, engine, registers={"rdi": ABSENT})) == (PF, 2, 0)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", AT_ONCE)
def test_a_read_modify_write_reports_a_write_wherever_it_stands(name: str, engine: str) -> None:
    code = bytes.fromhex(AT_ONCE[name])
    for prefixes in (b"", b"\x3e" * 7, b"\x3e\x66\x66\x3e\x36\x3e"):
        whole = prefixes + code
        # The last instruction that fits before a page which cannot be fetched.
        start = ABSENT - len(whole)
        fields = {"GUEST_RIP": start}
        done = run(
            b"", engine, memory={start: whole}, registers={"rdi": ABSENT + 64}, fields=fields
        )
        assert met(done) == (PF, 2, start - CODE)
    misplaced = run(b"\x48\x3e" + code, engine, "l64", registers={"rdi": ABSENT + 64})
    assert met(misplaced) == (PF, 2, 0)


# ENTER.


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("mode", "word"), [("p32", 4), ("l64", 8)])
def test_enter_demands_that_its_stack_can_be_written_to(mode: str, word: int, engine: str) -> None:
    for level in (0, 1, 3):
        top = READ_ONLY + 0x1000 + 0x800
        fields = {"GUEST_RSP": top}
        registers = {"rbp": DATA + 0x800}
        fits = 0x800 - word * (level + 1)
        for size, expected in ((fits, "VMCALL"), (fits + 1, (PF, 3, 1))):
            code = b"\x90\xc8" + pack("<HB", size, level)
            done = run(code, engine, mode, fields=fields, registers=registers)
            assert met(done) == expected
            if expected != "VMCALL":
                assert done.exit.qualification == READ_ONLY + 0xFFF
                assert done.vmcs["GUEST_RSP"] == top
                assert done.processor.registers.rbp == DATA + 0x800


@pytest.mark.parametrize("engine", ENGINES)
def test_enter_demands_that_its_stack_is_within_the_segment(engine: str) -> None:
    fields = {"GUEST_SS_ACCESS_RIGHTS": 0x4097, "GUEST_SS_LIMIT": STACK - 0x101}
    assert met(run(b"\xc8\xfc\x00\x00", engine, fields=fields)) == "VMCALL"
    assert met(run(b"\xc8\xfd\x00\x00", engine, fields=fields)) == (SS, 0, 0)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("mode", "code", "rbp"),
    [
        ("l64", "66c8100000", 0x1234_5678_0000 | (STACK - 2) & 0xFFFF),
        ("l64", "6648c8100000", STACK - 8),
        ("l64", "c8100000", STACK - 8),
        ("p32", "66c8100000", 0x5678_0000 | (STACK - 2) & 0xFFFF),
        ("p32", "c8100000", STACK - 4),
        ("r16", "c8100000", 0x5678_0000 | (STACK - 2) & 0xFFFF),
        ("r16", "66c8100000", STACK - 4),
    ],
)
def test_enter_writes_as_much_of_rbp_as_its_operand_has(
    mode: str, code: str, rbp: int, engine: str
) -> None:
    old = 0x1234_5678_9ABC if mode == "l64" else 0x5678_9ABC
    done = run(bytes.fromhex(code), engine, mode, registers={"rbp": old})
    assert met(done) == "VMCALL"
    assert done.processor.registers.rbp == rbp


# Alignment.


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("code", "vector"),
    [("0f284701", GP), ("660f585f01", GP), ("0f104701", AC), ("8b4701", AC), ("0f0157 01", GP)],
)
def test_alignment_by_itself_comes_before_alignment_checks(
    code: str, vector: int, engine: str
) -> None:
    """SDM, "Alignment Check Exception (#AC)"; LGDT is not for ring 3."""
    for mode in ("p32", "l64"):
        guest = Tiny(mode, ring=3, code=bytes.fromhex(code), registers={"rdi": DATA})
        guest.fields = {"GUEST_RFLAGS": 1 << 18 | 2, "GUEST_CR0": 0x80050031}
        assert met(begin(guest, EVERYTHING, engine=engine)) == (vector, 0, 0)


# Near branches.


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("branch", ["0f85", "0f80", "e9"])
def test_branches_wrap_at_4_gb(branch: str, engine: str) -> None:
    """Jumping back beyond address 0 leads to the end of memory."""
    code = bytes.fromhex(branch)
    distance = 0xF000_0010 - CODE - len(code) - 4
    fields = {"GUEST_RFLAGS": 0x802}
    done = run(code + pack("<I", distance & 0xFFFFFFFF), engine, fields=fields)
    event = done.exit.interruption
    assert event is not None
    assert event.vector == PF
    assert done.vmcs["GUEST_RIP"] == done.exit.qualification == 0xF000_0010


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("flags", [2, 2 | 1 << 16, 2 | TF])
def test_a_branch_that_is_not_taken_is_not_at_fault(flags: int, engine: str) -> None:
    """What follows lies beyond the limit, and faults where it would be fetched."""
    for code, ends in (("740e", 2), ("0f840010", 4), ("e30e", 2), ("750e", 0), ("0f850010", 0)):
        whole = bytes.fromhex(code)
        fields = {
            "GUEST_CS_ACCESS_RIGHTS": 0x9B,
            "GUEST_CS_BASE": CODE,
            "GUEST_CS_LIMIT": len(whole) - 1,
            "GUEST_RIP": 0,
            "GUEST_RFLAGS": flags,
        }
        done = run(whole, engine, fields=fields, registers={"rcx": 1})
        if flags & TF and ends:
            assert met(done) == (DB, None, ends), code
        else:
            assert met(done) == (GP, 0, ends), code


# Fetching.


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "code",
    [
        "0fb9870000 0000",  # UD1 with an operand
        "f0 90",  # LOCK
        "f0 0f58 8700000000",
        "f2 0f3801 07",
        "0f0115 00100100",  # LGDT, which the core carries out
        "0fae3d 00100100",  # CLFLUSH
    ],
)
def test_all_bytes_are_fetched_before_an_instruction_is_undefined(code: str, engine: str) -> None:
    """SDM, "UD - Undefined Instruction", and "Priority Among Concurrent Events"."""
    whole = bytes.fromhex(code)
    for present in range(1, len(whole) + 1):
        start = ABSENT - present
        fields = {"GUEST_RIP": start}
        done = run(b"", engine, memory={start: whole[:present]}, fields=fields)
        event = done.exit.interruption
        assert event is not None
        if present < len(whole):
            assert (event.vector, done.exit.qualification) == (PF, ABSENT)
        elif whole[:2] in (b"\x0f\x01", b"\x0f\xae"):
            assert done.vmcs["GUEST_RIP"] == ABSENT
        else:
            assert event.vector == UD
        limited = {
            "GUEST_CS_LIMIT": CODE + present - 1,
            "GUEST_CS_ACCESS_RIGHTS": 0x409B,
        }
        if present < len(whole):
            assert met(run(whole, engine, fields=limited)) == (GP, 0, 0)
