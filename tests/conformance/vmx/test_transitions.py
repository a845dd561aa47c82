"""VM entries and exits of an x86 VMM: what is loaded and saved, and what comes in between.

SDM, "VM Entries", "VM Exits", "VMX Non-Root Operation".
"""

from collections.abc import Mapping
from struct import pack, unpack

import pytest

from tests.conformance import tiny_guest as tiny
from tests.conformance.x86_vmm import (
    AREA,
    CPUID,
    EXITED,
    FAULTED,
    GUEST_CODE,
    GUEST_STACK,
    HOST_CODE,
    HOST_STACK,
    MODES,
    VMCS_REGION,
    Assembler,
    X86Vmm,
    out,
)
from trapgate.processor.vm_exit import VmExit
from trapgate.sdm import controls as ct
from trapgate.sdm import vmx
from trapgate.sdm.reasons import ExitReason

pytestmark = pytest.mark.conformance

PIN, PRIMARY, SECONDARY = (
    "PIN_BASED_CONTROLS",
    "PRIMARY_PROCESSOR_BASED_CONTROLS",
    "SECONDARY_PROCESSOR_BASED_CONTROLS",
)
EXIT, ENTRY = "VM_EXIT_CONTROLS", "VM_ENTRY_CONTROLS"
INFO = "VM_EXIT_INTERRUPTION_INFORMATION"
FAILED = 1 << 31
LSTAR, TSC_AUX, STAR = 0xC0000082, 0xC0000103, 0xC0000081
LOOP = b"\xeb\xfe"
HLT, NOP, VMCALL, STI = b"\xf4", b"\x90", b"\x0f\x01\xc1", b"\xfb"


def controls(vmm: X86Vmm, **bits: int) -> dict[str, int]:
    """The usual controls of `vmm` with more bits set (a field's name to bits)."""
    usual = vmm.fields_of()
    return {name: usual[name] | more for name, more in bits.items()}


def run(
    mode: str,
    guest: bytes = CPUID,
    fields: Mapping[str, int] | None = None,
    *,
    bits: Mapping[str, int] | None = None,
    **more: object,
) -> X86Vmm:
    """A VMM and its guest that ran to the VMM's OUT; `bits` are added to the controls."""
    plain = X86Vmm(mode)
    added = controls(plain, **dict(bits or {}))
    vmm = X86Vmm(mode, guest=guest, fields=added | dict(fields or {}), **more)  # type: ignore[arg-type]
    vmm.port = vmm.run()  # type: ignore[attr-defined]
    return vmm


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_host_state(mode: str) -> None:
    fields = {
        "HOST_FS_BASE": 0x1234000,
        "HOST_GS_BASE": 0x5678000,
        "HOST_IA32_SYSENTER_CS": 0x10,
        "HOST_IA32_SYSENTER_ESP": 0x1000,
        "HOST_IA32_SYSENTER_EIP": 0x2000,
        "HOST_ES_SELECTOR": 0,
        "GUEST_RFLAGS": 0x246,
        "GUEST_DR7": 0x455,
    }
    vmcs = run(mode, fields=fields).vmcs
    long = mode == "l64"
    assert vmcs["GUEST_RIP"] == HOST_CODE + 2
    assert vmcs["GUEST_RSP"] == HOST_STACK
    assert vmcs["GUEST_RFLAGS"] == 2
    assert vmcs["GUEST_DR7"] == 0x400
    assert vmcs["GUEST_CS_ACCESS_RIGHTS"] == (0xA09B if long else 0xC09B)
    assert vmcs["GUEST_SS_ACCESS_RIGHTS"] == vmcs["GUEST_DS_ACCESS_RIGHTS"] == 0xC093
    assert vmcs["GUEST_ES_ACCESS_RIGHTS"] & 1 << 16
    assert (vmcs["GUEST_FS_BASE"], vmcs["GUEST_GS_BASE"]) == (0x1234000, 0x5678000)
    assert vmcs["GUEST_TR_SELECTOR"] == tiny.TASK
    assert (vmcs["GUEST_TR_LIMIT"], vmcs["GUEST_TR_ACCESS_RIGHTS"]) == (0x67, 0x8B)
    assert vmcs["GUEST_LDTR_ACCESS_RIGHTS"] & 1 << 16
    assert vmcs["GUEST_GDTR_LIMIT"] == vmcs["GUEST_IDTR_LIMIT"] == 0xFFFF
    assert vmcs["GUEST_IA32_SYSENTER_CS"] == 0x10
    assert vmcs["GUEST_IA32_SYSENTER_ESP"] == 0x1000
    assert vmcs["GUEST_IA32_SYSENTER_EIP"] == 0x2000
    assert vmcs["GUEST_IA32_EFER"] == {"p32": 0, "pae": 0x800, "l64": 0xD01}[mode]


