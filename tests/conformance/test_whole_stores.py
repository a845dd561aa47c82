"""Stores that fault store nothing, whatever their size, and faults leave flags alone."""

from struct import pack

import pytest

from tests.conformance.tiny_guest import (
    ABSENT,
    CODE,
    DATA,
    READ_ONLY,
    SUPERVISOR,
    Run,
    Tiny,
    begin,
)

pytestmark = pytest.mark.conformance

EVERYTHING = {"EXCEPTION_BITMAP": 0xFFFFFFFF}
AC, PF, GP = 17, 14, 13
CF = 1
BEFORE = bytes(range(1, 129)) * 6
"""What lies before the page that faults."""


@pytest.fixture(params=["native", "portable"], name="engine")
def each_engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


STORES = {
    # The code, with the address in EDI, and how many bytes from the end of a page it begins.
    "movups": ("0f1107", (15, 9, 8, 7, 1)),
    "movupd": ("660f1107", (8,)),
    "movdqu": ("f30f7f07", (8, 12)),
    "movq": ("660fd607", (7, 4)),
    "fstp tbyte": ("d9e8db3f", (9, 8, 4, 2)),
    "fbstp": ("d9e8df37", (9, 8, 5, 1)),
    "fnstenv": ("d937", (27, 14, 4, 1)),
    "fnstenv of 16 bits": ("66d937", (13, 2)),
    "fnsave": ("d9e8dd37", (107, 28, 8)),
    "fnsave of 16 bits": ("66dd37", (93,)),
    "fxsave": ("0fae07", (496, 256, 16)),
    "xsave": ("31d283c8ff0fae27", (512, 320, 64)),
    "cmpxchg8b": ("0fc70f", (7, 4)),
}


def fault(run: Run) -> tuple[int, int | None, int]:
    """Vector, error code and address."""
    event = run.exit.interruption
    assert event is not None, run.exit
    return event.vector, event.error_code, run.exit.qualification


@pytest.mark.parametrize("name", STORES)
def test_nothing_is_stored_before_a_page_that_faults(name: str, engine: str) -> None:
    code, distances = STORES[name]
    fields = {"GUEST_CR4": 0x2620 | 1 << 18}
    start = ABSENT - len(BEFORE)
    for mode, distance in ((mode, n) for mode in ("pae", "l64") for n in distances):
        guest = Tiny(mode, code=bytes.fromhex(code), registers={"rdi": ABSENT - distance})
        guest.memory |= {start: BEFORE}
        guest.fields |= fields
        run = begin(guest, EVERYTHING, engine=engine)
        assert (name, mode, distance, fault(run)) == (name, mode, distance, (PF, 2, ABSENT))
        assert run.processor.memory.read(start, len(BEFORE)) == BEFORE


@pytest.mark.parametrize(
    ("code", "distance"), [("0fae07", 504), ("0fae07", 8), ("31d283c8ff0fae27", 496)]
)
def test_an_unaligned_area_is_gp_whatever_its_pages(code: str, distance: int, engine: str) -> None:
    """SDM, "FXSAVE", "XSAVE": #GP if not aligned on 16 or 64 bytes, before memory is accessed."""
    for mode in ("pae", "l64"):
        address = ABSENT - distance
        guest = Tiny(mode, code=bytes.fromhex(code), registers={"rdi": address})
        guest.fields |= {"GUEST_CR4": 0x2620 | 1 << 18}
        event = begin(guest, EVERYTHING, engine=engine).exit.interruption
        assert event is not None
        assert (event.vector, event.error_code) == (GP, 0)


def test_the_page_before_may_be_the_one_that_faults(engine: str) -> None:
    """Ring 3 stores to the last bytes of the supervisor's page, of which READ_ONLY is before."""
    for code, address, expected in (
        ("0f1107", SUPERVISOR - 8, (PF, 7, SUPERVISOR - 8)),
        ("0f1107", READ_ONLY - 8, (PF, 6, READ_ONLY - 8)),
        ("d9e8db3f", SUPERVISOR - 4, (PF, 7, SUPERVISOR - 4)),
        ("0f1107", SUPERVISOR + 0xFF8, (PF, 7, SUPERVISOR + 0xFF8)),
    ):
        guest = Tiny("p32", ring=3, code=bytes.fromhex(code), registers={"rdi": address})
        run = begin(guest, EVERYTHING, engine=engine)
        vector, error_code, at = fault(run)
        # Where both pages fault a processor may report either.
        assert (vector, error_code) == expected[:2]
        assert at in (expected[2], (address | 0xFFF) + 1)


