"""Reads a VMCS, or the registers of a virtual CPU, as hypervisors and their users print it.

The text is searched for what each form looks like, not parsed line by line: lines may be broken,
quoted, or out of order, and anything may be between them.
"""

import re
from collections.abc import Iterator
from dataclasses import replace

from trapgate.debug.doctor.dumped_vmcs import DumpedVmcs, fits
from trapgate.debug.doctor.fields import SEGMENTS
from trapgate.debug.doctor.listed import read_fields, read_virtualbox
from trapgate.debug.doctor.prefixes import bare_lines
from trapgate.debug.doctor.registers import read_guru_meditation, read_qemu, read_sregs

_LONGEST = 1 << 24


def read_dump(text: str) -> list[DumpedVmcs]:
    """Each VMCS that `text` shows, in its order and each one once; empty if there is none."""
    lines = bare_lines(text[:_LONGEST])
    whole = "\n".join(lines)
    for reader in _READERS:
        found = [dumped for dumped in reader(whole) if len(dumped.values) > 1]
        if found:
            if len(text) > _LONGEST:
                found = [
                    _with_note(one, "only the first 16 MB of the file were read") for one in found
                ]
            return _without_duplicates(found)
    return []


def _with_note(dumped: DumpedVmcs, note: str) -> DumpedVmcs:
    return replace(dumped, notes=(*dumped.notes, note))


def _without_duplicates(dumps: list[DumpedVmcs]) -> list[DumpedVmcs]:
    kept: list[DumpedVmcs] = []
    for dumped in dumps:
        if all(dumped.values != other.values for other in kept):
            kept.append(dumped)
    return kept


def _hexadecimal(digits: int) -> str:
    # A terminal may have broken the line within the number; a log may have left leading zeros out.
    return rf"(?:(?:[0-9a-f]\n?){{{digits}}}(?![0-9a-f])|[0-9a-f]{{1,16}}(?![0-9a-z]))"


def _pattern(form: str) -> re.Pattern[str]:
    """A form as in `CR3 = {GUEST_CR3:16}`: hexadecimal digits in braces, blanks wherever."""
    parts = []
    for literal, name, digits in re.findall(r"([^{]*)(?:\{(\w+):(\d+)\})?", form):
        words = [re.sub(r"\\([=:,])", r"\\s*\\\1\\s*", re.escape(word)) for word in literal.split()]
        parts.append(r"\s*".join(words) + (r"\s*" if literal else ""))
        if name:
            parts.append(rf"(?:0x)?(?P<{name}>{_hexadecimal(int(digits))})")
    return re.compile(r"(?<![A-Za-z0-9_])" + r"\s*".join(p for p in parts if p), re.IGNORECASE)


def _segment_pattern(name: str) -> list[str]:
    selector, rights, limit, base = (
        f"{{GUEST_{name}_{part}:{digits}}}"
        for part, digits in (("SELECTOR", 4), ("ACCESS_RIGHTS", 5), ("LIMIT", 8), ("BASE", 16))
    )
    return [
        f"{name}: sel={selector} , attr={rights} , limit={limit} , base={base}",
        f"{name}: {selector} {rights} {limit} {base}",
    ]


