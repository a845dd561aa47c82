"""Every check of VM entry, satisfied and violated, against the SDM's text written down apart."""

from collections.abc import Iterator
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conformance.vmx import violations
from tests.conformance.vmx.good import good_fields
from tests.conformance.vmx.sdm_checks import broken_rules
from tests.conformance.vmx.violations import Changes, Row, apply, event, off, on
from tests.unit.test_entry_checks import complete, supported
from trapgate.debug.doctor import DumpedVmcs, ForeignProcessor, examine, repair
from trapgate.debug.doctor.examine import GROUPS
from trapgate.debug.doctor.fields import FIELDS, width
from trapgate.debug.doctor.template import template
from trapgate.sdm import controls as ct
from trapgate.vmx.capability_msrs import capability_msrs

OURS = ForeignProcessor(40, 48, capability_msrs(extended=False, secondary=ct.SECONDARY_WITH_EPT))
"""The product's own processor, as its capability MSRs describe it."""

IN_MEMORY = ("VMCS_LINK_POINTER", "GUEST_CR3", "GUEST_CR4")
"""What these point to a dump does not show."""
NMI_BY_STI = 1217
"""Some processors check it, and no capability MSR tells: a note."""
HOST_MODE = 602, 603
"""A dump does not say which mode the VMM is in."""


NEWER_PENDING = 1 << 11, 1 << 16
"""Bus-lock detected, and RTM with what belongs to it: newer processors have these."""


def dumped(fields: dict[str, int]) -> DumpedVmcs:
    return DumpedVmcs({name: fields.get(name, 0) for name in FIELDS})


def judged(row: Row) -> bool:
    # A dump does not show memory: VTPR (117), the VMCS link's region, PDPTEs.
    return row.check not in (*HOST_MODE, NMI_BY_STI, 117, 1232, 1233, *range(1300, 1304))


CASES = [(row, bits) for row in violations.ROWS if judged(row) for bits in row.bits]


@pytest.mark.parametrize(("row", "bits"), CASES, ids=lambda x: getattr(x, "check", x))
def test_each_check_of_the_product_s_is_made_here_too(row: Row, bits: int) -> None:
    base = complete(good_fields(bits))
    good = examine(dumped(apply(base, row.good)), OURS)
    assert [str(finding) for finding in good.findings] == []
    expected = supported(long=bits == 64, python=False)
    for changes in row.bad:
        fields = apply(base, changes)
        wrong = {rule.field for rule in broken_rules(fields, expected)}
        found = examine(dumped(fields), OURS).findings
        if wrong == {"GUEST_RIP"} and not found:
            continue  # bit 47 alone: see test_rip_may_have_run_into_the_hole
        if fields["GUEST_PENDING_DEBUG_EXCEPTIONS"] in NEWER_PENDING:
            continue
        assert found, changes
        looked_at = {name for finding in found for name, _ in finding.fields}
        assert wrong & looked_at, (changes, wrong)


CHANGED = [
    "GUEST_CR0", "GUEST_CR4", "GUEST_IA32_EFER", "GUEST_RFLAGS", "GUEST_DR7", "GUEST_RIP",
    "GUEST_CS_ACCESS_RIGHTS", "GUEST_SS_ACCESS_RIGHTS", "GUEST_DS_ACCESS_RIGHTS",
    "GUEST_TR_ACCESS_RIGHTS", "GUEST_LDTR_ACCESS_RIGHTS", "GUEST_CS_SELECTOR", "GUEST_SS_SELECTOR",
    "GUEST_CS_LIMIT", "GUEST_FS_BASE", "GUEST_DS_BASE", "GUEST_INTERRUPTIBILITY_STATE",
    "GUEST_ACTIVITY_STATE", "GUEST_PENDING_DEBUG_EXCEPTIONS", "VM_ENTRY_CONTROLS",
    "VM_EXIT_CONTROLS", "PIN_BASED_CONTROLS", "PRIMARY_PROCESSOR_BASED_CONTROLS",
    "VM_ENTRY_INTERRUPTION_INFORMATION", "VM_ENTRY_EXCEPTION_ERROR_CODE", "HOST_CR0", "HOST_CR4",
    "HOST_IA32_EFER", "HOST_CS_SELECTOR", "HOST_TR_BASE", "GUEST_IA32_PAT", "GUEST_GDTR_LIMIT",
]  # fmt: skip


