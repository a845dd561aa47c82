"""What is known of a guest's end, and what the facts show: conditions that `remedies` asks for.

A condition guesses nothing that the facts do not show.
"""

from dataclasses import dataclass

from iced_x86 import Code, Instruction, Mnemonic

from trapgate.debug.postmortem.delivery import Attempt, descriptor_of
from trapgate.debug.postmortem.instruction import is_avx, is_simd, uses_red_zone
from trapgate.debug.postmortem.view import Descriptor, View
from trapgate.sdm import cells as f
from trapgate.sdm import state as st
from trapgate.sdm.event_words import hexadecimal
from trapgate.sdm.interruption import InterruptionType
from trapgate.sdm.vectors import GP, NM, PF, SS, TS, UD

_OF_SHORT_GATES = ("gate-type", "gate-empty", "idt-limit", "cs-limit", "handler-canonical")
_IRET = (Mnemonic.IRET, Mnemonic.IRETD, Mnemonic.IRETQ)


@dataclass(frozen=True)
class Fault:
    """A row of the journal: vector, interruption type, error code (-1: none), RIP, CR2, depth."""

    vector: int
    kind: int
    code: int
    rip: int
    address: int
    depth: int = 0
    injected: bool = False


@dataclass(frozen=True)
class Facts:
    """A guest's end: the chain of faults with the way of each, and what came before."""

    view: View
    chain: tuple[Fault, ...]
    attempts: tuple[Attempt, ...]
    before: tuple[Fault, ...]
    following: tuple[Instruction, ...]

    @property
    def first(self) -> Fault:
        """The first fault of the chain."""
        return self.chain[0]

    @property
    def problem(self) -> str:
        """The obstacle of the first delivery that failed."""
        return self.attempts[0].problem if self.attempts else ""

    @property
    def instruction(self) -> Instruction | None:
        """The one at RIP."""
        return self.following[0] if self.following else None

    def is_at(self, *mnemonics: int) -> bool:
        """Whether the instruction at RIP is one of these."""
        return self.instruction is not None and self.instruction.mnemonic in mnemonics


def code_segments(view: View) -> list[int]:
    """Selectors of code segments in the GDT that could run handlers."""
    found = []
    limit = min(view.cell(f.GUEST_GDTR_LIMIT), 0xFFF)
    for selector in range(8, limit, 8):
        descriptor = descriptor_of(view, selector)
        if isinstance(descriptor, Descriptor) and descriptor.is_code and descriptor.dpl == 0:
            long = descriptor.rights & (st.AR_L | st.AR_DB) == st.AR_L
            if descriptor.rights & st.AR_P and long == view.long:
                found.append(selector)
    return found


def irq_as_exception(facts: Facts) -> bool:
    """Whether an interrupt of the 8259s came in at an exception's vector."""
    events = (*facts.before, *facts.chain)
    return any(
        event.kind == InterruptionType.EXTERNAL_INTERRUPT and 8 <= event.vector <= 15
        for event in events
    )


def error_code_left(facts: Facts) -> bool:
    """IRET finds the error code where RIP should be."""
    if not facts.is_at(*_IRET) or not facts.before:
        return False
    last = facts.before[-1]
    word = {16: 2, 32: 4, 64: 8}[facts.view.bits]
    at = facts.view.rsp
    return (
        last.code >= 0
        and facts.view.number(at, word) == last.code
        and facts.view.number(at + word, word) == last.rip & (1 << 8 * word) - 1
    )


def error_code_missed(facts: Facts) -> bool:
    """IRET finds CS where RIP should be: one word too many was dropped."""
    if not facts.is_at(*_IRET) or not facts.before:
        return False
    last = facts.before[-1]
    word = {16: 2, 32: 4, 64: 8}[facts.view.bits]
    below = facts.view.number(facts.view.rsp - word, word)
    return last.code < 0 and below == last.rip & (1 << 8 * word) - 1


def simd(facts: Facts) -> bool:
    """Whether SSE is off, and that is the fault."""
    if facts.instruction is None or facts.first.vector not in (UD, NM):
        return False
    off = not facts.view.cell(f.GUEST_CR4) & st.CR4_OSFXSR
    emulated = facts.view.cell(f.GUEST_CR0) & (st.CR0_EM | st.CR0_TS)
    return is_simd(facts.instruction) and bool(off or emulated)


