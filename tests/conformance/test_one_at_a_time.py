"""Instructions that are executed alone: what they leave blocked, on both engines."""

from struct import pack

import pytest

from tests.conformance.tiny_guest import (
    ABSENT,
    AC,
    CODE,
    DATA,
    NO_EXECUTE,
    TABLES,
    Tiny,
    begin,
    handler,
)
from trapgate.sdm import controls as ct
from trapgate.sdm.reasons import ExitReason
from trapgate.sdm.state import CR4_OSXSAVE as OSXSAVE
from trapgate.sdm.vectors import GP, PF, UD

pytestmark = pytest.mark.conformance

STEPPED = {
    "PRIMARY_PROCESSOR_BASED_CONTROLS": ct.PRIMARY_MONITOR_TRAP_FLAG,
    "EXCEPTION_BITMAP": 0xFFFFFFFF,
}
BLOCKING_BY_STI, BLOCKING_BY_MOV_SS = 1, 2


@pytest.mark.parametrize("engine", ["native", "portable"])
def test_only_sti_and_loads_of_ss_leave_something_blocked(engine: str) -> None:
    """Nop; sti; nop; sti again (IF is set); mov ax, ss; mov ss, ax; nop; push ss; pop ss; nop."""
    code = bytes.fromhex("90 fb 90 fb 8cd0 8ed0 90 16 17 90")
    run = begin(Tiny("p32", code=code), STEPPED, engine=engine)
    seen = []
    while run.vmcs["GUEST_RIP"] < CODE + len(code):
        assert run.exit.reason is ExitReason.MONITOR_TRAP_FLAG
        seen.append((run.vmcs["GUEST_RIP"] - CODE, run.vmcs["GUEST_INTERRUPTIBILITY_STATE"]))
        run.resume()
    assert seen == [
        (1, 0),
        (2, BLOCKING_BY_STI),
        (3, 0),
        (4, 0),
        (6, 0),
        (8, BLOCKING_BY_MOV_SS),
        (9, 0),
        (10, 0),
        (11, BLOCKING_BY_MOV_SS),
    ]


@pytest.mark.parametrize("engine", ["native", "portable"])
def test_a_fault_of_an_instruction_alone_leaves_nothing_blocked(engine: str) -> None:
    run = begin(Tiny("p32", code=b"\x90\x0f\x0b"), STEPPED, engine=engine)
    run.resume()
    assert run.exit.reason is ExitReason.EXCEPTION_OR_NMI
    assert run.vmcs["GUEST_RIP"] == CODE + 1
    assert run.vmcs["GUEST_INTERRUPTIBILITY_STATE"] == 0


@pytest.mark.parametrize("engine", ["native", "portable"])
def test_a_store_to_its_own_page_ends(engine: str) -> None:
    """With alignment checks the portable engine had begun such an instruction again for ever."""
    code = b"\x00\x00" * 4  # add byte ptr [eax], al
    guest = Tiny("p32", 3, code, fields={"GUEST_RFLAGS": 2 | AC}, registers={"rax": CODE})
    run = begin(guest, engine=engine)
    assert run.exit.reason is ExitReason.VMCALL
    assert run.processor.memory.read(CODE, 8) == code


@pytest.mark.parametrize("engine", ["native", "portable"])
@pytest.mark.parametrize(
    ("instruction", "place", "cr4", "vector"),
    [
        ("0fae2e", DATA, 0, UD),  # xrstor [esi]
        ("0fae2e", DATA + 8, OSXSAVE, GP),
        ("0fae2e", ABSENT, OSXSAVE, PF),
        ("0fae26", DATA, 0, UD),  # xsave
        ("0fae0e", DATA + 8, 0, GP),  # fxrstor
        ("0fae16", ABSENT, 0, PF),  # ldmxcsr
    ],
)
def test_a_fault_of_what_changes_mxcsr_is_at_the_instruction(
    instruction: str, place: int, cr4: int, vector: int, engine: str
) -> None:
    """Not where its block begins. What is loaded as MXCSR may be wrong as well."""
    code = b"\x42\x90" + bytes.fromhex(instruction)  # inc edx; nop
    guest = Tiny("p32", 0, code, {DATA + 24: b"\xff" * 4}, {"GUEST_CR4": 0x2610 | cr4})
    guest.registers = {"rsi": place, "rax": 7, "rdx": 0}
    run = begin(guest, {"EXCEPTION_BITMAP": 0xFFFFFFFF}, engine=engine)
    assert run.exit.interruption is not None
    assert run.exit.interruption.vector == vector
    assert run.vmcs["GUEST_RIP"] == CODE + 2
    assert run.processor.registers.rdx == 1


