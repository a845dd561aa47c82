"""Unmasked overflow and underflow, and stores that unmasked exceptions prevent, against the host.

SDM, volume 1, "Numeric Overflow Exception (#O)", "Numeric Underflow Exception (#U)": a register
gets the result with another exponent, memory stays as it is.
"""

import itertools
from struct import pack

import pytest

from tests.conformance.tiny_guest import ABSENT, CODE, DATA, READ_ONLY, Tiny, begin
from tests.conformance.x87_host import (
    ENGINES,
    NEEDS_HOST,
    VALUES,
    Case,
    area,
    body,
    differences,
    on_the_host,
)
from trapgate.sdm.vectors import PF

pytestmark = [pytest.mark.conformance, NEEDS_HOST]

KEPT = bytes.fromhex("55" * 16)
"""In memory before."""
EXTREMES = {
    "2^-130": "0000000000000080 7d3f",
    "1.5 * 2^-140": "00000000000000c0 733f",
    "2^-126 less a bit": "ffffffffffffffff 803f",
    "2^-1040": "0000000000000080 ef3b",
    "2^200": "0000000000000080 c740",
    "2^1024 less a bit": "ffffffffffffffff fe43",
    "2^-16000": "0100000000000080 7f01",
    "2^-8200": "01000000000000f0 f71f",
    "2^8200": "01000000000000f0 0760",
    "-2^16383": "00000000000000c0 feff",
    "2^-16382": "0000000000000080 0100",
    "3 * 2^-16382": "00000000000000c0 0200",
    "30000": "000000000000 60ea 0d40",
    "-30000": "000000000000 60ea 0dc0",
    "20": "00000000000000a0 0340",
}
"""Bytes of 80-bit values, beside VALUES."""
STORES = {
    "fst m32": "d917",
    "fstp m32": "d91f",
    "fst m64": "dd17",
    "fstp m64": "dd1f",
    "fstp m80": "db3f",
    "fist m16": "df17",
    "fistp m16": "df1f",
    "fistp m32": "db1f",
    "fistp m64": "df3f",
    "fisttp m16": "df0f",
    "fisttp m32": "db0f",
    "fisttp m64": "dd0f",
    "fbstp": "df37",
}
ARITHMETIC = {
    "fadd": "dec1",
    "fadd st0": "d8c1",
    "fadd st1": "dcc1",
    "fsub": "dee9",
    "fsubr": "d8e9",
    "fmul": "dec9",
    "fmul st0": "d8c9",
    "fdiv": "def9",
    "fdivr": "d8f9",
    "fdivr st1": "dcf1",
    "fscale": "d9fd",
    "fprem": "d9f8",
    "fprem1": "d9f5",
    "fsqrt": "d9fa",
    "fmul m64": "dc0f",
    "fdivr m32": "d83f",
}
UNMASKED = (0x377, 0x36F, 0x367, 0x340, 0xB40, 0x740, 0xF40)
"""Control words: overflow, underflow, both or all exceptions unmasked, the last rounding
in all ways."""
NARROW = (0x067, 0xA67)
"""Both, with precisions of 24 and 53 bits."""


def cases() -> list[Case]:
    """Name, code and area of each."""
    values = VALUES | EXTREMES
    found = []
    for (name, code), (a, first), control in itertools.product(
        STORES.items(), values.items(), (0x37E, *UNMASKED)
    ):
        data = area(control, first, VALUES["1"], KEPT)
        found.append((f"{name} {a} {control:#x}", body(bytes.fromhex(code)), data))
    for (name, code), empty, control in itertools.product(STORES.items(), (0, 1), (0x37E, 0x340)):
        data = area(control, VALUES["3"], VALUES["1"], KEPT)
        found.append((f"{name} of {empty} {control:#x}", body(bytes.fromhex(code), empty), data))
    some = [*EXTREMES.items(), *list(VALUES.items())[2::7]]
    pairs = list(itertools.product(some, some))
    for (name, code), ((a, first), (b, second)), control in itertools.product(
        ARITHMETIC.items(), pairs, (0x377, 0x36F, 0xB40, *NARROW)
    ):
        data = area(control, first, second, bytes.fromhex("010000000000f07f"))
        if "m" in name.split()[-1]:
            data = area(control, first, second, bytes.fromhex("01008000000080d5"))
        found.append((f"{name} {a} {b} {control:#x}", body(bytes.fromhex(code)), data))
    return found


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    return on_the_host(cases(), tmp_path_factory.mktemp("x87"))


@pytest.mark.parametrize("engine", ENGINES)
def test_the_guest_does_as_the_host(expected: list[bytes], engine: str) -> None:
    assert differences(cases(), expected, engine) == {}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("code", STORES.values(), ids=STORES)
def test_a_store_that_is_not_made_meets_no_page_fault(code: str, engine: str) -> None:
    """So it is on the host, too; one that is made does, and what it should store is not popped."""
    for load, destination in itertools.product((b"", b"\xd9\xe8"), (ABSENT, READ_ONLY)):
        # fninit; fldcw [rsi]; fld1 or nothing; the store; fnstsw ax
        text = b"\xdb\xe3\xd9\x2e" + load + bytes.fromhex(code) + b"\xdf\xe0"
        guest = Tiny("l64", code=text, memory={DATA: pack("<H", 0x37E)})
        guest.registers |= {"rdi": destination, "rsi": DATA}
        run = begin(guest, {"EXCEPTION_BITMAP": 0xFFFFFFFF}, engine=engine)
        event = run.exit.interruption
        assert (event.vector if event else None) == (PF if load else None)
        if event is None:
            assert run.processor.registers.rax & 0x38FF == 0xC1
        else:
            assert run.vmcs["GUEST_RIP"] == CODE + 4 + len(load)


@pytest.mark.parametrize("engine", ENGINES)
def test_storing_the_environment_masks_all_exceptions(engine: str) -> None:
    """FNSTENV, of which a debugger's or a compiler's FLDENV behind it then makes nothing."""
    # fninit; fldcw [rsi]; fldz; fld1; fdivrp, by 0; fnstenv [rsi + 16]; fnstcw [rsi]; fld1
    text = bytes.fromhex("dbe3 d92e d9ee d9e8 def1 d97610 d93e d9e8")
    guest = Tiny("l64", code=text, memory={DATA: pack("<H", 0x37B)}, registers={"rsi": DATA})
    run = begin(guest, {"EXCEPTION_BITMAP": 0xFFFFFFFF}, engine=engine)
    assert run.exit.interruption is None
    assert run.processor.memory.read(DATA, 2) == pack("<H", 0x37F)
    assert run.processor.memory.read(DATA + 16, 2) == pack("<H", 0x37B)
