"""VM entry: what is refused, what fails, what is injected, what comes before the guest runs."""

import pytest

from tests.unit import core_guest as g
from tests.unit.core_guest import Guest
from trapgate.sdm import checks as ck
from trapgate.sdm import controls, state
from trapgate.sdm.check_words import CHECKS
from trapgate.vmx import entry

VALID = 1 << 31
FAILED_ENTRY = 1 << 31 | 33
STI, MOV_SS, SMI, NMI = 1, 2, 4, 8
IF, TF = 1 << 9, 1 << 8


def enter(guest: Guest) -> int:
    result: int = entry.enter(guest.v, guest.r, guest.mem, guest.rows, guest.head)
    return result


def info(vector: int, kind: int, error_code: bool = False) -> int:
    return VALID | error_code << 11 | kind << 8 | vector


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("ring", [0, 3])
def test_good_guests_run(bits: int, ring: int) -> None:
    guest = Guest(bits=bits, ring=ring)
    before = guest.v.copy()
    assert enter(guest) == entry.RUNS
    assert (guest.v == before).all()


def test_real_mode_guest_runs_unrestricted_only() -> None:
    guest = Guest()
    guest.set(GUEST_CR0=0x30)
    for name in ("ES", "SS", "DS", "FS", "GS"):
        guest.segment(name, 0x1000, 0x93, base=0x10000, limit=0xFFFF)
    guest.segment("CS", 0xF000, 0x9B, base=0xFFFF0000, limit=0xFFFF)
    assert enter(guest) == entry.RUNS
    guest.set(SECONDARY_PROCESSOR_BASED_CONTROLS=0)
    assert enter(guest) == entry.EXITED
    assert guest["EXIT_REASON"] == FAILED_ENTRY


CONTROLS = [
    {"PIN_BASED_CONTROLS": 0},
    {"PIN_BASED_CONTROLS": 0x16 | 1 << 7},
    {"PIN_BASED_CONTROLS": 0x16 | controls.PIN_VIRTUAL_NMIS},
    {"PRIMARY_PROCESSOR_BASED_CONTROLS": 0},
    {"PRIMARY_PROCESSOR_BASED_CONTROLS": controls.PRIMARY_ALLOWED_0 | 1},
    {
        "PRIMARY_PROCESSOR_BASED_CONTROLS": controls.PRIMARY_ALLOWED_0
        | controls.PRIMARY_NMI_WINDOW_EXITING
    },
    {"SECONDARY_PROCESSOR_BASED_CONTROLS": controls.SECONDARY_EPT},
    {"VM_EXIT_CONTROLS": 0},
    {"VM_EXIT_CONTROLS": controls.EXIT_ALLOWED_0 | controls.EXIT_SAVE_PREEMPTION_TIMER},
    {"VM_ENTRY_CONTROLS": 0},
    {"VM_ENTRY_CONTROLS": controls.ENTRY_ALLOWED_0 | controls.ENTRY_ENTRY_TO_SMM},
    {"CR3_TARGET_COUNT": 5},
    {"VM_ENTRY_MSR_LOAD_COUNT": 1},
    {"VM_EXIT_MSR_STORE_COUNT": 1},
    {"VM_EXIT_MSR_LOAD_COUNT": 1},
    {"FAULT_FILTER": 4},
    {"FAULT_FILTER_ORDER": 4},
]


@pytest.mark.parametrize("fields", CONTROLS, ids=str)
def test_bad_controls(fields: dict[str, int]) -> None:
    guest = Guest()
    guest.set(**fields)
    before = guest.v.copy()
    assert enter(guest) == entry.FAILED
    assert guest["VM_INSTRUCTION_ERROR"] == 7
    assert CHECKS[guest["FAILED_CHECK"]].fields[0] in fields
    guest.set(VM_INSTRUCTION_ERROR=0, FAILED_CHECK=0)
    assert (guest.v == before).all()


@pytest.mark.parametrize(
    ("control", "field"),
    [
        (controls.PRIMARY_USE_IO_BITMAPS, "IO_BITMAP_A_ADDRESS"),
        (controls.PRIMARY_USE_IO_BITMAPS, "IO_BITMAP_B_ADDRESS"),
        (controls.PRIMARY_USE_MSR_BITMAPS, "MSR_BITMAP_ADDRESS"),
    ],
)
@pytest.mark.parametrize("address", [0x1008, 1 << 40, -0x1000])
def test_bitmap_addresses(control: int, field: str, address: int) -> None:
    guest = Guest()
    primary = guest["PRIMARY_PROCESSOR_BASED_CONTROLS"] | control
    guest.set(PRIMARY_PROCESSOR_BASED_CONTROLS=primary)
    assert enter(guest) == entry.RUNS
    guest.set(**{field: address})
    assert enter(guest) == entry.FAILED


