"""Task switches, carried out for a guest: by its VMM, since in VT-x they always exit, or by itself.

By itself where a criteria table leaves them to the guest (`left_to_guest`).

SDM, "Task Switching" (the order of things, and the table "Exception Conditions Checked During a
Task Switch") and "Treatment of Task Switches". The exit comes after the checks of the new TSS's
descriptor. What goes wrong before the new task's state is loaded is the old task's fault, what
goes wrong afterwards the new task's, before its first instruction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from struct import pack_into, unpack_from
from typing import NamedTuple

from trapgate.compiler.dialect import Cells
from trapgate.decision.faults import Interruption
from trapgate.decision.instruction_rules import exits_by_table
from trapgate.events.breakpoints import note_data
from trapgate.events.delivery import (
    COMBINE_DOUBLE_FAULT,
    COMBINE_SERIALLY,
    COMBINE_SHUTDOWN,
    combine,
)
from trapgate.events.descriptors import (
    NO_FAULT,
    base_of,
    limit_of,
    mark_accessed,
    read_descriptor,
)
from trapgate.events.exits import vm_exit
from trapgate.events.journal import change_to_delivered
from trapgate.instructions.intercepts import TASK_BY_CALL, TASK_BY_GATE, TASK_BY_IRET
from trapgate.paging.walk import NO_POINTERS, load_pointers, uses_pae_paging
from trapgate.processor.logical import LogicalProcessor, signed
from trapgate.sdm import cells as f
from trapgate.sdm import state as st
from trapgate.sdm.interruption import InterruptionType
from trapgate.sdm.reasons import REASON_TASK_SWITCH, REASON_TRIPLE_FAULT
from trapgate.sdm.vectors import DB, DF, GP, NP, PF, SS, TS
from trapgate.vmx.checks.controls import unrestricted_guest

_READ, _WRITE = 0, 1
_CS, _SS, _LDTR, _TR = 1, 2, 6, 7
_DATA_SEGMENTS = (3, 0, 4, 5)
"""DS, ES, FS and GS, in the order in which they are loaded."""
_FLAT_CODE = 0xC09B
_DPL_3 = 3 << 5
_BUSY = 1 << 41
_LOCAL_BREAKPOINTS = 0x155
_FLAGS = 0x3F7FD7
_DEBUG_TRAP = 100
_SEGMENT_8086 = 0xF3
_LDT = 2


class Format(NamedTuple):
    """Where a TSS has its fields: offsets in bytes, `code` that of one in `struct`.

    `first` is the instruction pointer; flags and the eight general registers follow. `segments`
    are ES, CS, SS, DS and, but for 16 bits, FS and GS.
    """

    size: int
    code: str
    first: int
    segments: int
    stride: int
    segment_count: int
    ldt: int


_TSS_16 = Format(44, "<10H", 14, 34, 2, 4, 42)
_TSS_32 = Format(104, "<10I", 32, 72, 4, 6, 96)
_CR3 = 28


class TaskFaultError(Exception):
    """The switch raises an exception: vector, error code, and for a page fault the address."""

    def __init__(self, vector: int, error_code: int, address: int = 0) -> None:
        super().__init__()
        self.vector = vector
        self.error_code = error_code
        self.address = address


class Check(NamedTuple):
    """A row of the SDM's table: a condition, and the exception if it does not hold."""

    holds: bool
    vector: int
    selector: int


def holds(checks: tuple[Check, ...]) -> bool:
    """Whether all of them hold."""
    return all(check.holds for check in checks)


def ldt_checks(selector: int, rights: int) -> tuple[Check, Check]:
    """Checks of the LDT, which may be none: is it one, is it present?

    `rights` are here, and below, those of the descriptor, 0 if there is none.
    """
    is_ldt = rights & 0x1F == _LDT
    is_none = selector & 0xFFFC == 0
    return (
        Check(is_none or is_ldt, TS, selector),
        Check(is_none or rights & st.AR_P != 0, TS, selector),
    )


def code_checks(selector: int, rights: int) -> tuple[Check, Check, Check]:
    """Checks of CS: does its privilege fit, is it code, is it present?"""
    is_code = rights & (st.AR_S | st.AR_CODE) == st.AR_S | st.AR_CODE
    dpl, rpl = rights >> 5 & 3, selector & 3
    fits = dpl <= rpl if rights & st.AR_CONFORMING else dpl == rpl
    return (
        Check(fits or not is_code, TS, selector),
        Check(is_code, TS, selector),
        Check(rights & st.AR_P != 0, NP, selector),
    )


