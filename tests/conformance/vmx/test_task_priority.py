"""TPR shadow, virtualized APIC accesses and x2APIC's TPR, to a guest of an x86 VMM.

SDM, "APIC Virtualization and Virtual Interrupts". The guest's task priority is VTPR in the
virtual-APIC page, and what is not virtualized of the APIC-access page is an exit.
"""

from collections.abc import Mapping
from struct import pack

import pytest

from tests.conformance import tiny_guest as tiny
from tests.conformance.x86_vmm import (
    CPUID,
    EXITED,
    FAULTED,
    FELL_THROUGH,
    GUEST_CODE,
    MODES,
    X86Vmm,
)
from trapgate.sdm import controls as ct
from trapgate.sdm.reasons import ExitReason

pytestmark = pytest.mark.conformance

VIRTUAL, ACCESSES = 0x70000, 0x71000
"""The virtual-APIC page and the APIC-access page."""
TPR, EOI, ID = 0x80, 0xB0, 0x20
NOP = b"\x90"
ENGINES = ("native", "portable")


def load(offset: int, long: bool, size: int = 4) -> bytes:
    """MOV of 1, 2 or 4 bytes from the APIC-access page into (E)AX."""
    return moved(0x8B if size > 1 else 0x8A, offset, long, size)


def store(offset: int, long: bool, size: int = 4) -> bytes:
    """The other way."""
    return moved(0x89 if size > 1 else 0x88, offset, long, size)


def moved(opcode: int, offset: int, long: bool, size: int) -> bytes:
    address = pack("<I", ACCESSES + offset)
    form = b"\x04\x25" if long else b"\x05"
    return b"\x66" * (size == 2) + bytes((opcode,)) + form + address


def to_cr8(value: int) -> bytes:
    """Mov eax, value; mov cr8, rax."""
    return b"\xb8" + pack("<I", value) + b"\x44\x0f\x22\xc0"


FROM_CR8 = b"\x44\x0f\x20\xc0"


def machine(
    guest: bytes,
    mode: str = "l64",
    *,
    engine: str = "native",
    secondary: int = 0,
    threshold: int = 0,
    vtpr: int = 0,
    shadow: bool = True,
    more: Mapping[str, int] | None = None,
) -> X86Vmm:
    plain = X86Vmm(mode, engine=engine)
    usual = plain.fields_of()
    primary = usual["PRIMARY_PROCESSOR_BASED_CONTROLS"]
    primary |= ct.PRIMARY_TPR_SHADOW * shadow | ct.PRIMARY_SECONDARY_CONTROLS * bool(secondary)
    fields = {
        "PRIMARY_PROCESSOR_BASED_CONTROLS": primary,
        "SECONDARY_PROCESSOR_BASED_CONTROLS": secondary,
        "VIRTUAL_APIC_ADDRESS": VIRTUAL,
        "APIC_ACCESS_ADDRESS": ACCESSES,
        "TPR_THRESHOLD": threshold,
        **(more or {}),
    }
    page = pack("<I", 0x1234_5600 | vtpr)
    there = b"\xa5" * 4096
    memory = {VIRTUAL + TPR: page, ACCESSES: there}
    return X86Vmm(mode, guest=guest, fields=fields, memory=memory, engine=engine)


def vtpr_of(vmm: X86Vmm) -> int:
    return int.from_bytes(vmm.processor.memory.read(VIRTUAL + TPR, 4), "little")


@pytest.mark.parametrize("engine", ENGINES)
def test_cr8_is_the_shadow(engine: str) -> None:
    vmm = machine(FROM_CR8 + b"\x93" + to_cr8(9) + NOP + CPUID, engine=engine, vtpr=0x75)
    assert vmm.run() == EXITED
    assert vmm.reason == ExitReason.CPUID
    assert vmm.processor.registers.rbx == 7
    assert vtpr_of(vmm) == 0x90
    assert vmm.processor.registers.cr8 == 0, "the VMM's own is another one"


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("value", "threshold"), [(3, 4), (0, 1), (14, 15)])
def test_below_the_threshold_it_exits_behind_the_instruction(
    value: int, threshold: int, engine: str
) -> None:
    code = to_cr8(value)
    vmm = machine(code + CPUID, engine=engine, threshold=threshold, vtpr=0xF0)
    assert vmm.run() == EXITED
    assert vmm.reason == ExitReason.TPR_BELOW_THRESHOLD
    assert vmm["GUEST_RIP"] == GUEST_CODE + len(code)
    assert (vmm["EXIT_QUALIFICATION"], vtpr_of(vmm)) == (0, value << 4)
    at_it = machine(to_cr8(threshold) + CPUID, engine=engine, threshold=threshold, vtpr=0xF0)
    assert at_it.run() == EXITED
    assert at_it.reason == ExitReason.CPUID


