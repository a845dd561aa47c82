"""The way of an event through the IDT to its handler, in words: what was looked at, and found.

SDM, "Exception and Interrupt Handling in Protected Mode" and "... in 64-bit Mode", in their order
of checks. Pure: it looks and changes nothing.
"""

from dataclasses import dataclass, field

from trapgate.debug.postmortem.view import Descriptor, View
from trapgate.events.frame import stack_has_room
from trapgate.sdm import cells as f
from trapgate.sdm import state as st
from trapgate.sdm.event_words import event_name, hexadecimal
from trapgate.sdm.interruption import InterruptionType

_MASK = (1 << 64) - 1
_TASK_GATE = 5
_GATES = {
    0: "nothing at all",
    _TASK_GATE: "task gate",
    6: "16-bit interrupt gate",
    7: "16-bit trap gate",
    0xE: "interrupt gate",
    0xF: "trap gate",
}


@dataclass
class Attempt:
    """What a delivery looked at, in order; `wrong` names the obstacle ("" if there is none).

    `problem` is a word for the kind of obstacle, which `remedies` looks for.
    """

    lines: list[str] = field(default_factory=list)
    wrong: str = ""
    problem: str = ""
    gate: int = 0
    selector: int = 0

    def fail(self, problem: str, wrong: str) -> "Attempt":
        """End here."""
        self.problem, self.wrong = problem, wrong
        self.lines.append(wrong)
        return self


def handler_of(view: View, vector: int) -> int | None:
    """The linear address of a vector's handler; None if memory or a task is in its place."""
    base, width = view.cell(f.GUEST_IDTR_BASE), 16 if view.long else 8
    if not view.protected:
        pointer = view.number(base + 4 * vector, 4)
        return None if pointer is None else (pointer >> 12 & 0xFFFF0) + (pointer & 0xFFFF)
    gate = view.number(base + width * vector, width)
    if gate is None or gate >> 40 & 0x1F == _TASK_GATE:
        return None
    if view.long:
        return _offset(gate, gate >> 64)
    segment = descriptor_of(view, gate >> 16 & 0xFFFF)
    start = segment.base if isinstance(segment, Descriptor) else 0
    return start + (_offset(gate, 0) if gate >> 43 & 1 else gate & 0xFFFF) & 0xFFFF_FFFF


def _offset(gate: int, upper: int) -> int:
    return gate & 0xFFFF | gate >> 32 & 0xFFFF_0000 | (upper & 0xFFFF_FFFF) << 32


def _canonical(address: int) -> bool:
    return address >> 47 in (0, (1 << 17) - 1)


def gate_words(gate: int, upper: int, *, long: bool) -> str:
    """Bytes of a gate, decoded."""
    kind = gate >> 40 & 0x1F
    offset = _offset(gate, upper)
    ist = f", IST {gate >> 32 & 7}" if long and gate >> 32 & 7 else ""
    present = "P" if gate >> 47 & 1 else "not present"
    size = 16 if long else 8
    data = (gate | upper << 64).to_bytes(16, "little")[:size].hex(" ")
    return (
        f"bytes {data}: {_GATES.get(kind, f'type {kind}')} to "
        f"{hexadecimal(gate >> 16 & 0xFFFF)}:{hexadecimal(offset)}, DPL {gate >> 45 & 3}, "
        f"{present}{ist}"
    )


def attempt(view: View, vector: int, kind: int, code: int) -> Attempt:
    """Go the way of one event as the processor does."""
    found = Attempt()
    if not view.protected:
        return _real(view, found, vector)
    size = 16 if view.long else 8
    base, limit = view.cell(f.GUEST_IDTR_BASE), view.cell(f.GUEST_IDTR_LIMIT)
    at = base + size * vector
    name = event_name(vector, kind)
    if size * vector + size - 1 > limit:
        return found.fail(
            "idt-limit",
            f"the processor looked for gate {vector} ({name}) of the IDT, bytes "
            f"{hexadecimal(size * vector)} to {hexadecimal(size * vector + size - 1)}, but the "
            "IDT's limit "
            f"is {hexadecimal(limit)} (IDTR base {hexadecimal(base)})",
        )
    data = view.linear(at, size)
    if data is None:
        return found.fail(
            "idt-unmapped",
            f"the processor looked for gate {vector} ({name}) of the IDT at {hexadecimal(at)}, "
            "which is "
            f"not mapped: {view.walk(at)}",
        )
    gate, upper = int.from_bytes(data[:8], "little"), int.from_bytes(data[8:], "little")
    found.gate, found.selector = gate, gate >> 16 & 0xFFFF
    found.lines.append(
        f"the processor found gate {vector} ({name}) of the IDT at {hexadecimal(at)}, "
        f"{gate_words(gate, upper, long=view.long)}"
    )
    kind_of_gate = gate >> 40 & 0x1F
    legal = kind_of_gate in (0xE, 0xF) or (not view.long and kind_of_gate in (5, 6, 7))
    if gate == 0 and upper == 0:
        return found.fail("gate-empty", f"gate {vector} is empty: all its bytes are 0")
    if not legal:
        return found.fail(
            "gate-type",
            f"gate {vector} is not an interrupt, trap or task gate: its type is {kind_of_gate}",
        )
    software = kind in (InterruptionType.SOFTWARE_INTERRUPT, InterruptionType.SOFTWARE_EXCEPTION)
    if software and (gate >> 45 & 3) < view.cpl:
        return found.fail(
            "gate-dpl",
            f"gate {vector} has DPL {gate >> 45 & 3}, and the instruction was executed at CPL "
            f"{view.cpl}",
        )
    if not gate >> 47 & 1:
        return found.fail("gate-absent", f"gate {vector} has P = 0")
    if kind_of_gate == _TASK_GATE:
        return found
    return _segment(view, found, gate, upper, code)