def stack_checks(selector: int, rights: int, cpl: int) -> tuple[Check, Check, Check, Check]:
    """Checks of SS: is it writable data and present, is its DPL the CPL and the selector's RPL?"""
    is_stack = rights & (st.AR_S | st.AR_CODE | st.AR_WRITABLE) == st.AR_S | st.AR_WRITABLE
    dpl = rights >> 5 & 3
    return (
        Check(is_stack, TS, selector),
        Check(rights & st.AR_P != 0, SS, selector),
        Check(dpl == cpl, TS, selector),
        Check(dpl == selector & 3, TS, selector),
    )


def data_checks(selector: int, rights: int, cpl: int) -> tuple[Check, Check, Check]:
    """Checks of DS, ES, FS or GS: can it be read, is it present, does its privilege fit?"""
    readable = rights & st.AR_S and not (rights & st.AR_CODE and not rights & st.AR_WRITABLE)
    conforming = rights & st.AR_CODE and rights & st.AR_CONFORMING
    return (
        Check(bool(readable), TS, selector),
        Check(rights & st.AR_P != 0, NP, selector),
        Check(bool(conforming) or rights >> 5 & 3 >= max(cpl, selector & 3), TS, selector),
    )


@dataclass(frozen=True)
class Memory:
    """Linear memory as the processor sees it for itself: supervisor accesses."""

    processor: LogicalProcessor
    v: Cells

    def physical(self, linear: int, access: int) -> int:
        """Where a linear address lies. Raises TaskFaultError."""
        linear &= 0xFFFF_FFFF
        physical, code = self.processor.engine.walk(self.v, 0, linear, access, 0)
        if code >= 0:
            raise TaskFaultError(PF, code, linear)
        return physical

    def read(self, linear: int, size: int, access: int = _READ) -> bytearray:
        """`size` bytes, which with `access` 1 have to be writable, too."""
        data = bytearray()
        while len(data) < size:
            start = linear + len(data)
            count = min(size - len(data), 0x1000 - start % 0x1000)
            data += self.processor.memory.read(self.physical(start, access), count)
        return data

    def write(self, linear: int, data: bytes) -> None:
        """Store bytes."""
        done = 0
        while done < len(data):
            count = min(len(data) - done, 0x1000 - (linear + done) % 0x1000)
            at = self.physical(linear + done, _WRITE)
            self.processor.memory.write(at, data[done : done + count])
            done += count


