"""What a VM entry takes from memory and puts in force, and checks of controls one at a time."""

from collections.abc import Mapping

import numpy as np
import pytest

from tests.conformance.vmx.good import good_fields
from tests.unit.core_guest import Guest
from trapgate.compiler.dialect import Cells
from trapgate.decision.criteria_rules import Action, Clause, Operator, Rule, encode
from trapgate.decision.fault_values import BY_NAME
from trapgate.instructions import virtual_apic as apic
from trapgate.paging.ept import MODE_BASED_EXECUTE
from trapgate.sdm import cells as f
from trapgate.sdm import checks as ck
from trapgate.sdm import controls as ct
from trapgate.sdm import state, vmx
from trapgate.sdm.fields import Field
from trapgate.vmx import entry
from trapgate.vmx.checks import controls as of_controls
from trapgate.vmx.checks.guest_state import check_guest_state

HARDWARE, PAGE = 3, 0x9000
GP, PF = 13, 14
SHADOW, ACCESSES = ct.PRIMARY_TPR_SHADOW, ct.SECONDARY_VIRTUALIZE_APIC_ACCESSES
DELIVERY = ct.SECONDARY_VIRTUAL_INTERRUPT_DELIVERY


def enter(guest: Guest) -> int:
    return int(entry.enter(guest.v, guest.r, guest.mem, guest.rows, guest.head))


def vmcs(bits: int = 32, **changes: int) -> Cells:
    """Cells of a VMCS that passes all checks, but for the changes."""
    v = np.zeros(f.LENGTH, np.int64)
    for name, value in {**good_fields(bits), **changes}.items():
        v[Field[name].cell] = value - (1 << 64) if value >> 63 else value
    return v


def check(current: int, *, bits: int = 32, may: int = 0xFFFF_FFFF, **changes: int) -> int:
    """The check of controls that the VMCS at physical address `current` fails."""
    return int(of_controls.check_controls(vmcs(bits, **changes), current, may))


def state_check(current: int, bits: int = 32, **changes: int) -> int:
    """The check of the guest state that fails."""
    memory = np.zeros(0x2000, np.int64)
    return int(check_guest_state(vmcs(bits, **changes), memory, current))


def secondary(bits: int, *, primary: int = 0, active: bool = True) -> Mapping[str, int]:
    return {
        "PRIMARY_PROCESSOR_BASED_CONTROLS": ct.PRIMARY_ALLOWED_0
        | active * ct.PRIMARY_SECONDARY_CONTROLS
        | primary,
        "SECONDARY_PROCESSOR_BASED_CONTROLS": bits,
    }


# The criteria table


def with_table(address: int) -> tuple[Guest, bytes]:
    rules = [
        Rule(Action.EXIT, (Clause(BY_NAME["code"], Operator.ALL_BITS, 3),)),
        Rule(Action.DELIVER, ()),
    ]
    table = encode(rules)
    guest = Guest()
    guest.v = np.concatenate([guest.v, np.zeros(f.LENGTH - len(guest.v), np.int64)])
    guest.set(
        CRITERIA_TABLE_ADDRESS=address,
        CRITERIA_TABLE_LENGTH=len(table),
        CRITERIA_TABLE_RULES=len(rules),
    )
    return guest, table


def test_a_criteria_table_comes_from_the_address_in_the_vmcs() -> None:
    guest, table = with_table(PAGE)
    guest.write(PAGE, table)
    assert enter(guest) == entry.RUNS
    assert guest.v[f.TABLE_START :].tobytes()[: len(table)] == table


