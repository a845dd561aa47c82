"""APIC-register virtualization, virtual-interrupt delivery and posted interrupts.

SDM, "APIC Virtualization and Virtual Interrupts". The guest's handler of every vector is a VMCALL
here, so that an exit tells that it was entered.
"""

from collections.abc import Mapping
from struct import pack, unpack

import pytest

from tests.conformance import tiny_guest as tiny
from tests.conformance.vmx.test_task_priority import ACCESSES, NOP, VIRTUAL, load, store
from tests.conformance.x86_vmm import CPUID, EXITED, GUEST_CODE, X86Vmm
from trapgate.sdm import controls as ct
from trapgate.sdm.reasons import ExitReason

pytestmark = pytest.mark.conformance

ENGINES = ("native", "portable")
TPR, PPR, EOI, ISR, IRR, ICR, ICR_HIGH, SVR = 0x80, 0xA0, 0xB0, 0x100, 0x200, 0x300, 0x310, 0xF0
BITMAPS, DESCRIPTOR = 0x72000, 0x73000
STI, CLI, HLT, VMCALL = b"\xfb", b"\xfa", b"\xf4", b"\x0f\x01\xc1"
MMIO, REGISTERS, DELIVERY, X2APIC = (
    ct.SECONDARY_VIRTUALIZE_APIC_ACCESSES,
    ct.SECONDARY_APIC_REGISTER_VIRTUALIZATION,
    ct.SECONDARY_VIRTUAL_INTERRUPT_DELIVERY,
    ct.SECONDARY_VIRTUALIZE_X2APIC,
)
SELF = 1 << 18


def write_msr(index: int, value: int) -> bytes:
    return b"\xb9" + pack("<I", index) + b"\x31\xd2\xb8" + pack("<I", value) + b"\x0f\x30"


def put(offset: int, value: int) -> bytes:
    """Mov eax, value; store it in a register of the page."""
    return b"\xb8" + pack("<I", value) + store(offset, True)


def machine(
    guest: bytes,
    *,
    secondary: int,
    engine: str = "native",
    requests: tuple[int, ...] = (),
    status: int | None = None,
    tpr: int = 0,
    primary: int = 0,
    more: Mapping[str, int] | None = None,
) -> X86Vmm:
    """An x86 VMM whose guest has these virtual interrupts requested."""
    exiting = ct.PIN_EXTERNAL_INTERRUPT_EXITING
    fields = {
        "PIN_BASED_CONTROLS": ct.PIN_ALLOWED_0 | exiting,
        "PRIMARY_PROCESSOR_BASED_CONTROLS": ct.PRIMARY_ALLOWED_0
        | ct.PRIMARY_TPR_SHADOW
        | ct.PRIMARY_SECONDARY_CONTROLS
        | ct.PRIMARY_USE_MSR_BITMAPS
        | primary,
        "SECONDARY_PROCESSOR_BASED_CONTROLS": secondary,
        "VIRTUAL_APIC_ADDRESS": VIRTUAL,
        "APIC_ACCESS_ADDRESS": ACCESSES,
        "MSR_BITMAP_ADDRESS": BITMAPS,
        "GUEST_INTERRUPT_STATUS": max(requests, default=0) if status is None else status,
        **(more or {}),
    }
    page = bytearray(4096)
    page[TPR] = tpr
    for vector in requests:
        page[IRR + (vector >> 5 << 4) + (vector >> 3 & 3)] |= 1 << (vector & 7)
    memory = {VIRTUAL: bytes(page), ACCESSES: b"\xa5" * 4096}
    vmm = X86Vmm("l64", guest=guest, fields=fields, memory=memory, engine=engine)
    for vector in range(256):
        vmm.processor.memory.write(tiny.handler(vector), VMCALL)
    return vmm


def register(vmm: X86Vmm, offset: int) -> int:
    return int(unpack("<I", vmm.processor.memory.read(VIRTUAL + offset, 4))[0])


def vectors(vmm: X86Vmm, base: int) -> list[int]:
    words = [register(vmm, base + 16 * n) for n in range(8)]
    return [32 * n + bit for n, word in enumerate(words) for bit in range(32) if word >> bit & 1]


def taken(vmm: X86Vmm) -> int:
    """The vector whose handler was entered."""
    assert vmm.run() == EXITED
    assert vmm.reason == ExitReason.VMCALL, ExitReason(vmm.reason)
    vector, rest = divmod(vmm["GUEST_RIP"] - tiny.handler(0), 16)
    assert rest == 0
    return vector