@pytest.mark.parametrize(
    ("word", "fields"),
    [
        (info(0, 1), {}),
        (info(3, 2), {}),
        (info(32, 3), {}),
        (info(1, 7), {}),
        (info(6, 3) | 1 << 12, {}),
        (info(6, 3) | 1 << 30, {}),
        (info(13, 3), {}),
        (info(6, 3, True), {}),
        (info(13, 0, True), {}),
        (info(21, 3, True), {}),
        (info(13, 3, True), {"VM_ENTRY_EXCEPTION_ERROR_CODE": 1 << 16}),
        (info(3, 6), {"VM_ENTRY_INSTRUCTION_LENGTH": 0}),
        (info(3, 4), {"VM_ENTRY_INSTRUCTION_LENGTH": 16}),
        (info(1, 5), {"VM_ENTRY_INSTRUCTION_LENGTH": 0xFFFF_FFFF}),
    ],
)
def test_bad_injections(word: int, fields: dict[str, int]) -> None:
    guest = Guest()
    guest.set(VM_ENTRY_INTERRUPTION_INFORMATION=word, GUEST_RFLAGS=2 | IF, **fields)
    assert enter(guest) == entry.FAILED
    assert guest["VM_INSTRUCTION_ERROR"] == 7


def test_real_mode_injections_have_no_error_code() -> None:
    guest = Guest()
    guest.set(GUEST_CR0=0x30, VM_ENTRY_INTERRUPTION_INFORMATION=info(13, 3, True))
    assert enter(guest) == entry.FAILED
    guest.set(VM_ENTRY_INTERRUPTION_INFORMATION=info(13, 3), GUEST_IDTR_LIMIT=0x3FF)
    assert enter(guest) == entry.RUNS


BAD_STATE: list[dict[str, int]] = [
    {"GUEST_CR0": 1 << 32 | 0x21},
    {"GUEST_CR0": state.CR0_PG},
    {"GUEST_CR4": state.CR4_LA57},
    {"GUEST_CR3": 1 << 40},
    {"GUEST_DR7": 1 << 32},
    {"GUEST_IA32_DEBUGCTL": 1 << 2},
    {"GUEST_IA32_EFER": 2},
    {"GUEST_IA32_EFER": state.EFER_LMA},
    {"GUEST_IA32_SYSENTER_ESP": 1 << 47},
    {"GUEST_IA32_SYSENTER_EIP": -(1 << 63)},
    {"GUEST_GDTR_LIMIT": 0x10000},
    {"GUEST_IDTR_BASE": 1 << 50},
    {"GUEST_RIP": 1 << 32},
    {"GUEST_RFLAGS": 0},
    {"GUEST_RFLAGS": 2 | 8},
    {"GUEST_RFLAGS": 2 | 1 << 22},
    {"GUEST_RFLAGS": 2 | 1 << 17},
    {"GUEST_TR_SELECTOR": g.BUSY_TSS | 4},
    {"GUEST_TR_ACCESS_RIGHTS": 0x89},
    {"GUEST_TR_ACCESS_RIGHTS": 0x8B | 1 << 16},
    {"GUEST_TR_ACCESS_RIGHTS": 0x0B},
    {"GUEST_LDTR_ACCESS_RIGHTS": 0x83},
    {"GUEST_CS_ACCESS_RIGHTS": 0xC093 | 1 << 5},
    {"GUEST_CS_ACCESS_RIGHTS": 0xC09A},
    {"GUEST_CS_ACCESS_RIGHTS": 0xC0FB},
    {"GUEST_CS_ACCESS_RIGHTS": 0xC08B},
    {"GUEST_CS_ACCESS_RIGHTS": 0xC01B},
    {"GUEST_CS_ACCESS_RIGHTS": 0xC19B},
    {"GUEST_CS_BASE": 1 << 32},
    {"GUEST_CS_LIMIT": 0xFFFF_FFFE},
    {"GUEST_SS_ACCESS_RIGHTS": 0xC091},
    {"GUEST_DS_ACCESS_RIGHTS": 0xC092},
    {"GUEST_DS_ACCESS_RIGHTS": 0xC099},
    {"GUEST_DS_ACCESS_RIGHTS": 0x4093},
    {"GUEST_ES_BASE": 1 << 32},
    {"GUEST_FS_BASE": 1 << 47},
    {"GUEST_ACTIVITY_STATE": 4},
    {"GUEST_ACTIVITY_STATE": 1, "GUEST_INTERRUPTIBILITY_STATE": MOV_SS},
    {"GUEST_INTERRUPTIBILITY_STATE": 1 << 5},
    {"GUEST_INTERRUPTIBILITY_STATE": SMI},
    {"GUEST_INTERRUPTIBILITY_STATE": STI},
    {"GUEST_INTERRUPTIBILITY_STATE": STI | MOV_SS, "GUEST_RFLAGS": 2 | IF},
    {"GUEST_PENDING_DEBUG_EXCEPTIONS": 1 << 4},
    {"GUEST_PENDING_DEBUG_EXCEPTIONS": 1 << 14, "GUEST_INTERRUPTIBILITY_STATE": MOV_SS},
    {"GUEST_RFLAGS": 2 | TF, "GUEST_INTERRUPTIBILITY_STATE": MOV_SS},
    {"VM_ENTRY_INTERRUPTION_INFORMATION": info(0x20, 0)},
]


