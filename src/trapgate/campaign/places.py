"""Places of a machine that hold bits: registers, VMCS fields, memory, table entries, code.

A place is read and written between two instructions of the guest. Where there is none at
that moment (an address that is not mapped) it raises AbsentError.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from trapgate.campaign.walks import levels_of, walk_of
from trapgate.paging.probe import probe
from trapgate.processor.operand import Operand
from trapgate.sdm import cells as f
from trapgate.sdm.fields import Field
from trapgate.sdm.registers import GENERAL
from trapgate.vmm.machine import VirtualMachine

_MASK = 0xFFFF_FFFF_FFFF_FFFF


class AbsentError(Exception):
    """There is no such place now; the argument says why."""


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 & 1 else value


class Place(Protocol):
    """Some bits of a machine; `name` tells them from others, `width` is how many."""

    @property
    def name(self) -> str:
        """What it is called."""
        ...

    @property
    def width(self) -> int:
        """Bits."""
        ...

    def read(self, vm: VirtualMachine) -> int:
        """The value, unsigned."""
        ...

    def write(self, vm: VirtualMachine, value: int) -> None:
        """Change it."""
        ...


@dataclass(frozen=True)
class Register:
    """A register of the processor's file, by its cell."""

    name: str
    cell: int
    width: int

    def read(self, vm: VirtualMachine) -> int:
        """The value, unsigned."""
        return int(vm.processor.registers.cells[self.cell]) & _MASK

    def write(self, vm: VirtualMachine, value: int) -> None:
        """Change it."""
        vm.processor.registers.cells[self.cell] = _signed(value)


@dataclass(frozen=True)
class FieldOfVmcs:
    """A field of the VMCS, RSP, RIP, RFLAGS and control registers among them."""

    name: str
    cell: int
    width: int

    def read(self, vm: VirtualMachine) -> int:
        """The value, unsigned."""
        return vm.vmcs.words[self.cell] & (1 << self.width) - 1

    def write(self, vm: VirtualMachine, value: int) -> None:
        """Change it, as nothing forbids: VM entry checks it."""
        vm.vmcs.words[self.cell] = _signed(value)


def general_number(place: Place) -> int:
    """The encoding of a general register; -1 of another place."""
    if isinstance(place, Register) and place.cell < len(GENERAL):
        return place.cell
    if isinstance(place, FieldOfVmcs) and place.cell == f.GUEST_RSP:
        return GENERAL.index("RSP")
    return -1


def field_of_vmcs(field: Field) -> FieldOfVmcs:
    """The place of a field."""
    return FieldOfVmcs(field.name, field.cell, field.width)


@dataclass(frozen=True)
class Byte:
    """A byte of memory: at a physical address, or at a linear one as it is mapped then."""

    address: int
    linear: bool = False
    width: int = 8

    @property
    def name(self) -> str:
        """Its address."""
        return f"{'linear' if self.linear else 'memory'} {self.address:#x}"

    def _at(self, vm: VirtualMachine) -> int:
        at = _physical(vm, self.address) if self.linear else vm.base + self.address
        if not 0 <= at < vm.processor.memory.size:
            raise AbsentError(f"{self.name} is not in memory")
        return at

    def read(self, vm: VirtualMachine) -> int:
        """The value, unsigned."""
        return vm.processor.memory.read(self._at(vm), 1)[0]

    def write(self, vm: VirtualMachine, value: int) -> None:
        """Change it; code that was translated from it is dropped.

        Cached translations of linear addresses stay. To flush them would make a difference between
        moments that are alike (`pruning`), where the guest continues with a translation that its
        tables do not have any more.
        """
        vm.processor.memory.write(self._at(vm), bytes((value,)))


@dataclass(frozen=True)
class LinearPage:
    """4096 bytes at a linear address: now here in memory, now there, as the guest's tables say."""

    address: int

    def locate(self, vm: VirtualMachine) -> int:
        """The physical address now. Raises AbsentError."""
        return _physical(vm, self.address)


def _physical(vm: VirtualMachine, linear: int) -> int:
    *_, at = probe(vm.vmcs.cells, vm.processor.memory.cells, _signed(linear))
    if at < 0:
        raise AbsentError(f"{linear:#x} is not mapped")
    return int(at)


