"""From a guest file to a machine that is ready to run, in one call."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from trapgate.vmm.devices.board import Board
from trapgate.vmm.loaders import load_guest
from trapgate.vmm.machine import VirtualMachine


def load(
    guest: str | PathLike[str],
    *,
    memory: int = 128 << 20,
    engine: str = "auto",
    append: str = "",
    initrd: str | PathLike[str] | None = None,
    modules: Sequence[str] = (),
    processors: int = 1,
) -> VirtualMachine:
    """A machine with a guest in it: bzImage, ELF, multiboot, flat binary or boot sector.

    `memory` is in bytes; `append` is the kernel's command line, `initrd` its initial RAM disk,
    `modules` those of a multiboot kernel, `processors` how many there are. `run` runs it.

    Raises:
        GuestImageError: the file is not a guest, or does not fit.
        EngineError: as `Processor` does.
    """
    disk = None if initrd is None else Path(initrd)
    image = load_guest(
        Path(guest),
        memory=memory,
        append=append,
        initrd=disk,
        modules=list(modules),
        processors=processors,
    )
    vm = VirtualMachine(memory, engine=engine, board=Board(processors=processors))
    vm.load(image)
    return vm
