"""What a check is here, and what checks ask of a VMCS.

A `Rule` is true or false of a dumped on a processor; asking for a field that the dump lacks ends
it with NotInDumpError, and then it is listed as not checked. Conditions come first in `holds`, so
that a rule about a feature that is off asks for nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass

from trapgate.debug.doctor.bits import CR4_FRED, EXIT_SECONDARY_CONTROLS
from trapgate.debug.doctor.dumped_vmcs import DumpedVmcs
from trapgate.debug.doctor.processor import ForeignProcessor
from trapgate.sdm import controls as ct
from trapgate.sdm import state as st

Holds = Callable[[DumpedVmcs, ForeignProcessor], bool]
Mend = Callable[[int, ForeignProcessor], int]


@dataclass(frozen=True)
class Rule:
    """One check of the SDM's.

    `name` stays the same from version to version. `fields` are those it looks at, the one at fault
    first. `says` is the rule in words that follow the field's name, and `cause` says where such a
    value usually comes from. `mend` makes a right value of the first field's.
    """

    name: str
    fields: tuple[str, ...]
    says: str
    holds: Holds
    cause: str
    mend: Mend | None = None


@dataclass(frozen=True)
class Group:
    """The rules of one section of the SDM, in its order; `outcome` is what a failure looks like."""

    section: str
    outcome: str
    rules: tuple[Rule, ...]


CONTROLS_FAIL = "VM-instruction error 7"
HOST_FAILS = "VM-instruction error 8"
GUEST_FAILS = "exit reason 80000021H"

PRIMARY_TERTIARY = 1 << 17


def primary(p: DumpedVmcs) -> int:
    """The primary processor-based controls."""
    return p["PRIMARY_PROCESSOR_BASED_CONTROLS"]


def secondary(p: DumpedVmcs) -> int:
    """The secondary processor-based controls in force: 0 unless they are activated."""
    if not primary(p) & ct.PRIMARY_SECONDARY_CONTROLS:
        return 0
    return p["SECONDARY_PROCESSOR_BASED_CONTROLS"]


def tertiary(p: DumpedVmcs) -> int:
    """The tertiary processor-based controls in force: 0 unless they are activated."""
    if not primary(p) & PRIMARY_TERTIARY:
        return 0
    return p["TERTIARY_PROCESSOR_BASED_CONTROLS"]


def unrestricted(p: DumpedVmcs) -> bool:
    """Whether "unrestricted guest" is 1."""
    return bool(secondary(p) & ct.SECONDARY_UNRESTRICTED_GUEST)


def ept(p: DumpedVmcs) -> bool:
    """Whether "enable EPT" is 1."""
    return bool(secondary(p) & ct.SECONDARY_EPT)


def entry_has(p: DumpedVmcs, bit: int) -> bool:
    """Whether a VM-entry control is 1."""
    return bool(p["VM_ENTRY_CONTROLS"] & bit)


def exit_has(p: DumpedVmcs, bit: int) -> bool:
    """Whether a VM-exit control is 1."""
    return bool(p["VM_EXIT_CONTROLS"] & bit)


def secondary_exit_has(p: DumpedVmcs, bit: int) -> bool:
    """Whether a secondary VM-exit control is 1: never, unless they are activated."""
    return exit_has(p, EXIT_SECONDARY_CONTROLS) and bool(p["SECONDARY_VM_EXIT_CONTROLS"] & bit)


def fred(p: DumpedVmcs) -> bool:
    """Whether the guest will have FRED on."""
    return bool(p["GUEST_CR4"] & CR4_FRED)


def in_64_bit_mode(p: DumpedVmcs) -> bool:
    """Whether the guest will be in 64-bit mode."""
    return long_guest(p) and bool(p["GUEST_CS_ACCESS_RIGHTS"] & st.AR_L)


def long_guest(p: DumpedVmcs) -> bool:
    """Whether "IA-32e mode guest" is 1."""
    return entry_has(p, ct.ENTRY_IA32E_MODE_GUEST)


def linear_width(p: DumpedVmcs, cpu: ForeignProcessor) -> int:
    """Bits of a linear address: 57 if the processor says so, or if somebody uses LA57."""
    if cpu.linear:
        return cpu.linear
    uses = (p.values.get("HOST_CR4", 0) | p.values.get("GUEST_CR4", 0)) & st.CR4_LA57
    return 57 if uses else 48


def is_canonical(value: int, bits: int) -> bool:
    """Whether bits 63 to `bits` - 1 are all alike."""
    return value >> (bits - 1) in (0, (1 << (65 - bits)) - 1)


def made_canonical(value: int, cpu: ForeignProcessor) -> int:
    """The canonical address with the same low bits."""
    bits = cpu.linear or 48
    low = value & (1 << bits) - 1
    return low | (-1 << bits) & (1 << 64) - 1 if low >> (bits - 1) else low


def canonical(
    name: str, field: str, when: Callable[[DumpedVmcs], bool] = lambda p: True, cause: str = ""
) -> Rule:
    """The rule that `field` holds a canonical address."""
    return Rule(
        name,
        (field,),
        "must be canonical: the bits above the linear-address width all like the highest within it",
        lambda p, cpu: not when(p) or is_canonical(p[field], linear_width(p, cpu)),
        cause or "a value that was never written, was truncated, or is a physical address",
        made_canonical,
    )


def aligned(
    name: str, field: str, low: int, when: Callable[[DumpedVmcs], bool], cause: str = ""
) -> Rule:
    """The rule that `field` is a physical address whose lowest `low` bits are 0."""
    return Rule(
        name,
        (field,),
        f"must be a physical address with bits {low - 1}:0 0, within the physical-address width",
        lambda p, cpu: (
            not when(p) or (p[field] & (1 << low) - 1 == 0 and p[field] >> cpu.physical_limit == 0)
        ),
        cause or "a virtual address was written, or memory that is not aligned",
        lambda value, cpu: value & ((1 << cpu.physical_limit) - (1 << low)),
    )


def needs(
    name: str,
    fields: tuple[str, ...],
    says: str,
    when: Callable[[DumpedVmcs], bool],
    need: Callable[[DumpedVmcs], bool],
    cause: str,
) -> Rule:
    """The rule that one control needs another."""
    return Rule(name, fields, says, lambda p, cpu: not when(p) or need(p), cause)