@given(data=st.data(), bits=st.sampled_from([32, 64]))
@settings(max_examples=400)
def test_spoiled_fields_are_judged_as_the_sdm_has_it(data: st.DataObject, bits: int) -> None:
    fields = complete(good_fields(bits))
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(CHANGED))
        most = width(name)
        flip = st.integers(0, most - 1).map(lambda n, old=fields[name]: old ^ 1 << n)  # type: ignore[misc]
        fields[name] = data.draw(flip | st.integers(0, (1 << most) - 1))
    wrong = {rule.field for rule in broken_rules(fields, supported(long=bits == 64, python=False))}
    if bits == 64 and fields["GUEST_RIP"] >> 47 == 1:
        wrong.discard("GUEST_RIP")
    if fields["GUEST_PENDING_DEBUG_EXCEPTIONS"] & (1 << 11 | 1 << 16):
        wrong.discard("GUEST_PENDING_DEBUG_EXCEPTIONS")  # newer processors have these bits
    if fields["GUEST_INTERRUPTIBILITY_STATE"] >> 4:
        wrong.discard("GUEST_INTERRUPTIBILITY_STATE")
    if fields["VM_EXIT_CONTROLS"] & 1 << 9 != (bits == 64) << 9:
        return  # the mode of the VMM itself, which no dump has
    found = examine(dumped(fields), OURS).findings
    looked_at = {name for finding in found for name, _ in finding.fields}
    if "GUEST_CR4" in wrong or not wrong:
        return  # entries in memory
    assert wrong & looked_at, (wrong, [str(f) for f in found])


@given(data=st.data(), bits=st.sampled_from([32, 64]))
@settings(max_examples=300)
def test_nothing_is_said_of_what_enters(data: st.DataObject, bits: int) -> None:
    fields = complete(good_fields(bits))
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(CHANGED))
        fields[name] ^= 1 << data.draw(st.integers(0, width(name) - 1))
    expected = supported(long=bits == 64, python=False)
    if not broken_rules(fields, expected):
        assert [str(f) for f in examine(dumped(fields), OURS).findings] == []
        assert [str(f) for f in examine(dumped(fields)).findings] == []


def test_an_nmi_under_blocking_by_sti_is_noted() -> None:
    fields = {**template("long-mode").values, "GUEST_INTERRUPTIBILITY_STATE": 1}
    fields |= {"GUEST_RFLAGS": 0x202, "VM_ENTRY_INTERRUPTION_INFORMATION": event(2, 2)}
    diagnosis = examine(DumpedVmcs(fields))
    assert diagnosis.passes
    assert "an NMI is injected under blocking by STI" in " ".join(diagnosis.notes)


def test_rip_may_have_run_into_the_hole() -> None:
    """SDM, "Checks on Guest RIP, RFLAGS, and SSP": bits 63:N alike, not 63:N-1."""
    fields = {**template("long-mode").values, "GUEST_RIP": 1 << 47}
    assert examine(DumpedVmcs(fields)).passes
    fields["GUEST_RIP"] = 1 << 48
    assert [f.rule.name for f in examine(DumpedVmcs(fields)).findings] == ["rip-canonical"]


PIN, PRIMARY, SECONDARY = (
    "PIN_BASED_CONTROLS",
    "PRIMARY_PROCESSOR_BASED_CONTROLS",
    "SECONDARY_PROCESSOR_BASED_CONTROLS",
)
TERTIARY, EXIT, ENTRY = (
    "TERTIARY_PROCESSOR_BASED_CONTROLS",
    "VM_EXIT_CONTROLS",
    "VM_ENTRY_CONTROLS",
)