def test_guest_of_another_mode() -> None:
    # Its page-directory pointers, whose format is not that of the VMM's tables.
    pointers = pack("<Q", tiny.TABLES + 0x2000 | 1)
    fields = {"GUEST_IA32_EFER": 0x800, "GUEST_CR3": AREA}
    vmm = run("l64", guest_mode="pae", fields=fields, memory={AREA: pointers})
    assert (vmm.port, vmm.reason) == (EXITED, ExitReason.CPUID)  # type: ignore[attr-defined]
    assert vmm["GUEST_IA32_EFER"] == 0x800
    assert not vmm[ENTRY] & ct.ENTRY_IA32E_MODE_GUEST
    assert vmm.vmcs["GUEST_IA32_EFER"] == 0xD01


def test_what_is_not_saved_stays_as_written(mode: str) -> None:
    plain = X86Vmm(mode).fields_of()
    fields = {
        EXIT: plain[EXIT] & ~ct.EXIT_SAVE_DEBUG_CONTROLS & ~ct.EXIT_SAVE_EFER,
        ENTRY: plain[ENTRY] & ~ct.ENTRY_LOAD_DEBUG_CONTROLS & ~ct.ENTRY_LOAD_EFER,
        "GUEST_DR7": 0x477,
        "GUEST_IA32_EFER": 0x100,
    }
    # MOV EAX, DR7 in the guest: the VMM's DR7, not the field.
    vmm = run(mode, b"\x0f\x21\xf8" + CPUID, fields)
    assert vmm.reason == ExitReason.CPUID
    assert vmm.processor.registers.rax == 0x400
    assert (vmm["GUEST_DR7"], vmm["GUEST_IA32_EFER"]) == (0x477, 0x100)


def msr_area(*entries: tuple[int, int], reserved: int = 0) -> bytes:
    return b"".join(pack("<IIQ", index, reserved, value) for index, value in entries)


def test_msr_areas(mode: str) -> None:
    load, store, back = AREA, AREA + 0x100, AREA + 0x200
    vmm = run(
        mode,
        fields={
            "VM_ENTRY_MSR_LOAD_ADDRESS": load,
            "VM_ENTRY_MSR_LOAD_COUNT": 2,
            "VM_EXIT_MSR_STORE_ADDRESS": store,
            "VM_EXIT_MSR_STORE_COUNT": 2,
            "VM_EXIT_MSR_LOAD_ADDRESS": back,
            "VM_EXIT_MSR_LOAD_COUNT": 1,
        },
        memory={
            load: msr_area((LSTAR, 0x1111), (TSC_AUX, 7)),
            store: msr_area((TSC_AUX, 0), (LSTAR, 0)),
            back: msr_area((LSTAR, 0x2222)),
        },
    )
    assert vmm.reason == ExitReason.CPUID
    stored = unpack("<IIQIIQ", vmm.processor.memory.read(store, 32))
    assert stored == (TSC_AUX, 0, 7, LSTAR, 0, 0x1111)
    assert (vmm.processor.registers.lstar, vmm.processor.registers.tsc_aux) == (0x2222, 7)


def test_the_time_stamp_counter_is_stored_without_the_guests_offset(mode: str) -> None:
    vmm = run(
        mode,
        fields={
            "TSC_OFFSET": 1 << 40,
            "VM_EXIT_MSR_STORE_ADDRESS": AREA,
            "VM_EXIT_MSR_STORE_COUNT": 1,
        },
        bits={PRIMARY: ct.PRIMARY_TSC_OFFSETTING},
        memory={AREA: msr_area((0x10, 0))},
    )
    assert 0 < unpack("<Q", vmm.processor.memory.read(AREA + 8, 8))[0] < 10_000


