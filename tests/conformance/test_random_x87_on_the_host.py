"""Random x87 instructions with random registers, tags and control words, against the host's.

TRAPGATE_RANDOM_CODE says how many instructions (2,000).
"""

import os
import random
from struct import pack

import iced_x86 as iced
import pytest

from tests.conformance.host_state import (
    ENGINES,
    NEEDS_HOST,
    OPERAND,
    RDI,
    REGISTERS,
    RSP,
    STATUS,
    Case,
    Compare,
    comparison,
)
from tests.conformance.tiny_guest import CODE, STACK
from tests.conformance.x87_host import VALUES

pytestmark = [pytest.mark.conformance, NEEDS_HOST]

COUNT = int(os.environ.get("TRAPGATE_RANDOM_CODE", "2000"))
_NAMES = {value: name for name, value in vars(iced.Mnemonic).items() if isinstance(value, int)}
_LEFT_OUT = (
    # Right to the last place only (`test_x87_functions_on_the_host`).
    *("FSIN", "FCOS", "FSINCOS", "FPTAN", "FPATAN", "F2XM1", "FYL2X", "FYL2XP1"),
    # What lies in memory may set any flag, and the addresses of code differ.
    *("FLDENV", "FRSTOR", "FNSTENV", "FNSAVE", "FLDCW"),
)
_TELL = (
    *("FCOM", "FCOMP", "FCOMPP", "FUCOM", "FUCOMP", "FUCOMPP", "FTST", "FICOM", "FICOMP"),
    *("FPREM", "FPREM1", "FXAM"),
)
"""Those that define C0, C2 and C3."""
_CONDITIONS = 0x4500
_CONTROLS = (0x37F, 0x37F, 0x77F, 0xB7F, 0xF7F, 0x27F, 0x07F)


def instruction(chance: random.Random) -> tuple[bytes, iced.Instruction]:
    """One with registers, or an operand at RDI."""
    while True:
        form = chance.choice((0xC0 | chance.randrange(64), 0x47 | chance.randrange(8) << 3))
        code = chance.choice((b"", b"", b"\x48", b"\x66"))
        code += bytes([chance.randrange(0xD8, 0xE0), form])
        if form < 0x80:
            code += bytes([chance.choice((0, 8, 16, 20))])
        elif code[-2] == 0xD9 and 0xD8 <= form < 0xE0:
            continue  # FSTPNCE, which no manual of today has
        found = iced.Decoder(64, code + bytes(9), ip=CODE).decode()
        if not found.is_invalid and _NAMES[found.mnemonic] not in _LEFT_OUT:
            return code[: found.len], found


def number(chance: random.Random) -> bytes:
    """Ten bytes: a special value, any, or a number near 1."""
    match chance.randrange(3):
        case 0:
            return bytes.fromhex(chance.choice(list(VALUES.values())))
        case 1:
            return chance.randbytes(10)
        case _:
            high = 16383 + chance.randrange(-70, 70) | chance.randrange(2) << 15
            return pack("<QH", chance.getrandbits(63) | 1 << 63, high)


def case(chance: random.Random) -> Case:
    code, found = instruction(chance)
    general = [chance.getrandbits(64) for _ in REGISTERS]
    general[RSP], general[RDI] = STACK, OPERAND
    unmasked = 0x340 | chance.getrandbits(6) | chance.randrange(4) << 10
    control = chance.choice((*_CONTROLS, unmasked))
    status = chance.randrange(8) << 11 | chance.choice((0, 0x4700 & chance.getrandbits(16)))
    valid = chance.choice((0xFF, 0xFF, chance.getrandbits(8), 0))
    fx = pack("<HHBxHQQII", control, status, valid, 0, 0, 0, 0x1F80, 0xFFFF)
    fx += b"".join(number(chance).ljust(16, b"\0") for _ in range(8))
    memory = b"".join(
        number(chance).ljust(16, b"\1") if chance.random() < 0.6 else chance.randbytes(16)
        for _ in range(4)
    )
    flags = 2 | chance.getrandbits(12) & STATUS
    told = 0 if _NAMES[found.mnemonic] in _TELL else _CONDITIONS
    text = f"{code.hex()} {found} {control:#x} {status:#x} {valid:#x}"
    return Case(text, code, 0, tuple(general), flags, fx.ljust(512, b"\0"), memory, told)


compare = comparison(case, COUNT, "x87")


@pytest.mark.parametrize("engine", ENGINES)
def test_the_guest_does_as_the_host(compare: Compare, engine: str) -> None:
    assert compare(engine) == {}
