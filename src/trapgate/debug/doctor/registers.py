"""Reads the registers of a virtual CPU: QEMU's `info registers`, VirtualBox's log, KVM_GET_SREGS.

That is what people have when KVM says "hardware error 0x80000021" and dmesg says nothing. It is the
guest's view: the hypervisor makes VMCS fields of it, and what it adds by itself is added here too.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from trapgate.debug.doctor.dumped_vmcs import DumpedVmcs, fits
from trapgate.debug.doctor.fields import SEGMENTS
from trapgate.sdm import controls as ct
from trapgate.sdm import state as st

_KVM_ADDS = (
    "CR0.NE and CR4.VMXE, the accessed bits of segments, and the controls are as KVM sets them; "
    "an event that KVM injected is not in such a dump"
)

_VIRTUALBOX_ADDS = (
    "CR0.NE, CR4.VMXE and the controls are as VirtualBox sets them; an event that it injected is "
    "not in such a log"
)

_QEMU_SEGMENT = re.compile(
    r"\b(ES|CS|SS|DS|FS|GS|LDT|TR)\s*=\s*([0-9a-f]{4})\s+([0-9a-f]{8,16})\s+([0-9a-f]{8})\s+"
    r"([0-9a-f]{8})\b",
    re.IGNORECASE,
)
_QEMU_TABLE = re.compile(r"\b([GI]DT)\s*=\s+([0-9a-f]{8,16})\s+([0-9a-f]{4,8})\b", re.IGNORECASE)
_QEMU_REGISTER = re.compile(
    r"\b(CR0|CR3|CR4|DR7|EFER|[ER]IP|[ER]SP|EFL|RFL|II|HLT)\s*=\s*([0-9a-f]+)\b", re.IGNORECASE
)
_REGISTERS = {
    "CR0": "GUEST_CR0",
    "CR3": "GUEST_CR3",
    "CR4": "GUEST_CR4",
    "DR7": "GUEST_DR7",
    "EFER": "GUEST_IA32_EFER",
    "IP": "GUEST_RIP",
    "SP": "GUEST_RSP",
    "FLAGS": "GUEST_RFLAGS",
    "PAT": "GUEST_IA32_PAT",
    "EFL": "GUEST_RFLAGS",
    "RFL": "GUEST_RFLAGS",
    "RFLAGS": "GUEST_RFLAGS",
    "II": "GUEST_INTERRUPTIBILITY_STATE",
    "HLT": "GUEST_ACTIVITY_STATE",
}


def read_qemu(text: str) -> Iterator[DumpedVmcs]:
    """QEMU's `info registers`, as it prints it too when KVM_RUN fails."""
    starts = [mark.start() for mark in re.finditer(r"\b[ER]AX\s*=", text)] or [0]
    for start, end in zip(starts, [*starts[1:], len(text)], strict=True):
        body = text[start:end]
        values: dict[str, int] = {}
        for name, selector, base, limit, flags in _QEMU_SEGMENT.findall(body):
            rights = int(flags, 16) >> 8 & 0xF0FF
            _segment(values, name, int(selector, 16), int(base, 16), int(limit, 16), rights)
        for name, base, limit in _QEMU_TABLE.findall(body):
            values[f"GUEST_{name.upper()}R_BASE"] = int(base, 16)
            values[f"GUEST_{name.upper()}R_LIMIT"] = int(limit, 16)
        for name, digits in _QEMU_REGISTER.findall(body):
            field = _REGISTERS[re.sub("^[ER](?=[IS]P)", "", name.upper())]
            if fits(field, int(digits, 16)):
                values.setdefault(field, int(digits, 16))
        if "GUEST_CS_SELECTOR" in values and "GUEST_CR0" in values:
            yield _as_kvm_would(values, "QEMU's info registers")


