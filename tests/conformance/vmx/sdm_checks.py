"""The checks of VM entry, written down a second time from the SDM's text, in plain Python.

Imports nothing of the code under test. It finds every rule that a VMCS breaks, not only
the first. Fields are unsigned numbers by the SDM's names.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

Fields = Mapping[str, int]
Range = tuple[int, int]


class Broken(NamedTuple):
    """A rule that does not hold: what the processor does, and the field that breaks it.

    `outcome` is ("fail", VM-instruction error) or ("exit", exit qualification).
    """

    outcome: tuple[str, int]
    field: str


@dataclass(frozen=True)
class Processor:
    """What a processor supports: (bits that must be 1, bits that may be 1) of each field.

    `python` is the VMM in Python: it has no host state and no MSR areas. `long` says that
    the VMM is in IA-32e mode; `current` is the current-VMCS pointer.
    """

    pin: Range
    primary: Range
    secondary: Range
    exit: Range
    entry: Range
    cr0: Range
    cr4: Range
    width: int
    revision: int
    long: bool = False
    current: int = -1
    python: bool = False
    mtf: bool = False
    debugctl: int = 3
    efer: int = 0xD01
    memory: Callable[[int, int], int] = field(default=lambda address, size: (1 << 8 * size) - 1)


def bit(value: int, n: int) -> int:
    return value >> n & 1


def bits(value: int, high: int, low: int) -> int:
    return value >> low & (1 << high - low + 1) - 1


def is_canonical(address: int) -> bool:
    return bits(address, 63, 47) in (0, 0x1FFFF)


def supported(value: int, wanted: Range) -> bool:
    must, may = wanted
    return value | must == value and value & may == value


def memory_types(pat: int) -> bool:
    return all(byte in (0, 1, 4, 5, 6, 7) for byte in pat.to_bytes(8, "little"))


def broken_rules(v: Fields, p: Processor) -> list[Broken]:
    """All rules that `v` breaks on processor `p`."""
    found = [Broken(("fail", 7), name) for name in _controls(v, p)]
    if not p.python:
        found += [Broken(("fail", 8), name) for name in _host(v, p)]
    found += [Broken(("exit", code), name) for code, name in _guest(v, p)]
    return found


def outcomes(v: Fields, p: Processor) -> set[tuple[str, int]]:
    """What may become of a VM entry: empty if it succeeds.

    Controls come before the host state here, and both before the guest's (the SDM lets
    controls and host state be checked in any order).
    """
    found = {rule.outcome for rule in broken_rules(v, p)}
    for first in ({("fail", 7)}, {("fail", 8)}):
        if found & first:
            return first
    return found


def _page(address: int, p: Processor) -> bool:
    return bits(address, 11, 0) == 0 and address < 1 << p.width


def secondary_of(v: Fields) -> int:
    """The secondary controls, all 0 unless they are activated."""
    active = bit(v["PRIMARY_PROCESSOR_BASED_CONTROLS"], 31)
    return v["SECONDARY_PROCESSOR_BASED_CONTROLS"] * active


def _task_priority(v: Fields, p: Processor, shadow: int, secondary: int) -> Iterator[str]:
    """Of "VM-Execution Control Fields" what is about the local APIC."""
    accesses, x2apic, delivery = bit(secondary, 0), bit(secondary, 4), bit(secondary, 9)
    if shadow:
        if not _page(v["VIRTUAL_APIC_ADDRESS"], p):
            yield "VIRTUAL_APIC_ADDRESS"
        elif (
            not accesses
            and not delivery
            and bits(v["TPR_THRESHOLD"], 3, 0)
            > bits(p.memory(v["VIRTUAL_APIC_ADDRESS"] + 0x80, 1), 7, 4)
        ):
            yield "TPR_THRESHOLD"
        if not delivery and bits(v["TPR_THRESHOLD"], 31, 4):
            yield "TPR_THRESHOLD"
    elif x2apic or delivery or bit(secondary, 8):
        yield "SECONDARY_PROCESSOR_BASED_CONTROLS"
    if accesses and not _page(v["APIC_ACCESS_ADDRESS"], p):
        yield "APIC_ACCESS_ADDRESS"
    if accesses and x2apic:
        yield "SECONDARY_PROCESSOR_BASED_CONTROLS"


def _controls(v: Fields, p: Processor) -> Iterator[str]:
    # "VM-Execution Control Fields"
    pin = v["PIN_BASED_CONTROLS"]
    primary = v["PRIMARY_PROCESSOR_BASED_CONTROLS"]
    secondary = secondary_of(v)
    if not supported(pin, p.pin):
        yield "PIN_BASED_CONTROLS"
    if not supported(primary, p.primary):
        yield "PRIMARY_PROCESSOR_BASED_CONTROLS"
    if not supported(secondary, p.secondary):
        yield "SECONDARY_PROCESSOR_BASED_CONTROLS"
    if v["CR3_TARGET_COUNT"] > 4:
        yield "CR3_TARGET_COUNT"
    use_io_bitmaps, use_msr_bitmaps = bit(primary, 25), bit(primary, 28)
    for name in ("IO_BITMAP_A_ADDRESS", "IO_BITMAP_B_ADDRESS"):
        if use_io_bitmaps and not _page(v[name], p):
            yield name
    if use_msr_bitmaps and not _page(v["MSR_BITMAP_ADDRESS"], p):
        yield "MSR_BITMAP_ADDRESS"
    nmi_exiting, virtual_nmis, nmi_window = bit(pin, 3), bit(pin, 5), bit(primary, 22)
    if virtual_nmis and not nmi_exiting:
        yield "PIN_BASED_CONTROLS"
    if nmi_window and not virtual_nmis:
        yield "PRIMARY_PROCESSOR_BASED_CONTROLS"
    if bit(secondary, 5) and v["VIRTUAL_PROCESSOR_IDENTIFIER"] == 0:
        yield "VIRTUAL_PROCESSOR_IDENTIFIER"
    if bit(secondary, 1):
        pointer = v["EPT_POINTER"]
        reserved = bits(pointer, 11, 7) or pointer >= 1 << p.width
        if bits(pointer, 2, 0) not in (0, 6) or bits(pointer, 5, 3) != 3 or reserved:
            yield "EPT_POINTER"
    if (bit(secondary, 17) or bit(secondary, 22)) and not bit(secondary, 1):
        yield "SECONDARY_PROCESSOR_BASED_CONTROLS"
    for control, name in (
        (17, "PML_ADDRESS"),
        (14, "VMREAD_BITMAP_ADDRESS"),
        (14, "VMWRITE_BITMAP_ADDRESS"),
    ):
        if bit(secondary, control) and not _page(v[name], p):
            yield name
    if bit(secondary, 7) and not bit(secondary, 1) and not p.python:
        yield "SECONDARY_PROCESSOR_BASED_CONTROLS"
    yield from _task_priority(v, p, bit(primary, 21), secondary)
    if bit(secondary, 9) and not bit(pin, 0):
        yield "SECONDARY_PROCESSOR_BASED_CONTROLS"
    if bit(pin, 7):
        if not bit(secondary, 9) or not bit(v["VM_EXIT_CONTROLS"], 15):
            yield "PIN_BASED_CONTROLS"
        if bits(v["POSTED_INTERRUPT_NOTIFICATION_VECTOR"], 15, 8):
            yield "POSTED_INTERRUPT_NOTIFICATION_VECTOR"
        descriptor = v["POSTED_INTERRUPT_DESCRIPTOR_ADDRESS"]
        if bits(descriptor, 5, 0) or descriptor >= 1 << p.width:
            yield "POSTED_INTERRUPT_DESCRIPTOR_ADDRESS"
    # "VM-Exit Control Fields"
    if not supported(v["VM_EXIT_CONTROLS"], p.exit):
        yield "VM_EXIT_CONTROLS"
    if bit(v["VM_EXIT_CONTROLS"], 22) and not bit(pin, 6):
        yield "VM_EXIT_CONTROLS"
    # "VM-Entry Control Fields"
    if not supported(v["VM_ENTRY_CONTROLS"], p.entry):
        yield "VM_ENTRY_CONTROLS"
    for area in ("VM_EXIT_MSR_STORE", "VM_EXIT_MSR_LOAD", "VM_ENTRY_MSR_LOAD"):
        count, address = v[f"{area}_COUNT"], v[f"{area}_ADDRESS"]
        if count and p.python:
            yield f"{area}_COUNT"
        elif count and (address % 16 or address + count * 16 - 1 >= 1 << p.width):
            yield f"{area}_ADDRESS"
    if bit(v["VM_ENTRY_INTERRUPTION_INFORMATION"], 31):
        yield from _injection(v, p)
    yield from _extensions(v)


def _injection(v: Fields, p: Processor) -> Iterator[str]:
    info = v["VM_ENTRY_INTERRUPTION_INFORMATION"]
    vector, kind, deliver = bits(info, 7, 0), bits(info, 10, 8), bit(info, 11)
    name = "VM_ENTRY_INTERRUPTION_INFORMATION"
    if kind == 1 or (kind == 7 and not p.mtf):
        yield name
    if (kind == 2 and vector != 2) or (kind == 3 and vector > 31) or (kind == 7 and vector != 0):
        yield name
    unrestricted = bit(secondary_of(v), 7)
    has_code = (
        (not unrestricted or bit(v["GUEST_CR0"], 0))
        and kind == 3
        and vector in (8, 10, 11, 12, 13, 14, 17)
    )
    if bool(deliver) != bool(has_code):
        yield name
    if bits(info, 30, 12):
        yield name
    if deliver and bits(v["VM_ENTRY_EXCEPTION_ERROR_CODE"], 31, 16):
        yield "VM_ENTRY_EXCEPTION_ERROR_CODE"
    if kind in (4, 5, 6) and not 1 <= v["VM_ENTRY_INSTRUCTION_LENGTH"] <= 15:
        yield "VM_ENTRY_INSTRUCTION_LENGTH"


def _extensions(v: Fields) -> Iterator[str]:
    """Not the SDM's: docs/guide/vmcs-files.md."""
    through_idt = v["EXIT_THROUGH_IDT"]
    if through_idt & 0x7FFF_FF00 or 0 < through_idt < 1 << 31:
        yield "EXIT_THROUGH_IDT"
    for name, most in (
        ("FAULT_FILTER", 3),
        ("FAULT_FILTER_ORDER", 3),
        ("TRANSFER_CRITERION", 8),
        ("COMPARISON_OPERATOR", 5),
        ("MEMBERS_USED", 255),
    ):
        if v[name] > most:
            yield name
    address = v["FRAME_MAP_ADDRESS"]
    if address % 4096 or address >> 40 or v["FRAME_MAP_LENGTH"] > 1 << 28:
        yield "FRAME_MAP_ADDRESS"
    if v["FRAME_FILTERS"] > (31 if v["FRAME_MAP_LENGTH"] else 0):
        yield "FRAME_FILTERS"
    window = v["ALIAS_LENGTH"]
    if (
        v["ALIAS_BASE"] % (2 << 20)
        or v["ALIAS_BASE"] >> 40
        or window % 4096
        or window >> 40
        or (window and not v["FRAME_MAP_LENGTH"])
    ):
        yield "ALIAS_BASE"
    with_code = sum(1 << vector for vector in (8, 10, 11, 12, 13, 14, 17, 21))
    if v["TRANSFER_CRITERION_VECTORS"] & ~with_code:
        yield "TRANSFER_CRITERION_VECTORS"
    width, shift = v["ERROR_CODE_FIELD_WIDTH"], v["ERROR_CODE_FIELD_SHIFT"]
    if shift > 31 or width + shift > 32:
        yield "ERROR_CODE_FIELD_WIDTH"
    # A table of zeros is one of rules without clauses, eight bytes each.
    length, rules = v["CRITERIA_TABLE_LENGTH"], v["CRITERIA_TABLE_RULES"]
    if length % 8 or length > 16384 or (0 < length < 8 * rules):
        yield "CRITERIA_TABLE_LENGTH"
    if rules > 64 or (rules > 0) != (length > 0):
        yield "CRITERIA_TABLE_RULES"


