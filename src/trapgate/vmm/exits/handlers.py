"""A VMM's handlers: plain functions from a VM exit to an action.

Each gets the exit and the machine it happened in. These are the ones a machine starts
with; `Vmm` takes others, by exit reason.
"""

from __future__ import annotations

from collections.abc import Callable

from trapgate.decision.faults import Interruption
from trapgate.events.breakpoints import note_ports
from trapgate.events.exits import save_ia32e_mode
from trapgate.instructions import effects, msrs
from trapgate.instructions.intercepts import GO_ON, RAISE_UD
from trapgate.operands.mode import in_64_bit_mode
from trapgate.processor.logical import signed
from trapgate.processor.vm_exit import VmExit
from trapgate.sdm import cells as f
from trapgate.sdm.interruption import InterruptionType
from trapgate.sdm.reasons import ExitReason
from trapgate.sdm.state import CR4_OSXSAVE, MSR_TSC
from trapgate.sdm.vectors import CONTRIBUTORY_VECTORS, PAGE_FAULT_VECTORS
from trapgate.sdm.vmx import CR0_FIXED_0, CR4_FIXED_0, MSR_FEATURE_CONTROL
from trapgate.vmcs.explain import explain_abort
from trapgate.vmm.actions import EMULATED, RESUME, Action, End, Inject, Stop
from trapgate.vmm.bios.firmware import Bios
from trapgate.vmm.cpus.identity import (
    APIC,
    MISC_ENABLE,
    MSRS,
    OSXSAVE,
    WRITABLE_MSRS,
    XSAVE,
    XSAVE_LEAF,
    Leaf,
    cpuid,
    misc_enable_with,
)
from trapgate.vmm.exits.initialisation import initialise, start_up
from trapgate.vmm.exits.platform import Platform
from trapgate.vmm.exits.task_switch import switch_tasks
from trapgate.vmm.firmware import bios_image

Handler = Callable[[VmExit, Platform], Action]

_LOW = 0xFFFF_FFFF
_MASK = 0xFFFF_FFFF_FFFF_FFFF
_DF, _GP, _PF = 8, 13, 14
_TSC_ADJUST = 0x3B
_INVALID_OPCODE = Inject(Interruption(6, InterruptionType.HARDWARE_EXCEPTION))
_SIZES = {0: 1, 1: 2, 3: 4}


def reflect(vmexit: VmExit, vm: Platform) -> Action:
    """Give the guest the event that is its own: what a filter would have saved (¶4).

    An exception met while another was being delivered is combined with it first (SDM,
    "Interrupt 8 - Double Fault Exception").
    """
    event = vmexit.interruption
    if event is None:
        return unhandled(vmexit, vm)
    first = vmexit.idt_vectoring
    if first is not None and first.type == InterruptionType.HARDWARE_EXCEPTION:
        if first.vector == _DF:
            return triple_fault(vmexit, vm)
        if _escalates(first.vector, event.vector):
            return Inject(Interruption(_DF, InterruptionType.HARDWARE_EXCEPTION, 0))
    if event.type == InterruptionType.HARDWARE_EXCEPTION:
        if event.vector == _PF:
            vm.processor.registers.cr2 = vmexit.qualification
        elif event.vector == 1:
            registers = vm.processor.registers
            registers.dr6 = registers.dr6 & ~0xF | vmexit.qualification
    return Inject(event, vmexit.instruction_length)


def _escalates(first: int, second: int) -> bool:
    contributory = CONTRIBUTORY_VECTORS >> second & 1
    if PAGE_FAULT_VECTORS >> first & 1:
        return bool(contributory or PAGE_FAULT_VECTORS >> second & 1)
    return bool(CONTRIBUTORY_VECTORS >> first & 1 and contributory)


def identity(vm: Platform, leaf: int, subleaf: int) -> Leaf:
    """EAX, EBX, ECX, EDX of CPUID with EAX = `leaf`, ECX = `subleaf`, on this machine as it is."""
    eax, ebx, ecx, edx = cpuid(leaf, subleaf, vm.cpu.number, vm.cpu.misc_enable)
    if leaf == 1 and not vm.devices.apic.enabled:
        edx &= ~APIC
    can_save = vm.processor.engine.has_xsave
    if leaf == 1 and not can_save:
        ecx &= ~XSAVE
    elif leaf == 1 and int(effects.cr4_seen(vm.processor.in_force)) & CR4_OSXSAVE:
        ecx |= OSXSAVE
    elif leaf == XSAVE_LEAF and not can_save:
        eax = ebx = ecx = 0
    return eax, ebx, ecx, edx


