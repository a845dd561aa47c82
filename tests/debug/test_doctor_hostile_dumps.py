"""One wrong field in a dump of any form: the doctor names it first, and nothing in a right one."""

from collections.abc import Callable, Mapping

import pytest

from tests.debug import foreign_dumps as fd
from tests.debug.test_doctor_reads import fields
from trapgate.debug.doctor import Diagnosis, DumpedVmcs, examine, read_dump
from trapgate.sdm import controls as ct

Fields = dict[str, int]
Print = Callable[[Mapping[str, int]], list[str]]

KVM: Fields = {
    "GUEST_CR0": 0x80050033,
    "GUEST_CR4": 0x3426F0,
    "GUEST_RFLAGS": 0x10246,
    "GUEST_CS_SELECTOR": 0x10,
    "GUEST_CS_ACCESS_RIGHTS": 0xA09B,
    "GUEST_SS_SELECTOR": 0x18,
    "GUEST_IA32_EFER": 0xD01,
    "HOST_CR0": 0x80050033,
    "HOST_CR4": 0x3726E0,
    "HOST_IA32_EFER": 0xD01,
    "HOST_FS_SELECTOR": 0,
    "HOST_FS_BASE": 0x7F2D4A7FA640,
    "HOST_TR_SELECTOR": 0x40,
    "PIN_BASED_CONTROLS": 0x7F,
    "PRIMARY_PROCESSOR_BASED_CONTROLS": 0xB5A06DFA,
    "SECONDARY_PROCESSOR_BASED_CONTROLS": 0x1228EB,
    "VM_ENTRY_CONTROLS": 0xD3FF,
    "VM_EXIT_CONTROLS": 0x6FEFFB,
    "EPT_POINTER": 0x10546901E,
    "MSR_BITMAP_ADDRESS": 0x1230A7000,
    "VIRTUAL_APIC_ADDRESS": 0x1230A8000,
    "APIC_ACCESS_ADDRESS": 0x1230A9000,
    "PML_ADDRESS": 0x1230AA000,
    "EXCEPTION_BITMAP": 0x60042,
}
"""A guest and a host as KVM has them: 64-bit Linux in both, with EPT, VPID, unrestricted guest."""

USER: Fields = {
    "GUEST_CS_SELECTOR": 0x33,
    "GUEST_CS_ACCESS_RIGHTS": 0xA0FB,
    "GUEST_SS_SELECTOR": 0x2B,
    "GUEST_SS_ACCESS_RIGHTS": 0xC0F3,
    "GUEST_RIP": 0x7F3A12345678,
}
LEGACY: Fields = {
    "GUEST_CR0": 0x80000031,
    "GUEST_CR3": 0x2000,
    "GUEST_CR4": 0x2010,
    "GUEST_RIP": 0xC0101234,
    "GUEST_RSP": 0xC0405000,
    "GUEST_GS_BASE": 0,
    "GUEST_IA32_EFER": 0,
    "GUEST_CS_ACCESS_RIGHTS": 0xC09B,
    "VM_ENTRY_CONTROLS": 0xD1FF,
}
REAL: Fields = {
    **LEGACY,
    "GUEST_CR0": 0x30,
    "GUEST_CR4": 0x2000,
    "GUEST_RIP": 0xFFF0,
    "GUEST_RFLAGS": 2,
    "GUEST_CS_SELECTOR": 0xF000,
    "GUEST_CS_BASE": 0xF0000,
    **{f"GUEST_{name}_LIMIT": 0xFFFF for name in ("ES", "CS", "SS", "DS", "FS", "GS")},
    **{f"GUEST_{name}_ACCESS_RIGHTS": 0x93 for name in ("ES", "SS", "DS", "FS", "GS")},
    "GUEST_CS_ACCESS_RIGHTS": 0x9B,
    **{f"GUEST_{name}_SELECTOR": 0 for name in ("ES", "SS", "DS", "FS", "GS")},
}
HALTED: Fields = {"GUEST_ACTIVITY_STATE": 1, "GUEST_RFLAGS": 0x202}
INJECTED: Fields = {
    "GUEST_RFLAGS": 0x202,
    "VM_ENTRY_INTERRUPTION_INFORMATION": 0x80000B0E,
    "VM_ENTRY_EXCEPTION_ERROR_CODE": 7,
    "VM_EXIT_INSTRUCTION_LENGTH": 3,
}
SOFTWARE: Fields = {
    "VM_ENTRY_INTERRUPTION_INFORMATION": 0x80000480,
    "VM_ENTRY_INSTRUCTION_LENGTH": 2,
}
POSTED: Fields = {
    "PIN_BASED_CONTROLS": 0xFF,
    "SECONDARY_PROCESSOR_BASED_CONTROLS": 0x122BEB,
    "VM_EXIT_CONTROLS": 0x6FEFFB,
    "POSTED_INTERRUPT_NOTIFICATION_VECTOR": 0xF2,
    "POSTED_INTERRUPT_DESCRIPTOR_ADDRESS": 0x1230AB040,
}
STATES = {"": {}, "user": USER, "legacy": LEGACY, "real": REAL, "halted": HALTED,
          "injected": INJECTED, "software": SOFTWARE, "posted": POSTED}  # fmt: skip

