"""A guest made of arrays for tests of the core: descriptor tables in memory, no engine.

Flat segments, a GDT at 1000H, an IDT at 2000H, a TSS at 3000H, stacks below 5000H (ring 0),
6000H (the TSS's) and 7000H (an IST's); without paging unless a test builds tables.
"""

from functools import cache
from typing import Any

import numpy as np

from trapgate.compiler.dialect import Cells, Memory, Rows
from trapgate.events.delivery import raise_event
from trapgate.events.journal import HEAD_CAPACITY, HEAD_LENGTH, HEAD_USED, ROW_WIDTH
from trapgate.sdm import cells, controls, registers, state

SIZE = 0x40000
GDT, IDT, TSS = 0x1000, 0x2000, 0x3000
STACK, TSS_STACK, IST_STACK = 0x5000, 0x6000, 0x7000
HANDLERS = 0x8000
"""The handler of vector n starts at HANDLERS + 16 * n."""
CODE = 0xA000

CODE0, DATA0, CODE3, DATA3, BUSY_TSS = 0x08, 0x10, 0x1B, 0x23, 0x28
CONFORMING, FREE_TSS, CODE16_TSS, FRESH_CODE, LONG0, LONG3 = 0x30, 0x38, 0x40, 0x48, 0x50, 0x5B
GDT_LIMIT = 0x67

_CELL = {name: index for index, name in enumerate(cells.ENCODINGS)}
_REGISTER = {name.lower(): index for index, name in enumerate(registers.NAMES)}


def signed(value: int) -> int:
    return (value & (1 << 64) - 1 ^ 1 << 63) - (1 << 63)


def descriptor(access: int, *, base: int = 0, limit: int = 0xFFFFF, flags: int = 0xC) -> int:
    low = limit & 0xFFFF | (base & 0xFF_FFFF) << 16 | access << 40
    return low | (limit >> 16) << 48 | flags << 52 | (base >> 24) << 56


def gate(
    offset: int, selector: int, *, access: int = 0xEE, ist: int = 0, long: bool = False
) -> bytes:
    low = offset & 0xFFFF | (offset >> 16 & 0xFFFF) << 48
    low |= selector << 16 | ist << 32 | access << 40
    return low.to_bytes(8, "little") + (offset >> 32).to_bytes(8, "little") * long


@cache
def _good_gates(long: bool) -> bytes:
    """Interrupt gates of DPL 3 for all vectors."""
    code = LONG0 if long else CODE0
    return b"".join(gate(HANDLERS + 16 * vector, code, long=long) for vector in range(256))