def _host(v: Fields, p: Processor) -> Iterator[str]:
    long_host = bit(v["VM_EXIT_CONTROLS"], 9)
    long_guest = bit(v["VM_ENTRY_CONTROLS"], 9)
    # "Checks on Host Control Registers, MSRs, and SSP"
    if not supported(v["HOST_CR0"], p.cr0):
        yield "HOST_CR0"
    if not supported(v["HOST_CR4"], p.cr4):
        yield "HOST_CR4"
    if v["HOST_CR3"] >= 1 << p.width:
        yield "HOST_CR3"
    for name in ("HOST_IA32_SYSENTER_ESP", "HOST_IA32_SYSENTER_EIP"):
        if not is_canonical(v[name]):
            yield name
    # There are no performance counters.
    if bit(v["VM_EXIT_CONTROLS"], 12) and v["HOST_IA32_PERF_GLOBAL_CTRL"]:
        yield "HOST_IA32_PERF_GLOBAL_CTRL"
    if bit(v["VM_EXIT_CONTROLS"], 19) and not memory_types(v["HOST_IA32_PAT"]):
        yield "HOST_IA32_PAT"
    if bit(v["VM_EXIT_CONTROLS"], 21):
        efer = v["HOST_IA32_EFER"]
        if efer & ~p.efer or bit(efer, 10) != long_host or bit(efer, 8) != long_host:
            yield "HOST_IA32_EFER"
    # "Checks on Host Segment and Descriptor-Table Registers"
    for name in ("ES", "CS", "SS", "DS", "FS", "GS", "TR"):
        if bits(v[f"HOST_{name}_SELECTOR"], 2, 0):
            yield f"HOST_{name}_SELECTOR"
    for name in ("CS", "TR"):
        if v[f"HOST_{name}_SELECTOR"] == 0:
            yield f"HOST_{name}_SELECTOR"
    if not long_host and v["HOST_SS_SELECTOR"] == 0:
        yield "HOST_SS_SELECTOR"
    for name in ("FS", "GS", "GDTR", "IDTR", "TR"):
        if not is_canonical(v[f"HOST_{name}_BASE"]):
            yield f"HOST_{name}_BASE"
    # "Checks Related to Address-Space Size"
    if not p.long and long_guest:
        yield "VM_ENTRY_CONTROLS"
    if bool(long_host) != p.long:
        yield "VM_EXIT_CONTROLS"
    if long_host:
        if not bit(v["HOST_CR4"], 5):
            yield "HOST_CR4"
        if not is_canonical(v["HOST_RIP"]):
            yield "HOST_RIP"
    else:
        if long_guest:
            yield "VM_ENTRY_CONTROLS"
        if bit(v["HOST_CR4"], 17):
            yield "HOST_CR4"
        if bits(v["HOST_RIP"], 63, 32):
            yield "HOST_RIP"


