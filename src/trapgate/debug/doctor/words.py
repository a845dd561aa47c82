"""Values of VMCS fields in words: bits by name, access rights, interruption information."""

from enum import IntFlag

from trapgate.sdm import controls as ct
from trapgate.sdm import state as st
from trapgate.sdm.event_words import hexadecimal
from trapgate.sdm.interruption import InterruptionType
from trapgate.sdm.reasons import REASON_ENTRY_FAILURE, ExitReason
from trapgate.sdm.vectors import ROWS

_FLAGS: dict[str, type[IntFlag]] = {
    "PIN_BASED_CONTROLS": ct.PinControl,
    "PRIMARY_PROCESSOR_BASED_CONTROLS": ct.PrimaryControl,
    "SECONDARY_PROCESSOR_BASED_CONTROLS": ct.SecondaryControl,
    "VM_EXIT_CONTROLS": ct.ExitControl,
    "VM_ENTRY_CONTROLS": ct.EntryControl,
}
_ACTIVITIES = ("active", "HLT", "shutdown", "wait-for-SIPI")
_DATA = ("read-only", "read/write")
_SYSTEM = {
    1: "available 16-bit TSS",
    2: "LDT",
    3: "busy 16-bit TSS",
    9: "available TSS",
    11: "busy TSS",
}


def _bit_names(prefix: str) -> dict[int, str]:
    return {
        value: name.removeprefix(prefix)
        for name, value in vars(st).items()
        if name.startswith(prefix) and isinstance(value, int) and value.bit_count() == 1
    }


_REGISTERS = {
    "CR0": _bit_names("CR0_"),
    "CR4": _bit_names("CR4_"),
    "IA32_EFER": _bit_names("EFER_"),
    "RFLAGS": {bit: name for bit, name in _bit_names("RFLAGS_").items() if name != "FIXED_1"},
}
_BLOCKING = {1: "by STI", 2: "by MOV SS", 4: "by SMI", 8: "by NMI", 16: "enclave interruption"}
_PENDING = {
    1: "B0",
    2: "B1",
    4: "B2",
    8: "B3",
    1 << 11: "BLD",
    1 << 12: "enabled breakpoint",
    1 << 14: "BS",
    1 << 16: "RTM",
}


def named_bits(value: int, names: dict[int, str]) -> str:
    """The names of the bits that are 1; a bit that has none by its number."""
    found = [names.get(1 << n, f"bit {n}") for n in range(value.bit_length()) if value >> n & 1]
    return " ".join(found)


def decoded(field: str, value: int) -> str:
    """What a field's value means, or "" where the number says all."""
    if field.endswith("_ACCESS_RIGHTS"):
        return access_rights(value)
    if field in _FLAGS:
        names = {flag.value: (flag.name or "").lower().replace("_", " ") for flag in _FLAGS[field]}
        return ", ".join(names[bit] for bit in names if value & bit) or "none"
    if (
        field.endswith("_INFORMATION") and "INTERRUPTION" in field
    ) or field == "IDT_VECTORING_INFORMATION":
        return interruption(value)
    for name, bits in _REGISTERS.items():
        if field in (f"GUEST_{name}", f"HOST_{name}"):
            return named_bits(value & ~(2 if name == "RFLAGS" else 0), bits)
    match field:
        case "GUEST_ACTIVITY_STATE":
            return _ACTIVITIES[value] if value < len(_ACTIVITIES) else "no such state"
        case "GUEST_INTERRUPTIBILITY_STATE":
            return named_bits(value, _BLOCKING)
        case "GUEST_PENDING_DEBUG_EXCEPTIONS":
            return named_bits(value, _PENDING)
        case "EPT_POINTER":
            kinds = {0: "uncacheable", 6: "write-back"}
            kind = kinds.get(value & 7, f"memory type {value & 7}")
            return f"{kind}, {(value >> 3 & 7) + 1} levels"
        case "EXIT_REASON":
            return exit_reason(value)
    return ""


def access_rights(value: int) -> str:
    """Type, S, DPL, P, L, D/B, G of a segment."""
    kind = value & st.AR_TYPE
    if not value & st.AR_S:
        words = [_SYSTEM.get(kind, f"system type {kind}")]
    elif kind & st.AR_CODE:
        words = ["conforming code" if kind & st.AR_CONFORMING else "code"]
        words += ["readable"] if kind & st.AR_WRITABLE else ["execute-only"]
    else:
        words = [
            _DATA[kind >> 1 & 1] + " data",
            *(["expand-down"] if kind & st.AR_EXPAND_DOWN else []),
        ]
    if value & st.AR_S and not kind & st.AR_ACCESSED:
        words.append("not accessed")
    words.append(f"DPL {value >> st.AR_DPL_SHIFT & 3}")
    flags = (
        (st.AR_P, "P"),
        (st.AR_L, "L"),
        (st.AR_DB, "D/B"),
        (st.AR_G, "G"),
        (st.AR_UNUSABLE, "unusable"),
    )
    words += [name for bit, name in flags if value & bit]
    if value & st.AR_RESERVED:
        words.append(f"reserved bits {hexadecimal(value & st.AR_RESERVED)}")
    return f"type {kind}: {', '.join(words)}"


def interruption(value: int) -> str:
    """Vector, type and valid bit of an interruption-information field."""
    if not value >> 31 & 1:
        return "not valid: nothing"
    kind = InterruptionType(value >> 8 & 7)
    vector = value & 0xFF
    exception = kind.name.endswith("EXCEPTION")
    name = f"#{ROWS[vector].vector.name}" if exception and vector in ROWS else f"vector {vector}"
    code = ", with error code" if value >> 11 & 1 else ""
    return f"{kind.name.lower().replace('_', ' ')} {name}{code}"


def exit_reason(value: int) -> str:
    """The basic exit reason by its name."""
    try:
        name = ExitReason(value & 0xFFFF).name.lower().replace("_", " ")
    except ValueError:
        name = f"reason {value & 0xFFFF}"
    return f"VM-entry failure: {name}" if value & REASON_ENTRY_FAILURE else name


def shown(field: str, value: int) -> str:
    """Field, value, and what it means: GUEST_ACTIVITY_STATE = 1H (HLT)."""
    meaning = decoded(field, value)
    return f"{field} = {hexadecimal(value)}" + (f" ({meaning})" if meaning else "")
