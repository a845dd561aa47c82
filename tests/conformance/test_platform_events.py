"""INIT, SMIs and start-up IPIs: exits, what blocks them, their order, and what INIT leaves.

SDM, "Other Causes of VM Exits", "Activity State", "Priority Among Concurrent Events" and
"Processor State After Reset".
"""

from struct import pack

import pytest

from tests.conformance.tiny_guest import CODE, STACK, Run, Tiny, launch, prepare
from tests.conformance.x86_vmm import GUEST_CODE, X86Vmm
from trapgate.processor.vm_exit import VmExit
from trapgate.sdm import controls as ct
from trapgate.sdm.reasons import ExitReason
from trapgate.sdm.state import (
    ACTIVITY_ACTIVE,
    ACTIVITY_HLT,
    ACTIVITY_SHUTDOWN,
    ACTIVITY_WAIT_FOR_SIPI,
)
from trapgate.vmm.actions import End
from trapgate.vmm.loaders import GuestImage, GuestKind, Segment
from trapgate.vmm.loaders.state import protected_mode, real_mode
from trapgate.vmm.machine import VirtualMachine

pytestmark = pytest.mark.conformance

ENGINES = ("native", "portable")
ACTIVITY = "GUEST_ACTIVITY_STATE"
SPIN = b"\xeb\xfe"
OUT = b"\xe6\xb2"
"""Out B2H, al."""


def waiting(activity: int, engine: str = "auto") -> Run:
    """A guest in an activity state, launched without an event; it leaves with the timer."""
    guest = Tiny("p32", code=SPIN, fields={ACTIVITY: activity})
    processor, vmcs = prepare(guest, engine=engine)
    vmcs["VMX_PREEMPTION_TIMER_VALUE"] = 1000
    return launch(guest, processor, vmcs)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_start_up_ipi_ends_the_wait(engine: str) -> None:
    run = waiting(ACTIVITY_WAIT_FOR_SIPI, engine)
    assert run.exit.reason == ExitReason.PREEMPTION_TIMER
    run.processor.start_up(0x9A)
    assert run.resume().reason == ExitReason.STARTUP_IPI
    assert run.exit.qualification == 0x9A
    assert run.vmcs[ACTIVITY] == ACTIVITY_WAIT_FOR_SIPI


@pytest.mark.parametrize("activity", [ACTIVITY_ACTIVE, ACTIVITY_HLT, ACTIVITY_SHUTDOWN])
def test_start_up_ipis_are_lost_elsewhere(activity: int) -> None:
    run = waiting(activity)
    run.processor.start_up(0x9A)
    assert run.resume().reason == ExitReason.PREEMPTION_TIMER
    run.vmcs[ACTIVITY] = ACTIVITY_WAIT_FOR_SIPI
    assert run.resume().reason == ExitReason.PREEMPTION_TIMER


def test_the_wait_blocks_everything_else() -> None:
    run = waiting(ACTIVITY_WAIT_FOR_SIPI)
    processor = run.processor
    processor.nmi()
    processor.smi()
    processor.init()
    processor.interrupt(0x20)
    assert run.resume().reason == ExitReason.PREEMPTION_TIMER
    processor.start_up(1)
    assert run.resume().reason == ExitReason.STARTUP_IPI
    # They are pending still, but for INIT, and come in the order of the table.
    run.vmcs[ACTIVITY] = ACTIVITY_ACTIVE
    run.vmcs["PIN_BASED_CONTROLS"] |= ct.PIN_NMI_EXITING
    assert run.resume().reason == ExitReason.OTHER_SMI
    assert run.resume().reason == ExitReason.EXCEPTION_OR_NMI