def identify(vmexit: VmExit, vm: Platform) -> Action:
    """CPUID."""
    registers = vm.processor.registers
    leaf, subleaf = registers.rax & _LOW, registers.rcx & _LOW
    registers.rax, registers.rbx, registers.rcx, registers.rdx = identity(vm, leaf, subleaf)
    return EMULATED


def port(vmexit: VmExit, vm: Platform) -> Action:
    """IN, OUT, INS, OUTS: the devices' business."""
    qualification = vmexit.qualification
    size = _SIZES[qualification & 7]
    number = qualification >> 16 & 0xFFFF
    processor = vm.processor
    if qualification & 0x10:
        return vm.string_io(number, size, is_in=bool(qualification & 8))
    if number == bios_image.PORT and vm.bios is not None and vm.bios.answers(vm):
        action = _served(vm, vm.bios)
        vm.vmcs["GUEST_RIP"] += bios_image.BEHIND_PORT
        return action
    cells = processor.registers.cells
    note_ports(vm.vmcs.cells, cells, number, size)
    value = int(cells[0]) & _MASK
    if qualification & 8:
        mask = (1 << 8 * size) - 1
        got = vm.devices.read(number, size, processor.time) & mask
        cells[0] = got if size == 4 else signed(value & ~mask | got)
    else:
        vm.devices.write(number, size, value, processor.time)
    stop = vm.after_device(number)
    if stop is not None and stop.can_continue:
        vm.advance(vmexit)
    return stop or EMULATED


def halt(vmexit: VmExit, vm: Platform) -> Action:
    """HLT: virtual time jumps to the next thing that could wake the guest."""
    vm.advance(vmexit)
    if vmexit.vmcs["GUEST_PENDING_DEBUG_EXCEPTIONS"]:
        return RESUME  # a single step ends the wait
    return vm.rest()


def read_msr(vmexit: VmExit, vm: Platform) -> Action:
    """RDMSR."""
    registers = vm.processor.registers
    index = registers.rcx & _LOW
    if vm.devices.apic.has_msr(index):
        found = vm.devices.apic.read_msr(index, vm.processor.time)
        if found is None:
            return vm.fault(_GP, 0)
        registers.rax, registers.rdx = found & _LOW, found >> 32
        return EMULATED
    outcome, value = msrs.read_msr(vmexit.vmcs.cells, registers.cells, index, vm.processor.time)
    if outcome != GO_ON:
        kept = {MISC_ENABLE: vm.cpu.misc_enable, _TSC_ADJUST: vm.cpu.tsc_adjust}
        known = {**MSRS, **vm.processor.x86_vmm.msrs(), **kept}
        found = known.get(index, vm.cpu.mtrrs.read(index))
        if found is None:
            return vm.fault(_GP, 0)
        value = found
    registers.rax = int(value) & _LOW
    registers.rdx = int(value) >> 32 & _LOW
    return EMULATED


def write_msr(vmexit: VmExit, vm: Platform) -> Action:
    """WRMSR."""
    registers = vm.processor.registers
    index = registers.rcx & _LOW
    value = (registers.rdx & _LOW) << 32 | registers.rax & _LOW
    if vm.devices.apic.has_msr(index):
        return EMULATED if vm.write_apic_msr(index, value) else vm.fault(_GP, 0)
    if index in MSRS:
        allowed = index in WRITABLE_MSRS or MSRS[index] == value
        return EMULATED if allowed else vm.fault(_GP, 0)
    if index == MSR_FEATURE_CONTROL:
        return EMULATED if vm.processor.x86_vmm.set_feature_control(value) else vm.fault(_GP, 0)
    if vm.cpu.mtrrs.read(index) is not None:
        return EMULATED if vm.cpu.mtrrs.write(index, value) else vm.fault(_GP, 0)
    if index == MISC_ENABLE:
        held = misc_enable_with(vm.cpu.misc_enable, value)
        if held is None:
            return vm.fault(_GP, 0)
        vm.cpu.misc_enable = held
        return EMULATED
    if index == _TSC_ADJUST:
        vm.adjust_tsc(value - vm.cpu.tsc_adjust)
        return EMULATED
    if index == MSR_TSC:
        now = int(effects.time_stamp(vmexit.vmcs.cells, vm.processor.time))
        vm.adjust_tsc(value - now)
        return EMULATED
    outcome = msrs.write_msr(vmexit.vmcs.cells, registers.cells, index, signed(value))
    return EMULATED if outcome == GO_ON else vm.fault(_GP, 0)


