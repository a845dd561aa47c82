"""`trapgate run`: a guest with the terminal as its console."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trapgate.cli.terminal import (
    EngineKind,
    EngineOption,
    Paging,
    Protect,
    fail,
    one_line_errors,
    prepared,
    tell_portable,
    terminal,
    vector_name,
)

if TYPE_CHECKING:
    from rich.console import Console as Terminal
    from rich.table import Table

    from trapgate.debug.story import Story
    from trapgate.debug.story.instruction import Namer
    from trapgate.sdm.reasons import ExitReason
    from trapgate.trace import TraceWriter
    from trapgate.vmcs.file import Settings
    from trapgate.vmm.machine import VirtualMachine
    from trapgate.vmm.summary import Counts, EventKind, Summary, TableWrites

    Events = Mapping[EventKind, Counts]
    Injected = Mapping[EventKind, Mapping[int, int]]

_SUFFIXES = {"": 1 << 20, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_LIMITS = 1 << 20, 3 << 30
_MOST_EXPLANATIONS = 1000


def memory_size(text: str) -> int:
    """Bytes of a size like 128M, 1G or 65536K; a bare number counts MiB."""
    match = re.fullmatch(r"(\d{1,9})([KMG]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not match:
        raise fail(f"--memory: {text!r} is no size; write it as 128M or 1G")
    size = int(match[1]) * _SUFFIXES[match[2].upper()] & ~0xFFF
    low, high = _LIMITS
    if not low <= size <= high:
        raise fail(f"--memory: {text} is out of range; choose from 1M to 3G")
    return size


def summary_json(summary: Summary) -> dict[str, Any]:
    """A run's summary as JSON has it; `x86_vmm` is there if the guest was a VMM itself."""
    nested = summary.nested
    answer: dict[str, Any] = {
        "engine": summary.engine,
        **({"why_not_native": summary.why_not_native} if summary.why_not_native else {}),
        "instructions": summary.instructions,
        "halted": summary.halted,
        "seconds": round(summary.seconds, 6),
        **_events_json(summary.events, summary.injected),
        "exits": {reason.name: count for reason, count in summary.exits.items()},
    }
    if summary.table_writes is not None:
        writes = summary.table_writes
        answer["table_writes"] = {"completed": writes.completed, "exited": writes.exited}
    if nested is not None:
        answer["x86_vmm"] = {
            "entries": nested.entries,
            **_events_json(nested.events),
            "exits": {reason.name: count for reason, count in nested.exits.items()},
        }
    return answer


def _events_json(events: Events, injected: Injected | None = None) -> dict[str, Any]:
    """Counts of faults, interrupts and INT n, by vector and disposition."""
    answer: dict[str, Any] = {}
    for kind, counts in events.items():
        answer[kind.value] = {}
        for vector, found in counts.items():
            numbers = {disposition.name: count for disposition, count in found.items()}
            if injected is not None:
                numbers["injected"] = injected[kind].get(vector, 0)
            answer[kind.value][str(vector)] = numbers
    return answer


def show_summary(summary: Summary, out: Terminal) -> None:
    """Tables of faults and exits, those of an x86 VMM's guest apart."""
    out.print(_fault_table("faults and interrupts", summary.events, summary.injected))
    out.print(_exit_table("VM exits", summary.exits))
    nested = summary.nested
    if nested is not None:
        title = f"faults and interrupts of the x86 VMM's guest ({nested.entries:,} VM entries)"
        out.print(_fault_table(title, nested.events))
        out.print(_exit_table("VM exits to the x86 VMM", nested.exits))
    writes = summary.table_writes
    if writes is not None and (writes.completed or writes.exited):
        out.print(_writes_table(writes))
    speed = summary.executed / summary.seconds / 1e6 if summary.seconds else 0.0
    waited = f"; halted for the time of {summary.halted:,} more" if summary.halted else ""
    out.print(
        f"{summary.executed:,} instructions in {summary.seconds:.2f} s "
        f"({speed:.0f} million/s){waited}"
    )
    out.print(f"engine: {summary.engine_words}")


def _keyboard() -> int | None:
    """The file descriptor to read keys from; None where standard input is no file."""
    try:
        return sys.stdin.fileno() if sys.stdin else None
    except OSError:
        return None