def second(*bits: int) -> Changes:
    """EPT and these secondary controls."""
    return {PRIMARY: on(31), SECONDARY: on(1, *bits), "EPT_POINTER": 0x1E}


VID: Changes = {**second(9), PRIMARY: on(21, 31), PIN: on(0), "VIRTUAL_APIC_ADDRESS": 0x1000}
POSTED: Changes = {
    **VID,
    PIN: on(0, 7),
    EXIT: on(15),
    "POSTED_INTERRUPT_NOTIFICATION_VECTOR": 0xF5,
    "POSTED_INTERRUPT_DESCRIPTOR_ADDRESS": 0x40,
}
CET: Changes = {ENTRY: on(20)}
FRED: Changes = {"GUEST_CR4": on(32)}
LATER_EXIT: Changes = {EXIT: on(31), "SECONDARY_VM_EXIT_CONTROLS": 1 << 1 | 1 << 2}
FRED_LOADS: list[tuple[str, Changes]] = [("GUEST", {ENTRY: on(23)}), ("HOST", LATER_EXIT)]
TERTIARY_ON: Changes = {**second(), PRIMARY: on(17, 31)}
IPI: Changes = {
    **TERTIARY_ON,
    PRIMARY: on(17, 21, 31),
    TERTIARY: on(4),
    "PID_POINTER_TABLE_ADDRESS": 8,
    "VIRTUAL_APIC_ADDRESS": 0x1000,
}


def fred_rows(side: str, switch: Changes) -> Iterator[tuple[str, Changes, list[Changes]]]:
    """What FRED's MSRs of one side must be when they are loaded."""
    config, low = f"{side}_IA32_FRED_CONFIG", side.lower()
    yield f"{low}-fred-config", switch, [{config: 1 << n} for n in (2, 4, 5, 11)]
    yield f"{low}-fred-config-canonical", switch, [{config: 1 << 62}]
    for n in (1, 2, 3):
        for kind, odd in (("RSP", 0x20), ("SSP", 4)):
            field, rule = f"{side}_IA32_FRED_{kind}{n}", f"{low}-fred-{kind.lower()}{n}"
            yield f"{rule}-aligned", switch, [{field: odd}]
            yield rule, switch, [{field: 1 << 50}]