@pytest.mark.parametrize("engine", ENGINES)
def test_init_does_not_outlast_the_wait(engine: str) -> None:
    """SDM, "Handling Activity States by VMM": to trap the INIT-SIPI-SIPI of a guest with direct
    access to the local APIC, a VMM starts the processor in question in wait-for-SIPI. Were the
    INIT kept, the guest would exit with it as soon as it was started, and wait again. It is not
    (KVM drops it there; BitVisor starts its guests' processors so)."""
    run = waiting(ACTIVITY_WAIT_FOR_SIPI, engine)
    run.processor.init()
    run.processor.start_up(0x9A)
    assert run.resume().reason == ExitReason.STARTUP_IPI
    run.processor.start_up(0x9A)
    run.vmcs[ACTIVITY] = ACTIVITY_ACTIVE
    assert run.resume().reason == ExitReason.PREEMPTION_TIMER
    run.processor.init()
    assert run.resume().reason == ExitReason.INIT_SIGNAL


def test_shutdown_blocks_interrupts_alone() -> None:
    run = waiting(ACTIVITY_SHUTDOWN)
    run.vmcs["GUEST_RFLAGS"] = 0x202
    run.processor.interrupt(0x20)
    assert run.resume().reason == ExitReason.PREEMPTION_TIMER
    assert run.vmcs[ACTIVITY] == ACTIVITY_SHUTDOWN
    run.processor.init()
    assert run.resume().reason == ExitReason.INIT_SIGNAL
    assert run.vmcs[ACTIVITY] == ACTIVITY_SHUTDOWN


@pytest.mark.parametrize("engine", ENGINES)
def test_an_smi_of_an_io_instruction(engine: str) -> None:
    guest = Tiny("p32", code=OUT + SPIN, registers={"rcx": 7, "rsi": 8, "rdi": 9})
    processor, vmcs = prepare(guest, {"PRIMARY_PROCESSOR_BASED_CONTROLS": 1 << 24}, engine=engine)
    run = launch(guest, processor, vmcs)
    assert run.exit.reason == ExitReason.IO_INSTRUCTION
    output = run.exit.qualification
    processor.smi(run.exit)
    assert run.skip().reason == ExitReason.IO_SMI
    assert run.exit.qualification == output == 0xB2 << 16 | 1 << 6
    names = ("IO_RCX", "IO_RSI", "IO_RDI", "IO_RIP", "GUEST_RIP")
    assert [vmcs[name] for name in names] == [7, 8, 9, CODE, CODE + 2]


# With a VMM that is the guest.


def begun(vmm: X86Vmm) -> None:
    """Let its guest begin, and stop there by the timer of the VMM in Python."""
    vmm.vmcs["PIN_BASED_CONTROLS"] |= ct.PIN_PREEMPTION_TIMER
    vmm.vmcs["VMX_PREEMPTION_TIMER_VALUE"] = 100_000
    outcome = vmm.processor.vmlaunch(vmm.vmcs)
    assert isinstance(outcome, VmExit)
    assert outcome.reason == ExitReason.PREEMPTION_TIMER
    assert vmm.processor.x86_vmm.counts()[0] == 1


@pytest.mark.parametrize("mode", ["l64", "p32"])
def test_init_is_blocked_in_vmx_root_operation(mode: str) -> None:
    vmm = X86Vmm(mode, guest=b"\x0f\xa2", handler=SPIN)
    begun(vmm)
    assert vmm.processor.x86_vmm.in_root_operation
    vmm.processor.init()
    outcome = vmm.processor.vmresume(vmm.vmcs)
    assert isinstance(outcome, VmExit)
    assert outcome.reason == ExitReason.PREEMPTION_TIMER
    vmm.processor.memory.write(CODE, vmm.assembler.vmxoff + SPIN)
    vmm.vmcs["GUEST_RIP"] = CODE
    outcome = vmm.processor.vmresume(vmm.vmcs)
    assert isinstance(outcome, VmExit)
    assert outcome.reason == ExitReason.INIT_SIGNAL
    assert vmm.vmcs["GUEST_RIP"] == CODE + 3


@pytest.mark.parametrize("mode", ["l64", "p32"])
def test_init_exits_from_the_guest_of_an_x86_vmm(mode: str) -> None:
    vmm = X86Vmm(mode, guest=SPIN)
    begun(vmm)
    vmm.processor.init()
    vmm.run()
    assert (vmm.reason, vmm["GUEST_RIP"]) == (ExitReason.INIT_SIGNAL, GUEST_CODE)


