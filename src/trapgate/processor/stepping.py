"""Instructions one at a time, with the checks that the engine leaves out.

The engine executes guests fast and without alignment checks, data breakpoints and SIMD
floating-point exceptions, on the portable path also without segment limits. Where the state of
the guest asks for one of them it stops (`machine.CHECKED`), and each instruction is decoded
here: faults that come before its execution are raised, then the engine executes it alone, then
the traps that follow it are raised. That lasts as long as the state asks for it.
"""

from __future__ import annotations

from collections.abc import Iterator

import iced_x86 as iced
from iced_x86 import FlowControl, Mnemonic, OpKind, Register

from trapgate.compiler.dialect import Cells
from trapgate.engine import machine as stops
from trapgate.events.exits import vm_exit
from trapgate.operands.mode import privilege_level
from trapgate.processor.accesses import (
    COUNTERS,
    FACTORY,
    WIDTHS,
    Access,
    accesses_of,
    allows,
    code_address,
    ends_beyond_limit,
    is_mapped,
    is_misaligned,
)
from trapgate.processor.logical import LogicalProcessor, Outcome, signed
from trapgate.processor.operand import Operand
from trapgate.sdm import cells as f
from trapgate.sdm.controls import PRIMARY_MONITOR_TRAP_FLAG
from trapgate.sdm.reasons import ExitReason
from trapgate.sdm.state import (
    BLOCKING_BY_MOV_SS,
    CR4_OSXMMEXCPT,
    DEBUGCTL_BTF,
    DR6_BREAKPOINTS,
    PENDING_BS,
    PENDING_ENABLED_BREAKPOINT,
    RFLAGS_RF,
    RFLAGS_VM,
)

_MASK = 0xFFFF_FFFF_FFFF_FFFF
_SS = 2
_MASKS = 0x1F80
_BEFORE = 0x07
"""Invalid operand, denormal and divide-by-zero: what is found before the result."""
_PATIENCE = 20_000
"""Instructions after which segments whose limits nobody exceeded are trusted."""

_SHADOWING = {Mnemonic.MOV, Mnemonic.POP}
"""What holds debug exceptions back until the next instruction is done, if it loads SS."""
_FAR_RETURNS = {Mnemonic.RETF, Mnemonic.IRET, Mnemonic.IRETD, Mnemonic.IRETQ}
_PORTS = {
    *(Mnemonic.IN, Mnemonic.INSB, Mnemonic.INSW, Mnemonic.INSD),
    *(Mnemonic.OUT, Mnemonic.OUTSB, Mnemonic.OUTSW, Mnemonic.OUTSD),
}


def monitor_trap(processor: LogicalProcessor, v: Cells) -> bool:
    """The exit that the monitor trap flag asks for after an instruction, if it does."""
    # Another VMCS is in force if the instruction exited to an x86 VMM.
    if _is_trapped(v) and v is processor.in_force:
        vm_exit(v, ExitReason.MONITOR_TRAP_FLAG, 0, 0)
        return True
    # The VMM in Python sees an x86 VMM and its guest as one.
    if v is not processor.vmcs0 and _is_trapped(processor.vmcs0):
        vm_exit(processor.move_to_vmcs0(), ExitReason.MONITOR_TRAP_FLAG, 0, 0)
        return True
    return False


def _is_trapped(v: Cells) -> bool:
    return bool(v[f.PRIMARY_PROCESSOR_BASED_CONTROLS] & PRIMARY_MONITOR_TRAP_FLAG)


