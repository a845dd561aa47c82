"""Bare-metal 32-bit code that drives the interrupt controllers, put together byte by byte.

It runs at 1 MB in flat protected mode, with an IDT whose handlers write down their vector
and end the interrupt. It leaves through the debug-exit port.
"""

from struct import pack

from trapgate.vmm.devices import INSTRUCTIONS_PER_MICROSECOND
from trapgate.vmm.loaders import parse_guest
from trapgate.vmm.machine import VirtualMachine

MEMORY = 16 << 20
BASE = 1 << 20
IDT, COUNT, LOG, WORDS = 0x300000, 0x310000, 0x311000, 0x312000
"""Where the guest keeps its IDT, how many interrupts came, their vectors, and its results."""
HANDLERS = 0x320000
APIC, IO_APIC = 0xFEE00000, 0xFEC00000
EOI, TPR, SVR, ICR, LVT_TIMER, LVT_LINT0 = 0xB0, 0x80, 0xF0, 0x300, 0x320, 0x350
INITIAL, CURRENT, DIVIDE = 0x380, 0x390, 0x3E0
SELF = 1 << 18
MICROSECOND = INSTRUCTIONS_PER_MICROSECOND

CLI, STI, NOP, HLT = b"\xfa", b"\xfb", b"\x90", b"\xf4"


def store(address: int, value: int) -> bytes:
    """Mov dword [address], value."""
    return b"\xc7\x05" + pack("<II", address, value)


def apic(offset: int, value: int) -> bytes:
    """Write a register of the local APIC."""
    return store(APIC + offset, value)


def io_apic(index: int, value: int) -> bytes:
    """Write a register of the I/O APIC."""
    return store(IO_APIC, index) + store(IO_APIC + 0x10, value)


def redirect(pin: int, entry: int) -> bytes:
    """Write an entry of the redirection table, for APIC 0."""
    return io_apic(0x11 + 2 * pin, 0) + io_apic(0x10 + 2 * pin, entry)


def keep(n: int, address: int) -> bytes:
    """Load a double word and keep it as result `n`."""
    return b"\xa1" + pack("<I", address) + b"\xa3" + pack("<I", WORDS + 4 * n)


def out(port: int, value: int) -> bytes:
    """Mov dx, port; mov al, value; out dx, al."""
    return b"\x66\xba" + pack("<H", port) + b"\xb0" + bytes((value,)) + b"\xee"


def until(count: int) -> bytes:
    """Wait, with interrupts on, until that many interrupts have come."""
    return STI + b"\x81\x3d" + pack("<II", COUNT, count) + b"\x75\xf4" + CLI


def write_msr(index: int, low: int, high: int = 0) -> bytes:
    """Mov ecx, eax, edx; wrmsr."""
    return (
        b"\xb9"
        + pack("<I", index)
        + b"\xb8"
        + pack("<I", low)
        + b"\xba"
        + pack("<I", high)
        + (b"\x0f\x30")
    )


def cpuid_1(n: int) -> bytes:
    """Keep EDX and ECX of CPUID leaf 1 as results `n` and `n + 1`."""
    kept = b"\x89\x15" + pack("<I", WORDS + 4 * n) + b"\x89\x0d" + pack("<I", WORDS + 4 * n + 4)
    return b"\xb8\x01\x00\x00\x00\x0f\xa2" + kept


def _handler(vector: int) -> bytes:
    """Push eax; note the vector; count; end the interrupt; pop eax; iret."""
    # Movzx eax, byte [COUNT]: the log wraps, or a storm would run over the handlers.
    noted = b"\x0f\xb6\x05" + pack("<I", COUNT) + b"\xc6\x80" + pack("<I", LOG) + bytes((vector,))
    return b"\x50" + noted + b"\xff\x05" + pack("<I", COUNT) + apic(EOI, 0) + b"\x58\xcf"


def image(code: bytes) -> bytes:
    """Flat code: load the IDT, then `code`, then leave."""
    idtr = BASE + 7 + len(code) + 16
    leave = b"\x66\xba\xf4\x00\x31\xc0\xef"
    body = b"\x0f\x01\x1d" + pack("<I", idtr) + code + leave + b"\xeb\xfe"
    return body.ljust(idtr - BASE, b"\xcc") + pack("<HI", 256 * 8 - 1, IDT)


def machine(code: bytes, *, engine: str) -> VirtualMachine:
    """A machine with the guest in it."""
    vm = VirtualMachine(MEMORY, engine=engine)
    vm.load(parse_guest(image(code), file="guest.bin", memory=MEMORY))
    size = len(_handler(0))
    for vector in range(256):
        at = HANDLERS + vector * size
        gate = pack("<HHHH", at & 0xFFFF, 0x10, 0x8E00, at >> 16)
        vm.processor.memory.write(IDT + 8 * vector, gate)
        vm.processor.memory.write(at, _handler(vector))
    return vm


def words(vm: VirtualMachine, count: int) -> list[int]:
    """The first results that the guest kept."""
    data = vm.processor.memory.read(WORDS, 4 * count)
    return [int.from_bytes(data[n : n + 4], "little") for n in range(0, len(data), 4)]


def vectors(vm: VirtualMachine) -> list[int]:
    """The interrupts that came, in order; the log has room for 256."""
    count = int.from_bytes(vm.processor.memory.read(COUNT, 4), "little")
    return list(vm.processor.memory.read(LOG, count))