class Switch:
    """The task switch of which the exit information in a VMCS tells.

    `take_cr3` loads the new task's CR3; what it raises ends the switch there.
    """

    def __init__(
        self, processor: LogicalProcessor, v: Cells, take_cr3: Callable[[int], None]
    ) -> None:
        self.memory = Memory(processor, v)
        self.take_cr3 = take_cr3
        self.v = v
        self.r = processor.registers.cells
        self.source = int(v[f.EXIT_QUALIFICATION]) >> 30 & 3
        self.selector = int(v[f.EXIT_QUALIFICATION]) & 0xFFFF
        self.event = Interruption.decode(
            int(v[f.IDT_VECTORING_INFORMATION]), int(v[f.IDT_VECTORING_ERROR_CODE]) & 0xFFFF_FFFF
        )
        software = (
            InterruptionType.SOFTWARE_INTERRUPT,
            InterruptionType.PRIVILEGED_SOFTWARE_EXCEPTION,
            InterruptionType.SOFTWARE_EXCEPTION,
        )
        is_gate = self.source == TASK_BY_GATE
        is_instruction = not is_gate or (self.event is not None and self.event.type in software)
        self.length = int(v[f.VM_EXIT_INSTRUCTION_LENGTH]) if is_instruction else 0
        # EXT: the event came from outside the program.
        self.ext = int(is_gate and not is_instruction)
        self.is_done = False

    def carry_out(self) -> None:
        """Raises TaskFaultError, before or after the new task has become the current one."""
        v = self.v
        descriptor, linear = self.descriptor(self.selector, TS)
        old_format = _TSS_32 if v[f.GUEST_TR_ACCESS_RIGHTS] & 8 else _TSS_16
        wide = bool(descriptor >> 40 & 8)
        new_format = _TSS_32 if wide else _TSS_16
        base = int(base_of(descriptor))
        nests = self.source in (TASK_BY_CALL, TASK_BY_GATE)
        old_base, old_selector = int(v[f.GUEST_TR_BASE]), int(v[f.GUEST_TR_SELECTOR])
        # All pages that the switch reads or writes are looked at before anything changes.
        old = self.memory.read(old_base, old_format.size, _WRITE)
        new = self.memory.read(base, new_format.size, _WRITE if nests else _READ)
        self.memory.physical(linear + 5, _WRITE)
        self.is_done = True
        self.save(old, old_format)
        if not nests:
            self.set_busy(old_selector, busy=False)
        self.memory.write(old_base, bytes(old))
        if nests:
            pack_into("<H", new, 0, old_selector)
            self.memory.write(base, bytes(new[:2]))
        if self.source != TASK_BY_IRET:
            self.set_busy(self.selector, busy=True)
        v[f.GUEST_TR_SELECTOR] = self.selector
        v[f.GUEST_TR_BASE] = base
        v[f.GUEST_TR_LIMIT] = limit_of(descriptor)
        v[f.GUEST_TR_ACCESS_RIGHTS] = descriptor >> 40 & 0xF0FF | 2
        self.load(new, new_format, nests=nests)

    def combined(self, fault: TaskFaultError) -> Interruption | None:
        """What comes of a fault; None for a shutdown.

        The old task's is combined with the event that asked for the switch.
        """
        event = self.event
        outcome = COMBINE_SERIALLY
        if event is not None and not self.is_done:
            outcome = int(combine(event.vector, event.type, fault.vector))
        if outcome == COMBINE_SHUTDOWN:
            return None
        kind = InterruptionType.HARDWARE_EXCEPTION
        if outcome == COMBINE_DOUBLE_FAULT:
            return Interruption(DF, kind, 0)
        return Interruption(fault.vector, kind, fault.error_code)

    def save(self, tss: bytearray, layout: Format) -> None:
        """The old task's registers, into the image of its TSS."""
        v, r = self.v, self.r
        mask = 0xFFFF_FFFF if layout is _TSS_32 else 0xFFFF
        flags = int(v[f.GUEST_RFLAGS])
        if self.source == TASK_BY_IRET:
            flags &= ~st.RFLAGS_NT
        general = [int(v[f.GUEST_RSP]) if n == 4 else int(r[n]) for n in range(8)]
        words = (int(v[f.GUEST_RIP]) + self.length, flags, *general)
        pack_into(layout.code, tss, layout.first, *(word & mask for word in words))
        for n in range(layout.segment_count):
            selector = int(v[f.GUEST_ES_SELECTOR + n])
            pack_into("<H", tss, layout.segments + n * layout.stride, selector)

    def load(self, tss: bytearray, layout: Format, *, nests: bool) -> None:
        """The new task's registers from its TSS, then its segments."""
        v, r = self.v, self.r
        rip, flags, *general = unpack_from(layout.code, tss, layout.first)
        flags = flags & _FLAGS | st.RFLAGS_FIXED_1
        v[f.GUEST_RIP] = rip
        v[f.GUEST_RFLAGS] = flags | (st.RFLAGS_NT if nests else 0)
        for n, value in enumerate(general):
            r[n] = value
        v[f.GUEST_RSP] = general[4]
        v[f.GUEST_CR0] |= st.CR0_TS
        v[f.GUEST_DR7] &= ~_LOCAL_BREAKPOINTS
        v[f.GUEST_ACTIVITY_STATE] = 0
        v[f.GUEST_INTERRUPTIBILITY_STATE] &= ~3
        v[f.GUEST_PENDING_DEBUG_EXCEPTIONS] = 0
        selectors = [0] * 6
        for n in range(layout.segment_count):
            (selectors[n],) = unpack_from("<H", tss, layout.segments + n * layout.stride)
        (ldt,) = unpack_from("<H", tss, layout.ldt)
        virtual = bool(flags & st.RFLAGS_VM)
        self.name_segments(selectors, ldt)
        if virtual:
            self.load_segments_8086(selectors)
        if layout is _TSS_32 and v[f.GUEST_CR0] & st.CR0_PG:
            cr3 = unpack_from("<I", tss, _CR3)[0]
            if cr3 != int(v[f.GUEST_CR3]) & 0xFFFF_FFFF:
                self.take_cr3(cr3)
        checks = self.load_ldt(ldt) if virtual else self.load_segments(selectors, ldt)
        for check in checks:
            if not check.holds:
                raise self.fault(check.vector, check.selector)
        if self.event is not None and self.event.error_code is not None:
            self.push(self.event.error_code, 4 if layout is _TSS_32 else 2)
        if rip > int(v[f.GUEST_CS_LIMIT]) & 0xFFFF_FFFF:
            raise TaskFaultError(GP, self.ext)
        if layout is _TSS_32 and tss[_DEBUG_TRAP] & 1:
            v[f.GUEST_PENDING_DEBUG_EXCEPTIONS] |= st.DR6_BT

    def name_segments(self, selectors: list[int], ldt: int) -> None:
        """The selectors of all segment registers, before any of the segments is looked at.

        CS and SS are in a state in which a fault can be delivered: in ring 3, so that it takes the
        stack which the TSS has for its handler.
        """
        v = self.v
        for n, selector in (*enumerate(selectors), (_LDTR, ldt)):
            v[f.GUEST_ES_SELECTOR + n] = selector
            v[f.GUEST_ES_ACCESS_RIGHTS + n] = st.AR_UNUSABLE | _DPL_3
        v[f.GUEST_CS_BASE] = 0
        v[f.GUEST_CS_LIMIT] = 0xFFFF_FFFF
        v[f.GUEST_CS_ACCESS_RIGHTS] = _FLAT_CODE | _DPL_3
        if not unrestricted_guest(v):
            # VM entry demands that the CPL is the RPL of both.
            v[f.GUEST_CS_SELECTOR] |= 3
            v[f.GUEST_SS_SELECTOR] |= 3

    def load_segments_8086(self, selectors: list[int]) -> None:
        """Segment registers as virtual-8086 mode has them."""
        v = self.v
        for n, selector in enumerate(selectors):
            v[f.GUEST_ES_SELECTOR + n] = selector
            v[f.GUEST_ES_BASE + n] = selector << 4
            v[f.GUEST_ES_LIMIT + n] = 0xFFFF
            v[f.GUEST_ES_ACCESS_RIGHTS + n] = _SEGMENT_8086

    def load_ldt(self, selector: int) -> tuple[Check, ...]:
        """LDTR, and what has to hold for it."""
        descriptor, _ = self.look_up(selector)
        checks = ldt_checks(selector, descriptor >> 40)
        if holds(checks) and selector & 0xFFFC:
            self.put(_LDTR, selector, descriptor)
        return checks

    def load_segments(self, selectors: list[int], ldt: int) -> tuple[Check, ...]:
        """LDTR, CS, SS and the data segments: those of which everything holds that has to.

        That is the result, in the order of the SDM's table.
        """
        v = self.v
        table = self.load_ldt(ldt)
        cpl = selectors[_CS] & 3
        code_at, stack_at = self.look_up(selectors[_CS]), self.look_up(selectors[_SS])
        code = code_checks(selectors[_CS], code_at[0] >> 40)
        stack = stack_checks(selectors[_SS], stack_at[0] >> 40, cpl)
        if holds(stack):
            # VM entry demands that the CPL is the DPL of both.
            v[f.GUEST_CS_ACCESS_RIGHTS] = _FLAT_CODE | cpl << 5
            self.put_accessed(_SS, selectors[_SS], stack_at)
            if holds(code):
                self.put_accessed(_CS, selectors[_CS], code_at)
        data: tuple[Check, ...] = ()
        for n in _DATA_SEGMENTS:
            if selectors[n] & 0xFFFC:
                data_at = self.look_up(selectors[n])
                checks = data_checks(selectors[n], data_at[0] >> 40, cpl)
                if holds(checks):
                    self.put_accessed(n, selectors[n], data_at)
                data += checks
        valid, present = table
        return (valid, code[0], *stack[:3], present, *code[1:], stack[3], *data)

    def push(self, error_code: int, size: int) -> None:
        """The event's error code, onto the new task's stack."""
        v = self.v
        wide = v[f.GUEST_SS_ACCESS_RIGHTS] & st.AR_DB
        mask = 0xFFFF_FFFF if wide else 0xFFFF
        top = int(v[f.GUEST_RSP])
        place = (top - size) & mask
        limit = int(v[f.GUEST_SS_LIMIT]) & 0xFFFF_FFFF
        last = place + size - 1
        expands_down = v[f.GUEST_SS_ACCESS_RIGHTS] & st.AR_EXPAND_DOWN
        if (place <= limit or last > mask) if expands_down else last > limit:
            raise TaskFaultError(SS, self.ext)
        linear = int(v[f.GUEST_SS_BASE]) + place
        self.memory.write(linear, (error_code & (1 << 8 * size) - 1).to_bytes(size, "little"))
        note_data(v, self.r, linear & 0xFFFF_FFFF, size, True)
        v[f.GUEST_RSP] = top & ~mask | place

    # Descriptors.

    def fault(self, vector: int, selector: int) -> TaskFaultError:
        """An exception whose error code names a selector."""
        return TaskFaultError(vector, selector & 0xFFFC | self.ext)

    def descriptor(self, selector: int, wrong: int) -> tuple[int, int]:
        """A descriptor and its linear address; `wrong` is the exception if there is none."""
        cells = self.memory.processor.memory.cells
        named = selector & 0xFFFC | self.ext
        fault, error, linear, descriptor = read_descriptor(self.v, cells, selector, wrong, named)
        if fault != NO_FAULT:
            raise TaskFaultError(int(fault), int(error), int(linear))
        return int(descriptor) & 0xFFFF_FFFF_FFFF_FFFF, int(linear)

    def look_up(self, selector: int) -> tuple[int, int]:
        """The same, with a descriptor of 0 if there is none."""
        if selector & 0xFFFC == 0:
            return 0, 0
        try:
            return self.descriptor(selector, TS)
        except TaskFaultError as fault:
            if fault.vector == PF:
                raise
            return 0, 0

    def put_accessed(self, segment: int, selector: int, found: tuple[int, int]) -> None:
        """Load a segment register, and mark the descriptor accessed."""
        self.accessed(*found)
        self.put(segment, selector, found[0])

    def accessed(self, descriptor: int, linear: int) -> None:
        """Mark a descriptor accessed."""
        cells = self.memory.processor.memory.cells
        error = int(mark_accessed(self.v, cells, signed(descriptor), linear))
        if error >= 0:
            raise TaskFaultError(PF, error, linear + 5)

    def set_busy(self, selector: int, *, busy: bool) -> None:
        """Mark the TSS of `selector` busy, or available."""
        descriptor, linear = self.descriptor(selector, TS)
        changed = descriptor | _BUSY if busy else descriptor & ~_BUSY
        self.memory.write(linear + 5, bytes([changed >> 40 & 0xFF]))

    def put(self, segment: int, selector: int, descriptor: int) -> None:
        """Load a segment register."""
        v = self.v
        v[f.GUEST_ES_SELECTOR + segment] = selector
        v[f.GUEST_ES_BASE + segment] = base_of(descriptor)
        v[f.GUEST_ES_LIMIT + segment] = limit_of(descriptor)
        accessed = 0 if segment in (_LDTR, _TR) else 1
        v[f.GUEST_ES_ACCESS_RIGHTS + segment] = descriptor >> 40 & 0xF0FF | accessed


