"""Bare-metal 32-bit code for several processors, put together byte by byte.

The first one sends INIT and start-up IPIs to the others, waits until all are there, and lets go:
then all do the same work, and the first one leaves through the debug-exit port when they are done.
Others end in HLT, and take interrupts there.
"""

from struct import pack

from tests.guests.apic_guest import HANDLERS, IDT, MEMORY, NOP, STI, apic, image
from trapgate.vmm.devices.board import Board
from trapgate.vmm.loaders import parse_guest
from trapgate.vmm.loaders.state import gdt
from trapgate.vmm.machine import VirtualMachine

TRAMPOLINE, TABLES, STACKS, WORK = 0x8000, 0x9000, 0x400000, 0x500000
HERE, GO, DONE, COUNTER, TAKEN = (0x330000 + 0x40 * n for n in range(5))
"""Processors that are there, whether they may begin, how many are done, what they count, and
interrupts taken."""
IDS = 0x331000
"""APIC IDs as CPUID says, in the order in which processors came, a double word each."""
ICR = 0x300
TO_OTHERS = 0xC0000
INIT, START_UP = 0x4500, 0x4600
PAUSE = b"\xf3\x90"
VECTOR = 0x40


def locked_increment(address: int) -> bytes:
    """Lock inc dword [address]."""
    return b"\xf0\xff\x05" + pack("<I", address)


def wait_for(address: int, count: int, pause: bytes = PAUSE) -> bytes:
    """Until dword [address] is `count`: pause."""
    compared = b"\x81\x3d" + pack("<II", address, count)
    return (
        compared
        + b"\x74"
        + bytes((len(pause) + 2,))
        + pause
        + b"\xeb"
        + bytes((256 - len(compared) - len(pause) - 4,))
    )


def times(count: int, body: bytes) -> bytes:
    """Mov ecx, count; body; dec ecx; jnz."""
    looped = body + b"\x49"
    return b"\xb9" + pack("<I", count) + looped + b"\x0f\x85" + pack("<i", -len(looped) - 6)


def to(destination: int, command: int) -> bytes:
    """Send an interprocessor interrupt to an APIC ID."""
    return apic(0x310, destination << 24) + apic(ICR, command)


def _call(address: int) -> bytes:
    """Mov eax, address; call eax."""
    return b"\xb8" + pack("<I", address) + b"\xff\xd0"


def _note_id() -> bytes:
    """Mov eax, 1; lock xadd [HERE], eax; mov edi, eax; cpuid leaf 1; IDS[edi] = EBX >> 24."""
    took = b"\xb8\x01\x00\x00\x00\xf0\x0f\xc1\x05" + pack("<I", HERE) + b"\x89\xc7"
    leaf = b"\xb8\x01\x00\x00\x00\x0f\xa2\xc1\xeb\x18"
    return took + leaf + b"\x89\x1c\xbd" + pack("<I", IDS)


def _trampoline() -> bytes:
    """16-bit code: cli; lgdt; set CR0.PE; jump to 32-bit code right behind."""
    entry = TRAMPOLINE + 0x40
    low = b"\xfa\x0f\x01\x16" + pack("<H", TABLES) + b"\x0f\x20\xc0\x0c\x01\x0f\x22\xc0"
    low += b"\x66\xea" + pack("<IH", entry, 0x10)
    high = b"\x66\xb8\x18\x00\x8e\xd8\x8e\xc0\x8e\xd0" + b"\x0f\x01\x1d" + pack("<I", TABLES + 8)
    high += _note_id()
    # Lea esp, [STACKS + edi * 4096 + 4096].
    high += b"\x89\xf8\xc1\xe0\x0c\x8d\xa0" + pack("<I", STACKS + 0x1000)
    high += apic(0xF0, 0x1FF) + wait_for(GO, 1) + _call(WORK) + locked_increment(DONE)
    return low.ljust(0x40, NOP) + high + STI + b"\xf4\xeb\xfd"


def machine(
    work: bytes,
    *,
    processors: int,
    engine: str,
    seed: int = 0,
    length: int = 10_000,
    first: bytes = b"",
    last: bytes = b"",
) -> VirtualMachine:
    """A machine whose processors all do `work`.

    The first one does `first` when all are there, before it lets go, and `last` when they are done.
    """
    vm = VirtualMachine(MEMORY, engine=engine, seed=seed, board=Board(processors=processors))
    vm.turns.length = length
    file = kernel(processors, first, last)
    vm.load(parse_guest(file, file="guest.bin", memory=MEMORY, processors=processors))
    put_in(vm, work)
    return vm


def kernel(processors: int, first: bytes = b"", last: bytes = b"") -> bytes:
    """The file of the first processor's code; `put_in` sees to the rest."""
    code = _note_id() + b"\xbc" + pack("<I", STACKS + 0x1000)
    code += apic(ICR, TO_OTHERS | INIT)
    code += apic(ICR, TO_OTHERS | START_UP | TRAMPOLINE >> 12) * 2
    code += wait_for(HERE, processors) + first
    code += b"\xc7\x05" + pack("<II", GO, 1) + _call(WORK) + locked_increment(DONE)
    code += wait_for(DONE, processors) + last
    return image(code)


def put_in(vm: VirtualMachine, work: bytes) -> None:
    """Give a machine what all processors do, and what they need for that."""
    write = vm.processor.memory.write
    write(TRAMPOLINE, _trampoline())
    write(TABLES, pack("<HI", 31, TABLES + 0x100) + bytes(2) + pack("<HI", 256 * 8 - 1, IDT))
    write(TABLES + 0x100, gdt(32))
    write(WORK, work + b"\xc3")
    # Each interrupt is counted and ended, NMIs too.
    write(HANDLERS, locked_increment(TAKEN) + apic(0xB0, 0) + b"\xcf")
    write(IDT, pack("<HHHH", HANDLERS & 0xFFFF, 0x10, 0x8E00, HANDLERS >> 16) * 256)


def word(vm: VirtualMachine, address: int) -> int:
    """A double word of memory."""
    return int.from_bytes(vm.processor.memory.read(address, 4), "little")
