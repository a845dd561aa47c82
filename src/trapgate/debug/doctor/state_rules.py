"""SDM, "Checks on Guest Non-Register State", and on page-directory-pointer-table entries."""

from trapgate.debug.doctor.dumped_vmcs import DumpedVmcs, NotInDumpError
from trapgate.debug.doctor.processor import ForeignProcessor
from trapgate.debug.doctor.rules import (
    GUEST_FAILS,
    Group,
    Rule,
    entry_has,
    ept,
    fred,
    long_guest,
    secondary,
)
from trapgate.debug.doctor.transition_rules import injects, kind, vector
from trapgate.sdm import controls as ct
from trapgate.sdm import state as st
from trapgate.sdm.interruption import (
    TYPE_EXTERNAL_INTERRUPT,
    TYPE_HARDWARE_EXCEPTION,
    TYPE_NMI,
    TYPE_OTHER_EVENT,
)
from trapgate.sdm.vectors import DB, MC

_ENTRY = "VM_ENTRY_CONTROLS"
_INFO = "VM_ENTRY_INTERRUPTION_INFORMATION"
_BLOCKING = "GUEST_INTERRUPTIBILITY_STATE"
_ACTIVITY = "GUEST_ACTIVITY_STATE"
_PENDING = "GUEST_PENDING_DEBUG_EXCEPTIONS"
_ALL_ONES = (1 << 64) - 1
_BY_STI_OR_SS = st.BLOCKING_BY_STI | st.BLOCKING_BY_MOV_SS
_ENCLAVE = 1 << 4
_PENDING_RESERVED = ~(0xF | 1 << 11 | 1 << 12 | 1 << 14 | 1 << 16) & _ALL_ONES
_PDPTE_LOW_RESERVED = 0x1E6


def _awakes(p: DumpedVmcs, cpu: ForeignProcessor) -> bool:
    state = p[_ACTIVITY]
    if state == st.ACTIVITY_ACTIVE or state > st.ACTIVITY_WAIT_FOR_SIPI or not injects(p):
        return True
    check = kind(p) == TYPE_HARDWARE_EXCEPTION and vector(p) == MC
    if state == st.ACTIVITY_HLT:
        debug = kind(p) == TYPE_HARDWARE_EXCEPTION and vector(p) == DB
        signal = kind(p) in (TYPE_EXTERNAL_INTERRUPT, TYPE_NMI, TYPE_OTHER_EVENT)
        return signal or debug or check
    return state == st.ACTIVITY_SHUTDOWN and (kind(p) == TYPE_NMI or check)


def _single_step(p: DumpedVmcs) -> bool:
    return bool(p["GUEST_RFLAGS"] & st.RFLAGS_TF) and not p["GUEST_IA32_DEBUGCTL"] & st.DEBUGCTL_BTF


def _held_back(p: DumpedVmcs) -> bool:
    return bool(p[_BLOCKING] & _BY_STI_OR_SS) or p[_ACTIVITY] == st.ACTIVITY_HLT


def _injected(p: DumpedVmcs, wanted: int) -> bool:
    return injects(p) and kind(p) == wanted


def _activity_supported(p: DumpedVmcs, cpu: ForeignProcessor) -> bool:
    state = p[_ACTIVITY]
    return not 1 <= state <= 3 or cpu.misc(5 + state) is not False