KVM_4, KVM_6, XEN, XEN_OLD, VBOX, NAMES, HAXM, COMMENTED, HYPERDBG, BOCHS, QEMU, SREGS, GURU = (
    fd.FORMS["kvm 4"], fd.FORMS["kvm 6"], fd.xen, fd.xen_older, fd.virtualbox, fd.linux_names,
    fd.haxm, fd.commented, fd.hyperdbg, fd.bochs, fd.qemu, fd.sregs, fd.guru,
)  # fmt: skip
LATER = fd.kvm_later

# The form, the state of the guest before, the field that is wrong, and its value.
CASES: list[tuple[Print, str, str, int]] = [
    (KVM_4, "", "GUEST_CR0", 0x80050013),  # NE
    (KVM_4, "", "GUEST_CR0", 0x180050033),
    (KVM_6, "", "GUEST_CR4", 0x3406F0),  # VMXE
    (KVM_6, "", "GUEST_CR4", 0x3426D0),  # PAE
    (KVM_6, "legacy", "GUEST_CR4", 0x22010),  # PCIDE
    (KVM_4, "", "GUEST_CR3", 0x0010_0000_1234_5000),
    (KVM_4, "", "GUEST_RIP", 0x8000_0000_0000_0000),
    (KVM_6, "legacy", "GUEST_RIP", 0x1_C010_1234),
    (KVM_4, "", "GUEST_RFLAGS", 0x10244),  # bit 1
    (KVM_4, "", "GUEST_RFLAGS", 0x1024A),  # bit 3
    (XEN, "", "GUEST_RFLAGS", 0x30246),  # VM
    (XEN, "", "GUEST_DR7", 0xFFFF_FFFF_0000_0400),
    (KVM_6, "", "GUEST_IA32_SYSENTER_ESP", 0x0000_8000_0000_0000),
    (XEN_OLD, "", "GUEST_IA32_SYSENTER_EIP", 0x8000_0000_0000_0000),
    (KVM_6, "", "GUEST_IA32_EFER", 0x1D01),  # SVME
    (KVM_6, "", "GUEST_IA32_EFER", 0x901),  # LMA
    (KVM_4, "", "GUEST_IA32_EFER", 0xC01),  # LME
    (KVM_6, "", "GUEST_IA32_PAT", 0x0007040600070402),
    (KVM_4, "", "GUEST_IA32_DEBUGCTL", 0x10001),
    (LATER, "", "GUEST_CS_ACCESS_RIGHTS", 0xA091),  # data
    (KVM_6, "", "GUEST_CS_ACCESS_RIGHTS", 0xA01B),  # not present
    (KVM_6, "", "GUEST_SS_ACCESS_RIGHTS", 0xC091),  # read-only
    (KVM_4, "", "GUEST_DS_ACCESS_RIGHTS", 0xC092),  # not accessed
    (KVM_4, "", "GUEST_ES_ACCESS_RIGHTS", 0xC083),  # S
    (XEN, "", "GUEST_FS_ACCESS_RIGHTS", 0xC099),  # execute-only
    (XEN_OLD, "", "GUEST_GS_ACCESS_RIGHTS", 0xC013),
    (XEN, "", "GUEST_DS_BASE", 0x1_0000_0000),
    (KVM_6, "", "GUEST_FS_BASE", 0x0100_0000_0000_0000),
    (KVM_6, "", "GUEST_TR_ACCESS_RIGHTS", 0x89),  # available
    (KVM_6, "", "GUEST_TR_ACCESS_RIGHTS", 0x1008B),  # unusable
    (XEN, "", "GUEST_TR_SELECTOR", 0x44),  # TI
    (KVM_4, "", "GUEST_LDTR_ACCESS_RIGHTS", 0x92),
    (XEN_OLD, "", "GUEST_GDTR_LIMIT", 0xFFFFFFFF),
    (KVM_6, "", "GUEST_IDTR_BASE", 0xFFFF_0000_0000_0000),
    (XEN, "", "GUEST_ACTIVITY_STATE", 4),
    (KVM_6, "user", "GUEST_ACTIVITY_STATE", 1),
    (KVM_6, "halted", "GUEST_INTERRUPTIBILITY_STATE", 3),
    (KVM_4, "injected", "GUEST_INTERRUPTIBILITY_STATE", 4),
    (KVM_4, "", "GUEST_INTERRUPTIBILITY_STATE", 0x20),
    (KVM_6, "", "GUEST_PENDING_DEBUG_EXCEPTIONS", 0xFFFF0FF0),
    (KVM_4, "", "HOST_CR4", 0x3726C0),  # PAE
    (KVM_6, "", "HOST_CR3", 0xFFFF_8880_0123_4000),
    (KVM_6, "", "HOST_DS_SELECTOR", 0x2B),
    (KVM_4, "", "HOST_TR_SELECTOR", 0),
    (XEN, "", "HOST_GS_BASE", 0x0100_0000_0000_0000),
    (XEN, "", "HOST_RIP", 0x0800_0000_0000_0000),
    (LATER, "", "HOST_IA32_EFER", 0x801),
    (LATER, "", "HOST_IA32_PAT", 0x0303030303030303),
    (KVM_4, "", "PIN_BASED_CONTROLS", 0x69),
    (XEN, "", "PRIMARY_PROCESSOR_BASED_CONTROLS", 0xB5A04C78),
    (XEN_OLD, "", "SECONDARY_PROCESSOR_BASED_CONTROLS", 0x1228E9),  # EPT off beneath unrestricted
    (KVM_6, "", "SECONDARY_PROCESSOR_BASED_CONTROLS", 0x1228FB),  # both ways of APIC accesses
    (KVM_4, "", "VM_ENTRY_CONTROLS", 0xD200),
    (KVM_4, "", "VM_ENTRY_CONTROLS", 0xD1FF),  # a 64-bit guest entered as one of 32 bits
    (KVM_6, "", "VM_EXIT_CONTROLS", 0x6FE000),
    (KVM_6, "", "EPT_POINTER", 0x10546901B),
    (XEN, "", "EPT_POINTER", 0x105469006),
    (KVM_6, "", "EPT_POINTER", 0xFFFF_8881_0546_901E),
    (KVM_4, "", "VIRTUAL_PROCESSOR_IDENTIFIER", 0),
    (LATER, "", "TPR_THRESHOLD", 0x20),
    (LATER, "", "APIC_ACCESS_ADDRESS", 0x1230A9010),
    (LATER, "posted", "POSTED_INTERRUPT_NOTIFICATION_VECTOR", 0x1F2),
    (KVM_6, "injected", "VM_ENTRY_INTERRUPTION_INFORMATION", 0x8000030E),  # no error code
    (KVM_6, "injected", "VM_ENTRY_INTERRUPTION_INFORMATION", 0x80001B0E),
    (KVM_4, "injected", "VM_ENTRY_INTERRUPTION_INFORMATION", 0x80000B20),
    (XEN, "injected", "VM_ENTRY_INTERRUPTION_INFORMATION", 0x8000010E),
    (XEN, "software", "VM_ENTRY_INSTRUCTION_LENGTH", 16),
    (XEN_OLD, "injected", "VM_ENTRY_EXCEPTION_ERROR_CODE", 0x8000_0007),
    (VBOX, "", "GUEST_CS_ACCESS_RIGHTS", 0xA39B),
    (VBOX, "", "GUEST_RFLAGS", 0x8002),
    (VBOX, "", "VMCS_LINK_POINTER", 0xFFFFFFFF),
    (VBOX, "", "HOST_CS_SELECTOR", 0x13),
    (NAMES, "", "CR3_TARGET_COUNT", 5),
    (NAMES, "", "MSR_BITMAP_ADDRESS", 0x1230A7008),
    (NAMES, "", "VIRTUAL_APIC_ADDRESS", 0x1230A8004),
    (NAMES, "", "PML_ADDRESS", 0x1230AA001),
    (NAMES, "posted", "POSTED_INTERRUPT_DESCRIPTOR_ADDRESS", 0x1230AB020),
    (HAXM, "", "GUEST_SS_ACCESS_RIGHTS", 0x4093),
    (HAXM, "", "HOST_FS_SELECTOR", 7),
    (HAXM, "legacy", "GUEST_DS_LIMIT", 0x1_0000),
    (COMMENTED, "", "GUEST_TR_LIMIT", 0x10_0067),
    (COMMENTED, "", "VMCS_LINK_POINTER", 0x1234),
    (COMMENTED, "", "GUEST_CR3", 0x8000_0000_1A02_F000),
    (HYPERDBG, "", "HOST_TR_BASE", 0x1234_0000_0000_0000),
    (HYPERDBG, "", "GUEST_TR_SELECTOR", 0x1C),
    (HYPERDBG, "", "MSR_BITMAP_ADDRESS", 0xFFFF_A405_FDDF_F000),
    (BOCHS, "", "HOST_SS_SELECTOR", 0x11),
    (BOCHS, "", "HOST_IA32_SYSENTER_ESP", 0x8000_0000_0000_0000),
    (BOCHS, "", "VM_EXIT_CONTROLS", 0x200),
    (QEMU, "", "GUEST_RIP", 0x4000_0000_0000_0000),
    (QEMU, "legacy", "GUEST_SS_ACCESS_RIGHTS", 0xC09B),
    (QEMU, "real", "GUEST_CS_ACCESS_RIGHTS", 0xBB),
    (SREGS, "", "GUEST_TR_ACCESS_RIGHTS", 0x83),
    (GURU, "", "GUEST_CR4", 0x2600),
    (GURU, "legacy", "GUEST_ES_ACCESS_RIGHTS", 0xC893),
    (GURU, "", "GUEST_IDTR_LIMIT", 0xFFFFF),
]
"""As they come out of kernels 4.x to 6.x, Xen 4.5 to 4.19, VirtualBox, HAXM, drivers, QEMU."""

