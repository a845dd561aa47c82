"""What keeps the engine from letting a store to a table complete: line by line of `table_stores`.

Each test here fails if one condition there is left out.
"""

from struct import pack

import pytest

from tests.conformance.self_mapped_guest import CODE, FOUR_LEVEL, VMCALL, Bench, Outcome
from tests.direct.test_protected_machine import (
    HLT,
    LINKED,
    MEMORY,
    PD_2,
    PML4,
    RAX_X,
    RCX_PD_2,
    X,
    Y,
    counts,
    machine,
    words,
)
from trapgate.decision.decide import Disposition
from trapgate.decision.fault_filters import OWN_FRAME
from trapgate.events.journal import ROW_CPL, ROW_DISPOSITION, ROW_RIP, ROW_SEQUENCE
from trapgate.vmm.direct.mapped_memory import ProtectedHost


def test_behind_another_guest_the_loaded_root_is_known_as_such() -> None:
    """A repeated store to it may complete: CR3 and the frame are compared as the guest has them."""
    code = b"\xbf" + pack("<I", PML4 + 0x800) + b"\xb9" + pack("<I", 4)
    host = ProtectedHost([MEMORY] * 2)
    machine(HLT, host=host)
    vm = machine(code + bytes.fromhex("31c0 f348ab") + HLT, "paragraph-80", 0, host)
    assert all("halted" in stop.message for stop in host.run(timeout=20))
    exits, completed = counts(vm)
    assert exits == 0
    assert completed > 0


APART = LINKED + b"".join(
    RAX_X + bytes.fromhex(f"48c740{8 * n:02x}") + pack("<I", page | 7)
    for n, page in ((1, 0x11_0000), (2, 0x12_0000))
)
"""The pages 1 and 2 behind 4000_0000H are code, and not neighbours in memory."""


@pytest.mark.parametrize("within", [1, 2])
def test_what_is_executed_at_the_end_of_a_page_is_looked_at_as_it_is_fetched(within: int) -> None:
    """REP STOSB to a table exits; so many bytes of it are in the page, of which nothing follows."""
    fill = bytes.fromhex("f3aaf4")
    jump = b"\xbf" + pack("<I", X + 0x80) + b"\xb9" + pack("<I", 8)
    jump += b"\xb8" + pack("<I", 0x4000_2000 - within) + bytes.fromhex("ffe0")
    present = APART if within == 1 else APART[: -len(RAX_X) - 8]
    vm = machine(present + jump, "none", OWN_FRAME)
    vm.processor.memory.write(0x11_1000 - within, fill[:within])
    vm.processor.memory.write(0x12_0000, fill[within:])
    vm.run(timeout=20)
    assert vm.processor.registers.rcx == 0
    exits, completed = counts(vm)
    assert completed == len(present[len(LINKED) :]) // (len(RAX_X) + 8)
    assert exits == 2 + 8


def test_a_completed_store_sets_the_flags_of_what_translates_it() -> None:
    """PD_2[1] = 20_0000H | 87H, a large page by which X is stored to: A and D."""
    alias = 0x4020_0000 + X - 0x20_0000
    code = LINKED + RCX_PD_2 + bytes.fromhex("48c7410887002000")
    code += b"\xb8" + pack("<I", alias) + bytes.fromhex("48c70007004000") + HLT
    vm = machine(code, "none", OWN_FRAME)
    assert "halted" in vm.run(timeout=20).message
    assert counts(vm)[1] == 1
    assert words(vm, PD_2)[1] == 0x20_00E7
    assert words(vm, X)[0] == Y | 7


# Of the lines behind: what a completed store leaves

ENTRY = 0x12_3002
"""Not present: figure 8 lets it come."""
STORE = b"\xc7\x07" + pack("<I", ENTRY)
"""MOV DWORD [RDI], ENTRY."""
both_engines = pytest.mark.parametrize("engine", ["native", "portable"])


def filtered(engine: str, code: bytes, memory: dict[int, bytes], **registers: int) -> Outcome:
    """Code in 64-bit mode under figure 8; RDI is an entry of self-mapped tables."""
    given = {"rdi": FOUR_LEVEL.tables, **registers}
    bench = Bench(FOUR_LEVEL, engine)
    return bench.run(code, writable=False, memory=memory, registers=given)


@both_engines
def test_the_ring_that_the_guest_has_gone_to_by_itself(engine: str) -> None:
    """SYSRET to ring 3 and SYSCALL back, to address 0, have no exit that would save it."""
    user, target = STORE + bytes.fromhex("0f05"), CODE + 0x100
    left = filtered(
        engine,
        STORE + bytes.fromhex("480f07"),
        {target: user, 0: STORE + VMCALL},
        rcx=target,
        r11=2,
    )
    assert left.fields["GUEST_RIP"] == len(STORE)
    assert [row[ROW_DISPOSITION] for row in left.rows] == [Disposition.COMPLETE] * 3
    assert [row[ROW_CPL] for row in left.rows] == [0, 3, 0]
    assert [row[ROW_RIP] for row in left.rows] == [CODE, target, 0]


@both_engines
def test_code_in_an_entry_whose_flags_a_store_sets_is_translated_again(engine: str) -> None:
    """MOV RAX, imm64; NOP; RET, of which the number is the entry that maps the table."""
    last, entry = 0x9FFE, 0xA000
    memory = {last: b"\x48\xb8", entry + 8: b"\x90\xc3" + bytes(6)}
    call = bytes.fromhex("ffd5")
    code = call + bytes.fromhex("4889c3") + STORE + call
    left = filtered(engine, code, memory, rbp=last)
    assert [row[ROW_DISPOSITION] for row in left.rows] == [Disposition.COMPLETE]
    assert left.registers["rbx"] == FOUR_LEVEL.frames[0] | 7
    assert left.registers["rax"] == FOUR_LEVEL.frames[0] | 0x67


@both_engines
@pytest.mark.parametrize("store", [STORE, bytes.fromhex("f0832701")], ids=["mov", "lock and"])
def test_no_event_is_lost_however_many_writes_complete(engine: str, store: bytes) -> None:
    """The journal has 64 rows, and is read in time: 1,000 in a loop without any exit."""
    bench = Bench(FOUR_LEVEL, engine)
    seen: list[int] = []
    bench.processor.trace_to(lambda rows: seen.extend(rows[:, ROW_SEQUENCE].tolist()))
    code = b"\xb9" + pack("<I", 1000) + store + bytes.fromhex("ffc9") + b"\x75"
    code += pack("<b", -len(store) - 4)
    left = bench.run(code, writable=False, memory={}, registers={"rdi": FOUR_LEVEL.tables})
    assert left.registers["rcx"] == 0
    bench.processor.drain()
    assert seen == list(range(seen[0], seen[0] + 1000))