@pytest.mark.parametrize("fields", BAD_STATE, ids=str)
def test_bad_guest_state(fields: dict[str, int]) -> None:
    guest = Guest()
    guest.set(**fields)
    word = guest["VM_ENTRY_INTERRUPTION_INFORMATION"]
    assert enter(guest) == entry.EXITED
    assert guest["EXIT_REASON"] == FAILED_ENTRY
    assert guest["EXIT_QUALIFICATION"] == 0
    assert guest["VM_ENTRY_INTERRUPTION_INFORMATION"] == word, "a failed entry keeps the event"


@pytest.mark.parametrize(
    "fields",
    [
        {"GUEST_CR4": 0},
        {"GUEST_IA32_EFER": state.EFER_LMA},
        {"GUEST_IA32_EFER": 0},
        {"GUEST_RIP": 1 << 48},
        {"GUEST_RFLAGS": 2 | 1 << 17},
        {"GUEST_CS_ACCESS_RIGHTS": 0xE09B},
        {"GUEST_TR_ACCESS_RIGHTS": 0x83},
    ],
    ids=str,
)
def test_bad_long_mode_state(fields: dict[str, int]) -> None:
    guest = Guest(bits=64)
    guest.set(**fields)
    assert enter(guest) == entry.EXITED
    assert guest["EXIT_REASON"] == FAILED_ENTRY


def test_rip_right_behind_the_lower_half_passes() -> None:
    guest = Guest(bits=64)
    guest.set(GUEST_RIP=1 << 47)
    assert enter(guest) == entry.RUNS


def test_page_attribute_table() -> None:
    guest = Guest()
    guest.set(VM_ENTRY_CONTROLS=guest["VM_ENTRY_CONTROLS"] | controls.ENTRY_LOAD_PAT)
    guest.set(GUEST_IA32_PAT=0x0007040600070406)
    assert enter(guest) == entry.RUNS
    guest.set(GUEST_IA32_PAT=0x02 << 56)
    assert enter(guest) == entry.EXITED


def test_qualifications() -> None:
    guest = Guest()
    guest.set(VMCS_LINK_POINTER=0)
    assert enter(guest) == entry.EXITED
    assert guest["EXIT_QUALIFICATION"] == 4
    guest = Guest()
    guest.set(
        VM_ENTRY_INTERRUPTION_INFORMATION=info(2, 2),
        GUEST_INTERRUPTIBILITY_STATE=STI,
        GUEST_RFLAGS=2 | IF,
    )
    assert enter(guest) == entry.EXITED
    assert guest["EXIT_QUALIFICATION"] == 3
    guest = Guest()
    guest.set(GUEST_CR0=state.CR0_PG | 0x21, GUEST_CR4=state.CR4_PAE, GUEST_CR3=0x10000)
    guest.write(0x10018, (0x11003).to_bytes(8, "little"))
    assert enter(guest) == entry.EXITED
    assert guest["EXIT_QUALIFICATION"] == 2


def test_efer_follows_the_entry_control_when_not_loaded() -> None:
    guest = Guest()
    cleared = guest["VM_ENTRY_CONTROLS"] & ~controls.ENTRY_LOAD_EFER
    guest.set(VM_ENTRY_CONTROLS=cleared, GUEST_IA32_EFER=state.EFER_LMA | state.EFER_SCE)
    assert enter(guest) == entry.RUNS
    assert guest["GUEST_IA32_EFER"] == state.EFER_SCE


# Injection


def test_the_event_is_delivered_once() -> None:
    guest = Guest()
    guest.set(VM_ENTRY_INTERRUPTION_INFORMATION=info(13, 3, True), VM_ENTRY_EXCEPTION_ERROR_CODE=9)
    assert enter(guest) == entry.RUNS
    assert guest["GUEST_RIP"] == g.HANDLERS + 13 * 16
    assert guest.frame(4) == [9, g.CODE, g.CODE0, 2]
    assert not guest["VM_ENTRY_INTERRUPTION_INFORMATION"] & VALID
    assert guest.journal()[0][15] == 1
    assert enter(guest) == entry.RUNS
    assert guest["GUEST_RSP"] == g.STACK - 16


