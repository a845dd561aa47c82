"""Our own BIOS serves the guest of an x86 VMM, too, that lets the ports through.

As a PC's firmware does, whose services a hypervisor's guest calls by INT n and which know nothing
of the hypervisor; but only in memory that the guest has (SDM, "EPT Overview").
"""

from struct import pack

from tests.conformance.x86_vmm import GUEST_CODE, Assembler, X86Vmm
from tests.guests.test_firmware import image as disk_image
from trapgate.sdm import controls as ct
from trapgate.sdm.reasons import ExitReason
from trapgate.vmm.devices.board import Board
from trapgate.vmm.devices.storage import Memory
from trapgate.vmm.loaders.state import real_mode
from trapgate.vmm.machine import VirtualMachine

EPT = 0x20_0000
ELSEWHERE = 0x30_0000
WRITE_BACK, ALL = 6 << 3, 7
BUFFER = 0x9_0E00
"""The second of two sectors read to here is on another page."""
READ_TWO_SECTORS = bytes.fromhex("b80090 8ec0 bb000e b80202 b90100 ba8000 cd13")
"""mov ax, 9000h; mov es, ax; mov bx, 0E00h; mov ax, 0202h; mov cx, 1; mov dx, 80h; int 13h"""
EXIT = b"\x0f\xa2"
"""CPUID."""
LEAVE = b"\xb0\x05\xe6\xf4"
"""mov al, 5; out 0F4h, al"""


def ept() -> bytes:
    """Guest-physical addresses up to 2 MB are physical ones, but for the two of BUFFER.

    The first page is at ELSEWHERE, the second nowhere.
    """
    pages = [page << 12 | WRITE_BACK | ALL for page in range(512)]
    pages[BUFFER >> 12] = ELSEWHERE | WRITE_BACK | ALL
    pages[(BUFFER >> 12) + 1] = 0
    upper = (pack("<Q", EPT + 0x1000 * n | ALL).ljust(4096, b"\0") for n in (1, 2, 3))
    return b"".join(upper) + pack("<512Q", *pages)


class Machine(X86Vmm):
    """An x86 VMM on a PC with our BIOS; its guest begins in real mode."""

    def __post_init__(self) -> None:
        self.assembler = Assembler(long=False)
        board = Board(disks=(Memory(disk_image()),), bios=True)
        self.vm = VirtualMachine(32 << 20, engine="native", board=board)
        self.vm.boot()
        self.processor, self.vmcs = self.vm.processor, self.vm.vmcs
        self.boot()


def test_a_disk_is_read_to_where_the_guest_has_memory() -> None:
    guest = real_mode(0, 0x7000) | {
        "GUEST_CS_SELECTOR": GUEST_CODE >> 4,
        "GUEST_CS_BASE": GUEST_CODE,
        "GUEST_CR0": 0x30,
        "GUEST_CR4": 0x2000,
        "PRIMARY_PROCESSOR_BASED_CONTROLS": ct.PRIMARY_ALLOWED_0 | ct.PRIMARY_SECONDARY_CONTROLS,
        "SECONDARY_PROCESSOR_BASED_CONTROLS": ct.SECONDARY_EPT | ct.SECONDARY_UNRESTRICTED_GUEST,
        "EPT_POINTER": EPT | 3 << 3 | 6,
    }
    machine = Machine(
        "p32",
        guest=READ_TWO_SECTORS + EXIT,
        fields=guest,
        handler=LEAVE,
        memory={EPT: ept()},
    )
    stop = machine.vm.run(timeout=60)
    assert stop.message == "the guest exited with status 5"
    entries, exits = machine.processor.x86_vmm.counts()
    assert (entries, exits) == (1, {ExitReason.CPUID: 1})
    memory = machine.processor.memory
    assert memory.read(ELSEWHERE + (BUFFER & 0xFFF), 512) == disk_image()[:512]
    assert memory.read(ELSEWHERE + 0x1000, 512) == bytes(512)
    assert memory.read(BUFFER, 1024) == bytes(1024)
