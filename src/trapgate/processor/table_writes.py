"""Writes to page tables that are judged by trying them: any instruction, on either engine.

The engine (`trapgate.engine.memory.table_stores`) sees the data of simple stores before they are
stored. For all others, and everywhere on the portable path, the instruction is executed
alone, with the tables writable; then each entry that it has changed is judged by its old
and its new value. If the fault filter is not satisfied, memory and registers are put back
as they were, and the page fault is raised. Nobody looks in between.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import NamedTuple

import iced_x86 as iced
from iced_x86 import FlowControl, Mnemonic, Register

from trapgate.compiler.dialect import Cells
from trapgate.decision.decide import COMPLETE, EXIT, decide_filtered
from trapgate.decision.entry_facts import entry_facts
from trapgate.decision.fault_filters import EMPTY_TABLE, FRAME, FRAME_64, NO_FILTER, PRESENT
from trapgate.decision.frame_filters import ALL_STALE, completed_by, follow_link
from trapgate.decision.self_map import ABSENT, DIRECTORY, entry_of, entry_size, is_large
from trapgate.engine import machine as stops
from trapgate.events.journal import (
    HEAD_DATA,
    HEAD_ENTRY,
    HEAD_OLD_VALUE,
    HEAD_SEQUENCE,
    HEAD_TIME,
    record,
)
from trapgate.paging.alias import aliased, unaliased
from trapgate.paging.frame_map import frame_byte, has_frame_map
from trapgate.paging.memory import load8, store8
from trapgate.paging.probe import probe
from trapgate.paging.walk import FETCH, READ, WRITE, uses_pae_paging
from trapgate.processor import stepping
from trapgate.processor.accesses import Access, accesses_of, is_misaligned
from trapgate.processor.logical import LogicalProcessor, Outcome
from trapgate.processor.operand import Operand, PageFaultError
from trapgate.sdm import cells as f
from trapgate.sdm.interruption import TYPE_HARDWARE_EXCEPTION
from trapgate.sdm.pagefault import PFEC_MAP, PFEC_P, PFEC_U, PFEC_W
from trapgate.sdm.state import CR0_WP, CR4_PAE
from trapgate.sdm.vectors import AC, PF

_PAGE = 0x1000
_WRITABLE = 2
_SEGMENTS = {Register.ES, Register.CS, Register.SS, Register.DS, Register.FS, Register.GS}
_LOADS_SEGMENT = {
    *(Mnemonic.LDS, Mnemonic.LES, Mnemonic.LFS, Mnemonic.LGS, Mnemonic.LSS),
    *(Mnemonic.LTR, Mnemonic.LLDT),
}


class Part(NamedTuple):
    """What an instruction accesses of one page.

    `linear` and `physical` are its first byte, `size` its bytes. `kind` is what
    `self_map.entry_at` says of a write that only R/W stops, `write` whether it is one.
    """

    linear: int
    physical: int
    size: int
    kind: int
    write: bool

    def entries(self, width: int) -> range:
        """The physical addresses of the table entries, of `width` bytes, that it touches."""
        return range(self.physical & -width, self.physical + self.size, width)


class Snapshot:
    """Guest state and the memory that an instruction may change, to be put back."""

    def __init__(self, processor: LogicalProcessor, v: Cells) -> None:
        engine = processor.engine
        self.v = v.copy()
        self.r = processor.registers.cells.copy()
        self.time = int(engine.cells[stops.TIME])
        self.fpu = engine.vectors.save()
        self._memory = processor.memory
        self._kept: list[tuple[int, bytes]] = []

    def keep(self, physical: int, size: int) -> None:
        """Remember `size` bytes of memory as they are now, if they exist."""
        if physical + size <= self._memory.size:
            self._kept.append((physical, self._memory.read(physical, size)))

    def put_back(self, processor: LogicalProcessor, v: Cells) -> None:
        """As if the instruction had not been tried."""
        self.put_memory_back(processor, v)
        v[:] = self.v
        processor.registers.cells[:] = self.r
        processor.engine.cells[stops.TIME] = self.time
        processor.engine.vectors.restore(self.fpu)

    def put_memory_back(self, processor: LogicalProcessor, v: Cells) -> None:
        """Memory alone as it was."""
        # The engine may have translated what comes next.
        translated = _code_pages(Operand(processor, v))
        # What was kept first is the older, where two places overlap.
        for physical, data in reversed(self._kept):
            if self._memory.read(physical, len(data)) != data:
                if {physical >> 12, physical + len(data) - 1 >> 12} & translated:
                    self._memory.write(physical, data)
                else:
                    self._memory.write_data(physical, data)

    @contextlib.contextmanager
    def in_memory(self) -> Iterator[None]:
        """What was kept, in memory once more, for as long as it takes to look at it."""
        now = [(physical, self._memory.read(physical, len(data))) for physical, data in self._kept]
        for physical, data in reversed(self._kept):
            self._memory.write_data(physical, data)
        yield
        for physical, data in now:
            self._memory.write_data(physical, data)


def _code_pages(guest: Operand) -> set[int]:
    """The physical pages that a block at RIP may lie in, by their numbers."""
    rip = int(guest.v[f.GUEST_RIP]) + (0 if guest.long else int(guest.v[f.GUEST_CS_BASE]))
    pages = set()
    for linear in (guest.wrap(rip), guest.wrap(rip + _PAGE - 1)):
        with contextlib.suppress(PageFaultError):
            pages.add(guest.physical(linear, FETCH) >> 12)
    return pages


def step(processor: LogicalProcessor, v: Cells) -> Outcome:
    """Complete the write to page tables at RIP, or raise its page fault; was that a VM exit?"""
    cells = processor.engine.cells
    code, address = int(cells[stops.STOP_INFO]) & 0xFFFF, int(cells[stops.FAULT_ADDRESS])
    guest = Operand(processor, v)
    instruction = guest.decode()
    accesses = list(accesses_of(guest, instruction))
    width = entry_size(int(v[f.GUEST_CR4]))
    before = Snapshot(processor, v)
    translating = {page: list(_translating(guest, page)) for page in _pages(guest, accesses)}
    for entries in translating.values():
        for at in entries:
            before.keep(at, width)
    parts = [] if _writes_more(instruction) else _parts(guest, accesses, code & PFEC_U)
    ours = [part for part in parts if part.kind != ABSENT]
    for part in parts:
        if part.write:
            before.keep(part.physical, part.size)
    old = {at: entry_of(guest.mem, at, width) for part in ours for at in part.entries(width)}
    grants: set[int] = set()
    if code & PFEC_U and not has_frame_map(v):
        grants = {at for part in ours for at in translating[part.linear & -_PAGE]}
    if not ours or grants & old.keys():
        before.put_back(processor, v)
        return Outcome(processor.raise_fault(PF, code, address))
    if is_misaligned(guest, instruction, accesses):
        before.put_back(processor, v)
        return Outcome(processor.raise_fault(AC, 0))
    if not _execute(processor, v, grants, width):
        if cells[stops.STOP] == stops.EXITED:
            return Outcome.EXITED
        return Outcome.GO_ON if cells[stops.STOP] == stops.STEPPED else Outcome.STOPPED

    new = {at: entry_of(guest.mem, at, width) for at in old}
    with before.in_memory() if v[f.CRITERIA_TABLE_RULES] else contextlib.nullcontext():
        judged = [
            (part, at, _completed_by(before, guest, code, address, part, at, new[at], old[at]))
            for part in ours
            for at in part.entries(width)
        ]
    refused = [(part, at) for part, at, which in judged if which == NO_FILTER]
    if _counts_links(v) and len({part.physical >> 12 for part in parts if part.write}) > 1:
        # Entries are judged one by one: two tables could come to link one frame at two levels, or
        # a frame that is empty be filled by the same store.
        refused = refused or [(part, at) for part, at, _ in judged]
    part, shown = refused[0] if refused else (ours[0], next(iter(old)))
    if refused:
        address = _address_of(part, address)
    which = min(which for _, _, which in judged)
    disposition, reason = (EXIT, 0) if refused else decide_filtered(v, code, which)
    head = processor.head
    facts = entry_facts(v, guest.mem, part.kind, shown, _signed(int(new[shown])))
    head[HEAD_ENTRY], head[HEAD_DATA], head[HEAD_OLD_VALUE] = facts, new[shown], old[shown]
    if disposition != COMPLETE:
        before.put_back(processor, v)
        return Outcome(processor.raise_fault(PF, code, address))
    _follow(processor, guest, [(part, at, old[at], new[at]) for part, at, _ in judged])
    head[HEAD_TIME] = before.time
    how = (PF, TYPE_HARDWARE_EXCEPTION, code, address, COMPLETE, reason, 0, 0)
    record(before.v, processor.rows, head, *how)
    if head[HEAD_SEQUENCE] >= cells[stops.JOURNAL_LIMIT]:
        cells[stops.ATTENTION] |= stops.AT_ONCE
        cells[stops.DEADLINE] = 0
    return Outcome(stepping.trap(processor, v, instruction, accesses))


def _counts_links(v: Cells) -> bool:
    """Whether the processor counts links and makes tables of what an entry comes to lead to."""
    return bool(v[f.FRAME_FILTERS] & EMPTY_TABLE)


def _follow(
    processor: LogicalProcessor, guest: Operand, written: Iterable[tuple[Part, int, int, int]]
) -> None:
    """Carry completed writes of (part, address, old value, new one) over to the frame map."""
    v = guest.v
    if not _counts_links(v):
        return
    stale = 0
    for part, at, old, new in written:
        if part.kind == DIRECTORY:
            byte = frame_byte(v, guest.mem, unaliased(v, at))
            entries = _signed(int(old)), _signed(int(new))
            stale = max(stale, follow_link(v, guest.mem, byte, *entries))
    if stale == ALL_STALE:
        processor.engine.flush_translations()


class Attempt(NamedTuple):
    """An instruction that was executed, and whose stores have been taken back.

    `pieces` are these stores, within a page each, by guest-physical address.
    """

    pieces: list[tuple[int, bytes]]
    take_back: Callable[[], None]
    """Have the registers as they were before, too."""


def attempt(processor: LogicalProcessor, v: Cells, user: int, size: int) -> Attempt | None:
    """What the instruction at RIP stores to tables that a frame map protects, by trying it.

    `user` is 1 in user mode; `size` bytes of memory are the guest's. None, and nothing has
    changed, if it reaches other memory, faults, or may store where its operands do not show.
    """
    guest = Operand(processor, v)
    instruction = guest.decode()
    if _writes_more(instruction):
        return None
    before = Snapshot(processor, v)
    places: list[tuple[int, int]] = []
    for access in accesses_of(guest, instruction):
        start, end = access.linear, access.linear + access.size
        while start < end:
            count = min(end - start, _PAGE - start % _PAGE)
            linear = _signed(guest.wrap(start))
            physical, fault = guest.walk(linear, READ, user)
            if fault < 0 and physical + count > processor.memory.size:
                return None
            if access.write and fault < 0:
                physical, fault = walk_without_map(guest, linear, user)
                if physical + count > size:
                    return None
                places.append((physical, count))
                before.keep(int(aliased(v, physical)), count)
            if fault >= 0:
                return None
            start += count
    if not places or not _execute(processor, v, set(), 0):
        before.put_back(processor, v)
        return None
    memory = processor.memory
    pieces = [(at, memory.read(int(aliased(v, at)), count)) for at, count in places]
    before.put_memory_back(processor, v)
    return Attempt(pieces, partial(before.put_back, processor, v))


def walk_without_map(guest: Operand, linear: int, user: int) -> tuple[int, int]:
    """Where a write to a linear address, signed, goes if no frame map stops it; see `walk`.

    The address is guest-physical: beyond the window of `alias` it may be in the machine what
    another one in it is.
    """
    v = guest.v
    length, v[f.FRAME_MAP_LENGTH] = v[f.FRAME_MAP_LENGTH], 0
    physical, fault = guest.walk(linear, WRITE, user)
    if fault < 0 and v[f.ALIAS_LENGTH]:
        physical = int(probe(v, guest.mem, linear)[3])
    v[f.FRAME_MAP_LENGTH] = length
    return physical, fault


def _address_of(part: Part, address: int) -> int:
    """The linear address that a page fault by this part reports; `address` was the first's."""
    return part.linear if (part.linear ^ address) & -_PAGE else address