def test_a_fault_in_delivery_may_exit() -> None:
    guest = Guest()
    guest.gate(13, access=0x6E)
    guest.set(VM_ENTRY_INTERRUPTION_INFORMATION=info(13, 3, True), EXCEPTION_BITMAP=1 << 11)
    assert enter(guest) == entry.EXITED
    assert guest.interruption() == (11, 3, 13 * 8 + 3)
    assert guest.idt_vectoring() == (13, 3, 0)
    assert not guest["VM_ENTRY_INTERRUPTION_INFORMATION"] & VALID


def test_an_injection_that_exits_leaves_pending_debug_exceptions() -> None:
    guest = Guest()
    guest.set(
        GUEST_PENDING_DEBUG_EXCEPTIONS=1 << 12 | 1,
        VM_ENTRY_INTERRUPTION_INFORMATION=info(13, 3, True),
        EXCEPTION_BITMAP=1 << 11,
    )
    guest.gate(13, access=0x6E)
    assert enter(guest) == entry.EXITED
    assert guest["GUEST_PENDING_DEBUG_EXCEPTIONS"] == 1 << 12 | 1


def test_monitor_trap_flag() -> None:
    guest = Guest()
    guest.set(VM_ENTRY_INTERRUPTION_INFORMATION=info(0, 7))
    assert enter(guest) == entry.EXITED
    assert guest["EXIT_REASON"] == 37


def test_waiting_guests() -> None:
    for activity in (1, 2, 3):
        guest = Guest()
        guest.set(GUEST_ACTIVITY_STATE=activity)
        assert enter(guest) == entry.RUNS
        assert guest["GUEST_ACTIVITY_STATE"] == activity
    guest = Guest(ring=3)
    guest.set(GUEST_ACTIVITY_STATE=1)
    assert enter(guest) == entry.EXITED


# Pending debug exceptions


@pytest.mark.parametrize("pending", [1 << 14, 1 << 12 | 2, 1 << 14 | 1])
def test_pending_debug_exceptions_are_raised(pending: int) -> None:
    guest = Guest()
    guest.set(GUEST_PENDING_DEBUG_EXCEPTIONS=pending)
    assert enter(guest) == entry.RUNS
    assert guest["GUEST_RIP"] == g.HANDLERS + 16
    assert guest["dr6"] == state.DR6_FIXED_1 | pending & ~(1 << 12)
    assert guest["GUEST_PENDING_DEBUG_EXCEPTIONS"] == 0


def test_pending_debug_exceptions_may_exit() -> None:
    guest = Guest()
    guest.set(GUEST_PENDING_DEBUG_EXCEPTIONS=1 << 12 | 4, EXCEPTION_BITMAP=2)
    assert enter(guest) == entry.EXITED
    assert guest["EXIT_QUALIFICATION"] == 4
    assert guest["dr6"] == state.DR6_FIXED_1


@pytest.mark.parametrize("pending", [1, 8])
def test_disabled_breakpoints_do_not_count(pending: int) -> None:
    guest = Guest()
    guest.set(GUEST_PENDING_DEBUG_EXCEPTIONS=pending)
    assert enter(guest) == entry.RUNS
    assert guest["GUEST_RIP"] == g.CODE


def test_mov_ss_holds_them_back() -> None:
    guest = Guest()
    guest.set(GUEST_PENDING_DEBUG_EXCEPTIONS=1 << 12 | 1, GUEST_INTERRUPTIBILITY_STATE=MOV_SS)
    assert enter(guest) == entry.RUNS
    assert guest["GUEST_RIP"] == g.CODE
    assert guest["GUEST_PENDING_DEBUG_EXCEPTIONS"] == 1 << 12 | 1


def test_injection_drops_them_unless_a_software_interrupt_follows_mov_ss() -> None:
    kinds = ((4, 0, True), (4, MOV_SS, False), (5, MOV_SS, True), (6, 0, True), (6, MOV_SS, False))
    for kind, blocking, lost in kinds:
        guest = Guest()
        guest.set(
            GUEST_PENDING_DEBUG_EXCEPTIONS=1 << 12 | 1,
            GUEST_INTERRUPTIBILITY_STATE=blocking,
            VM_ENTRY_INTERRUPTION_INFORMATION=info(3, kind),
            VM_ENTRY_INSTRUCTION_LENGTH=1,
        )
        assert enter(guest) == entry.RUNS, (kind, blocking)
        assert guest["GUEST_RIP"] == g.HANDLERS + 16 * (3 if lost else 1), (kind, blocking)
        assert guest["GUEST_PENDING_DEBUG_EXCEPTIONS"] == 0
        if not lost:
            assert guest.frame(1) == [g.HANDLERS + 16 * 3]