def test_a_value_that_cr8_cannot_hold_changes_nothing() -> None:
    vmm = machine(to_cr8(0x10) + CPUID, threshold=5, vtpr=0x80)
    assert vmm.run() == FAULTED, "#GP, to the guest's own handler"
    assert vmm["GUEST_RIP"] - tiny.handler(13) in (0, 2)
    assert vtpr_of(vmm) == 0x1234_5680


@pytest.mark.parametrize("engine", ENGINES)
def test_exiting_comes_before_the_shadow(engine: str) -> None:
    for bit, code in (
        (ct.PRIMARY_CR8_LOAD_EXITING, to_cr8(1)),
        (ct.PRIMARY_CR8_STORE_EXITING, FROM_CR8),
    ):
        vmm = machine(code + CPUID, engine=engine)
        primary = vmm.fields["PRIMARY_PROCESSOR_BASED_CONTROLS"] | bit
        more = {"PRIMARY_PROCESSOR_BASED_CONTROLS": primary}
        vmm = machine(code + CPUID, engine=engine, more=more, vtpr=0x30)
        assert vmm.run() == EXITED
        assert vmm.reason == ExitReason.CONTROL_REGISTER_ACCESS
        assert vtpr_of(vmm) == 0x1234_5630


@pytest.mark.parametrize("engine", ENGINES)
def test_a_threshold_above_the_priority_is_refused(engine: str) -> None:
    vmm = machine(CPUID, engine=engine, threshold=8, vtpr=0x70)
    assert (vmm.run(), vmm.flags) == (FELL_THROUGH, 0x40)
    assert vmm["VM_INSTRUCTION_ERROR"] == 7
    vmm = machine(CPUID, engine=engine, threshold=7, vtpr=0x70)
    assert vmm.run() == EXITED


def test_with_virtual_accesses_it_exits_at_once() -> None:
    accesses = ct.SECONDARY_VIRTUALIZE_APIC_ACCESSES
    vmm = machine(CPUID, secondary=accesses, threshold=8, vtpr=0x70)
    assert vmm.run() == EXITED
    assert (vmm.reason, vmm["GUEST_RIP"]) == (ExitReason.TPR_BELOW_THRESHOLD, GUEST_CODE)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shadow", [True, False])
@pytest.mark.parametrize("offset", [0, ID, TPR + 4, EOI, 0x300, 0xFFC])
def test_accesses_to_the_page_exit(offset: int, shadow: bool, mode: str) -> None:
    accesses, long = ct.SECONDARY_VIRTUALIZE_APIC_ACCESSES, mode == "l64"
    for code, kind in ((load(offset, long), 0), (store(offset, long), 1)):
        vmm = machine(NOP + code + CPUID, mode, secondary=accesses, shadow=shadow)
        assert vmm.run() == EXITED
        assert vmm.reason == ExitReason.APIC_ACCESS
        assert vmm["EXIT_QUALIFICATION"] == kind << 12 | offset
        assert vmm["GUEST_RIP"] == GUEST_CODE + 1
        assert vmm.processor.memory.read(ACCESSES, 4096) == b"\xa5" * 4096


@pytest.mark.parametrize("mode", MODES)
def test_the_task_priority_is_virtualized(mode: str) -> None:
    accesses, long = ct.SECONDARY_VIRTUALIZE_APIC_ACCESSES, mode == "l64"
    code = load(TPR, long) + b"\x93\xb8" + pack("<I", 0xFFFF_FF5A) + store(TPR, long) + CPUID
    vmm = machine(code, mode, secondary=accesses, vtpr=0x21)
    assert vmm.run() == EXITED
    assert vmm.reason == ExitReason.CPUID
    assert vmm.processor.registers.rbx == 0x1234_5621
    assert vtpr_of(vmm) == 0x5A
    assert vmm.processor.memory.read(ACCESSES, 4096) == b"\xa5" * 4096


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("byte", [0, 1, 2])
def test_parts_of_the_task_priority(byte: int, size: int) -> None:
    accesses = ct.SECONDARY_VIRTUALIZE_APIC_ACCESSES
    code = b"\x31\xc0" + load(TPR + byte, True, size) + CPUID
    vmm = machine(code, secondary=accesses, vtpr=0x21)
    assert vmm.run() == EXITED
    assert vmm.reason == ExitReason.CPUID


