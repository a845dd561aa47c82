"""`trapgate run`: a guest with the terminal as its console."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trapgate.cli.injections import finder, read_injections
from trapgate.cli.names import BitmapOption, names_for
from trapgate.cli.notes import notes_about
from trapgate.cli.saved import Saving, open_saved, plugged_in
from trapgate.cli.screen import (
    DisplayOption,
    ScreenshotOption,
    UntilScreenOption,
    screen_lines,
    shown,
    take_picture,
)
from trapgate.cli.summary import show_summary, summary_json
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
)

if TYPE_CHECKING:
    from trapgate.debug.story import Story
    from trapgate.debug.story.instruction import Namer
    from trapgate.decision.conditions import Names
    from trapgate.trace import TraceWriter
    from trapgate.vmcs.file import Settings
    from trapgate.vmm.loaders.image import GuestImage
    from trapgate.vmm.machine import VirtualMachine

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


EXAMPLES = """
Examples:

  trapgate run vmlinuz --initrd initrd.cpio --append "console=ttyS0"

  trapgate run boot.bin --memory 16M --until "login:" --json

  trapgate run kernel.elf --vmcs filter.toml --trace faults.parquet

  trapgate run kernel.elf --paging direct --memory 16M --vmcs figure-8.toml

  trapgate run vmlinuz --initrd initrd.cpio --paging direct --protect frames

  trapgate run kernel.elf --report why.html

  trapgate run kernel.elf --inject "PF(code=2,cr2=0x1000)@1000000" --trace faults.parquet

  trapgate run --disk xv6.img --disk fs.img --memory 512M

  trapgate run vmlinuz --initrd initrd.cpio --append "console=ttyS0" --cpus 4 --seed 7

  trapgate run --floppy kolibri.img --display 8080 --screenshot desktop.png

  trapgate run hypervisor.elf --explain --module guest.elf --module "vmlinuz console=ttyS0"

