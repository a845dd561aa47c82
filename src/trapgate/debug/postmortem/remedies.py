"""What the well-known mistakes need: from the facts of a guest's end to the likeliest remedies.

Two tables of conditions and sentences, the surest first: what the first fault needs, and what its
delivery.
"""

from collections.abc import Callable

from trapgate.debug.postmortem.facts import (
    Facts,
    avx,
    bad_operand,
    code_segments,
    divide,
    error_code_left,
    error_code_missed,
    irq_as_exception,
    no_idt,
    not_canonical,
    paging_just_on,
    privileged,
    red_zone,
    repeats,
    reserved_xd,
    selector_fault,
    set_reserved,
    short_gates,
    simd,
    stack_grew,
    to_user,
)
from trapgate.sdm.event_words import hexadecimal

Condition = Callable[[Facts], bool]
Row = tuple[Condition, Callable[[Facts], str]]


def _is(*problems: str) -> Condition:
    return lambda facts: facts.problem in problems


def _segments(facts: Facts) -> str:
    found = code_segments(facts.view)
    if not found:
        return (
            "the GDT has no code segment that handlers could run in; load your own with LGDT first"
        )
    return f"the GDT's code segment for handlers is {', '.join(map(hexadecimal, found))}"


def _size(facts: Facts) -> str:
    return "16 bytes a gate" if facts.view.long else "8 bytes a gate"


_CAUSES: tuple[Row, ...] = (
    (
        irq_as_exception,
        lambda _: (
            "interrupts are on before the PIC is remapped, so IRQ 0 (the timer) arrives as vector "
            "8, which looks like #DF, and without an error code: remap the 8259s to 20H and 28H, "
            "or mask "
            "them, before STI"
        ),
    ),
    (
        error_code_left,
        lambda facts: (
            "the handler of vector "
            f"{facts.before[-1].vector} returns without dropping the error code that the "
            "processor pushed: "
            f"add {'8 to RSP before IRETQ' if facts.view.bits == 64 else '4 to ESP before IRET'}"
        ),
    ),
    (
        error_code_missed,
        lambda facts: (
            f"the handler of vector {facts.before[-1].vector} drops an error code, but that "
            "vector has none: push a dummy code, or do not drop one"
        ),
    ),
    (
        simd,
        lambda _: (
            "SSE is off: set CR4.OSFXSR (bit 9) and OSXMMEXCPT (bit 10), clear CR0.EM and "
            "CR0.TS, set "
            "CR0.MP; or compile the kernel with -mno-sse -mgeneral-regs-only"
        ),
    ),
    (
        avx,
        lambda _: (
            "AVX is not there: compile without it, or set CR4.OSXSAVE and XCR0 on a processor "
            "that has it"
        ),
    ),
    (
        reserved_xd,
        lambda _: "a page-table entry has XD (bit 63) set while EFER.NXE is 0: set EFER.NXE first",
    ),
    (
        paging_just_on,
        lambda _: (
            "the instruction pointer itself is not mapped: the page tables that were just put in "
            "force must map the code that does it (identity map it, or jump to the high half "
            "from an "
            "identity-mapped page), and the stack and the GDT with it"
        ),
    ),
    (
        not_canonical,
        lambda facts: (
            f"the instruction's address {bad_operand(facts.view, facts.following[0])} is not "
            "canonical: bits 63:48 must equal bit 47"
        ),
    ),
    (
        red_zone,
        lambda _: (
            "the code keeps data below RSP (the red zone), and an event at the same stack "
            "overwrote "
            "it: compile the kernel with -mno-red-zone"
        ),
    ),
    (
        to_user,
        lambda _: (
            "user code touched the supervisor's page: every entry on the way needs U/S = 1, not "
            "only "
            "the last"
        ),
    ),
    (
        selector_fault,
        lambda _: (
            "the selector does not fit the GDT that is loaded: reload CS with a far jump and the "
            "data "
            "segments after LGDT"
        ),
    ),
    (
        set_reserved,
        lambda _: (
            "the control register got a bit that this processor does not have, or a combination "
            "that "
            "is not allowed (PG without PE; LME without PAE): look at CPUID first"
        ),
    ),
    (
        privileged,
        lambda _: (
            "the instruction is privileged or its port is not in the I/O bitmap: ring 3 may not"
        ),
    ),
    (
        divide,
        lambda _: (
            "the divisor is 0, or the quotient does not fit its register: clear EDX before DIV"
        ),
    ),
)