def _completed_by(
    before: Snapshot,
    guest: Operand,
    code: int,
    address: int,
    part: Part,
    at: int,
    new: int,
    old: int,
) -> int:
    """What lets a write turn the entry at `at` into another (`frame_filters.completed_by`)."""
    linear = _address_of(part, address)
    signed = _signed(int(new)), _signed(int(old))
    return int(completed_by(before.v, before.r, guest.mem, code, linear, part.kind, at, *signed))


def _execute(processor: LogicalProcessor, v: Cells, grants: set[int], width: int) -> bool:
    """Execute the instruction with the tables writable; False if an event came instead.

    A supervisor needs no R/W while CR0.WP is 0. User mode does, in the entries at `grants`.
    """
    engine = processor.engine
    mem = processor.memory.cells
    write_protect = v[f.GUEST_CR0] & CR0_WP
    length = v[f.FRAME_MAP_LENGTH]
    v[f.FRAME_MAP_LENGTH] = 0
    if length:
        engine.flush_translations()
    granted = [at for at in grants if not entry_of(mem, at, width) & _WRITABLE]
    if grants:
        for at in granted:
            store8(mem, at, load8(mem, at) | _WRITABLE)
        engine.flush_translations()
    elif not length:
        v[f.GUEST_CR0] &= ~CR0_WP
    # It was counted when it faulted.
    engine.cells[stops.TIME] -= 1
    done = engine.step()
    v[f.GUEST_CR0] |= write_protect
    v[f.FRAME_MAP_LENGTH] = length
    if length:
        engine.flush_translations()
    for at in granted:
        store8(mem, at, load8(mem, at) & ~_WRITABLE)
    if granted:
        engine.flush_translations()
    return done and engine.cells[stops.STOP] == stops.STEPPED


