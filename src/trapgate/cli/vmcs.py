"""`trapgate vmcs`: why a VM entry fails, from what a hypervisor printed."""

from __future__ import annotations

import json
import re
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trapgate.cli.terminal import fail, one_line_errors

if TYPE_CHECKING:
    from trapgate.debug.doctor import DumpedVmcs

EXAMPLES = """Examples:

  dmesg | trapgate vmcs -

  trapgate vmcs vmcs.txt --fix

  trapgate vmcs vmcs.txt --capabilities rdmsr.txt --maxphyaddr 39

  trapgate vmcs --diff works.txt fails.txt

  trapgate vmcs --new long-mode > vmcs.txt

Exit status: 0 no check fails, 1 a check fails or --diff finds a difference, 2 wrong usage or
input.
"""


class Mode(StrEnum):
    """The mode of the guest in a VMCS to start from."""

    long = "long-mode"
    protected = "protected-mode"
    real = "real-mode"


_LONGEST = 1 << 24


def vmcs(
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Dumps: dmesg, a log, FIELD = value lines, info registers; - is stdin."
        ),
    ] = None,
    capabilities: Annotated[
        Path | None,
        typer.Option(help="Text with the values of the capability MSRs (as rdmsr prints them)."),
    ] = None,
    maxphyaddr: Annotated[
        int | None, typer.Option(min=32, max=52, help="The processor's physical-address width.")
    ] = None,
    fix: Annotated[
        bool, typer.Option("--fix", help="Find the smallest change after which VM entry succeeds.")
    ] = False,
    diff: Annotated[bool, typer.Option("--diff", help="Compare two dumps field by field.")] = False,
    new: Annotated[Mode | None, typer.Option(help="Print a valid VMCS to start from.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Explain why a VM entry fails: every check in the SDM that a VMCS does not pass.

    Reads dumps of KVM, Xen, VirtualBox, QEMU and others, however they were pasted.
    """
    if new is not None:
        from trapgate.debug.doctor.template import as_lines, template

        print("\n".join(as_lines(template(new.value))))
        return
    if not files or (diff and len(files) != 2):
        raise fail("--diff needs two files" if diff else "give a FILE with a dump, or --new MODE")
    with one_line_errors():
        dumps = [(path, dumped) for path in files for dumped in _dumps_in(path)]
        if diff:
            raise typer.Exit(_compare(dumps[0][1], _dumps_in(files[1])[0], as_json=as_json))
        raise typer.Exit(_examine(dumps, capabilities, maxphyaddr, fix=fix, as_json=as_json))


def _text(path: Path) -> str:
    try:
        if str(path) == "-":
            data = sys.stdin.buffer.read(_LONGEST + 1)
        else:
            with path.open("rb") as file:
                data = file.read(_LONGEST + 1)
    except OSError as error:
        raise fail(f"{path}: {error.strerror}; give a text file") from None
    # PowerShell redirects, and debuggers log, in UTF-16.
    wide = data[:2] in (b"\xff\xfe", b"\xfe\xff")
    return data.decode("utf-16" if wide else "utf-8", errors="replace")


def _dumps_in(path: Path) -> list[DumpedVmcs]:
    from trapgate.debug.doctor import DumpedVmcs, read_dump
    from trapgate.debug.doctor.fields import FIELDS

    if path.suffix == ".toml":
        from trapgate.vmcs.vmcs import Vmcs

        own = Vmcs.load(path)
        values = {field.name: own[field] for field in own if field.name in FIELDS}
        return [DumpedVmcs(values, "Trapgate's VMCS file")]
    text = _text(path)
    found = read_dump(text)
    if not found:
        said = re.search(r"VM(?:FAIL|ENTER FAIL): [^\n]{3,120}", text)
        if said:
            raise fail(f"{path}: contains no VMCS, but Bochs names the check: {said[0]}")
        raise fail(
            f"{path}: contains no VMCS; give what KVM's dump_vmcs or Xen prints (kvm_intel."
            "dump_invalid_vmcs=1), FIELD = value lines, or QEMU's info registers"
        )
    return found


def _examine(
    dumps: list[tuple[Path, DumpedVmcs]],
    capabilities: Path | None,
    maxphyaddr: int | None,
    *,
    fix: bool,
    as_json: bool,
) -> int:
    from dataclasses import replace

    from trapgate.debug.doctor import ForeignProcessor, examine, read_capabilities, repair
    from trapgate.debug.doctor.text import as_text, as_values

    cpu = ForeignProcessor()
    if capabilities is not None:
        cpu = read_capabilities(_text(capabilities))
        if cpu == ForeignProcessor():
            raise fail(
                f"{capabilities}: contains no VMX capability MSR (480H to 492H) or address width; "
                "give lines such as 0x481: 0x7f00000016"
            )
    if maxphyaddr is not None:
        cpu = replace(cpu, physical=maxphyaddr)
    rows = []
    for path, dumped in dumps:
        diagnosis = examine(dumped, cpu)
        found = repair(dumped, cpu) if fix and diagnosis.findings else None
        rows.append((path, diagnosis, found))
    if as_json:
        print(json.dumps([{"file": str(p), **as_values(d, r)} for p, d, r in rows], indent=2))
    else:
        for n, (path, diagnosis, found) in enumerate(rows):
            head = f"{path}: " if len(rows) > 1 else ""
            print(("\n" if n else "") + head + "\n".join(as_text(diagnosis, found)))
    return 0 if all(diagnosis.passes for _, diagnosis, _ in rows) else 1


def _compare(one: DumpedVmcs, other: DumpedVmcs, *, as_json: bool) -> int:
    from trapgate.debug.doctor.text import differences

    rows = list(one.differing(other))
    if as_json:
        print(json.dumps([{"field": n, "first": a, "second": b} for n, a, b in rows], indent=2))
    else:
        print("\n".join(differences(one, other)) or "no field differs")
    return 1 if rows else 0
