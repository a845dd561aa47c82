"""The core alone as a machine for the oracle's cases: VM entry and delivery, no engine.

It executes no instruction. What a guest's instruction would have raised has to be
handed in; a handler's VMCALL is recognised by its bytes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.conformance.oracle_cases import (
    BASE,
    MEMORY,
    VMCALL,
    VMCALL_BYTES,
    Case,
    Outcome,
    build,
)
from trapgate.events import delivery
from trapgate.events.exits import vm_exit
from trapgate.events.journal import HEAD_CAPACITY, HEAD_LENGTH, ROW_WIDTH
from trapgate.paging import walk as paging
from trapgate.sdm import cells, registers
from trapgate.vmx import entry

CELL = {name: index for index, name in enumerate(cells.ENCODINGS)}
REGISTER = {name.lower(): index for index, name in enumerate(registers.NAMES)}
_BYTES = (2, 8, 4, 8)
"""Width of a VMCS field by bits 14:13 of its encoding."""


def signed(value: int) -> int:
    """An unsigned 64-bit value as the two's complement that cells hold."""
    return value - (1 << 64) if value >> 63 else value


@dataclass(frozen=True)
class Event:
    """What an instruction raises, and the state it has left behind by then.

    `moved` is how far RIP is from where the case starts; `changed` names VMCS fields and
    registers (as in `out`) that the instruction has already changed.
    """

    vector: int
    kind: int
    error_code: int
    address: int
    length: int
    moved: int = 0
    rsp: int | None = None
    rcx: int | None = None


class CoreMachine:
    """Runs cases on the core, interpreted or compiled."""

    def __init__(self, *, compile_it: bool) -> None:
        self.memory = np.zeros(MEMORY // 8, np.int64)
        self._bytes = self.memory.view(np.uint8)
        self.rows = np.zeros((64, ROW_WIDTH), np.int64)
        self.head = np.zeros(HEAD_LENGTH, np.int64)
        self.head[HEAD_CAPACITY] = len(self.rows)
        self._enter: Callable[..., Any] = entry.enter
        self._raise_event: Callable[..., Any] = delivery.raise_event
        self._translate: Callable[..., Any] = paging.translate
        if compile_it:
            from trapgate.compiler.program import alone

            self._enter = alone(entry.enter)
            self._raise_event = alone(delivery.raise_event)
            self._translate = alone(paging.translate)

    def run(self, case: Case, event: Event | None = None) -> Outcome:
        """Enter the guest of `case`, raise `event` in it, and go on to the first VM exit."""
        setup = build(case)
        v = np.zeros(len(CELL), np.int64)
        r = np.zeros(len(REGISTER), np.int64)
        for name, value in setup.fields.items():
            v[CELL[name]] = signed(value)
        for name, value in setup.registers.items():
            r[REGISTER[name]] = signed(value)
        self._bytes[BASE : BASE + len(setup.image)] = np.frombuffer(setup.image, np.uint8)

        state = v, r, self.memory, self.rows, self.head
        result = self._enter(*state)
        if event is not None:
            assert result == entry.RUNS, "the guest never got to its instruction"
            v[cells.GUEST_RIP] += event.moved
            if event.rsp is not None:
                v[cells.GUEST_RSP] = signed(event.rsp)
            if event.rcx is not None:
                r[registers.RCX] = event.rcx
            result = self._raise_event(
                *state,
                event.vector,
                event.kind,
                event.error_code,
                signed(event.address),
                event.length,
                0,
            )
        for _ in range(4):
            if result != entry.RUNS:
                break
            result = self._fetch(v, state)
        assert result != entry.RUNS, "handlers never stop faulting"

        def field(name: str) -> int:
            width = 8 * _BYTES[cells.ENCODINGS[name] >> 13]
            return int(v[CELL[name]]) & ((1 << width) - 1)

        return Outcome(
            int(v[cells.VM_INSTRUCTION_ERROR]) if result == entry.FAILED else None,
            field,
            lambda name: int(r[REGISTER[name]]) & ((1 << 64) - 1),
            lambda address, count: bytes(self._bytes[address : address + count]),
        )

    def _fetch(self, v: Any, state: tuple[Any, ...]) -> int:
        """Fetch at the handler that has been entered: a VMCALL, or a page fault."""
        rip = int(v[cells.GUEST_RIP])
        user = int(v[cells.GUEST_SS_ACCESS_RIGHTS]) >> 5 & 3 == 3
        physical, error = self._translate(v, self.memory, rip, paging.FETCH, int(user))
        if error >= 0:
            result: int = self._raise_event(*state, 14, 3, error, rip, 0, 0)
            return result
        assert bytes(self._bytes[physical : physical + 3]) == VMCALL_BYTES
        vm_exit(v, VMCALL, 0, 3)
        return entry.EXITED
