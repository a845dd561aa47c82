"""Which general registers an instruction reads, and which it overwrites whole."""

from __future__ import annotations

from typing import Final

import iced_x86 as iced

from trapgate.processor.decoded import Operand
from trapgate.sdm.registers import GENERAL

ALL: Final = (1 << len(GENERAL)) - 1
_NUMBERS = {getattr(iced.Register, name): n for n, name in enumerate(GENERAL)}
_ACCESS = iced.OpAccess
_OVERWRITES = frozenset({_ACCESS.WRITE})
_NOTHING = frozenset({_ACCESS.NONE, _ACCESS.NO_MEM_ACCESS})
_WHOLE = 4
"""Bytes: a write of so many, or more, leaves nothing of the register's old value."""


class Uses:
    """Reads and writes of instructions, as masks: bit n for the general register of encoding n.

    What may or may not happen (a conditional move, part of a register) counts as a read, after
    which the old value may matter and before which it does too.
    """

    def __init__(self) -> None:
        self._factory = iced.InstructionInfoFactory()
        self._known: dict[tuple[int, bytes], tuple[int, int]] = {}

    def of(self, guest: Operand, linear: int) -> tuple[int, int]:
        """What the instruction at a linear address reads, and what it overwrites."""
        code = guest.code(linear, 15)
        key = guest.bits, code
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._look(guest.bits, code)
        return found

    def _look(self, bits: int, code: bytes) -> tuple[int, int]:
        instruction = iced.Decoder(bits, code).decode()
        if instruction.is_invalid:
            return ALL, 0
        reads = writes = 0
        for used in self._factory.info(instruction).used_registers():
            number = _NUMBERS.get(iced.RegisterExt.full_register(used.register))
            if number is None or used.access in _NOTHING:
                continue
            whole = iced.RegisterExt.size(used.register) >= _WHOLE
            if used.access in _OVERWRITES and whole:
                writes |= 1 << number
            else:
                reads |= 1 << number
        return reads, writes & ~reads
