"""Guests whose page tables map themselves, for writes to them: 32-bit, PAE and four-level tables.

Physical memory is mapped to itself (by writable pages). `tables` is the linear address of
two neighbouring pages of page-table entries which map nothing that is used, so that any
write to them is harmless; only the slot of the self-map decides whether they are writable.
"""

from dataclasses import dataclass
from struct import pack

from trapgate.decision.criteria_rules import Rule
from trapgate.processor.processor import Processor
from trapgate.processor.vm_exit import VmExit
from trapgate.vmcs.vmcs import Vmcs

MEMORY = 1 << 20
CODE, STACK, DATA = 0x40000, 0x50000, 0x60000
ROOT = 0x2000
VMCALL = b"\x0f\x01\xc1"
PAGE_FAULT = 14


@dataclass(frozen=True)
class Layout:
    """Where everything lies; `frames` are the physical pages behind `tables` and `edges`.

    `edges` are linear addresses of writable pages just before and just after the
    self-map's first and last page of entries, None where there are none.
    """

    bits: int
    width: int
    ptbase: int
    slot: int
    tables: int
    frames: tuple[int, int]
    before: int | None = None
    pae: bool = False

    @property
    def self_entry(self) -> int:
        """The physical address of the entry that maps the tables."""
        return ROOT + self.slot * self.width

    def memory(self, *, writable: bool) -> dict[int, bytes]:
        """The tables, in physical memory; `writable` says whether the self-map is."""
        word = "<I" if self.width == 4 else "<Q"
        slot = {self.self_entry: pack(word, ROOT | (7 if writable else 5))}
        if self.width == 4:
            identity = b"".join(pack(word, n << 12 | 7) for n in range(MEMORY >> 12))
            parts = {
                ROOT: pack(word, 0x3000 | 7),
                0x3000: identity,
                ROOT + 4: pack(word, self.frames[0] | 7),
                ROOT + 8: pack(word, self.frames[1] | 7),
                # What ends where the tables begin: a page of data.
                ROOT + 4 * 767: pack(word, 0x7000 | 7),
                0x7000 + 4 * 1023: pack(word, DATA | 7),
            }
            return parts | slot
        if self.pae:
            # Directories at 8000H to B000H; the last one's first four entries show them.
            shown = b"".join(pack(word, n << 12 | (7 if writable else 5)) for n in range(8, 12))
            return {
                ROOT: b"".join(pack(word, n << 12 | 1) for n in range(8, 12)),
                0x8000: pack(word, 0x87)
                + pack(word, self.frames[0] | 7)
                + pack(word, self.frames[1] | 7),
                0xB000: shown,
            }
        parts = {
            ROOT: pack(word, 0x3000 | 7),
            0x3000: pack(word, 0x4000 | 7),
            0x4000: pack(word, 0x87),
            ROOT + 8: pack(word, 0x9000 | 7),
            0x9000: pack(word, 0xA000 | 7),
            0xA000: pack(word, self.frames[0] | 7) + pack(word, self.frames[1] | 7),
        }
        return parts | slot


TWO_LEVEL = Layout(32, 4, 0xC0000000, 768, 0xC0001000, (0x5000, 0x6000), 0xC0000000)
PAE = Layout(32, 8, 0xC0000000, 0, 0xC0001000, (0x5000, 0x6000), pae=True)
FOUR_LEVEL = Layout(
    64,
    8,
    0xFFFF_F680_0000_0000,
    493,
    0xFFFF_F680_0000_0000 | 1 << 30,
    (0x5000, 0x6000),
)


@dataclass
class Outcome:
    """What a guest left: the exit, its registers and all of memory."""

    exit: VmExit
    fields: dict[str, int]
    registers: dict[str, int]
    memory: bytes
    fpu: bytes
    rows: list[tuple[int, ...]]


_FIELDS = ("GUEST_RIP", "GUEST_RSP", "GUEST_RFLAGS", "GUEST_CR0", "GUEST_CR3", "GUEST_CR4")
_REGISTERS = [
    "rax",
    "rcx",
    "rdx",
    "rbx",
    "rbp",
    "rsi",
    "rdi",
    "r8",
    "r9",
    "r10",
    "r11",
    "r12",
    "r13",
    "r14",
    "r15",
    "cr2",
]


class Bench:
    """One processor on which guests are tried, each in memory of its own making."""

    def __init__(self, layout: Layout, engine: str, *, ring: int = 0) -> None:
        self.layout = layout
        self.ring = ring
        self.processor = Processor(MEMORY, engine=engine, journal=64)
        self._fpu = self.processor.engine.vectors.save()

    def run(
        self,
        code: bytes,
        *,
        writable: bool,
        memory: dict[int, bytes],
        registers: dict[str, int],
        fields: dict[str, int] | None = None,
        rules: tuple[Rule, ...] = (),
    ) -> Outcome:
        """Execute `code` up to a VMCALL behind it, or to its first fault."""
        layout, processor = self.layout, self.processor
        image = bytearray(MEMORY)
        parts = layout.memory(writable=writable) | {CODE: code + VMCALL} | memory
        for address, data in parts.items():
            image[address : address + len(data)] = data
        processor.memory.write(0, bytes(image))
        processor.engine.vectors.restore(self._fpu)
        vmcs = Vmcs()
        vmcs.set_flat_segments(32 if layout.bits == 32 else 64, user=self.ring == 3)
        vmcs["GUEST_RIP"], vmcs["GUEST_RSP"], vmcs["GUEST_CR3"] = CODE, STACK, ROOT
        vmcs["GUEST_CR0"] = 0x80010031
        vmcs["GUEST_CR4"] = 0x2600 | (0x20 if layout.width == 8 else 0x10)
        vmcs["GUEST_IA32_EFER"] = 0xD01 if layout.bits == 64 else 0
        vmcs["GUEST_LDTR_ACCESS_RIGHTS"] = 1 << 16
        vmcs["EXCEPTION_BITMAP"] = 0xFFFFFFFF
        vmcs["FAULT_FILTER"], vmcs["PTBASE"] = 2, layout.ptbase
        for name, value in (fields or {}).items():
            vmcs[name] = value
        vmcs.criteria_table = rules
        for name in _REGISTERS:
            setattr(processor.registers, name, registers.get(name, 0))
        if "rsp" in registers:
            vmcs["GUEST_RSP"] = registers["rsp"]
        if "rflags" in registers:
            vmcs["GUEST_RFLAGS"] = registers["rflags"]
        start = int(processor.head[4])
        exit_ = processor.vmlaunch(vmcs)
        assert isinstance(exit_, VmExit), exit_
        count = int(processor.head[4]) - start
        rows = [tuple(map(int, row)) for row in processor.last_events()][: min(count, 64)]
        return Outcome(
            exit_,
            {name: vmcs[name] for name in _FIELDS},
            {name: getattr(processor.registers, name) for name in _REGISTERS},
            processor.memory.read(0, MEMORY),
            processor.engine.vectors.save(),
            rows[::-1],
        )