_OBSTACLES: tuple[Row, ...] = (
    (
        short_gates,
        lambda _: (
            "the IDT has gates of 8 bytes, as in 32-bit mode: in IA-32e mode each has 16 bytes"
        ),
    ),
    (
        no_idt,
        lambda facts: (
            "no IDT was loaded before the first exception: build one ("
            f"{_size(facts)}, 256 of them) and LIDT it before anything can fault"
        ),
    ),
    (
        _is("idt-limit"),
        lambda facts: (
            f"the IDT's limit is too small: it is its size in bytes less one ({_size(facts)})"
        ),
    ),
    (
        _is("ivt-limit"),
        lambda _: (
            "in real mode the interrupt-vector table must be there: LIDT with base 0 and limit "
            "3FFH "
            "before going back to real mode"
        ),
    ),
    (
        _is("idt-unmapped"),
        lambda _: (
            "map the IDT in the page tables, at the address that LIDT was given; after a move to "
            "the "
            "high half LIDT again with the new address"
        ),
    ),
    (
        _is("gdt-unmapped"),
        lambda _: (
            "map the GDT in the page tables, and LGDT again with its new address after a move to "
            "the "
            "high half: descriptors are read at every delivery"
        ),
    ),
    (
        _is("gate-empty", "gate-absent"),
        lambda facts: (
            f"install a handler for vector {_failed_vector(facts)} (and for #DF, #GP and #PF): "
            "a gate needs type EH or FH, P = 1, a code selector and the handler's address"
        ),
    ),
    (
        _is("gate-type"),
        lambda _: (
            "a gate's byte 5 must be 8EH (interrupt gate, ring 0) or 8FH (trap gate), EEH for "
            "INT n "
            "from ring 3"
        ),
    ),
    (
        _is("gate-dpl"),
        lambda _: "give the gate DPL 3 (byte 5 EEH) if ring 3 may use INT n with it",
    ),
    (
        _is("cs-null", "cs-limit", "cs-not-code", "cs-not-64", "cs-absent", "cs-dpl"),
        lambda facts: (
            f"the gate names the code segment of another GDT: {_segments(facts)}; write that into "
            "the gates"
        ),
    ),
    (
        _is("tss-limit", "tss-unmapped", "tss-stack"),
        lambda _: (
            "an event in ring 3 or a gate with an IST takes its stack from the TSS: make one of "
            "68H "
            "bytes with RSP0 (SS0 and ESP0), a descriptor with limit 67H, and LTR"
        ),
    ),
    (
        repeats,
        lambda facts: (
            f"vector {facts.first.vector} came again and again at the same instruction until the "
            "stack was used up: its handler does not mend the cause, or faults itself before it can"
        ),
    ),
    (
        stack_grew,
        lambda facts: (
            "the stack is not mapped: RSP was never set, the stack overflowed into what lies "
            f"below it ({hexadecimal(facts.view.rsp)}), or the new page tables leave it out; "
            "give #DF "
            "a stack of its own (an IST, or a task gate)"
        ),
    ),
    (
        _is("stack-canonical", "stack-limit", "real-stack"),
        lambda _: (
            "RSP does not point to a stack: it was overwritten or never set before the first event"
        ),
    ),
    (
        _is("handler-canonical", "handler-limit"),
        lambda _: (
            "the gate's offset was put together wrongly: bits 15:0 in bytes 0-1, 31:16 in bytes "
            "6-7, "
            "63:32 in bytes 8-11"
        ),
    ),
)


def _failed_vector(facts: Facts) -> int:
    return facts.chain[0].vector


def remedies(facts: Facts) -> tuple[str, ...]:
    """At most one for the first fault and one for its delivery, the surest of each."""
    found = []
    for table in (_CAUSES, _OBSTACLES):
        found += [words(facts) for holds, words in table if holds(facts)][:1]
    return tuple(found)