class Explanations:
    """Prints each explanation once, in a line of its own on stderr, and keeps them all apart.

    A VMM that tries the same for ever is not to fill a disk.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def __call__(self, words: str) -> None:
        """One failure's explanation."""
        if words not in self.counts and len(self.counts) >= _MOST_EXPLANATIONS:
            words = f"more than {_MOST_EXPLANATIONS} different failures; the others are not shown"
        self.counts[words] += 1
        if self.counts[words] == 1:
            # A terminal may be raw, and the guest in the middle of a line.
            line = f"\r\ntrapgate: {words}\r\n" if sys.stderr.isatty() else f"trapgate: {words}\n"
            sys.stderr.write(line)
            sys.stderr.flush()

    def as_json(self) -> list[dict[str, Any]]:
        """What failed, and how often, as JSON has it."""
        return [{"explanation": words, "count": count} for words, count in self.counts.items()]


def event_name(kind: EventKind, vector: int) -> str:
    """What the event is called: #PF, interrupt 48, INT 80H."""
    from trapgate.vmm.summary import EventKind

    if kind is EventKind.INTERRUPT:
        return f"interrupt {vector}"
    return f"INT {vector:X}H" if kind is EventKind.SOFTWARE_INTERRUPT else vector_name(vector)


def _fault_table(title: str, events: Events, injected: Injected | None = None) -> Table:
    from rich.table import Table

    from trapgate.decision.decide import Disposition

    table = Table(title=title, title_justify="left", box=None, pad_edge=False, min_width=len(title))
    titles = ("event", "exited", "delivered") + ("of these injected",) * (injected is not None)
    titles += ("completed",)
    for column in titles:
        table.add_column(column, justify="left" if column == "event" else "right")
    for kind, counts in events.items():
        for vector, found in counts.items():
            numbers = [found.get(Disposition.EXIT, 0), found.get(Disposition.DELIVER, 0)]
            if injected is not None:
                numbers.append(injected[kind].get(vector, 0))
            numbers.append(found.get(Disposition.COMPLETE, 0))
            table.add_row(event_name(kind, vector), *(f"{number:,}" for number in numbers))
    return table


def _exit_table(title: str, counts: Mapping[ExitReason, int]) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, pad_edge=False, min_width=len(title))
    table.add_column("reason")
    table.add_column("count", justify="right")
    for reason, count in sorted(counts.items(), key=lambda item: -item[1]):
        table.add_row(reason.name.replace("_", " ").lower(), f"{count:,}")
    return table


def _writes_table(writes: TableWrites) -> Table:
    """What became of writes to page tables."""
    from rich.table import Table

    total = sum(writes.completed.values()) + sum(
        count for name, count in writes.exited.items() if name != "reused"
    )
    title = "writes to page tables"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, min_width=len(title))
    for column in ("what became of it", "count", "share"):
        table.add_column(column, justify="left" if column.startswith("what") else "right")
    for words, counts in (("completed by ", writes.completed), ("exited, ", writes.exited)):
        for name, count in counts.items():
            shown = words + name.replace("fault_filter_", "").replace("_", " ")
            table.add_row(shown, f"{count:,}", f"{100 * count / total:.1f} %")
    return table


PORTABLE_FILTERS = (
    "on the portable engine a write that a fault filter judges takes longer than an exit: "
    "filters save exits there, and cost time"
)

EXAMPLES = """
Examples:

  trapgate run vmlinuz --initrd initrd.cpio --append "console=ttyS0"

  trapgate run boot.bin --memory 16M --until "login:" --json

  trapgate run kernel.elf --vmcs filter.toml --trace faults.parquet

  trapgate run kernel.elf --paging direct --memory 16M --vmcs figure-8.toml

  trapgate run vmlinuz --initrd initrd.cpio --paging direct --protect frames

  trapgate run kernel.elf --report why.html

  trapgate run --disk xv6.img --disk fs.img --memory 512M

  trapgate run hypervisor.elf --explain --module guest.elf --module "vmlinuz console=ttyS0"

Ctrl-A x leaves an interactive run, Ctrl-A c sends the guest a Ctrl-C.
"""


