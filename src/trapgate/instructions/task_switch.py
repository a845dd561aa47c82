"""Task switches by JMP, CALL and IRET: their checks, and the exit that they always are.

SDM, "Treatment of Task Switches". Those by task gates in the IDT are `idt`'s.
"""

from trapgate.compiler.dialect import Cells, Memory
from trapgate.events.descriptors import NO_FAULT, read_descriptor
from trapgate.events.idt import TASK_GATE, check_tss
from trapgate.instructions import intercepts as ix
from trapgate.operands.mode import privilege_level
from trapgate.paging.walk import REFUSED_GP, read_system
from trapgate.sdm import cells as f
from trapgate.sdm.vectors import GP, NP, PF, TS

_TASK_GATE_TYPE = 5

Fault = tuple[int, int, int]
"""A vector, its error code, and the linear address of a page fault."""


def jump_or_call(v: Cells, mem: Memory, selector: int, source: int, length: int) -> Fault | None:
    """A far JMP or CALL to `selector`, that of a TSS or a task gate; None if it exits.

    `source` is `intercepts.TASK_BY_JMP` or TASK_BY_CALL, `length` the instruction's in bytes.
    """
    named = selector & 0xFFFC
    fault, error, linear, descriptor = read_descriptor(v, mem, selector, GP, named)
    if fault != NO_FAULT:
        return fault, error, linear
    if (descriptor >> 45) & 3 < max(int(privilege_level(v)), selector & 3):
        return GP, named, 0
    if (descriptor >> 40) & 0x1F == _TASK_GATE_TYPE:
        if descriptor & 1 << 47 == 0:
            return NP, named, 0
        selector = (descriptor >> 16) & 0xFFFF
    return _attempt(v, mem, selector, source, length)


def return_to_previous_task(v: Cells, mem: Memory, length: int) -> Fault | None:
    """IRET with RFLAGS.NT, to the task that the current TSS names; None if it exits."""
    link, error, address = read_system(v, mem, v[f.GUEST_TR_BASE], 2, REFUSED_GP)
    if error >= 0:
        return PF, error, address
    return _attempt(v, mem, link, ix.TASK_BY_IRET, length)


def _attempt(v: Cells, mem: Memory, selector: int, source: int, length: int) -> Fault | None:
    returning = source == ix.TASK_BY_IRET
    vector, code, address = check_tss(
        v, mem, selector, 0, 2 if returning else 0, TS if returning else GP
    )
    if vector != TASK_GATE:
        return vector, code, address
    ix.intercept_task_switch(v, selector, source, length)
    return None
