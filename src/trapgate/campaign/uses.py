"""Which general registers and flags an instruction reads, and which it overwrites whole."""

from __future__ import annotations

from typing import Final

import iced_x86 as iced

from trapgate.processor.operand import Operand
from trapgate.sdm.registers import GENERAL

FLAGS: Final = len(GENERAL)
"""Of a mask: from this bit on the bits of RFLAGS, up to the last that anything tells of."""
_KNOWN_FLAGS = {
    getattr(iced.RflagsBits, name): 1 << FLAGS + bit
    for name, bit in {"CF": 0, "PF": 2, "AF": 4, "ZF": 6, "SF": 7, "DF": 10, "OF": 11}.items()
}
_STATUS = sum(_KNOWN_FLAGS.values())
MOST_FLAGS: Final = 32
"""Bits of RFLAGS that masks have; the last one stands for all above."""
_CONTROL = ((1 << MOST_FLAGS) - 1 << FLAGS) & ~_STATUS
"""Flags that the processor looks at with every instruction, or that are reserved."""
ALL: Final = (1 << FLAGS + MOST_FLAGS) - 1
_NUMBERS = {getattr(iced.Register, name): n for n, name in enumerate(GENERAL)}
_ACCESS = iced.OpAccess
_OVERWRITES = frozenset({_ACCESS.WRITE})
_NOTHING = frozenset({_ACCESS.NONE, _ACCESS.NO_MEM_ACCESS})
_WHOLE = 4
"""Bytes: a write of so many, or more, leaves nothing of the register's old value."""


class Uses:
    """Reads and writes of instructions, as masks: bit n for the general register of encoding n.

    What may or may not happen (a conditional move, part of a register, a shift by CL) counts as a
    read, after which the old value may matter and before which it does too. So do flags that are
    undefined afterwards. Flags that are not condition codes, and not DF, are read by everything.
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
        used, overwritten = _flags(instruction)
        return reads | used | _CONTROL, writes & ~reads | overwritten


def _flags(instruction: iced.Instruction) -> tuple[int, int]:
    """What an instruction reads of the flags, and what it overwrites."""
    if instruction.flow_control not in _PLAIN or instruction.is_privileged:
        return _STATUS, 0
    if instruction.mnemonic in _ALL_FLAGS:
        return _STATUS, 0
    read = instruction.rflags_read | instruction.rflags_undefined
    written = instruction.rflags_written | instruction.rflags_cleared | instruction.rflags_set
    if (
        instruction.mnemonic in _SHIFTS
        or instruction.has_rep_prefix
        or instruction.has_repne_prefix
    ):
        read |= written
    used, overwritten = (
        sum(mask for bit, mask in _KNOWN_FLAGS.items() if flags & bit) for flags in (read, written)
    )
    return used, overwritten & ~used


_PLAIN = frozenset(
    getattr(iced.FlowControl, name)
    for name in (
        *("NEXT", "UNCONDITIONAL_BRANCH", "INDIRECT_BRANCH", "CONDITIONAL_BRANCH"),
        *("RETURN", "CALL", "INDIRECT_CALL"),
    )
)
"""What leads to the next instruction, or to another one, and to nothing else."""
_ALL_FLAGS = frozenset(
    getattr(iced.Mnemonic, name)
    for name in (
        *("PUSHF", "PUSHFD", "PUSHFQ", "IRET", "IRETD", "IRETQ", "RETF", "SYSCALL", "SYSENTER"),
        *("SYSRET", "SYSEXIT", "RSM"),
    )
)
"""What stores or loads RFLAGS as a whole, or may."""
_SHIFTS = frozenset(
    getattr(iced.Mnemonic, name)
    for name in ("ROL", "ROR", "RCL", "RCR", "SHL", "SHR", "SAL", "SAR", "SHLD", "SHRD")
)
"""What writes flags only if its count is not 0."""