def control_register(vmexit: VmExit, vm: Platform) -> Action:
    """MOV to CR0 or CR4 that changes a bit of the host's: the shadow takes what the guest wrote."""
    qualification = vmexit.qualification
    number = qualification & 0xF
    access = qualification >> 4 & 3
    v = vmexit.vmcs.cells
    r = vm.processor.registers.cells
    if access == 1:
        vm.set_general(qualification >> 8 & 0xF, int(effects.read_cr(v, r, number)))
        return EMULATED
    if access == 0 and number in (2, 3, 8):
        value = signed(vm.general(qualification >> 8 & 0xF) & ~(1 << 63))
        outcome = effects.write_cr(v, r, number, value)
        return EMULATED if outcome == GO_ON else vm.fault(_GP, 0)
    mask, shadow = (
        (f.CR0_GUEST_HOST_MASK, f.CR0_READ_SHADOW)
        if number == 0
        else (f.CR4_GUEST_HOST_MASK, f.CR4_READ_SHADOW)
    )
    if access == 2:
        v[shadow] &= ~8
        effects.clear_task_switched(v)
        return EMULATED
    if access == 3:
        seen = int(effects.cr0_seen(v))
        value = seen & ~0xE | qualification >> 16 & 0xF
    else:
        value = vm.general(qualification >> 8 & 0xF)
        if not in_64_bit_mode(v):
            value &= _LOW
    fixed = CR0_FIXED_0 if number == 0 else CR4_FIXED_0
    if vm.processor.x86_vmm.in_vmx_operation and value & fixed != fixed:
        return vm.fault(_GP, 0)
    before = int(v[shadow])
    v[shadow] = (v[shadow] & ~v[mask]) | (value & int(v[mask]))
    outcome = effects.write_cr(v, r, number, signed(value))
    if outcome != GO_ON:
        v[shadow] = before
        return vm.fault(_GP, 0)
    save_ia32e_mode(v)
    return EMULATED


def debug_register(vmexit: VmExit, vm: Platform) -> Action:
    """MOV DR."""
    qualification = vmexit.qualification
    v = vmexit.vmcs.cells
    r = vm.processor.registers.cells
    number, register = qualification & 7, qualification >> 8 & 0xF
    if qualification & 0x10:
        outcome, value = effects.read_dr(v, r, number)
        if outcome == GO_ON:
            vm.set_general(register, int(value))
    else:
        outcome = effects.write_dr(v, r, number, signed(vm.general(register)))
    if outcome == RAISE_UD:
        return _INVALID_OPCODE
    return EMULATED if outcome == GO_ON else vm.fault(_GP, 0)


def time_stamp(vmexit: VmExit, vm: Platform) -> Action:
    """RDTSC and RDTSCP."""
    registers = vm.processor.registers
    now = int(effects.time_stamp(vmexit.vmcs.cells, vm.processor.time)) & _MASK
    registers.rax, registers.rdx = now & _LOW, now >> 32
    if vmexit.reason == ExitReason.RDTSCP:
        registers.rcx = registers.tsc_aux & _LOW
    return EMULATED


def extended_control_register(vmexit: VmExit, vm: Platform) -> Action:
    """XSETBV of XCR0."""
    registers = vm.processor.registers
    value = (registers.rdx & _LOW) << 32 | registers.rax & _LOW
    if not vm.processor.engine.has_xsave:
        return _INVALID_OPCODE
    outcome = effects.write_xcr(registers.cells, registers.rcx & _LOW, signed(value))
    return EMULATED if outcome == GO_ON else vm.fault(_GP, 0)


def call_bios(vmexit: VmExit, vm: Platform) -> Action:
    """VMCALL: one of our own BIOS's services, or an undefined instruction."""
    if vm.bios is not None and vm.bios.answers(vm):
        return _served(vm, vm.bios)
    return undefined(vmexit, vm)


