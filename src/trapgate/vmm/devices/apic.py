"""The local APIC: priorities, local interrupts, interprocessor interrupts.

SDM, "Advanced Programmable Interrupt Controller (APIC)". It answers in xAPIC mode at
its page of memory and in x2APIC mode at MSRs 800H-8FFH. It comes up as firmware leaves
it, in virtual wire mode: enabled, LINT0 takes the 8259s' interrupts (ExtINT), LINT1 NMIs. Those of
other processors than the first come up as a reset leaves them.
"""

from typing import Protocol

from trapgate.vmm.devices.apic_timer import ApicTimer
from trapgate.vmm.devices.interconnect import Interconnect

BASE_ADDRESS = 0xFEE0_0000
"""Where the registers lie after reset (IA32_APIC_BASE)."""

MSR_APIC_BASE, MSR_TSC_DEADLINE = 0x1B, 0x6E0
_X2APIC_MSRS = range(0x800, 0x900)
_BSP, _EXTD, _EN = 1 << 8, 1 << 10, 1 << 11
_ADDRESS_BITS = 40  # as CPUID leaf 80000008H says

ID, VERSION, TPR, APR, PPR, EOI = 0x02, 0x03, 0x08, 0x09, 0x0A, 0x0B
LDR, DFR, SVR, ISR, TMR, IRR, ESR = 0x0D, 0x0E, 0x0F, 0x10, 0x18, 0x20, 0x28
ICR, ICR_HIGH, LVT_TIMER, LVT_THERMAL, LVT_PERFORMANCE = 0x30, 0x31, 0x32, 0x33, 0x34
LVT_LINT0, LVT_LINT1, LVT_ERROR = 0x35, 0x36, 0x37
INITIAL_COUNT, CURRENT_COUNT, DIVIDE, SELF_IPI = 0x38, 0x39, 0x3E, 0x3F
"""Registers by their number: the offset in the page / 16, the MSR - 800H."""

FIXED, LOWEST_PRIORITY, SMI, NMI, INIT, STARTUP, EXTINT = 0, 1, 2, 4, 5, 6, 7
"""Delivery modes."""

_MASKED = 1 << 16
_SOFTWARE_ENABLE = 1 << 8
_LVT_WRITABLE = {
    LVT_TIMER: 0x700FF,
    LVT_THERMAL: 0x107FF,
    LVT_PERFORMANCE: 0x107FF,
    LVT_LINT0: 0x1A7FF,
    LVT_LINT1: 0x1A7FF,
    LVT_ERROR: 0x100FF,
}
_WRITABLE = {
    **_LVT_WRITABLE,
    TPR: 0xFF,
    EOI: 0,
    SVR: 0x1FF,
    ESR: 0,
    ICR: 0xCCFFF,
    INITIAL_COUNT: 0xFFFF_FFFF,
    DIVIDE: 0xB,
}
"""Bits that can be written; in x2APIC mode any other raises #GP, unless it is read-only."""
_READ_ONLY = dict.fromkeys(_LVT_WRITABLE, 1 << 12) | dict.fromkeys((LVT_LINT0, LVT_LINT1), 5 << 12)
"""Delivery status, and remote IRR of the LINT pins: a write does not matter there."""
_XAPIC_WRITABLE = {ID: 0xFF00_0000, LDR: 0xFF00_0000, DFR: 0xF000_0000, ICR_HIGH: 0xFF00_0000}
_READABLE = frozenset(
    {ID, VERSION, TPR, PPR, LDR, SVR, *range(ISR, ESR + 1), ICR, *_LVT_WRITABLE}
    | {INITIAL_COUNT, CURRENT_COUNT, DIVIDE}
)
_VERSION = 0x14 | (len(_LVT_WRITABLE) - 1) << 16

_SEND_ILLEGAL_VECTOR, _RECEIVED_ILLEGAL_VECTOR, _ILLEGAL_REGISTER = 1 << 5, 1 << 6, 1 << 7
_TO_DESTINATION, _TO_SELF, _TO_ALL, _TO_OTHERS = range(4)
_ALL = 0xFFFF_FFFF


class Pins(Protocol):
    """The processor as its local APIC sees it. CR8 holds bits 7:4 of the task priority."""

    cr8: int

    def nmi(self) -> None:
        """Signal a non-maskable interrupt."""

    def init(self) -> None:
        """Signal INIT."""

    def smi(self) -> None:
        """Signal a system-management interrupt."""

    def start_up(self, vector: int) -> None:
        """Send a start-up IPI."""


class ExternalController(Protocol):
    """The 8259s, seen from LINT0 and the processor's INTR pin."""

    def pending(self) -> bool:
        """Do they ask for an interrupt?"""

    def acknowledge(self) -> int:
        """Take it: its vector."""