_GURU_SEGMENT = re.compile(
    r"\b([c-gs]s|ldtr|tr)\s*=\s*\{([0-9a-f]{4})\s+base=([0-9a-f]+)\s+limit=([0-9a-f]+)\s+"
    r"flags=([0-9a-f]+)\s*\}",
    re.IGNORECASE,
)
_GURU_TABLE = re.compile(r"\b([gi]dtr)\s*=\s*([0-9a-f]+):([0-9a-f]+)", re.IGNORECASE)
_GURU_SYSENTER = re.compile(
    r"SysEnter\s*=\s*\{cs=([0-9a-f]+)\s+eip=([0-9a-f]+)\s+esp=([0-9a-f]+)\}", re.IGNORECASE
)
_GURU_REGISTER = re.compile(
    r"\b(cr0|cr3|cr4|dr7|[er]ip|[er]sp|[er]flags|EFER|PAT)\s*=\s*(?:0x)?([0-9a-f]+)\b",
    re.IGNORECASE,
)
_V86_ACTIVE = re.compile(r"Real-on-v86 active\s*=\s*true", re.IGNORECASE)
_V86_RIGHTS = 0xF3


def read_guru_meditation(text: str) -> Iterator[DumpedVmcs]:
    """The guest's registers as VirtualBox's log has them after a Guru Meditation."""
    values: dict[str, int] = {}
    for name, selector, base, limit, flags in _GURU_SEGMENT.findall(text):
        parts = (("SELECTOR", selector), ("BASE", base), ("LIMIT", limit), ("ACCESS_RIGHTS", flags))
        for part, digits in parts:
            field = f"GUEST_{name.upper()}_{part}"
            if fits(field, int(digits, 16)):
                values.setdefault(field, int(digits, 16))
    for name, base, limit in _GURU_TABLE.findall(text):
        values.setdefault(f"GUEST_{name.upper()}_BASE", int(base, 16))
        values.setdefault(f"GUEST_{name.upper()}_LIMIT", int(limit, 16))
    for cs, eip, esp in _GURU_SYSENTER.findall(text):
        for part, digits in (("CS", cs), ("EIP", eip), ("ESP", esp)):
            values.setdefault(f"GUEST_IA32_SYSENTER_{part}", int(digits, 16))
    for name, digits in _GURU_REGISTER.findall(text):
        field = _REGISTERS[re.sub("^[ER](?=[IS]P|FL)", "", name.upper())]
        if fits(field, int(digits, 16)):
            values.setdefault(field, int(digits, 16))
    if "GUEST_CS_SELECTOR" in values and "GUEST_CR0" in values:
        yield _as_virtualbox_would(values, in_v86=bool(_V86_ACTIVE.search(text)))


def _as_virtualbox_would(values: dict[str, int], *, in_v86: bool) -> DumpedVmcs:
    dumped = _entered(values, "VirtualBox's registers in VBox.log", _VIRTUALBOX_ADDS)
    if not in_v86:
        return dumped
    changes = {
        "GUEST_RFLAGS": values.get("GUEST_RFLAGS", 2) | st.RFLAGS_VM,
        "GUEST_CR0": dumped["GUEST_CR0"] | st.CR0_PE | st.CR0_PG,
        "SECONDARY_PROCESSOR_BASED_CONTROLS": 0,
        **{f"GUEST_{name}_ACCESS_RIGHTS": _V86_RIGHTS for name in SEGMENTS[:6]},
    }
    note = "real mode runs in virtual-8086 mode here (Real-on-v86 active), whose rules are checked"
    return replace(dumped.changed(changes), notes=(*dumped.notes, note))


_SREGS_NAMES = "cs|ds|es|fs|gs|ss|tr|ldt|ldtr|gdt|idt"
_SREGS = re.compile(
    rf"(?<![A-Za-z])(?P<name>{_SREGS_NAMES})\b[\s:=]*(?:\w*segment|\w*dtable)?\s*[{{(]?\s*(?=base|limit|selector)",
    re.IGNORECASE,
)
_PAIR = re.compile(r"\b([a-z]+)_?\s*[:=]\s*(0x[0-9a-f]+|[0-9]+)\b", re.IGNORECASE)
_SREGS_REGISTER = re.compile(
    r"\b(cr0|cr3|cr4|efer|rip|rsp|rflags)\s*[:=]\s*(0x[0-9a-f]+|[0-9a-f]{16}|[0-9]+)\b",
    re.IGNORECASE,
)
_ROW = re.compile(
    r"^\s*(cs|ss|ds|es|fs|gs|tr|ldt)\s+([0-9a-f]{4})\s+([0-9a-f]{16})\s+([0-9a-f]{8})\s+([0-9a-f]{2})"
    r"\s+(\d)\s+(\d)\s+(\d)\s+(\d)\s+(\d)\s+(\d)\s+(\d)\s*$",
    re.IGNORECASE | re.MULTILINE,
)


