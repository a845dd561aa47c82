"""Entries of GDT, LDT, IDT and TSS behind the last canonical address of the lower half.

A table's base is canonical, but its end need not be (SDM, volume 1, "Canonical Addressing"): the
64-bit mode exceptions of "MOV", "JMP", "LAR", "LTR", "IN", "CALL" and "INT n" say which fault.
"""

from struct import pack

import pytest

from tests.conformance.tiny_guest import (
    BEYOND_GDT,
    CODE_64,
    DATA,
    DATA_0,
    GDT,
    TABLES,
    TASK,
    TSS,
    Tiny,
    begin,
    descriptor,
    gate,
)
from trapgate.sdm.vectors import GP, PF, TS, UD

pytestmark = pytest.mark.conformance

END = 1 << 47
LAST_PAGE = 0x1FF000
"""Where the last page of the lower half is mapped: the upper half's first is not."""
GATE, TABLE_FLAG = 0x48, 4
MOV_DS, MOV_SS, LAR, LTR, INT_40, IN_AL, UD2 = (
    bytes.fromhex(code) for code in ("8ed8", "8ed0", "0f02d8", "0f00d8", "cd40", "e480", "0f0b")
)
FAR_JUMP, FAR_CALL = (b"\x48\xff" + form + pack("<I", DATA) for form in (b"\x2c\x25", b"\x1c\x25"))


def at_the_end(code: bytes, ring: int = 0, rax: int = 0, **fields: int) -> Tiny:
    tables = [TABLES + 0x1000 * n for n in range(4)]
    mapped = {
        upper + 8 * n: pack("<Q", lower | 7)
        for upper, lower, n in zip(tables, tables[1:], (255, 511, 511), strict=False)
    }
    memory = mapped | {
        DATA: pack("<QH", 0, GATE if code == FAR_CALL else DATA_0),
        LAST_PAGE + 0xFF8: pack("<Q", descriptor(TSS, 0x67, 0x89)),
        GDT + GATE: pack("<Q", 0xEC00 << 32 | CODE_64 << 16),
        GDT + GATE + 8: bytes(8),
    }
    return Tiny("l64", ring, code, memory, dict(fields), {"rax": rax})


def gdt(selector: int, distance: int = 0) -> dict[str, int]:
    """A GDT whose descriptor of `selector` is at END + `distance`."""
    return {"GUEST_GDTR_BASE": END + distance - selector}


LDT = {
    "GUEST_LDTR_BASE": END - 8,
    "GUEST_LDTR_LIMIT": 0xFF,
    "GUEST_LDTR_SELECTOR": 0x70,
    "GUEST_LDTR_ACCESS_RIGHTS": 0x82,
}
CASES: dict[str, tuple[Tiny, int, int]] = {
    "MOV DS": (at_the_end(MOV_DS, rax=DATA_0, **gdt(DATA_0)), GP, DATA_0),
    "half of it": (at_the_end(MOV_DS, rax=DATA_0, **gdt(DATA_0, -4)), GP, DATA_0),
    "MOV SS": (at_the_end(MOV_SS, rax=DATA_0, **gdt(DATA_0, 8)), GP, DATA_0),
    "LDT": (at_the_end(MOV_DS, rax=0x10 | TABLE_FLAG, **LDT), GP, 0x10 | TABLE_FLAG),
    "LAR": (at_the_end(LAR, rax=DATA_0, **gdt(DATA_0)), GP, 0),
    "far JMP": (at_the_end(FAR_JUMP, **gdt(DATA_0)), GP, DATA_0),
    "LTR, upper half": (at_the_end(LTR, rax=TASK, **gdt(TASK, -8)), GP, TASK),
    "INT n": (at_the_end(INT_40, GUEST_IDTR_BASE=END - 0x400), GP, 0x40 << 3 | 2),
    "half a gate": (at_the_end(INT_40, GUEST_IDTR_BASE=END - 0x408), GP, 0x40 << 3 | 2),
    "#UD": (at_the_end(UD2, GUEST_IDTR_BASE=END - 0x60), GP, UD << 3 | 3),
    "RSP of INT n": (at_the_end(INT_40, ring=3, GUEST_TR_BASE=END - 4), TS, TASK),
    "RSP of #UD": (at_the_end(UD2, ring=3, GUEST_TR_BASE=END - 8), TS, TASK | 1),
    "RSP of CALL": (at_the_end(FAR_CALL, ring=3, GUEST_TR_BASE=END - 4), TS, TASK),
    "I/O map base": (at_the_end(IN_AL, ring=3, GUEST_TR_BASE=END - 102), GP, 0),
    "beyond the limit": (at_the_end(MOV_DS, rax=BEYOND_GDT), GP, BEYOND_GDT),
    "canonical": (at_the_end(MOV_DS, rax=DATA_0, GUEST_GDTR_BASE=2**64 - END), PF, 0),
}


@pytest.mark.parametrize("engine", ["native", "portable"])
@pytest.mark.parametrize("name", CASES)
def test_an_entry_at_a_non_canonical_address(name: str, engine: str) -> None:
    guest, vector, code = CASES[name]
    run = begin(guest, {"EXCEPTION_BITMAP": 0xFFFFFFFF & ~(1 << UD)}, engine=engine)
    event = run.exit.interruption
    assert event is not None
    assert (event.vector, event.error_code) == (vector, code)
    assert run.vmcs["GUEST_RIP"] == guest.state()["GUEST_RIP"]


def test_gates_at_the_end_of_the_lower_half() -> None:
    """The last one that is canonical as a whole is used."""
    guest = at_the_end(INT_40, GUEST_IDTR_BASE=END - 0x410)
    guest.memory[LAST_PAGE + 0xFF0] = gate("l64", 0x40)
    run = begin(guest, {"EXCEPTION_BITMAP": 0xFFFFFFFF})
    assert run.exit.reason.name == "VMCALL"
    assert len(run.pushed(5)) == 5
