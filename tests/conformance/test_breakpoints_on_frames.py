"""Data breakpoints on what event delivery and far calls push: a trap before what comes next.

SDM, "Data Memory and I/O Breakpoint Exception Conditions": the trap comes behind the access, here
between the delivery and the handler's first instruction, and before what the VMX-preemption timer
or an interrupt would do ("Priority Among Concurrent Events").
"""

from struct import pack

import pytest

from tests.conformance.tiny_guest import (
    CODE,
    CODE_32,
    CODE_32_USER,
    DATA,
    DATA_0,
    DATA_3,
    GDT,
    IDT,
    IF,
    IST_STACK,
    STACK,
    USER_STACK,
    VMCALL,
    Run,
    Tiny,
    begin,
    gate,
    handler,
)
from trapgate.sdm import controls as ct
from trapgate.sdm.reasons import ExitReason
from trapgate.sdm.vectors import BP, DB, GP, UD

pytestmark = pytest.mark.conformance

ENGINES = ("native", "portable")
both_engines = pytest.mark.parametrize("engine", ENGINES)
UD2 = b"\x0f\x0b"
WATCH_DB = {"EXCEPTION_BITMAP": 1 << DB}
PENDING = "GUEST_PENDING_DEBUG_EXCEPTIONS"
WRITE, ACCESS = 1, 3
LENGTHS = {1: 0, 2: 1, 4: 3, 8: 2}


def dr7(*watched: tuple[int, int]) -> int:
    """Breakpoints 0, 1 ... enabled, each of a kind and a length."""
    value = 0x400
    for n, (kind, length) in enumerate(watched):
        value |= 2 << 2 * n | (kind | LENGTHS[length] << 2) << 16 + 4 * n
    return value


def watching(mode: str, code: bytes, *addresses: int, ring: int = 0, size: int = 0) -> Tiny:
    """A guest that watches words (or `size` bytes) at these linear addresses for writes."""
    guest = Tiny(mode, ring=ring, code=code)
    guest.registers = {f"dr{n}": address for n, address in enumerate(addresses)}
    guest.fields = {"GUEST_DR7": dr7(*[(WRITE, size or guest.word)] * len(addresses))}
    return guest


def vector_of(run: Run) -> int | None:
    """The vector of the event that has exited."""
    event = run.exit.interruption
    return None if event is None else event.vector


def first_word(mode: str) -> Tiny:
    """UD2, whose frame begins with a word that is watched."""
    return watching(mode, UD2, STACK - {"r16": 2, "l64": 8}.get(mode, 4))


@both_engines
@pytest.mark.parametrize("mode", ["r16", "p32", "pae", "l64"])
def test_the_trap_comes_before_the_handler(mode: str, engine: str) -> None:
    run = begin(first_word(mode), WATCH_DB, engine=engine)
    assert run.exit.reason is ExitReason.EXCEPTION_OR_NMI
    assert vector_of(run) == DB
    assert run.exit.qualification == 1
    assert run.exit.idt_vectoring is None
    assert run.vmcs["GUEST_RIP"] == handler(UD)
    assert run.vmcs[PENDING] == 0


@both_engines
@pytest.mark.parametrize("mode", ["p32", "l64"])
def test_the_guest_gets_the_trap(mode: str, engine: str) -> None:
    run = begin(first_word(mode), engine=engine)
    assert run.vmcs["GUEST_RIP"] == handler(DB)
    assert run.pushed(1) == [handler(UD)]
    assert run.processor.registers.dr6 & 0xF == 1


@both_engines
@pytest.mark.parametrize("words", range(1, 7))
def test_each_word_of_a_frame_from_ring_3(words: int, engine: str) -> None:
    """#GP with its error code: SS, ESP, EFLAGS, CS, EIP and the code on the stack of ring 0."""
    guest = watching("p32", b"\xfa", STACK - 4 * words, ring=3)
    run = begin(guest, WATCH_DB, engine=engine)
    assert vector_of(run) == DB
    assert run.vmcs["GUEST_RIP"] == handler(GP)


@both_engines
@pytest.mark.parametrize("around", [-28, 0])
def test_what_lies_around_the_frame_is_not_met(around: int, engine: str) -> None:
    run = begin(watching("p32", b"\xfa", STACK + around, ring=3), WATCH_DB, engine=engine)
    assert run.exit.reason is ExitReason.VMCALL
    assert run.vmcs["GUEST_RIP"] == handler(GP)


@both_engines
def test_a_frame_across_the_top_of_a_16_bit_stack(engine: str) -> None:
    guest = watching("r16", UD2, 0xFFFE)
    guest.fields["GUEST_RSP"] = 2
    run = begin(guest, WATCH_DB, engine=engine)
    assert vector_of(run) == DB
    assert run.vmcs["GUEST_RSP"] == 0xFFFC