NEWER: list[tuple[str, Changes, list[Changes]]] = [
    ("tpr-threshold-reserved", {PRIMARY: on(21), "VIRTUAL_APIC_ADDRESS": 0x1000,
      "TPR_THRESHOLD": 15}, [{"TPR_THRESHOLD": 16}]),
    ("virtual-apic-address", {PRIMARY: on(21), "VIRTUAL_APIC_ADDRESS": 0x1000},
     [{"VIRTUAL_APIC_ADDRESS": 0x1008}, {"VIRTUAL_APIC_ADDRESS": 1 << 52}]),
    ("apic-features-without-tpr-shadow", VID, [{PRIMARY: off(21)}]),
    ("x2apic-and-apic-accesses", {**second(4), PRIMARY: on(21, 31),
      "VIRTUAL_APIC_ADDRESS": 0x1000}, [{SECONDARY: on(0)}]),
    ("apic-access-address", second(0), [{"APIC_ACCESS_ADDRESS": 0xFEE00010}]),
    ("interrupt-delivery-without-exiting", VID, [{PIN: off(0)}]),
    ("posted-interrupts-without-delivery", POSTED, [{SECONDARY: off(9)}]),
    ("posted-interrupts-without-acknowledge", POSTED, [{EXIT: off(15)}]),
    ("posted-interrupt-vector", POSTED, [{"POSTED_INTERRUPT_NOTIFICATION_VECTOR": 0x100}]),
    ("posted-interrupt-descriptor", POSTED, [{"POSTED_INTERRUPT_DESCRIPTOR_ADDRESS": 0x20}]),
    ("pml-without-ept", {**second(17), "PML_ADDRESS": 0x1000}, [{SECONDARY: off(1)}]),
    ("pml-address", {**second(17), "PML_ADDRESS": 0x1000}, [{"PML_ADDRESS": 0x1800}]),
    ("mode-based-execute-without-ept", second(22), [{SECONDARY: off(1)}]),
    ("sub-page-write-without-ept", second(23), [{SECONDARY: off(1)}]),
    ("sub-page-permission-table", second(23), [{"SUB_PAGE_PERMISSION_TABLE_POINTER": 8}]),
    ("vm-functions-eptp-switching-without-ept", {**second(13), "VM_FUNCTION_CONTROLS": 1},
     [{SECONDARY: off(1)}]),
    ("eptp-list", {**second(13), "VM_FUNCTION_CONTROLS": 1}, [{"EPTP_LIST_ADDRESS": 1}]),
    ("vmread-bitmap", second(14), [{"VMREAD_BITMAP_ADDRESS": 0x10}]),
    ("vmwrite-bitmap", second(14), [{"VMWRITE_BITMAP_ADDRESS": 0x10}]),
    ("virtualization-exception-address", second(18),
     [{"VIRTUALIZATION_EXCEPTION_INFORMATION_ADDRESS": 0x10}]),
    ("trace-addresses-without-rtit-ctl", {**second(24), ENTRY: on(18), EXIT: on(25)},
     [{ENTRY: off(18)}, {EXIT: off(25)}]),
    ("trace-addresses-without-ept", {**second(24), ENTRY: on(18), EXIT: on(25)},
     [{SECONDARY: off(1)}]),
    ("tsc-multiplier-zero", {**second(25), "TSC_MULTIPLIER": 1}, [{"TSC_MULTIPLIER": 0}]),
    ("tertiary-hlat-without-ept", {**TERTIARY_ON, TERTIARY: on(1)}, [{SECONDARY: off(1)}]),
    ("hlat-pointer", {**TERTIARY_ON, TERTIARY: on(1), "HLAT_POINTER": 0x1018},
     [{"HLAT_POINTER": 0x1020}, {"HLAT_POINTER": 1}]),
    ("ipi-virtualization-without-tpr-shadow", IPI, [{PRIMARY: off(21)}]),
    ("pid-pointer-table", IPI, [{"PID_POINTER_TABLE_ADDRESS": 4}]),
    ("entry-to-smm-outside", {}, [{ENTRY: on(10)}, {ENTRY: on(11)}]),
    ("guest-cet-without-wp", {"GUEST_CR4": on(23), "GUEST_CR0": on(16)}, [{"GUEST_CR0": off(16)}]),
    ("host-cet-without-wp", {"HOST_CR4": on(23), "HOST_CR0": on(16)}, [{"HOST_CR0": off(16)}]),
    ("guest-s-cet", CET, [{"GUEST_IA32_S_CET": 1 << 6}, {"GUEST_IA32_S_CET": 3 << 10}]),
    ("guest-s-cet-canonical", CET, [{"GUEST_IA32_S_CET": 1 << 62}]),
    ("guest-ssp-aligned", CET, [{"GUEST_SSP": 2}]),
    ("guest-ssp", CET, [{"GUEST_SSP": 1 << 62}]),
    ("guest-ssp-table", CET, [{"GUEST_IA32_INTERRUPT_SSP_TABLE_ADDR": 1 << 62}]),
    ("host-s-cet", {EXIT: on(28)}, [{"HOST_IA32_S_CET": 1 << 9}]),
    ("guest-pkrs", {ENTRY: on(22)}, [{"GUEST_IA32_PKRS": 1 << 32}]),
    ("host-pkrs", {EXIT: on(29)}, [{"HOST_IA32_PKRS": 1 << 32}]),
    ("guest-perf-global-ctrl", {ENTRY: on(13)}, [{"GUEST_IA32_PERF_GLOBAL_CTRL": 1 << 60}]),
    ("host-perf-global-ctrl", {EXIT: on(12)}, [{"HOST_IA32_PERF_GLOBAL_CTRL": 1 << 60}]),
    ("guest-bndcfgs", {ENTRY: on(16)}, [{"GUEST_IA32_BNDCFGS": 4}]),
    ("guest-bndcfgs-base", {ENTRY: on(16)}, [{"GUEST_IA32_BNDCFGS": 1 << 62}]),
    ("guest-rtit-ctl", {ENTRY: on(18)}, [{"GUEST_IA32_RTIT_CTL": 1 << 63}]),
    ("guest-lbr-ctl", {ENTRY: on(21)}, [{"GUEST_IA32_LBR_CTL": 1 << 4}]),
    ("guest-uinv", {ENTRY: on(19)}, [{"GUEST_UINV": 0x100}]),
    ("host-s-cet-high", {EXIT: on(28)}, [{EXIT: off(9), "HOST_IA32_S_CET": 1 << 32}]),
    ("guest-s-cet-high", CET, [{ENTRY: off(9), "GUEST_IA32_S_CET": 1 << 32}]),
    ("ssp-high", CET, [{ENTRY: off(9), "GUEST_SSP": 1 << 32},
                       {"GUEST_CS_ACCESS_RIGHTS": off(13), "GUEST_SSP": 1 << 32}]),
    ("host-ssp-high", {EXIT: on(28)}, [{EXIT: off(9), "HOST_SSP": 1 << 32}]),
    ("guest-spec-ctrl", {ENTRY: on(24)}, [{"GUEST_IA32_SPEC_CTRL": 1 << 9}]),
    ("host-spec-ctrl", {**LATER_EXIT, "HOST_IA32_SPEC_CTRL": 0x401},
     [{"HOST_IA32_SPEC_CTRL": 1 << 63}]),
    *(row for side, switch in FRED_LOADS for row in fred_rows(side, switch)),
    ("guest-legacy-fred", FRED, [{ENTRY: off(9)}]),
    ("fred-ss-dpl", FRED, [{"GUEST_SS_ACCESS_RIGHTS": on(5)}, {"GUEST_SS_ACCESS_RIGHTS": on(6)}]),
    ("fred-cs-l", FRED, [{"GUEST_CS_ACCESS_RIGHTS": off(13)}]),
    ("rflags-fred-iopl", FRED, [{"GUEST_RFLAGS": 0x1002, "GUEST_SS_ACCESS_RIGHTS": 0xC0F3}]),
    ("blocking-sti-with-fred", {**FRED, "GUEST_RFLAGS": 0x202, "GUEST_INTERRUPTIBILITY_STATE": 1},
     [{"GUEST_SS_ACCESS_RIGHTS": 0xC0F3}]),
    ("injected-reserved", {**FRED, "VM_ENTRY_INTERRUPTION_INFORMATION": event(6, 3) | 1 << 13},
     [{"GUEST_CR4": off(32)}, {"VM_ENTRY_INTERRUPTION_INFORMATION": event(6, 4) | 1 << 13}]),
    ("injected-vector", {**FRED, "VM_ENTRY_INTERRUPTION_INFORMATION": event(2, 7)},
     [{"GUEST_CR4": off(32)}, {"VM_ENTRY_INTERRUPTION_INFORMATION": event(3, 7)}]),
    ("low-pasid-directory", second(21), [{"LOW_PASID_DIRECTORY_ADDRESS": 0x800}]),
    ("high-pasid-directory", second(21), [{"HIGH_PASID_DIRECTORY_ADDRESS": 1 << 52}]),
    ("pid-pointer-last", {**IPI, "LAST_PID_POINTER_INDEX": 0xFFFF},
     [{"PID_POINTER_TABLE_ADDRESS": (1 << 52) - 8}]),
    ("activity-sipi-in-smm", {"GUEST_ACTIVITY_STATE": 3}, [{ENTRY: on(10)}]),
    ("blocking-smi-missing", {}, [{ENTRY: on(10)}]),
    ("pending-rtm", {"GUEST_PENDING_DEBUG_EXCEPTIONS": 0x11000},
     [{"GUEST_PENDING_DEBUG_EXCEPTIONS": 0x10000}, {"GUEST_INTERRUPTIBILITY_STATE": 2}]),
    ("blocking-enclave-and-mov-ss", {"GUEST_INTERRUPTIBILITY_STATE": 0x10},
     [{"GUEST_INTERRUPTIBILITY_STATE": 0x12}]),
    ("link-pointer-zero", {}, [{"VMCS_LINK_POINTER": 0}]),
    ("injected-error-code", {"VM_ENTRY_INTERRUPTION_INFORMATION": event(14, 3, code=True)},
     [{"VM_ENTRY_EXCEPTION_ERROR_CODE": 0x10001}]),
]  # fmt: skip
"""Checks that the product's processor does not have the features for: good, then each time bad."""