def _served(vm: Platform, bios: Bios) -> Action:
    action = bios.call(vm)
    return action if vm.devices.bus.event is None else vm.after_device() or action


def undefined(vmexit: VmExit, vm: Platform) -> Action:
    """Instructions that the guest is not told of (MONITOR; under another VMM VMX): #UD."""
    return _INVALID_OPCODE


def nothing(vmexit: VmExit, vm: Platform) -> Action:
    """An instruction without effect here (WBINVD, INVD)."""
    return EMULATED


def pause(vmexit: VmExit, vm: Platform) -> Action:
    """PAUSE in a loop: the processor waits for another one, whose turn it may be."""
    vm.turns.give_up()
    return EMULATED


def flush(vmexit: VmExit, vm: Platform) -> Action:
    """INVLPG."""
    vm.processor.engine.flush_translations()
    return EMULATED


def resume_unchanged(vmexit: VmExit, vm: Platform) -> Action:
    """An exit that only gives the VMM a turn (windows, timer, external interrupt).

    And SMIs: as if the firmware's handler were RSM alone.
    """
    return RESUME


def triple_fault(vmexit: VmExit, vm: Platform) -> Action:
    """The guest is beyond help: the machine stops, and says how it came to this."""
    abort = vm.processor.x86_vmm.abort
    if abort:
        return Stop(End.VMX_ABORT, explain_abort(abort, vm.processor.x86_vmm.why_aborted()), 1)
    chain = "; ".join(vm.fault_chain())
    return Stop(End.TRIPLE_FAULT, f"triple fault: {chain}" if chain else "triple fault", 1)


def entry_failure(vmexit: VmExit, vm: Platform) -> Action:
    """The guest's state was refused at VM entry."""
    return Stop(End.ENTRY_FAILED, vmexit.explanation, 1)


def unhandled(vmexit: VmExit, vm: Platform) -> Action:
    """No handler: the machine stops."""
    return Stop(
        End.UNHANDLED,
        f"no handler for VM exit {vmexit.reason.name} at RIP {vmexit.vmcs['GUEST_RIP']:#x}; "
        "give the Vmm one",
        1,
    )


HANDLERS: dict[ExitReason, Handler] = {
    ExitReason.EXCEPTION_OR_NMI: reflect,
    ExitReason.EXTERNAL_INTERRUPT: resume_unchanged,
    ExitReason.TRIPLE_FAULT: triple_fault,
    ExitReason.INIT_SIGNAL: initialise,
    ExitReason.STARTUP_IPI: start_up,
    ExitReason.IO_SMI: resume_unchanged,
    ExitReason.OTHER_SMI: resume_unchanged,
    ExitReason.INTERRUPT_WINDOW: resume_unchanged,
    ExitReason.NMI_WINDOW: resume_unchanged,
    ExitReason.TASK_SWITCH: switch_tasks,
    ExitReason.CPUID: identify,
    ExitReason.HLT: halt,
    ExitReason.INVD: nothing,
    ExitReason.INVLPG: flush,
    ExitReason.RDTSC: time_stamp,
    ExitReason.RDTSCP: time_stamp,
    ExitReason.CONTROL_REGISTER_ACCESS: control_register,
    ExitReason.MOV_DR: debug_register,
    ExitReason.IO_INSTRUCTION: port,
    ExitReason.RDMSR: read_msr,
    ExitReason.WRMSR: write_msr,
    ExitReason.ENTRY_FAILURE_GUEST_STATE: entry_failure,
    ExitReason.MWAIT: undefined,
    ExitReason.MONITOR: undefined,
    ExitReason.PAUSE: pause,
    ExitReason.WBINVD: nothing,
    ExitReason.XSETBV: extended_control_register,
    ExitReason.PREEMPTION_TIMER: resume_unchanged,
    ExitReason.VMCALL: call_bios,
    **dict.fromkeys(
        (
            ExitReason.VMCLEAR,
            ExitReason.VMLAUNCH,
            ExitReason.VMPTRLD,
            ExitReason.VMPTRST,
            ExitReason.VMREAD,
            ExitReason.VMRESUME,
            ExitReason.VMWRITE,
            ExitReason.VMXOFF,
            ExitReason.VMXON,
            ExitReason.INVEPT,
            ExitReason.INVVPID,
        ),
        undefined,
    ),
}
"""What a `Vmm` does about each exit unless it is told otherwise."""