STATE = Group(
    "Checks on Guest Non-Register State",
    GUEST_FAILS,
    (
        Rule(
            "activity-unknown",
            (_ACTIVITY,),
            "must be 0 (active), 1 (HLT), 2 (shutdown) or 3 (wait-for-SIPI)",
            lambda p, cpu: p[_ACTIVITY] <= st.ACTIVITY_WAIT_FOR_SIPI,
            "the field was never written",
            lambda value, cpu: 0,
        ),
        Rule(
            "activity-unsupported",
            (_ACTIVITY,),
            "must be a state that IA32_VMX_MISC bits 8:6 report",
            _activity_supported,
            "the state comes from another processor, as after a migration",
            lambda value, cpu: 0,
        ),
        Rule(
            "activity-hlt-dpl",
            (_ACTIVITY, "GUEST_SS_ACCESS_RIGHTS"),
            "must not be HLT if the DPL of SS is not 0",
            lambda p, cpu: (
                p[_ACTIVITY] != st.ACTIVITY_HLT or not p["GUEST_SS_ACCESS_RIGHTS"] & st.AR_DPL
            ),
            "the state was not made active when an event woke the guest",
            lambda value, cpu: 0,
        ),
        Rule(
            "activity-blocked",
            (_ACTIVITY, _BLOCKING),
            "must be active if there is blocking by STI or by MOV SS",
            lambda p, cpu: p[_ACTIVITY] == st.ACTIVITY_ACTIVE or not p[_BLOCKING] & _BY_STI_OR_SS,
            "HLT was emulated behind STI without clearing the interrupt shadow",
            lambda value, cpu: 0,
        ),
        Rule(
            "activity-injection",
            (_ACTIVITY, _INFO),
            "must be one that lets the injected event in: HLT external interrupts, NMIs, #DB, #MC "
            "and pending MTF; shutdown NMIs and #MC; wait-for-SIPI nothing",
            _awakes,
            "make the guest active when something is injected",
            lambda value, cpu: 0,
        ),
        Rule(
            "activity-sipi-in-smm",
            (_ACTIVITY, _ENTRY),
            'must not be wait-for-SIPI if "entry to SMM" is 1',
            lambda p, cpu: (
                p[_ACTIVITY] != st.ACTIVITY_WAIT_FOR_SIPI or not entry_has(p, ct.ENTRY_ENTRY_TO_SMM)
            ),
            "the VMCS of a monitor in SMM was changed by half",
            lambda value, cpu: 0,
        ),
        Rule(
            "blocking-reserved",
            (_BLOCKING,),
            "bits 31:5 must be 0, and bit 4 (enclave interruption) without SGX",
            lambda p, cpu: p[_BLOCKING] >> 5 == 0,
            "the field was never written",
            lambda value, cpu: value & 0x1F,
        ),
        Rule(
            "blocking-sti-and-mov-ss",
            (_BLOCKING,),
            "blocking by STI (bit 0) and by MOV SS (bit 1) must not both be 1",
            lambda p, cpu: p[_BLOCKING] & _BY_STI_OR_SS != _BY_STI_OR_SS,
            "an emulated STI or MOV SS added its shadow to the other's",
        ),
        Rule(
            "blocking-sti-without-if",
            (_BLOCKING, "GUEST_RFLAGS"),
            "blocking by STI (bit 0) must be 0 if RFLAGS.IF is 0",
            lambda p, cpu: (
                not p[_BLOCKING] & st.BLOCKING_BY_STI or bool(p["GUEST_RFLAGS"] & st.RFLAGS_IF)
            ),
            "RFLAGS was changed (CLI or POPF emulated, or restored) and the STI shadow stayed",
            lambda value, cpu: value & ~st.BLOCKING_BY_STI,
        ),
        Rule(
            "blocking-sti-with-fred",
            (_BLOCKING, "GUEST_CR4", "GUEST_SS_ACCESS_RIGHTS"),
            "blocking by STI (bit 0) must be 0 if CR4.FRED is 1 and the DPL of SS is 3",
            lambda p, cpu: (
                not p[_BLOCKING] & st.BLOCKING_BY_STI
                or not fred(p)
                or p["GUEST_SS_ACCESS_RIGHTS"] & st.AR_DPL != st.AR_DPL
            ),
            "an STI of ring 3 was emulated with its shadow",
            lambda value, cpu: value & ~st.BLOCKING_BY_STI,
        ),
        Rule(
            "blocking-interrupt",
            (_BLOCKING, _INFO),
            "blocking by STI and by MOV SS must be 0 if an external interrupt is injected",
            lambda p, cpu: (
                not p[_BLOCKING] & _BY_STI_OR_SS or not _injected(p, TYPE_EXTERNAL_INTERRUPT)
            ),
            'an interrupt was injected into an interrupt shadow: wait with "interrupt-window '
            'exiting"',
            lambda value, cpu: value & ~_BY_STI_OR_SS,
        ),
        Rule(
            "blocking-nmi-by-mov-ss",
            (_BLOCKING, _INFO),
            "blocking by MOV SS (bit 1) must be 0 if an NMI is injected",
            lambda p, cpu: not p[_BLOCKING] & st.BLOCKING_BY_MOV_SS or not _injected(p, TYPE_NMI),
            'an NMI was injected into an interrupt shadow: wait with "NMI-window exiting"',
            lambda value, cpu: value & ~st.BLOCKING_BY_MOV_SS,
        ),
        Rule(
            "blocking-smi",
            (_BLOCKING, _ENTRY),
            "blocking by SMI (bit 2) must be 0 outside SMM",
            lambda p, cpu: (
                not p[_BLOCKING] & st.BLOCKING_BY_SMI or entry_has(p, ct.ENTRY_ENTRY_TO_SMM)
            ),
            "SMM is emulated, and what the guest shall see was put into the VMCS",
            lambda value, cpu: value & ~st.BLOCKING_BY_SMI,
        ),
        Rule(
            "blocking-smi-missing",
            (_BLOCKING, _ENTRY),
            'blocking by SMI (bit 2) must be 1 if "entry to SMM" is 1',
            lambda p, cpu: (
                bool(p[_BLOCKING] & st.BLOCKING_BY_SMI) or not entry_has(p, ct.ENTRY_ENTRY_TO_SMM)
            ),
            "the VMCS of a monitor in SMM was changed by half",
            lambda value, cpu: value | st.BLOCKING_BY_SMI,
        ),
        Rule(
            "blocking-virtual-nmi",
            (_BLOCKING, _INFO, "PIN_BASED_CONTROLS"),
            'blocking by NMI (bit 3) must be 0 if an NMI is injected and "virtual NMIs" is 1',
            lambda p, cpu: (
                not p[_BLOCKING] & st.BLOCKING_BY_NMI
                or not _injected(p, TYPE_NMI)
                or not p["PIN_BASED_CONTROLS"] & ct.PIN_VIRTUAL_NMIS
            ),
            'an NMI was injected while one is being handled: wait with "NMI-window exiting"',
            lambda value, cpu: value & ~st.BLOCKING_BY_NMI,
        ),
        Rule(
            "blocking-enclave-and-mov-ss",
            (_BLOCKING,),
            "enclave interruption (bit 4) and blocking by MOV SS (bit 1) must not both be 1",
            lambda p, cpu: not p[_BLOCKING] & _ENCLAVE or not p[_BLOCKING] & st.BLOCKING_BY_MOV_SS,
            "an emulated MOV SS added its shadow to an exit from an enclave",
        ),
        Rule(
            "pending-reserved",
            (_PENDING,),
            "bits 63:17, 15, 13 and 10:4 must be 0",
            lambda p, cpu: p[_PENDING] & _PENDING_RESERVED == 0,
            "DR6 was copied into the field with its bits that are always 1",
            lambda value, cpu: value & ~_PENDING_RESERVED,
        ),
        Rule(
            "pending-bs-missing",
            (_PENDING, "GUEST_RFLAGS", "GUEST_IA32_DEBUGCTL", _BLOCKING, _ACTIVITY),
            "BS (bit 14) must be 1 if RFLAGS.TF is 1 and DEBUGCTL.BTF is 0, under blocking by STI "
            "or MOV SS, or in HLT",
            lambda p, cpu: (
                bool(p[_PENDING] & st.PENDING_BS) or not _held_back(p) or not _single_step(p)
            ),
            "the VMM set the shadow while the guest is being single-stepped (an emulated MOV SS or "
            "STI, or a debugger's TF): set BS too, or drop the shadow",
            lambda value, cpu: value | st.PENDING_BS,
        ),
        Rule(
            "pending-bs-surplus",
            (_PENDING, "GUEST_RFLAGS", "GUEST_IA32_DEBUGCTL", _BLOCKING, _ACTIVITY),
            "BS (bit 14) must be 0 if RFLAGS.TF is 0 or DEBUGCTL.BTF is 1, under blocking by STI "
            "or MOV SS, or in HLT",
            lambda p, cpu: not p[_PENDING] & st.PENDING_BS or not _held_back(p) or _single_step(p),
            "TF was cleared after the trap had been noted",
            lambda value, cpu: value & ~st.PENDING_BS,
        ),
        Rule(
            "pending-rtm",
            (_PENDING, _BLOCKING),
            "with RTM (bit 16) enabled breakpoint (bit 12) must be 1, bits 11:0 and 15:13 be 0, "
            "and there be no blocking by MOV SS",
            lambda p, cpu: (
                not p[_PENDING] & st.PENDING_RTM
                or (
                    p[_PENDING] & 0xFFFF == st.PENDING_ENABLED_BREAKPOINT
                    and not p[_BLOCKING] & st.BLOCKING_BY_MOV_SS
                )
            ),
            "a debug exception of a transaction was merged with another one",
        ),
        Rule(
            "link-pointer",
            ("VMCS_LINK_POINTER",),
            "must be all ones, or the physical address of a page",
            lambda p, cpu: (
                p["VMCS_LINK_POINTER"] == _ALL_ONES
                or (
                    p["VMCS_LINK_POINTER"] & 0xFFF == 0
                    and p["VMCS_LINK_POINTER"] >> cpu.physical_limit == 0
                )
            ),
            "only the low half was written; or the field was never set to all ones",
            lambda value, cpu: _ALL_ONES,
        ),
        Rule(
            "link-pointer-zero",
            ("VMCS_LINK_POINTER", "SECONDARY_PROCESSOR_BASED_CONTROLS"),
            'must be all ones unless "VMCS shadowing" is 1; at address 0 no VMCS has its revision '
            "identifier",
            lambda p, cpu: (
                p["VMCS_LINK_POINTER"] != 0 or bool(secondary(p) & ct.SECONDARY_VMCS_SHADOWING)
            ),
            "the field was never written",
            lambda value, cpu: _ALL_ONES,
        ),
    ),
)