def _guest(v: Fields, p: Processor) -> Iterator[tuple[int, str]]:
    for rules in (_registers, _segments, _tables_and_flags, _non_register):
        for found in rules(v, p):
            yield found if isinstance(found, tuple) else (0, found)
    # "Checks on Guest Page-Directory-Pointer-Table Entries"
    if bit(v["GUEST_CR0"], 31) and bit(v["GUEST_CR4"], 5) and not bit(v["VM_ENTRY_CONTROLS"], 9):
        for n in range(4):
            field = "GUEST_CR3"
            entry = p.memory((bits(v["GUEST_CR3"], 31, 5) << 5) + 8 * n, 8)
            if bit(secondary_of(v), 1) or v["FRAME_MAP_LENGTH"]:
                field = f"GUEST_PDPTE{n}"
                entry = v[field]
            reserved = bits(entry, 2, 1) | bits(entry, 8, 5) | bits(entry, 63, p.width)
            if bit(entry, 0) and reserved:
                yield 2, field


def _registers(v: Fields, p: Processor) -> Iterator[str]:
    cr0, cr4, entry = v["GUEST_CR0"], v["GUEST_CR4"], v["VM_ENTRY_CONTROLS"]
    must, may = p.cr0
    if bit(secondary_of(v), 7):
        must &= ~(1 << 0 | 1 << 31)
    if not supported(cr0, (must, may)) or (bit(cr0, 31) and not bit(cr0, 0)):
        yield "GUEST_CR0"
    if not supported(cr4, p.cr4):
        yield "GUEST_CR4"
    if bit(entry, 2):
        if v["GUEST_IA32_DEBUGCTL"] & ~p.debugctl:
            yield "GUEST_IA32_DEBUGCTL"
        if bits(v["GUEST_DR7"], 63, 32):
            yield "GUEST_DR7"
    long = bit(entry, 9)
    if long and not bit(cr0, 31):
        yield "GUEST_CR0"
    if long and not bit(cr4, 5):
        yield "GUEST_CR4"
    if not long and bit(cr4, 17):
        yield "GUEST_CR4"
    if v["GUEST_CR3"] >= 1 << p.width:
        yield "GUEST_CR3"
    for name in ("GUEST_IA32_SYSENTER_ESP", "GUEST_IA32_SYSENTER_EIP"):
        if not is_canonical(v[name]):
            yield name
    if bit(entry, 13) and v["GUEST_IA32_PERF_GLOBAL_CTRL"]:
        yield "GUEST_IA32_PERF_GLOBAL_CTRL"
    if bit(entry, 14) and not memory_types(v["GUEST_IA32_PAT"]):
        yield "GUEST_IA32_PAT"
    if bit(entry, 15):
        efer = v["GUEST_IA32_EFER"]
        same = bit(efer, 10) == bit(efer, 8) or not bit(cr0, 31)
        if efer & ~p.efer or bit(efer, 10) != long or not same:
            yield "GUEST_IA32_EFER"


