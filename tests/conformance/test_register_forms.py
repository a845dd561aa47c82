"""REX, immediate bytes and registers that mean less than they seem, and what that leaves alone."""

from struct import pack

import pytest

from tests.conformance.tiny_guest import DATA, Run, Tiny, begin
from trapgate.sdm.reasons import ExitReason

pytestmark = pytest.mark.conformance

ENGINES = ("native", "portable")
EVERYTHING = {"EXCEPTION_BITMAP": 0xFFFFFFFF}
ONES = (1 << 64) - 1
AT = pack("<I", DATA).hex()

RAX_TO_MM1, MM0_TO_RAX = "480f6ec8", "480f7ec0"
RAX_TO_XMM1, XMM0_TO_RAX = "66480f6ec8", "66480f7ec0"
LOAD_TAGS = f"d93425{AT}0fb70425{pack('<I', DATA + 8).hex()}"
"""Fnstenv [DATA]; movzx eax, word [DATA + 8]: 1 is zero, 2 is special, 3 is empty."""
LOAD_MXCSR = f"0fae1c25{AT}8b0425{AT}"
"""Stmxcsr [DATA]; mov eax, [DATA]."""

CASES: dict[str, tuple[str, dict[str, int], dict[str, int]]] = {
    "lahf, rex": ("489f", {"rax": ONES}, {"rax": ONES & ~0xFF00 | 0x200}),
    "mov al, 11h, rex.r": ("44c6c011", {"rax": ONES}, {"rax": ONES & ~0xFF | 0x11}),
    "mov eax, 5, rex.r": ("44c7c005000000", {"rax": ONES}, {"rax": 5}),
    "cmpxchg of others": (
        "0fb1d9",
        {"rax": ONES << 32 & ONES | 1, "rcx": ONES - 4, "rbx": 7},
        {"rax": 0xFFFFFFFB, "rcx": ONES - 4},
    ),
    "cmpxchg of the same": (
        "0fb1d9",
        {"rax": ONES - 4, "rcx": 0xFFFFFFFB, "rbx": ONES},
        {"rax": ONES - 4, "rcx": 0xFFFFFFFF},
    ),
    "cmpxchg of the accumulator": ("0fb1d8", {"rax": ONES, "rbx": ONES}, {"rax": 0xFFFFFFFF}),
    "lock cmpxchg of memory": (
        f"f00fb11c25{AT}488b0c25{AT}",
        {"rax": ONES << 32 & ONES, "rbx": 9},
        {"rax": ONES << 32 & ONES, "rcx": 9},
    ),
    "cmpxchg of other memory": (f"0fb11c25{AT}", {"rax": ONES, "rbx": 9}, {"rax": 0}),
    "pabsb, rex.r and rex.b": (
        RAX_TO_MM1 + "450f381cc1" + MM0_TO_RAX,
        {"rax": 0xFF80_7F01_FE00_0203},
        {"rax": 0x0180_7F01_0200_0203},
    ),
    "pabsb makes registers valid": ("dbe30f381cd9" + LOAD_TAGS, {}, {"rax": 0x5595}),
    "palignr by memory, rex.r": (
        f"440f3a0f0425{AT}0048b80807060504030201" + MM0_TO_RAX,
        {},
        {"rax": 0},
    ),
    "cvtpi2pd of memory spares x87": (f"dbe3660f2a0425{AT}" + LOAD_TAGS, {}, {"rax": 0xFFFF}),
    "cvtpi2pd of a register": ("dbe3660f2ac1" + LOAD_TAGS, {}, {"rax": 0x5555}),
    "fldcw of zeros": (f"d92c25{AT}d93c25{AT}0fb70425{AT}", {}, {"rax": 0x40}),
    "fldcw of ones": (
        f"488904 25{AT}d92c25{AT}d93c25{AT}0fb70425{AT}",
        {"rax": ONES},
        {"rax": 0x1F7F},
    ),
    "movq writes a nan": ("dbe3480f6ef0" + LOAD_TAGS, {}, {"rax": 0x6555}),
    "phaddw of one register": (
        "66480f6ec0660f3801c0" + XMM0_TO_RAX,
        {"rax": 0x0004_0003_0002_0001},
        {"rax": 0x0007_0003},
    ),
    "dpps adds pairs": (
        # (1 + 0) + (2^-24 + 2^-24): one after the other both would be lost.
        "66480f6ec066480f6ecb660f6cc166480f6ed1660f6cd2660f3a40c2f1" + XMM0_TO_RAX,
        {"rax": 0x3F800000, "rbx": 0x33800000_33800000, "rcx": 0x3F800000_3F800000},
        {"rax": 0x3F800001},
    ),
    "cmpps, predicate 0f8h": ("0fc2c1f8" + XMM0_TO_RAX, {}, {"rax": ONES}),
    "cmpsd of memory, predicate 0fch": (
        f"f20fc2842400000000fc{XMM0_TO_RAX}",
        {},
        {"rax": 0},
    ),
    "rcpss of a denormal": (
        RAX_TO_XMM1 + "f30f53c1" + XMM0_TO_RAX,
        {"rax": 0x80000001},
        {"rax": 0xFF800000},
    ),
    "rcpss to a denormal": (
        RAX_TO_XMM1 + "f30f53c1" + XMM0_TO_RAX,
        {"rax": 0xFF7FFFFF},
        {"rax": 0x80000000},
    ),
    "rcpss raises nothing": (
        RAX_TO_XMM1 + "f30f53c1" + LOAD_MXCSR,
        {"rax": 0x40400000},
        {"rax": 0x1F80},
    ),
    "roundss raises precision": (
        RAX_TO_XMM1 + "660f3a0ac100" + LOAD_MXCSR,
        {"rax": 0x3FC00000},
        {"rax": 0x1FA0},
    ),
    "roundss does not": (
        RAX_TO_XMM1 + "660f3a0ac108" + LOAD_MXCSR,
        {"rax": 0x3FC00000},
        {"rax": 0x1F80},
    ),
}
"""Code, registers before, registers behind; the page at DATA is all zeros."""


def run(code: str, engine: str, **registers: int) -> Run:
    guest = Tiny("l64", code=bytes.fromhex(code), registers=registers)
    guest.memory[DATA] = bytes(16)
    ran = begin(guest, EVERYTHING, engine=engine)
    assert ran.exit.reason is ExitReason.VMCALL, ran.exit.interruption
    return ran


@pytest.mark.parametrize("engine", ENGINES)
def test_registers_behind(engine: str) -> None:
    wrong = {}
    for name, (code, before, behind) in CASES.items():
        ran = run(code, engine, **before)
        found = {register: getattr(ran.processor.registers, register) for register in behind}
        if found != behind:
            wrong[name] = found
        stack = ran.guest.state()["GUEST_RSP"]
        assert ran.vmcs["GUEST_RSP"] == stack, name
    assert wrong == {}


@pytest.mark.parametrize("engine", ENGINES)
def test_flags(engine: str) -> None:
    behind = run("489e", engine, rax=0xD700).vmcs["GUEST_RFLAGS"]
    assert behind & 0xFF == 0xD7
    # PCMPESTRI with lengths of 2^32 and -2^63, which count as 16: no string has an end.
    behind = run("66480f3a61c108", engine, rax=1 << 32, rdx=1 << 63).vmcs["GUEST_RFLAGS"]
    assert behind & 0xC1 == 1