@both_engines
def test_no_trap_where_no_write_is_watched(engine: str) -> None:
    guest = watching("p32", UD2, STACK - 4)
    guest.fields["GUEST_DR7"] = dr7((WRITE, 4)) & ~2
    assert begin(guest, WATCH_DB, engine=engine).exit.reason is ExitReason.VMCALL
    guest.fields["GUEST_DR7"] = 0x400 | 2
    assert begin(guest, WATCH_DB, engine=engine).exit.reason is ExitReason.VMCALL


@both_engines
def test_the_traps_own_frame_is_met_too(engine: str) -> None:
    guest = watching("p32", UD2, STACK - 4, STACK - 16, STACK - 28)
    run = begin(guest, engine=engine)
    assert run.vmcs["GUEST_RIP"] == handler(DB)
    assert run.vmcs["GUEST_RSP"] == STACK - 4 * 12
    assert [run.pushed(9)[n] for n in (0, 3, 6)] == [handler(DB), handler(DB), handler(UD)]
    assert run.processor.registers.dr6 & 0xF == 4


@both_engines
def test_a_frame_that_is_always_in_the_same_place_never_ends(engine: str) -> None:
    """Each #DB starts at the top of its IST stack: only the timer gets the guest out of that."""
    guest = watching("l64", UD2, STACK - 8)
    guest.memory[IDT + 16 * DB] = gate("l64", DB, ist=1)
    guest.registers["dr1"] = IST_STACK - 8
    guest.fields["GUEST_DR7"] = dr7((WRITE, 8), (WRITE, 8))
    run = begin(guest, engine=engine)
    assert run.exit.reason is ExitReason.PREEMPTION_TIMER
    assert run.vmcs["GUEST_RIP"] == handler(DB)
    assert run.vmcs[PENDING] == 0x1002


# Events of a VMM.


def injection(vector: int, kind: int, *, code: int | None = None) -> dict[str, int]:
    """Fields for a VM entry with an event."""
    word = 1 << 31 | kind << 8 | vector | (code is not None) << 11
    return {
        "VM_ENTRY_INTERRUPTION_INFORMATION": word,
        "VM_ENTRY_EXCEPTION_ERROR_CODE": code or 0,
        "VM_ENTRY_INSTRUCTION_LENGTH": 2,
        "GUEST_RFLAGS": 2 | IF,
    }


INJECTED = {
    "interrupt": (0x31, 0, None),
    "nmi": (2, 2, None),
    "fault": (GP, 3, 0x18),
    "int n": (0x31, 4, None),
    "int3": (BP, 6, None),
}


@both_engines
@pytest.mark.parametrize("name", INJECTED)
def test_the_frame_of_an_injected_event(name: str, engine: str) -> None:
    vector, kind, code = INJECTED[name]
    guest = watching("p32", b"\x90", STACK - 4)
    guest.fields |= injection(vector, kind, code=code)
    run = begin(guest, WATCH_DB, engine=engine)
    assert vector_of(run) == DB
    assert run.exit.idt_vectoring is None
    assert run.vmcs["GUEST_RIP"] == handler(vector)


@both_engines
def test_the_monitor_trap_flag_exits_first(engine: str) -> None:
    guest = watching("p32", UD2, STACK - 4)
    guest.fields |= injection(0x31, 0)
    trapped = {"PRIMARY_PROCESSOR_BASED_CONTROLS": ct.PRIMARY_MONITOR_TRAP_FLAG}
    run = begin(guest, WATCH_DB | trapped, engine=engine)
    assert run.exit.reason is ExitReason.MONITOR_TRAP_FLAG
    assert run.vmcs["GUEST_RIP"] == handler(0x31)
    assert run.vmcs[PENDING] == 0x1001
    run.resume()
    assert vector_of(run) == DB
    assert run.vmcs["GUEST_RIP"] == handler(0x31)


@both_engines
def test_the_monitor_trap_flag_exits_first_behind_a_fault(engine: str) -> None:
    trapped = {"PRIMARY_PROCESSOR_BASED_CONTROLS": ct.PRIMARY_MONITOR_TRAP_FLAG}
    run = begin(watching("p32", UD2, STACK - 4), WATCH_DB | trapped, engine=engine)
    assert run.exit.reason is ExitReason.MONITOR_TRAP_FLAG
    assert (run.vmcs["GUEST_RIP"], run.vmcs[PENDING]) == (handler(UD), 0x1001)


@both_engines
def test_a_delivery_that_exits_has_pushed_nothing(engine: str) -> None:
    """INT 31H, whose gate is absent, and #NP exits."""
    guest = watching("p32", b"\xcd\x31", STACK - 4)
    guest.memory[IDT + 8 * 0x31 + 5] = b"\x6e"
    run = begin(guest, {"EXCEPTION_BITMAP": 1 << 11 | 1 << DB}, engine=engine)
    assert vector_of(run) == 11
    assert run.exit.idt_vectoring is not None
    assert run.exit.idt_vectoring.vector == 0x31
    assert run.vmcs[PENDING] == 0


