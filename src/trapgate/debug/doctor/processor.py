"""What is known of the processor that made a dump: nothing, or what its MSRs and CPUID say.

Source: SDM, appendix "VMX Capability Reporting Facility", and CPUID leaf 80000008H.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from trapgate.sdm import controls as ct
from trapgate.sdm import vmx

PHYSICAL_MOST = 52
"""The widest physical addresses that paging can hold."""

_CONTROLS: Mapping[str, tuple[int, int, int]] = {
    # Field: its MSR, the one that speaks instead if IA32_VMX_BASIC bit 55 is 1, and the bits that
    # every processor so far has wanted to be 1.
    "PIN_BASED_CONTROLS": (
        vmx.MSR_VMX_PINBASED_CTLS,
        vmx.MSR_VMX_TRUE_PINBASED_CTLS,
        ct.PIN_ALLOWED_0,
    ),
    "PRIMARY_PROCESSOR_BASED_CONTROLS": (
        vmx.MSR_VMX_PROCBASED_CTLS,
        vmx.MSR_VMX_TRUE_PROCBASED_CTLS,
        ct.PRIMARY_ALLOWED_0,
    ),
    "SECONDARY_PROCESSOR_BASED_CONTROLS": (vmx.MSR_VMX_PROCBASED_CTLS2, 0, 0),
    "VM_EXIT_CONTROLS": (
        vmx.MSR_VMX_EXIT_CTLS,
        vmx.MSR_VMX_TRUE_EXIT_CTLS,
        ct.EXIT_ALLOWED_0,
    ),
    "VM_ENTRY_CONTROLS": (
        vmx.MSR_VMX_ENTRY_CTLS,
        vmx.MSR_VMX_TRUE_ENTRY_CTLS,
        ct.ENTRY_ALLOWED_0,
    ),
}
MSR_VMX_PROCBASED_CTLS3 = 0x492
MSR_VMX_EXIT_CTLS2 = 0x493

_ALL = (1 << 64) - 1


@dataclass(frozen=True)
class ForeignProcessor:
    """A processor as its user describes it; what is not told is None, and limits nothing.

    `physical` and `linear` are the widths of addresses in bits; `msrs` the capability MSRs, by
    number.
    """

    physical: int | None = None
    linear: int | None = None
    msrs: Mapping[int, int] = field(default_factory=dict)

    @property
    def physical_limit(self) -> int:
        """The width beyond which bits of a physical address must be 0 for certain."""
        return self.physical or PHYSICAL_MOST

    def control(self, name: str) -> tuple[int, int]:
        """The bits of a control field that must be 1, and those that may be 1."""
        plain, true, everywhere = _CONTROLS[name]
        speaks = true if true in self.msrs else plain
        if speaks not in self.msrs:
            return everywhere, 0xFFFF_FFFF
        value = self.msrs[speaks]
        return value & 0xFFFF_FFFF, value >> 32

    def fixed(self, register: str) -> tuple[int, int]:
        """The bits of CR0 or CR4 that must be 1 in VMX operation, and those that may be 1."""
        first = vmx.MSR_VMX_CR0_FIXED0 if register == "CR0" else vmx.MSR_VMX_CR4_FIXED0
        must = vmx.CR0_FIXED_0 if register == "CR0" else vmx.CR4_FIXED_0
        may = vmx.CR0_FIXED_1 if register == "CR0" else _ALL
        return self.msrs.get(first, must), self.msrs.get(first + 1, may)

    def misc(self, bit: int) -> bool | None:
        """A bit of IA32_VMX_MISC, None if it is not known."""
        value = self.msrs.get(vmx.MSR_VMX_MISC)
        return None if value is None else bool(value >> bit & 1)

    @property
    def cr3_targets(self) -> int:
        """How many CR3-target values there may be."""
        value = self.msrs.get(vmx.MSR_VMX_MISC)
        return 4 if value is None else value >> 16 & 0x1FF

    def basic(self, bit: int) -> bool | None:
        """A bit of IA32_VMX_BASIC, None if it is not known."""
        value = self.msrs.get(vmx.MSR_VMX_BASIC)
        return None if value is None else bool(value >> bit & 1)

    def ept(self, bit: int) -> bool | None:
        """A bit of IA32_VMX_EPT_VPID_CAP, None if it is not known."""
        value = self.msrs.get(vmx.MSR_VMX_EPT_VPID_CAP)
        return None if value is None else bool(value >> bit & 1)


_NAMED = {
    name.removeprefix("MSR_"): number
    for name, number in vars(vmx).items()
    if name.startswith("MSR_VMX_")
} | {"VMX_PROCBASED_CTLS3": MSR_VMX_PROCBASED_CTLS3, "VMX_EXIT_CTLS2": MSR_VMX_EXIT_CTLS2}
_MSR_NAME = re.compile(
    r"\b(?:MSR_)?(?:IA32_)?(VMX_[A-Z0-9_]+)\b[^\n=:0-9]*[=:(\s]\s*(?:\(?0x4[0-9a-f]{2}\)?\s*[=:]?\s*)?"
    r"(0x[0-9a-f]+|[0-9a-f]{8,16})",
    re.IGNORECASE,
)
_MSR_NUMBER = re.compile(
    r"^\W*(?:rdmsr\s+(?:-\w+\s+(?:\d+\s+)?)*)?(?:MSR\s*\[?)?(?:0x)?(4[89][0-9a-f])\]?h?\W+(?:0x)?([0-9a-f_`]{1,17})\b",
    re.IGNORECASE | re.MULTILINE,
)
_CPUID = re.compile(r"0?x?80000008\b[^\n]*?eax\s*=\s*0x([0-9a-f]{1,8})", re.IGNORECASE)
_SIZES = re.compile(r"(\d+)\s*bits\s*physical,\s*(\d+)\s*bits\s*virtual")
_WORDS = re.compile(
    r"maximum\s+(physical|linear\s+\(virtual\))\s+address(?:\s+bits)?\s*=\s*(0x[0-9a-f]+|\d+)",
    re.IGNORECASE,
)


def read_capabilities(text: str) -> ForeignProcessor:
    """What `rdmsr`, `cpuid`, /proc/cpuinfo or a hypervisor's log say about a processor.

    MSRs are recognised by number or name with a value after it; address widths by CPUID leaf
    80000008H or in words. What is not understood is left out.
    """
    msrs: dict[int, int] = {}
    for number, digits in _MSR_NUMBER.findall(text):
        msrs[int(number, 16)] = int(re.sub("[_`]", "", digits), 16) & _ALL
    for name, digits in _MSR_NAME.findall(text):
        known = _NAMED.get(name.upper())
        if known:
            msrs[known] = int(digits, 16) & _ALL
    physical: int | None = None
    linear: int | None = None
    for digits in _CPUID.findall(text):
        physical, linear = int(digits, 16) & 0xFF, int(digits, 16) >> 8 & 0xFF
    for first, second in _SIZES.findall(text):
        physical, linear = int(first), int(second)
    for what, digits in _WORDS.findall(text):
        bits = int(digits, 0)
        physical, linear = (bits, linear) if what.lower() == "physical" else (physical, bits)
    return ForeignProcessor(
        physical if physical and 32 <= physical <= PHYSICAL_MOST else None,
        linear if linear in (48, 57) else None,
        msrs,
    )