def test_a_frame_that_always_meets_a_breakpoint_lets_the_run_stop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    guest = Guest()
    raised = []

    def meet_breakpoint(*arguments: object) -> int:
        raised.append(arguments)
        guest.set(GUEST_PENDING_DEBUG_EXCEPTIONS=1 << 12 | 1)
        return 0

    monkeypatch.setattr(entry, "raise_event", meet_breakpoint)
    guest.set(GUEST_PENDING_DEBUG_EXCEPTIONS=1 << 12 | 1)
    assert enter(guest) == entry.RUNS
    assert len(raised) == 4
    assert guest["GUEST_PENDING_DEBUG_EXCEPTIONS"] == 1 << 12 | 1


# Exits before the first instruction


def window(guest: Guest, control: int) -> None:
    primary = guest["PRIMARY_PROCESSOR_BASED_CONTROLS"] | control
    pin = guest["PIN_BASED_CONTROLS"] | controls.PIN_NMI_EXITING | controls.PIN_VIRTUAL_NMIS
    guest.set(PRIMARY_PROCESSOR_BASED_CONTROLS=primary, PIN_BASED_CONTROLS=pin)


@pytest.mark.parametrize(
    ("rflags", "blocking", "activity", "reason"),
    [
        (2 | IF, 0, 0, 7),
        (2 | IF, 0, 1, 7),
        (2 | IF, 0, 2, None),
        (2 | IF, NMI, 0, 7),
        (2, 0, 0, None),
        (2 | IF, STI, 0, None),
        (2 | IF, MOV_SS, 0, None),
    ],
)
def test_interrupt_window(rflags: int, blocking: int, activity: int, reason: int | None) -> None:
    guest = Guest()
    window(guest, controls.PRIMARY_INTERRUPT_WINDOW_EXITING)
    guest.set(
        GUEST_RFLAGS=rflags, GUEST_INTERRUPTIBILITY_STATE=blocking, GUEST_ACTIVITY_STATE=activity
    )
    assert enter(guest) == (entry.RUNS if reason is None else entry.EXITED)
    if reason is not None:
        assert guest["EXIT_REASON"] == reason


@pytest.mark.parametrize(("blocking", "reason"), [(0, 8), (NMI, None), (MOV_SS, None)])
def test_nmi_window(blocking: int, reason: int | None) -> None:
    guest = Guest()
    window(guest, controls.PRIMARY_NMI_WINDOW_EXITING)
    guest.set(GUEST_INTERRUPTIBILITY_STATE=blocking)
    assert enter(guest) == (entry.RUNS if reason is None else entry.EXITED)
    if reason is not None:
        assert guest["EXIT_REASON"] == reason


def test_injected_nmi_closes_its_window() -> None:
    guest = Guest()
    window(guest, controls.PRIMARY_NMI_WINDOW_EXITING)
    guest.set(VM_ENTRY_INTERRUPTION_INFORMATION=info(2, 2))
    assert enter(guest) == entry.RUNS
    assert guest["GUEST_INTERRUPTIBILITY_STATE"] == NMI


def test_expired_preemption_timer() -> None:
    guest = Guest()
    guest.set(PIN_BASED_CONTROLS=guest["PIN_BASED_CONTROLS"] | controls.PIN_PREEMPTION_TIMER)
    assert enter(guest) == entry.EXITED
    assert guest["EXIT_REASON"] == 52
    guest.set(VMX_PREEMPTION_TIMER_VALUE=1)
    assert enter(guest) == entry.RUNS


# One check at a time


def check(guest: Guest) -> int:
    """The number of the check that refuses the guest, 0 if none does."""
    guest.set(FAILED_CHECK=0)
    enter(guest)
    return guest["FAILED_CHECK"]


def test_what_wakes_a_guest_that_waits() -> None:
    events = [(0x20, 0), (2, 2), (1, 3), (6, 3), (16, 3), (18, 3), (1, 4), (18, 4), (1, 5), (3, 6)]
    wakes = {
        1: {(0x20, 0), (2, 2), (1, 3), (18, 3), (0, 7)},
        2: {(2, 2), (18, 3)},
        3: set[tuple[int, int]](),
    }
    for activity, good in wakes.items():
        for vector, kind in [*events, (0, 7)]:
            guest = Guest()
            guest.set(
                GUEST_ACTIVITY_STATE=activity,
                GUEST_RFLAGS=2 | IF,
                VM_ENTRY_INTERRUPTION_INFORMATION=info(vector, kind),
                VM_ENTRY_INSTRUCTION_LENGTH=1,
            )
            assert check(guest) == (0 if (vector, kind) in good else 1204), (activity, vector, kind)


@pytest.mark.parametrize(
    ("activity", "wanted"), [(0, 0), (1, 0), (2, 0), (3, 0), (4, 1201), (-1, 1201), (1 << 31, 1201)]
)
def test_activity_states(activity: int, wanted: int) -> None:
    guest = Guest()
    guest.set(GUEST_ACTIVITY_STATE=activity)
    assert check(guest) == wanted


