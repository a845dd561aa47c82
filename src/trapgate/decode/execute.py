"""Sensitive instructions: decoding, permission, interception, effect, in that order.

The engine stops before each of these; what they do is decided here (`intercepts`) and
done here (`effects`), so that every engine does the same. Forms with a memory operand,
which are rare, are left to `instructions`, which has a whole decoder.
"""

from trapgate.compiler.dialect import Cells, Memory, core, inlined
from trapgate.decode.adjust_rpl import ARPL, adjust_rpl
from trapgate.decode.later_instructions import NO_LATER_INSTRUCTION, execute_later
from trapgate.decode.table_registers import NO_TABLE_INSTRUCTION, execute_table
from trapgate.decode.undefined import is_undefined
from trapgate.events.breakpoints import note_ports
from trapgate.events.descriptors import NO_FAULT
from trapgate.events.exits import vm_exit
from trapgate.instructions.effects import (
    clear_task_switched,
    halt,
    load_machine_status,
    read_cr,
    read_dr,
    time_stamp,
    write_cr,
    write_dr,
    write_xcr,
)
from trapgate.instructions.intercepts import (
    EXITED,
    GO_ON,
    RAISE_FAULT,
    RAISE_GP,
    RAISE_OPERAND_PF,
    RAISE_PF,
    RAISE_UD,
    intercept_clts,
    intercept_cpuid,
    intercept_hlt,
    intercept_invd,
    intercept_io,
    intercept_lmsw,
    intercept_monitor,
    intercept_mov_dr,
    intercept_mov_from_cr,
    intercept_mov_to_cr,
    intercept_mwait,
    intercept_pause,
    intercept_pause_loop,
    intercept_rdmsr,
    intercept_rdpmc,
    intercept_rdtsc,
    intercept_rdtscp,
    intercept_wbinvd,
    intercept_wrmsr,
    intercept_xsetbv,
    io_permission,
)
from trapgate.instructions.msrs import read_msr, write_msr
from trapgate.instructions.near_return import RET_AND_RELEASE, near_return
from trapgate.instructions.virtual_apic import (
    fits_msr_of_page,
    has_tpr_shadow,
    read_msr_of_page,
    virtual_tpr,
    virtualizes_read,
    virtualizes_write,
    write_msr_of_page,
    write_tpr,
)
from trapgate.instructions.virtual_interrupts import IRET, execute_on_vif, works_on_vif
from trapgate.operands.encoding import has_prefix, prefix_length, register_value, set_register
from trapgate.operands.mode import in_64_bit_mode, in_8086_mode, privilege_level
from trapgate.paging.alias import aliased
from trapgate.paging.frame_map import FOREIGN, ROOT, frame_byte, has_frame_map
from trapgate.paging.memory import load64
from trapgate.paging.walk import NO_POINTERS, load_pointers, uses_pae_paging
from trapgate.sdm.cells import (
    GUEST_CR0,
    GUEST_CR3,
    GUEST_CR4,
    GUEST_CS_ACCESS_RIGHTS,
    GUEST_IA32_EFER,
    GUEST_INTERRUPTIBILITY_STATE,
    GUEST_RFLAGS,
    GUEST_RIP,
)
from trapgate.sdm.registers import RAX, RCX, RDX, TSC_AUX
from trapgate.sdm.state import (
    AR_DB,
    CR0_CD,
    CR0_NW,
    CR0_PG,
    CR4_PAE,
    CR4_PCIDE,
    CR4_PGE,
    CR4_PSE,
    CR4_SMEP,
    RFLAGS_RF,
)
from trapgate.sdm.vmx import (
    CR0_FIXED_0,
    FAULT_ADDRESS,
    FAULT_ERROR,
    FAULT_VECTOR,
    FLUSH,
    MODE,
    MODE_NON_ROOT,
    MODE_ROOT,
)
from trapgate.vmx.instructions import NOT_VMX, execute_vmx, vmx_reason

UNKNOWN = 6
"""Not one of the forms that are known here; nothing has changed."""
HALTED = 7
"""HLT was carried out; RIP is past it."""
PLATFORM = 10
"""The VMCS in force does not ask for an exit, but what is after the instruction is the
business of the VMM in Python; nothing has changed."""