@pytest.mark.parametrize(("name", "good", "bad"), NEWER, ids=[row[0] for row in NEWER])
def test_checks_of_newer_features(name: str, good: Changes, bad: list[Changes]) -> None:
    base = apply({**dict.fromkeys(FIELDS, 0), **template("long-mode").values}, good)
    assert [str(finding) for finding in examine(DumpedVmcs(base)).findings] == []
    for changes in bad:
        spoiled = DumpedVmcs(apply(base, changes))
        diagnosis = examine(spoiled)
        assert name in [finding.rule.name for finding in diagnosis.findings]
        mended = repair(spoiled)
        assert not mended.left
        assert examine(spoiled.changed(mended.changes)).passes


@cache
def covered() -> set[str]:
    names = {row[0] for row in NEWER}
    for row, bits in CASES:
        for changes in row.bad:
            fields = apply(complete(good_fields(bits)), changes)
            names |= {finding.rule.name for finding in examine(dumped(fields), OURS).findings}
    return names


def test_every_rule_fails_somewhere_in_these_tests() -> None:
    needs_more = {
        "activity-unsupported",
        "host-ssp",
        "host-ssp-aligned",
        "host-ssp-table",
        "host-s-cet-canonical",
        "tertiary-reserved",
        "secondary-exit-controls",
        "vm-functions-reserved",
        "rip-canonical",
        "secondary-controls-must-be-1",  # of no processor so far
    }
    every = {rule.name for group in GROUPS for rule in group.rules}
    assert every - covered() - needs_more == set()