def test_a_store_below_the_threshold_exits_behind_it() -> None:
    accesses = ct.SECONDARY_VIRTUALIZE_APIC_ACCESSES
    code = b"\xb8\x30\0\0\0" + NOP + store(TPR, True)
    timer = {
        "PIN_BASED_CONTROLS": ct.PIN_ALLOWED_0 | ct.PIN_PREEMPTION_TIMER,
        "VMX_PREEMPTION_TIMER_VALUE": 5000,
    }
    for more in ({}, timer):
        vmm = machine(code + NOP * 3 + CPUID, secondary=accesses, threshold=4, vtpr=0x50, more=more)
        assert vmm.run() == EXITED
        assert vmm.reason == ExitReason.TPR_BELOW_THRESHOLD
        assert vmm["GUEST_RIP"] == GUEST_CODE + len(code)
        assert vtpr_of(vmm) == 0x30


def test_an_instruction_that_reads_and_writes_reports_a_write() -> None:
    accesses = ct.SECONDARY_VIRTUALIZE_APIC_ACCESSES
    increment = b"\xff\x04\x25" + pack("<I", ACCESSES + 0x380)
    vmm = machine(increment + CPUID, secondary=accesses)
    assert vmm.run() == EXITED
    assert (vmm.reason, vmm["EXIT_QUALIFICATION"]) == (ExitReason.APIC_ACCESS, 1 << 12 | 0x380)


def test_fetches_and_deliveries_have_types_of_their_own() -> None:
    accesses = ct.SECONDARY_VIRTUALIZE_APIC_ACCESSES
    jump = b"\xb8" + pack("<I", ACCESSES + 0x40) + b"\xff\xe0"
    vmm = machine(jump, secondary=accesses)
    assert vmm.run() == EXITED
    assert (vmm.reason, vmm["EXIT_QUALIFICATION"]) == (ExitReason.APIC_ACCESS, 2 << 12 | 0x40)
    # #UD whose frame would lie in the page.
    vmm = machine(b"\x0f\x0b", secondary=accesses, more={"GUEST_RSP": ACCESSES + 0x800})
    assert vmm.run() == EXITED
    assert vmm.reason == ExitReason.APIC_ACCESS
    assert vmm["EXIT_QUALIFICATION"] >> 12 == 3
    assert vmm["IDT_VECTORING_INFORMATION"] & 0x8000_00FF == 0x8000_0006


def test_the_page_is_memory_again_for_the_vmm() -> None:
    """HOST_RIP's code reads it, with the address that the guest has used before."""
    accesses = ct.SECONDARY_VIRTUALIZE_APIC_ACCESSES
    vmm = machine(load(ID, True), secondary=accesses)
    vmm.handler = load(ID, True)
    vmm.boot()
    assert vmm.run() == EXITED
    assert vmm.processor.registers.rax & 0xFFFF_FFFF == 0xA5A5_A5A5


@pytest.mark.parametrize("engine", ENGINES)
def test_the_tpr_of_x2apic_mode(engine: str) -> None:
    x2apic = ct.SECONDARY_VIRTUALIZE_X2APIC
    bitmaps = 0x72000
    read = b"\xb9\x08\x08\0\0\x0f\x32"
    write = b"\xb9\x08\x08\0\0\xba\0\0\0\0\xb8\x40\0\0\0\x0f\x30"
    primary = ct.PRIMARY_ALLOWED_0 | ct.PRIMARY_TPR_SHADOW | ct.PRIMARY_SECONDARY_CONTROLS
    more = {
        "PRIMARY_PROCESSOR_BASED_CONTROLS": primary | ct.PRIMARY_USE_MSR_BITMAPS,
        "MSR_BITMAP_ADDRESS": bitmaps,
    }
    code = read + b"\x93" + write
    vmm = machine(code + CPUID, engine=engine, secondary=x2apic, threshold=5, vtpr=0x60, more=more)
    vmm.processor.memory.write(bitmaps, bytes(4096))
    assert vmm.run() == EXITED
    assert vmm.reason == ExitReason.TPR_BELOW_THRESHOLD
    assert vmm["GUEST_RIP"] == GUEST_CODE + len(code)
    assert vmm.processor.registers.rbx == 0x1234_5660, "eight bytes of the page, as they are"
    assert vtpr_of(vmm) == 0x40


def test_the_portable_engine_does_not_offer_accesses() -> None:
    vmm = machine(CPUID, engine="portable", secondary=ct.SECONDARY_VIRTUALIZE_APIC_ACCESSES)
    assert (vmm.run(), vmm.flags) == (FELL_THROUGH, 0x40)
    allowed = [
        X86Vmm(engine=engine).processor.x86_vmm.msrs()[0x48B] >> 32 & 1 for engine in ENGINES
    ]
    assert allowed == [1, 0]