_LOW = 0xFFFFFFFF
_ADDRESS = 0xFF_FFFF_F000
_CR0_LOADS = CR0_PG | CR0_CD | CR0_NW
_CR4_LOADS = CR4_PAE | CR4_PGE | CR4_PSE | CR4_SMEP
"""Changes of these load the pointers of PAE paging."""


@core
def advance(v: Cells, length: int) -> None:
    """Move RIP past an instruction of `length` bytes, which ends."""
    move_rip(v, length)
    end_instruction(v)


@core
@inlined
def move_rip(v: Cells, length: int) -> None:
    """Move RIP past an instruction of `length` bytes."""
    rip = v[GUEST_RIP] + length
    if not in_64_bit_mode(v):
        rip = rip & (_LOW if v[GUEST_CS_ACCESS_RIGHTS] & AR_DB else 0xFFFF)
    v[GUEST_RIP] = rip


@core
@inlined
def end_instruction(v: Cells) -> None:
    """What ends with every instruction: RF, and the shadow of STI or MOV SS."""
    v[GUEST_RFLAGS] = v[GUEST_RFLAGS] & ~RFLAGS_RF
    v[GUEST_INTERRUPTIBILITY_STATE] = v[GUEST_INTERRUPTIBILITY_STATE] & ~3


@core
def set_pair(r: Cells, value: int) -> None:
    """EDX:EAX, zero-extended, as RDMSR and RDTSC give 64 bits."""
    r[RAX] = value & _LOW
    r[RDX] = (value >> 32) & _LOW


@core
def execute(v: Cells, r: Cells, mem: Memory, x: Cells, n: Cells, word: int, time: int) -> int:
    """Carry out the sensitive instruction whose first eight bytes are `word`, at GUEST_RIP.

    `v` is the VMCS in force, `x` the VMX state of the processor, `n` the x86 VMM's current
    VMCS, `time` the virtual clock. Answers GO_ON (done, RIP is past it), EXITED, HALTED,
    RAISE_* of `intercepts` (RIP still at it), ENTER of `vmx`, PLATFORM or UNKNOWN.
    """
    long = in_64_bit_mode(v)
    start = prefix_length(word, long)
    rex = (word >> (8 * (start - 1))) & 0xFF if start > 0 and long else 0
    if rex & 0xF0 != 0x40:
        rex = 0
    if is_undefined(word, start):
        return RAISE_UD
    opcode = (word >> (8 * start)) & 0xFF
    second = (word >> (8 * start + 8)) & 0xFF
    third = (word >> (8 * start + 16)) & 0xFF
    if opcode == 0x0F:
        return execute_two_byte(v, r, mem, x, n, time, long, rex, start, second, third, word)
    if opcode == 0xF4:
        outcome = intercept_hlt(v, start + 1)
        if outcome == GO_ON:
            advance(v, start + 1)
            halt(v)
            return HALTED
        return outcome
    if opcode == 0x90:
        outcome = intercept_pause(v, start + 1)
        if outcome == GO_ON:
            outcome = intercept_pause_loop(v, x, time, start + 1)
        if outcome == GO_ON:
            advance(v, start + 1)
        return outcome
    if opcode & 0xF4 == 0xE4:
        return execute_io(v, r, mem, x, word, start, opcode, second)
    if opcode == ARPL and not long and not in_8086_mode(v):
        outcome, length = adjust_rpl(v, r, mem, x, word, start)
        if outcome == GO_ON:
            advance(v, length)
        return outcome
    if opcode == RET_AND_RELEASE or works_on_vif(v, opcode):
        return execute_on_stack(v, mem, x, word, start, opcode)
    return UNKNOWN