@pytest.mark.parametrize(
    ("entries", "failing"),
    [
        (msr_area((LSTAR, 1 << 63)), 1),
        (msr_area((LSTAR, 0), (0xC0000100, 0)), 2),
        (msr_area((LSTAR, 0), reserved=1), 1),
        (msr_area((LSTAR, 0), (LSTAR, 0), (0x12345, 0)), 3),
    ],
    ids=["value", "FS base", "reserved", "unknown"],
)
def test_msr_loading_fails(mode: str, entries: bytes, failing: int) -> None:
    vmm = run(
        mode,
        fields={"VM_ENTRY_MSR_LOAD_ADDRESS": AREA, "VM_ENTRY_MSR_LOAD_COUNT": len(entries) // 16},
        memory={AREA: entries},
    )
    assert vmm.port == EXITED  # type: ignore[attr-defined]
    assert vmm.reason == FAILED | ExitReason.ENTRY_FAILURE_MSR_LOADING
    assert vmm["EXIT_QUALIFICATION"] == failing
    assert vmm.processor.x86_vmm.state[vmx.LAUNCHED] == vmx.CLEAR


@pytest.mark.parametrize(
    ("field", "code"), [("STORE", vmx.ABORT_SAVING_MSRS), ("LOAD", vmx.ABORT_LOADING_MSRS)]
)
def test_vmx_abort(mode: str, field: str, code: int) -> None:
    vmm = X86Vmm(
        mode,
        fields={f"VM_EXIT_MSR_{field}_ADDRESS": AREA, f"VM_EXIT_MSR_{field}_COUNT": 1},
        memory={AREA: msr_area((0x12345, 0))},
    )
    vmexit = vmm.processor.vmlaunch(vmm.vmcs)
    assert isinstance(vmexit, VmExit)
    assert vmexit.reason == ExitReason.TRIPLE_FAULT
    assert vmm.processor.x86_vmm.abort == code
    assert vmm.processor.memory.read(VMCS_REGION + 4, 4) == pack("<I", code)


def test_preemption_timer(mode: str) -> None:
    bits = {PIN: ct.PIN_PREEMPTION_TIMER, EXIT: ct.EXIT_SAVE_PREEMPTION_TIMER}
    vmm = run(mode, LOOP, {"VMX_PREEMPTION_TIMER_VALUE": 5000}, bits=bits)
    assert (vmm.reason, vmm["VMX_PREEMPTION_TIMER_VALUE"]) == (ExitReason.PREEMPTION_TIMER, 0)
    vmm = run(mode, NOP * 10 + CPUID, {"VMX_PREEMPTION_TIMER_VALUE": 5000}, bits=bits)
    assert vmm.reason == ExitReason.CPUID
    assert 4000 < vmm["VMX_PREEMPTION_TIMER_VALUE"] < 5000
    vmm = run(mode, CPUID, {"VMX_PREEMPTION_TIMER_VALUE": 0}, bits=bits)
    assert (vmm.reason, vmm["GUEST_RIP"]) == (ExitReason.PREEMPTION_TIMER, GUEST_CODE)


def test_halted_guest_and_its_timer(mode: str) -> None:
    bits = {PIN: ct.PIN_PREEMPTION_TIMER}
    for guest, state in ((HLT + CPUID, 0), (CPUID, 1)):
        vmm = X86Vmm(mode)
        fields = controls(vmm, **bits) | {
            "VMX_PREEMPTION_TIMER_VALUE": 3000,
            "GUEST_ACTIVITY_STATE": state,
        }
        vmm = X86Vmm(mode, guest=guest, fields=fields)
        vmexit = vmm.processor.vmlaunch(vmm.vmcs)
        # Without HLT exiting of its own the VMM in Python just lets the time pass.
        assert isinstance(vmexit, VmExit)
        assert vmexit.reason == ExitReason.IO_INSTRUCTION
        assert vmm.reason == ExitReason.PREEMPTION_TIMER
        assert vmm["GUEST_ACTIVITY_STATE"] == 1
        assert vmm["GUEST_RIP"] == GUEST_CODE + (state == 0)


def test_hlt_exits(mode: str) -> None:
    vmm = run(mode, HLT, bits={PRIMARY: ct.PRIMARY_HLT_EXITING})
    assert (vmm.reason, vmm["VM_EXIT_INSTRUCTION_LENGTH"]) == (ExitReason.HLT, 1)


@pytest.mark.parametrize("acknowledge", [False, True])
def test_interrupt_exits(mode: str, acknowledge: bool) -> None:
    vmm = X86Vmm(mode)
    bits = {PIN: ct.PIN_EXTERNAL_INTERRUPT_EXITING}
    if acknowledge:
        bits[EXIT] = ct.EXIT_ACKNOWLEDGE_INTERRUPT
    vmm = X86Vmm(mode, guest=NOP * 5 + LOOP, fields=controls(vmm, **bits))
    vmm.processor.interrupt(0x55)
    # The VMM itself has interrupts off; its guest's are off, too, which does not matter.
    assert vmm.run() == EXITED
    assert vmm.reason == ExitReason.EXTERNAL_INTERRUPT
    assert vmm[INFO] == (0x8000_0055 if acknowledge else 0)


def test_interrupt_is_delivered_to_the_guest(mode: str) -> None:
    code = STI + NOP + LOOP
    vmm = X86Vmm(mode, guest=code, memory={tiny.handler(0x55): CPUID})
    vmm.processor.interrupt(0x55)
    assert vmm.run() == EXITED
    assert (vmm.reason, vmm["GUEST_RIP"]) == (ExitReason.CPUID, tiny.handler(0x55))


def test_nmi(mode: str) -> None:
    vmm = X86Vmm(mode)
    fields = controls(vmm, **{PIN: ct.PIN_NMI_EXITING})
    vmm = X86Vmm(mode, guest=LOOP, fields=fields)
    vmm.vmcs["GUEST_INTERRUPTIBILITY_STATE"] = 8  # not for the VMM
    vmm.processor.nmi()
    assert vmm.run() in (EXITED, FAULTED)
    assert (vmm.reason, vmm[INFO]) == (ExitReason.EXCEPTION_OR_NMI, 0x8000_0202)
    assert vmm.vmcs["GUEST_INTERRUPTIBILITY_STATE"] == 8


def test_interrupt_window(mode: str) -> None:
    bits = {PRIMARY: ct.PRIMARY_INTERRUPT_WINDOW_EXITING}
    vmm = run(mode, STI + NOP + CPUID, bits=bits)
    assert (vmm.reason, vmm["GUEST_RIP"]) == (ExitReason.INTERRUPT_WINDOW, GUEST_CODE + 2)
    vmm = run(mode, CPUID, {"GUEST_RFLAGS": 0x202}, bits=bits)
    assert (vmm.reason, vmm["GUEST_RIP"]) == (ExitReason.INTERRUPT_WINDOW, GUEST_CODE)
    vmm = run(mode, CPUID, bits=bits)
    assert vmm.reason == ExitReason.CPUID


@pytest.mark.parametrize("blocked", [False, True])
def test_nmi_window(mode: str, blocked: bool) -> None:
    bits = {
        PIN: ct.PIN_NMI_EXITING | ct.PIN_VIRTUAL_NMIS,
        PRIMARY: ct.PRIMARY_NMI_WINDOW_EXITING,
    }
    vmm = run(mode, CPUID, {"GUEST_INTERRUPTIBILITY_STATE": 8 * blocked}, bits=bits)
    assert vmm.reason == (ExitReason.CPUID if blocked else ExitReason.NMI_WINDOW)


def test_iret_unblocks_nmis_and_says_so(mode: str) -> None:
    bits = {PIN: ct.PIN_NMI_EXITING | ct.PIN_VIRTUAL_NMIS}
    fields = {
        "GUEST_INTERRUPTIBILITY_STATE": 8,
        "EXCEPTION_BITMAP": 1 << 14,
        "GUEST_RSP": tiny.ABSENT + 0x100,
    }
    iret = b"\x48\xcf" if mode == "l64" else b"\xcf"
    vmm = run(mode, iret, fields, bits=bits)
    assert (vmm.reason, vmm[INFO] & 0x1FFF) == (0, 14 | 3 << 8 | 1 << 11 | 1 << 12)
    assert vmm["GUEST_INTERRUPTIBILITY_STATE"] == 0


def test_monitor_trap_flag(mode: str) -> None:
    bits = {PRIMARY: ct.PRIMARY_MONITOR_TRAP_FLAG}
    vmm = run(mode, NOP + NOP + CPUID, bits=bits)
    assert (vmm.reason, vmm["GUEST_RIP"]) == (ExitReason.MONITOR_TRAP_FLAG, GUEST_CODE + 1)
    vmm = run(mode, CPUID, bits=bits)
    assert vmm.reason == ExitReason.CPUID
    injected = {"VM_ENTRY_INTERRUPTION_INFORMATION": 0x8000_0306}
    vmm = run(mode, NOP, injected, bits=bits)
    assert (vmm.reason, vmm["GUEST_RIP"]) == (ExitReason.MONITOR_TRAP_FLAG, tiny.handler(6))
    # A fault is delivered, and then the exit is due.
    vmm = run(mode, b"\x0f\x0b", bits=bits)
    assert (vmm.reason, vmm["GUEST_RIP"]) == (ExitReason.MONITOR_TRAP_FLAG, tiny.handler(6))


@pytest.mark.parametrize("code", [NOP, b"\x0f\x09"], ids=["nop", "wbinvd"])
@pytest.mark.parametrize("single_step", [0, 1 << 14], ids=["", "single-step"])
def test_debug_exceptions_pending_behind_mov_ss(mode: str, code: bytes, single_step: int) -> None:
    """Breakpoint 0 was met by a MOV to SS: it is told of when the next instruction is done."""
    fields = {
        "EXCEPTION_BITMAP": 1 << 1,
        "GUEST_RFLAGS": 2 | single_step >> 6,
        "GUEST_INTERRUPTIBILITY_STATE": 2,
        "GUEST_PENDING_DEBUG_EXCEPTIONS": 1 << 12 | 1 | single_step,
    }
    vmm = run(mode, code + CPUID, fields)
    assert (vmm.reason, vmm[INFO] & 0x7FF) == (ExitReason.EXCEPTION_OR_NMI, 0x301)
    assert vmm["GUEST_RIP"] == GUEST_CODE + len(code)
    assert (vmm["EXIT_QUALIFICATION"], vmm["GUEST_PENDING_DEBUG_EXCEPTIONS"]) == (
        single_step | 1,
        0,
    )


def test_int1_is_the_one_debug_exception_behind_mov_ss(mode: str) -> None:
    fields = {
        "EXCEPTION_BITMAP": 1 << 1,
        "GUEST_INTERRUPTIBILITY_STATE": 2,
        "GUEST_PENDING_DEBUG_EXCEPTIONS": 1 << 12 | 1,
    }
    vmm = run(mode, b"\xf1", fields)
    assert (vmm.reason, vmm[INFO] & 0x7FF) == (ExitReason.EXCEPTION_OR_NMI, 0x501)
    assert vmm["GUEST_PENDING_DEBUG_EXCEPTIONS"] == 0


def test_translations_of_another_vpid_are_not_used(mode: str) -> None:
    """The VMM, on the same tables, has seen a page that its guest does not find any more."""
    plain = X86Vmm(mode)
    vpid = {
        PRIMARY: ct.PRIMARY_SECONDARY_CONTROLS | plain.fields_of()[PRIMARY],
        SECONDARY: ct.SECONDARY_VPID,
        "VIRTUAL_PROCESSOR_IDENTIFIER": 1,
        "EXCEPTION_BITMAP": 1 << 14,
    }
    a = plain.assembler
    entry = tiny.TABLES + 0x3000 + (AREA >> 12) * (4 if mode == "p32" else 8)
    # mov eax, [AREA]; mov dword [entry], 0; and then in, by VMLAUNCH.
    touch = b"\x8b" + a.absolute(0, AREA) + b"\xc7" + a.absolute(0, entry) + bytes(4)
    vmm = X86Vmm(mode, guest=b"\x8b" + a.absolute(0, AREA) + CPUID, fields=vpid)
    start = vmm.start().removesuffix(a.vmlaunch)
    vmm = X86Vmm(mode, guest=vmm.guest, fields=vpid, program=start + touch + a.vmlaunch)
    assert vmm.processor.memory.read(entry, 4)[0] & 1
    assert vmm.run() == EXITED
    assert (vmm.reason, vmm[INFO] & 0x7FF) == (ExitReason.EXCEPTION_OR_NMI, 0x30E)
    assert vmm["EXIT_QUALIFICATION"] == AREA


def test_mov_to_cr3_with_reserved_bits(mode: str) -> None:
    if mode != "l64":
        pytest.skip("the register has 32 bits")
    code = b"\x48\xb8" + pack("<Q", 1 << 40) + b"\x0f\x22\xd8"
    vmm = run(mode, code, {"EXCEPTION_BITMAP": 1 << 13})
    assert (vmm.reason, vmm[INFO] & 0x7FF) == (ExitReason.EXCEPTION_OR_NMI, 0x30D)


def test_loading_cr3_with_what_it_holds_forgets_translations(mode: str) -> None:
    a = Assembler(mode == "l64")
    entry = tiny.TABLES + 0x3000 + (AREA >> 12) * (4 if mode == "p32" else 8)
    # mov eax, [AREA]; mov dword [entry], 0; mov eax, cr3; mov cr3, eax; mov eax, [AREA]
    touch = b"\x8b" + a.absolute(0, AREA)
    reload = b"\xc7" + a.absolute(0, entry) + bytes(4) + b"\x0f\x20\xd8\x0f\x22\xd8"
    vmm = run(mode, touch + reload + touch + CPUID, {"EXCEPTION_BITMAP": 1 << 14})
    assert (vmm.reason, vmm[INFO] & 0x7FF) == (ExitReason.EXCEPTION_OR_NMI, 0x30E)
    assert vmm["GUEST_RIP"] == GUEST_CODE + len(touch + reload)


@pytest.mark.parametrize("pcids", [False, True])
def test_bit_63_of_cr3(pcids: bool) -> None:
    """With PCIDs it asks to keep translations, which nobody has to; else it is reserved."""
    cr3 = tiny.TABLES | pcids
    code = b"\x48\xb8" + pack("<Q", 1 << 63 | cr3) + b"\x0f\x22\xd8\x0f\x20\xd8" + CPUID
    fields = {"EXCEPTION_BITMAP": 1 << 13, "GUEST_CR4": 0x2620 | pcids << 17}
    vmm = run("l64", code, fields)
    if pcids:
        assert (vmm.reason, vmm["GUEST_CR3"]) == (ExitReason.CPUID, cr3)
        assert vmm.processor.registers.rax == cr3
    else:
        assert vmm[INFO] & 0x7FF == 0x30D


def test_an_interrupt_that_waits_for_the_vmm_exits_from_its_guest(mode: str) -> None:
    """The machine waits for the VMM to enable interrupts, and that enters its guest instead."""
    vmm = X86Vmm(mode)
    fields = controls(vmm, **{PIN: ct.PIN_EXTERNAL_INTERRUPT_EXITING})
    vmm = X86Vmm(mode, guest=NOP * 5 + VMCALL, fields=fields)
    vmm.vmcs[PRIMARY] |= ct.PRIMARY_INTERRUPT_WINDOW_EXITING
    window = vmm.processor.vmlaunch(vmm.vmcs)
    assert isinstance(window, VmExit)
    assert window.reason == ExitReason.INTERRUPT_WINDOW
    assert vmm.processor.x86_vmm.guest_is_in_vmcs0
    assert vmm.vmcs["GUEST_RIP"] == GUEST_CODE
    vmm.vmcs[PRIMARY] &= ~ct.PRIMARY_INTERRUPT_WINDOW_EXITING
    vmm.vmcs["VM_ENTRY_INTERRUPTION_INFORMATION"] = 0x8000_0033
    assert vmm.run() == EXITED
    assert (vmm.reason, vmm["GUEST_RIP"]) == (ExitReason.EXTERNAL_INTERRUPT, GUEST_CODE)


def test_the_end_of_an_instruction_that_the_machine_carried_out(mode: str) -> None:
    """Whoever emulates an instruction says what follows it: a single step, the monitor trap."""
    step = {"GUEST_RFLAGS": 0x102, "EXCEPTION_BITMAP": 1 << 1}
    for bits in ({}, {PRIMARY: ct.PRIMARY_MONITOR_TRAP_FLAG}):
        plain = X86Vmm(mode)
        fields = controls(plain, **bits) | step
        vmm = X86Vmm(mode, guest=out(0x77) + CPUID, fields=fields)
        assert vmm.run() == 0x77
        vmm.processor.engine.end_emulated_instruction()
        assert vmm.run() == EXITED
        assert vmm["GUEST_RIP"] == GUEST_CODE + 2
        if bits:
            assert vmm.reason == ExitReason.MONITOR_TRAP_FLAG
            assert vmm["GUEST_PENDING_DEBUG_EXCEPTIONS"] == 1 << 14
        else:
            assert (vmm.reason, vmm[INFO] & 0x7FF) == (ExitReason.EXCEPTION_OR_NMI, 0x301)


def test_ports_that_are_let_through(mode: str) -> None:
    vmm = X86Vmm(mode, guest=out(0x77) + CPUID)
    assert vmm.run() == 0x77
    assert vmm.processor.x86_vmm.guest_is_in_vmcs0
    assert vmm.vmcs["GUEST_RIP"] == GUEST_CODE + 2
    assert vmm.run() == EXITED
    assert (vmm.reason, vmm["GUEST_RIP"]) == (ExitReason.CPUID, GUEST_CODE + 2)


@pytest.mark.parametrize("string", [False, True])
def test_ports_that_are_not(mode: str, string: bool) -> None:
    bits = {PRIMARY: ct.PRIMARY_UNCONDITIONAL_IO_EXITING}
    vmm = run(mode, b"\x6e" if string else out(0x77), bits=bits, registers={"rsi": AREA})
    assert vmm.reason == ExitReason.IO_INSTRUCTION
    if string:
        assert vmm["GUEST_LINEAR_ADDRESS"] == AREA


@pytest.mark.parametrize("bitmap", [0, 1 << 13])
def test_what_the_vmm_in_python_injects_is_an_event_to_the_x86_vmm(mode: str, bitmap: int) -> None:
    # RDMSR of an MSR that the core does not have, under an empty MSR bitmap.
    bits = {PRIMARY: ct.PRIMARY_USE_MSR_BITMAPS}
    fields = {"MSR_BITMAP_ADDRESS": AREA, "EXCEPTION_BITMAP": bitmap}
    vmm = X86Vmm(mode)
    vmm = X86Vmm(
        mode,
        guest=b"\xb9\x34\x12\x00\x00\x0f\x32",
        fields=controls(vmm, **bits) | fields,
        memory={tiny.handler(13): CPUID},
    )
    vmexit = vmm.processor.vmlaunch(vmm.vmcs)
    assert isinstance(vmexit, VmExit)
    assert vmexit.reason == ExitReason.RDMSR
    vmm.vmcs["VM_ENTRY_INTERRUPTION_INFORMATION"] = 0x8000_0B0D
    assert vmm.run() == EXITED
    if bitmap:
        assert (vmm.reason, vmm[INFO]) == (0, 0x8000_0B0D)
        assert vmm["GUEST_RIP"] == GUEST_CODE + 5
    else:
        assert (vmm.reason, vmm["GUEST_RIP"]) == (ExitReason.CPUID, tiny.handler(13))


def test_time_stamp_offsets_add_up(mode: str) -> None:
    bits = {PRIMARY: ct.PRIMARY_TSC_OFFSETTING}
    vmm = X86Vmm(mode)
    fields = controls(vmm, **bits) | {"TSC_OFFSET": 1 << 40}
    vmm = X86Vmm(mode, guest=b"\x0f\x31" + CPUID, fields=fields)
    vmm.vmcs[PRIMARY] |= ct.PRIMARY_TSC_OFFSETTING
    vmm.vmcs["TSC_OFFSET"] = 1 << 50
    assert vmm.run() == EXITED
    seen = vmm.processor.registers.rdx << 32 | vmm.processor.registers.rax
    assert 0 < seen - (1 << 40 | 1 << 50) < 10_000


@pytest.mark.parametrize(
    ("code", "reason", "identity"),
    [
        (b"\x0f\x01\x03", ExitReason.GDTR_OR_IDTR_ACCESS, 0),
        (b"\x0f\x01\x0b", ExitReason.GDTR_OR_IDTR_ACCESS, 1),
        (b"\x0f\x01\x13", ExitReason.GDTR_OR_IDTR_ACCESS, 2),
        (b"\x0f\x01\x1b", ExitReason.GDTR_OR_IDTR_ACCESS, 3),
        (b"\x0f\x00\x03", ExitReason.LDTR_OR_TR_ACCESS, 0),
        (b"\x0f\x00\x0b", ExitReason.LDTR_OR_TR_ACCESS, 1),
        (b"\x0f\x00\x13", ExitReason.LDTR_OR_TR_ACCESS, 2),
        (b"\x0f\x00\x1b", ExitReason.LDTR_OR_TR_ACCESS, 3),
    ],
    ids=["sgdt", "sidt", "lgdt", "lidt", "sldt", "str", "lldt", "ltr"],
)
def test_descriptor_table_exiting(mode: str, code: bytes, reason: int, identity: int) -> None:
    bits = {
        PRIMARY: ct.PRIMARY_SECONDARY_CONTROLS,
        SECONDARY: ct.SECONDARY_DESCRIPTOR_TABLE_EXITING,
    }
    vmm = run(mode, code, bits=bits, registers={"rbx": AREA})
    assert (vmm.reason, vmm["VM_EXIT_INSTRUCTION_LENGTH"]) == (reason, 3)
    information = vmm["VM_EXIT_INSTRUCTION_INFORMATION"]
    assert information >> 28 & 3 == identity
    assert (information >> 23 & 0xF, information >> 22 & 1, information >> 15 & 7) == (3, 1, 3)
    assert information >> 7 & 7 == (2 if mode == "l64" else 1)


def test_vmx_instructions_of_the_guest(mode: str) -> None:
    a = Assembler(mode == "l64")
    for code, reason in (
        (a.vmcall, ExitReason.VMCALL),
        (a.vmlaunch, ExitReason.VMLAUNCH),
        (a.vmresume, ExitReason.VMRESUME),
        (a.vmxoff, ExitReason.VMXOFF),
        (b"\x0f\xc7\x73\x10", ExitReason.VMPTRLD),
        (b"\x0f\xc7\x7b\x10", ExitReason.VMPTRST),
        (b"\x66\x0f\xc7\x73\x10", ExitReason.VMCLEAR),
        (b"\xf3\x0f\xc7\x73\x10", ExitReason.VMXON),
        (b"\x0f\x78\xd8", ExitReason.VMREAD),
        (b"\x0f\x79\x5b\x10", ExitReason.VMWRITE),
    ):
        vmm = run(mode, code, registers={"rbx": AREA})
        assert (vmm.reason, vmm["VM_EXIT_INSTRUCTION_LENGTH"]) == (reason, len(code))
        if code[-1] == 0x10:
            assert vmm["EXIT_QUALIFICATION"] == 0x10
            assert vmm["VM_EXIT_INSTRUCTION_INFORMATION"] >> 23 & 0xF == 3
        if reason == ExitReason.VMREAD:
            assert vmm["VM_EXIT_INSTRUCTION_INFORMATION"] == 0x3000_0400


def test_shadows_and_targets(mode: str) -> None:
    masks = {"CR0_GUEST_HOST_MASK": 1 << 3, "CR0_READ_SHADOW": 1 << 3}
    vmm = run(mode, b"\x0f\x20\xc0" + CPUID, masks)
    assert vmm.processor.registers.rax == 0x80010031 | 1 << 3
    vmm = run(mode, b"\x0f\x06", masks)
    assert (vmm.reason, vmm["EXIT_QUALIFICATION"]) == (28, 2 << 4)
    load = b"\x0f\x20\xd8\x0f\x22\xd8"
    bits = {PRIMARY: ct.PRIMARY_CR3_LOAD_EXITING}
    vmm = run(mode, load + CPUID, bits=bits)
    assert (vmm.reason, vmm["EXIT_QUALIFICATION"]) == (28, 3)
    targets = {"CR3_TARGET_COUNT": 1, "CR3_TARGET_VALUE_0": tiny.TABLES}
    assert run(mode, load + CPUID, targets, bits=bits).reason == ExitReason.CPUID


@pytest.mark.parametrize("extended", [False, True])
def test_the_seeds_fields_need_its_profile(mode: str, extended: bool) -> None:
    a = Assembler(mode == "l64")
    program = a.vmxon() + a.vmclear() + a.vmptrld() + a.vmwrite(0x4302, 1 << 14)
    vmm = X86Vmm(mode, program=program, extended=extended)
    vmm.run()
    assert vmm["TRANSFER_CRITERION_VECTORS"] == (1 << 14 if extended else 0)
    assert vmm.flags == (0 if extended else 0x40)
    assert (vmx.MSR_TRAPGATE_EXTENSIONS in vmm.processor.x86_vmm.msrs()) == extended


def test_the_seeds_comparison_filters_for_an_x86_vmm(mode: str) -> None:
    # Page faults with an error code above 1 exit (¶38), others are the guest's.
    fields = {
        "EXCEPTION_BITMAP": 1 << 14,
        "TRANSFER_CRITERION": 6,
        "TRANSFER_CRITERION_VECTORS": 1 << 14,
        "COMPARISON_OPERATOR": 4,
        "COMPARISON_VALUE": 1,
    }
    read, write = b"\xa1" + pack("<I", tiny.ABSENT), b"\xa3" + pack("<I", tiny.ABSENT)
    if mode == "l64":
        read = b"\xa1" + pack("<Q", tiny.ABSENT)
        write = b"\xa3" + pack("<Q", tiny.ABSENT)
    more = {"memory": {tiny.handler(14): CPUID}}
    exits = run(mode, write, fields, **more)  # type: ignore[arg-type]
    assert (exits.reason, exits["VM_EXIT_INTERRUPTION_ERROR_CODE"]) == (0, 2)
    stays = run(mode, read, fields, **more)  # type: ignore[arg-type]
    assert (stays.reason, stays["GUEST_RIP"]) == (ExitReason.CPUID, tiny.handler(14))


def test_stack_of_the_guest_is_its_own(mode: str) -> None:
    vmm = run(mode, b"\x50" + CPUID)
    assert vmm["GUEST_RSP"] == GUEST_STACK - (8 if mode == "l64" else 4)
