"""ELF guests: 32-bit and 64-bit executables with physical load addresses.

Segments go to their p_paddr. ELF32 starts in flat 32-bit protected mode, ELF64 in 64-bit
mode; a Linux vmlinux is such an ELF64 and finds its boot_params in RSI. An ELF with a
multiboot header is loaded the same way and started by that protocol (`multiboot`).
"""

from dataclasses import dataclass
from struct import Struct

from trapgate.vmm.loaders.bare import finish
from trapgate.vmm.loaders.image import GuestImage, GuestImageError, GuestKind, Segment
from trapgate.vmm.loaders.layout import Layout

_HEADER_32 = Struct("<HHIIIIIHHH")
_HEADER_64 = Struct("<HHIQQQIHHH")
_PROGRAM_32 = Struct("<IIIIIIII")
_PROGRAM_64 = Struct("<IIQQQQQQ")

_LITTLE_ENDIAN = 1
_EXECUTABLE = 2
_MACHINES = {32: (3, "i386"), 64: (62, "x86-64")}
_LOAD = 1
_INTERPRETER = 3


@dataclass(frozen=True, slots=True)
class Program:
    """A loadable program header: where in the file, where in memory, how much of each."""

    index: int
    offset: int
    virtual: int
    physical: int
    file_size: int
    memory_size: int


@dataclass(frozen=True, slots=True)
class Elf:
    """What matters of an ELF file: its width, entry point and loadable segments."""

    bits: int
    entry: int
    programs: tuple[Program, ...]


def is_elf(data: bytes) -> bool:
    """Does `data` begin like an ELF file, whole or not?"""
    return data[:4] == b"\x7fELF"


def parse_elf(data: bytes, file: str) -> Elf:
    """Read the headers. Raises GuestImageError if they are not a guest's."""
    bits = {1: 32, 2: 64}.get(data[4] if len(data) > 4 else 0)
    header = _HEADER_64 if bits == 64 else _HEADER_32
    if len(data) < 16 + header.size:
        raise GuestImageError(file, "ELF header", "the file is truncated; fetch or build it again")
    if bits is None or data[5] != _LITTLE_ENDIAN:
        raise GuestImageError(
            file, "e_ident", "not a little-endian ELF32 or ELF64; build it for x86"
        )
    kind, machine, _, entry, table, _, _, _, entry_size, count = header.unpack_from(data, 16)
    wanted, name = _MACHINES[bits]
    if machine != wanted:
        raise GuestImageError(
            file, "e_machine", f"{machine} is not {name}'s {wanted}; build an ELF{bits} for {name}"
        )
    if kind != _EXECUTABLE:
        raise GuestImageError(
            file, "e_type", f"{kind} is not an executable; link it at a fixed address (ld -no-pie)"
        )
    program = _PROGRAM_64 if bits == 64 else _PROGRAM_32
    if not count or entry_size != program.size:
        raise GuestImageError(
            file,
            "e_phentsize" if count else "e_phnum",
            f"{count} program headers of {entry_size} bytes; link an executable, not an object",
        )
    if table + count * entry_size > len(data):
        raise GuestImageError(
            file,
            "e_phoff",
            f"the program headers at {table:#x} lie beyond the file's {len(data)} bytes; "
            "the file is truncated, fetch or build it again",
        )
    programs = []
    for index in range(count):
        values = program.unpack_from(data, table + index * entry_size)
        if values[0] == _INTERPRETER:
            raise GuestImageError(
                file,
                f"program header {index}",
                "asks for an interpreter, so it is a program for an operating system; "
                "give a kernel",
            )
        if values[0] != _LOAD:
            continue
        if bits == 64:
            _, _, offset, virtual, physical, file_size, memory_size, _ = values
        else:
            _, offset, virtual, physical, file_size, memory_size, _, _ = values
        if memory_size:
            programs.append(Program(index, offset, virtual, physical, file_size, memory_size))
    return Elf(bits, entry, tuple(programs))


def place_elf(elf: Elf, data: bytes, layout: Layout) -> tuple[list[Segment], int]:
    """Claim memory for the segments; answer them and the physical entry point."""
    file = layout.file
    if not elf.programs:
        raise GuestImageError(file, "e_phnum", "nothing to load; link an executable with code")
    for program in elf.programs:
        field = f"program header {program.index}"
        if program.file_size > program.memory_size:
            raise GuestImageError(
                file,
                field,
                f"p_filesz {program.file_size:#x} exceeds p_memsz {program.memory_size:#x}; "
                "build the guest again",
            )
        if program.offset + program.file_size > len(data):
            raise GuestImageError(
                file,
                field,
                f"its data at {program.offset:#x} lie beyond the file's {len(data)} bytes; "
                "the file is truncated, fetch or build it again",
            )
        # Claiming comes before copying: what fits without overlap is bounded by the memory.
        layout.claim(program.physical, program.memory_size, field)
    segments = [Segment(p.physical, data[p.offset : p.offset + p.file_size]) for p in elf.programs]
    return segments, _physical_entry(elf, file)


def load_elf(data: bytes, layout: Layout, append: str, initrd: bytes | None) -> GuestImage:
    """Make a guest of an ELF without a multiboot header. Raises GuestImageError."""
    elf = parse_elf(data, layout.file)
    segments, entry = place_elf(elf, data, layout)
    return finish(
        GuestKind.ELF,
        elf.bits,
        layout,
        segments,
        entry,
        append,
        initrd,
        f"{elf.bits}-bit ELF, {len(elf.programs)} segments, entry {entry:#x}",
    )


def _physical_entry(elf: Elf, file: str) -> int:
    """The entry point as a physical address: kernels give it either way."""
    for program in elf.programs:
        if 0 <= elf.entry - program.physical < program.memory_size:
            return elf.entry
    for program in elf.programs:
        if 0 <= elf.entry - program.virtual < program.memory_size:
            return elf.entry - program.virtual + program.physical
    raise GuestImageError(
        file, "e_entry", f"{elf.entry:#x} lies in no segment; link the guest with an entry point"
    )
