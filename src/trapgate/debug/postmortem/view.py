"""A guest's state and memory to look at: registers, page walks in words, descriptors.

The walks are written apart from `paging.walk`, which sets accessed flags and answers in numbers.
SDM, chapters "Paging" and "Protection".
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from trapgate.compiler.dialect import Cells
from trapgate.sdm import cells as f
from trapgate.sdm import state as st
from trapgate.sdm.event_words import hexadecimal
from trapgate.sdm.registers import CR2

if TYPE_CHECKING:
    from trapgate.vmm.machine import VirtualMachine

_MASK = (1 << 64) - 1
_FRAME = ((1 << 52) - 1) & ~0xFFF
_FLAGS = ((0, "P"), (1, "R/W"), (2, "U/S"), (5, "A"), (6, "D"), (7, "PS"), (8, "G"), (63, "XD"))
_RESERVED_HIGH = ((1 << 52) - 1) & ~((1 << 40) - 1)


@dataclass(frozen=True)
class Step:
    """One entry of a walk: its name, physical address and value (None: beyond memory).

    In PAE paging the processor keeps the PDPTEs: `memory` is what stands now where one was loaded
    from.
    """

    name: str
    address: int
    entry: int | None
    memory: int | None = None

    def __str__(self) -> str:
        if self.entry is None:
            return f"{self.name} at {hexadecimal(self.address)}: beyond memory"
        flags = " ".join(name for bit, name in _FLAGS if self.entry >> bit & 1)
        changed = self.memory not in (None, self.entry)
        stale = (
            f", loaded with CR3; memory holds {hexadecimal(self.memory or 0)}" if changed else ""
        )
        return (
            f"{self.name} at {hexadecimal(self.address)} = {hexadecimal(self.entry)} "
            f"({flags or 'not present'}{stale})"
        )


@dataclass(frozen=True)
class Walk:
    """A page walk: where it led (None: nowhere), over which entries, and why it ended there."""

    linear: int
    physical: int | None
    steps: tuple[Step, ...] = ()
    problem: str = ""

    def __str__(self) -> str:
        way = "; ".join(str(step) for step in self.steps)
        end = self.problem or f"physical address {hexadecimal(self.physical or 0)}"
        return f"{hexadecimal(self.linear)}: {way + '; ' if way else ''}{end}"


Read = Callable[[int, int], bytes | None]
"""Physical memory: address and size to bytes, None beyond it."""


@dataclass(frozen=True)
class View:
    """What a guest looks like: `v` the cells of its VMCS, `read` its physical memory.

    `registers` holds the general registers by number, 0 RAX to 15 R15 (RSP is in the VMCS).
    """

    v: Cells
    read: Read
    registers: tuple[int, ...] = field(default=(0,) * 16)
    cr2: int = 0

    def cell(self, number: int) -> int:
        """A field of the VMCS, unsigned."""
        return int(self.v[number]) & _MASK

    @property
    def rip(self) -> int:
        """GUEST_RIP."""
        return self.cell(f.GUEST_RIP)

    @property
    def rsp(self) -> int:
        """GUEST_RSP."""
        return self.cell(f.GUEST_RSP)

    @property
    def protected(self) -> bool:
        """CR0.PE."""
        return bool(self.cell(f.GUEST_CR0) & st.CR0_PE)

    @property
    def paging(self) -> bool:
        """CR0.PG."""
        return bool(self.cell(f.GUEST_CR0) & st.CR0_PG)

    @property
    def long(self) -> bool:
        """IA-32e mode is active."""
        return bool(self.cell(f.GUEST_IA32_EFER) & st.EFER_LMA)

    @property
    def bits(self) -> int:
        """Size of the code segment's code: 16, 32 or 64 bits."""
        rights = self.cell(f.GUEST_CS_ACCESS_RIGHTS)
        if self.long and rights & st.AR_L:
            return 64
        return 32 if rights & st.AR_DB and self.protected else 16

    @property
    def cpl(self) -> int:
        """The current privilege level: the DPL of SS."""
        return self.cell(f.GUEST_SS_ACCESS_RIGHTS) >> st.AR_DPL_SHIFT & 3

    @property
    def code_address(self) -> int:
        """The linear address of the instruction at RIP."""
        if self.bits == 64:
            return self.rip
        return (self.cell(f.GUEST_CS_BASE) + self.rip) & 0xFFFF_FFFF

    @property
    def mode(self) -> str:
        """In words."""
        if not self.protected:
            return "real mode"
        if self.cell(f.GUEST_RFLAGS) & st.RFLAGS_VM:
            return "virtual-8086 mode"
        if self.long:
            return "64-bit mode" if self.bits == 64 else "compatibility mode"
        paging = "with paging" if self.paging else "without paging"
        return f"{self.bits}-bit protected mode {paging}"

    def general(self, number: int) -> int:
        """A general register by its encoding."""
        return self.rsp if number == 4 else self.registers[number] & _MASK

    # Linear memory.

    def walk(
        self, linear: int, *, write: bool = False, user: bool = False, fetch: bool = False
    ) -> Walk:
        """Translate, and say how; rights are looked at for the access given."""
        if not self.paging:
            return Walk(linear, linear & 0xFFFF_FFFF)
        if self.long and linear & _MASK not in range(1 << 47) and linear >> 47 != (1 << 17) - 1:
            return Walk(linear, None, problem="the address is not canonical")
        steps: list[Step] = []
        table = self.cell(f.GUEST_CR3)
        rights = {"write": True, "user": True, "execute": True}
        for name, shift, index_bits, size in self._levels():
            width = 4 if size == 4 else 8
            start = table & (~0x1F if name == "PDPTE" and not self.long else ~0xFFF) & _FRAME | (
                table & 0xFE0 if name == "PDPTE" and not self.long else 0
            )
            at = start + (linear >> shift & (1 << index_bits) - 1) * width
            data = self.read(at, width)
            entry = memory = None if data is None else int.from_bytes(data, "little")
            if name == "PDPTE" and not self.long:
                entry = self.cell(f.GUEST_PDPTE0 + (linear >> 30 & 3))
            steps.append(Step(name, at, entry, memory))
            if entry is None:
                return Walk(linear, None, tuple(steps), f"the {name} lies beyond memory")
            if not entry & 1:
                return Walk(
                    linear, None, tuple(steps), f"the walk stopped at the {name}: not present"
                )
            wrong = self._reserved(name, entry, width)
            if wrong:
                return Walk(linear, None, tuple(steps), f"the {name} has {wrong}")
            if name != "PDPTE" or self.long:
                rights["write"] &= bool(entry & 2)
                rights["user"] &= bool(entry & 4)
            rights["execute"] &= not (width == 8 and entry >> 63)
            large = (
                name != "PTE"
                and entry & 0x80
                and name != "PML4E"
                and not (name == "PDPTE" and not self.long)
            )
            if name == "PTE" or (large and (width == 8 or self.cell(f.GUEST_CR4) & st.CR4_PSE)):
                offset = linear & (1 << shift) - 1
                frame = entry & _FRAME & ~((1 << shift) - 1)
                if large and width == 4:  # PSE-36
                    frame |= (entry >> 13 & 0xFF) << 32
                problem = self._denied(rights, write=write, user=user, fetch=fetch)
                return Walk(linear, None if problem else frame | offset, tuple(steps), problem)
            table = entry
        return Walk(linear, None, tuple(steps), "the walk found no page")

    def _levels(self) -> tuple[tuple[str, int, int, int], ...]:
        if self.long:
            return (("PML4E", 39, 9, 8), ("PDPTE", 30, 9, 8), ("PDE", 21, 9, 8), ("PTE", 12, 9, 8))
        if self.cell(f.GUEST_CR4) & st.CR4_PAE:
            return (("PDPTE", 30, 2, 8), ("PDE", 21, 9, 8), ("PTE", 12, 9, 8))
        return (("PDE", 22, 10, 4), ("PTE", 12, 10, 4))

    def _reserved(self, name: str, entry: int, width: int) -> str:
        if width == 8 and entry >> 63 and not self.cell(f.GUEST_IA32_EFER) & st.EFER_NXE:
            return "XD (bit 63) set, which is reserved while EFER.NXE is 0"
        if width == 8 and entry & _RESERVED_HIGH:
            return f"reserved address bits set ({hexadecimal(entry & _RESERVED_HIGH)})"
        if name == "PML4E" and entry & 0x80:
            return "PS (bit 7) set, which is reserved there"
        large = {("PDPTE", 8): 0x3FFFE000, ("PDE", 8): 0x1FE000, ("PDE", 4): 1 << 21}
        reserved = entry & large.get((name, width), 0) if entry & 0x80 else 0
        if width == 4 and not self.cell(f.GUEST_CR4) & st.CR4_PSE:
            reserved = 0
        if reserved:
            return f"a large page's reserved bits set ({hexadecimal(reserved)}): it is not aligned"
        return ""

    def _denied(self, rights: dict[str, bool], *, write: bool, user: bool, fetch: bool) -> str:
        if user and not rights["user"]:
            return "U/S is 0 on the way: the page is the supervisor's"
        if write and not rights["write"] and (user or self.cell(f.GUEST_CR0) & st.CR0_WP):
            return "R/W is 0 on the way: the page is read-only"
        if fetch and not rights["execute"]:
            return "XD is 1 on the way: the page is not executable"
        if fetch and not user and rights["user"] and self.cell(f.GUEST_CR4) & st.CR4_SMEP:
            return "U/S is 1 and CR4.SMEP forbids fetches from user pages"
        return ""

    def linear(self, address: int, size: int) -> bytes | None:
        """`size` bytes at a linear address, None if any is not there."""
        data = b""
        while len(data) < size:
            at = address + len(data)
            where = self.walk(at & _MASK).physical
            if where is None:
                return None
            part = self.read(where, min(size - len(data), 0x1000 - (at & 0xFFF)))
            if part is None:
                return None
            data += part
        return data

    def number(self, address: int, size: int) -> int | None:
        """The same as a number."""
        data = self.linear(address, size)
        return None if data is None else int.from_bytes(data, "little")


