"""x87 instructions over special values: the guest's results and flags against the host processor's.

The test compiles a small program for the host, in C, that executes the very bytes that the guest
does: FLDCW, two loads, the instruction, FNSTSW and stores.
"""

import itertools
import platform
import shutil
import subprocess
from pathlib import Path
from struct import pack

import pytest

from tests.conformance.tiny_guest import DATA, Run, Tiny, begin

pytestmark = [
    pytest.mark.conformance,
    pytest.mark.skipif(
        platform.machine() != "x86_64" or shutil.which("gcc") is None,
        reason="needs an x86-64 host and a C compiler",
    ),
]

ENGINES = ("native", "portable")
AREAS, SIZE = 0x80000, 128
"""Where they are in the guest, and how many bytes each has."""
VALUES = {
    "0": "00000000000000000000",
    "-0": "00000000000000000080",
    "1": "0000000000000080ff3f",
    "-1": "0000000000000080ffbf",
    "1.5": "00000000000000c0ff3f",
    "3": "00000000000000c00040",
    "1e5": "0000000000c350c30f40"[:20],
    "2^63": "00000000000000803e40",
    "big": "fffffffffffffffffe7f",
    "pi": "35c26821a2da0fc90040",
    "-e": "9b4aa2bb8a5e54ad00c0",
    "0.7": "66666666666666b3fe3f",
    "10^18 - 1": "f0ff3f763a6b0bde3a40",
    "10^18": "000040763a6b0bde3a40",
    "32768": "00000000000000800e40",
    "-32768": "00000000000000800ec0",
    "denormal": "01000000000000000000",
    "-denormal": "00000000000000400080",
    "inf": "0000000000000080ff7f",
    "-inf": "0000000000000080ffff",
    "qnan": "00000000000000c0ff7f",
    "snan": "01000000000000a0ff7f",
}
"""Bytes of 80-bit values, as they lie in memory."""
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
ROUND = {"nearest": 0x37F, "down": 0x77F, "up": 0xB7F, "zero": 0xF7F}
NARROW = (0xB7F, 0x67F, 0x07F, 0x27F)
"""Control words: rounding up, and down to 64 bits; precisions of 24 and 53 bits."""
FLAGS = 0x8D5
SUMMARY = 0xFF
"""Of the status word: all exceptions, SF and ES."""
CONDITIONS = 0x4500
C1 = 0x200
COMPARE = ("fcom", "fucom", "ftst", "fcompp", "fucompp", "fprem", "fprem1")
"""Where C0, C2 and C3 are defined."""
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

PROGRAM = r"""
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
int main(void) {
    unsigned char line[256], area[256];
    unsigned n;
    void (*code)(void *) =
        mmap(0, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    while (fread(&n, 4, 1, stdin) == 1) {
        if (n > sizeof line || fread(line, 1, n, stdin) != n) return 1;
        if (fread(area, 1, 128, stdin) != 128) return 1;
        memcpy((void *)code, line, n);
        code(area);
        fwrite(area, 1, 128, stdout);
    }
    return 0;
}
"""


def body(instruction: bytes, values: int = 2) -> bytes:
    """The code, with RDI at the area: control word at 0, values at 16 and 32, results from 48.

    The operand in memory is at 48. There are `values` values on the stack.
    """
    clear = b"\x9d"  # the flags come from the stack
    return b"".join(
        (
            b"\xdb\xe3\xd9\x2f",  # fninit; fldcw [rdi]
            b"\xdb\x6f\x20" * (values - 1),  # fld tbyte [rdi + 32]
            b"\xdb\x6f\x10" * (values > 0),  # fld tbyte [rdi + 16]
            b"\x48\x83\xc7\x30\x68" + pack("<I", FLAGS) + clear,  # add rdi, 48; push; popfq
            instruction,
            b"\x9c\x58\x89\x47\x14",  # pushfq; pop rax; mov [rdi + 20], eax
            b"\xdd\x7f\x10",  # fnstsw [rdi + 16]
            b"\xdb\xe2\xd9\x77\x30",  # fnclex; fnstenv [rdi + 48]
            b"\xdb\x7f\x20",  # fstp tbyte [rdi + 32]
            b"\xdb\xe3",
        )
    )


def area(control: int, first: str, second: str, operand: bytes = b"") -> bytes:
    data = pack("<H", control).ljust(16, b"\0")
    data += bytes.fromhex(first).ljust(16, b"\0") + bytes.fromhex(second).ljust(16, b"\0")
    return (data + operand).ljust(128, b"\0")


Case = tuple[str, bytes, bytes]


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
        if control != 0x37F and " m" in name:
            # An unmasked exception comes too late to keep the engine from storing.
            continue
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
    """What the host has in each case's area."""
    folder: Path = tmp_path_factory.mktemp("x87")
    (folder / "x87.c").write_text(PROGRAM)
    subprocess.run(["gcc", "-O1", "-o", "x87", "x87.c"], cwd=folder, check=True)
    text = b"".join(pack("<I", len(code) + 1) + code + b"\xc3" + data for _, code, data in cases())
    done = subprocess.run([folder / "x87"], input=text, capture_output=True, check=True)
    return [done.stdout[n : n + 128] for n in range(0, len(done.stdout), 128)]


def results(name: str, data: bytes) -> tuple[int, int, bytes]:
    """Flags and conditions of the status word, EFLAGS' status bits, what was stored, and tags.

    C1 says whether the result was rounded up, or which way the stack has faulted.
    """
    mask = SUMMARY | CONDITIONS if name.split(maxsplit=1)[0] in COMPARE else SUMMARY
    status = int.from_bytes(data[64:66], "little")
    if not name.startswith("fxam of"):
        # There C1 is the sign of what is left in an empty register.
        mask |= C1
    tags = data[96 + 8 : 96 + 10]
    flags = int.from_bytes(data[68:72], "little") & FLAGS
    return status & mask, flags, data[48:64] + data[80:90] + tags


def loop(code: bytes) -> bytes:
    """The code for areas from RDI on, RCX of them."""
    inner = b"\x48\x89\xfb" + code + b"\x48\x89\xdf"  # mov rbx, rdi; ...; mov rdi, rbx
    inner += b"\x48\x81\xc7" + pack("<I", SIZE) + b"\xff\xc9"  # add rdi, SIZE; dec ecx
    return inner + b"\x0f\x85" + pack("<i", -len(inner) - 6)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_guest_computes_as_the_host(expected: list[bytes], engine: str) -> None:
    chosen: dict[bytes, list[tuple[str, bytes, bytes]]] = {}
    for (name, code, data), host in zip(cases(), expected, strict=True):
        chosen.setdefault(code, []).append((name, data, host))
    wrong = {}
    for code, same in list(chosen.items())[:: 1 if engine == "native" else 5]:
        memory = {AREAS: b"".join(data for _, data, _ in same)}
        registers = {"rdi": AREAS, "rcx": len(same)}
        run = begin(Tiny("l64", code=loop(code), memory=memory, registers=registers), engine=engine)
        assert run.exit.reason.name == "VMCALL", code.hex()
        for n, (name, _, host) in enumerate(same):
            found = results(name, run.processor.memory.read(AREAS + SIZE * n, SIZE))
            if found != results(name, host):
                wrong[name] = found, results(name, host)
    assert wrong == {}


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
