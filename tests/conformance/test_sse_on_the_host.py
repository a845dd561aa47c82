"""SSE arithmetic over special values: the guest's results and MXCSR against the host processor's.

The test compiles a small program for the host, in C, that executes the very bytes that the guest
does, a loop over areas of memory: LDMXCSR, two loads, the instruction, STMXCSR and a store.
"""

import platform
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from struct import calcsize, pack, unpack_from

import pytest

from tests.conformance.tiny_guest import Tiny, begin

pytestmark = [
    pytest.mark.conformance,
    pytest.mark.skipif(
        platform.machine() != "x86_64" or shutil.which("gcc") is None,
        reason="needs an x86-64 host and a C compiler",
    ),
]

ENGINES = ("native", "portable")
AREAS, SIZE = 0x80000, 64
"""Where they are in the guest, and how many bytes each has."""
XM = 19

SINGLE = (
    *(0, 0x8000_0000, 0x3F80_0000, 0xBF80_0000, 0x3FC0_0000, 0x0000_0001, 0x8000_0001),
    *(0x007F_FFFF, 0x807F_FFFF, 0x0040_0000, 0x0080_0000, 0x8080_0000, 0x7F7F_FFFF, 0x7F80_0000),
    *(0xFF80_0000, 0x7FC0_0001, 0xFFC0_0002, 0x7F80_0001, 0x2000_0000, 0x5F00_0000),
)
DOUBLE = (
    *(0, 1 << 63, 0x3FF << 52, 0xBFF << 52, 0x3FF8 << 48, 1, 1 << 63 | 1),
    *((1 << 52) - 1, 0x800F << 48 | 0xFFFF, 1 << 51, 1 << 52, 0x8010 << 48, 0x7FEF << 48 | 0xFFFF),
    *(0x7FF << 52, 0xFFF << 52, 0x7FF8 << 48 | 1, 0xFFF8 << 48 | 2, 0x7FF << 52 | 1, 0x1000 << 48),
)
"""Zeros, ones, denormals, the smallest and largest normal numbers, infinities, NaNs, others."""

FORMS = {"ps": "", "pd": "66", "ss": "f3", "sd": "f2"}
OPERATIONS = {"add": 0x58, "mul": 0x59, "sub": 0x5C, "min": 0x5D, "div": 0x5E, "max": 0x5F}
INSTRUCTIONS = {
    **{f"{n}{f}": f"{p}0f{op:02x}c1" for n, op in OPERATIONS.items() for f, p in FORMS.items()},
    **{f"sqrt{f}": f"{p}0f51c1" for f, p in FORMS.items()},
    **{f"cmp{n}{f}": f"{p}0fc2c1{n:02x}" for n in (0, 1, 5) for f, p in FORMS.items()},
    "cvtps2pd": "0f5ac1",
    "cvtpd2ps": "660f5ac1",
    "cvtss2sd": "f30f5ac1",
    "cvtsd2ss": "f20f5ac1",
    "comiss": "0f2fc1",
    "comisd": "660f2fc1",
    "ucomiss": "0f2ec1",
    "ucomisd": "660f2ec1",
    "haddps": "f20f7cc1",
    "haddpd": "660f7cc1",
    "hsubps": "f20f7dc1",
    "hsubpd": "660f7dc1",
    "addsubps": "f20fd0c1",
    "addsubpd": "660fd0c1",
    "cvtps2dq": "660f5bc1",
    "cvttps2dq": "f30f5bc1",
    "cvtpd2dq": "f20fe6c1",
    "cvttpd2dq": "660fe6c1",
    "cvtdq2ps": "0f5bc1",
    "cvtdq2pd": "f30fe6c1",
    "roundps": "660f3a08c100",
    "roundpd": "660f3a09c104",
    "roundss": "660f3a0ac101",
    **{f"dpps {n:#x}": f"660f3a40c1{n:02x}" for n in (0x31, 0xFF, 0x7F, 0xA4, 0xCF)},
    **{f"dppd {n:#x}": f"660f3a41c1{n:02x}" for n in (0x11, 0x33, 0x21)},
    "dpps xmm0, xmm0": "660f3a40c0ff",
    "haddps xmm0, xmm0": "f20f7cc0",
    "divps xmm0, xmm0": "0f5ec0",
    "andps": "0f54c1",
    "unpcklps": "0f14c1",
    "shufps": "0fc6c11b",
    "paddd": "660ffec1",
    "addps [rdi + 32]": "0f584720",
    "mulsd [rdi + 32]": "f20f594720",
    "comisd [rdi + 32]": "660f2f4720",
}
CONTROLS = (
    *(0x1F80, 0x1FC0, 0x9F80, 0x5F80, 0x1F82, 0x3F80, 0x7F80, 0xFFC0),
    *(0x1FA0, 0x1FE0, 0x9FA0),
)
"""MXCSR: as at first, DAZ, FTZ, rounding up, with a flag set; the other roundings, all at once;
with the flag of inexact results, which then have nothing to tell, and DAZ, FTZ."""