def step(processor: LogicalProcessor, v: Cells) -> Outcome:
    """Execute the instruction at RIP, or raise what it raises."""
    engine = processor.engine
    guest = Operand(processor, v)
    instruction = guest.decode()
    if engine.cells[stops.STOP_CODE] != stops.CHECK_NEXT:
        return Outcome(_non_canonical(processor, guest, instruction))
    if pending := _pending_trap(v):
        v[f.GUEST_PENDING_DEBUG_EXCEPTIONS] = 0
        engine.cells[stops.TIME] += 1
        return Outcome(processor.raise_fault(1, -1, pending))
    if not engine.cells[stops.NATIVE]:
        causes = _breakpoints(processor, guest)
        if causes:
            engine.cells[stops.TIME] += 1
            return Outcome(processor.raise_fault(1, -1, causes))
        if instruction.mnemonic in _PORTS:
            start = code_address(guest)
            engine.watch_port(start, start, instruction.len)
    accesses = list(accesses_of(guest, instruction))
    fault = _segment_fault(processor, guest, instruction, accesses)
    # A page fault comes first, and the engine will find it.
    if fault < 0 and is_misaligned(guest, instruction, accesses):
        mapped = all(is_mapped(guest, access) for access in accesses)
        fault = 17 if mapped else -1
    if fault >= 0:
        engine.cells[stops.TIME] += 1
        return Outcome(processor.raise_fault(fault, 0))
    unmasked = ~engine.vectors.mxcsr & _MASKS
    if unmasked:
        engine.vectors.mxcsr |= engine.vectors.take_sse_flags()
        before = v.copy(), processor.registers.cells.copy(), engine.vectors.save()
    level = privilege_level(v)
    resumes = v[f.GUEST_RFLAGS] & RFLAGS_RF
    done = engine.step()
    if unmasked:
        flags = engine.vectors.take_sse_flags()
        raised = flags & ~(~unmasked >> 7) & 0x3F
        if raised:
            v[:], processor.registers.cells[:] = before[:2]
            engine.vectors.restore(before[2])
            engine.vectors.mxcsr |= flags & _BEFORE if raised & _BEFORE else flags
            if v[f.GUEST_CR4] & CR4_OSXMMEXCPT:
                return Outcome(processor.raise_fault(19, -1))
            return Outcome(processor.raise_fault(6, -1))
        engine.vectors.mxcsr |= flags
    if engine.cells[stops.STOP] == stops.EXITED:
        return Outcome.EXITED
    if engine.cells[stops.STOP] != stops.STEPPED:
        return Outcome.STOPPED
    if not done:
        return Outcome.GO_ON
    if instruction.is_string_instruction and _is_at(v, instruction):
        # RF counts until the last iteration is done; the engine clears it earlier.
        v[f.GUEST_RFLAGS] |= resumes
    if _calls_far_in_core(processor, instruction):
        # It has looked at what it pushed, perhaps on another stack.
        accesses = [access for access in accesses if access.segment != _SS]
    elif instruction.mnemonic in _FAR_RETURNS and privilege_level(v) != level:
        accesses += _outer_stack_words(guest, instruction, accesses)
    return Outcome(trap(processor, v, instruction, accesses))


def look_for_ports(processor: LogicalProcessor, v: Cells) -> None:
    """Make the portable engine stop before each input or output of a new block."""
    engine = processor.engine
    guest = Operand(processor, v)
    start, size = (int(engine.cells[n]) for n in (stops.NEW_BLOCK, stops.NEW_BLOCK_SIZE))
    engine.cells[stops.NEW_BLOCK_SIZE] = 0
    code = guest.code(start, size)
    # LOCK, which the engine overlooks here, must not hide them.
    options = iced.DecoderOptions.NO_INVALID_CHECK
    for instruction in iced.Decoder(guest.bits, code, options, ip=start & _MASK):
        if instruction.mnemonic in _PORTS:
            engine.watch_port(instruction.ip, start, size)


def trap(
    processor: LogicalProcessor, v: Cells, instruction: iced.Instruction, accesses: list[Access]
) -> bool:
    """Raise the debug exceptions that follow an instruction; whether that was a VM exit."""
    causes = int(processor.engine.cells[stops.STEP_CAUSES])
    if v[f.GUEST_IA32_DEBUGCTL] & DEBUGCTL_BTF and not _branched(v, instruction):
        causes &= ~PENDING_BS
    causes |= int(v[f.GUEST_PENDING_DEBUG_EXCEPTIONS]) & (DR6_BREAKPOINTS | PENDING_BS)
    v[f.GUEST_PENDING_DEBUG_EXCEPTIONS] = 0
    for number in range(4):
        if _is_watched(processor, v, number, accesses):
            causes |= 1 << number
    if not causes:
        return False
    if _is_trapped(v):
        # The exit of the monitor trap flag comes first.
        pending = causes & (DR6_BREAKPOINTS | PENDING_BS)
        pending |= PENDING_ENABLED_BREAKPOINT if causes & DR6_BREAKPOINTS else 0
        v[f.GUEST_PENDING_DEBUG_EXCEPTIONS] |= pending
        return False
    loads_ss = instruction.op0_kind == OpKind.REGISTER and instruction.op0_register == Register.SS
    if loads_ss and instruction.mnemonic in _SHADOWING:
        if causes & DR6_BREAKPOINTS:
            pending = causes & DR6_BREAKPOINTS | PENDING_ENABLED_BREAKPOINT
            v[f.GUEST_PENDING_DEBUG_EXCEPTIONS] |= pending
            processor.engine.cells[stops.HELD_BACK] = signed(linear_rip(processor, v)) + 1
        return False
    _end_string(Operand(processor, v), instruction)
    return processor.raise_fault(1, -1, causes)


def _end_string(guest: Operand, instruction: iced.Instruction) -> None:
    """Leave a repeated string instruction after its last iteration.

    The engine begins another one, and finds that there is none.
    """
    v = guest.v
    if not instruction.is_string_instruction or not _is_at(v, instruction):
        return
    used = FACTORY.info(instruction).used_memory()
    if guest.register(COUNTERS[WIDTHS.get(used[0].address_size, guest.bits)]) == 0:
        v[f.GUEST_RIP] = signed(instruction.next_ip)


def _is_at(v: Cells, instruction: iced.Instruction) -> bool:
    """Whether RIP is still that of an instruction that has been executed."""
    return (int(v[f.GUEST_RIP]) ^ int(instruction.ip)) & _MASK == 0


