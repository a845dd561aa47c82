"""x87 instructions over special values: the guest's results and flags against the host's."""

import itertools
from struct import pack

import pytest

from tests.conformance.tiny_guest import DATA, Run, Tiny, begin
from tests.conformance.x87_host import (
    ENGINES,
    NEEDS_HOST,
    ROUND,
    VALUES,
    Case,
    area,
    body,
    differences,
    on_the_host,
)

pytestmark = [pytest.mark.conformance, NEEDS_HOST]

BINARY = {
    "fxch": "d9c9",
    "fcmove": "dac9",
    "fcompp": "ded9",
    "fucompp": "dae9",
    "fadd": "dec1",
    "fsub": "dee9",
    "fsubr": "dee1",
    "fmul": "dec9",
    "fdiv": "def9",
    "fdivr": "def1",
    "fcom": "d8d1",
    "fucom": "dde1",
    "fcomi": "dbf1",
    "fucomi": "dbe9",
    "fprem": "d9f8",
    "fprem1": "d9f5",
    "fscale": "d9fd",
    "fxtract": "d9f4",
}
UNARY = {
    "fsqrt": "d9fa",
    "frndint": "d9fc",
    "fchs": "d9e0",
    "fabs": "d9e1",
    "ftst": "d9e4",
    "fst m32": "d91f",
    "fst m64": "dd1f",
    "fist m16": "df17",
    "fistp m16": "df1f",
    "fisttp m16": "df0f",
    "fxam": "d9e5",
    "fistp m32": "db1f",
    "fbstp": "df37",
    "fadd single": "d8c0",
    "fdiv single": "d8f0",
    "fistp m64": "df3f",
    "fisttp m32": "db0f",
    "fisttp m64": "dd0f",
}
NARROW = (0xB7F, 0x67F, 0x07F, 0x27F)
"""Control words: rounding up, and down to 64 bits; precisions of 24 and 53 bits."""
MEMORY = {
    "flds": "d907",
    "fldl": "dd07",
    "fadds": "d807",
    "fdivl": "dc37",
    "fcoms": "d817",
    "fmull": "dc0f",
}
REALS = {
    "0": (0, 0),
    "1": (0x3F80_0000, 0x3FF0_0000_0000_0000),
    "denormal": (1, 1),
    "-denormal": (0x8040_0000, 0x8008_0000_0000_0000),
    "inf": (0x7F80_0000, 0x7FF0_0000_0000_0000),
    "qnan": (0x7FC0_0001, 0x7FF8_0000_0000_0001),
    "snan": (0x7F80_0001, 0x7FF0_0000_0000_0001),
}
"""Bits in single and in double precision."""
EMPTY = {
    "fadd": "d8c1",
    "fchs": "d9e0",
    "fcom": "d8d1",
    "fcomi": "dbf1",
    "fst m32": "d917",
    "fstp m80": "db3f",
    "fistp m16": "df1f",
    "fistp m64": "df3f",
    "fld st1": "d9c1",
    "fxch": "d9c9",
    "fsqrt": "d9fa",
    "fxam": "d9e5",
    "fcmove": "dac9",
    "fdecstp": "d9f6",
}
"""With one value on the stack, or none."""
FULL = {"fld1": "d9e8", "fld st0": "d9c0", "fld m80": "db2f", "fild": "db07"}
"""With eight."""
UNMASKED = (0x37E, 0x37D, 0x37B, 0x378)
"""Control words: invalid operations, denormal operands, division by 0, or all three unmasked."""


