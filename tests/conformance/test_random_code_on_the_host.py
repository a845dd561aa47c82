"""Random instructions with random registers: the guest's state behind them against the host's.

What the SDM leaves open is not compared. TRAPGATE_RANDOM_CODE says how many instructions (300).
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

pytestmark = [pytest.mark.conformance, NEEDS_HOST]

COUNT = int(os.environ.get("TRAPGATE_RANDOM_CODE", "300"))
_FEATURES = {
    getattr(iced.CpuidFeature, name)
    for name in (
        *("INTEL8086", "INTEL186", "INTEL286", "INTEL386", "INTEL486", "X64", "CMOV", "CX8"),
        *("MMX", "SSE", "SSE2", "SSE3", "SSSE3", "SSE4_1", "SSE4_2", "POPCNT", "CMPXCHG16B"),
    )
}
_NAMES = {value: name for name, value in vars(iced.Mnemonic).items() if isinstance(value, int)}
_LEFT_OUT = (
    # What depends on more than the state that is loaded.
    *("CPUID", "RDTSC", "RDPMC", "SYSCALL", "SMSW", "SLDT", "STR", "SGDT", "SIDT", "LAR", "LSL"),
    *("VERR", "VERW", "IN", "OUT", "LDMXCSR", "STMXCSR"),
    *("FXSAVE", "FXRSTOR", "FXSAVE64", "FXRSTOR64"),
    # Memory that is not at RDI alone; likewise string instructions.
    *("XLATB", "MASKMOVQ", "MASKMOVDQU"),
    # A multiple of the width leaves OF open; so does a count above the width all of SHLD's result.
    *("RCL", "RCR", "SHLD", "SHRD"),
    # Of 0 the destination is open; table look-ups differ; AMD's CVTPI2PS spares the x87.
    *("BSF", "BSR", "RCPPS", "RCPSS", "RSQRTPS", "RSQRTSS", "CVTPI2PS"),
)
_FLAGS = {
    iced.RflagsBits.CF: 0x001,
    iced.RflagsBits.PF: 0x004,
    iced.RflagsBits.AF: 0x010,
    iced.RflagsBits.ZF: 0x040,
    iced.RflagsBits.SF: 0x080,
    iced.RflagsBits.OF: 0x800,
}
_PATTERNS = (0, 1, 0x7F, 0x80, 0xFF)
_SINGLES = (
    0,
    0x80000000,
    0x3F800000,
    0xBF800000,
    0x7F800000,
    0x7FC00001,
    0x7F800001,
    1,
    0x4F000000,
)
_DOUBLES = tuple(n << 48 for n in (0, 0x8000, 0x3FF0, 0xBFF8, 0x7FF0, 0x7FF8, 0x41E0, 0xC3E0, 1))


def instruction(chance: random.Random) -> tuple[bytes, iced.Instruction]:
    """One that goes on to the next, with operands in registers but RSP, or at RDI."""
    while True:
        prefix = chance.choice((b"", b"", b"\x66", b"\xf2", b"\xf3"))
        form = chance.choice((0xC0 | chance.randrange(64), 0x47 | chance.randrange(8) << 3))
        in_memory = form < 0x80
        rex = chance.choice((b"", bytes([0x40 | chance.randrange(16)]), b"\x48"))
        if in_memory and rex:
            rex = bytes([rex[0] & ~1])
        escape = chance.choice((b"", b"\x0f", b"\x0f", b"\x0f\x38", b"\x0f\x3a"))
        opcode = chance.randrange(256)
        if escape == b"" and 0xD8 <= opcode <= 0xDF:
            continue  # x87 has tests of its own
        place = bytes([chance.choice((0, 8, 16, 32, 33))]) if in_memory else b""
        code = prefix + rex + escape + bytes([opcode, form]) + place + chance.randbytes(9)
        found = iced.Decoder(64, code[:15], ip=CODE).decode()
        if not found.is_invalid and is_chosen(found):
            return code[: found.len], found


def is_chosen(found: iced.Instruction) -> bool:
    """Whether its effect is a matter of the state that is loaded, and of nothing else."""
    name = _NAMES[found.mnemonic]
    if found.flow_control != iced.FlowControl.NEXT or found.has_lock_prefix:
        return False
    if found.is_privileged or found.is_stack_instruction or name in _LEFT_OUT:
        return False
    if found.is_string_instruction:
        return False
    if not set(found.cpuid_features()) <= _FEATURES:
        return False
    info = iced.InstructionInfoFactory().info(found)
    for one in info.used_registers():
        register = one.register
        if iced.RegisterExt.full_register(register) == iced.Register.RSP:
            return False
        # LFS would take the host's program its FS.
        if iced.RegisterExt.is_segment_register(register) and register != iced.Register.DS:
            return False
    # Selectors differ.
    if name == "MOV" and iced.Register.DS in (found.op0_register, found.op1_register):
        return False
    bits = name in ("BT", "BTS", "BTR", "BTC") and found.op_kind(1) == iced.OpKind.REGISTER
    return not (bits and list(info.used_memory())) and all(
        one.base == iced.Register.RDI
        and one.index == iced.Register.NONE
        and one.segment == iced.Register.DS
        for one in info.used_memory()
    )


def vector(chance: random.Random) -> bytes:
    """Sixteen bytes: any, of patterns, or floating-point numbers."""
    kind = chance.randrange(4)
    if kind == 0:
        return chance.randbytes(16)
    if kind == 1:
        return bytes(chance.choice(_PATTERNS) for _ in range(16))
    if kind == 2:
        return pack("<4I", *(chance.choice(_SINGLES) for _ in range(4)))
    return pack("<2Q", *(chance.choice(_DOUBLES) for _ in range(2)))


def case(chance: random.Random) -> Case:
    code, found = instruction(chance)
    general = [
        chance.choice(
            (0, 1, (1 << 64) - 1, 1 << 63, chance.getrandbits(64), chance.getrandbits(32))
        )
        for _ in REGISTERS
    ]
    general[RSP], general[RDI] = STACK, OPERAND
    control = 0x1F80 | chance.choice((0, 0, 0x2000, 0x6000, 0x40, 0x8040))
    exponents = (b"\xff\xff", b"\xff\x3f")
    fx = pack("<HHBxHQQII", 0x37F, 0, chance.choice((0, 0xFF)), 0, 0, 0, control, 0xFFFF)
    for _ in range(8):
        fx += (vector(chance)[:8] + chance.choice(exponents)).ljust(16, b"\0")
    fx += b"".join(vector(chance) for _ in range(16))
    open_flags = sum(bit for flag, bit in _FLAGS.items() if found.rflags_undefined & flag)
    memory = b"".join(vector(chance) for _ in range(4))
    flags = 2 | chance.getrandbits(12) & STATUS
    text = f"{code.hex()} {found}"
    return Case(text, code, open_flags, tuple(general), flags, fx.ljust(512, b"\0"), memory)


compare = comparison(case, COUNT, "code")


@pytest.mark.parametrize("engine", ENGINES)
def test_the_guest_does_as_the_host(compare: Compare, engine: str) -> None:
    assert compare(engine) == {}
