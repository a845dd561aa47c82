"""Guest code and the interrupt controllers: on both engines, and the same each time."""

from struct import pack

import pytest

from tests.guests.apic_guest import (
    APIC,
    CLI,
    COUNT,
    CURRENT,
    DIVIDE,
    HLT,
    ICR,
    INITIAL,
    IO_APIC,
    LOG,
    LVT_LINT0,
    LVT_TIMER,
    MEMORY,
    MICROSECOND,
    NOP,
    SELF,
    STI,
    SVR,
    TPR,
    apic,
    cpuid_1,
    io_apic,
    keep,
    machine,
    out,
    redirect,
    store,
    until,
    vectors,
    words,
    write_msr,
)
from tests.unit.guest_files import elf
from trapgate.vmm.actions import End
from trapgate.vmm.loaders import parse_guest
from trapgate.vmm.machine import VirtualMachine

ENGINES = ("native", "portable")
ENOUGH = 50_000_000


def run(code: bytes, engine: str) -> VirtualMachine:
    vm = machine(code, engine=engine)
    stop = vm.run(max_instructions=ENOUGH)
    assert stop.end == End.DEBUG_EXIT, stop
    return vm


@pytest.mark.parametrize("engine", ENGINES)
def test_discovery(engine: str) -> None:
    vm = run(
        keep(0, APIC + 0x30)
        + keep(1, APIC + 0x20)
        + io_apic(1, 0)
        + keep(2, IO_APIC + 0x10)
        + cpuid_1(3)
        + write_msr(0x1B, 0xFEE00100)
        + cpuid_1(5)
        + keep(7, APIC + 0x30)
        + write_msr(0x1B, 0xFED40900)
        + keep(8, 0xFED40030)
        + keep(9, APIC + 0x30),
        engine,
    )
    found = words(vm, 10)
    assert found[0] == found[8] == 0x50014
    assert (found[1], found[2]) == (0, 0x170011)
    assert (found[3] >> 9 & 1, found[4] >> 21 & 1, found[5] >> 9 & 1) == (1, 1, 0)
    assert found[7] == found[9] == 0xFFFFFFFF


@pytest.mark.parametrize("engine", ENGINES)
def test_timer(engine: str) -> None:
    vm = run(
        apic(DIVIDE, 0xB)
        + apic(LVT_TIMER, 0x40)
        + apic(INITIAL, 100 * MICROSECOND)
        + keep(0, APIC + CURRENT)
        + until(1)
        + keep(1, APIC + CURRENT)
        + apic(LVT_TIMER, 1 << 17 | 0x41)
        + apic(INITIAL, 10 * MICROSECOND)
        + until(6)
        + apic(INITIAL, 0)
        + apic(LVT_TIMER, 2 << 17 | 0x42)
        + write_msr(0x6E0, 500 * MICROSECOND)
        + STI
        + HLT,
        engine,
    )
    assert vectors(vm) == [0x40, *[0x41] * 5, 0x42]
    left, nothing = words(vm, 2)
    assert 99 * MICROSECOND < left <= 100 * MICROSECOND
    assert nothing == 0
    assert 500 * MICROSECOND <= vm.processor.time < 501 * MICROSECOND


@pytest.mark.parametrize("engine", ENGINES)
def test_messages_to_itself_come_by_priority(engine: str) -> None:
    vm = run(
        b"".join(apic(ICR, SELF | vector) for vector in (0x51, 0x91, 0x71))
        + apic(TPR, 0x60)
        + STI
        + NOP * 4
        + CLI
        + keep(0, COUNT)
        + apic(TPR, 0)
        + until(3)
        + apic(ICR + 0x10, 0)
        + apic(ICR, 0xA1)
        + until(4),
        engine,
    )
    assert vectors(vm) == [0x91, 0x71, 0x51, 0xA1]
    assert words(vm, 1) == [2]