def test_start_up_ipi_exits_to_the_x86_vmm() -> None:
    vmm = X86Vmm("l64", guest=SPIN, fields={ACTIVITY: ACTIVITY_WAIT_FOR_SIPI})
    begun(vmm)
    vmm.processor.start_up(0x12)
    vmm.run()
    assert vmm.reason == ExitReason.STARTUP_IPI
    assert vmm["EXIT_QUALIFICATION"] == 0x12


# Outside VMX operation: a PC.

APIC_ICR = 0xFEE00300
MEMORY = 16 << 20


def to_itself(command: int) -> bytes:
    """Mov dword [ICR], command to self; then spin."""
    return b"\xc7\x05" + pack("<II", APIC_ICR, 1 << 18 | command) + SPIN


def machine(kind: GuestKind, engine: str) -> VirtualMachine:
    """A guest that sends itself INIT from protected mode, and firmware that ends the run."""
    vm = VirtualMachine(MEMORY, engine=engine)
    firmware = b"\x66\x89\xd0\xb0\x01\xe6\xf4"  # mov eax, edx; mov al, 1; out f4h, al
    segments = (
        Segment(0x100000, to_itself(5 << 8)),
        Segment(0xFFFF0, firmware),
        Segment(0x9A000, firmware),
    )
    fields = protected_mode(0x100000, STACK, 0)
    vm.load(GuestImage(kind, 32, segments, fields, {"RBX": 5}, "INIT"))
    return vm


@pytest.mark.parametrize("engine", ENGINES)
def test_init_begins_at_the_reset_vector(engine: str) -> None:
    vm = machine(GuestKind.FIRMWARE, engine)
    vm.processor.registers.dr0 = 0x1234
    stop = vm.run(max_instructions=100_000)
    assert stop.end is End.DEBUG_EXIT
    expected = {name: value for name, value in real_mode(0, 0).items() if "LIMIT" not in name}
    for name in ("GUEST_CS_SELECTOR", "GUEST_CS_BASE", "GUEST_RIP", "GUEST_CR4"):
        del expected[name]
    for name in [name for name in expected if "LDTR" in name]:
        del expected[name]
    assert {name: vm.vmcs[name] for name in expected} == expected
    assert vm.vmcs["GUEST_CS_SELECTOR"] == 0xF000
    assert vm.processor.registers.dr0 == 0
    assert vm.processor.registers.rbx == 0
    assert vm.processor.registers.rdx == 0x106A5


def test_init_without_firmware_ends_the_run() -> None:
    assert machine(GuestKind.FLAT, "auto").run(max_instructions=100_000).end is End.RESET


@pytest.mark.parametrize("engine", ENGINES)
def test_another_processor_waits_and_starts(engine: str) -> None:
    vm = machine(GuestKind.FLAT, engine)
    vm.devices.apic.base &= ~(1 << 8)
    assert vm.run(max_instructions=100_000).end is End.HALTED
    assert vm.vmcs[ACTIVITY] == ACTIVITY_WAIT_FOR_SIPI
    vm.stopped = None
    vm.processor.start_up(0x9A)
    assert vm.run(max_instructions=200_000).end is End.DEBUG_EXIT
    assert vm.vmcs["GUEST_CS_SELECTOR"] == 0x9A00


@pytest.mark.parametrize("delivery", [2 << 8, 6 << 8 | 0x9A])
def test_smis_and_start_up_ipis_to_oneself(delivery: int) -> None:
    """The SMI's handler returns at once; the start-up IPI is lost. So the guest goes on."""
    vm = VirtualMachine(MEMORY)
    code = to_itself(delivery)[:-2] + b"\xeb\x00\xb0\x01\xe6\xf4"
    fields = protected_mode(0x100000, STACK, 0)
    vm.load(GuestImage(GuestKind.FLAT, 32, (Segment(0x100000, code),), fields, {}, "SMI"))
    assert vm.run(max_instructions=100_000).end is End.DEBUG_EXIT
    exits = vm.summary().exits
    assert exits.get(ExitReason.OTHER_SMI, 0) == (delivery == 2 << 8)