@pytest.mark.parametrize("engine", ENGINES)
def test_the_highest_request_is_delivered_when_interrupts_open(engine: str) -> None:
    guest = NOP * 3 + STI + NOP + NOP * 20 + CPUID
    vmm = machine(guest, secondary=DELIVERY, engine=engine, requests=(0x41, 0x9A, 0x62))
    assert taken(vmm) == 0x9A
    assert vmm["GUEST_INTERRUPT_STATUS"] == 0x9A62
    assert (vectors(vmm, ISR), vectors(vmm, IRR)) == ([0x9A], [0x41, 0x62])
    assert register(vmm, PPR) == 0x90
    # Behind the instruction that follows STI.
    frame = vmm.processor.memory.read(vmm["GUEST_RSP"], 8)
    assert unpack("<Q", frame)[0] == GUEST_CODE + 5


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("tpr", [0x90, 0x9F, 0xF0])
def test_the_task_priority_holds_it_back(tpr: int, engine: str) -> None:
    vmm = machine(STI + NOP * 20 + CPUID, secondary=DELIVERY, requests=(0x9A,), tpr=tpr)
    assert vmm.run() == EXITED
    assert vmm.reason == ExitReason.CPUID
    assert register(vmm, PPR) == tpr
    lower = b"\xb8\x08\0\0\0\x44\x0f\x22\xc0"
    guest = STI + NOP * 5 + lower + NOP * 9 + CPUID
    vmm = machine(guest, secondary=DELIVERY, engine=engine, requests=(0x9A,), tpr=tpr)
    assert taken(vmm) == 0x9A


def test_interrupt_window_exiting_comes_first() -> None:
    window = ct.PRIMARY_INTERRUPT_WINDOW_EXITING
    vmm = machine(STI + NOP * 20, secondary=DELIVERY, requests=(0x9A,), primary=window)
    assert vmm.run() == EXITED
    assert vmm.reason == ExitReason.INTERRUPT_WINDOW


@pytest.mark.parametrize("engine", ENGINES)
def test_it_wakes_a_guest_that_halts(engine: str) -> None:
    vmm = machine(STI + HLT + CPUID, secondary=DELIVERY, engine=engine, requests=(0x33,))
    assert taken(vmm) == 0x33


def handled(guest: bytes, end: bytes, **options: object) -> X86Vmm:
    """A VMM whose guest's handlers do `end` before their VMCALL."""
    vmm = machine(guest, **options)  # type: ignore[arg-type]
    for vector in range(0x20, 0x100):
        at = 0x80000 + 64 * vector
        vmm.processor.memory.write(at, end + VMCALL)
        jump = b"\xe9" + pack("<i", at - tiny.handler(vector) - 5)
        vmm.processor.memory.write(tiny.handler(vector), jump)
    return vmm


@pytest.mark.parametrize(
    ("secondary", "end", "engine"),
    [
        (DELIVERY | MMIO, put(EOI, 0), "native"),
        (DELIVERY | MMIO | REGISTERS, put(EOI, 0x1234), "native"),
        (DELIVERY | X2APIC, write_msr(0x80B, 0), "native"),
        (DELIVERY | X2APIC, write_msr(0x80B, 0), "portable"),
    ],
)
def test_the_end_of_an_interrupt(secondary: int, end: bytes, engine: str) -> None:
    guest = STI + NOP * 20 + CPUID
    options = {"secondary": secondary, "engine": engine, "requests": (0x9A, 0x62)}
    vmm = handled(guest, end + CLI, **options)
    assert vmm.run() == EXITED
    assert vmm.reason == ExitReason.VMCALL
    assert (vmm["GUEST_INTERRUPT_STATUS"], vectors(vmm, ISR)) == (0x62, [])
    assert (register(vmm, PPR), register(vmm, EOI)) == (0, 0)
    bitmap = {"EOI_EXIT_BITMAP_2": 1 << (0x9A & 63)}
    vmm = handled(guest, end + CLI, **options, more=bitmap)
    assert vmm.run() == EXITED
    assert (vmm.reason, vmm["EXIT_QUALIFICATION"]) == (ExitReason.VIRTUALIZED_EOI, 0x9A)
    assert vmm["GUEST_RIP"] == 0x80000 + 64 * 0x9A + len(end)


@pytest.mark.parametrize(
    ("secondary", "code", "engine"),
    [
        (DELIVERY | MMIO, put(ICR, SELF | 0x77), "native"),
        (DELIVERY | X2APIC, write_msr(0x83F, 0x77), "native"),
        (DELIVERY | X2APIC, write_msr(0x83F, 0x77), "portable"),
    ],
)
def test_an_interrupt_to_itself(secondary: int, code: bytes, engine: str) -> None:
    vmm = machine(STI + NOP + code + NOP * 9 + CPUID, secondary=secondary, engine=engine)
    assert taken(vmm) == 0x77
    assert vmm["GUEST_INTERRUPT_STATUS"] == 0x7700


@pytest.mark.parametrize(
    "value", [0x77, SELF | 0x0F, SELF | 0x177, SELF | 0x8077, 2 << 18 | 0x77, SELF | 1 << 20 | 0x77]
)
def test_other_commands_are_the_vmm_s(value: int) -> None:
    code = put(ICR, value)
    vmm = machine(STI + NOP + code + CPUID, secondary=DELIVERY | MMIO)
    assert vmm.run() == EXITED
    assert (vmm.reason, vmm["EXIT_QUALIFICATION"]) == (ExitReason.APIC_WRITE, ICR)
    assert vmm["GUEST_RIP"] == GUEST_CODE + 2 + len(code)
    assert register(vmm, ICR) == value