@pytest.mark.parametrize("engine", ENGINES)
def test_x2apic(engine: str) -> None:
    vm = run(
        write_msr(0x1B, 0xFEE00D00)
        + keep(0, APIC + 0x30)
        + write_msr(0x808, 0x70)
        + write_msr(0x83F, 0x61)
        + write_msr(0x830, 0x81)
        + STI
        + NOP * 4
        + CLI
        + keep(1, COUNT)
        # The handlers end interrupts at the page, which is not there in this mode.
        + write_msr(0x80B, 0)
        + write_msr(0x808, 0)
        + until(2),
        engine,
    )
    assert vectors(vm) == [0x81, 0x61]
    assert words(vm, 2) == [0xFFFFFFFF, 1]


@pytest.mark.parametrize("engine", ENGINES)
def test_timer_through_the_io_apic_and_through_the_wire(engine: str) -> None:
    start = out(0x43, 0x34) + out(0x40, 0xFF) + out(0x40, 0x00)
    through_8259 = b"".join(
        out(port, value)
        for port, value in ((0x20, 0x11), (0x21, 0x30), (0x21, 4), (0x21, 1), (0x21, 0xFE))
    )
    vm = run(
        redirect(2, 0x62)
        + start
        + until(3)
        + redirect(2, 1 << 16)
        + through_8259
        + until(4)
        + out(0x20, 0x20)
        + until(5)
        + apic(LVT_LINT0, 1 << 16)
        + out(0x20, 0x20)
        + redirect(2, 0x64)
        + until(6),
        engine,
    )
    assert vectors(vm) == [0x62, 0x62, 0x62, 0x30, 0x30, 0x64]


@pytest.mark.parametrize("engine", ENGINES)
def test_nmi_and_init(engine: str) -> None:
    # What a store brings about comes where the next block begins: a jump.
    jump, spin = b"\xeb\x00", b"\xeb\xfe"
    vm = machine(apic(ICR, 0x4400) + jump + apic(ICR, 0x4500) + spin, engine=engine)
    stop = vm.run(max_instructions=ENOUGH)
    assert stop.end == End.RESET
    assert "INIT" in stop.message
    assert vectors(vm) == [2]


@pytest.mark.parametrize("engine", ENGINES)
def test_an_nmi_wakes_a_processor_that_waits(engine: str) -> None:
    vm = run(
        redirect(2, 0x400)
        + out(0x43, 0x30)
        + out(0x40, 0xFF)
        + out(0x40, 0x10)
        + apic(LVT_TIMER, 0x40)
        + apic(DIVIDE, 0xB)
        + apic(INITIAL, 100_000 * MICROSECOND)
        + STI
        + HLT
        + CLI,
        engine,
    )
    assert vectors(vm) == [2]
    assert vm.processor.time < 10_000 * MICROSECOND


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("route", ["I/O APIC", "LINT0"])
def test_an_nmi_ends_a_halt_with_interrupts_disabled(route: str, engine: str) -> None:
    """SDM, "HLT": an NMI, among others, resumes execution; RFLAGS.IF does not matter."""
    through_8259 = b"".join(
        out(port, value)
        for port, value in ((0x20, 0x11), (0x21, 0x30), (0x21, 4), (0x21, 1), (0x21, 0xFE))
    )
    nmi = redirect(2, 0x400) if route == "I/O APIC" else through_8259 + apic(LVT_LINT0, 0x400)
    vm = run(nmi + out(0x43, 0x30) + out(0x40, 0xFF) + out(0x40, 0x10) + HLT, engine)
    assert vectors(vm) == [2]


def test_a_halt_that_only_masked_interrupts_would_end_is_the_end() -> None:
    code = redirect(2, 0x10400) + apic(LVT_LINT0, 0x10400) + out(0x43, 0x34) + out(0x40, 0xFF)
    vm = machine(code + out(0x40, 0x10) + HLT, engine="native")
    stop = vm.run(max_instructions=ENOUGH)
    assert stop.end is End.HALTED
    assert "with interrupts disabled" in stop.message