def _segments(v: Fields, p: Processor) -> Iterator[str]:
    long = bit(v["VM_ENTRY_CONTROLS"], 9)
    unrestricted = bit(secondary_of(v), 7)
    v8086 = bit(v["GUEST_RFLAGS"], 17)
    all_names = ("ES", "CS", "SS", "DS", "FS", "GS", "LDTR", "TR")
    selector = {name: v[f"GUEST_{name}_SELECTOR"] for name in all_names}
    base = {name: v[f"GUEST_{name}_BASE"] for name in all_names}
    limit = {name: v[f"GUEST_{name}_LIMIT"] for name in all_names}
    rights = {name: v[f"GUEST_{name}_ACCESS_RIGHTS"] for name in all_names}
    usable = {name: not bit(rights[name], 16) for name in all_names}
    kind = {name: bits(rights[name], 3, 0) for name in all_names}
    dpl = {name: bits(rights[name], 6, 5) for name in all_names}
    rpl = {name: bits(selector[name], 1, 0) for name in all_names}
    # Selector fields
    if bit(selector["TR"], 2):
        yield "GUEST_TR_SELECTOR"
    if usable["LDTR"] and bit(selector["LDTR"], 2):
        yield "GUEST_LDTR_SELECTOR"
    if not v8086 and not unrestricted and rpl["SS"] != rpl["CS"]:
        yield "GUEST_SS_SELECTOR"
    # Base-address fields
    for name in ("ES", "CS", "SS", "DS", "FS", "GS"):
        if v8086 and base[name] != selector[name] * 16:
            yield f"GUEST_{name}_BASE"
    for name in ("TR", "FS", "GS", "LDTR"):
        if (usable[name] or name != "LDTR") and not is_canonical(base[name]):
            yield f"GUEST_{name}_BASE"
    for name in ("CS", "SS", "DS", "ES"):
        if (usable[name] or name == "CS") and bits(base[name], 63, 32):
            yield f"GUEST_{name}_BASE"
    # Limit fields and access rights
    for name in ("ES", "CS", "SS", "DS", "FS", "GS"):
        fault = f"GUEST_{name}_ACCESS_RIGHTS"
        if v8086:
            if limit[name] != 0xFFFF:
                yield f"GUEST_{name}_LIMIT"
            if rights[name] != 0xF3:
                yield fault
            continue
        if name == "CS":
            allowed = {9, 11, 13, 15} | ({3} if unrestricted else set())
            if kind["CS"] not in allowed:
                yield fault
            if kind["CS"] == 3 and dpl["CS"] != 0:
                yield fault
            if kind["CS"] in (9, 11) and dpl["CS"] != dpl["SS"]:
                yield fault
            if kind["CS"] in (13, 15) and dpl["CS"] > dpl["SS"]:
                yield fault
            if long and bit(rights["CS"], 13) and bit(rights["CS"], 14):
                yield fault
        elif name == "SS":
            if usable["SS"] and kind["SS"] not in (3, 7):
                yield fault
            if not unrestricted and dpl["SS"] != rpl["SS"]:
                yield fault
            if (kind["CS"] == 3 or not bit(v["GUEST_CR0"], 0)) and dpl["SS"] != 0:
                yield fault
        elif usable[name]:
            if not bit(kind[name], 0) or (bit(kind[name], 3) and not bit(kind[name], 1)):
                yield fault
            if not unrestricted and kind[name] <= 11 and dpl[name] < rpl[name]:
                yield fault
        if name == "CS" or usable[name]:
            if not bit(rights[name], 4):
                yield fault
            yield from _common(name, rights[name], limit[name])
    # TR and LDTR
    if kind["TR"] not in ((11,) if long else (3, 11)) or bit(rights["TR"], 4) or not usable["TR"]:
        yield "GUEST_TR_ACCESS_RIGHTS"
    yield from _common("TR", rights["TR"], limit["TR"])
    if usable["LDTR"]:
        if kind["LDTR"] != 2 or bit(rights["LDTR"], 4):
            yield "GUEST_LDTR_ACCESS_RIGHTS"
        yield from _common("LDTR", rights["LDTR"], limit["LDTR"])