def _branched(v: Cells, instruction: iced.Instruction) -> bool:
    """Whether an instruction that is done was a taken branch (SDM, "Single-Stepping")."""
    if instruction.flow_control == FlowControl.CONDITIONAL_BRANCH:
        return bool((int(v[f.GUEST_RIP]) ^ instruction.next_ip) & 0xFFFF_FFFF)
    return bool(instruction.flow_control != FlowControl.NEXT)


def linear_rip(processor: LogicalProcessor, v: Cells) -> int:
    """The linear address of the instruction at RIP."""
    return code_address(Operand(processor, v))


def _calls_far_in_core(processor: LogicalProcessor, instruction: iced.Instruction) -> bool:
    far = instruction.is_call_far or instruction.is_call_far_indirect
    return bool(far and processor.engine.cells[stops.CPU])


def _outer_stack_words(
    guest: Operand, instruction: iced.Instruction, popped: list[Access]
) -> Iterator[Access]:
    """What a return to an outer ring has popped besides `popped`: its stack's pointer, selector.

    And the data segments' selectors, if virtual-8086 mode is there.
    """
    if guest.long and instruction.mnemonic != Mnemonic.RETF:
        return
    last = popped[-1]
    released = instruction.immediate(0) if instruction.op_count else 0
    count = 6 if guest.v[f.GUEST_RFLAGS] & RFLAGS_VM else 2
    for n in range(1, count + 1):
        linear = guest.wrap(last.linear + n * last.size + released)
        yield last._replace(linear=linear)


def _pending_trap(v: Cells) -> int:
    """The causes of a #DB that waits here for its turn, of breakpoints met by frames of #DB."""
    if v[f.GUEST_INTERRUPTIBILITY_STATE] & BLOCKING_BY_MOV_SS:
        return 0
    return int(v[f.GUEST_PENDING_DEBUG_EXCEPTIONS]) & DR6_BREAKPOINTS


def _breakpoints(processor: LogicalProcessor, guest: Operand) -> int:
    """The breakpoints on execution at RIP, as bits of DR6; none with RF set or after MOV SS."""
    v = guest.v
    blocked = v[f.GUEST_INTERRUPTIBILITY_STATE] & BLOCKING_BY_MOV_SS
    if v[f.GUEST_RFLAGS] & RFLAGS_RF or blocked:
        return 0
    linear = code_address(guest)
    dr7 = int(v[f.GUEST_DR7])
    causes = 0
    for number in range(4):
        enabled = dr7 >> (2 * number) & 3 and not dr7 >> (16 + 4 * number) & 3
        if enabled and getattr(processor.registers, f"dr{number}") == linear:
            causes |= 1 << number
    return causes


def _is_watched(processor: LogicalProcessor, v: Cells, number: int, accesses: list[Access]) -> bool:
    """Whether an access meets that data breakpoint (SDM, "Debug Control Register (DR7)")."""
    dr7 = int(v[f.GUEST_DR7])
    kind = dr7 >> (16 + 4 * number) & 3
    if not dr7 >> (2 * number) & 3 or kind not in (1, 3):
        return False
    size = (1, 2, 8, 4)[dr7 >> (18 + 4 * number) & 3]
    start = getattr(processor.registers, f"dr{number}") & ~(size - 1)
    return any(
        (access.write or (kind == 3 and access.read))
        and access.linear < start + size
        and start < access.linear + access.size
        for access in accesses
    )


def _segment_fault(
    processor: LogicalProcessor,
    guest: Operand,
    instruction: iced.Instruction,
    accesses: list[Access],
) -> int:
    """The vector of a violation of a segment's limit or type (12 or 13), or -1."""
    v = guest.v
    if processor.engine.cells[stops.CPU]:
        # Translated code has these checks.
        return -1
    shape = processor.engine.segment_shape()
    if shape == 0:
        return -1
    if ends_beyond_limit(guest, instruction):
        return 13
    for access in accesses:
        if not allows(v, access):
            return 12 if access.segment == _SS else 13
    _stop_checking_segments(processor, shape)
    return -1


def _stop_checking_segments(processor: LogicalProcessor, shape: int) -> None:
    """Trust segments that a guest uses all the time, or it would crawl for ever."""
    cells = processor.engine.cells
    spent = processor.engine.patience.get(shape, 0) + 1
    processor.engine.patience[shape] = spent
    if spent >= _PATIENCE:
        cells[stops.TRUSTED] = shape


def _non_canonical(
    processor: LogicalProcessor, guest: Operand, instruction: iced.Instruction
) -> bool:
    """A non-canonical address: #SS(0) if the stack segment was used, else #GP(0)."""
    stack = any(
        access.segment == _SS
        and not (
            _is_canonical(access.linear)
            and _is_canonical(guest.wrap(access.linear + access.size - 1))
        )
        for access in accesses_of(guest, instruction)
    )
    return processor.raise_fault(12 if stack else 13, 0)


def _is_canonical(linear: int) -> bool:
    return linear >> 47 in (0, 0x1FFFF)