@pytest.mark.parametrize("ring", range(4))
@pytest.mark.parametrize("activity", [1, 2])
def test_only_ring_0_halts(ring: int, activity: int) -> None:
    guest = Guest()
    guest.segment("SS", g.DATA0 | ring, 0xC093 | ring << 5)
    guest.segment("CS", g.CONFORMING | ring, 0xC09F)
    guest.set(GUEST_ACTIVITY_STATE=activity)
    assert check(guest) == (1202 if activity == 1 and ring else 0)


@pytest.mark.parametrize("rflags", [2, 2 | TF])
@pytest.mark.parametrize("pending", [0, 1 << 14])
@pytest.mark.parametrize("debugctl", [0, state.DEBUGCTL_BTF])
@pytest.mark.parametrize(("blocking", "activity"), [(0, 0), (0, 1), (MOV_SS, 0)])
def test_a_pending_single_step(
    rflags: int, pending: int, debugctl: int, blocking: int, activity: int
) -> None:
    guest = Guest()
    guest.set(
        GUEST_RFLAGS=rflags,
        GUEST_PENDING_DEBUG_EXCEPTIONS=pending,
        GUEST_IA32_DEBUGCTL=debugctl,
        GUEST_INTERRUPTIBILITY_STATE=blocking,
        GUEST_ACTIVITY_STATE=activity,
    )
    single = rflags & TF and not debugctl
    asked = bool(blocking or activity)
    wanted = 0
    if asked and single and not pending:
        wanted = 1222
    elif asked and not single and pending:
        wanted = 1223
    assert check(guest) == wanted


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("efer", [0, state.EFER_LMA, state.EFER_LME, 0x500])
@pytest.mark.parametrize("paging", [False, True])
def test_ia32_efer_against_the_mode(bits: int, efer: int, paging: bool) -> None:
    guest = Guest(bits=bits)
    guest.set(GUEST_IA32_EFER=efer | state.EFER_SCE | state.EFER_NXE)
    if paging:
        guest.set(GUEST_CR0=guest["GUEST_CR0"] | state.CR0_PG)
    long, active = bits == 64, bool(efer & state.EFER_LMA)
    wanted = 0
    if active != long:
        wanted = 713
    elif guest["GUEST_CR0"] < 0 or guest["GUEST_CR0"] & state.CR0_PG:
        wanted = 0 if bool(efer & state.EFER_LME) == active else 714
    assert check(guest) == wanted


def test_virtual_8086_mode_and_ia_32e_mode_exclude_each_other() -> None:
    guest = Guest()
    guest.set(GUEST_RFLAGS=2 | 1 << 17 | 3 << 12)
    for name in ("ES", "CS", "SS", "DS", "FS", "GS"):
        guest.segment(name, 0x1000, 0xF3, base=0x10000, limit=0xFFFF)
    assert check(guest) == 0
    guest.set(GUEST_CR0=0x20)
    assert check(guest) == 1104
    guest = Guest(bits=64)
    guest.set(GUEST_RFLAGS=2 | 1 << 17)
    for name in ("ES", "CS", "SS", "DS", "FS", "GS"):
        guest.segment(name, 0x1000, 0xF3, base=0x10000, limit=0xFFFF)
    assert check(guest) == 1104


def restricted(ring: int = 3) -> Guest:
    guest = Guest(bits=64, ring=ring)
    guest.set(SECONDARY_PROCESSOR_BASED_CONTROLS=0)
    return guest


@pytest.mark.parametrize(
    ("kind", "dpl", "rpl", "wanted"),
    [
        (3, 3, 3, 0),
        (3, 2, 3, 883),
        (3, 0, 1, 883),
        (3, 1, 1, 0),
        (11, 2, 3, 883),
        (11, 3, 3, 0),
        (15, 0, 3, 0),
        (13, 0, 3, 863),
        (9, 3, 3, 863),
        (2, 3, 3, 863),
    ],
)
def test_data_segments_and_their_selectors(kind: int, dpl: int, rpl: int, wanted: int) -> None:
    guest = restricted()
    guest.segment("DS", 0x20 | rpl, 0xC090 | kind | dpl << 5)
    assert check(guest) == wanted
    guest.set(SECONDARY_PROCESSOR_BASED_CONTROLS=controls.SECONDARY_UNRESTRICTED_GUEST)
    assert check(guest) == (0 if wanted == 883 else wanted)


@pytest.mark.parametrize(
    ("kind", "dpl", "stack", "wanted"),
    [
        (9, 3, 3, 0),
        (9, 2, 3, 881),
        (11, 0, 0, 0),
        (11, 0, 3, 881),
        (13, 0, 3, 0),
        (13, 3, 3, 0),
        (15, 2, 3, 0),
        (15, 3, 2, 881),
        (13, 1, 0, 881),
        (8, 0, 0, 861),
        (12, 0, 0, 861),
        (5, 0, 0, 861),
        (3, 0, 0, 0),
        (3, 3, 0, 881),
    ],
)
def test_code_segments_and_the_stacks_privilege(
    kind: int, dpl: int, stack: int, wanted: int
) -> None:
    guest = Guest()
    guest.segment("CS", 0x30 | stack, 0xC090 | kind | dpl << 5)
    guest.segment("SS", 0x20 | stack, 0xC093 | stack << 5)
    assert check(guest) == wanted