def load_cr3(processor: LogicalProcessor, v: Cells, value: int) -> None:
    """Load CR3, and with PAE paging the pointers that it leads to.

    SDM, "Loading Page-Directory-Pointer-Table Entries"; if that fails, CR3 does not change. Raises
    TaskFaultError.
    """
    before = int(v[f.GUEST_CR3])
    v[f.GUEST_CR3] = value
    processor.engine.flush_translations()
    if uses_pae_paging(v):
        error = int(load_pointers(v, processor.memory.cells))
        if error >= 0:
            v[f.GUEST_CR3] = before
            raise TaskFaultError(GP, 0) if error == NO_POINTERS else TaskFaultError(PF, error)


def left_to_guest(v: Cells) -> bool:
    """Whether an exit that a VMCS tells of is a task switch which its criteria table delivers."""
    if v[f.CRITERIA_TABLE_INSTRUCTIONS] == 0 or v[f.EXIT_REASON] != REASON_TASK_SWITCH:
        return False
    return not exits_by_table(v, True, REASON_TASK_SWITCH, int(v[f.EXIT_QUALIFICATION]), 0)


def carry_out(processor: LogicalProcessor, v: Cells) -> bool:
    """Switch tasks as a processor does outside VMX operation; whether that ends in a VM exit."""
    switch = Switch(processor, v, partial(load_cr3, processor, v))
    if switch.event is not None:
        change_to_delivered(processor.head, processor.rows, switch.event.vector, switch.event.type)
    try:
        switch.carry_out()
    except TaskFaultError as fault:
        event = switch.combined(fault)
        if event is None:
            vm_exit(v, REASON_TRIPLE_FAULT, 0, 0)
            return True
        code = -1 if event.error_code is None else event.error_code
        return processor.raise_fault(event.vector, code, signed(fault.address))
    causes = take_trap(v)
    return processor.raise_fault(DB, -1, causes) if causes else False


def take_trap(v: Cells) -> int:
    """The causes of the #DB after a task switch, before the new task's first instruction.

    Bits of DR6: the T flag of its TSS, and breakpoints on the error code that it has been given.
    """
    causes = int(v[f.GUEST_PENDING_DEBUG_EXCEPTIONS]) & (st.DR6_BT | st.DR6_BREAKPOINTS)
    v[f.GUEST_PENDING_DEBUG_EXCEPTIONS] = 0
    return causes