PROGRAM = r"""
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
int main(void) {
    static unsigned char area[1 << 16];
    unsigned length, size;
    unsigned char *code =
        mmap(0, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    while (fread(&length, 4, 1, stdin) == 1 && fread(&size, 4, 1, stdin) == 1) {
        if (length > 4096 || size > sizeof area) return 1;
        if (fread(code, 1, length, stdin) != length) return 1;
        if (fread(area, 1, size, stdin) != size) return 1;
        unsigned char *first = area;
        unsigned long count = size / 64;
        __asm__ volatile("call *%2" : "+D"(first), "+c"(count) : "r"(code)
                         : "memory", "cc", "xmm0", "xmm1");
        fwrite(area, 1, size, stdout);
    }
    return 0;
}
"""


def loop(instruction: bytes) -> bytes:
    """The code, with areas from RDI on, RCX of them: MXCSR at 0, operands at 16 and 32."""
    body = b"".join(
        (
            b"\x0f\xae\x17",  # ldmxcsr [rdi]
            b"\x0f\x10\x47\x10\x0f\x10\x4f\x20",  # movups xmm0, [rdi + 16]; xmm1, [rdi + 32]
            instruction,
            b"\x0f\xae\x5f\x04",  # stmxcsr [rdi + 4]
            b"\x0f\x11\x47\x30",  # movups [rdi + 48], xmm0
            b"\x48\x83\xc7" + bytes([SIZE]),  # add rdi, 64
            b"\xff\xc9",  # dec ecx
        )
    )
    back = len(body) + 2
    return b"\x90" * 8 + body + b"\x75" + pack("b", -back)


def any_number(chance: random.Random, double: bool) -> int:
    """A number near 1, so that sums and products are rounded."""
    bits, exponent = (52, 1023) if double else (23, 127)
    high = exponent + chance.randrange(-12, 12) | chance.randrange(2) << (11 if double else 8)
    return high << bits | chance.getrandbits(bits)