def test_rules_of_capabilities() -> None:
    told = ForeignProcessor(msrs={0x485: 0, 0x48C: 1 << 6 | 1 << 14, 0x491: 1, 0x492: 0, 0x493: 2})
    base = {**dict.fromkeys(FIELDS, 0), **template("long-mode").values}
    rows: tuple[tuple[str, Changes], ...] = (
        ("activity-unsupported", {"GUEST_ACTIVITY_STATE": 1}),
        ("vm-functions-reserved", {**second(13), "VM_FUNCTION_CONTROLS": 2}),
        ("tertiary-reserved", {**TERTIARY_ON, TERTIARY: 1}),
        ("secondary-exit-controls", {EXIT: on(31), "SECONDARY_VM_EXIT_CONTROLS": 1}),
        ("cr3-target-count", {"CR3_TARGET_COUNT": 4}),
        ("ept-memory-type", {"EPT_POINTER": 3 << 3, SECONDARY: on(1), PRIMARY: on(31)}),
        ("ept-walk-length", {"EPT_POINTER": 4 << 3 | 6, SECONDARY: on(1), PRIMARY: on(31)}),
    )
    for name, changes in rows:
        assert examine(DumpedVmcs(apply(base, changes))).passes
        found = examine(DumpedVmcs(apply(base, changes)), told).findings
        assert [finding.rule.name for finding in found] == [name]


