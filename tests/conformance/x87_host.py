"""x87 instructions in the guest and on the host processor, for tests that compare the two.

A small program for the host, in C, executes the very bytes that the guest does: FLDCW, two loads,
the instruction, FNSTSW and stores.
"""

import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from struct import pack

import pytest

from tests.conformance.tiny_guest import Tiny, begin

NEEDS_HOST = pytest.mark.skipif(
    platform.machine() != "x86_64" or shutil.which("gcc") is None,
    reason="needs an x86-64 host and a C compiler",
)
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
ROUND = {"nearest": 0x37F, "down": 0x77F, "up": 0xB7F, "zero": 0xF7F}
FLAGS = 0x8D5
SUMMARY = 0xFF
"""Of the status word: all exceptions, SF and ES."""
CONDITIONS = 0x4500
C1 = 0x200
COMPARE = ("fcom", "fucom", "ftst", "fcompp", "fucompp", "fprem", "fprem1")
"""Where C0, C2 and C3 are defined."""

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


def on_the_host(cases: Sequence[Case], folder: Path) -> list[bytes]:
    """What the host has in each case's area."""
    (folder / "x87.c").write_text(PROGRAM)
    subprocess.run(["gcc", "-O1", "-o", "x87", "x87.c"], cwd=folder, check=True)
    text = b"".join(pack("<I", len(code) + 1) + code + b"\xc3" + data for _, code, data in cases)
    done = subprocess.run([folder / "x87"], input=text, capture_output=True, check=True)
    return [done.stdout[n : n + SIZE] for n in range(0, len(done.stdout), SIZE)]


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
    # What is reserved in the environment.
    tags += b"".join(data[96 + n : 96 + n + 2] for n in (2, 6, 10, 26))
    flags = int.from_bytes(data[68:72], "little") & FLAGS
    return status & mask, flags, data[48:64] + data[80:90] + tags


def loop(code: bytes) -> bytes:
    """The code for areas from RDI on, RCX of them."""
    inner = b"\x48\x89\xfb" + code + b"\x48\x89\xdf"  # mov rbx, rdi; ...; mov rdi, rbx
    inner += b"\x48\x81\xc7" + pack("<I", SIZE) + b"\xff\xc9"  # add rdi, SIZE; dec ecx
    return inner + b"\x0f\x85" + pack("<i", -len(inner) - 6)


def in_the_guest(cases: Sequence[Case], engine: str) -> list[bytes]:
    """What the guest has there: it goes through the areas of each instruction in one run."""
    found = [b""] * len(cases)
    numbers: dict[bytes, list[int]] = {}
    for n, (_, code, _) in enumerate(cases):
        numbers.setdefault(code, []).append(n)
    for code, same in numbers.items():
        memory = {AREAS: b"".join(cases[n][2] for n in same)}
        registers = {"rdi": AREAS, "rcx": len(same)}
        run = begin(Tiny("l64", code=loop(code), memory=memory, registers=registers), engine=engine)
        assert run.exit.reason.name == "VMCALL", code.hex()
        for k, n in enumerate(same):
            found[n] = run.processor.memory.read(AREAS + SIZE * k, SIZE)
    return found


def differences(cases: Sequence[Case], host: Sequence[bytes], engine: str) -> dict[str, object]:
    """Where results differ, by case; the portable engine executes every fifth instruction."""
    codes = list(dict.fromkeys(code for _, code, _ in cases))
    executed = set(codes[:: 1 if engine == "native" else 5])
    chosen = [n for n, case in enumerate(cases) if case[1] in executed]
    wrong: dict[str, object] = {}
    ours = in_the_guest([cases[n] for n in chosen], engine)
    for n, data in zip(chosen, ours, strict=True):
        name = cases[n][0]
        pair = results(name, data), results(name, host[n])
        if pair[0] != pair[1]:
            wrong[name] = pair
    return wrong