def _writes_more(instruction: iced.Instruction) -> bool:
    """Whether it may write to memory that its operands do not show: descriptors, other stacks."""
    far = instruction.is_call_far or instruction.is_call_far_indirect
    jumps = instruction.is_jmp_far or instruction.is_jmp_far_indirect
    return (
        far
        or jumps
        or instruction.flow_control in (FlowControl.INTERRUPT, FlowControl.RETURN)
        or instruction.mnemonic in _LOADS_SEGMENT
        or (instruction.mnemonic != Mnemonic.PUSH and instruction.op0_register in _SEGMENTS)
    )


def _pages(guest: Operand, accesses: list[Access]) -> Iterator[int]:
    """The linear addresses of the pages accessed."""
    for access in accesses:
        for start in range(access.linear & -_PAGE, access.linear + access.size, _PAGE):
            yield _signed(guest.wrap(start))


def _signed(linear: int) -> int:
    """A 64-bit address as cells hold it."""
    return linear - (linear >> 63 << 64)


def _parts(guest: Operand, accesses: list[Access], user: int) -> list[Part]:
    """The accesses, page by page; none if one of them faults for another reason than R/W."""
    mode = 1 if user else 0
    parts = []
    for access in accesses:
        start, end = access.linear, access.linear + access.size
        while start < end:
            size = min(end - start, _PAGE - start % _PAGE)
            linear = _signed(guest.wrap(start))
            kind, physical, fault = _written(guest, linear, mode) if access.write else _ANY
            if kind == ABSENT and fault < 0:
                physical, fault = guest.walk(linear, WRITE if access.write else READ, mode)
            if kind == ABSENT and fault >= 0:
                return []
            parts.append(Part(linear, int(physical), size, int(kind), access.write))
            start += size
    return parts