def view_of(vm: "VirtualMachine") -> View:
    """The guest of `vm` as it is now, to look at."""
    memory = vm.processor.memory
    size = len(memory.cells) * 8
    cells = vm.processor.registers.cells

    def read(address: int, count: int) -> bytes | None:
        return memory.read(address, count) if 0 <= address <= size - count else None

    general = tuple(int(cells[n]) & _MASK for n in range(16))
    return View(vm.vmcs.cells, read, general, int(cells[CR2]) & _MASK)


@dataclass(frozen=True)
class Descriptor:
    """A descriptor of the GDT or LDT as 8 bytes, `raw`."""

    selector: int
    raw: int

    @property
    def rights(self) -> int:
        """In the VMCS's layout."""
        return self.raw >> 40 & 0xF0FF

    @property
    def dpl(self) -> int:
        """Bits 46:45."""
        return self.rights >> st.AR_DPL_SHIFT & 3

    @property
    def base(self) -> int:
        """32 bits."""
        return self.raw >> 16 & 0xFF_FFFF | self.raw >> 32 & 0xFF00_0000

    @property
    def limit(self) -> int:
        """In bytes."""
        limit = self.raw & 0xFFFF | self.raw >> 32 & 0xF_0000
        return limit << 12 | 0xFFF if self.rights & st.AR_G else limit

    @property
    def is_code(self) -> bool:
        """A code segment."""
        return self.rights & (st.AR_S | st.AR_CODE) == st.AR_S | st.AR_CODE

    def __str__(self) -> str:
        from trapgate.debug.doctor.words import access_rights

        return (
            f"{hexadecimal(self.raw)} ({access_rights(self.rights)}, base "
            f"{hexadecimal(self.base)}, "
            f"limit {hexadecimal(self.limit)})"
        )