@pytest.mark.parametrize("engine", ENGINES)
def test_software_disabled(engine: str) -> None:
    vm = run(apic(SVR, 0xFF) + apic(ICR, SELF | 0x51) + STI + NOP * 4 + CLI, engine)
    assert vectors(vm) == []


@pytest.mark.parametrize("engine", ENGINES)
def test_cr8(engine: str) -> None:
    """In 64-bit mode: mov to CR8 lets interrupts through that the task priority kept back."""

    def register(offset: int, value: int) -> bytes:
        # Above 2 GB an absolute address needs a register.
        return b"\xbb" + pack("<I", APIC + offset) + b"\xc7\x03" + pack("<I", value)

    def task_priority(value: int) -> bytes:
        return b"\xb8" + pack("<I", value) + b"\x44\x0f\x22\xc0"

    idt, base, handler = 0x300000, 0x200000, 0x340000
    code = (
        b"\x0f\x01\x1c\x25"
        + pack("<I", base + 0x800)
        + task_priority(8)
        + register(ICR, SELF | 0x71)
        + register(ICR, SELF | 0xA1)
        + STI
        + NOP * 3
        + b"\x8b\x04\x25"
        + pack("<I", COUNT)
        + b"\x89\x04\x25"
        + pack("<I", 0x312000)
        + b"\xbb"
        + pack("<I", APIC + TPR)
        + b"\x8b\x03\x89\x04\x25"
        + pack("<I", 0x312004)
        + register(TPR, 0x95)
        + b"\x44\x0f\x20\xc0\x89\x04\x25"
        + pack("<I", 0x312008)
        + task_priority(6)
        + b"\xeb\x00"
        + NOP
        + b"\x66\xba\xf4\x00\x31\xc0\xef\xeb\xfe"
    )
    vm = VirtualMachine(MEMORY, engine=engine)
    file = elf([(1, base, base, code.ljust(0x800, b"\xcc") + pack("<HQ", 0xFFF, idt), 0x1000)])
    vm.load(parse_guest(file, file="guest.elf", memory=MEMORY))
    for vector in (0x71, 0xA1):
        at = handler + (vector << 8)
        gate = pack("<HHHHII", at & 0xFFFF, 0x10, 0x8E00, at >> 16, 0, 0)
        vm.processor.memory.write(idt + 16 * vector, gate)
        noted = (
            b"\x50\x53\x8b\x04\x25"
            + pack("<I", COUNT)
            + b"\xc6\x80"
            + pack("<I", LOG)
            + bytes((vector,))
            + b"\xff\x04\x25"
            + pack("<I", COUNT)
            + register(0xB0, 0)
            + b"\x5b\x58\x48\xcf"
        )
        vm.processor.memory.write(at, noted)
    stop = vm.run(max_instructions=ENOUGH)
    assert stop.end == End.DEBUG_EXIT, stop
    assert vectors(vm) == [0xA1, 0x71]
    assert words(vm, 3) == [1, 0x80, 9]


@pytest.mark.parametrize("engine", ENGINES)
def test_two_runs_are_alike(engine: str) -> None:
    code = (
        apic(DIVIDE, 0xB)
        + apic(LVT_TIMER, 1 << 17 | 0x41)
        + apic(INITIAL, 777)
        + redirect(2, 0x62)
        + out(0x43, 0x34)
        + out(0x40, 0x20)
        + out(0x40, 0x00)
        + until(200)
        + store(0x313000, 0)
    )
    runs = []
    for _ in range(2):
        vm = run(code, engine)
        summary = vm.summary()
        runs.append((summary.instructions, summary.exits, summary.faults, vectors(vm)))
    assert runs[0] == runs[1]
    assert set(runs[0][3]) == {0x41, 0x62}
