"""A tiny guest of a few hand-assembled bytes, in any mode: tables, stacks, handlers of one VMCALL.

Every vector's handler is a VMCALL at `handler(vector)`, so a VM exit tells whether the
guest or the VMM got an event. Linear addresses are physical ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from struct import pack

from trapgate.processor.processor import Processor
from trapgate.processor.vm_exit import VmExit
from trapgate.sdm import controls as ct
from trapgate.vmcs.vmcs import Vmcs

MEMORY = 2 << 20
IVT, GDT, IDT, TSS, TABLES = 0, 0x1000, 0x2000, 0x3000, 0x4000
HANDLERS = 0xA000
STACK, USER_STACK, IST_STACK = 0xD000, 0xE000, 0xF000
"""Tops of stacks of 4 KiB."""
CODE, DATA = 0x10000, 0x11000
ABSENT, READ_ONLY, SUPERVISOR, NO_EXECUTE, RESERVED = 0x20000, 0x21000, 0x22000, 0x23000, 0x24000
"""Pages that are mapped so, in modes that can."""
IO_BITMAP_A, IO_BITMAP_B, MSR_BITMAP = 0x30000, 0x31000, 0x32000
OTHER_TSS = 0x3800

CODE_32, DATA_0, CODE_32_USER, DATA_3 = 0x08, 0x10, 0x1B, 0x23
TASK, CODE_64, CODE_64_USER = 0x28, 0x38, 0x43
ABSENT_DATA, ABSENT_STACK, OTHER_TASK, READABLE = 0x48, 0x50, 0x58, 0x60
BEYOND_GDT = 0x1000

VMCALL = b"\x0f\x01\xc1"
TF, IF, RF, AC = 1 << 8, 1 << 9, 1 << 16, 1 << 18
MODES = ("r16", "p32", "pae", "l64")


def handler(vector: int) -> int:
    """The linear address of a vector's handler."""
    return HANDLERS + 16 * vector


def descriptor(base: int, limit: int, rights: int) -> int:
    """A segment descriptor; `rights` are bits 15:0 as in an access-rights field."""
    return (
        limit & 0xFFFF
        | (base & 0xFFFFFF) << 16
        | (rights & 0xF0FF) << 40
        | (limit >> 16 & 0xF) << 48
        | (base >> 24 & 0xFF) << 56
    )


def gate(mode: str, vector: int, *, kind: int = 0xE, ring: int = 3, ist: int = 0) -> bytes:
    """An interrupt gate (or `kind` FH: trap gate) to the vector's handler."""
    offset = handler(vector)
    rights = 0x80 | ring << 5 | kind
    low = pack("<HHBBH", offset & 0xFFFF, CODE_64 if mode == "l64" else CODE_32, ist, rights, 0)
    return low + bytes(8) if mode == "l64" else low


