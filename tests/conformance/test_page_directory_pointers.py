"""The four pointers of PAE paging: when they are loaded, and what refuses them.

SDM, "Loading Page-Directory-Pointer-Table Entries": with MOV to CR3, with MOV to CR0 or CR4 that
changes what paging is, and with VM entry. One that is present with a reserved bit set is #GP(0).
"""

from struct import pack

import pytest

from tests.conformance.tiny_guest import CODE, DATA, TABLES, Run, Tiny, begin

pytestmark = [
    pytest.mark.conformance,
    pytest.mark.parametrize("engine", ["native", "portable"]),
]

EVERYTHING = {"EXCEPTION_BITMAP": 0xFFFFFFFF}
OTHER = TABLES + 0x800
"""Another table of four pointers."""
DIRECTORY = TABLES + 0x2000
CD, PGE, DE = 1 << 30, 1 << 7, 1 << 3
GP = 13

STORE_0 = b"\xc7\x05" + pack("<II", TABLES, 0)
READ_DATA = b"\x0f\x01\x3d" + pack("<I", DATA) + b"\xa1" + pack("<I", DATA)  # invlpg, mov
TO_CR3, TO_CR0, TO_CR4 = (b"\x0f\x22" + bytes([form]) for form in (0xD8, 0xC0, 0xE0))


def load(register: bytes, value: int) -> bytes:
    """Mov eax, value; mov register, eax."""
    return b"\xb8" + pack("<I", value) + register


def run(code: bytes, engine: str, pointer: int = DIRECTORY | 1) -> Run:
    memory = {OTHER: pack("<4Q", pointer, 0, 0, 0)}
    return begin(Tiny("pae", code=code, memory=memory), EVERYTHING, engine=engine)


def met(run: Run) -> tuple[int, int]:
    """Vector, 0 for the VMCALL, and where, from the code's start."""
    event = run.exit.interruption
    assert event is not None or run.exit.reason.name == "VMCALL"
    return event.vector if event else 0, run.vmcs["GUEST_RIP"] - CODE


def test_a_store_to_their_table_changes_nothing(engine: str) -> None:
    code = STORE_0 + READ_DATA
    assert met(run(code, engine)) == (0, len(code))


RELOADS = {
    "cr3": load(TO_CR3, TABLES),
    "cr0.cd": load(TO_CR0, 0x80010031 | CD),
    "cr4.pge": load(TO_CR4, 0x620 | PGE),
}


@pytest.mark.parametrize("name", RELOADS)
def test_what_loads_them(name: str, engine: str) -> None:
    """Behind it the code may be fetched from the TLB, and the data, which was flushed, not read."""
    vector, place = met(run(STORE_0 + RELOADS[name] + READ_DATA, engine))
    before = len(STORE_0 + RELOADS[name])
    assert (vector, place in (before, before + 7)) == (14, True)


def test_what_does_not(engine: str) -> None:
    for keeps in (load(TO_CR4, 0x620 | DE), load(TO_CR0, 0x80010031 | 8)):
        code = STORE_0 + keeps + READ_DATA
        assert met(run(code, engine)) == (0, len(code))


def test_vm_entry_loads_them(engine: str) -> None:
    end = run(STORE_0 + b"\x0f\x01\xc1" + READ_DATA, engine)
    assert end.exit.reason.name == "VMCALL"
    end.skip()
    assert met(end) == (14, len(STORE_0) + 3)


def test_cr3_reads_back(engine: str) -> None:
    """Wherever the engine keeps the pointers, and in all modes that come after."""
    off = load(TO_CR0, 0x31)
    code = load(TO_CR3, OTHER | 0x18) + b"\x0f\x20\xd9" + off + b"\x0f\x20\xda"
    end = run(code, engine)
    assert met(end) == (0, len(code))
    registers = end.processor.registers
    assert (registers.rcx, registers.rdx) == (OTHER | 0x18, OTHER | 0x18)
    assert end.vmcs["GUEST_CR3"] == OTHER | 0x18


def test_reserved_bits(engine: str) -> None:
    code = load(TO_CR3, OTHER)
    for reserved in (1 << 1, 1 << 2, 1 << 5, 1 << 8, 1 << 40, 1 << 63):
        end = run(code, engine, DIRECTORY | 1 | reserved)
        assert (reserved, met(end)) == (reserved, (GP, 5))
        assert end.vmcs["GUEST_CR3"] == TABLES
    # Bits that are ignored, and an entry that is not present.
    for pointer in (DIRECTORY | 1 | 1 << 3 | 1 << 4 | 7 << 9, DIRECTORY | 1):
        assert met(run(code, engine, pointer)) == (0, len(code))
    end = run(code, engine, 1 << 5)
    assert met(end) == (14, len(code))
    assert end.vmcs["GUEST_CR3"] == OTHER