def _real(view: View, found: Attempt, vector: int) -> Attempt:
    limit = view.cell(f.GUEST_IDTR_LIMIT)
    base = view.cell(f.GUEST_IDTR_BASE)
    if 4 * vector + 3 > limit:
        return found.fail(
            "ivt-limit",
            f"the processor looked for vector {vector} in the interrupt-vector table, bytes "
            f"{hexadecimal(4 * vector)} to {hexadecimal(4 * vector + 3)}, but its limit is "
            f"{hexadecimal(limit)} (IDTR base {hexadecimal(base)})",
        )
    entry = view.number(base + 4 * vector, 4) or 0
    found.lines.append(
        f"the processor found vector {vector} at {hexadecimal(base + 4 * vector)}: "
        f"{entry >> 16:04X}:{entry & 0xFFFF:04X}"
    )
    if view.rsp & 0xFFFF in (1, 3, 5):
        return found.fail(
            "real-stack", f"SP is {hexadecimal(view.rsp & 0xFFFF)}: no room for a frame"
        )
    return found


def descriptor_of(view: View, selector: int) -> Descriptor | str:
    """The descriptor that a selector names, or why there is none."""
    if selector & 4:
        if view.cell(f.GUEST_LDTR_ACCESS_RIGHTS) & st.AR_UNUSABLE:
            return "it is in the LDT, and there is none"
        base, limit, table = view.cell(f.GUEST_LDTR_BASE), view.cell(f.GUEST_LDTR_LIMIT), "LDT"
    else:
        base, limit, table = view.cell(f.GUEST_GDTR_BASE), view.cell(f.GUEST_GDTR_LIMIT), "GDT"
    if selector | 7 > limit:
        return f"the {table}'s limit is {hexadecimal(limit)}, so it has no entry {selector >> 3}"
    at = base + (selector & 0xFFF8)
    raw = view.number(at, 8)
    if raw is None:
        return f"the {table}'s entry at {hexadecimal(at)} is not mapped: {view.walk(at)}"
    return Descriptor(selector, raw)


def _segment(view: View, found: Attempt, gate: int, upper: int, code: int) -> Attempt:
    selector = found.selector
    if not selector & 0xFFFC:
        return found.fail("cs-null", "the gate's selector is null")
    shown = hexadecimal(selector)
    descriptor = descriptor_of(view, selector)
    if isinstance(descriptor, str):
        problem = "gdt-unmapped" if "not mapped" in descriptor else "cs-limit"
        return found.fail(problem, f"the gate's selector is {shown}: {descriptor}")
    where = f"the gate's segment {shown} is {descriptor}"
    if not descriptor.is_code:
        return found.fail("cs-not-code", f"{where}: no code segment")
    if descriptor.dpl > view.cpl:
        return found.fail(
            "cs-dpl",
            f"{where}: its DPL is greater than the CPL, {view.cpl}, and handlers cannot be less "
            "privileged",
        )
    if view.long and descriptor.rights & (st.AR_L | st.AR_DB) != st.AR_L:
        return found.fail(
            "cs-not-64",
            f"{where}: not 64-bit code (L = 1, D = 0), which handlers in IA-32e mode must be",
        )
    if not descriptor.rights & st.AR_P:
        return found.fail("cs-absent", f"{where}: P = 0")
    found.lines.append(where)
    conforming = descriptor.rights & st.AR_CONFORMING
    cpl = view.cpl if conforming else descriptor.dpl
    if view.long:
        return _stack_64(view, found, gate, upper, cpl, with_code=code >= 0)
    return _stack_32(view, found, gate, cpl, with_code=code >= 0, limit=descriptor.limit)