def test_stores_on_two_pages(engine: str) -> None:
    for mode in ("p32", "pae", "l64"):
        code = bytes.fromhex("0f1007 0f11470f 0f2906")  # movups, movups [rdi + 15], movaps [rsi]
        registers = {"rdi": DATA + 0xFF0 - 7, "rsi": DATA + 0x800}
        guest = Tiny(mode, code=code, registers=registers)
        guest.memory |= {DATA + 0xFF0 - 7: bytes(range(16))}
        run = begin(guest, EVERYTHING, engine=engine)
        assert run.exit.reason.name == "VMCALL"
        read = run.processor.memory.read
        assert read(DATA + 0xFF0 - 7, 31) == bytes(range(15)) + bytes(range(16))
        assert read(DATA + 0x800, 16) == bytes(range(16))


def test_nothing_is_stored_beyond_a_limit(engine: str) -> None:
    for code in ("0f1107", "660f7f07", "0f2907", "660fe707", "d9e8db3f", "d9e8df37"):
        fields = {"GUEST_DS_LIMIT": DATA + 8, "GUEST_DS_ACCESS_RIGHTS": 0x4093}
        guest = Tiny("p32", code=bytes.fromhex(code), registers={"rdi": DATA}, fields=fields)
        guest.memory |= {DATA: BEFORE}
        run = begin(guest, EVERYTHING, engine=engine)
        assert (code, fault(run)[:2]) == (code, (GP, 0))
        assert run.processor.memory.read(DATA, 16) == BEFORE[:16]


def test_rotations_through_carry_begin_again_as_they_began(engine: str) -> None:
    """RCL and RCR of memory that cannot be written: CF is what it was."""
    for mode in ("p32", "l64"):
        for code in ("d017", "d117", "66d117", "d01f", "d11f", "c11703", "d317", "d31f"):
            for address in (READ_ONLY, READ_ONLY + 0x123):
                guest = Tiny(mode, ring=3, code=bytes.fromhex(code))
                guest.registers |= {"rdi": address, "rcx": 2}
                guest.fields |= {"GUEST_RFLAGS": 2 | CF}
                run = begin(guest, EVERYTHING, engine=engine)
                assert (code, fault(run)) == (code, (PF, 7, address))
                assert (code, run.vmcs["GUEST_RFLAGS"] & CF) == (code, CF)
    guest = Tiny("p32", ring=3, code=bytes.fromhex("d117"), registers={"rdi": ABSENT - 2})
    guest.fields |= {"GUEST_RFLAGS": 2 | CF}
    run = begin(guest, EVERYTHING, engine=engine)
    assert fault(run) == (PF, 6, ABSENT)
    assert run.vmcs["GUEST_RFLAGS"] & CF


def test_alignment_of_16_bytes(engine: str) -> None:
    """Of what may be unaligned: SDM, "MOVUPS", #AC may come if it isn't aligned to 8 bytes."""
    for code, address, expected in (
        ("0f1107", DATA + 4, AC),
        ("0f1007", DATA + 4, AC),
        ("f30f6f07", DATA + 1, AC),
        ("f20ff007", DATA + 12, AC),
        ("0f1107", DATA + 8, 0),
        ("0f1107", DATA, 0),
    ):
        guest = Tiny("p32", ring=3, code=bytes.fromhex(code), registers={"rdi": address})
        guest.fields |= {"GUEST_RFLAGS": 2 | 1 << 18, "GUEST_CR0": 0x80050031}
        run = begin(guest, EVERYTHING, engine=engine)
        event = run.exit.interruption
        assert (code, event.vector if event else 0) == (code, expected)
        assert run.vmcs["GUEST_RIP"] == CODE + (0 if expected else len(code) // 2)


def test_data_is_the_operand_of_a_rotation(engine: str) -> None:
    guest = Tiny("p32", code=bytes.fromhex("d117d117"), registers={"rdi": DATA + 0xFFE})
    guest.memory |= {DATA + 0xFFE: pack("<I", 0x8000_0001)}
    run = begin(guest, EVERYTHING, engine=engine)
    assert run.processor.memory.read(DATA + 0xFFE, 4) == pack("<I", 5)