def test_the_stacks_privilege_is_its_own() -> None:
    # Conforming code keeps its DPL below that of the stack.
    guest = restricted()
    guest.segment("CS", g.LONG3, 0xA09D)
    assert check(guest) == 0
    guest.segment("SS", g.DATA3, 0xC0B3)
    assert check(guest) == 882
    # Code in a data segment is of ring 0, and so is its stack.
    guest = Guest()
    guest.segment("CS", g.CODE0, 0xC093)
    guest.segment("SS", g.DATA0, 0xC0B3)
    assert check(guest) == 882


def test_the_task_register_is_checked_before_a_usable_ldtr() -> None:
    guest = Guest()
    guest.segment("LDTR", 0x58, 0x82, limit=7)
    assert check(guest) == 0
    guest.segment("TR", g.BUSY_TSS, 0x0B, limit=0x67)
    assert check(guest) == ck.PRESENT + 7
    guest.segment("LDTR", 0x58, 0x02, limit=7)
    assert check(guest) == ck.PRESENT + 7


def test_behind_an_unusable_stack_segment_others_are_checked() -> None:
    guest = Guest()
    guest.segment("SS", g.DATA0, state.AR_UNUSABLE)
    assert check(guest) == 0
    guest.segment("DS", g.DATA0, 0xC092)
    assert check(guest) == 863
    guest.segment("DS", g.DATA0, 0xC093)
    guest.segment("TR", g.BUSY_TSS, 0x9B, limit=0x67)
    assert check(guest) == 877


def test_unusable_segments() -> None:
    unusable = state.AR_UNUSABLE
    guest = Guest()
    guest.segment("DS", 7, unusable, base=1 << 32, limit=5)
    guest.segment("LDTR", 4, unusable, base=1 << 62)
    assert check(guest) == 0
    guest.segment("CS", g.CODE0, 0xC093 | unusable | 1 << 5)
    assert check(guest) == 881
    guest.segment("CS", g.CODE0, 0xC09A | unusable)
    assert check(guest) == 861
    guest.segment("CS", g.CODE0, 0xC09B | unusable, base=1 << 32)
    assert check(guest) == 831
    guest = Guest()
    guest.segment("LDTR", 0, 0x82, base=1 << 47, limit=7)
    assert check(guest) == 836
    guest.segment("LDTR", 0, 0x82, base=1 << 46, limit=7)
    assert check(guest) == 0
    guest.segment("GS", g.DATA0, 0xC093, base=1 << 46)
    assert check(guest) == 0


def test_long_and_default_size_exclude_each_other_in_64_bit_code_only() -> None:
    guest = Guest(bits=64)
    guest.segment("DS", g.DATA0, 0xE093)
    assert check(guest) == 0
    guest.segment("CS", g.LONG0, 0xE09B)
    assert check(guest) == 911
    guest = Guest()
    guest.segment("CS", g.CODE0, 0xE09B)
    assert check(guest) == 0


# Injection, and the order of what follows


def test_an_injected_page_fault_is_journalled_where_the_vmm_says() -> None:
    for vector, code, address in ((14, 2, 0x77), (13, 2, 0), (6, -1, 0)):
        guest = Guest()
        guest.set(
            cr2=0x77,
            VM_ENTRY_INTERRUPTION_INFORMATION=info(vector, 3, code >= 0),
            VM_ENTRY_EXCEPTION_ERROR_CODE=2,
        )
        assert enter(guest) == entry.RUNS
        row = guest.journal()[0]
        assert (row[3], row[5], row[9]) == (vector, code, address)
    guest = Guest()
    guest.set(cr2=0x77, VM_ENTRY_INTERRUPTION_INFORMATION=info(14, 4))
    guest.set(VM_ENTRY_INSTRUCTION_LENGTH=7)
    assert enter(guest) == entry.RUNS
    assert guest.journal()[0][9] == 0
    assert guest.frame(1) == [g.CODE + 7]


@pytest.mark.parametrize("blocking", [STI, MOV_SS])
def test_injection_ends_blocking_even_if_it_exits(blocking: int) -> None:
    guest = Guest()
    guest.gate(6, access=0x6E)
    guest.set(
        EXCEPTION_BITMAP=1 << 11,
        GUEST_RFLAGS=2 | IF,
        GUEST_INTERRUPTIBILITY_STATE=blocking,
        VM_ENTRY_INTERRUPTION_INFORMATION=info(6, 3),
    )
    assert enter(guest) == entry.EXITED
    assert guest["GUEST_INTERRUPTIBILITY_STATE"] == 0