PASTED = [fd.dmesg, fd.journal, fd.mail, fd.as_is]


def made(state: str) -> Fields:
    return {**fields(), **KVM, **STATES[state]}


def diagnosed(form: Print, values: Fields, turn: int = 0) -> Diagnosis:
    pasted = fd.serial if form in (XEN, XEN_OLD) else PASTED[turn % len(PASTED)]
    (dumped,) = read_dump(pasted(form(values)))
    return examine(dumped)


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda n: f"{n}-{CASES[n][2]}")
def test_the_culprit_is_named_first(number: int) -> None:
    form, state, field, value = CASES[number]
    good, bad = made(state), {**made(state), field: value}
    assert [str(one) for one in diagnosed(form, good, number).findings] == []
    diagnosis = diagnosed(form, bad, number)
    assert not diagnosis.passes, field
    named = dict(diagnosis.findings[0].fields)
    suspect = diagnosis.suspect
    assert field in named or (suspect is not None and suspect.name == field), named
    own = [one for one in diagnosis.findings if one.fields[0][0] == field]
    assert not own or diagnosis.findings[0] in own


@pytest.mark.parametrize("state", STATES)
def test_right_dumps_of_all_forms_pass(state: str) -> None:
    forms: list[Print] = [*fd.FORMS.values(), BOCHS]
    if state not in ("injected", "software", "posted"):
        forms += fd.REGISTERS.values()
    for form in forms:
        diagnosis = diagnosed(form, made(state))
        assert [str(one) for one in diagnosis.findings] == [], form