@core
def execute_on_stack(v: Cells, mem: Memory, x: Cells, word: int, start: int, opcode: int) -> int:
    """RET that releases parameters, and what works on VIF."""
    wide = v[GUEST_CS_ACCESS_RIGHTS] & AR_DB != 0
    if has_prefix(word, start, 0x66):
        wide = not wide
    if opcode == RET_AND_RELEASE:
        size = 8 if in_64_bit_mode(v) else (4 if wide else 2)
        release = (word >> (8 * start + 8)) & 0xFFFF
        fault, error, address = near_return(v, mem, size, release)
    else:
        fault, error, address = execute_on_vif(v, mem, opcode, wide, start + 1)
    if fault != NO_FAULT:
        x[FAULT_VECTOR] = fault
        x[FAULT_ERROR] = error
        x[FAULT_ADDRESS] = address
        return RAISE_FAULT
    if opcode in (RET_AND_RELEASE, IRET):
        end_instruction(v)
    else:
        advance(v, start + 1)
    return GO_ON


@core
def execute_io(
    v: Cells, r: Cells, mem: Memory, x: Cells, word: int, start: int, opcode: int, second: int
) -> int:
    """IN and OUT (E4H-E7H, ECH-EFH); a port that nobody intercepts has nothing behind it."""
    immediate = 0 if opcode & 8 else 1
    length = start + 1 + immediate
    port = second if immediate else r[RDX] & 0xFFFF
    small = v[GUEST_CS_ACCESS_RIGHTS] & AR_DB == 0 and not in_64_bit_mode(v)
    for n in range(start):
        if (word >> (8 * n)) & 0xFF == 0x66:
            small = not small
    size = 1
    if opcode & 1:
        size = 2 if small else 4
    outcome, error, address = io_permission(v, mem, port, size)
    if outcome == RAISE_PF:
        x[FAULT_ERROR] = error
        x[FAULT_ADDRESS] = address
        return RAISE_OPERAND_PF
    if outcome != GO_ON:
        return outcome
    is_in = 0 if opcode & 2 else 1
    outcome = intercept_io(v, mem, port, size, is_in, 0, 0, immediate, length)
    if outcome == GO_ON and x[MODE] == MODE_NON_ROOT:
        return PLATFORM
    if outcome == GO_ON:
        note_ports(v, r, port, size)
        if is_in:
            if size == 4:
                r[RAX] = _LOW
            else:
                r[RAX] = r[RAX] | (0xFF if size == 1 else 0xFFFF)
        advance(v, length)
    return outcome


@core
def execute_two_byte(
    v: Cells,
    r: Cells,
    mem: Memory,
    x: Cells,
    n: Cells,
    time: int,
    long: bool,
    rex: int,
    start: int,
    second: int,
    third: int,
    word: int,
) -> int:
    """The opcodes after 0FH."""
    length = start + 2
    outcome = UNKNOWN
    value = 0
    if second == 0xA2:
        outcome = intercept_cpuid(v, r[RAX] & _LOW, length)
        if outcome != GO_ON:
            return outcome
        # What this processor is, the platform says.
        return PLATFORM if x[MODE] == MODE_NON_ROOT else UNKNOWN
    reason = vmx_reason(v, mem, word, start)
    if reason != NOT_VMX:
        outcome, length = execute_vmx(v, r, mem, x, n, word, start, rex, reason)
        if outcome == GO_ON:
            advance(v, length)
        return outcome
    if second < 2:
        outcome, length = execute_table(v, r, mem, x, word, start, rex, second, third)
        if outcome != NO_TABLE_INSTRUCTION:
            if outcome == GO_ON:
                advance(v, length)
            return outcome
        length = start + 2
        outcome = UNKNOWN
    if second == 0x01 and third >= 0xC0:
        return execute_group_7(v, r, time, start, third)
    if second in (0x38, 0xAE, 0xB8, 0xC7):
        outcome, length = execute_later(v, r, mem, x, word, start, rex, second, third)
        if outcome == GO_ON:
            advance(v, length)
        return UNKNOWN if outcome == NO_LATER_INSTRUCTION else outcome
    if second in (0x20, 0x22):
        return execute_mov_cr(v, r, mem, x, long, rex, start, second, third)
    if second in (0x21, 0x23):
        return execute_mov_dr(v, r, long, rex, start, second, third)
    if second == 0x31:
        outcome = intercept_rdtsc(v, length)
        if outcome == GO_ON:
            set_pair(r, time_stamp(v, time))
    elif second == 0x32:
        outcome = intercept_rdmsr(v, mem, r[RCX] & _LOW, length)
        if outcome == GO_ON and virtualizes_read(v, r[RCX] & _LOW):
            set_pair(r, read_msr_of_page(v, mem, r[RCX] & _LOW))
        elif outcome == GO_ON:
            outcome, value = read_msr(v, r, r[RCX] & _LOW, time)
            if outcome == GO_ON:
                set_pair(r, value)
            elif x[MODE] == MODE_NON_ROOT:
                return PLATFORM
    elif second == 0x30:
        outcome = intercept_wrmsr(v, mem, r[RCX] & _LOW, length)
        if outcome == GO_ON:
            value = (r[RDX] & _LOW) << 32 | (r[RAX] & _LOW)
            index = r[RCX] & _LOW
            if virtualizes_write(v, index):
                if not fits_msr_of_page(index, value):
                    return RAISE_GP
                advance(v, length)
                return exit_after_write(v, write_msr_of_page(v, mem, index, value))
            outcome = write_msr(v, r, r[RCX] & _LOW, value)
            if outcome != GO_ON and x[MODE] == MODE_NON_ROOT:
                return PLATFORM
    elif second == 0x06:
        outcome = intercept_clts(v, length)
        if outcome == GO_ON:
            clear_task_switched(v)
    elif second == 0x08:
        outcome = intercept_invd(v, length)
    elif second == 0x09:
        outcome = intercept_wbinvd(v, length)
    elif second == 0x33:
        outcome = intercept_rdpmc(v, r[RCX] & _LOW, length)
        if outcome == GO_ON:
            set_pair(r, 0)
    elif second == 0x0B:
        return RAISE_UD
    elif (second == 0x0D or 0x18 <= second <= 0x1F) and third >= 0xC0:
        # Reserved as NOP.
        length = start + 3
        outcome = GO_ON
    if outcome == GO_ON:
        advance(v, length)
    return outcome