def read_sregs(text: str) -> Iterator[DumpedVmcs]:
    """KVM_GET_SREGS as programs print it: a structure's members by name, or a table of segments."""
    values: dict[str, int] = {}
    marks = list(_SREGS.finditer(text))
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    for mark, following in zip(marks, ends, strict=False):
        end = min(mark.end() + 600, following)
        parts = {
            key.lower(): int(number, 0 if number[:2] == "0x" else 10)
            for key, number in _PAIR.findall(text[mark.end() : end])
        }
        name = mark["name"].upper()
        if name in ("GDT", "IDT"):
            values |= {
                f"GUEST_{name}R_{part}": parts[part.lower()]
                for part in ("BASE", "LIMIT")
                if part.lower() in parts
            }
        elif {"base", "limit", "selector", "type"} <= set(parts):
            _segment(values, name, parts["selector"], parts["base"], parts["limit"], _rights(parts))
    for name, selector, base, limit, kind, *bits in _ROW.findall(text):
        keys = ("present", "dpl", "db", "s", "l", "g", "avl")
        parts = dict(zip(keys, map(int, bits), strict=True)) | {"type": int(kind, 16)}
        _segment(values, name, int(selector, 16), int(base, 16), int(limit, 16), _rights(parts))
    for name, digits in _SREGS_REGISTER.findall(text):
        field = _REGISTERS[re.sub("^R(?=[IS]P)", "", name.upper())]
        hexadecimal = digits[:2].lower() == "0x" or len(digits) == 16
        value = int(digits, 16 if hexadecimal else 10)
        if fits(field, value):
            values.setdefault(field, value)
    if "GUEST_CS_SELECTOR" in values and "GUEST_CR0" in values:
        yield _as_kvm_would(values, "KVM_GET_SREGS")


def _rights(parts: Mapping[str, int]) -> int:
    present = parts.get("present", parts.get("p", 1))
    if parts.get("unusable", 0) or not present:
        return st.AR_UNUSABLE
    return (
        parts["type"] & 15
        | parts.get("s", 0) << 4
        | (parts.get("dpl", 0) & 3) << st.AR_DPL_SHIFT
        | present << 7
        | parts.get("avl", 0) << 12
        | parts.get("l", 0) << 13
        | parts.get("db", parts.get("d", 0)) << 14
        | parts.get("g", 0) << 15
    )


def _segment(
    values: dict[str, int], name: str, selector: int, base: int, limit: int, rights: int
) -> None:
    name = {"LDT": "LDTR"}.get(name.upper(), name.upper())
    if name not in SEGMENTS:
        return
    if not rights & st.AR_P:
        rights |= st.AR_UNUSABLE  # KVM makes every segment unusable that is not present
    elif rights & st.AR_S:
        rights |= st.AR_ACCESSED
    parts = {"SELECTOR": selector, "BASE": base, "LIMIT": limit, "ACCESS_RIGHTS": rights}
    for part, value in parts.items():
        field = f"GUEST_{name}_{part}"
        if fits(field, value):
            values.setdefault(field, value)


def _as_kvm_would(values: dict[str, int], form: str) -> DumpedVmcs:
    return _entered(values, form, _KVM_ADDS)


def _entered(values: dict[str, int], form: str, note: str) -> DumpedVmcs:
    values["GUEST_CR0"] |= st.CR0_NE
    if "GUEST_CR4" in values:
        values["GUEST_CR4"] |= st.CR4_VMXE
    assumed = {
        "VM_ENTRY_CONTROLS": ct.ENTRY_ALLOWED_0
        | ct.ENTRY_LOAD_DEBUG_CONTROLS
        | ct.ENTRY_LOAD_EFER
        | (ct.ENTRY_IA32E_MODE_GUEST if values.get("GUEST_IA32_EFER", 0) & st.EFER_LMA else 0),
        "PRIMARY_PROCESSOR_BASED_CONTROLS": ct.PRIMARY_ALLOWED_0 | ct.PRIMARY_SECONDARY_CONTROLS,
        "SECONDARY_PROCESSOR_BASED_CONTROLS": ct.SECONDARY_EPT | ct.SECONDARY_UNRESTRICTED_GUEST,
    }
    return DumpedVmcs(
        {**assumed, **values}, form, assumed=frozenset(assumed) - set(values), notes=(note,)
    )