def test_the_monitor_trap_flag_exits_behind_an_injected_event() -> None:
    guest = Guest()
    primary = guest["PRIMARY_PROCESSOR_BASED_CONTROLS"] | controls.PRIMARY_MONITOR_TRAP_FLAG
    guest.set(
        PRIMARY_PROCESSOR_BASED_CONTROLS=primary,
        VM_ENTRY_INTERRUPTION_INFORMATION=info(6, 3),
        GUEST_PENDING_DEBUG_EXCEPTIONS=1 << 14,
    )
    assert enter(guest) == entry.EXITED
    assert guest["EXIT_REASON"] == 37
    assert guest["GUEST_RIP"] == g.HANDLERS + 6 * 16
    assert guest["GUEST_PENDING_DEBUG_EXCEPTIONS"] == 0
    assert (guest["EXIT_QUALIFICATION"], guest["VM_EXIT_INSTRUCTION_LENGTH"]) == (0, 0)
    guest = Guest()
    guest.set(PRIMARY_PROCESSOR_BASED_CONTROLS=primary)
    assert enter(guest) == entry.RUNS


def test_exits_before_an_instruction_have_no_qualification() -> None:
    for control, reason in (
        (controls.PRIMARY_NMI_WINDOW_EXITING, 8),
        (controls.PRIMARY_INTERRUPT_WINDOW_EXITING, 7),
        (0, 52),
        (-1, 37),
    ):
        guest = Guest()
        guest.set(EXIT_QUALIFICATION=9, VM_EXIT_INSTRUCTION_LENGTH=9, GUEST_RFLAGS=2 | IF)
        if control > 0:
            window(guest, control)
        elif control == 0:
            pin = guest["PIN_BASED_CONTROLS"] | controls.PIN_PREEMPTION_TIMER
            guest.set(PIN_BASED_CONTROLS=pin)
        else:
            guest.set(VM_ENTRY_INTERRUPTION_INFORMATION=info(0, 7))
        assert enter(guest) == entry.EXITED
        assert guest["EXIT_REASON"] == reason
        assert (guest["EXIT_QUALIFICATION"], guest["VM_EXIT_INSTRUCTION_LENGTH"]) == (0, 0)


def test_the_nmi_window_waits_for_sti() -> None:
    guest = Guest()
    window(guest, controls.PRIMARY_NMI_WINDOW_EXITING)
    guest.set(GUEST_INTERRUPTIBILITY_STATE=STI, GUEST_RFLAGS=2 | IF)
    assert enter(guest) == entry.RUNS


@pytest.mark.parametrize("activity", [2, 3])
def test_shut_down_guests_lose_their_pending_debug_exceptions(activity: int) -> None:
    guest = Guest()
    guest.set(GUEST_ACTIVITY_STATE=activity, GUEST_PENDING_DEBUG_EXCEPTIONS=1 << 12 | 1)
    assert enter(guest) == entry.RUNS
    assert guest["GUEST_RIP"] == g.CODE
    assert guest["GUEST_PENDING_DEBUG_EXCEPTIONS"] == 0
    assert guest.journal() == []


def test_a_guest_that_waits_for_an_ipi_has_no_timer() -> None:
    for activity, outcome in ((2, entry.EXITED), (3, entry.RUNS)):
        guest = Guest()
        guest.set(PIN_BASED_CONTROLS=guest["PIN_BASED_CONTROLS"] | controls.PIN_PREEMPTION_TIMER)
        guest.set(GUEST_ACTIVITY_STATE=activity)
        assert enter(guest) == outcome


def test_the_mode_in_efer_follows_the_control_to_64_bits_too() -> None:
    guest = Guest(bits=64)
    cleared = guest["VM_ENTRY_CONTROLS"] & ~controls.ENTRY_LOAD_EFER
    guest.set(VM_ENTRY_CONTROLS=cleared, GUEST_IA32_EFER=state.EFER_SCE)
    assert enter(guest) == entry.RUNS
    assert guest["GUEST_IA32_EFER"] == state.EFER_SCE | state.EFER_LMA | state.EFER_LME
    guest = Guest(bits=64)
    guest.set(GUEST_IA32_EFER=guest["GUEST_IA32_EFER"] | state.EFER_SCE)
    assert enter(guest) == entry.RUNS
    assert guest["GUEST_IA32_EFER"] == state.EFER_SCE | state.EFER_LMA | state.EFER_LME


def test_an_entry_without_ept_puts_none_in_force() -> None:
    guest = Guest()
    guest.set(EPT_POINTER_IN_FORCE=0x1E, EPT_POINTER=0x1E)
    assert enter(guest) == entry.RUNS
    assert guest["EPT_POINTER_IN_FORCE"] == 0