@pytest.mark.parametrize("engine", ["native", "portable"])
@pytest.mark.parametrize("instruction", ["0fa2", "cd40", "0f20c0", "e480", "0f01d0"])
def test_an_instruction_that_is_no_longer_mapped_is_executed_or_not_found(
    instruction: str, engine: str
) -> None:
    """Without INVLPG both is right; another exception, or another instruction, is not."""
    entry = TABLES + 0x3000 + (CODE >> 12) * 4
    clear = b"\xc7\x05" + pack("<II", entry, 0)
    code = clear + bytes.fromhex(instruction)
    run = begin(Tiny("p32", code=code), {"EXCEPTION_BITMAP": 0xFFFFFFFF}, engine=engine)
    event = run.exit.interruption
    if event is not None and event.vector == PF:
        assert run.exit.qualification in (CODE + len(clear), CODE + len(code))
    elif instruction == "cd40":
        assert run.exit.reason is ExitReason.VMCALL
        assert run.vmcs["GUEST_RIP"] == handler(0x40)
    else:
        assert run.exit.reason in (ExitReason.CPUID, ExitReason.IO_INSTRUCTION, ExitReason.VMCALL)


BEFORE = {
    "up to its end": b"\x90" * 20,
    "across it": b"\x90" * 17 + b"\xb8\x00\x00",  # mov eax, ...
    "that reads it": b"\x90" * 15 + b"\x8b\x06" + b"\x90" * 3,  # mov eax, [rsi]
}


@pytest.mark.parametrize("engine", ["native", "portable"])
@pytest.mark.parametrize(("mode", "page"), [("p32", ABSENT), ("pae", NO_EXECUTE), ("l64", ABSENT)])
@pytest.mark.parametrize("name", BEFORE)
def test_code_runs_up_to_a_page_that_cannot_be_fetched(
    name: str, mode: str, page: int, engine: str
) -> None:
    """The fault is that of the first instruction which reaches it, not of its block."""
    before = BEFORE[name]
    at = page - len(before)
    jump = b"\xb8" + pack("<I", at) + b"\xff\xe0"  # mov eax, at; jmp rax
    guest = Tiny(mode, 0, jump, {at: before}, registers={"rsi": page})
    run = begin(guest, {"EXCEPTION_BITMAP": 0xFFFFFFFF}, engine=engine)
    event = run.exit.interruption
    assert event is not None
    assert (event.vector, run.exit.qualification) == (PF, page)
    reads = name == "that reads it" and page == ABSENT
    where = {"up to its end": page, "across it": page - 3, "that reads it": page - 5 * reads}
    assert run.vmcs["GUEST_RIP"] == where[name]
    assert event.error_code == (0x10 if mode != "p32" and not reads else 0) | (page == NO_EXECUTE)


@pytest.mark.parametrize("engine", ["native", "portable"])
def test_an_instruction_whose_breakpoint_is_met_counts(engine: str) -> None:
    """As every instruction that faults."""
    guest = Tiny("p32", 0, b"\x90" * 4, fields={"GUEST_DR7": 0x402}, registers={"dr0": CODE + 2})
    run = begin(guest, {"EXCEPTION_BITMAP": 1 << 1}, engine=engine)
    assert run.vmcs["GUEST_RIP"] == CODE + 2
    assert run.processor.time == 3