Ctrl-A x leaves an interactive run, Ctrl-A c sends the guest a Ctrl-C.
"""


def run(
    guest: Annotated[
        Path | None,
        typer.Argument(
            help="bzImage, ELF, multiboot, flat binary or boot sector; without one "
            "the BIOS boots from a disk."
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
    floppy: Annotated[
        list[str] | None, typer.Option(help="Floppy image, for the built-in BIOS. Repeatable.")
    ] = None,
    bios: Annotated[
        Path | None,
        typer.Option(help="Firmware to start instead of the built-in BIOS: SeaBIOS's bios.bin."),
    ] = None,
    keys: Annotated[
        str, typer.Option(help=r"Text to type on the PS/2 keyboard; \n is Enter.")
    ] = "",
    memory: Annotated[str, typer.Option(help="RAM of the guest.")] = "128M",
    cpus: Annotated[
        int, typer.Option(min=1, max=32, help="Processors, which take turns on one host thread.")
    ] = 1,
    turn: Annotated[
        int,
        typer.Option(
            min=1, help="Instructions of a turn, on average; --seed draws the length of each."
        ),
    ] = 100_000,
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
    no_reboot: Annotated[
        bool,
        typer.Option(
            "--no-reboot",
            help="End when the guest resets the machine. Without a disk's boot sector or firmware "
            "to start again a reset always ends.",
        ),
    ] = False,
    reset_on_triple_fault: Annotated[
        bool,
        typer.Option(
            "--reset-on-triple-fault",
            help="A triple fault resets the machine, as on a PC, instead of telling its story.",
        ),
    ] = False,
    trace: Annotated[
        Path | None, typer.Option(help="Write every fault to this Parquet file.")
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            min=0,
            help="Start of the time-stamp counter and of RDRAND, and the order in which processors "
            "meet: another number, another schedule.",
        ),
    ] = 0,
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
    inject: Annotated[
        list[str] | None,
        typer.Option(
            help="Deliver an event by VM entry: EVENT@WHEN, as PF(code=2,cr2=0x1000)@5000, "
            "NMI@rip=0x101234#3, GP(0x10)@symbol=trap, UD@exit=CPUID, INT 0x20@fault=PF, "
            'DB@output="login:". Repeatable.'
        ),
    ] = None,
    save: Annotated[
        str | None,
        typer.Option(
            help="Save the machine: FILE when the run ends, or FILE@WHEN as in --inject; "
            "--load goes on from there."
        ),
    ] = None,
    load: Annotated[
        Path | None,
        typer.Option(help="Go on with a machine that --save has saved; GUEST is left out."),
    ] = None,
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
        Path | None,
        typer.Option(
            help="System.map or ELF that names the guest's functions, in conditions, too; an ELF "
            "guest does so itself."
        ),
    ] = None,
    screenshot: ScreenshotOption = None,
    until_screen: UntilScreenOption = None,
    display: DisplayOption = None,
    bitmap: BitmapOption = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the summary as JSON; the guest writes to stderr.")
    ] = False,
) -> None:
    """Run a guest with the terminal as its console."""
    if guest is not None and bios is not None:
        raise fail("--bios: firmware starts instead of a guest; leave one of the two out")
    if guest is None and not (bios or disk or cdrom or floppy or load):
        raise fail("GUEST: there is nothing to run; give a kernel, or --disk with an image")
    with one_line_errors(), prepared():
        raise typer.Exit(
            _run(
                guest,
                disk or [],
                cdrom or [],
                floppy or [],
                bios,
                keys,
                memory_size(memory),
                cpus,
                turn,
                append,
                initrd,
                module or [],
                vmcs,
                paging,
                protect,
                text,
                until,
                no_reboot,
                reset_on_triple_fault,
                trace,
                seed,
                max_instructions,
                timeout,
                engine.value,
                explain,
                inject or [],
                save,
                load,
                gdb,
                wait,
                report,
                symbols,
                screenshot,
                until_screen,
                display,
                bitmap,
                as_json,
            )
        )


def _run(
    guest: Path | None,
    disks: list[str],
    cds: list[str],
    floppies: list[str],
    bios: Path | None,
    keys: str,
    memory: int,
    cpus: int,
    turn: int,
    append: str,
    initrd: Path | None,
    modules: list[str],
    vmcs: Path | None,
    paging: Paging,
    protect: Protect | None,
    text: str,
    until: str | None,
    no_reboot: bool,
    reset_on_triple_fault: bool,
    trace: Path | None,
    seed: int,
    max_instructions: int | None,
    timeout: float | None,
    engine: str,
    explain: bool,
    inject: list[str],
    save: str | None,
    load: Path | None,
    gdb: str | None,
    wait: bool,
    report: Path | None,
    symbols: Path | None,
    screenshot: Path | None,
    until_screen: str | None,
    display: str | None,
    bitmaps: list[str] | None,
    as_json: bool,
) -> int:
    from trapgate.cli.board import board
    from trapgate.debug.story.names import namer
    from trapgate.vmm.actions import End
    from trapgate.vmm.console import Console, input_bytes
    from trapgate.vmm.loaders import load_guest
    from trapgate.vmm.loaders.bios import load_bios

    find = finder(guest, symbols)
    injections = read_injections(inject, find)
    saving = None if save is None else Saving(save, find)
    if bitmaps and vmcs is None and gdb is None:
        raise fail("--bitmap is for conditions: give --vmcs or --gdb too")
    known = None if vmcs is None and gdb is None else names_for(symbols, bitmaps, guest)
    settings = None if vmcs is None else _settings(vmcs, known)
    names = namer(guest, symbols)
    saved = None
    if load is not None:
        others = {
            "GUEST": guest is not None,
            "--bios": bios is not None,
            "--append": bool(append),
            "--initrd": initrd is not None,
            "--module": bool(modules),
            "--vmcs": vmcs is not None,
            "--paging": paging is not Paging.own or protect is not None,
            "--cpus": cpus != 1,
            "--seed": seed != 0,
        }
        saved = open_saved(load, engine, others)
        plugged = plugged_in(saved, disks, cds, floppies)
    else:
        kernel = guest is not None
        plugged = board(disks, cds, floppies, bios, memory, processors=cpus, kernel=kernel)
    image: GuestImage | None = None
    if load is not None:
        guest = load
    elif guest is not None:
        image = load_guest(
            guest,
            memory=memory,
            append=append,
            initrd=initrd,
            modules=modules,
            processors=cpus,
        )
    elif bios is not None:
        guest, image = bios, load_bios(bios)
    else:
        guest = Path((floppies + disks + cds)[0].partition(",")[0])
    output = sys.stderr.buffer if as_json else sys.stdout.buffer
    console = Console(output, source=_keyboard(), until=until)
    explanations = Explanations()
    writer = None if trace is None else _writer(trace, guest)
    try:
        if protect is not None and paging is not Paging.direct:
            raise fail("--protect is about direct paging; give --paging direct too")
        if saved is not None:
            vm = saved.machine(board=plugged, console=console, trace=writer)
            if explain:
                vm.processor.x86_vmm.explain_to(explanations)
        else:
            vt_x = settings is not None and settings.profile == "vt-x"
            vm = _machine(paging, protect or _protection(settings, engine))(
                memory,
                engine=engine,
                console=console,
                trace=writer,
                seed=seed,
                profile="vt-x" if vt_x else "extended",
                explain=explanations if explain else None,
                board=plugged,
            )
        vm.turns.length = turn
        vm.reboots, vm.resets_on_triple_fault = not no_reboot, reset_on_triple_fault
        if engine == EngineKind.auto and vm.summary().engine == "portable":
            tell_portable(vm.summary())
        if saved is not None:
            description, bits = f"{load}, saved at {saved.time:,} instructions", code_bits(vm)
        else:
            if image is None:
                image = vm.boot()
            else:
                vm.load(image)
            description, bits = image.description, image.bits
        if saving is not None:
            saving.plan(vm)
        for injection in injections:
            injection.plan(vm)
        if settings is not None:
            vm.apply(settings)
        if writer is not None:
            from trapgate.trace.schema import CRITERIA

            writer.metadata[CRITERIA] = vm.vmcs.criteria_toml()
        if text:
            vm.type(input_bytes(text))
        if keys:
            vm.devices.keyboard.type(input_bytes(keys).decode("latin-1"))
        with (
            console,
            _debugger(vm, gdb, guest, bits, known, wait=wait),
            shown(vm, until_screen, display),
        ):
            stop = vm.run(max_instructions=max_instructions, timeout=timeout)
    finally:
        if writer is not None:
            writer.close()
    take_picture(vm, screenshot)
    status = stop.status
    if saving is not None and not saving.end(vm, stop):
        status = 1
    summary = vm.summary()
    notes = [] if stop.end is End.REFUSED else list(notes_about(vm, paging, summary))
    story = _story(vm, names)
    if story is not None and report is not None:
        from trapgate.debug.story.page import write

        write(story, report, guest.name)
    if as_json:
        answer = {
            "guest": description,
            "end": stop.end.value,
            "message": stop.message,
            "status": status,
            **({"screen": screen_text} if (screen_text := screen_lines(vm)) else {}),
            "notes": notes,
            **summary_json(summary),
            **({"failures": explanations.as_json()} if explain else {}),
            **({"story": story.values()} if story is not None else {}),
        }
        print(json.dumps(answer, indent=2))
        return status
    out = terminal(error=True)
    screen = screen_lines(vm)
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
    return status


def code_bits(vm: VirtualMachine) -> int:
    """How wide the code is that a guest has come to: 64 in IA-32e mode, else 32."""
    return 64 if vm.vmcs["GUEST_IA32_EFER"] >> 10 & 1 else 32


@contextmanager
def _debugger(
    vm: VirtualMachine,
    gdb: str | None,
    guest: Path,
    bits: int,
    names: Names | None,
    *,
    wait: bool,
) -> Iterator[None]:
    """The server for gdb around a run, if there is to be one."""
    if gdb is None:
        if wait:
            raise fail("--wait: waits for gdb, so give --gdb too")
        yield
        return
    from trapgate.debug.gdb import Debugger, address_of

    debugger = Debugger(vm, *address_of(gdb), guest=guest, bits=bits, names=names)
    host, port = debugger.address
    print(f"trapgate: gdb: target remote {host}:{port}", file=sys.stderr, flush=True)
    try:
        if wait:
            debugger.wait()
        yield
    finally:
        if vm.stopped is not None:
            debugger.finished(vm.stopped)


def _settings(file: Path, names: Names | None) -> Settings:
    from trapgate.vmcs.file import read_settings

    return read_settings(file, names)


def _writer(file: Path, guest: Path) -> TraceWriter:
    from trapgate.trace import TraceWriter

    return TraceWriter(file, metadata={"guest": guest.name})


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
