"""Numbers and events in words, as the SDM writes them: 80000021H, #PF(2H), what a code means."""

from trapgate.sdm.interruption import InterruptionType
from trapgate.sdm.vectors import PF, ROWS

_NAMES = {
    0: "divide error",
    1: "debug exception",
    2: "NMI",
    3: "breakpoint",
    4: "overflow",
    5: "BOUND range exceeded",
    6: "invalid opcode",
    7: "device not available",
    8: "double fault",
    10: "invalid TSS",
    11: "segment not present",
    12: "stack-segment fault",
    13: "general protection",
    14: "page fault",
    16: "x87 floating-point error",
    17: "alignment check",
    18: "machine check",
    19: "SIMD floating-point exception",
    21: "control protection",
}
_SELECTOR_CODES = (10, 11, 12, 13)


_MASK = (1 << 64) - 1


def hexadecimal(value: int) -> str:
    """As the SDM writes it: 80000021H; 64 bits, unsigned."""
    return f"{value & _MASK:X}H"


def event_name(vector: int, kind: int = InterruptionType.HARDWARE_EXCEPTION) -> str:
    """#PF, "external interrupt 20H", "INT 80H"."""
    if kind == InterruptionType.EXTERNAL_INTERRUPT:
        return f"external interrupt {hexadecimal(vector)}"
    if kind == InterruptionType.SOFTWARE_INTERRUPT:
        return f"INT {hexadecimal(vector)}"
    if kind == InterruptionType.NMI:
        return "NMI"
    return f"#{ROWS[vector].vector.name}" if vector in ROWS else f"vector {hexadecimal(vector)}"


def event_words(vector: int, kind: int, code: int) -> str:
    """#GP(10H), general protection."""
    name = event_name(vector, kind)
    if kind != InterruptionType.HARDWARE_EXCEPTION:
        return name
    shown = f"{name}({hexadecimal(code) if code else '0'})" if code >= 0 else name
    return f"{shown}, {_NAMES[vector]}" if vector in _NAMES else shown


def page_fault_words(code: int) -> str:
    """write, user mode, page not present."""
    words = ["instruction fetch" if code & 16 else "write" if code & 2 else "read"]
    words.append("in user mode" if code & 4 else "in supervisor mode")
    if code & 8:
        words.append("of a page whose entry has a reserved bit set")
    else:
        words.append(
            "that the page's rights forbid" if code & 1 else "of a page that is not present"
        )
    return " ".join(words)


def code_words(vector: int, code: int) -> str:
    """What an error code says, "" if nothing more than the vector."""
    if code < 0:
        return ""
    if vector == PF:
        return page_fault_words(code)
    if vector not in _SELECTOR_CODES or not code & 0xFFFF:
        return ""
    if code & 0xFFFF == 1:
        return "an event met while delivering another, and no selector"
    ext = ", met while delivering another event" if code & 1 else ""
    if code & 2:
        return f"entry {hexadecimal(code >> 3)} of the IDT (vector {code >> 3}){ext}"
    table = "LDT" if code & 4 else "GDT"
    return (
        f"selector {hexadecimal(code & 0xFFF8 | code & 4)}, entry {code >> 3} of the {table}{ext}"
    )
