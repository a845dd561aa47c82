"""The options of `trapgate run` as values, and which of them cannot go together."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from trapgate.cli.terminal import EngineKind, Paging, Protect, fail

_SUFFIXES = {"": 1 << 20, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_LIMITS = 1 << 20, 3 << 30
DEFAULT_MEMORY = "128M"


def memory_size(text: str | None) -> int:
    """Bytes of a size like 128M, 1G or 65536K; a bare number counts MiB."""
    text = DEFAULT_MEMORY if text is None else text
    match = re.fullmatch(r"(\d{1,9})([KMG]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not match:
        raise fail(f"--memory: {text!r} is not a size; write it as 128M or 1G")
    size = int(match[1]) * _SUFFIXES[match[2].upper()] & ~0xFFF
    low, high = _LIMITS
    if not low <= size <= high:
        raise fail(f"--memory: {text} is out of range; choose from 1M to 3G")
    return size


class Options(NamedTuple):
    """The options of `trapgate run`, as `run.run` has and explains them."""

    guest: Path | None
    disk: list[str] | None
    cdrom: list[str] | None
    floppy: list[str] | None
    bios: Path | None
    keys: str
    memory: str | None
    cpus: int
    turn: int
    append: str
    initrd: Path | None
    module: list[str] | None
    vmcs: Path | None
    protect: Protect | None
    paging: Paging
    text: str
    until: str | None
    testdev: bool
    no_reboot: bool
    reset_on_triple_fault: bool
    trace: Path | None
    seed: int
    max_instructions: int | None
    timeout: float | None
    engine: EngineKind
    explain: bool
    inject: list[str] | None
    save: str | None
    load: Path | None
    gdb: str | None
    wait: bool
    report: Path | None
    symbols: Path | None
    screenshot: Path | None
    until_screen: str | None
    display: str | None
    bitmap: list[str] | None
    with_guest: list[str] | None
    as_json: bool


def refuse_contradictions(given: Options) -> None:
    """Fail with one line about options that cannot go together."""
    drives = given.disk or given.cdrom or given.floppy
    if given.guest is not None and given.bios is not None:
        raise fail("--bios: firmware starts instead of a guest; leave out one of the two")
    if given.guest is None and not (given.bios or drives or given.load):
        raise fail("GUEST: there is nothing to run; give a kernel, or --disk with an image")
    if given.bitmap and given.vmcs is None and given.gdb is None:
        raise fail("--bitmap is for conditions: give --vmcs or --gdb too")
    if given.report is not None and not given.report.parent.is_dir():
        raise fail(f"--report: {given.report.parent} is not a directory; create it first")
    if given.protect is not None and given.paging is not Paging.direct:
        raise fail("--protect is for direct paging; give --paging direct, too")