def _common(name: str, rights: int, limit: int) -> Iterator[str]:
    granular = bit(rights, 15)
    if (
        not bit(rights, 7)
        or bits(rights, 11, 8)
        or bits(rights, 31, 17)
        or (bits(limit, 11, 0) != 0xFFF and granular)
        or (bits(limit, 31, 20) and not granular)
    ):
        yield f"GUEST_{name}_ACCESS_RIGHTS"


def _tables_and_flags(v: Fields, p: Processor) -> Iterator[str]:
    for name in ("GUEST_GDTR", "GUEST_IDTR"):
        if not is_canonical(v[f"{name}_BASE"]):
            yield f"{name}_BASE"
        if bits(v[f"{name}_LIMIT"], 31, 16):
            yield f"{name}_LIMIT"
    long = bit(v["VM_ENTRY_CONTROLS"], 9)
    if long and bit(v["GUEST_CS_ACCESS_RIGHTS"], 13):
        if bits(v["GUEST_RIP"], 63, 48) not in (0, 0xFFFF):
            yield "GUEST_RIP"
    elif bits(v["GUEST_RIP"], 63, 32):
        yield "GUEST_RIP"
    rflags = v["GUEST_RFLAGS"]
    if bits(rflags, 63, 22) or bit(rflags, 15) or bit(rflags, 5) or bit(rflags, 3):
        yield "GUEST_RFLAGS"
    if not bit(rflags, 1):
        yield "GUEST_RFLAGS"
    if bit(rflags, 17) and (long or not bit(v["GUEST_CR0"], 0)):
        yield "GUEST_RFLAGS"
    if _injected(v) == 0 and not bit(rflags, 9):
        yield "GUEST_RFLAGS"