@both_engines
def test_mov_ss_and_the_frame_make_one_trap(engine: str) -> None:
    guest = watching("p32", b"\x8e\x17\xcd\x31", STACK - 4, DATA)  # mov ss, [edi]; int 31H
    guest.fields["GUEST_DR7"] = dr7((WRITE, 4), (ACCESS, 2))
    guest.memory[DATA] = pack("<I", DATA_0)
    guest.registers["rdi"] = DATA
    run = begin(guest, WATCH_DB, engine=engine)
    assert run.exit.qualification == 3
    assert run.vmcs["GUEST_RIP"] == handler(0x31)


# Far calls.

CALL_GATE, INNER_CODE = 0x68, CODE + 0x100


def through_gate(mode: str, words: int = 0) -> Tiny:
    """Ring 3 calls ring 0 through a gate that copies `words` parameters."""
    target = 0x38 if mode == "l64" else CODE_32
    rights = 0xEC << 40
    value = INNER_CODE & 0xFFFF | (INNER_CODE >> 16) << 48 | target << 16 | words << 32 | rights
    if mode == "l64":
        # In 64-bit mode the pointer lies in memory.
        code = b"\xff\x1c\x25" + pack("<I", DATA)
    else:
        code = b"\x9a" + pack("<IH", 0, CALL_GATE | 3)
    guest = Tiny(mode, ring=3, code=code)
    guest.memory = {
        GDT + CALL_GATE: pack("<QQ", value, 0),
        DATA: pack("<IH", 0, CALL_GATE | 3),
        INNER_CODE: VMCALL,
    }
    return guest


@both_engines
@pytest.mark.parametrize(("mode", "frame"), [("p32", 6), ("l64", 4)])
def test_the_frame_of_a_call_to_an_inner_ring(mode: str, frame: int, engine: str) -> None:
    for word in range(1, frame + 2):
        guest = through_gate(mode, words=2 if mode == "p32" else 0)
        guest.registers = {"dr0": STACK - guest.word * word}
        guest.fields["GUEST_DR7"] = dr7((WRITE, guest.word))
        run = begin(guest, WATCH_DB, engine=engine)
        assert run.vmcs["GUEST_RIP"] == INNER_CODE
        assert (vector_of(run) == DB) == (word <= frame)


@both_engines
@pytest.mark.parametrize(("offset", "kind", "met"), [(0, 3, True), (8, 3, False), (0, 1, False)])
def test_the_parameters_that_a_gate_copies_are_read(
    offset: int, kind: int, met: bool, engine: str
) -> None:
    guest = through_gate("p32", words=2)
    guest.registers = {"dr0": USER_STACK - 8 + offset}
    guest.fields |= {"GUEST_DR7": dr7((kind, 4)), "GUEST_RSP": USER_STACK - 8}
    run = begin(guest, WATCH_DB, engine=engine)
    assert run.vmcs["GUEST_RIP"] == INNER_CODE
    assert (vector_of(run) == DB) == met


@both_engines
@pytest.mark.parametrize("place", [4, 8])
def test_a_call_within_its_ring(place: int, engine: str) -> None:
    code = b"\x9a" + pack("<IH", INNER_CODE, CODE_32)
    guest = watching("p32", code, STACK - place)
    run = begin(guest, WATCH_DB, engine=engine)
    assert run.vmcs["GUEST_RIP"] == INNER_CODE
    assert run.exit.qualification == 1


@both_engines
def test_the_old_stack_is_not_written_by_a_call_to_an_inner_ring(engine: str) -> None:
    guest = through_gate("p32")
    guest.registers = {"dr0": USER_STACK - 4}
    guest.fields["GUEST_DR7"] = dr7((WRITE, 4))
    assert begin(guest, WATCH_DB, engine=engine).exit.reason is ExitReason.VMCALL


# Far returns.

OUTER_CODE = CODE + 0x40
RETURNS = {
    "retf": (b"\xcb", (OUTER_CODE, CODE_32_USER)),
    "iret": (b"\xcf", (OUTER_CODE, CODE_32_USER, 2)),
}


@both_engines
@pytest.mark.parametrize("name", RETURNS)
def test_a_return_to_an_outer_ring_reads_its_stack_pointer(name: str, engine: str) -> None:
    code, words = RETURNS[name]
    frame = pack(f"<{len(words) + 2}I", *words, USER_STACK, DATA_3)
    for word in range(len(words) + 3):
        guest = Tiny("p32", code=code, registers={"dr0": STACK - 64 + 4 * word})
        guest.memory = {OUTER_CODE: VMCALL, STACK - 64: frame}
        guest.fields = {"GUEST_DR7": dr7((ACCESS, 4)), "GUEST_RSP": STACK - 64}
        run = begin(guest, WATCH_DB, engine=engine)
        assert run.vmcs["GUEST_RIP"] == OUTER_CODE
        assert (vector_of(run) == DB) == (word < len(words) + 2)
