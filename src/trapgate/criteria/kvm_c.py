"""The closed form of `closed_form` as C in the kernel's style, and a program that tests it."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import textwrap
from importlib.resources import files
from pathlib import Path
from typing import Final

from trapgate.criteria.errors import ProofError
from trapgate.criteria.proofs.closed_form import PageFaultFilter, Proved, merged, sketch

COMPILERS: Final = ("cc", "gcc", "clang")

_FOLDER = files("trapgate.criteria")

FUNCTION: Final = (_FOLDER / "nested_vmx.c").read_text(encoding="ascii")
"""The function that nested VMX needs, and what it calls."""

TEST_PROGRAM: Final = (
    (_FOLDER / "nested_vmx_test.c")
    .read_text(encoding="ascii")
    .replace("/* FUNCTION */\n", FUNCTION)
)
"""A whole program that tests it."""


def compiler() -> str | None:
    """A C compiler, if there is one."""
    return next((found for name in COMPILERS if (found := shutil.which(name))), None)


def run_test_program(found: str, seconds: float = 120.0) -> str:
    """Compile and run the test program; what compiled it.

    Raises: ProofError if it does not compile, or says that the function is wrong.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder) / "test.c", Path(folder) / "test"
        source.write_text(TEST_PROGRAM, encoding="ascii")
        options = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror"]
        try:
            made = subprocess.run(  # noqa: S603 (the user's own compiler, our own program)
                [found, *options, "-o", str(program), str(source)],
                capture_output=True,
                text=True,
                timeout=seconds,
                check=False,
            )
            if made.returncode:
                first = (made.stderr.splitlines() or ["no message"])[0]
                raise ProofError(f"{found} refuses the C test program ({first})")
            ran = subprocess.run(  # noqa: S603
                [str(program)], capture_output=True, text=True, timeout=seconds, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ProofError(f"the C test program cannot be run ({error})") from None
    if ran.returncode or ran.stdout.strip() != "ok":
        raise ProofError(f"the C test program says: {ran.stdout.strip() or ran.returncode}")
    return Path(found).name


def _c(one: PageFaultFilter) -> str:
    return f"EB.PF {one.bit}, MASK 0x{one.mask:X}, MATCH 0x{one.match:X}"


def counterexample_to_sketch(l0: PageFaultFilter, l1: PageFaultFilter) -> int | None:
    """An error code that either wants and KVM's sketch loses; None if there is none."""
    wanted, given = (l0, l1), sketch(l0, l1)
    # Only codes that one of the three tells apart can differ.
    marks = {0}
    for bit in range(32):
        if (l0.mask | l1.mask | l0.match | l1.match) >> bit & 1:
            marks |= {mark | 1 << bit for mark in marks} if len(marks) < 1 << 16 else set()
    for code in sorted(marks):
        if any(one.exits(code) for one in wanted) and not given.exits(code):
            return code
    return None


def source(l0: PageFaultFilter, l1: PageFaultFilter, proved: Proved, tested: str | None) -> str:
    """The function, with what proves it, and what it makes of two filters."""
    lines = [
        "SPDX-License-Identifier: MIT",
        "",
        "Page-fault filters of L0 and L1, merged for vmcs02.",
        "",
        f"Proved: {proved.words()}.",
        f"Tested: compiled by {tested} and run, on all small and on random and odd filters."
        if tested
        else "Not compiled here: there is no C compiler.",
        "",
        f"L0:     {_c(l0)}",
        f"L1:     {_c(l1)}",
        f"vmcs02: {_c(merged(l0, l1))}",
    ]
    lost = counterexample_to_sketch(l0, l1)
    if lost is not None:
        told = f"with the OR of EB.PF ({_c(sketch(l0, l1))}), would lose page faults"
        lines += ["", f"Equal MASK and MATCH taken as they are, {told} with error code 0x{lost:X}."]
    wrapped = "\n".join(f" * {line}".rstrip() for line in _wrapped(lines))
    return f"/*\n{wrapped}\n */\n{FUNCTION}"


def _wrapped(lines: list[str], width: int = 76) -> list[str]:
    return [part for line in lines for part in (textwrap.wrap(line, width) or [""])]