VALID: list[tuple[str, Fields]] = [
    ("unusable segments", {f"GUEST_{n}_ACCESS_RIGHTS": 0x1C000 for n in ("DS", "ES", "FS", "GS")}),
    ("a null SS in 64-bit mode", {"GUEST_SS_SELECTOR": 0, "GUEST_SS_ACCESS_RIGHTS": 0x1C000}),
    ("a single step", {"GUEST_RFLAGS": 0x346}),
    ("a single step in a shadow", {"GUEST_RFLAGS": 0x346, "GUEST_INTERRUPTIBILITY_STATE": 2,
                                   "GUEST_PENDING_DEBUG_EXCEPTIONS": 0x4000}),
    ("blocked NMIs", {"GUEST_INTERRUPTIBILITY_STATE": 8}),
    ("an NMI into HLT", {**HALTED, "VM_ENTRY_INTERRUPTION_INFORMATION": 0x80000202}),
    ("an interrupt", {"GUEST_RFLAGS": 0x202, "VM_ENTRY_INTERRUPTION_INFORMATION": 0x800000EC}),
    ("an injected #DB", {"VM_ENTRY_INTERRUPTION_INFORMATION": 0x80000301}),
    ("INT3 again", {"VM_ENTRY_INTERRUPTION_INFORMATION": 0x80000603,
                    "VM_ENTRY_INSTRUCTION_LENGTH": 1}),
    ("an old injection, not valid", {"VM_ENTRY_INTERRUPTION_INFORMATION": 0x00001FFF,
                                     "VM_ENTRY_EXCEPTION_ERROR_CODE": 0xFFFFFFFF}),
    ("wait-for-SIPI", {"GUEST_ACTIVITY_STATE": 3}),
    ("five levels", {"GUEST_CR4": 0x3436F0, "HOST_CR4": 0x3736E0, "EPT_POINTER": 0x105469026,
                     "GUEST_GS_BASE": 0xFF11_0000_1000_0000}),
    ("write-back with dirty flags", {"EPT_POINTER": 0x10546905E}),
    ("protection keys and shadow stacks", {"GUEST_CR4": 0xF426F0, "VM_ENTRY_CONTROLS": 0x50D3FF}),
    ("a PCID", {"GUEST_CR3": 0x1A02F801, "GUEST_CR4": 0x3626F0}),
    ("masked addresses", {"GUEST_CR3": 1 << 62 | 0x1A02F000}),
    ("a 16-bit stack", {**LEGACY, "GUEST_SS_ACCESS_RIGHTS": 0x93, "GUEST_SS_LIMIT": 0xFFFF}),
    ("an expand-down stack", {**LEGACY, "GUEST_SS_ACCESS_RIGHTS": 0xC097}),
    ("conforming code", {**USER, "GUEST_CS_ACCESS_RIGHTS": 0xA0DF}),
    ("DS of ring 3 in ring 0", {"GUEST_DS_SELECTOR": 0x2B, "GUEST_DS_ACCESS_RIGHTS": 0xC0F3}),
    ("big real mode", {**REAL, "GUEST_DS_LIMIT": 0xFFFFFFFF, "GUEST_DS_ACCESS_RIGHTS": 0x8093}),
    ("an LDT", {"GUEST_LDTR_ACCESS_RIGHTS": 0x82, "GUEST_LDTR_SELECTOR": 0x50,
                "GUEST_LDTR_LIMIT": 0xFFFF, "GUEST_LDTR_BASE": 0xFFFF_8880_0000_0000}),
    ("a 16-bit TSS", {**LEGACY, "GUEST_TR_ACCESS_RIGHTS": 0x83}),
    ("virtual-8086 mode", {
        **LEGACY, "GUEST_RFLAGS": 0x23202, "GUEST_RIP": 0x7C00,
        **{f"GUEST_{n}_{part}": value for n in ("ES", "CS", "SS", "DS", "FS", "GS")
           for part, value in (("SELECTOR", 0x1000), ("BASE", 0x10000), ("LIMIT", 0xFFFF),
                               ("ACCESS_RIGHTS", 0xF3))}}),
    ("PAE", {**LEGACY, "GUEST_CR4": 0x2030, "GUEST_PDPTE0": 0x1001, "GUEST_PDPTE3": 0x4019}),
    ("without secondary controls", {
        "PRIMARY_PROCESSOR_BASED_CONTROLS": 0x35A06DFA, "EPT_POINTER": 0xBAD,
        "SECONDARY_PROCESSOR_BASED_CONTROLS": ct.SECONDARY_UNRESTRICTED_GUEST}),
    ("the host's process selectors cleared", {"HOST_DS_SELECTOR": 0, "HOST_ES_SELECTOR": 0}),
]  # fmt: skip
"""Rare, and right."""