_BOTH = (
    "RSP = {AREA_RSP:16}",
    "RIP = {AREA_RIP:16}",
    (
        "Sysenter RSP={AREA_IA32_SYSENTER_ESP:16} CS:RIP={AREA_IA32_SYSENTER_CS:4} : "
        "{AREA_IA32_SYSENTER_EIP:16}"
    ),
    "EFER = {AREA_IA32_EFER:16}",
    "EFER(VMCS) = {AREA_IA32_EFER:16}",
    "PAT = {AREA_IA32_PAT:16}",
    "PerfGlobCtl = {AREA_IA32_PERF_GLOBAL_CTRL:16}",
    "S_CET = {AREA_IA32_S_CET:16}",
    "SSP = {AREA_SSP:16}",
    "SSP TABLE = {AREA_IA32_INTERRUPT_SSP_TABLE_ADDR:16}",
    "ISST = {AREA_IA32_INTERRUPT_SSP_TABLE_ADDR:16}",
    "PKRS = {AREA_IA32_PKRS:16}",
)
_GUEST = (
    *(f"CR{n}: actual={{GUEST_CR{n}:16}}" for n in (0, 3, 4)),
    *(f"CR{n}: actual= 0x[0-9a-f]+ , shadow={{CR{n}_READ_SHADOW:16}}" for n in (0, 4)),
    *(
        f"CR{n}: actual= 0x[0-9a-f]+ , shadow= 0x[0-9a-f]+ , gh_mask={{CR{n}_GUEST_HOST_MASK:16}}"
        for n in (0, 4)
    ),
    "CR3 = {GUEST_CR3:16}",
    *(f"PDPT{letter}{n} = {{GUEST_PDPTE{n}:16}}" for letter in "RE" for n in range(4)),
    "RFLAGS={GUEST_RFLAGS:8}",
    "DR7 = {GUEST_DR7:16}",
    *(form for name in SEGMENTS for form in _segment_pattern(name)),
    *(
        f"{name}: {limit} {{GUEST_{name}_LIMIT:8}} {base} {{GUEST_{name}_BASE:16}}"
        for name in ("GDTR", "IDTR")
        for limit, base in (("limit=", ", base="), ("", ""))
    ),
    "DebugCtl = {GUEST_IA32_DEBUGCTL:16}",
    "DebugExceptions = {GUEST_PENDING_DEBUG_EXCEPTIONS:16}",
    "BndCfgS = {GUEST_IA32_BNDCFGS:16}",
    "Interruptibility = {GUEST_INTERRUPTIBILITY_STATE:8}",
    "ActivityState = {GUEST_ACTIVITY_STATE:8}",
    "InterruptStatus = {GUEST_INTERRUPT_STATUS:4}",
    "PreemptionTimer = {VMX_PREEMPTION_TIMER_VALUE:8}",
    "SM Base = {GUEST_SMBASE:8}",
    *(form.replace("AREA", "GUEST") for form in _BOTH),
)
_HOST = (
    *(f"{name}={{HOST_{name}_SELECTOR:4}}" for name in ("CS", "SS", "DS", "ES", "FS", "GS", "TR")),
    *(f"{name}Base={{HOST_{name}_BASE:16}}" for name in ("FS", "GS", "TR")),
    *(f"{name}Base={{HOST_{name}R_BASE:16}}" for name in ("GDT", "IDT")),
    *(f"CR{n}={{HOST_CR{n}:16}}" for n in (0, 3, 4)),
    *(form.replace("AREA", "HOST") for form in _BOTH),
)
_CONTROL = (
    "PinBased={PIN_BASED_CONTROLS:8}",
    "CPUBased={PRIMARY_PROCESSOR_BASED_CONTROLS:8}",
    "SecondaryExec={SECONDARY_PROCESSOR_BASED_CONTROLS:8}",
    "TertiaryExec={TERTIARY_PROCESSOR_BASED_CONTROLS:16}",
    "EntryControls={VM_ENTRY_CONTROLS:8}",
    "ExitControls={VM_EXIT_CONTROLS:8}",
    "ExceptionBitmap={EXCEPTION_BITMAP:8}",
    "PFECmask={PAGE_FAULT_ERROR_CODE_MASK:8}",
    "PFECmatch={PAGE_FAULT_ERROR_CODE_MATCH:8}",
    (
        "VMEntry: intr_info={VM_ENTRY_INTERRUPTION_INFORMATION:8} "
        "errcode={VM_ENTRY_EXCEPTION_ERROR_CODE:8} ilen={VM_ENTRY_INSTRUCTION_LENGTH:8}"
    ),
    (
        "VMExit: intr_info={VM_EXIT_INTERRUPTION_INFORMATION:8} "
        "errcode={VM_EXIT_INTERRUPTION_ERROR_CODE:8} ilen={VM_EXIT_INSTRUCTION_LENGTH:8}"
    ),
    "reason={EXIT_REASON:8} qualification={EXIT_QUALIFICATION:16}",
    "IDTVectoring: info={IDT_VECTORING_INFORMATION:8} errcode={IDT_VECTORING_ERROR_CODE:8}",
    "TSC Offset = {TSC_OFFSET:16}",
    "TSC Multiplier = {TSC_MULTIPLIER:16}",
    "TPR Threshold = {TPR_THRESHOLD:2}",
    "PostedIntrVec = {POSTED_INTERRUPT_NOTIFICATION_VECTOR:2}",
    "APIC-access addr = {APIC_ACCESS_ADDRESS:16}",
    "virt-APIC addr = {VIRTUAL_APIC_ADDRESS:16}",
    "EPT pointer = {EPT_POINTER:16}",
    "EPTP index = {EPTP_INDEX:4}",
    "SPPT pointer = {SUB_PAGE_PERMISSION_TABLE_POINTER:16}",
    *(f"target{n}={{CR3_TARGET_VALUE_{n}:16}}" for n in range(4)),
    "PLE Gap={PLE_GAP:8} Window={PLE_WINDOW:8}",
    "Virtual processor ID = {VIRTUAL_PROCESSOR_IDENTIFIER:4}",
    "VMfunc controls = {VM_FUNCTION_CONTROLS:16}",
    "VE info address = {VIRTUALIZATION_EXCEPTION_INFORMATION_ADDRESS:16}",
)