@dataclass
class Tiny:
    """The guest's first state: bytes of memory by address, VMCS fields, registers."""

    mode: str
    ring: int = 0
    code: bytes = b""
    memory: dict[int, bytes] = field(default_factory=dict)
    fields: dict[str, int] = field(default_factory=dict)
    registers: dict[str, int] = field(default_factory=dict)

    @property
    def long(self) -> bool:
        """Is this 64-bit mode?"""
        return self.mode == "l64"

    @property
    def word(self) -> int:
        """Bytes of a word on the stack of a handler."""
        return {"r16": 2, "p32": 4, "pae": 4, "l64": 8}[self.mode]

    def tables(self) -> dict[int, bytes]:
        """Memory with everything that `mode` needs."""
        parts = {handler(vector): VMCALL for vector in range(256)}
        if self.mode == "r16":
            parts[IVT] = b"".join(pack("<HH", handler(vector), 0) for vector in range(256))
        else:
            step = 16 if self.long else 8
            for vector in range(256):
                parts[IDT + step * vector] = gate(self.mode, vector)
            parts |= self._segments() | self._paging()
        parts[CODE] = self.code + VMCALL
        return parts | self.memory

    def _segments(self) -> dict[int, bytes]:
        entries = dict.fromkeys(range(0, 0x80, 8), 0)
        entries[CODE_32] = descriptor(0, 0xFFFFF, 0xC09B)
        entries[DATA_0] = descriptor(0, 0xFFFFF, 0xC093)
        entries[CODE_32_USER & ~3] = descriptor(0, 0xFFFFF, 0xC0FB)
        entries[DATA_3 & ~3] = descriptor(0, 0xFFFFF, 0xC0F3)
        entries[TASK] = descriptor(TSS, 0x67, 0x8B)
        entries[CODE_64] = descriptor(0, 0xFFFFF, 0xA09B)
        entries[CODE_64_USER & ~3] = descriptor(0, 0xFFFFF, 0xA0FB)
        entries[ABSENT_DATA] = descriptor(0, 0xFFFFF, 0xC073)
        entries[ABSENT_STACK] = descriptor(0, 0xFFFFF, 0xC013)
        entries[OTHER_TASK] = descriptor(OTHER_TSS, 0x67, 0x89)
        # In 64-bit mode the selectors READABLE and READABLE + 8 hold other things.
        entries[READABLE] = descriptor(0, 0xFFFFF, 0xC091)
        if self.long:
            tss = pack("<IQ", 0, STACK) + bytes(24) + pack("<Q", IST_STACK)
            tss = tss.ljust(0x66, b"\0") + pack("<H", 0x68)
        else:
            tss = pack("<III", 0, STACK, DATA_0).ljust(0x66, b"\0") + pack("<H", 0x68)
        return {GDT + n: pack("<Q", entry) for n, entry in entries.items()} | {TSS: tss}

    def _paging(self) -> dict[int, bytes]:
        size = 4 if self.mode == "p32" else 8
        pages = {page: page | 7 for page in range(0, MEMORY, 4096)}
        pages[ABSENT] = 0
        pages[READ_ONLY] &= ~2
        pages[SUPERVISOR] &= ~4
        if size == 8:
            pages[NO_EXECUTE] |= 1 << 63
            pages[RESERVED] |= 1 << 45
        pointer = "<I" if size == 4 else "<Q"
        table = TABLES + 0x3000
        parts = {table + (page >> 12) * size: pack(pointer, pte) for page, pte in pages.items()}
        if self.mode == "p32":
            # The second directory entry maps 4 MiB and has a reserved bit, 21, set.
            return parts | {TABLES: pack("<II", table | 7, 0x400000 | 1 << 21 | 0x87)}
        parts[TABLES + 0x2000] = pack("<Q", table | 7)
        if self.mode == "pae":
            return parts | {TABLES: pack("<Q", TABLES + 0x2000 | 1)}
        return parts | {
            TABLES: pack("<Q", TABLES + 0x1000 | 7),
            TABLES + 0x1000: pack("<Q", TABLES + 0x2000 | 7),
        }

    def state(self) -> dict[str, int]:
        """The VMCS fields of the guest's state."""
        state = {
            "GUEST_RIP": CODE,
            "GUEST_RSP": USER_STACK if self.ring else STACK,
            "GUEST_RFLAGS": 2,
            "GUEST_CR4": 0x2000 | 0x600,
            "CR0_GUEST_HOST_MASK": 0x20,
            "CR0_READ_SHADOW": 0x20,
            "GUEST_LDTR_ACCESS_RIGHTS": 1 << 16,
            "IO_BITMAP_A_ADDRESS": IO_BITMAP_A,
            "IO_BITMAP_B_ADDRESS": IO_BITMAP_B,
            "MSR_BITMAP_ADDRESS": MSR_BITMAP,
        }
        if self.mode == "r16":
            for name in ("ES", "CS", "SS", "DS", "FS", "GS"):
                state[f"GUEST_{name}_SELECTOR"] = state[f"GUEST_{name}_BASE"] = 0
            state |= {
                "GUEST_CS_SELECTOR": CODE >> 4,
                "GUEST_CS_BASE": CODE,
                "GUEST_RIP": 0,
                "GUEST_CR0": 0x30,
                "GUEST_IDTR_LIMIT": 0x3FF,
            }
            return state | self.fields
        cr4 = {"p32": 0x10, "pae": 0x20, "l64": 0x20}[self.mode]
        efer = {"p32": 0, "pae": 0x800, "l64": 0xD01}[self.mode]
        state |= {
            "GUEST_CR0": 0x80010031,
            "GUEST_CR3": TABLES,
            "GUEST_IA32_EFER": efer,
            "GUEST_GDTR_BASE": GDT,
            "GUEST_GDTR_LIMIT": 0x7F,
            "GUEST_IDTR_BASE": IDT,
            "GUEST_IDTR_LIMIT": 0xFFF if self.long else 0x7FF,
            "GUEST_TR_SELECTOR": TASK,
            "GUEST_TR_BASE": TSS,
            "GUEST_TR_LIMIT": 0x67,
            "GUEST_TR_ACCESS_RIGHTS": 0x8B,
        }
        state["GUEST_CR4"] |= cr4
        for name in ("ES", "SS", "DS", "FS", "GS"):
            state[f"GUEST_{name}_SELECTOR"] = DATA_3 if self.ring else DATA_0
        selectors = (CODE_64, CODE_64_USER) if self.long else (CODE_32, CODE_32_USER)
        state["GUEST_CS_SELECTOR"] = selectors[self.ring == 3]
        return state | self.fields

    def put(self, processor: Processor, vmcs: Vmcs) -> None:
        """Write this guest into memory, registers and `vmcs`."""
        for address, data in self.tables().items():
            processor.memory.write(address, data)
        if self.mode != "r16":
            vmcs.set_flat_segments(64 if self.long else 32, user=self.ring == 3)
        for name, value in self.state().items():
            vmcs[name] = value
        for name, value in self.registers.items():
            setattr(processor.registers, name, value)


