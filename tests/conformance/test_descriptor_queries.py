"""LAR, LSL, VERR and VERW (SDM, their entries; "Access Rights" for SMAP)."""

from struct import pack

import pytest

from tests.conformance.tiny_guest import (
    AC,
    BEYOND_GDT,
    DATA_0,
    GDT,
    MEMORY,
    TABLES,
    Run,
    Tiny,
    begin,
    descriptor,
)
from trapgate.sdm.vectors import PF

pytestmark = pytest.mark.conformance

EVERYTHING = {"EXCEPTION_BITMAP": 0xFFFFFFFF}
LAR, LSL, VERR, VERW = b"\x0f\x02\xd8", b"\x0f\x03\xd8", b"\x0f\x00\xe0", b"\x0f\x00\xe8"
"""Of AX; the first two to EBX."""
UNTOUCHED = 0x5A5A5A5A
ZF, ALL_FLAGS = 1 << 6, 0x8D5


@pytest.fixture(params=["native", "portable"], name="engine")
def each_engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def ask(
    engine: str, mode: str, code: bytes, entries: list[int], *, ring: int = 0, rpl: int = 0
) -> list[tuple[bool, int]]:
    """What the instruction makes of descriptors: ZF and EBX for each."""
    first = 0x80
    selectors = [first + 16 * n | rpl for n in range(len(entries))]
    return query(engine, mode, code, selectors, entries, ring)


def query(
    engine: str, mode: str, code: bytes, selectors: list[int], entries: list[int], ring: int = 0
) -> list[tuple[bool, int]]:
    """The same of selectors, with the descriptors `entries` in every other place from 80H on."""
    parts = [
        # push 8D5H less ZF; popf; mov eax, selector; mov ebx, UNTOUCHED; the query; pushf; push rbx
        b"\x68"
        + pack("<I", ALL_FLAGS & ~ZF)
        + b"\x9d\xb8"
        + pack("<I", selector)
        + b"\xbb"
        + pack("<I", UNTOUCHED)
        + code
        + b"\x9c\x53"
        for selector in selectors
    ]
    guest = Tiny(mode, ring=ring, code=b"".join(parts))
    guest.memory = {GDT + 0x80: b"".join(pack("<QQ", entry, 0) for entry in entries)}
    guest.fields = {"GUEST_GDTR_LIMIT": 0x7F + 16 * len(entries)}
    run = begin(guest, EVERYTHING, engine=engine)
    assert run.exit.reason.name == "VMCALL", run.exit
    words = run.pushed(2 * len(selectors))[::-1]
    flags, answers = words[::2], words[1::2]
    assert {word & ALL_FLAGS & ~ZF for word in flags} == {ALL_FLAGS & ~ZF}, "only ZF changes"
    return [(bool(word & ZF), answer) for word, answer in zip(flags, answers, strict=True)]


TYPES = {
    ("p32", LAR): {1, 2, 3, 4, 5, 9, 11, 12},
    ("p32", LSL): {1, 2, 3, 9, 11},
    ("l64", LAR): {2, 9, 11, 12},
    ("l64", LSL): {2, 9, 11},
    ("p32", VERR): set(),
    ("l64", VERW): set(),
}


@pytest.mark.parametrize(("mode", "code"), TYPES)
def test_types_of_system_descriptors(engine: str, mode: str, code: bytes) -> None:
    """IA-32e mode has no 16-bit TSSs and gates, and no task gates."""
    entries = [descriptor(0x1000, 0x12345, 0xC080 | kind) for kind in range(16)]
    for kind, found in enumerate(ask(engine, mode, code, entries)):
        answer = 0x00C0_8000 | kind << 8 if code == LAR else 0x1234_5FFF
        seen = kind in TYPES[mode, code]
        assert found == (seen, answer if seen else UNTOUCHED), kind


@pytest.mark.parametrize("mode", ["p32", "l64"])
@pytest.mark.parametrize(("dpl", "ring", "rpl"), [(0, 0, 0), (0, 0, 3), (3, 3, 3), (0, 3, 0)])
def test_privilege_and_types_of_segments(
    engine: str, mode: str, dpl: int, ring: int, rpl: int
) -> None:
    kinds = range(0, 16, 2)
    entries = [descriptor(0, 0xFF, 0x0090 | dpl << 5 | kind) for kind in kinds]
    for code in (LAR, LSL, VERR, VERW):
        found = ask(engine, mode, code, entries, ring=ring, rpl=rpl)
        for kind, (answer, _) in zip(kinds, found, strict=True):
            visible = kind & 12 == 12 or dpl >= max(ring, rpl)
            if code == VERR:
                visible &= kind & 10 != 8
            elif code == VERW:
                visible &= kind & 10 == 2
            assert answer == visible, (code.hex(), kind)


def test_selectors_of_nothing(engine: str) -> None:
    """Null, beyond the GDT, in no LDT."""
    selectors = [0, 3, BEYOND_GDT, 0x84]
    for code in (LAR, LSL, VERR, VERW):
        found = query(engine, "p32", code, selectors, [descriptor(0, 0xFFFFF, 0xC093)])
        assert found == [(False, UNTOUCHED)] * len(selectors)


def on_a_user_page(code: bytes, flags: int, engine: str) -> Run:
    """SMAP, all pages the supervisor's but that of the GDT."""
    memory = {
        TABLES + 0x3000 + 4 * page: pack("<I", page << 12 | (7 if page == GDT >> 12 else 3))
        for page in range(MEMORY >> 12)
    }
    fields = {"GUEST_CR4": 0x2610 | 1 << 21, "GUEST_RFLAGS": 2 | flags}
    guest = Tiny("p32", code=code, memory=memory, fields=fields, registers={"rax": DATA_0})
    return begin(guest, EVERYTHING, engine=engine)


@pytest.mark.parametrize("code", [LAR, LSL, VERR, VERW])
@pytest.mark.parametrize("flags", [0, AC])
def test_smap_heeds_no_alignment_flag_in_accesses_to_descriptors(
    code: bytes, flags: int, engine: str
) -> None:
    """They are implicit supervisor accesses."""
    event = on_a_user_page(code, flags, engine).exit.interruption
    assert event is not None
    assert (event.vector, event.error_code) == (PF, 1)
