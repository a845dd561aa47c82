"""VM exits that enter the VMM through a gate of its IDT (¶26)."""

import pytest

from tests.conformance import tiny_guest as tiny
from tests.conformance.x86_vmm import (
    CPUID,
    EXITED,
    FAULTED,
    GUEST_CODE,
    HOST_CODE,
    HOST_STACK,
    X86Vmm,
)
from trapgate import guests
from trapgate.processor.vm_exit import VmExit
from trapgate.sdm.reasons import ExitReason
from trapgate.sdm.vmx import ABORT_HOST_IDT
from trapgate.vmm.actions import Action
from trapgate.vmm.exits.handlers import identify, reflect
from trapgate.vmm.exits.platform import Platform
from trapgate.vmm.exits.vmm import Vmm
from trapgate.vmm.loaders import parse_guest
from trapgate.vmm.machine import VirtualMachine

pytestmark = pytest.mark.conformance

MODES = ["p32", "pae", "l64"]
ENGINES = ["native", "portable"]
THROUGH = 1 << 31
GP_CODE = b"\xb8\xf3\x02\x00\x00\x8e\xd8"  # mov eax, 2F3h; mov ds, eax: #GP(2F0h)


def frame(vmm: X86Vmm, count: int) -> list[int]:
    """The words that the exit pushed on the host's stack, the last pushed first."""
    size = 8 if vmm.mode == "l64" else 4
    data = vmm.processor.memory.read(vmm.vmcs["GUEST_RSP"], count * size)
    return [int.from_bytes(data[n : n + size], "little") for n in range(0, len(data), size)]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("mode", MODES)
def test_an_exit_that_no_exception_caused_takes_the_vector_of_the_field(
    mode: str, engine: str
) -> None:
    fields = {"EXIT_THROUGH_IDT": THROUGH | 0x81}
    vmm = X86Vmm(mode, guest=CPUID, fields=fields, engine=engine)
    assert vmm.run() == FAULTED
    assert vmm.vector == 0x81
    assert vmm.reason == ExitReason.CPUID
    assert vmm["GUEST_RIP"] == GUEST_CODE
    rip, selector, flags = frame(vmm, 3)
    code = tiny.CODE_64 if mode == "l64" else tiny.CODE_32
    assert (rip, selector, flags) == (HOST_CODE, code, 2)
    if mode == "l64":
        assert frame(vmm, 5)[3:] == [HOST_STACK, tiny.DATA_0]
    else:
        assert vmm.vmcs["GUEST_RSP"] == HOST_STACK - 12


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("mode", MODES)
def test_an_exception_takes_its_own_vector_and_its_error_code(mode: str, engine: str) -> None:
    fields = {"EXIT_THROUGH_IDT": THROUGH | 0x81, "EXCEPTION_BITMAP": 1 << 13}
    vmm = X86Vmm(mode, guest=GP_CODE, fields=fields, engine=engine)
    assert vmm.run() == FAULTED
    assert vmm.vector == 13
    assert frame(vmm, 2) == [0x2F0, HOST_CODE]
    assert vmm["VM_EXIT_INTERRUPTION_ERROR_CODE"] == 0x2F0


@pytest.mark.parametrize("mode", MODES)
def test_without_the_bit_exits_go_to_host_rip(mode: str) -> None:
    vmm = X86Vmm(mode, guest=CPUID)
    assert vmm.run() == EXITED


@pytest.mark.parametrize("mode", MODES)
def test_a_host_that_cannot_take_it_aborts(mode: str) -> None:
    fields = {"EXIT_THROUGH_IDT": THROUGH | 0x81, "HOST_IDTR_BASE": 0x70000}
    vmm = X86Vmm(mode, guest=CPUID, fields=fields)
    outcome = vmm.processor.vmlaunch(vmm.vmcs)
    assert isinstance(outcome, VmExit)
    assert outcome.reason == ExitReason.TRIPLE_FAULT
    assert vmm.processor.x86_vmm.abort == ABORT_HOST_IDT


def test_a_vmm_in_python_has_handlers_by_vector() -> None:
    seen = []

    def by_vector(vmexit: VmExit, vm: Platform) -> Action:
        seen.append(vmexit.reason)
        return reflect(vmexit, vm) if vmexit.interruption else identify(vmexit, vm)

    image = parse_guest(guests.image(), file="guest.elf", memory=16 << 20, append="workload=faults")
    vm = VirtualMachine(16 << 20, vmm=Vmm(vectors={14: by_vector}))
    vm.load(image)
    vm.vmcs["EXCEPTION_BITMAP"] = 1 << 14
    vm.vmcs["EXIT_THROUGH_IDT"] = THROUGH | 0x81
    assert vm.run().status == 0
    assert set(seen) == {ExitReason.EXCEPTION_OR_NMI}
    assert len(seen) > 10