@dataclass(frozen=True)
class TableEntry:
    """The entry of `level` (1 for a PTE) in the page tables' walk for a linear address."""

    address: int
    level: int

    @property
    def name(self) -> str:
        """The level's name, and the address."""
        return f"{LEVELS[self.level]} of {self.address:#x}"

    @property
    def width(self) -> int:
        """Bits; 32-bit paging has no use for the upper half."""
        return 64

    def _at(self, vm: VirtualMachine) -> tuple[int, int]:
        top = levels_of(vm)
        if not top:
            raise AbsentError("paging is off")
        if self.level > top:
            raise AbsentError(f"a walk here has {top} levels")
        entries, _ = walk_of(vm, self.address)
        if top - self.level >= len(entries):
            last = LEVELS[top + 1 - len(entries)] if entries else "root"
            raise AbsentError(f"the walk for {self.address:#x} ends at its {last}")
        return entries[top - self.level]

    def read(self, vm: VirtualMachine) -> int:
        """The entry."""
        return int.from_bytes(vm.processor.memory.read(*self._at(vm)), "little")

    def write(self, vm: VirtualMachine, value: int) -> None:
        """Change it in memory, and let no older translation be cached."""
        at, size = self._at(vm)
        if value >> 8 * size:
            raise AbsentError(f"an entry here has {8 * size} bits")
        vm.processor.memory.write(at, value.to_bytes(size, "little"))
        vm.processor.engine.flush_translations()


LEVELS = {1: "PTE", 2: "PDE", 3: "PDPTE", 4: "PML4E"}
"""What entries of each level are called."""


@dataclass(frozen=True)
class InstructionByte:
    """A byte of the instruction that is about to be executed."""

    offset: int
    width: int = 8

    @property
    def name(self) -> str:
        """Which byte."""
        return f"instruction byte {self.offset}"

    def _at(self, vm: VirtualMachine) -> int:
        guest = Operand(vm.processor, vm.vmcs.cells)
        instruction = guest.decode()
        if instruction.is_invalid or self.offset >= len(instruction):
            raise AbsentError(f"the instruction has no byte {self.offset}")
        base = 0 if guest.long else vm.vmcs["GUEST_CS_BASE"]
        return _physical(vm, guest.wrap(base + vm.vmcs["GUEST_RIP"] + self.offset))

    def read(self, vm: VirtualMachine) -> int:
        """The value, unsigned."""
        return vm.processor.memory.read(self._at(vm), 1)[0]

    def write(self, vm: VirtualMachine, value: int) -> None:
        """Change it; the translation of the code is dropped."""
        vm.processor.memory.write(self._at(vm), bytes((value,)))


TABLES = {
    "GDT": (f.GUEST_GDTR_BASE, f.GUEST_GDTR_LIMIT),
    "IDT": (f.GUEST_IDTR_BASE, f.GUEST_IDTR_LIMIT),
}


@dataclass(frozen=True)
class Descriptor:
    """A descriptor of 64 bits in the GDT or the IDT (of 128 there, in IA-32e mode: its halves)."""

    table: str
    index: int
    width: int = 64

    @property
    def name(self) -> str:
        """The table, and where in it."""
        return f"{self.table}[{self.index}]"

    def _at(self, vm: VirtualMachine) -> list[int]:
        base, limit = TABLES[self.table]
        words = vm.vmcs.words
        if 8 * self.index + 7 > words[limit]:
            raise AbsentError(f"the {self.table} ends before entry {self.index}")
        start = (words[base] & _MASK) + 8 * self.index
        return [_physical(vm, start + n) for n in range(8)]

    def read(self, vm: VirtualMachine) -> int:
        """The descriptor."""
        memory = vm.processor.memory
        return int.from_bytes(b"".join(memory.read(at, 1) for at in self._at(vm)), "little")

    def write(self, vm: VirtualMachine, value: int) -> None:
        """Change it in memory; what segment registers hold stays."""
        for at, byte in zip(self._at(vm), value.to_bytes(8, "little"), strict=True):
            vm.processor.memory.write(at, bytes((byte,)))


def general(wide: bool) -> dict[str, Place]:
    """The general registers, RIP and RFLAGS by name: 16 of 64 bits, or 8 of 32."""
    width = 64 if wide else 32
    found: dict[str, Place] = {
        name: Register(name, number, width)
        for number, name in enumerate(GENERAL[: 16 if wide else 8])
        if name != "RSP"
    }
    found["RSP"] = FieldOfVmcs("RSP", f.GUEST_RSP, width)
    return {name: found[name] for name in GENERAL if name in found}