def _pae(p: DumpedVmcs) -> bool:
    return bool(p["GUEST_CR0"] & st.CR0_PG and p["GUEST_CR4"] & st.CR4_PAE) and not long_guest(p)


def _right_pdpte(p: DumpedVmcs, name: str, cpu: ForeignProcessor) -> bool:
    if not _pae(p):
        return True
    if not ept(p):
        raise NotInDumpError(f"{name} (in memory, where GUEST_CR3 points)")
    return not p[name] & 1 or (
        p[name] & _PDPTE_LOW_RESERVED == 0 and p[name] >> cpu.physical_limit == 0
    )


PDPTES = Group(
    "Checks on Guest Page-Directory-Pointer-Table Entries",
    GUEST_FAILS,
    tuple(
        Rule(
            f"pdpte-{n}",
            (f"GUEST_PDPTE{n}", "GUEST_CR4", "SECONDARY_PROCESSOR_BASED_CONTROLS"),
            "must have bits 8:5, 2:1 and those beyond the physical-address width 0 if present",
            lambda p, cpu, name=f"GUEST_PDPTE{n}": _right_pdpte(p, name, cpu),  # type: ignore[misc]
            "the four fields were not loaded from where CR3 points, or hold other entries",
            lambda value, cpu: value & ((1 << cpu.physical_limit) - 1) & ~_PDPTE_LOW_RESERVED,
        )
        for n in range(4)
    ),
)

GROUPS = (STATE, PDPTES)