@pytest.mark.parametrize("offset", [0x20, 0xD0, 0xE0, SVR, 0x280, 0x320, 0x370, 0x380, 0x3E0])
def test_registers_are_read_from_the_page_and_written_with_an_exit(offset: int) -> None:
    code = put(offset, 0x1234_5678) + NOP
    vmm = machine(code + CPUID, secondary=MMIO | REGISTERS)
    assert vmm.run() == EXITED
    assert (vmm.reason, vmm["EXIT_QUALIFICATION"]) == (ExitReason.APIC_WRITE, offset)
    assert vmm["GUEST_RIP"] == GUEST_CODE + len(code) - 1
    assert register(vmm, offset) == 0x1234_5678
    vmm = machine(load(offset, True) + CPUID, secondary=MMIO | REGISTERS)
    vmm.processor.memory.write(VIRTUAL + offset, pack("<I", 0xCAFE))
    assert vmm.run() == EXITED
    assert vmm.reason == ExitReason.CPUID
    assert vmm.processor.registers.rax == 0xCAFE


def test_the_high_half_of_a_command_needs_no_vmm() -> None:
    vmm = machine(put(ICR_HIGH, 0x1234_5678) + CPUID, secondary=MMIO | REGISTERS)
    assert vmm.run() == EXITED
    assert vmm.reason == ExitReason.CPUID
    assert register(vmm, ICR_HIGH) == 0x1200_0000


@pytest.mark.parametrize("offset", [0x10, 0x30, 0x90, 0x100, 0x270, 0x290, 0x3F0, 0x400])
def test_what_no_register_is_writable_at_exits_before(offset: int) -> None:
    code = store(offset, True)
    vmm = machine(NOP + code + NOP, secondary=MMIO | REGISTERS)
    assert vmm.run() == EXITED
    assert (vmm.reason, vmm["EXIT_QUALIFICATION"]) == (ExitReason.APIC_ACCESS, 1 << 12 | offset)
    assert vmm["GUEST_RIP"] == GUEST_CODE + 1
    assert vmm["VM_EXIT_INSTRUCTION_LENGTH"] == len(code)


def posted(guest: bytes, pending: tuple[int, ...], engine: str) -> X86Vmm:
    more = {
        "PIN_BASED_CONTROLS": ct.PIN_ALLOWED_0
        | ct.PIN_EXTERNAL_INTERRUPT_EXITING
        | ct.PIN_POSTED_INTERRUPTS,
        "POSTED_INTERRUPT_NOTIFICATION_VECTOR": 0xF2,
        "POSTED_INTERRUPT_DESCRIPTOR_ADDRESS": DESCRIPTOR,
    }
    vmm = machine(guest, secondary=DELIVERY, engine=engine, more=more)
    exits = vmm.fields_of()["VM_EXIT_CONTROLS"] | ct.EXIT_ACKNOWLEDGE_INTERRUPT
    vmm = machine(
        guest, secondary=DELIVERY, engine=engine, more={**more, "VM_EXIT_CONTROLS": exits}
    )
    requests = bytearray(64)
    for vector in pending:
        requests[vector >> 3] |= 1 << (vector & 7)
    requests[32] = 1
    vmm.processor.memory.write(DESCRIPTOR, bytes(requests))
    return vmm


@pytest.mark.parametrize("engine", ENGINES)
def test_posted_interrupts_reach_the_guest_without_an_exit(engine: str) -> None:
    vmm = posted(NOP + STI + b"\xeb\xfe", (0x41, 0xB0), engine)
    vmm.vmcs["VMX_PREEMPTION_TIMER_VALUE"] = 100
    # The notification comes once the guest of the x86 VMM runs.
    vmm.processor.vmlaunch(vmm.vmcs)
    while not vmm.processor.x86_vmm.counts()[0]:
        vmm.processor.vmresume(vmm.vmcs)
    vmm.processor.interrupt(0xF2)
    vmm.vmcs["VMX_PREEMPTION_TIMER_VALUE"] = 1_000_000
    assert taken(vmm) == 0xB0
    assert vmm["GUEST_INTERRUPT_STATUS"] == 0xB041
    assert vmm.processor.memory.read(DESCRIPTOR, 64) == bytes(64)
    _, exits = vmm.processor.x86_vmm.counts()
    assert ExitReason.EXTERNAL_INTERRUPT not in exits


@pytest.mark.parametrize("engine", ENGINES)
def test_other_interrupts_exit_as_ever(engine: str) -> None:
    vmm = posted(NOP + b"\xeb\xfe", (0x41,), engine)
    vmm.vmcs["VMX_PREEMPTION_TIMER_VALUE"] = 100
    vmm.processor.vmlaunch(vmm.vmcs)
    while not vmm.processor.x86_vmm.counts()[0]:
        vmm.processor.vmresume(vmm.vmcs)
    vmm.processor.interrupt(0x51)
    vmm.vmcs["VMX_PREEMPTION_TIMER_VALUE"] = 1_000_000
    assert vmm.run() == EXITED
    assert vmm.reason == ExitReason.EXTERNAL_INTERRUPT
    assert vmm["VM_EXIT_INTERRUPTION_INFORMATION"] & 0xFF == 0x51
