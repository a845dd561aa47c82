"""A valid VMCS to start from, for each mode of the guest: every field that VM entry looks at."""

from collections.abc import Iterator, Mapping
from typing import Final

from trapgate.debug.doctor.dumped_vmcs import DumpedVmcs
from trapgate.debug.doctor.fields import FIELDS, area
from trapgate.debug.doctor.words import decoded
from trapgate.sdm import controls as ct
from trapgate.sdm import state as st
from trapgate.vmcs.vmcs import Vmcs

_CR0 = st.CR0_PE | st.CR0_NE | st.CR0_ET | st.CR0_WP

_COMMON: Mapping[str, int] = {
    "GUEST_CR4": st.CR4_VMXE,
    "GUEST_RIP": 0x100000,
    "GUEST_RSP": 0x200000,
    "HOST_RIP": 0x100000,
    "HOST_RSP": 0x300000,
    "HOST_CR3": 0x1000,
}

_MODES: Mapping[str, Mapping[str, int]] = {
    "long-mode": {
        "GUEST_CR0": _CR0 | st.CR0_PG,
        "GUEST_CR3": 0x1000,
        "GUEST_CR4": st.CR4_VMXE | st.CR4_PAE,
        "GUEST_IA32_EFER": st.EFER_LME | st.EFER_LMA | st.EFER_NXE | st.EFER_SCE,
    },
    "protected-mode": {"GUEST_CR0": _CR0},
    "real-mode": {},
}

KINDS: Final[tuple[str, ...]] = tuple(_MODES)
"""What `template` can make."""


def template(kind: str) -> DumpedVmcs:
    """A valid VMCS whose guest begins in that mode ("long-mode", "protected-mode", "real-mode").

    Protected mode has no paging and real mode no PE, which "unrestricted guest" with EPT allows.
    The addresses are made up; the controls are the least that processors demand. Raises KeyError.
    """
    vmcs = Vmcs("vt-x")
    mode = _MODES[kind]
    if kind != "real-mode":
        vmcs.set_flat_segments(64 if kind == "long-mode" else 32)
        vmcs["GUEST_LDTR_ACCESS_RIGHTS"] = st.AR_UNUSABLE
        vmcs["GUEST_TR_SELECTOR"] = 0x18
        vmcs["GUEST_TR_LIMIT"] = 0x67
    values = {field.name: vmcs[field] for field in vmcs if field.name in FIELDS}
    values |= {**(_COMMON if kind != "real-mode" else {**_COMMON, "GUEST_RIP": 0xFFF0}), **mode}
    if kind != "long-mode":
        values["SECONDARY_PROCESSOR_BASED_CONTROLS"] |= ct.SECONDARY_EPT
        values["EPT_POINTER"] = 0x4000 | 3 << 3 | 6
    else:
        values["SECONDARY_PROCESSOR_BASED_CONTROLS"] = 0
        values["PRIMARY_PROCESSOR_BASED_CONTROLS"] &= ~ct.PRIMARY_SECONDARY_CONTROLS
    return DumpedVmcs(values, f"a {kind} guest to start from")


def as_lines(dumped: DumpedVmcs) -> Iterator[str]:
    """FIELD = value lines that `read_dump` reads back, by areas, with what the values mean."""
    for heading in ("control", "guest state", "host state"):
        yield f"# {heading}"
        for name in FIELDS:
            if name in dumped and area(name) == heading:
                value = dumped[name]
                meaning = decoded(name, value)
                yield f"{name} = 0x{value:X}" + (f"  # {meaning}" if meaning else "")