def _compiled(forms: tuple[str, ...]) -> list[re.Pattern[str]]:
    return [_pattern(form) for form in forms]


def _literal(form: re.Pattern[str]) -> re.Pattern[str]:
    """Unescapes the expression for a number that a form skips, escaped with the rest."""
    skipped = re.escape("0x[0-9a-f]+")
    return re.compile(form.pattern.replace(skipped, r"(?:0x)?[0-9a-f]+"), re.IGNORECASE)


_FORMS = {
    "Guest": [_literal(form) for form in _compiled(_GUEST)],
    "Host": _compiled(_HOST),
    "Control": _compiled(_CONTROL),
}
_SECTION = re.compile(r"\*{3}\s*(Guest|Host|Control)\s+State\s*\*{3}", re.IGNORECASE)
_GUEST_LINE = re.compile(
    r"^(?:CR[04]\s*:\s*actual\s*=|[CS]S\s*:\s+(?:sel\s*=|[0-9a-f]{4}\s+[0-9a-f]{5}\s+[0-9a-f]{8}))",
    re.IGNORECASE | re.MULTILINE,
)
_NOT_LOADED = re.compile(r"EFER\s*=\s*(?:0x)?[0-9a-f]+\s*\((effective|autoload)\)", re.IGNORECASE)


def _read_sections(text: str) -> Iterator[DumpedVmcs]:
    """What KVM's dump_vmcs and Xen's vmcs_dump_vcpu print: parts with stars at their titles."""
    first = _SECTION.search(text)
    if _GUEST_LINE.search(text[: first.start() if first else len(text)]):
        text = f"*** Guest State ***\n{text}"  # whose title was not copied
    found = list(_SECTION.finditer(text))
    if not found:
        return
    titles = [mark[1].capitalize() for mark in found]
    ends = [mark.start() for mark in found[1:]] + [len(text)]
    values: dict[str, int] = {}
    notes: list[str] = []
    parts: set[str] = set()
    for place, (mark, title, end) in enumerate(zip(found, titles, ends, strict=True)):
        body = text[mark.end() : end]
        values |= _search(_FORMS[title], body)
        parts.add(title)
        loaded = _NOT_LOADED.search(body)
        if loaded:
            notes.append(f"{title.lower()} EFER is not from the VMCS: the dump says {loaded[1]}")
        last = place + 1 == len(found) or titles[place + 1] == "Guest"
        if last:
            xen = "sel  attr  limit" in text or "VMfunc controls" in text
            form = "Xen's vmcs_dump_vcpu" if xen else "KVM's dump_vmcs"
            notes += [
                f"the dump has no part {name} State, and ends early or begins late"
                for name in _FORMS
                if name not in parts
            ]
            yield DumpedVmcs(values, form, notes=tuple(notes))
            values, notes, parts = {}, [], set()


def _search(forms: list[re.Pattern[str]], body: str) -> dict[str, int]:
    values: dict[str, int] = {}
    for form in forms:
        mark = form.search(body)
        if mark:
            for name, digits in mark.groupdict().items():
                value = int(digits.replace("\n", ""), 16)
                if name not in values and fits(name, value):
                    values[name] = value
    return values


_READERS = (
    _read_sections,
    read_virtualbox,
    read_fields,
    read_qemu,
    read_guru_meditation,
    read_sregs,
)
"""The first that finds something has the say."""