def avx(facts: Facts) -> bool:
    """Whether AVX is not there."""
    return facts.instruction is not None and facts.first.vector == UD and is_avx(facts.instruction)


def short_gates(facts: Facts) -> bool:
    """In IA-32e mode: gates of 8 bytes, as 32-bit kernels have them."""
    if not facts.view.long or facts.problem not in _OF_SHORT_GATES:
        return False
    base = facts.view.cell(f.GUEST_IDTR_BASE)
    kinds = [(facts.view.number(base + 8 * n, 8) or 0) >> 40 & 0x9F for n in range(8)]
    return all(kind in (0x8E, 0x8F) for kind in kinds)


def paging_just_on(facts: Facts) -> bool:
    """Whether the instruction itself is not mapped."""
    first = facts.first
    at_rip = first.vector == PF and first.address == facts.view.code_address
    return at_rip and facts.view.walk(facts.view.code_address).physical is None


def stack_grew(facts: Facts) -> bool:
    """Whether the stack is not mapped, and nothing repeats."""
    repeats = [event for event in facts.before if event.vector == facts.first.vector]
    return facts.problem == "stack-unmapped" and len(repeats) < 3


def repeats(facts: Facts) -> bool:
    """Whether the same event came again and again at this instruction."""
    return len([e for e in facts.before if e.rip == facts.first.rip and e.vector < 32]) >= 3


def red_zone(facts: Facts) -> bool:
    """Whether 64-bit code uses memory below RSP after an event in the same ring."""
    interrupted = any(event.depth == 0 for event in facts.before)
    return facts.view.bits == 64 and interrupted and any(map(uses_red_zone, facts.following))


def reserved_xd(facts: Facts) -> bool:
    """Whether XD is set in an entry while EFER.NXE is 0."""
    first = facts.first
    return (
        first.vector == PF
        and bool(first.code & 8)
        and "EFER.NXE" in facts.view.walk(first.address).problem
    )


def to_user(facts: Facts) -> bool:
    """Whether user mode met a supervisor page."""
    first = facts.first
    return first.vector == PF and first.code >= 0 and first.code & 5 == 5


def selector_fault(facts: Facts) -> bool:
    """Whether the fault names a selector of the GDT or LDT."""
    return (
        facts.first.vector in (GP, TS, SS, 11)
        and facts.first.code & 0xFFF8 > 0
        and not facts.first.code & 2
    )


def set_reserved(facts: Facts) -> bool:
    """Whether a MOV to a control register was refused."""
    names = {Code.MOV_CR_R32, Code.MOV_CR_R64}
    return (
        facts.first.vector == GP
        and facts.instruction is not None
        and facts.instruction.code in names
    )


def privileged(facts: Facts) -> bool:
    """Whether ring 3 was refused an instruction or a port."""
    return facts.first.vector == GP and facts.first.code == 0 and facts.view.cpl == 3


def not_canonical(facts: Facts) -> bool:
    """Whether the memory operand is not canonical."""
    found = facts.instruction
    if facts.view.bits != 64 or found is None or facts.first.vector not in (GP, SS):
        return False
    return found.memory_base != 0 and bool(bad_operand(facts.view, found))


def bad_operand(view: View, instruction: Instruction) -> str:
    """The instruction's address if it is not canonical, in words."""
    from iced_x86 import Register, RegisterExt

    total = instruction.memory_displacement
    for register, scale in (
        (instruction.memory_base, 1),
        (instruction.memory_index, instruction.memory_index_scale),
    ):
        if register in (Register.NONE, Register.RIP):
            continue
        total += view.general(RegisterExt.number(register)) * scale
    total &= (1 << 64) - 1
    return "" if total >> 47 in (0, (1 << 17) - 1) else hexadecimal(total)


def divide(facts: Facts) -> bool:
    """Whether a division failed."""
    return facts.first.vector == 0


def no_idt(facts: Facts) -> bool:
    """Whether there is no IDT at all."""
    return facts.problem == "idt-limit" and facts.view.cell(f.GUEST_IDTR_LIMIT) < 8