def areas(name: str) -> bytes:
    """Operands for an instruction: all pairs of special values in some element, in some order."""
    chance = random.Random(name)
    double = any(form in name for form in ("pd", "sd"))
    values: tuple[int, ...] = DOUBLE if double else SINGLE
    letter = "Q" if double else "I"
    count = 2 if double else 4
    pairs = [(a, b) for a in values for b in values]
    pairs += [(any_number(chance, double), any_number(chance, double)) for _ in range(200)]
    chance.shuffle(pairs)
    found = bytearray()
    for n in range(0, len(pairs) - count + 1, count):
        chosen = pairs[n : n + count]
        control = CONTROLS[n // count % len(CONTROLS)]
        found += pack("<I", control).ljust(16, b"\0")
        for side in (0, 1):
            found += pack(f"<{count}{letter}", *(pair[side] for pair in chosen))
        found += bytes(16)
    return bytes(found)


def is_intel() -> bool:
    """Whether the host is. Others order the sums of DPPS and DPPD differently: see NaNs."""
    cpu = Path("/proc/cpuinfo")
    return cpu.exists() and "GenuineIntel" in cpu.read_text()


def cases() -> Iterator[tuple[str, bytes, bytes]]:
    for name, code in INSTRUCTIONS.items():
        if name.startswith("dpp") and not is_intel():
            continue
        yield name, loop(bytes.fromhex(code)), areas(name)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What the host makes of each instruction's areas."""
    folder: Path = tmp_path_factory.mktemp("sse")
    (folder / "sse.c").write_text(PROGRAM)
    subprocess.run(["gcc", "-O1", "-o", "sse", "sse.c"], cwd=folder, check=True)
    text = b"".join(
        pack("<II", len(code) + 1, len(data)) + code + b"\xc3" + data for _, code, data in cases()
    )
    done = subprocess.run([folder / "sse"], input=text, capture_output=True, check=True)
    found, start = {}, 0
    for name, _, data in cases():
        found[name] = done.stdout[start : start + len(data)]
        start += len(data)
    return found


def results(data: bytes) -> list[tuple[int, str]]:
    """MXCSR and the result of each area."""
    return [
        (unpack_from("<I", data, n + 4)[0], data[n + 48 : n + 64].hex())
        for n in range(0, len(data), SIZE)
    ]


@pytest.mark.parametrize("engine", ENGINES)
def test_the_guest_computes_as_the_host(expected: dict[str, bytes], engine: str) -> None:
    wrong: dict[str, list[object]] = {}
    for name, code, data in list(cases())[:: 1 if engine == "native" else 4]:
        count = len(data) // SIZE
        registers = {"rdi": AREAS, "rcx": count}
        guest = Tiny("l64", code=code, memory={AREAS: data}, registers=registers)
        run = begin(guest, engine=engine)
        assert run.exit.reason.name == "VMCALL"
        found = run.processor.memory.read(AREAS, len(data))
        for n, (ours, host) in enumerate(zip(results(found), results(expected[name]), strict=True)):
            if ours != host:
                operands = data[n * SIZE : n * SIZE + 48].hex(" ", 16)
                wrong.setdefault(name, []).append((operands, ours, host))
    assert wrong == {}


QUIET_ABOUT_DENORMALS = {
    *("cvtps2dq", "cvttps2dq", "cvtpd2dq", "cvttpd2dq", "cvtdq2ps", "cvtdq2pd"),
    *("roundps", "roundpd", "roundss", "andps", "unpcklps", "shufps", "paddd"),
}


@pytest.mark.parametrize("engine", ENGINES)
def test_denormal_operands_unmasked(engine: str) -> None:
    """#XM before anything is written, with the flag."""
    tiny = {"s": pack("<4I", 1, 1, 1, 1), "d": pack("<2Q", 1, 1)}
    # Scalars are looked at alone: the rest is signalling NaNs.
    scalar = {"s": pack("<4I", 1, *[0x7F80_0001] * 3), "d": pack("<2Q", 1, 0x7FF << 52 | 1)}
    for name, code in list(INSTRUCTIONS.items())[:: 1 if engine == "native" else 5]:
        letter = "d" if any(form in name for form in ("pd", "sd")) else "s"
        letter = "s" if name == "cvtss2sd" else letter
        kept = tiny if "p" + letter in name else scalar
        data = pack("<I", 0x1E80).ljust(16, b"\0") + kept[letter] * 2
        guest = Tiny("l64", code=loop(bytes.fromhex(code)), memory={AREAS: data.ljust(64, b"\0")})
        guest.registers |= {"rdi": AREAS, "rcx": 1}
        run = begin(guest, {"EXCEPTION_BITMAP": 0xFFFFFFFF}, engine=engine)
        event = run.exit.interruption
        expected = None if name in QUIET_ABOUT_DENORMALS else XM
        assert (name, event.vector if event else None) == (name, expected)
        if expected is not None:
            assert (name, run.processor.engine.vectors.mxcsr) == (name, 0x1E82)
            kept_low = int.from_bytes(kept[letter], "little")
            assert (name, run.processor.engine.vectors.read("xmm0")) == (name, kept_low)


def test_denormal_operands_that_are_masked_leave_the_flag_alone() -> None:
    """What another exception comes before has none of it: a division by 0, a NaN, a root of it."""
    one, tiny, minus = 0x3F80_0000, 1, 0x8000_0001
    for code, first, second, met in (
        ("f30f5ec1", tiny, 0, 0x04),
        ("f30f5ec1", one, tiny, 0x2A),
        ("f30f51c1", 0, minus, 0x01),
        ("f30f51c1", 0, tiny, 0x22),
        ("f30f58c1", tiny, 0x7FC0_0000, 0x00),
        ("f30f58c1", tiny, 0x7F80_0001, 0x01),
        ("0f2fc1", tiny, one, 0x02),
    ):
        data = pack("<I", 0x1F80).ljust(16, b"\0") + pack("<4I", first, 0, 0, 0)
        data += pack("<4I", second, 0, 0, 0)
        guest = Tiny("l64", code=loop(bytes.fromhex(code)), memory={AREAS: data.ljust(64, b"\0")})
        guest.registers |= {"rdi": AREAS, "rcx": 1}
        run = begin(guest)
        found = results(run.processor.memory.read(AREAS, SIZE))
        assert (code, hex(second), hex(found[0][0])) == (code, hex(second), hex(0x1F80 | met))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("instruction", ["f20f58c1", "660f59c1", "f20f5ec1", "0f5cc1"])
def test_inexact_results_unmasked(instruction: str, engine: str) -> None:
    """#XM, also where the flag is set already; none of a result that is exact."""
    kind = "f" if instruction.startswith("0f") else "d"
    for pair, vector in ((1 / 3, 3.3), XM), ((1.0, 1.0), None):
        data = pack("<I", 0x0FA0).ljust(16, b"\0")
        data += b"".join(pack("<" + kind, one) * (16 // calcsize(kind)) for one in pair)
        guest = Tiny("l64", code=loop(bytes.fromhex(instruction)))
        guest.memory[AREAS] = data.ljust(64, b"\0")
        guest.registers |= {"rdi": AREAS, "rcx": 1}
        run = begin(guest, {"EXCEPTION_BITMAP": 0xFFFFFFFF}, engine=engine)
        event = run.exit.interruption
        assert (event.vector if event else None) == vector