def run(
    guest: Annotated[
        Path | None,
        typer.Argument(
            help="bzImage, ELF, multiboot, flat binary or boot sector; without one a PC's "
            "firmware starts, and boots from a disk."
        ),
    ] = None,
    disk: Annotated[
        list[str] | None,
        typer.Option(
            help="Disk image: FILE[,write][,overlay=FILE]; what the guest writes is lost unless "
            "one of the two says where it goes. Repeatable."
        ),
    ] = None,
    cdrom: Annotated[
        list[str] | None, typer.Option(help="CD image (ISO 9660). Repeatable.")
    ] = None,
    bios: Annotated[
        Path | None, typer.Option(help="Firmware to start instead of a guest: SeaBIOS's bios.bin.")
    ] = None,
    keys: Annotated[
        str, typer.Option(help=r"Text to type on the PS/2 keyboard; \n is Enter.")
    ] = "",
    memory: Annotated[str, typer.Option(help="RAM of the guest.")] = "128M",
    append: Annotated[str, typer.Option(help="Kernel command line.")] = "",
    initrd: Annotated[Path | None, typer.Option(help="Initial RAM disk, or module.")] = None,
    module: Annotated[
        list[str] | None,
        typer.Option(help='Module of a multiboot kernel: FILE, or "FILE ARGUMENTS"; repeatable.'),
    ] = None,
    vmcs: Annotated[
        Path | None, typer.Option(help="TOML file of VMCS fields and controls to set.")
    ] = None,
    protect: Annotated[
        Protect | None,
        typer.Option(
            help="With direct paging. frames: the processor stops writes to frames that are page "
            "tables, for any guest; entries: the VMM takes only guests that map their tables "
            "read-only. Frames unless a VMCS file sets PTBASE or the engine is portable."
        ),
    ] = None,
    paging: Annotated[
        Paging,
        typer.Option(
            help="own: the guest has its memory for itself; direct: its page tables hold "
            "machine addresses, and the VMM guards them."
        ),
    ] = Paging.own,
    text: Annotated[
        str, typer.Option("--input", help=r"Text to type at the serial port; \n is Enter.")
    ] = "",
    until: Annotated[
        str | None, typer.Option(help="Stop when this regular expression appears.")
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(help="Write every fault to this Parquet file.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Start of the time-stamp counter.")] = 0,
    max_instructions: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many instructions.")
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(min=0.001, help="Stop after so many seconds.")
    ] = None,
    engine: EngineOption = EngineKind.auto,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain", help="Say on stderr why VMX instructions and VM entries of the guest fail."
        ),
    ] = False,
    gdb: Annotated[
        str | None,
        typer.Option(help="Serve gdb at [HOST:]PORT (loopback unless told): target remote :PORT."),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="With --gdb: stand until gdb lets the guest begin.")
    ] = False,
    report: Annotated[
        Path | None,
        typer.Option(help="If the guest dies, write the story of it to this HTML file."),
    ] = None,
    symbols: Annotated[
        Path | None, typer.Option(help="System.map or ELF that names the guest's functions.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the summary as JSON; the guest writes to stderr.")
    ] = False,
) -> None:
    """Run a guest with the terminal as its console."""
    if guest is not None and bios is not None:
        raise fail("--bios: firmware starts instead of a guest; leave one of the two out")
    if guest is None and not (bios or disk or cdrom):
        raise fail("GUEST: there is nothing to run; give a kernel, or --disk with an image")
    with one_line_errors(), prepared():
        raise typer.Exit(
            _run(
                guest,
                disk or [],
                cdrom or [],
                bios,
                keys,
                memory_size(memory),
                append,
                initrd,
                module or [],
                vmcs,
                paging,
                protect,
                text,
                until,
                trace,
                seed,
                max_instructions,
                timeout,
                engine.value,
                explain,
                gdb,
                wait,
                report,
                symbols,
                as_json,
            )
        )


