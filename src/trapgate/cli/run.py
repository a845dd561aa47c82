"""`trapgate run`: its options. `running` carries them out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trapgate.cli.names import BitmapOption
from trapgate.cli.run_options import DEFAULT_MEMORY, Options
from trapgate.cli.running import perform
from trapgate.cli.screen import DisplayOption, ScreenshotOption, UntilScreenOption
from trapgate.cli.terminal import (
    EngineKind,
    EngineOption,
    Paging,
    Protect,
    one_line_errors,
    prepared,
)

EXAMPLES = """
Examples:

  trapgate run vmlinuz --initrd initrd.cpio --append "console=ttyS0"

  trapgate run boot.bin --memory 16M --until "login:" --json

  trapgate run kernel.elf --vmcs filter.toml --trace faults.parquet

  trapgate run kernel.elf --paging direct --memory 16M --vmcs figure-8.toml

  trapgate run vmlinuz --initrd initrd.cpio --paging direct --protect frames

  trapgate run vmlinuz --initrd initrd.cpio --paging direct --with-guest "--disk xv6.img"

  trapgate run kernel.elf --report why.html

  trapgate run kernel.elf --inject "PF(code=2,cr2=0x1000)@1000000" --trace faults.parquet

  trapgate run --disk xv6.img --disk fs.img --memory 512M

  trapgate run vmlinuz --initrd initrd.cpio --append "console=ttyS0" --cpus 4 --seed 7

  trapgate run --floppy kolibri.img --display 8080 --screenshot desktop.png

  trapgate run hypervisor.elf --explain --module guest.elf --module "vmlinuz console=ttyS0"

Ctrl-A x leaves an interactive run, Ctrl-A c sends the guest a Ctrl-C, Ctrl-A p presses the power
button.
"""


def run(
    guest: Annotated[
        Path | None,
        typer.Argument(
            help="bzImage, ELF, multiboot, flat binary or boot sector; without one "
            "the built-in BIOS boots from a disk."
        ),
    ] = None,
    disk: Annotated[
        list[str] | None,
        typer.Option(
            help="Disk image: FILE[,write][,overlay=FILE]; with neither option, what the "
            "guest writes is lost. Repeatable."
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
    memory: Annotated[
        str | None, typer.Option(help="RAM of the guest.", show_default=DEFAULT_MEMORY)
    ] = None,
    cpus: Annotated[
        int, typer.Option(min=1, max=32, help="Processors, which take turns on one host thread.")
    ] = 1,
    turn: Annotated[
        int,
        typer.Option(
            min=1, help="Average number of instructions in a turn; --seed determines each length."
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
    paging: Annotated[
        Paging,
        typer.Option(
            help="own: the guest's page tables are not guarded; direct: the VMM guards them, and "
            "fault filters complete harmless writes to them."
        ),
    ] = Paging.own,
    protect: Annotated[
        Protect | None,
        typer.Option(
            help="With direct paging, what stops writes to page tables. frames: a frame map, for "
            "any guest; entries: R/W = 0 in the guest's own entries, for 32-bit Linux, multiboot "
            "and ELF kernels. Default: frames, unless a VMCS file sets PTBASE or the engine is "
            "portable."
        ),
    ] = None,
    text: Annotated[
        str, typer.Option("--input", help=r"Text to type at the serial port; \n is Enter.")
    ] = "",
    until: Annotated[
        str | None, typer.Option(help="Stop when the output matches this regular expression.")
    ] = None,
    testdev: Annotated[
        bool,
        typer.Option(
            "--testdev", help="Plug in the device that kvm-unit-tests drives, QEMU's pc-testdev."
        ),
    ] = False,
    no_reboot: Annotated[
        bool,
        typer.Option(
            "--no-reboot",
            help="End the run when the guest resets the machine. A guest given as a file "
            "always ends at a reset.",
        ),
    ] = False,
    reset_on_triple_fault: Annotated[
        bool,
        typer.Option(
            "--reset-on-triple-fault",
            help="A triple fault resets the machine, as on a PC, instead of ending the run.",
        ),
    ] = False,
    trace: Annotated[
        Path | None, typer.Option(help="Write every fault to this Parquet file.")
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            min=0,
            help="Determines the start of the time-stamp counter, the values of RDRAND, and the "
            "schedule of several processors.",
        ),
    ] = 0,
    max_instructions: Annotated[
        int | None, typer.Option(min=1, help="Stop after this many instructions.")
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(min=0.001, help="Stop after this many seconds.")
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
            help="Inject an event by VM entry: EVENT@WHEN, such as PF(code=2,cr2=0x1000)@5000, "
            "NMI@rip=0x101234#3, GP(0x10)@symbol=trap, UD@exit=CPUID, INT 0x20@fault=PF, "
            'DB@output="login:". Repeatable.'
        ),
    ] = None,
    save: Annotated[
        str | None,
        typer.Option(
            help="Save the machine: FILE when the run ends, or FILE@WHEN as in --inject; "
            "--load continues from there."
        ),
    ] = None,
    load: Annotated[
        Path | None,
        typer.Option(help="Continue with a machine that --save has saved; omit GUEST."),
    ] = None,
    gdb: Annotated[
        str | None,
        typer.Option(
            help="Serve gdb at [HOST:]PORT (default host: loopback); in gdb: target remote :PORT."
        ),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="With --gdb: wait until gdb starts the guest.")
    ] = False,
    report: Annotated[
        Path | None,
        typer.Option(help="If the guest dies, write a post-mortem to this HTML file."),
    ] = None,
    symbols: Annotated[
        Path | None,
        typer.Option(
            help="System.map or ELF file that names the guest's functions, also in conditions; "
            "not needed for an ELF guest with symbols."
        ),
    ] = None,
    screenshot: ScreenshotOption = None,
    until_screen: UntilScreenOption = None,
    display: DisplayOption = None,
    bitmap: BitmapOption = None,
    with_guest: Annotated[
        list[str] | None,
        typer.Option(
            help="With direct paging, another guest in the same physical memory, as "
            'arguments of `trapgate run`: "vmlinuz --initrd initrd.cpio --memory 64M". Repeatable.'
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the summary as JSON; the guest writes to stderr.")
    ] = False,
) -> None:
    """Run a guest with the terminal as its console."""
    given = Options(**locals())
    with one_line_errors(), prepared():
        if given.with_guest:
            from trapgate.cli.guests_together import perform_together

            raise typer.Exit(perform_together(given, given.with_guest))
        raise typer.Exit(perform(given))