def _injected(v: Fields) -> int | None:
    """The type of the injected event, if there is one."""
    info = v["VM_ENTRY_INTERRUPTION_INFORMATION"]
    return bits(info, 10, 8) if bit(info, 31) else None


def _non_register(v: Fields, p: Processor) -> Iterator[str | tuple[int, str]]:
    activity, blocking = v["GUEST_ACTIVITY_STATE"], v["GUEST_INTERRUPTIBILITY_STATE"]
    sti, mov_ss, smi, nmi = (bit(blocking, n) for n in range(4))
    kind, vector = _injected(v), bits(v["VM_ENTRY_INTERRUPTION_INFORMATION"], 7, 0)
    name = "GUEST_ACTIVITY_STATE"
    if activity > 3:
        yield name
    if activity == 1 and bits(v["GUEST_SS_ACCESS_RIGHTS"], 6, 5):
        yield name
    if activity != 0 and (sti or mov_ss):
        yield name
    if kind is not None:
        event = (kind, vector)
        allowed = {
            0: True,
            1: kind in (0, 2) or event in ((3, 1), (3, 18), (7, 0)),
            2: kind == 2 or event == (3, 18),
            3: False,
        }
        if not allowed.get(activity, True):
            yield name
    name = "GUEST_INTERRUPTIBILITY_STATE"
    if bits(blocking, 31, 4):
        yield name
    if sti and mov_ss:
        yield name
    if sti and not bit(v["GUEST_RFLAGS"], 9):
        yield name
    if kind == 0 and (sti or mov_ss):
        yield name
    if kind == 2 and mov_ss:
        yield name
    if smi:
        yield name
    if kind == 2 and sti:
        yield 3, name
    if kind == 2 and nmi and bit(v["PIN_BASED_CONTROLS"], 5):
        yield name
    pending = v["GUEST_PENDING_DEBUG_EXCEPTIONS"]
    name = "GUEST_PENDING_DEBUG_EXCEPTIONS"
    if bits(pending, 11, 4) or bit(pending, 13) or bits(pending, 63, 15):
        yield name
    if sti or mov_ss or activity == 1:
        stepping = bit(v["GUEST_RFLAGS"], 8) and not bit(v["GUEST_IA32_DEBUGCTL"], 1)
        if bit(pending, 14) != int(bool(stepping)):
            yield name
    link = v["VMCS_LINK_POINTER"]
    if link != (1 << 64) - 1:
        revision = p.revision | bit(secondary_of(v), 14) << 31
        is_vmcs = not p.python and _page(link, p) and p.memory(link, 4) == revision
        if not is_vmcs or link == p.current:
            yield 4, "VMCS_LINK_POINTER"