def test_without_an_address_the_table_is_behind_the_fields() -> None:
    guest, table = with_table(0)
    guest.v[f.TABLE_START :][: len(table) // 8] = np.frombuffer(table, np.int64)
    assert enter(guest) == entry.RUNS
    assert guest.v[f.TABLE_START :].tobytes()[: len(table)] == table


@pytest.mark.parametrize("address", [1 << 39, PAGE + 4])
def test_a_table_that_memory_does_not_have(address: int) -> None:
    guest, _ = with_table(address)
    assert enter(guest) == entry.FAILED
    assert guest["FAILED_CHECK"] == ck.TABLE_ADDRESS
    assert guest["VM_INSTRUCTION_ERROR"] == 7


def test_a_bad_table_names_its_rule_and_clause() -> None:
    guest, table = with_table(PAGE)
    bad = bytearray(table)
    bad[8] = 0xFF  # the first clause's value
    guest.write(PAGE, bytes(bad))
    guest.write(PAGE + len(table) - 8, (0x1_0000).to_bytes(8, "little"))  # and the second rule
    assert enter(guest) == entry.FAILED
    assert (guest["FAILED_CHECK"], guest.v[f.FAILED_RULE]) == (ck.TABLE_VALUE, 0)
    guest.write(PAGE, table[:9])
    assert enter(guest) == entry.FAILED
    assert (guest["FAILED_CHECK"], guest.v[f.FAILED_RULE]) == (ck.TABLE_RULE, 1 << 16)


# Pages in force


@pytest.mark.parametrize("active", [False, True])
@pytest.mark.parametrize(
    ("control", "address", "in_force", "mark"),
    [
        (ct.SECONDARY_EPT, "EPT_POINTER", "EPT_POINTER_IN_FORCE", 0x1E),
        (ACCESSES, "APIC_ACCESS_ADDRESS", "APIC_ACCESS_PAGE_IN_FORCE", 0),
        (ct.SECONDARY_PML, "PML_ADDRESS", "PML_ADDRESS_IN_FORCE", 0),
    ],
)
def test_pages_of_activated_controls_are_in_force(
    control: int, address: str, in_force: str, mark: int, active: bool
) -> None:
    everything = ct.SECONDARY_EPT | ACCESSES | ct.SECONDARY_PML
    for bits in (control, everything, everything & ~control, 0):
        v = vmcs(**{**secondary(bits, active=active), address: 0x5000 | mark})
        entry.put_ept_in_force(v)
        wanted = 0x5000 | (mark or 1) if active and bits & control else 0
        assert v[Field[in_force].cell] == wanted


@pytest.mark.parametrize("active", [False, True])
@pytest.mark.parametrize("bits", [0, ct.SECONDARY_UNRESTRICTED_GUEST])
def test_an_unrestricted_guest_needs_both_controls(bits: int, active: bool) -> None:
    v = vmcs(**secondary(bits, active=active))
    assert of_controls.unrestricted_guest(v) == (active and bits != 0)


@pytest.mark.parametrize("loads", [0, ct.ENTRY_LOAD_EFER])
@pytest.mark.parametrize("mode", [0, ct.ENTRY_IA32E_MODE_GUEST])
@pytest.mark.parametrize("efer", [0, 1, 0x100, 0x501, 0xD01])
def test_lma_and_lme_follow_the_mode_unless_efer_is_loaded(
    efer: int, mode: int, loads: int
) -> None:
    v = vmcs(VM_ENTRY_CONTROLS=ct.ENTRY_ALLOWED_0 | mode | loads, GUEST_IA32_EFER=efer)
    entry.set_long_mode(v)
    assert v[f.GUEST_IA32_EFER] == (efer if loads else efer & 0x801 | (0x500 if mode else 0))


def test_the_pointers_of_pae_paging_come_from_memory() -> None:
    guest = Guest()
    guest.set(
        GUEST_CR0=guest["GUEST_CR0"] | state.CR0_PG, GUEST_CR4=state.CR4_PAE, GUEST_CR3=0x10020
    )
    entries = [0x11001, 0x12001, 0, 0x13001]
    guest.write(0x10020, b"".join(one.to_bytes(8, "little") for one in entries))
    assert enter(guest) == entry.RUNS
    assert [guest[f"GUEST_PDPTE{n}"] for n in range(4)] == entries


PAGING = {"GUEST_CR0": 1 << 31 | 1 << 5 | 1, "GUEST_CR4": state.CR4_PAE | 1 << 13}
UNPAGED = {"GUEST_CR0": 1 << 5 | 1, **secondary(ct.SECONDARY_UNRESTRICTED_GUEST)}
RESERVED = 1 << 1 | 1
"""A present page-directory pointer with a reserved bit set."""


@pytest.mark.parametrize(
    ("pointers", "changes", "wanted"),
    [
        ({0x5000: RESERVED}, {**PAGING, "GUEST_CR3": 0x5000}, ck.PDPTE),
        ({0x5018: RESERVED}, {**PAGING, "GUEST_CR3": 0x5000}, ck.PDPTE + 3),
        # There are four of them.
        ({0x5020: RESERVED}, {**PAGING, "GUEST_CR3": 0x5000}, 0),
        # CR3 has 32 bits, the lowest five of which are none of the address.
        ({0x5000: RESERVED << 8}, {**PAGING, "GUEST_CR3": 0x5001}, 0),
        ({}, {**PAGING, "GUEST_CR3": 0x8000_5000}, ck.PDPTE),
        # Without PAE, or without paging, nobody looks at them.
        ({0x5000: RESERVED}, {**PAGING, "GUEST_CR4": 1 << 13, "GUEST_CR3": 0x5000}, 0),
        ({0x5000: RESERVED}, {**PAGING, **UNPAGED, "GUEST_CR3": 0x5000}, 0),
    ],
)
def test_where_entry_looks_for_pointers_of_pae_paging(
    pointers: dict[int, int], changes: dict[str, int], wanted: int
) -> None:
    memory = np.zeros(0x2000, np.int64)
    for address, pointer in pointers.items():
        memory[address >> 3] = pointer
    assert check_guest_state(vmcs(**changes), memory, -1) == wanted


def test_under_a_frame_map_the_pointers_are_in_the_vmcs() -> None:
    v = vmcs(**PAGING, GUEST_CR3=0x5000, GUEST_PDPTE2=RESERVED)
    memory = np.zeros(0x2000, np.int64)
    assert check_guest_state(v, memory, -1) == 0
    v[f.FRAME_MAP_LENGTH] = 1
    assert check_guest_state(v, memory, -1) == ck.PDPTE_FIELD + 2


def test_the_ept_pointer_says_whether_execution_is_by_mode() -> None:
    for mode in (0, ct.SECONDARY_MODE_BASED_EXECUTE):
        v = vmcs(**secondary(ct.SECONDARY_EPT | mode), EPT_POINTER=0x701E)
        assert of_controls.ept_pointer(v) == 0x701E | (MODE_BASED_EXECUTE if mode else 0)


# Virtual-8086 mode


def test_segments_of_virtual_8086_mode() -> None:
    fields = {"GUEST_RFLAGS": 2 | 1 << 17}
    # Selectors have no RPL; LDTR, and TR, are as elsewhere.
    for n, name in enumerate(("ES", "CS", "SS", "DS", "FS", "GS")):
        fields[f"GUEST_{name}_SELECTOR"] = 0x1000 | n
        fields[f"GUEST_{name}_BASE"] = 0x10000 | n << 4
        fields[f"GUEST_{name}_LIMIT"] = 0xFFFF
        fields[f"GUEST_{name}_ACCESS_RIGHTS"] = 0xF3
    assert state_check(-1, **fields) == 0
    assert state_check(-1, **fields, GUEST_LDTR_BASE=0x8000, GUEST_LDTR_LIMIT=5) == 0
    for n, name in enumerate(("ES", "CS", "SS", "DS", "FS", "GS")):
        for field, value, first in (
            ("BASE", 0x10000, ck.V8086_BASE),
            ("LIMIT", 0xFFFE, ck.V8086_LIMIT),
            ("ACCESS_RIGHTS", 0xB3, ck.V8086_RIGHTS),
        ):
            if n or field != "BASE":
                wrong = fields | {f"GUEST_{name}_{field}": value}
                assert state_check(-1, **wrong) == first + n


# The virtual-APIC page


def virtual_apic(bits: int, *, task: int, threshold: int, primary: int = SHADOW) -> Guest:
    guest = Guest()
    guest.write(PAGE + 0x80, task.to_bytes(4, "little"))
    guest.set(
        **secondary(bits, primary=primary), VIRTUAL_APIC_ADDRESS=PAGE, TPR_THRESHOLD=threshold
    )
    return guest


@pytest.mark.parametrize("bits", [0, ACCESSES, DELIVERY, ACCESSES | DELIVERY])
@pytest.mark.parametrize("primary", [0, SHADOW])
@pytest.mark.parametrize(("task", "threshold"), [(0x1F, 2), (0x20, 2), (0x2F, 3)])
def test_the_task_priority_against_the_threshold(
    bits: int, primary: int, task: int, threshold: int
) -> None:
    guest = virtual_apic(bits, task=task, threshold=threshold, primary=primary)
    below = task >> 4 < threshold and primary != 0
    refused = of_controls.check_threshold(guest.v, guest.mem)
    assert refused == (ck.THRESHOLD_ABOVE if below and bits == 0 else 0)
    entry.put_ept_in_force(guest.v)
    due = bool(entry.is_due_below_threshold(guest.v, guest.mem))
    assert due == (below and bits == ACCESSES)
    guest.set(GUEST_ACTIVITY_STATE=state.ACTIVITY_WAIT_FOR_SIPI)
    assert not entry.is_due_below_threshold(guest.v, guest.mem)
    guest.set(GUEST_ACTIVITY_STATE=state.ACTIVITY_SHUTDOWN)
    assert bool(entry.is_due_below_threshold(guest.v, guest.mem)) == due


def test_a_vmm_in_python_cannot_enter_below_the_threshold() -> None:
    guest = virtual_apic(ct.SECONDARY_UNRESTRICTED_GUEST, task=0x10, threshold=2)
    assert enter(guest) == entry.FAILED
    assert guest["FAILED_CHECK"] == ck.THRESHOLD_ABOVE


def test_the_exit_below_the_threshold_comes_before_the_timer() -> None:
    guest = virtual_apic(ACCESSES, task=0x10, threshold=2)
    guest.set(APIC_ACCESS_PAGE_IN_FORCE=0xA001, EXIT_QUALIFICATION=7, VM_EXIT_INSTRUCTION_LENGTH=7)
    guest.set(PIN_BASED_CONTROLS=ct.PIN_ALLOWED_0 | ct.PIN_PREEMPTION_TIMER)
    assert entry.begin(guest.v, guest.r, guest.mem, guest.rows, guest.head) == entry.EXITED
    assert guest["EXIT_REASON"] == 43
    assert guest["EXIT_QUALIFICATION"] == guest["VM_EXIT_INSTRUCTION_LENGTH"] == 0


@pytest.mark.parametrize("bits", [0, DELIVERY])
def test_entry_virtualizes_the_processor_priority(bits: int) -> None:
    guest = virtual_apic(bits, task=0x35, threshold=0)
    guest.set(GUEST_INTERRUPT_STATUS=0x2100)
    entry.evaluate_virtual_interrupts(guest.v, guest.mem)
    assert apic.virtual_register(guest.v, guest.mem, apic.VPPR) == (0x35 if bits else 0)


# What an x86 VMM may do, be its VMCS where it may

CURRENT = [-1, 0, 0x7000]


@pytest.mark.parametrize("current", CURRENT)
@pytest.mark.parametrize("which", ["VM_EXIT_MSR_STORE", "VM_EXIT_MSR_LOAD", "VM_ENTRY_MSR_LOAD"])
def test_msr_areas_are_an_x86_vmms(which: str, current: int) -> None:
    failed = check(current, **{f"{which}_COUNT": 1, f"{which}_ADDRESS": PAGE})
    assert (failed == 0) == (current >= 0)


@pytest.mark.parametrize("which", ["VM_EXIT_MSR_STORE", "VM_EXIT_MSR_LOAD", "VM_ENTRY_MSR_LOAD"])
@pytest.mark.parametrize("count", [1, 2, 17])
@pytest.mark.parametrize("beyond", [-16, 0, 16])
def test_msr_areas_end_within_the_address_width(which: str, count: int, beyond: int) -> None:
    address = (1 << 40) - 16 * count + beyond
    failed = check(0x7000, **{f"{which}_COUNT": count, f"{which}_ADDRESS": address})
    assert (failed == 0) == (beyond <= 0)


@pytest.mark.parametrize("current", CURRENT)
def test_an_unrestricted_guest_of_an_x86_vmm_needs_ept(current: int) -> None:
    failed = check(current, **secondary(ct.SECONDARY_UNRESTRICTED_GUEST))
    assert failed == (ck.UNRESTRICTED_WITHOUT_EPT if current >= 0 else 0)


@pytest.mark.parametrize("log", [False, True])
def test_the_logs_address_counts_with_the_log(log: bool) -> None:
    bits = ct.SECONDARY_EPT | log * ct.SECONDARY_PML
    failed = check(0, **secondary(bits), EPT_POINTER=0x501E, PML_ADDRESS=0x5008)
    assert failed == (ck.PML_PAGE if log else 0)


@pytest.mark.parametrize("current", CURRENT)
def test_ne_and_vmxe_are_asked_of_an_x86_vmms_guest(current: int) -> None:
    failed = state_check(current, GUEST_CR0=0x80000011)
    assert failed == (ck.GUEST_CR0 if current >= 0 else 0)
    assert state_check(current, GUEST_CR4=0x10) == (ck.GUEST_CR4 if current >= 0 else 0)


def test_a_link_pointer_to_the_current_vmcs() -> None:
    memory = np.zeros(0x2000, np.int64)
    memory[0] = vmx.REVISION
    v = vmcs(VMCS_LINK_POINTER=0)
    assert check_guest_state(v, memory, 0) == ck.LINK_CURRENT
    assert check_guest_state(v, memory, 0x1000) == 0
    # To a VMM in Python no region of memory is a VMCS.
    assert check_guest_state(v, memory, -1) == ck.LINK_REVISION


def test_protected_mode_is_asked_of_a_restricted_guest_before_paging() -> None:
    assert state_check(0, GUEST_CR0=0x80000030) == ck.GUEST_CR0


@pytest.mark.parametrize("bit", [state.CR4_VME, state.CR4_SMAP])
def test_bits_of_cr4_that_there_are(bit: int) -> None:
    assert state_check(0, GUEST_CR4=0x2010 | bit) == 0


@pytest.mark.parametrize(("bits", "wanted"), [(32, ck.GUEST_LEGACY_PCIDE), (64, 0)])
def test_process_context_identifiers_are_of_ia_32e_mode(bits: int, wanted: int) -> None:
    assert state_check(0, bits, GUEST_CR4=0x2030 | state.CR4_PCIDE) == wanted


@pytest.mark.parametrize(
    ("name", "wrong"), [("GDTR", ck.GUEST_GDTR_LIMIT), ("IDTR", ck.GUEST_IDTR_LIMIT)]
)
def test_limits_of_descriptor_tables_have_16_bits(name: str, wrong: int) -> None:
    assert state_check(0, **{f"GUEST_{name}_LIMIT": 0xFFFF}) == 0
    for bit in (16, 17, 31):
        assert state_check(0, **{f"GUEST_{name}_LIMIT": 1 << bit}) == wrong


@pytest.mark.parametrize(("cr3", "wanted"), [(1 << 39, 0), (1 << 40, ck.GUEST_CR3)])
def test_cr3_within_the_address_width(cr3: int, wanted: int) -> None:
    assert state_check(0, 64, GUEST_CR3=cr3) == wanted


@pytest.mark.parametrize("loads", [0, ct.ENTRY_LOAD_PAT])
def test_the_pat_counts_if_it_is_loaded(loads: int) -> None:
    failed = state_check(
        0, VM_ENTRY_CONTROLS=ct.ENTRY_ALLOWED_0 | ct.ENTRY_LOAD_EFER | loads, GUEST_IA32_PAT=2
    )
    assert failed == (ck.GUEST_PAT if loads else 0)


def test_the_l_flag_means_nothing_outside_ia_32e_mode() -> None:
    assert state_check(0, GUEST_CS_ACCESS_RIGHTS=0xA09B, GUEST_RIP=1 << 32) == ck.GUEST_RIP_HIGH


@pytest.mark.parametrize("pending", [0, 1 << 20])
def test_an_nmi_under_sti_is_refused_after_all_else(pending: int) -> None:
    failed = state_check(
        -1,
        GUEST_INTERRUPTIBILITY_STATE=state.BLOCKING_BY_STI,
        GUEST_RFLAGS=2 | state.RFLAGS_IF,
        VM_ENTRY_INTERRUPTION_INFORMATION=1 << 31 | 2 << 8 | 2,
        GUEST_PENDING_DEBUG_EXCEPTIONS=pending,
    )
    assert failed == (ck.PENDING_RESERVED if pending else ck.BLOCKING_NMI_BY_STI)


def test_blocking_by_smi_is_refused_before_pending_debug_exceptions() -> None:
    blocking = {"GUEST_INTERRUPTIBILITY_STATE": state.BLOCKING_BY_SMI}
    assert state_check(-1, **blocking, GUEST_PENDING_DEBUG_EXCEPTIONS=1 << 20) == ck.BLOCKING_SMI


# Injection


@pytest.mark.parametrize("vector", [8, 10, 11, 12, GP, PF, 17])
@pytest.mark.parametrize("code", [False, True])
def test_exceptions_with_an_error_code(vector: int, code: bool) -> None:
    info = 1 << 31 | code << 11 | HARDWARE << 8 | vector
    assert check(0, VM_ENTRY_INTERRUPTION_INFORMATION=info) == (
        0 if code else ck.INJECTED_DELIVER_CODE
    )


@pytest.mark.parametrize("unrestricted", [False, True])
@pytest.mark.parametrize("cr0", [0x80010030, 0x80010031])
def test_only_an_unrestricted_guest_in_real_mode_gets_no_error_code(
    unrestricted: bool, cr0: int
) -> None:
    bits = unrestricted * (ct.SECONDARY_UNRESTRICTED_GUEST | ct.SECONDARY_EPT)
    for code in (False, True):
        info = 1 << 31 | code << 11 | HARDWARE << 8 | GP
        failed = check(
            0,
            **secondary(bits),
            EPT_POINTER=0x501E,
            GUEST_CR0=cr0,
            VM_ENTRY_INTERRUPTION_INFORMATION=info,
        )
        real = unrestricted and not cr0 & 1
        assert failed == (0 if code != real else ck.INJECTED_DELIVER_CODE)


def test_an_error_code_that_is_not_delivered_may_be_anything() -> None:
    info = 1 << 31 | HARDWARE << 8 | 6
    fields = {"VM_ENTRY_EXCEPTION_ERROR_CODE": 0x10000}
    assert check(0, VM_ENTRY_INTERRUPTION_INFORMATION=info, **fields) == 0
    info = 1 << 31 | 1 << 11 | HARDWARE << 8 | GP
    failed = check(0, VM_ENTRY_INTERRUPTION_INFORMATION=info, **fields)
    assert failed == ck.INJECTED_ERROR_CODE


@pytest.mark.parametrize("current", CURRENT)
@pytest.mark.parametrize(("kind", "good"), [(1, False), (7, True)])
def test_types_of_injected_events(kind: int, good: bool, current: int) -> None:
    failed = check(current, VM_ENTRY_INTERRUPTION_INFORMATION=1 << 31 | kind << 8)
    assert failed == (0 if good else ck.INJECTED_TYPE)


# Before the first instruction


def test_secondary_controls_of_a_vmm_in_python() -> None:
    guest = Guest()
    guest.set(
        SECONDARY_PROCESSOR_BASED_CONTROLS=ct.SECONDARY_UNRESTRICTED_GUEST
        | ct.SECONDARY_DESCRIPTOR_TABLE_EXITING
    )
    assert enter(guest) == entry.RUNS


def test_an_entry_that_fails_leaves_the_instruction_length() -> None:
    guest = Guest()
    guest.set(GUEST_RFLAGS=0, VM_EXIT_INSTRUCTION_LENGTH=7)
    assert enter(guest) == entry.EXITED
    assert (guest["EXIT_REASON"] & 0xFFFF, guest["VM_EXIT_INSTRUCTION_LENGTH"]) == (33, 7)


def test_no_window_is_open_that_nobody_asked_for() -> None:
    guest = Guest()
    guest.set(GUEST_RFLAGS=2 | state.RFLAGS_IF)
    assert entry.exit_before_instruction(guest.v) == entry.RUNS
    assert enter(guest) == entry.RUNS