@core
def execute_group_7(v: Cells, r: Cells, time: int, start: int, third: int) -> int:
    """0FH 01H with a register form: MONITOR, XSETBV, RDTSCP, CLAC, LMSW."""
    length = start + 3
    outcome = UNKNOWN
    if third == 0xC8:
        outcome = intercept_monitor(v, length)
    elif third == 0xC9:
        outcome = intercept_mwait(v, 0, length)
    elif third in (0xCA, 0xCB):
        # CLAC and STAC, which the engine's processor model may not have.
        if privilege_level(v) != 0:
            return RAISE_UD
        flags = v[GUEST_RFLAGS] & ~(1 << 18)
        v[GUEST_RFLAGS] = flags | ((third & 1) << 18)
        outcome = GO_ON
    elif third == 0xD1:
        outcome = intercept_xsetbv(v, int(r[RCX]) & _LOW, length)
        if outcome == GO_ON:
            value = (int(r[RDX]) & _LOW) << 32 | int(r[RAX]) & _LOW
            outcome = write_xcr(r, int(r[RCX]), value)
    elif third == 0xF9:
        outcome = intercept_rdtscp(v, length)
        if outcome == GO_ON:
            set_pair(r, time_stamp(v, time))
            r[RCX] = r[TSC_AUX] & _LOW
    elif 0xF0 <= third <= 0xF7:
        source = register_value(v, r, third & 7) & 0xFFFF
        outcome = intercept_lmsw(v, source, 0, 0, length)
        if outcome == GO_ON:
            load_machine_status(v, source)
    if outcome == GO_ON:
        advance(v, length)
    return outcome


@core
def is_root(v: Cells, mem: Memory, value: int) -> bool:
    """Whether the frame map lets CR3 be loaded with `value` without a VM exit.

    With PAE paging the root is what the four pointers there lead to.
    """
    if not has_frame_map(v):
        return False
    if not uses_pae_paging(v):
        return frame_byte(v, mem, value & _ADDRESS) & ROOT != 0
    table = value & 0xFFFF_FFE0
    if frame_byte(v, mem, table) & FOREIGN:
        return False
    for n in range(4):
        pointer = load64(mem, aliased(v, table) + 8 * n)
        if pointer & 1 and frame_byte(v, mem, pointer & _ADDRESS) & ROOT == 0:
            return False
    return True


