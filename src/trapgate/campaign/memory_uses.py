"""Which bytes of memory the golden run reads and overwrites, instruction by instruction.

For definition/use classes no read may be missed, so what is not known to the byte counts as read:

* An instruction reads its code and operands, and the page-table entries that lead to them.
* A fault reads its gate, the GDT, the LDT, the TSS and its handler's stack. What the faulting
  instruction would write counts as read, too.
* An interrupt, an event that exits, a task switch or a VMX instruction reads all of memory.

A store is a write only if it certainly replaces all bits of the byte.

A changed byte leaves no stale code behind (`places.Byte`). A linear address whose translation is
cached stays so, which is the same whenever between two accesses the byte changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import iced_x86 as iced
import numpy as np
from iced_x86 import CpuidFeature, Mnemonic, Register
from numpy.typing import NDArray

from trapgate.campaign.places import AbsentError, LinearPage
from trapgate.campaign.walks import levels_of, walk_of
from trapgate.decision.decide import DELIVER
from trapgate.events.journal import (
    HEAD_SEQUENCE,
    ROW_DISPOSITION,
    ROW_INJECTED,
    ROW_TYPE,
    ROW_VECTOR,
)
from trapgate.processor.accesses import accesses_of
from trapgate.processor.operand import Operand
from trapgate.sdm import cells as f
from trapgate.sdm.interruption import InterruptionType
from trapgate.sdm.state import EFER_LMA
from trapgate.vmm.machine import VirtualMachine

_MASK = 0xFFFF_FFFF_FFFF_FFFF
_FAULTS: Final = frozenset(
    {
        InterruptionType.HARDWARE_EXCEPTION,
        InterruptionType.SOFTWARE_INTERRUPT,
        InterruptionType.PRIVILEGED_SOFTWARE_EXCEPTION,
        InterruptionType.SOFTWARE_EXCEPTION,
    }
)
_SEGMENTS: Final = frozenset(
    {Register.ES, Register.CS, Register.SS, Register.DS, Register.FS, Register.GS}
)
_LOADS_DESCRIPTORS: Final = frozenset(
    getattr(Mnemonic, name)
    for name in ("IRET", "IRETD", "IRETQ", "LTR", "LLDT", "LAR", "LSL", "VERR", "VERW")
)
_PORTS: Final = frozenset(
    getattr(Mnemonic, name)
    for name in ("IN", "INSB", "INSW", "INSD", "OUT", "OUTSB", "OUTSW", "OUTSD")
)
_KNOWN_PRIVILEGED: Final = (
    _PORTS
    | _LOADS_DESCRIPTORS
    | frozenset(
        getattr(Mnemonic, name)
        for name in (
            *("CLI", "STI", "HLT", "INVLPG", "LGDT", "LIDT", "WRMSR", "RDMSR", "CLTS", "SWAPGS"),
            *("SYSEXIT", "SYSRET", "RDPMC", "LMSW", "MOV", "WBINVD", "INVD"),
        )
    )
)
"""Privileged instructions whose accesses to memory are known."""
_UNKNOWN: Final = frozenset(
    getattr(Mnemonic, name) for name in ("ENTER", "RETF", "MONITOR", "MWAIT", "RSM")
)
_UNKNOWN_FEATURES: Final = frozenset(
    getattr(CpuidFeature, name) for name in ("VMX", "SVM", "SMX", "XSAVE", "XSAVEOPT", "XSAVES")
)
_MASKED: Final = frozenset({Mnemonic.MASKMOVQ, Mnemonic.MASKMOVDQU})
_WIDEST = 16
"""Bytes of the widest write that certainly writes all of them; FXSAVE, say, leaves some out."""
_FRAME = 64
"""Bytes of a stack that a delivery or IRET touches, at most."""
_MAPPING: Final = (f.GUEST_CR0, f.GUEST_CR3, f.GUEST_CR4, f.GUEST_IA32_EFER)
"""What page walks depend on beside the tables."""
_STATE: Final = (f.GUEST_CR0, f.GUEST_CR4, f.GUEST_IA32_EFER, f.GUEST_TR_BASE)
"""What does not change in an instruction whose accesses are known."""
_TABLES: Final = (
    (f.GUEST_GDTR_BASE, f.GUEST_GDTR_LIMIT),
    (f.GUEST_LDTR_BASE, f.GUEST_LDTR_LIMIT),
    (f.GUEST_TR_BASE, f.GUEST_TR_LIMIT),
)
_UNUSABLE = 1 << 16


class _Kind(NamedTuple):
    """What an instruction's code alone tells."""

    unknown: bool
    loads_descriptors: bool
    looks_at_ports: bool
    masked: bool