def _stack_64(
    view: View, found: Attempt, gate: int, upper: int, cpl: int, *, with_code: bool
) -> Attempt:
    top = view.rsp
    ist = gate >> 32 & 7
    whose = "RSP"
    if ist or cpl != view.cpl:
        offset = ist * 8 + 28 if ist else cpl * 8 + 4
        whose = f"IST{ist} of the TSS" if ist else f"RSP{cpl} of the TSS"
        limit = view.cell(f.GUEST_TR_LIMIT)
        at = view.cell(f.GUEST_TR_BASE) + offset
        if offset + 7 > limit:
            return found.fail(
                "tss-limit",
                f"the new stack is {whose}, byte {hexadecimal(offset)}, but the TSS's limit is "
                f"{hexadecimal(limit)}",
            )
        value = view.number(at, 8)
        if value is None:
            return found.fail(
                "tss-unmapped", f"the new stack is {whose} at {hexadecimal(at)}: {view.walk(at)}"
            )
        top = value
    top &= ~0xF
    count = 6 if with_code else 5
    lowest = (top - 8 * count) & _MASK
    if not (_canonical(lowest) and _canonical((top - 1) & _MASK)):
        return found.fail(
            "stack-canonical", f"the stack at {whose} = {hexadecimal(top)} is not canonical"
        )
    offset = _offset(gate, upper)
    if not _canonical(offset):
        return found.fail(
            "handler-canonical", f"the handler's address {hexadecimal(offset)} is not canonical"
        )
    return _frame(view, found, whose, top, lowest, cpl)


def _stack_32(
    view: View, found: Attempt, gate: int, cpl: int, *, with_code: bool, limit: int
) -> Attempt:
    size = 4 if gate >> 43 & 1 else 2
    count = 4 if with_code else 3
    base, top = view.cell(f.GUEST_SS_BASE), view.rsp & 0xFFFF_FFFF
    whose = "ESP"
    rights, ss_limit = view.cell(f.GUEST_SS_ACCESS_RIGHTS), view.cell(f.GUEST_SS_LIMIT)
    if cpl != view.cpl:
        count += 2
        whose = f"ESP{cpl} of the TSS"
        at = view.cell(f.GUEST_TR_BASE) + cpl * 8 + 4
        tss_limit = view.cell(f.GUEST_TR_LIMIT)
        if cpl * 8 + 9 > tss_limit:
            return found.fail(
                "tss-limit",
                f"the new stack is {whose}, but the TSS's limit is {hexadecimal(tss_limit)}",
            )
        esp, ss = view.number(at, 4), view.number(at + 4, 2)
        if esp is None or ss is None:
            return found.fail(
                "tss-unmapped", f"the new stack is {whose} at {hexadecimal(at)}: {view.walk(at)}"
            )
        stack = descriptor_of(view, ss) if ss & 0xFFFC else "it is null"
        if isinstance(stack, str):
            return found.fail("tss-stack", f"SS{cpl} of the TSS is {hexadecimal(ss)}: {stack}")
        if ss & 3 != cpl or stack.dpl != cpl or stack.rights & 0x1A != 0x12:
            return found.fail(
                "tss-stack",
                f"SS{cpl} of the TSS is {hexadecimal(ss)}, {stack}: no writable data segment of "
                f"ring {cpl}",
            )
        base, top, rights, ss_limit = stack.base, esp, stack.rights, stack.limit
    mask = 0xFFFF_FFFF if rights & st.AR_DB else 0xFFFF
    if not stack_has_room(ss_limit, rights, top & mask, size, count):
        return found.fail(
            "stack-limit",
            f"the stack at {whose} = {hexadecimal(top)} has no room within SS's limit "
            f"{hexadecimal(ss_limit)}",
        )
    offset = gate & 0xFFFF | (gate >> 32 & 0xFFFF_0000 if size == 4 else 0)
    if offset > limit:
        return found.fail(
            "handler-limit",
            f"the handler's offset {hexadecimal(offset)} is beyond its segment's limit",
        )
    lowest = (top - count * size) & mask
    return _frame(view, found, whose, base + (top & mask), base + lowest, cpl)


def _frame(view: View, found: Attempt, whose: str, top: int, lowest: int, cpl: int) -> Attempt:
    for at in ((top - 1) & (1 << 64) - 1, lowest & (1 << 64) - 1):
        walk = view.walk(at, write=True, user=cpl == 3)
        if walk.physical is None:
            return found.fail(
                "stack-unmapped",
                f"the stack at {whose} = {hexadecimal(top)} cannot be written: {walk}",
            )
    found.lines.append(f"the stack at {whose} = {hexadecimal(top)} is there")
    return found
