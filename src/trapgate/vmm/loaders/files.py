"""Guest files: read them, tell by their contents what they are, and make images of them."""

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from trapgate.vmm.loaders.elf import is_elf, load_elf
from trapgate.vmm.loaders.flat import is_boot_sector, load_boot_sector, load_flat
from trapgate.vmm.loaders.image import GuestImage, GuestImageError, mebibytes
from trapgate.vmm.loaders.layout import Layout
from trapgate.vmm.loaders.linux import is_bzimage, load_linux
from trapgate.vmm.loaders.multiboot import Module, find_header, load_multiboot

_LARGEST = 1 << 32


def parse_guest(
    data: bytes,
    *,
    file: str,
    memory: int,
    append: str = "",
    initrd: bytes | None = None,
    initrd_name: str = "initrd",
    modules: Sequence[Module] = (),
    base: int = 0,
    processors: int = 1,
) -> GuestImage:
    """Make a guest of a file's contents.

    `file` names it in messages (and, its last part, to a multiboot kernel); `memory` is the
    machine's RAM in bytes, `processors` their number, for the tables of its firmware. To a
    multiboot kernel `initrd` is one more module, the first; other guests take none but that.
    `base` is where that lies for a guest whose page tables hold machine addresses: a multiboot
    kernel's memory map says so. Raises GuestImageError if this is not a guest or does not fit.
    """
    if not data:
        raise GuestImageError(file, "size", "the file is empty; give a kernel or flat code")
    if initrd is not None and not initrd:
        raise GuestImageError(initrd_name, "size", "the file is empty; leave out --initrd")
    layout = Layout(file, memory, base, processors)
    header = None if is_bzimage(data) else find_header(data)
    if header is not None:
        first = [] if initrd is None else [Module(initrd, initrd_name)]
        return load_multiboot(data, header, layout, append, [*first, *modules])
    if modules:
        raise GuestImageError(
            file, "--module", "only multiboot kernels take modules; give a RAM disk as --initrd"
        )
    if base:
        raise GuestImageError(
            file, "format", "its memory starts at 0 for all it can know; give a multiboot kernel"
        )
    if is_bzimage(data):
        return load_linux(data, layout, append, initrd)
    if is_elf(data):
        return load_elf(data, layout, append, initrd)
    if is_boot_sector(data):
        return load_boot_sector(data, layout, append, initrd)
    return load_flat(data, layout, append, initrd)


def load_guest(
    path: str | os.PathLike[str],
    *,
    memory: int,
    append: str = "",
    initrd: str | os.PathLike[str] | None = None,
    modules: Sequence[str] = (),
    processors: int = 1,
) -> GuestImage:
    """Read a guest file, and its initial RAM disk if there is one, and make a guest of it.

    `memory` is the machine's RAM in bytes, `processors` their number; `append` the command
    line. Each of `modules` is a file's path, and after a space what else the kernel shall read
    with its name. Raises GuestImageError naming file, field and remedy if it can't be booted.
    """
    data = _read(path)
    disk = None if initrd is None else _read(initrd)
    return parse_guest(
        data,
        file=os.fspath(path),
        memory=memory,
        append=append,
        initrd=disk,
        initrd_name="initrd" if initrd is None else Path(initrd).name,
        modules=[_module(module) for module in modules],
        processors=processors,
    )


def _module(text: str) -> Module:
    path, space, arguments = text.partition(" ")
    data = _read(path)
    if not data:
        raise GuestImageError(path, "size", "the file is empty; leave out this --module")
    return Module(data, Path(path).name + space + arguments)


def _read(path: str | os.PathLike[str]) -> bytes:
    file = os.fspath(path)
    try:
        status = Path(file).stat()
        if stat.S_ISDIR(status.st_mode):
            raise GuestImageError(file, "file", "this is a directory; name a file in it")
        if not stat.S_ISREG(status.st_mode):
            raise GuestImageError(file, "file", "not a regular file; give a file on disk")
        # Any size fits some memory, so only the absurd is refused before reading.
        if status.st_size > _LARGEST:
            raise GuestImageError(
                file, "size", f"{mebibytes(status.st_size)} is more than any guest; give a kernel"
            )
        return Path(file).read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise GuestImageError(file, "file", f"{reason}; check the path") from error
    except ValueError as error:
        raise GuestImageError(file, "file", "no such name is possible; check the path") from error