class Guest:
    """The arrays of one guest, its memory as bytes, and short ways to set and ask."""

    def __init__(self, *, bits: int = 32, ring: int = 0) -> None:
        self.v: Cells = np.zeros(len(_CELL), np.int64)
        self.r: Cells = np.zeros(len(_REGISTER), np.int64)
        self.mem: Memory = np.zeros(SIZE // 8, np.int64)
        self.rows: Rows = np.zeros((32, ROW_WIDTH), np.int64)
        self.head: Cells = np.zeros(HEAD_LENGTH, np.int64)
        self.head[HEAD_CAPACITY] = len(self.rows)
        self.ram = self.mem.view(np.uint8)
        self.long = bits == 64
        table = {
            CODE0: descriptor(0x9B),
            DATA0: descriptor(0x93),
            CODE3 & ~3: descriptor(0xFB),
            DATA3 & ~3: descriptor(0xF3),
            BUSY_TSS: descriptor(0x8B, base=TSS, limit=0x67, flags=0),
            CONFORMING: descriptor(0x9F),
            FREE_TSS: descriptor(0x89, base=TSS, limit=0x67, flags=0),
            CODE16_TSS: descriptor(0x81, base=TSS, limit=0x2A, flags=0),
            FRESH_CODE: descriptor(0x9A),
            LONG0: descriptor(0x9B, flags=0xA),
            LONG3 & ~3: descriptor(0xFB, flags=0xA),
        }
        for selector, value in table.items():
            self.write(GDT + selector, value.to_bytes(8, "little"))
        self.write(IDT, _good_gates(self.long))
        self.write(TSS + 4, TSS_STACK.to_bytes(8 if self.long else 4, "little"))
        if self.long:
            self.write(TSS + 36, IST_STACK.to_bytes(8, "little"))
        else:
            self.write(TSS + 8, DATA0.to_bytes(2, "little"))
        self._reset(bits, ring)

    def _reset(self, bits: int, ring: int) -> None:
        long = bits == 64
        self.set(
            PIN_BASED_CONTROLS=controls.PIN_ALLOWED_0,
            PRIMARY_PROCESSOR_BASED_CONTROLS=controls.PRIMARY_ALLOWED_0
            | controls.PRIMARY_SECONDARY_CONTROLS,
            SECONDARY_PROCESSOR_BASED_CONTROLS=controls.SECONDARY_UNRESTRICTED_GUEST,
            VM_EXIT_CONTROLS=controls.EXIT_ALLOWED_0,
            VM_ENTRY_CONTROLS=controls.ENTRY_ALLOWED_0
            | controls.ENTRY_LOAD_EFER
            | controls.ENTRY_LOAD_DEBUG_CONTROLS
            | long * controls.ENTRY_IA32E_MODE_GUEST,
            VMCS_LINK_POINTER=-1,
            GUEST_CR0=state.CR0_PE | state.CR0_NE | long * state.CR0_PG,
            GUEST_CR4=long * state.CR4_PAE,
            GUEST_IA32_EFER=long * (state.EFER_LMA | state.EFER_LME),
            GUEST_RFLAGS=2,
            GUEST_RIP=CODE,
            GUEST_RSP=STACK,
            GUEST_DR7=state.DR7_FIXED_1,
            GUEST_GDTR_BASE=GDT,
            GUEST_GDTR_LIMIT=GDT_LIMIT,
            GUEST_IDTR_BASE=IDT,
            GUEST_IDTR_LIMIT=0xFFF if long else 0x7FF,
            GUEST_TR_SELECTOR=BUSY_TSS,
            GUEST_TR_BASE=TSS,
            GUEST_TR_LIMIT=0x67,
            GUEST_TR_ACCESS_RIGHTS=0x8B,
            GUEST_LDTR_ACCESS_RIGHTS=state.AR_UNUSABLE,
        )
        for name in ("ES", "CS", "SS", "DS", "FS", "GS"):
            self.segment(name, DATA3 if ring else DATA0, 0xC093 | ring << 5)
        if long:
            self.segment("CS", LONG3 if ring else LONG0, 0xA09B | ring << 5)
            # Page tables at 10000H: 2-MByte pages, identity, for everyone.
            self.write(0x10000, (0x11027).to_bytes(8, "little"))
            self.write(0x11000, (0x12027).to_bytes(8, "little"))
            self.write(0x12000, (0x000E7).to_bytes(8, "little"))
            self.set(GUEST_CR3=0x10000)
        else:
            self.segment("CS", CODE3 if ring else CODE0, 0xC09B | ring << 5)
        self.r[registers.DR6] = state.DR6_FIXED_1

    def page(self, *, absent: tuple[int, ...] = (), read_only: tuple[int, ...] = ()) -> None:
        """Turn 32-bit paging on: the first 64 pages are everyone's but for these, CR0.WP is set."""
        self.write(0x20000, (0x21027).to_bytes(4, "little"))
        for n in range(64):
            rights = 0x60 if n in absent else 0x65 if n in read_only else 0x67
            self.write(0x21000 + 4 * n, (n << 12 | rights).to_bytes(4, "little"))
        self.set(GUEST_CR3=0x20000, GUEST_CR0=self["GUEST_CR0"] | state.CR0_PG | state.CR0_WP)

    def segment(
        self, name: str, selector: int, rights: int, *, base: int = 0, limit: int = 0xFFFF_FFFF
    ) -> None:
        self.set(
            **{
                f"GUEST_{name}_SELECTOR": selector,
                f"GUEST_{name}_ACCESS_RIGHTS": rights,
                f"GUEST_{name}_BASE": base,
                f"GUEST_{name}_LIMIT": limit,
            }
        )

    def gate(self, vector: int, *, selector: int | None = None, **form: Any) -> None:
        """A gate for `vector`; by default a good interrupt gate of DPL 3."""
        code = (LONG0 if self.long else CODE0) if selector is None else selector
        made = gate(form.pop("offset", HANDLERS + 16 * vector), code, long=self.long, **form)
        self.write(IDT + vector * len(made), made)

    def write(self, address: int, data: bytes) -> None:
        self.ram[address : address + len(data)] = np.frombuffer(data, np.uint8)

    def words(self, address: int, count: int, size: int = 4) -> list[int]:
        data = bytes(self.ram[address : address + count * size])
        return [int.from_bytes(data[n : n + size], "little") for n in range(0, len(data), size)]

    def set(self, **fields: int) -> None:
        for name, value in fields.items():
            if name in _CELL:
                self.v[_CELL[name]] = signed(value)
            else:
                self.r[_REGISTER[name]] = signed(value)

    def __getitem__(self, name: str) -> int:
        return int(self.v[_CELL[name]] if name in _CELL else self.r[_REGISTER[name]])

    def raise_event(
        self,
        vector: int,
        kind: int = 3,
        error_code: int = -1,
        *,
        address: int = 0,
        length: int = 0,
        injected: int = 0,
    ) -> int:
        result: int = raise_event(
            self.v,
            self.r,
            self.mem,
            self.rows,
            self.head,
            vector,
            kind,
            error_code,
            address,
            length,
            injected,
        )
        return result

    def frame(self, count: int, size: int = 4) -> list[int]:
        """The top `count` words of the stack, which is flat."""
        return self.words(self["GUEST_RSP"], count, size)

    def journal(self) -> list[list[int]]:
        """The rows written so far."""
        return [[int(x) for x in row] for row in self.rows[: int(self.head[HEAD_USED])]]

    def interruption(self) -> tuple[int, int, int | None] | None:
        """The (vector, type, error code) that the last exit reports."""
        return self._event("VM_EXIT_INTERRUPTION_INFORMATION", "VM_EXIT_INTERRUPTION_ERROR_CODE")

    def idt_vectoring(self) -> tuple[int, int, int | None] | None:
        """The (vector, type, error code) of what was being delivered at the last exit."""
        return self._event("IDT_VECTORING_INFORMATION", "IDT_VECTORING_ERROR_CODE")

    def _event(self, name: str, code: str) -> tuple[int, int, int | None] | None:
        info = self[name]
        if not info >> 31 & 1:
            return None
        return info & 0xFF, info >> 8 & 7, self[code] if info >> 11 & 1 else None