@core
def execute_mov_cr(
    v: Cells,
    r: Cells,
    mem: Memory,
    x: Cells,
    long: bool,
    rex: int,
    start: int,
    second: int,
    third: int,
) -> int:
    """MOV to and from control registers."""
    length = start + 3
    number = ((third >> 3) & 7) | (rex & 4) << 1
    register = (third & 7) | (rex & 1) << 3
    if second == 0x22:
        value = register_value(v, r, register)
        if not long:
            value = value & _LOW
        outcome = GO_ON
        if number != 3 or privilege_level(v) != 0 or not is_root(v, mem, value):
            outcome = intercept_mov_to_cr(v, number, register, value, length)
        leaves = number == 0 and value & CR0_FIXED_0 != CR0_FIXED_0
        if outcome == GO_ON and leaves and x[MODE] == MODE_ROOT:
            return RAISE_GP
        if outcome == GO_ON:
            if number == 3:
                if v[GUEST_CR4] & CR4_PCIDE:
                    # Bit 63 asks to keep translations; it is not part of CR3.
                    value = value & 0x7FFFFFFFFFFFFFFF
                x[FLUSH] = 1
            if number == 8 and has_tpr_shadow(v):
                if value & ~0xF:
                    return RAISE_GP
                advance(v, length)
                return exit_after_write(v, write_tpr(v, mem, value << 4))
            outcome = write_paging_register(v, r, mem, x, number, value)
    else:
        outcome = intercept_mov_from_cr(v, number, register, length)
        if outcome == GO_ON:
            value = read_cr(v, r, number)
            if number == 8 and has_tpr_shadow(v):
                value = virtual_tpr(v, mem) >> 4
            set_register(v, r, register, value if long else value & _LOW)
    if outcome == GO_ON:
        advance(v, length)
    return outcome


@core
def exit_after_write(v: Cells, due: int) -> int:
    """The exit that follows a write to the virtual-APIC page, if any; RIP is past it already."""
    if due == 0:
        return GO_ON
    vm_exit(v, due & 0xFFFF, due >> 16, 0)
    return EXITED


@core
def write_paging_register(
    v: Cells, r: Cells, mem: Memory, x: Cells, number: int, value: int
) -> int:
    """MOV to a control register, which may load the pointers of PAE paging from memory.

    Under a frame map they come with CR3 alone, for `is_root` has looked at them. If they cannot be
    loaded, no register changes.
    """
    cr0 = v[GUEST_CR0]
    cr3 = v[GUEST_CR3]
    cr4 = v[GUEST_CR4]
    efer = v[GUEST_IA32_EFER]
    outcome = write_cr(v, r, number, value)
    loads = number == 3 or not has_frame_map(v)
    if outcome != GO_ON or not loads or not uses_pae_paging(v):
        return outcome
    changed = ((v[GUEST_CR0] ^ cr0) & _CR0_LOADS) | ((v[GUEST_CR4] ^ cr4) & _CR4_LOADS)
    if number != 3 and changed == 0:
        return outcome
    error = load_pointers(v, mem)
    if error < 0:
        return outcome
    v[GUEST_CR0] = cr0
    v[GUEST_CR3] = cr3
    v[GUEST_CR4] = cr4
    v[GUEST_IA32_EFER] = efer
    if error == NO_POINTERS:
        return RAISE_GP
    x[FAULT_ERROR] = error
    x[FAULT_ADDRESS] = 0
    return RAISE_OPERAND_PF


@core
def execute_mov_dr(
    v: Cells, r: Cells, long: bool, rex: int, start: int, second: int, third: int
) -> int:
    """MOV to and from debug registers."""
    length = start + 3
    number = ((third >> 3) & 7) | (rex & 4) << 1
    register = (third & 7) | (rex & 1) << 3
    outcome = intercept_mov_dr(v, number, 1 - ((second >> 1) & 1), register, length)
    if outcome != GO_ON:
        return outcome
    if second == 0x23:
        value = register_value(v, r, register)
        outcome = write_dr(v, r, number, value if long else value & _LOW)
    else:
        outcome, value = read_dr(v, r, number)
        if outcome == GO_ON:
            set_register(v, r, register, value if long else value & _LOW)
    if outcome == GO_ON:
        advance(v, length)
    return outcome