class MemoryUses:
    """The accesses to some pages of memory, by the number of the instruction that made them.

    `spans` are ranges of physical addresses: first, and last + 1. Where linear `pages` are counts
    from the moment on at which they come there.
    """

    def __init__(
        self,
        vm: VirtualMachine,
        spans: Iterable[tuple[int, int]],
        pages: Sequence[LinearPage] = (),
    ) -> None:
        self._vm = vm
        self._where: dict[LinearPage, list[tuple[int, int]]] = {page: [] for page in pages}
        self._tables: set[int] = set()
        """Physical pages with entries on the way to linear ones."""
        self._may_have_moved = True
        self._number = 0
        self._pages = {
            page for first, end in spans for page in range(first >> 12, (end - 1 >> 12) + 1)
        }
        self._factory = iced.InstructionInfoFactory()
        self._kinds: dict[tuple[int, int], _Kind] = {}
        self._bytes: dict[int, list[int]] = {}
        """By physical address: twice the number of an instruction, and 1 more if it reads."""
        self._everything: list[int] = []
        self._now: list[tuple[int, int, bool]] = []
        self._known = True
        self._before: tuple[int, ...] = ()
        self._mapping: tuple[int, ...] = ()
        self._sequence = 0
        self._time = 0

    def before(self, guest: Operand) -> None:
        """An instruction is about to be executed."""
        vm = self._vm
        words = vm.vmcs.words
        self._now = []
        self._before = tuple(words[cell] for cell in _STATE)
        self._mapping = tuple(words[cell] for cell in _MAPPING)
        self._sequence = int(vm.processor.head[HEAD_SEQUENCE])
        self._time = vm.processor.time
        if self._may_have_moved:
            self._locate()
        instruction = guest.decode()
        kind = self._kind(instruction)
        self._known = not (kind.unknown or vm.processor.x86_vmm.in_vmx_operation)
        if not self._known:
            return
        base = 0 if guest.long else words[f.GUEST_CS_BASE]
        length = 15 if instruction.is_invalid else instruction.len
        self._touch(guest.wrap(base + words[f.GUEST_RIP]), length, read=True)
        for one in accesses_of(guest, instruction):
            whole = one.write and not one.read and one.size <= _WIDEST and not kind.masked
            self._touch(one.linear, one.size, read=not whole, write=one.write)
        if kind.loads_descriptors:
            self._descriptors()
            self._stack()
        elif kind.looks_at_ports:
            self._table(*_TABLES[2])
        if levels_of(vm) == 3:
            self._note(words[f.GUEST_CR3] & 0xFFFF_FFE0, 32, read=True)  # by each VM entry

    def after(self, number: int) -> None:
        """It was the instruction of that number, and this is what became of it."""
        vm = self._vm
        words, processor = vm.vmcs.words, vm.processor
        events = int(processor.head[HEAD_SEQUENCE]) - self._sequence
        known = (
            self._known
            and events <= 1
            and processor.time == self._time + 1
            and self._before == tuple(words[cell] for cell in _STATE)
            and not processor.x86_vmm.in_vmx_operation
        )
        if known and events:
            row = next(iter(processor.last_events()))
            known = (
                row[ROW_TYPE] in _FAULTS
                and row[ROW_DISPOSITION] == DELIVER
                and not row[ROW_INJECTED]
            )
            if known:
                # Who knows how far it came: its writes count as reads.
                self._now = [(at, size, True) for at, size, _ in self._now]
                gate = 16 if words[f.GUEST_IA32_EFER] & EFER_LMA else 8
                start = words[f.GUEST_IDTR_BASE] + gate * int(row[ROW_VECTOR])
                self._touch(start & _MASK, gate, read=True)
                self._descriptors()
                self._stack()
        self._number = number + 1
        if not known or events or self._mapping != tuple(words[cell] for cell in _MAPPING):
            self._may_have_moved = True
        if not known:
            self._everything.append(number)
            return
        for at, size, read in self._now:
            for byte in range(at, at + size):
                found = self._bytes.setdefault(byte, [])
                if found and found[-1] >> 1 == number:
                    found[-1] |= read
                else:
                    found.append(2 * number + read)

    @property
    def addresses(self) -> list[int]:
        """The physical addresses of the bytes that were accessed, in order."""
        return sorted(self._bytes)

    def of(self, address: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The instructions that access a byte, in order, and whether each may read it."""
        own = np.array(self._bytes.get(address, ()), np.int64)
        every = np.array(self._everything, np.int64) * 2 + 1
        both = np.sort(np.concatenate((own, every)))
        return both >> 1, (both & 1).astype(np.bool_)

    def _kind(self, instruction: iced.Instruction) -> _Kind:
        key = instruction.code, instruction.op0_register if instruction.op_count else 0
        found = self._kinds.get(key)
        if found is None:
            found = self._kinds[key] = self._look(instruction)
        return found

    def _look(self, instruction: iced.Instruction) -> _Kind:
        mnemonic = instruction.mnemonic
        unknown = (
            mnemonic in _UNKNOWN
            or (instruction.is_privileged and mnemonic not in _KNOWN_PRIVILEGED)
            or instruction.is_jmp_far
            or instruction.is_jmp_far_indirect
            or instruction.is_call_far
            or instruction.is_call_far_indirect
            or not _UNKNOWN_FEATURES.isdisjoint(instruction.cpuid_features())
        )
        used = self._factory.info(instruction).used_registers()
        loads = mnemonic in _LOADS_DESCRIPTORS or any(
            one.register in _SEGMENTS and one.access != iced.OpAccess.READ for one in used
        )
        return _Kind(unknown, loads, mnemonic in _PORTS, mnemonic in _MASKED)

    def where(self, page: LinearPage) -> list[tuple[int, int]]:
        """From which instruction on a linear page is at which physical address (-1: nowhere)."""
        return self._where[page]

    def _locate(self) -> None:
        """Look where the linear pages are now."""
        self._may_have_moved = False
        self._tables.clear()
        for page, known in self._where.items():
            entries, _ = walk_of(self._vm, page.address)
            self._tables |= {at >> 12 for at, _ in entries}
            try:
                at = page.locate(self._vm)
            except AbsentError:
                at = -1
            if not known or known[-1][1] != at:
                known.append((self._number, at))
                if at >= 0:
                    self._pages.add(at >> 12)

    def _touch(self, linear: int, size: int, *, read: bool, write: bool = False) -> None:
        """An access to `size` bytes at a linear address, and the walks that it needs."""
        while size > 0:
            part = min(size, 0x1000 - (linear & 0xFFF))
            entries, at = walk_of(self._vm, linear)
            for entry, width in entries:
                self._note(entry, width, read=True)
            if at >= 0:
                self._note(at, part, read=read)
                if write and not self._tables.isdisjoint((at >> 12, at + part - 1 >> 12)):
                    self._may_have_moved = True
            linear += part
            size -= part

    def _note(self, at: int, size: int, *, read: bool) -> None:
        if at >> 12 in self._pages or at + size - 1 >> 12 in self._pages:
            self._now.append((at, size, read))

    def _descriptors(self) -> None:
        """The GDT, the LDT and the TSS are read."""
        for base, limit in _TABLES:
            self._table(base, limit)

    def _table(self, base: int, limit: int) -> None:
        words = self._vm.vmcs.words
        if base == f.GUEST_LDTR_BASE and words[f.GUEST_LDTR_ACCESS_RIGHTS] & _UNUSABLE:
            return
        size = min(words[limit] & 0xFFFF_FFFF, 0xFFFF) + 1
        self._touch(words[base] & _MASK, size, read=True)

    def _stack(self) -> None:
        """So many bytes from the top of the stack on may be read or written."""
        words = self._vm.vmcs.words
        long = words[f.GUEST_IA32_EFER] & EFER_LMA
        base = 0 if long else words[f.GUEST_SS_BASE]
        top = base + words[f.GUEST_RSP] & (_MASK if long else 0xFFFF_FFFF)
        self._touch(top, _FRAME, read=True)