def cases() -> list[Case]:
    """Name, code and area of each."""
    found = []
    for (name, code), (a, first), (b, second) in itertools.product(
        BINARY.items(), VALUES.items(), VALUES.items()
    ):
        text = f"{name} {a} {b}"
        found.append((text, body(bytes.fromhex(code)), area(0x37F, first, second)))
    for (name, code), (a, first), (b, second), control in itertools.product(
        BINARY.items(), VALUES.items(), list(VALUES.items())[::3], NARROW
    ):
        text = f"{name} {a} {b} {control:#x}"
        found.append((text, body(bytes.fromhex(code)), area(control, first, second)))
    for (name, code), (a, first), (rounding, control) in itertools.product(
        UNARY.items(), VALUES.items(), ROUND.items()
    ):
        text = f"{name} {a} {rounding}"
        found.append((text, body(bytes.fromhex(code)), area(control, first, VALUES["0"])))
    for (name, code), (a, first), (b, bits) in itertools.product(
        MEMORY.items(), VALUES.items(), REALS.items()
    ):
        data = area(0x37F, first, VALUES["0"], pack("<I", bits[0]))
        if name.endswith("l"):
            data = area(0x37F, first, VALUES["0"], pack("<Q", bits[1]))
        found.append((f"{name} {a} {b}", body(bytes.fromhex(code)), data))
    for (name, code), values, control in itertools.product(EMPTY.items(), (0, 1), (0x37F, 0x37E)):
        text = f"{name} of {values} {control:#x}"
        found.append(
            (text, body(bytes.fromhex(code), values), area(control, VALUES["3"], VALUES["1"]))
        )
    for (name, code), control in itertools.product(FULL.items(), (0x37F, 0x37E)):
        data = area(control, VALUES["3"], VALUES["1"], bytes.fromhex(VALUES["1"]))
        found.append((f"{name} of 8 {control:#x}", body(bytes.fromhex(code), 8), data))
    for (name, code), (a, first), (b, second), control in itertools.product(
        BINARY.items(), VALUES.items(), list(VALUES.items())[::5], UNMASKED
    ):
        if name not in ("fcomi", "fucomi"):
            text = f"{name} {a} {b} {control:#x}"
            found.append((text, body(bytes.fromhex(code)), area(control, first, second)))
    return found


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    return on_the_host(cases(), tmp_path_factory.mktemp("x87"))


@pytest.mark.parametrize("engine", ENGINES)
def test_the_guest_computes_as_the_host(expected: list[bytes], engine: str) -> None:
    assert differences(cases(), expected, engine) == {}


# What is not masked.

DIVIDE = b"\xd9\xe8\xd9\xee\xde\xf9"
"""Fld1; fldz; fdivp."""


def unmasked(code: bytes, engine: str, control: int = 0x37B) -> Run:
    """FLDCW with ZE unmasked, then `code`."""
    prefix = b"\xdb\xe3\xd9\x2f"
    guest = Tiny("l64", code=prefix + code, memory={DATA: pack("<H", control)})
    guest.registers["rdi"] = DATA
    return begin(guest, {"EXCEPTION_BITMAP": 0xFFFFFFFF}, engine=engine)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("waits", [b"\xd9\xe8", b"\x9b", b"\xd9\x2f", b"\xdd\xd8"])
def test_the_next_waiting_instruction_raises_mf(waits: bytes, engine: str) -> None:
    run = unmasked(DIVIDE + b"\x90" + waits, engine)
    assert run.exit.interruption is not None
    assert run.exit.interruption.vector == 16
    assert run.vmcs["GUEST_RIP"] & 0xFFF == 4 + len(DIVIDE) + 1


@pytest.mark.parametrize("engine", ENGINES)
def test_others_do_not_wait(engine: str) -> None:
    run = unmasked(DIVIDE + b"\xdf\xe0\xdb\xe2\xd9\xe8", engine)  # fnstsw ax; fnclex; fld1
    assert run.exit.interruption is None
    assert run.processor.registers.rax & 0x8084 == 0x8084


@pytest.mark.parametrize("engine", ENGINES)
def test_unmasking_what_is_flagged(engine: str) -> None:
    guest = b"\xdb\xe3" + DIVIDE + b"\xd9\x2f\xd9\xe8"  # fninit; ...; fldcw; fld1
    run = unmasked(guest, engine)
    assert run.exit.interruption is not None
    assert run.exit.interruption.vector == 16