@dataclass
class Run:
    """A guest that ran up to a VM exit, and what can be asked about it."""

    guest: Tiny
    processor: Processor
    vmcs: Vmcs
    exit: VmExit

    def pushed(self, count: int) -> list[int]:
        """The lowest `count` words on the stack."""
        size = self.guest.word
        bottom = self.vmcs["GUEST_SS_BASE"] * (not self.guest.long) + self.vmcs["GUEST_RSP"]
        data = self.processor.memory.read(bottom, count * size)
        return [int.from_bytes(data[n : n + size], "little") for n in range(0, len(data), size)]

    def resume(self) -> VmExit:
        """Go on up to the next VM exit."""
        outcome = self.processor.vmresume(self.vmcs)
        assert isinstance(outcome, VmExit), outcome
        self.exit = outcome
        return outcome

    def skip(self) -> VmExit:
        """Go on behind the instruction that exited."""
        self.vmcs["GUEST_RIP"] += self.exit.instruction_length
        return self.resume()


def prepare(
    guest: Tiny, controls: Mapping[str, int] | None = None, *, engine: str = "auto"
) -> tuple[Processor, Vmcs]:
    """A processor and a VMCS for `guest`; `controls` (VMCS fields) are ORed in.

    MSR bitmaps are used, and are empty. A guest that does not exit within a million
    instructions leaves with the timer.
    """
    processor = Processor(MEMORY, engine=engine)
    vmcs = Vmcs()
    vmcs["PIN_BASED_CONTROLS"] |= ct.PIN_PREEMPTION_TIMER
    vmcs["VMX_PREEMPTION_TIMER_VALUE"] = 1_000_000
    vmcs["PRIMARY_PROCESSOR_BASED_CONTROLS"] |= ct.PRIMARY_USE_MSR_BITMAPS
    for name, bits in (controls or {}).items():
        vmcs[name] |= bits
    guest.put(processor, vmcs)
    return processor, vmcs


def launch(guest: Tiny, processor: Processor, vmcs: Vmcs) -> Run:
    """Run up to the first VM exit."""
    outcome = processor.vmlaunch(vmcs)
    assert isinstance(outcome, VmExit), outcome
    return Run(guest, processor, vmcs, outcome)


def begin(guest: Tiny, controls: Mapping[str, int] | None = None, *, engine: str = "auto") -> Run:
    """`prepare` and `launch`."""
    return launch(guest, *prepare(guest, controls, engine=engine))
