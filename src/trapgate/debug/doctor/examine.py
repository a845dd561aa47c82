"""Makes the checks on a VMCS: what fails, what could not be checked, what the processor said."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial

from trapgate.debug.doctor import (
    execution_rules,
    guest_rules,
    host_rules,
    segment_rules,
    state_rules,
    transition_rules,
)
from trapgate.debug.doctor.dumped_vmcs import DumpedVmcs, NotInDumpError
from trapgate.debug.doctor.processor import ForeignProcessor
from trapgate.debug.doctor.rules import Group, Rule
from trapgate.debug.doctor.words import shown
from trapgate.sdm import controls as ct
from trapgate.sdm import state as st
from trapgate.sdm.event_words import hexadecimal
from trapgate.sdm.interruption import TYPE_NMI
from trapgate.sdm.reasons import REASON_ENTRY_FAILURE, ExitReason

GROUPS: tuple[Group, ...] = (
    execution_rules.EXECUTION,
    transition_rules.EXIT,
    transition_rules.ENTRY,
    *host_rules.GROUPS,
    guest_rules.REGISTERS,
    *segment_rules.GROUPS,
    guest_rules.RIP,
    *state_rules.GROUPS,
)
"""All checks, by the sections of the SDM in its order."""


@dataclass(frozen=True)
class Finding:
    """A check that fails.

    `fields` are the values it looked at, the field at fault first; `outcome` what a processor
    reports for it; `place` counts the findings of its group from 0.
    """

    rule: Rule
    section: str
    outcome: str
    fields: tuple[tuple[str, int], ...]
    place: int = 0

    @property
    def sentence(self) -> str:
        """The field, its value in words, and the rule it breaks."""
        name, value = self.fields[0]
        others = "; ".join(shown(name, value) for name, value in self.fields[1:])
        beside = f" (with {others})" if others else ""
        return f"{shown(name, value)}: {self.rule.says}{beside}"

    def __str__(self) -> str:
        cause = f"Usual cause: {self.rule.cause}."
        return f'{self.sentence}. [SDM, "{self.section}"; {self.outcome}] {cause}'


@dataclass(frozen=True)
class Suspect:
    """A field with its value that `count` failing checks have in common."""

    name: str
    value: int
    count: int


@dataclass(frozen=True)
class Diagnosis:
    """Everything that the checks found.

    `findings` are in the order to read them: the first about the suspect, the first of each group,
    the others. `unchecked` maps what the dump does not tell to how many checks need it. `notes` say
    what may be wrong on some processors.
    """

    dumped: DumpedVmcs
    processor: ForeignProcessor
    findings: tuple[Finding, ...]
    unchecked: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def suspect(self) -> Suspect | None:
        """The field that more of the failing checks look at than any other.

        None if no field stands out: if one check fails, or several that have nothing in common.
        """
        return _suspect(self.findings)

    @property
    def passes(self) -> bool:
        """Whether no check fails, of those that could be made."""
        return not self.findings


def examine(dumped: DumpedVmcs, processor: ForeignProcessor | None = None) -> Diagnosis:
    """Make every check on `dumped`, on `processor` or one of which nothing is known."""
    cpu = processor or ForeignProcessor()
    firsts: list[Finding] = []
    others: list[Finding] = []
    unchecked: dict[str, int] = {}
    for group in GROUPS:
        place = 0
        for rule in group.rules:
            try:
                if rule.holds(dumped, cpu):
                    continue
            except NotInDumpError as missing:
                unchecked[missing.what] = unchecked.get(missing.what, 0) + 1
                continue
            values = tuple((n, dumped.values[n]) for n in rule.fields if n in dumped)
            finding = Finding(rule, group.section, group.outcome, values, place)
            (others if place else firsts).append(finding)
            place += 1
    notes = (
        *_processor_notes(dumped),
        *_unknown_bits(dumped, cpu),
        *_address_masking(dumped, firsts),
        *_without_unrestricted(dumped, cpu, firsts),
    )
    findings = [*firsts, *others]
    suspect = _suspect(findings)
    if suspect is not None:
        about = (n for n, one in enumerate(findings) if one.fields[0][0] == suspect.name)
        findings.insert(0, findings.pop(next(about, 0)))
    return Diagnosis(dumped, cpu, tuple(findings), unchecked, notes)


def _suspect(findings: Iterable[Finding]) -> Suspect | None:
    looked_at = Counter(field for finding in findings for field in finding.fields)
    most = max(looked_at.values(), default=0)
    first, *others = [field for field, count in looked_at.items() if count == most] or [("", 0)]
    return None if most < 2 or others else Suspect(*first, most)


def failing(dumped: DumpedVmcs, cpu: ForeignProcessor) -> set[str]:
    """The names of the rules that fail, for those who count them."""
    names = set()
    for group in GROUPS:
        for rule in group.rules:
            try:
                if not rule.holds(dumped, cpu):
                    names.add(rule.name)
            except NotInDumpError:
                continue
    return names


_QUALIFICATIONS = {
    2: "a page-directory-pointer-table entry is wrong",
    3: "an NMI was injected under blocking by STI, which this processor refuses",
    4: "the VMCS link pointer is wrong",
}


def _processor_notes(dumped: DumpedVmcs) -> list[str]:
    """What the processor itself says about the failure, and what only it knows."""
    said = []
    event = dumped.values.get("VM_ENTRY_INTERRUPTION_INFORMATION", 0)
    shadow = dumped.values.get("GUEST_INTERRUPTIBILITY_STATE", 0) & st.BLOCKING_BY_STI
    if shadow and event >> 31 and event >> 8 & 7 == TYPE_NMI:
        said.append(
            "an NMI is injected under blocking by STI, which some processors refuse (exit "
            "qualification 3 then)"
        )
    reason = dumped.values.get("EXIT_REASON", 0)
    qualification = dumped.values.get("EXIT_QUALIFICATION", 0)
    if reason & REASON_ENTRY_FAILURE and reason & 0xFFFF == ExitReason.ENTRY_FAILURE_MSR_LOADING:
        said.append(
            f"exit reason {hexadecimal(reason)}: no check failed, but entry {qualification} of the "
            "VM-entry MSR-load area could not be loaded (its bits 63:32 are not 0, its MSR is "
            "IA32_FS_BASE, IA32_GS_BASE or an x2APIC register, or WRMSR of its value would fault) "
            '[SDM, "Loading MSRs"]'
        )
    elif (
        reason & REASON_ENTRY_FAILURE and reason & 0xFFFF == ExitReason.ENTRY_FAILURE_MACHINE_CHECK
    ):
        said.append(f"exit reason {hexadecimal(reason)}: a machine check met the VM entry")
    elif reason & REASON_ENTRY_FAILURE and qualification in _QUALIFICATIONS:
        said.append(
            f"exit qualification {qualification}: the processor says that "
            f"{_QUALIFICATIONS[qualification]}"
        )
    return said


_KNOWN_CR4 = (
    sum(
        {
            bit
            for name, bit in vars(st).items()
            if name.startswith("CR4_") and isinstance(bit, int) and bit.bit_count() == 1
        }
    )
    | 7 << 24
    | 3 << 27
    | 1 << 19
    | 1 << 32
)


def _unknown_bits(dumped: DumpedVmcs, cpu: ForeignProcessor) -> list[str]:
    """Bits that no edition known here defines: allowed, but told."""
    notes = []
    for name in ("GUEST_CR4", "HOST_CR4"):
        bits = dumped.values.get(name, 0) & ~_KNOWN_CR4
        if bits and 0x489 not in cpu.msrs:
            notes.append(
                f"{name} has bits {hexadecimal(bits)}, which are unknown here and not judged; "
                "--capabilities with IA32_VMX_CR4_FIXED1 would tell"
            )
    return notes


_LAM = 3 << 61


def _address_masking(dumped: DumpedVmcs, found: list[Finding]) -> list[str]:
    """Bits of CR3 that not every processor has, and no capability MSR tells of."""
    bits = dumped.values.get("GUEST_CR3", 0) & _LAM
    if not bits or any(finding.rule.name == "guest-cr3-reserved" for finding in found):
        return []
    words = "linear-address masking, which a processor without LAM refuses"
    return [f"GUEST_CR3 has {hexadecimal(bits)} (bits 62:61), {words}"]


def _without_unrestricted(
    dumped: DumpedVmcs, cpu: ForeignProcessor, found: list[Finding]
) -> list[str]:
    """What fails besides if the dump does not say that the guest is unrestricted, and it is not."""
    name = "SECONDARY_PROCESSOR_BASED_CONTROLS"
    if name not in dumped.assumed or found:
        return []
    controls = dumped.values[name] & ~ct.SECONDARY_UNRESTRICTED_GUEST
    other = examine(replace(dumped.changed({name: controls}), assumed=frozenset()), cpu)
    if not other.findings:
        return []
    first = other.findings[0].sentence
    return [
        'only without "unrestricted guest" (processors before Westmere, or unrestricted_guest=N): '
        f"{first}" + (f", and {len(other.findings) - 1} more" if len(other.findings) > 1 else "")
    ]


Judge = Callable[[DumpedVmcs], set[str]]


def judge(cpu: ForeignProcessor) -> Judge:
    """`failing` on that processor."""
    return partial(failing, cpu=cpu)