def test_rule_names_are_unique_and_fields_exist() -> None:
    rules = [rule for group in GROUPS for rule in group.rules]
    assert len({rule.name for rule in rules}) == len(rules) > 240
    assert {name for rule in rules for name in rule.fields} <= set(FIELDS)
    assert all(len(rule.cause) > 15 for rule in rules)


REPAIRS: list[tuple[Changes, dict[str, int]]] = [
    ({"GUEST_RFLAGS": 0}, {"GUEST_RFLAGS": 2}),
    ({"GUEST_CR3": 1 << 63 | 0x1000}, {"GUEST_CR3": 0x1000}),
    ({"GUEST_DR7": 1 << 62 | 0x400}, {"GUEST_DR7": 0x400}),
    ({"GUEST_DS_ACCESS_RIGHTS": 0}, {"GUEST_DS_ACCESS_RIGHTS": 0x10000}),
    ({"GUEST_CS_ACCESS_RIGHTS": 0xE09B}, {"GUEST_CS_ACCESS_RIGHTS": 0xA09B}),
    ({"GUEST_TR_ACCESS_RIGHTS": 0x89}, {"GUEST_TR_ACCESS_RIGHTS": 0x8B}),
    ({"VM_ENTRY_INTERRUPTION_INFORMATION": event(0x30, 0)}, {"GUEST_RFLAGS": 0x202}),
    ({"HOST_ES_SELECTOR": 0x2B}, {"HOST_ES_SELECTOR": 0x28}),
    (
        {"GUEST_RFLAGS": 0x102, "GUEST_INTERRUPTIBILITY_STATE": 2},
        {"GUEST_PENDING_DEBUG_EXCEPTIONS": 0x4000},
    ),
    (
        {"GUEST_RFLAGS": 0, "HOST_FS_BASE": 1 << 63},
        {"GUEST_RFLAGS": 2, "HOST_FS_BASE": 0},
    ),
]


@pytest.mark.parametrize(("changes", "mended"), REPAIRS)
def test_the_smallest_change_is_found(changes: Changes, mended: dict[str, int]) -> None:
    spoiled = DumpedVmcs(apply(dict(template("long-mode").values), changes))
    found = repair(spoiled)
    assert found.changes == mended
    assert not found.left


def test_real_mode_is_told_apart_by_unrestricted_guest() -> None:
    values = dict(template("real-mode").values)
    assert examine(DumpedVmcs(values)).passes
    named = "SECONDARY_PROCESSOR_BASED_CONTROLS"
    guessed = DumpedVmcs(values, assumed=frozenset({named}))
    assert "only without" in " ".join(examine(guessed).notes)
    values[named] &= ~ct.SECONDARY_UNRESTRICTED_GUEST
    findings = examine(DumpedVmcs(values)).findings
    assert findings[0].rule.name == "guest-cr0-must-be-1"
    assert "PE, NE and PG" in findings[0].sentence


def test_the_words_say_field_value_rule_section_and_cause() -> None:
    values = {**template("long-mode").values, "GUEST_SS_ACCESS_RIGHTS": 0}
    first, *others = examine(DumpedVmcs(values)).findings
    assert str(first).startswith(
        "GUEST_SS_ACCESS_RIGHTS = 0H (type 0: system type 0, DPL 0): type (bits 3:0) must be 3 or 7"
    )
    assert 'SDM, "Checks on Guest Segment Registers"' in str(first)
    assert "10000H (unusable)" in str(first)
    assert [finding.place for finding in others] == [1, 2, 3]
