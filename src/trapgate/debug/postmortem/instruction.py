"""The instruction at RIP: disassembled, and its place by name if anybody knows one."""

from collections.abc import Callable

from iced_x86 import CpuidFeature, Decoder, Formatter, FormatterSyntax, Instruction, Register

from trapgate.debug.postmortem.view import View
from trapgate.sdm.event_words import hexadecimal

_LONGEST = 15
_SIMD = {
    CpuidFeature.SSE,
    CpuidFeature.SSE2,
    CpuidFeature.SSE3,
    CpuidFeature.SSSE3,
    CpuidFeature.SSE4_1,
    CpuidFeature.SSE4_2,
}
_AVX = {CpuidFeature.AVX, CpuidFeature.AVX2, CpuidFeature.FMA}

Namer = Callable[[int], str]
"""From a linear address to "symbol+offset", "" if nobody knows."""


def no_names(_address: int) -> str:
    """For guests without symbols."""
    return ""


def decoded(view: View) -> Instruction | None:
    """The instruction at RIP, None if its bytes are not there or are none."""
    return next(iter(following(view, 1)), None)


def following(view: View, count: int) -> list[Instruction]:
    """Up to `count` instructions from RIP on."""
    data = b""
    for size in (_LONGEST * count, _LONGEST, 8, 4, 2, 1):
        data = view.linear(view.code_address, size) or b""
        if data:
            break
    decoder = Decoder(view.bits, data, ip=view.rip)
    found = []
    for _ in range(count):
        if not decoder.can_decode:
            break
        instruction = decoder.decode()
        if instruction.is_invalid:
            break
        found.append(instruction)
    return found


def disassembled(instruction: Instruction) -> str:
    """In Intel's syntax."""
    formatter = Formatter(FormatterSyntax.INTEL)
    formatter.hex_prefix, formatter.hex_suffix = "", "H"
    return str(formatter.format(instruction))


def place(view: View, names: Namer) -> str:
    """RIP with its name: 100043H (main+3H)."""
    name = names(view.code_address)
    return hexadecimal(view.rip) + (f" ({name})" if name else "")


def sentence(view: View, names: Namer) -> str:
    """Where the guest was, and at which instruction."""
    where = f"at RIP {place(view, names)} in {view.mode}, CPL {view.cpl}"
    instruction = decoded(view)
    if instruction is None:
        data = view.linear(view.code_address, 4)
        what = (
            f"bytes {data.hex(' ')} are not an instruction"
            if data
            else (f"no instruction can be fetched: {view.walk(view.code_address, fetch=True)}")
        )
        return f"{where}: {what}"
    return f"{where}: {disassembled(instruction)}"


def is_simd(instruction: Instruction) -> bool:
    """SSE in any version."""
    return bool(_SIMD & set(instruction.cpuid_features()))


def is_avx(instruction: Instruction) -> bool:
    """Encoded with VEX."""
    return bool(_AVX & set(instruction.cpuid_features()))


def uses_red_zone(instruction: Instruction) -> bool:
    """Whether it touches memory below RSP, within 128 bytes."""
    below = (
        instruction.memory_displacement - (1 << 64) if instruction.memory_displacement >> 63 else 0
    )
    return instruction.memory_base == Register.RSP and -128 <= below < 0