@pytest.mark.parametrize("number", range(len(VALID)), ids=lambda n: VALID[n][0])
def test_what_is_rare_and_right_raises_no_alarm(number: int) -> None:
    for form in (KVM_4, LATER, XEN):
        diagnosis = diagnosed(form, {**made(""), **VALID[number][1]})
        assert [str(one) for one in diagnosis.findings] == []


def test_real_mode_in_virtual_8086_mode_is_virtualbox_s() -> None:
    broken = {**made("real"), "GUEST_GS_LIMIT": 0xFFFFFFFF, "GUEST_GS_ACCESS_RIGHTS": 0xC0F3}
    text = fd.as_is([*fd.guru(broken), "VT-x info:", "Real-on-v86 active = true"])
    (dumped,) = read_dump(text)
    assert [one.rule.name for one in examine(dumped).findings] == ["gs-v8086-limit"]
    assert "Real-on-v86" in " ".join(dumped.notes)


def test_what_failing_checks_have_in_common_is_told() -> None:
    diagnosis = diagnosed(KVM_4, {**made(""), "VM_ENTRY_CONTROLS": 0xD1FF})
    assert diagnosis.suspect is not None
    assert diagnosis.suspect.name == "VM_ENTRY_CONTROLS"
    assert examine(DumpedVmcs({**made(""), "GUEST_RFLAGS": 0})).suspect is None