_ANY = (ABSENT, 0, -1)


def _written(guest: Operand, linear: int, user: int) -> tuple[int, int, int]:
    """The kind of table entry that is written at a linear address, where it lies, or a fault.

    The frame map must be all that stops the write.
    """
    v = guest.v
    if has_frame_map(v):
        physical, fault = guest.walk(linear, WRITE, user)
        if fault < 0:
            return ABSENT, physical, -1
        if fault | PFEC_U != PFEC_P | PFEC_W | PFEC_U | PFEC_MAP:
            return ABSENT, 0, fault
    kind, physical = guest.entry_written(linear, user)
    return int(kind), int(physical), -1


def _translating(guest: Operand, linear: int) -> Iterator[int]:
    """The physical addresses of the table entries that translate `linear`, if it is mapped.

    Those of PAE paging's pointers, which have no rights, are left out.
    """
    v = guest.v
    cr3, cr4 = int(v[f.GUEST_CR3]), int(v[f.GUEST_CR4])
    levels, bits, width, frame = (4, 9, 8, FRAME_64) if cr4 & CR4_PAE else (2, 10, 4, FRAME)
    table = cr3 & frame
    if uses_pae_paging(v):
        levels = 2
        pointer = int(v[f.GUEST_PDPTE0 + (linear >> 30 & 3)])
        if not pointer & PRESENT:
            return
        table = pointer & frame
    for level in reversed(range(levels)):
        index = linear >> (12 + bits * level) & (1 << bits) - 1
        at = int(aliased(v, table + index * width))
        yield at
        entry = int(entry_of(guest.mem, at, width))
        if not entry & PRESENT or is_large(cr4, entry):
            return
        table = entry & frame