def _run(
    guest: Path | None,
    disks: list[str],
    cds: list[str],
    bios: Path | None,
    keys: str,
    memory: int,
    append: str,
    initrd: Path | None,
    modules: list[str],
    vmcs: Path | None,
    paging: Paging,
    protect: Protect | None,
    text: str,
    until: str | None,
    trace: Path | None,
    seed: int,
    max_instructions: int | None,
    timeout: float | None,
    engine: str,
    explain: bool,
    gdb: str | None,
    wait: bool,
    report: Path | None,
    symbols: Path | None,
    as_json: bool,
) -> int:
    from trapgate.cli.board import board, firmware
    from trapgate.debug.story.names import namer
    from trapgate.vmm.actions import End
    from trapgate.vmm.console import Console, input_bytes
    from trapgate.vmm.loaders import load_guest
    from trapgate.vmm.loaders.bios import load_bios

    settings = None if vmcs is None else _settings(vmcs)
    names = namer(guest, symbols)
    if guest is None:
        bios = firmware(bios)
        guest = bios
        image = load_bios(bios)
    else:
        image = load_guest(guest, memory=memory, append=append, initrd=initrd, modules=modules)
    plugged = board(disks, cds, bios, memory, serial=True)
    output = sys.stderr.buffer if as_json else sys.stdout.buffer
    console = Console(output, source=_keyboard(), until=until)
    explanations = Explanations()
    writer = None if trace is None else _writer(trace, guest, vmcs)
    try:
        if protect is not None and paging is not Paging.direct:
            raise fail("--protect is about direct paging; give --paging direct too")
        vm = _machine(paging, protect or _protection(settings, engine))(
            memory,
            engine=engine,
            console=console,
            trace=writer,
            seed=seed,
            profile="vt-x" if settings is not None and settings.profile == "vt-x" else "extended",
            explain=explanations if explain else None,
            board=plugged,
        )
        if engine == EngineKind.auto and vm.summary().engine == "portable":
            tell_portable(vm.summary())
        vm.load(image)
        if settings is not None:
            vm.apply(settings)
        if text:
            vm.type(input_bytes(text))
        if keys:
            vm.devices.keyboard.type(input_bytes(keys).decode("latin-1"))
        with console, _debugger(vm, gdb, guest, image.bits, wait=wait):
            stop = vm.run(max_instructions=max_instructions, timeout=timeout)
    finally:
        if writer is not None:
            writer.close()
    summary = vm.summary()
    notes = [] if stop.end is End.REFUSED else list(_notes(vm, paging, summary))
    story = _story(vm, names)
    if story is not None and report is not None:
        from trapgate.debug.story.page import write

        write(story, report, guest.name)
    if as_json:
        answer = {
            "guest": image.description,
            "end": stop.end.value,
            "message": stop.message,
            "status": stop.status,
            **({"screen": screen_text} if (screen_text := _screen(vm)) else {}),
            "notes": notes,
            **summary_json(summary),
            **({"failures": explanations.as_json()} if explain else {}),
            **({"story": story.values()} if story is not None else {}),
        }
        print(json.dumps(answer, indent=2))
        return stop.status
    out = terminal(error=True)
    screen = _screen(vm)
    if screen:
        print("\non the screen:", *screen, sep="\n", file=sys.stderr)
    if story is None or story.headline != stop.message:
        print(f"\n{stop.message}", file=sys.stderr)
    if story is not None:
        print(f"\n{story}\n", file=sys.stderr)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    show_summary(summary, out)
    failures = vm.processor.x86_vmm.failures
    if failures and not explain:
        out.print(f"{failures:,} VMX instructions or VM entries failed; --explain says why")
    return stop.status


def _screen(vm: VirtualMachine) -> list[str]:
    """The lines on the screen in a text mode; none if it is empty."""
    lines = vm.devices.vga.text(vm.processor.memory)
    while lines and not lines[-1]:
        lines.pop()
    return lines


@contextmanager
def _debugger(
    vm: VirtualMachine, gdb: str | None, guest: Path, bits: int, *, wait: bool
) -> Iterator[None]:
    """The server for gdb around a run, if there is to be one."""
    if gdb is None:
        if wait:
            raise fail("--wait: waits for gdb, so give --gdb too")
        yield
        return
    from trapgate.debug.gdb import Debugger, address_of

    debugger = Debugger(vm, *address_of(gdb), guest=guest, bits=bits)
    host, port = debugger.address
    print(f"trapgate: gdb: target remote {host}:{port}", file=sys.stderr, flush=True)
    try:
        if wait:
            debugger.wait()
        yield
    finally:
        if vm.stopped is not None:
            debugger.finished(vm.stopped)