class LocalApic:
    """The local APIC of processor `number`, whose APIC ID that is at first; 0 is the first one.

    Messages to others go over `interconnect`. `read` and `write` are accesses to its page in
    xAPIC mode, at an offset; `read_msr` and `write_msr` are RDMSR and WRMSR. `pending` and
    `acknowledge` are the processor's side.
    """

    ports = ()
    wide = True

    def __init__(
        self,
        pins: Pins,
        external: ExternalController,
        interconnect: Interconnect | None = None,
        number: int = 0,
    ) -> None:
        self.number = number
        self.timer = ApicTimer()
        self.base = BASE_ADDRESS | _EN | (0 if number else _BSP)
        self.interconnect = Interconnect() if interconnect is None else interconnect
        self.interconnect.add(self)
        self._pins = pins
        self._external = external
        self._lint = [False, False]
        self._reset()
        if not number:
            self._registers[SVR] |= _SOFTWARE_ENABLE
            self._registers[LVT_LINT0] = EXTINT << 8
            self._registers[LVT_LINT1] = NMI << 8

    def _reset(self) -> None:
        self.timer = ApicTimer()
        self._registers = dict.fromkeys(_LVT_WRITABLE, _MASKED)
        self._registers |= {ID: self.number << 24, LDR: 0, DFR: _ALL, SVR: 0xFF}
        self._registers |= {ESR: 0, ICR: 0, ICR_HIGH: 0}
        self._in_service = self._requests = self._levels = 0
        self._errors = 0
        self._task_priority = 0
        self._pins.cr8 = 0

    # The processor's side.

    @property
    def of_bootstrap_processor(self) -> bool:
        """Is this the bootstrap processor's (IA32_APIC_BASE.BSP)?"""
        return bool(self.base & _BSP)

    def initialise(self) -> None:
        """INIT: as after a reset, but for IA32_APIC_BASE and the APIC ID."""
        if self.enabled:
            self._reset()

    @property
    def enabled(self) -> bool:
        """Is it there at all (IA32_APIC_BASE.EN, CPUID.1:EDX.APIC)?"""
        return bool(self.base & _EN)

    @property
    def page(self) -> int | None:
        """The number of the physical page where it answers, if it does (xAPIC mode)."""
        return self.base >> 12 if self.base & (_EN | _EXTD) == _EN else None

    def pending(self) -> bool:
        """Is there an interrupt that the processor would take, were RFLAGS.IF 1?"""
        return (self._requests != 0 and self._winner() >= 0) or (
            self._external.pending() and self._external_is_heard()
        )

    def acknowledge(self) -> int:
        """Give the processor the vector of the interrupt it takes; external ones come first."""
        if self._external.pending() and self._external_is_heard():
            return self._external.acknowledge()
        vector = self._winner()
        if vector < 0:
            return self._registers[SVR] & 0xFF
        self._requests &= ~(1 << vector)
        self._in_service |= 1 << vector
        return vector

    def _external_is_heard(self) -> bool:
        return not self.enabled or self._registers[LVT_LINT0] & (_MASKED | 0x700) == EXTINT << 8

    # Where interrupts come from.

    def accept(self, vector: int, mode: int, *, level: bool = False) -> bool:
        """Take a message (SDM, "Interrupt Acceptance for Fixed Interrupts").

        Answers whether a fixed interrupt was accepted.
        """
        if not self.enabled:
            return False
        if mode == NMI:
            self._pins.nmi()
        elif mode == INIT:
            self._pins.init()
        elif mode == SMI:
            self._pins.smi()
        elif mode == STARTUP:
            self._pins.start_up(vector)
        elif mode in (FIXED, LOWEST_PRIORITY) and self._registers[SVR] & _SOFTWARE_ENABLE:
            if vector < 16:
                self._fail(_RECEIVED_ILLEGAL_VECTOR)
                return False
            bit = 1 << vector
            self._requests |= bit
            self._levels = self._levels | bit if level else self._levels & ~bit
            return True
        return False

    def is_destination(self, destination: int, *, logical: bool, wide: bool = False) -> bool:
        """Does a message to `destination` (8 bits, 32 if `wide`) mean this APIC?"""
        if destination == (_ALL if wide else 0xFF):
            return True
        if not logical:
            own = self.number if self.base & _EXTD else self._registers[ID] >> 24
            return destination == own
        if self.base & _EXTD:
            own = self._logical_id
            return destination >> 16 == own >> 16 and bool(destination & own & 0xFFFF)
        own = self._registers[LDR] >> 24
        if self._registers[DFR] >> 28 == 0xF:
            return bool(destination & own)
        cluster = destination >> 4
        return cluster in (own >> 4, 0xF) and bool(destination & own & 0xF)

    def lint(self, pin: int, level: bool) -> None:
        """Drive LINT0 or LINT1; a rising edge is a local interrupt, unless it is ExtINT."""
        rises = level and not self._lint[pin]
        self._lint[pin] = level
        if rises:
            self._local(LVT_LINT0 + pin)

    @property
    def takes_nmis(self) -> bool:
        """Whether an interrupt of the 8259s would be an NMI here; nothing drives LINT1."""
        return self.enabled and self._registers[LVT_LINT0] & (_MASKED | 0x700) == NMI << 8

    def _local(self, register: int) -> None:
        entry = self._registers[register]
        if self.enabled and not entry & _MASKED:
            mode = FIXED if register in (LVT_TIMER, LVT_ERROR) else entry >> 8 & 7
            if mode not in (LOWEST_PRIORITY, STARTUP):
                self.accept(entry & 0xFF, mode)

    def _fail(self, error: int) -> None:
        self._errors |= error
        # An error vector that is illegal itself must not go round for ever.
        if self._registers[LVT_ERROR] & 0xFF >= 16:
            self._local(LVT_ERROR)

    def _send(self, command: int, destination: int, *, wide: bool) -> None:
        """An interprocessor interrupt (SDM, "Issuing Interprocessor Interrupts")."""
        vector, mode, shorthand = command & 0xFF, command >> 8 & 7, command >> 18 & 3
        if mode == INIT and command & 0xC000 == 0x8000:
            return  # INIT level de-assert
        if mode in (FIXED, LOWEST_PRIORITY) and vector < 16:
            self._fail(_SEND_ILLEGAL_VECTOR)
            return
        if shorthand == _TO_SELF:
            self.accept(vector, mode)
        elif shorthand == _TO_DESTINATION:
            logical = bool(command & 1 << 11)
            self.interconnect.send(vector, mode, destination, logical=logical, wide=wide)
        else:
            self.interconnect.broadcast(vector, mode, but=self if shorthand == _TO_OTHERS else None)

    # Priorities.

    def _tpr(self) -> int:
        """TPR; MOV to CR8 clears bits 3:0."""
        cr8 = self._pins.cr8
        return self._task_priority if self._task_priority >> 4 == cr8 else cr8 << 4

    @property
    def _logical_id(self) -> int:
        """The x2APIC's: cluster in bits 31:16, one bit below."""
        return self.number >> 4 << 16 | 1 << (self.number & 0xF)

    def priority(self) -> int:
        """PPR, 8 bits (SDM, "Task and Processor Priorities")."""
        task = self._tpr()
        served = max(self._in_service.bit_length() - 1, 0)
        return task if task >> 4 >= served >> 4 else served & 0xF0

    def _winner(self) -> int:
        """The request that the processor gets next; -1 if none is above its priority."""
        highest = self._requests.bit_length() - 1
        return highest if highest >> 4 > self.priority() >> 4 else -1

    def end_of_interrupt(self) -> None:
        """What a write to EOI does."""
        vector = self._in_service.bit_length() - 1
        if vector < 0:
            return
        self._in_service &= ~(1 << vector)
        if self._levels >> vector & 1:
            self.interconnect.end(vector)

    # Registers.

    def _get(self, number: int, now: int) -> int:
        """The 32 bits of a register that can be read."""
        if ISR <= number < ESR:
            bits = (self._in_service, self._levels, self._requests)[number - ISR >> 3]
            return bits >> 32 * (number & 7) & _ALL
        if number == VERSION:
            return _VERSION
        if number == TPR:
            return self._tpr()
        if number == PPR:
            return self.priority()
        if number == INITIAL_COUNT:
            return self.timer.initial
        if number == CURRENT_COUNT:
            self.advance(now)
            return self.timer.count(now)
        if number == DIVIDE:
            return self.timer.divide
        return self._registers.get(number, 0)

    def _put(self, number: int, value: int, now: int) -> None:
        """Write a register that can be written, with its reserved bits already 0."""
        self.advance(now)
        if number == TPR:
            self._task_priority = value
            self._pins.cr8 = value >> 4
        elif number == EOI:
            self.end_of_interrupt()
        elif number == ESR:
            self._registers[ESR], self._errors = self._errors, 0
        elif number == DFR:
            self._registers[DFR] = value | 0x0FFF_FFFF
        elif number == SVR:
            self._registers[SVR] = value
            if not value & _SOFTWARE_ENABLE:
                for entry in _LVT_WRITABLE:
                    self._registers[entry] |= _MASKED
        elif number in _LVT_WRITABLE:
            if not self._registers[SVR] & _SOFTWARE_ENABLE:
                value |= _MASKED
            self._registers[number] = value
            if number == LVT_TIMER:
                self.timer.set_mode(value >> 17 & 3)
        elif number == INITIAL_COUNT:
            self.timer.set_initial(value, now)
        elif number == DIVIDE:
            self.timer.set_divide(value, now)
        else:
            self._registers[number] = value

    # xAPIC mode: a page of memory.

    def read(self, port: int, size: int, now: int) -> int:
        """Load `size` bytes at offset `port` of the page; the 12 bytes after a register are 0."""
        number, lane = port >> 4, port & 0xF
        if number not in _READABLE and number not in _XAPIC_WRITABLE and number != APR:
            if number != EOI:
                self._fail(_ILLEGAL_REGISTER)
            return 0
        return self._get(number, now) >> 8 * lane & (1 << 8 * size) - 1

    def write(self, port: int, size: int, value: int, now: int) -> None:
        """Store at offset `port` of the page: 32 bits where a register lies, or in vain."""
        if size < 4 or port & 0xF:
            return
        number = port >> 4
        writable = _WRITABLE.get(number, _XAPIC_WRITABLE.get(number))
        if writable is None:
            if number not in _READABLE:
                self._fail(_ILLEGAL_REGISTER)
            return
        self._put(number, value & writable, now)
        if number == ICR:
            self._send(value & writable, self._registers[ICR_HIGH] >> 24, wide=False)

    # MSRs.

    def has_msr(self, index: int) -> bool:
        """Is MSR `index` of this APIC's business?"""
        return index in (MSR_APIC_BASE, MSR_TSC_DEADLINE) or index in _X2APIC_MSRS

    def read_msr(self, index: int, now: int) -> int | None:
        """RDMSR of an MSR that `has_msr` knows: 64 bits, or None for #GP."""
        if index == MSR_APIC_BASE:
            return self.base
        if index == MSR_TSC_DEADLINE:
            self.advance(now)
            return self.timer.tsc_deadline
        number = index - _X2APIC_MSRS.start
        if not self.base & _EXTD or number not in _READABLE:
            return None
        if number == LDR:
            return self._logical_id
        if number == ID:
            return self.number
        if number == ICR:
            return self._registers[ICR_HIGH] << 32 | self._registers[ICR]
        return self._get(number, now)

    def write_msr(self, index: int, value: int, tsc: int, now: int) -> bool:
        """WRMSR of `value` (64 bits) while the time-stamp counter is `tsc`; False for #GP."""
        if index == MSR_APIC_BASE:
            return self._set_base(value)
        if index == MSR_TSC_DEADLINE:
            self.advance(now)
            self.timer.set_deadline(value, tsc, now)
            self.advance(now)
            return True
        number = index - _X2APIC_MSRS.start
        if not self.base & _EXTD:
            return False
        if number == SELF_IPI:
            if value >> 8:
                return False
            self._send(_TO_SELF << 18 | value, 0, wide=True)
            return True
        writable = _WRITABLE.get(number)
        low = value & _ALL if number == ICR else value
        if writable is None or low & ~(writable | _READ_ONLY.get(number, 0)):
            return False
        self._put(number, low & writable, now)
        if number == ICR:
            self._registers[ICR_HIGH] = value >> 32
            self._send(low, value >> 32, wide=True)
        return True

    def _set_base(self, value: int) -> bool:
        """WRMSR to IA32_APIC_BASE (SDM, "x2APIC State Transitions")."""
        if value & ~((1 << _ADDRESS_BITS) - 0x1000 | _EN | _EXTD | _BSP):
            return False
        before, after = self.base & (_EN | _EXTD), value & (_EN | _EXTD)
        if after == _EXTD:
            return False
        if before != after and (before, after) not in (
            (_EN, 0),
            (0, _EN),
            (_EN, _EN | _EXTD),
            (_EN | _EXTD, 0),
        ):
            return False
        self.base = value
        if before and not after:
            self._reset()
        elif before != after:
            self._registers[ICR_HIGH] = 0
        return True

    # Time.

    def next_deadline(self, now: int) -> int | None:
        """When the timer interrupts next; no second one waits after a request not yet taken."""
        entry = self._registers[LVT_TIMER]
        if entry & _MASKED or self._requests >> (entry & 0xFF) & 1:
            return None
        end = self.timer.next_deadline()
        return None if end is None else max(end, now + 1)

    def advance(self, now: int) -> None:
        """Raise the timer's interrupt if it is due."""
        if self.timer.expired(now):
            self._local(LVT_TIMER)