def _settings(file: Path) -> Settings:
    from trapgate.vmcs.file import read_settings

    return read_settings(file)


def _writer(file: Path, guest: Path, vmcs: Path | None) -> TraceWriter:
    from trapgate.trace import TraceWriter
    from trapgate.trace.schema import CRITERIA

    facts = {"guest": guest.name}
    if vmcs is not None:
        facts[CRITERIA] = vmcs.read_text(encoding="utf-8")
    return TraceWriter(file, metadata=facts)


def _story(vm: VirtualMachine, names: Namer) -> Story | None:
    from trapgate.debug.story import tell

    return tell(vm, names)


def _protection(settings: Settings | None, engine: str) -> Protect:
    """How direct paging protects tables, if nobody says: PTBASE is about read-only entries."""
    from trapgate.sdm.fields import Field

    if engine == EngineKind.portable:
        return Protect.entries
    about_entries = settings is not None and (
        settings.profile == "vt-x" or settings.fields.get(Field.PTBASE, 0) != 0
    )
    return Protect.entries if about_entries else Protect.frames


def _machine(paging: Paging, protect: Protect) -> type[VirtualMachine]:
    if paging is Paging.direct and protect is Protect.frames:
        from trapgate.vmm.direct.protected import ProtectedMachine

        return ProtectedMachine
    if paging is Paging.direct:
        from trapgate.vmm.direct.machine import DirectMachine

        return DirectMachine
    from trapgate.vmm.machine import VirtualMachine

    return VirtualMachine


def _notes(vm: VirtualMachine, paging: Paging, summary: Summary) -> Iterator[str]:
    """What a user should know who asked for direct paging or a fault filter in vain."""
    if paging is Paging.direct:
        yield from _direct_notes(vm)
    mapped = vm.vmcs.profile == "extended" and vm.vmcs["FRAME_MAP_LENGTH"]
    if vm.vmcs.profile == "extended" and vm.vmcs["FAULT_FILTER"] and not mapped:
        yield from _filter_notes(vm, paging, summary)


def _direct_notes(vm: VirtualMachine) -> Iterator[str]:
    from trapgate.engine import machine as stops
    from trapgate.vmm.direct.machine import DirectMachine
    from trapgate.vmm.direct.protected import ProtectedMachine

    assert isinstance(vm, DirectMachine | ProtectedMachine)
    if not vm.has_paged:
        yield "the guest never turned paging on, so there were no page tables to guard"
    if vm.counts.refused:
        yield f"the VMM refused {vm.counts.refused:,} times, at last: {vm.counts.last_refusal}"
    if not vm.processor.engine.cells[stops.NATIVE]:
        yield (
            "the portable engine does not stop at task switches, which load CR3: "
            "a guest that means harm gets out of direct paging; use --engine native for it"
        )


def _filter_notes(vm: VirtualMachine, paging: Paging, summary: Summary) -> Iterator[str]:
    from trapgate.decision.decide import Disposition
    from trapgate.decision.self_map import self_mapped
    from trapgate.processor.logical import signed

    if summary.engine == "portable":
        yield PORTABLE_FILTERS
    if summary.count(Disposition.COMPLETE, 14):
        return
    vmcs = vm.vmcs
    if self_mapped(
        vmcs["GUEST_CR0"],
        vmcs["GUEST_CR3"],
        vmcs["GUEST_CR4"],
        vmcs["GUEST_IA32_EFER"],
        vm.processor.memory.cells,
        signed(vmcs["PTBASE"]),
    ):
        yield "the fault filter was never satisfied: no write to a page table was stopped" + (
            ""
            if paging is Paging.direct
            else "; with --paging direct the VMM makes the tables read-only"
        )
    else:
        yield (
            f"the fault filter was never satisfied: PTBASE {vmcs['PTBASE']:#x} is not where "
            "the guest's page directory maps itself (¶74); set PTBASE to that address"
        )
