"""What to do about an event of the running guest: the compiled decisions behind the hooks.

Compiled only; nothing here may raise. A fault is arbitrated on the spot and the guest
continues at its handler; only VM exits and instructions that Python must decode stop
the engine.
"""

from trapgate.compiler.dialect import Cells, inlined
from trapgate.compiler.program import jit
from trapgate.compiler.raw import call, cells, memory, peek64, poke32, poke64
from trapgate.decision.entry_facts import REPEATED, facts_of_refused
from trapgate.decision.frame_filters import entry_written, is_stopped_table_write
from trapgate.decode import execute as ex
from trapgate.decode.adjust_rpl import ARPL
from trapgate.decode.execute import advance
from trapgate.decode.undefined import is_undefined
from trapgate.engine import machine as mc
from trapgate.engine.core_calls import look_ahead
from trapgate.engine.guest.clock import end_block_here
from trapgate.engine.guest.fetched_code import (
    NOTHING_THERE,
    fetch,
    instruction,
    is_long,
    linear_rip,
    missing_byte,
    operand_of,
)
from trapgate.engine.guest.intercepts import set_intercepts
from trapgate.engine.guest.polling_loops import look_at_time
from trapgate.engine.guest.state import (
    load,
    load_handler,
    loads_segments_in_core,
    save,
    segment_shape,
)
from trapgate.engine.library import layout as at
from trapgate.engine.memory.coherence import forget_stale_code
from trapgate.engine.memory.port_blocks import takes_block
from trapgate.engine.memory.table_fills import clears_table
from trapgate.engine.memory.table_stores import is_reuse
from trapgate.engine.memory.translations import walk_always
from trapgate.events.breakpoints import EXECUTION, breakpoints_met, note_ports, single_steps
from trapgate.events.journal import HEAD_ENTRY
from trapgate.instructions import intercepts as ix
from trapgate.instructions import polled_ports
from trapgate.instructions.far_transfers import is_far_branch
from trapgate.instructions.near_return import RET_AND_RELEASE
from trapgate.instructions.virtual_apic import delivers_interrupts
from trapgate.instructions.virtual_interrupts import IRET, may_redirect, works_on_vif
from trapgate.operands.encoding import prefix_length
from trapgate.operands.mode import in_8086_mode
from trapgate.paging.apic_access import APIC_ACCESS, OF_WRITE
from trapgate.paging.ept import (
    EPT_VIOLATION,
    RIGHT_READ,
    RIGHT_WRITE,
    TRANSLATED,
)
from trapgate.paging.walk import FETCH, walk
from trapgate.sdm import cells as f
from trapgate.sdm import registers as reg
from trapgate.sdm import vmx
from trapgate.sdm.reasons import REASON_IO_INSTRUCTION
from trapgate.sdm.state import (
    BLOCKING_BY_NMI,
    CR4_PVI,
    CR4_VME,
    DR6_BREAKPOINTS,
    DR7_GD,
    RFLAGS_RF,
)
from trapgate.vmx import instructions as vi
from trapgate.vmx.transition import copy_guest_state

_HAS_CODE = 0x27D00
"""Exceptions with an error code: 8, 10-14, 17 (SDM, "Exception and Interrupt Reference")."""

_DEBUG_CAUSES = 0xE00F
_SINGLE_STEP = 1 << 14
_GENERAL_DETECT = 1 << 13
_TF = 1 << 8
_WRITE = 2
_FETCH = 16


@jit
def count_prefixes(m: Cells, v: Cells, outcome: int) -> None:
    """Count the prefixes that `instruction` left out, now that it is done or has exited."""
    extra = m[mc.EXTRA]
    if outcome in (ix.GO_ON, ex.HALTED):
        advance(v, extra)
    elif outcome == ix.EXITED:
        exited = cells(m[mc.V], m[mc.V_CELLS])
        if exited[f.VM_EXIT_INSTRUCTION_LENGTH] != 0:
            exited[f.VM_EXIT_INSTRUCTION_LENGTH] += extra
    elif outcome == vi.ENTER:
        cells(m[mc.X], vmx.LENGTH)[vmx.ENTRY_LENGTH] += extra


@jit
def arbitrate(
    m: Cells, v: Cells, r: Cells, vector: int, kind: int, error_code: int, address: int, length: int
) -> int:
    """One event of the guest's; what the run does next."""
    head = cells(m[mc.HEAD], m[mc.HEAD_CELLS])
    head[2] = m[mc.TIME]
    if m[mc.STEPPING] != 0:
        m[mc.STEPPING] = mc.STEP_EVENT
    if vector == 1:
        m[mc.SWITCHED] |= mc.SWITCHED_REGISTERS
    event = (m[mc.SELF], vector, kind, error_code, address, length)
    outcome = call(m[mc.RAISE_EVENT], event)
    if outcome != 0:
        return mc.EXITED
    if head[4] >= m[mc.JOURNAL_LIMIT]:
        # Somebody reads the journal: stop at the next block, before rows are overwritten.
        m[mc.ATTENTION] |= mc.AT_ONCE
        m[mc.DEADLINE] = 0
        m[mc.PATIENCE] = 0
    return mc.RUNNING


@jit
def move_to_vmcs0(m: Cells) -> None:
    """Lend the state of the x86 VMM's guest to VMCS 0, so that the VMM in Python can serve it."""
    x = cells(m[mc.X], vmx.LENGTH)
    host = cells(m[mc.HOST], m[mc.V_CELLS])
    copy_guest_state(cells(m[mc.N], m[mc.V_CELLS]), host)
    x[vmx.GUEST_IN_VMCS0] = 1
    m[mc.V] = m[mc.HOST]
    m[mc.SWITCHED] |= mc.SWITCHED_VMCS


@jit
def move_from_vmcs0(m: Cells) -> None:
    """The opposite of `move_to_vmcs0`."""
    x = cells(m[mc.X], vmx.LENGTH)
    host = cells(m[mc.HOST], m[mc.V_CELLS])
    copy_guest_state(host, cells(m[mc.N], m[mc.V_CELLS]))
    x[vmx.GUEST_IN_VMCS0] = 0
    m[mc.V] = m[mc.N]
    m[mc.SWITCHED] |= mc.SWITCHED_VMCS


@jit
def execute_for_platform(m: Cells, word: int) -> int:
    """An instruction of the x86 VMM's guest that its VMM lets through to what is below."""
    x = cells(m[mc.X], vmx.LENGTH)
    move_to_vmcs0(m)
    x[vmx.MODE] = vmx.MODE_OFF
    outcome = call(m[mc.EXECUTE], (m[mc.SELF], word))
    x[vmx.MODE] = vmx.MODE_NON_ROOT
    if outcome != ix.EXITED:
        move_from_vmcs0(m)
    return outcome


@jit
def is_answered(m: Cells, v: Cells, r: Cells) -> bool:
    """Whether the VMM in Python has said beforehand what it does about this exit: then it is done.

    Not for what an x86 VMM lets its guest do.
    """
    x = cells(m[mc.X], vmx.LENGTH)
    if (
        m[mc.V] != m[mc.HOST]
        or x[vmx.GUEST_IN_VMCS0] != 0
        or v[f.EXIT_REASON] != REASON_IO_INSTRUCTION
    ):
        return False
    wait = polled_ports.answer(cells(m[mc.PORTS], polled_ports.LENGTH), v, r, m[mc.TIME])
    if wait < 0:
        return False
    m[mc.TIME] += wait
    accessed = v[f.EXIT_QUALIFICATION]
    note_ports(v, r, (accessed >> 16) & 0xFFFF, (accessed & 7) + 1)
    advance(v, v[f.VM_EXIT_INSTRUCTION_LENGTH])
    return True


@jit
def execute_or_pass_on(m: Cells, v: Cells, r: Cells, word: int) -> int:
    """`execute_sensitive` but for the stop at a failure."""
    stepping = single_steps(v)
    priority = r[reg.CR8]
    m[mc.SWITCHED] |= mc.SWITCHED_REGISTERS
    walk_always(m)
    outcome = call(m[mc.EXECUTE], (m[mc.SELF], word))
    if outcome == ex.PLATFORM:
        outcome = execute_for_platform(m, word)
    if m[mc.EXTRA] != 0:
        count_prefixes(m, v, outcome)
    if outcome == ix.EXITED and m[mc.PORTS] != 0 and is_answered(m, v, r):
        outcome = ix.GO_ON
    if outcome == ix.GO_ON:
        look_at_time(m, v, word)
        if delivers_interrupts(v):
            look_ahead(m)
        if r[reg.CR8] != priority and m[mc.PINS] & mc.PIN_PRIORITY:
            # An interrupt that waited for it may be taken now; only the VMM can tell.
            m[mc.TIMER_END] = min(m[mc.TIMER_END], m[mc.TIME])
            m[mc.DEADLINE] = 0
        x = cells(m[mc.X], vmx.LENGTH)
        if x[vmx.FLUSH] != 0:
            x[vmx.FLUSH] = 0
            m[mc.SWITCHED] |= mc.SWITCHED_TRANSLATIONS
        if v[f.GUEST_DR7] & DR7_GD:
            # Each MOV DR is to be intercepted from now on.
            m[mc.SWITCHED] |= mc.SWITCHED_VMCS
        if stepping and m[mc.STEPPING] != 0:
            # `trapgate.processor.stepping` may have more to report together with this.
            m[mc.STEP_CAUSES] = _SINGLE_STEP
            return mc.RUNNING
        causes = v[f.GUEST_PENDING_DEBUG_EXCEPTIONS] & DR6_BREAKPOINTS
        # Those of an instruction that is executed alone, `trapgate.processor.stepping` raises.
        if stepping or (causes != 0 and m[mc.STEPPING] == 0):
            v[f.GUEST_PENDING_DEBUG_EXCEPTIONS] = 0
            causes |= _SINGLE_STEP if stepping else 0
            return arbitrate(m, v, r, 1, 3, -1, causes, 0)
        return mc.RUNNING
    if outcome == ix.EXITED:
        # SDM, "Saving RIP, RSP, RFLAGS, and SSP": the instruction had begun.
        cells(m[mc.V], m[mc.V_CELLS])[f.GUEST_RFLAGS] &= ~RFLAGS_RF
        return mc.EXITED
    if outcome == ex.HALTED:
        return mc.HALTED
    if outcome == ix.RAISE_FAULT:
        x = cells(m[mc.X], vmx.LENGTH)
        fault = x[vmx.FAULT_VECTOR]
        return arbitrate(m, v, r, fault, 3, x[vmx.FAULT_ERROR], x[vmx.FAULT_ADDRESS], 0)
    if outcome == vi.ENTER:
        return call(m[mc.VM_ENTER], (m[mc.SELF],))
    if outcome == ix.RAISE_OPERAND_PF:
        x = cells(m[mc.X], vmx.LENGTH)
        return arbitrate(m, v, r, 14, 3, x[vmx.FAULT_ERROR], x[vmx.FAULT_ADDRESS], 0)
    if outcome == ix.RAISE_SS:
        return arbitrate(m, v, r, 12, 3, 0, 0, 0)
    if outcome == ix.RAISE_UD:
        return arbitrate(m, v, r, 6, 3, -1, 0, 0)
    if outcome == ix.RAISE_GP:
        return arbitrate(m, v, r, 13, 3, 0, 0, 0)
    if outcome == ix.RAISE_DB:
        return arbitrate(m, v, r, 1, 3, -1, _GENERAL_DETECT, 0)
    return mc.ASSIST


@jit
def execute_sensitive(m: Cells, v: Cells, r: Cells, word: int) -> int:
    """A sensitive instruction; what the run does next."""
    x = cells(m[mc.X], vmx.LENGTH)
    failures = x[vmx.FAILURES]
    stop = execute_or_pass_on(m, v, r, word)
    if x[vmx.FAILURES] == failures or x[vmx.EXPLAINING] == 0:
        return stop
    return mc.EXPLAIN if stop == mc.RUNNING and m[mc.STEPPING] == 0 else stop


@jit
def is_beyond_code(v: Cells, linear: int) -> bool:
    """Whether a linear address lies beyond the limit of CS."""
    offset = (linear - v[f.GUEST_CS_BASE]) & 0xFFFF_FFFF
    return not is_long(v) and offset > int(v[f.GUEST_CS_LIMIT]) & 0xFFFF_FFFF


@jit
def refuse_fetch(m: Cells, v: Cells, r: Cells, missing: int) -> int:
    """Byte `missing` of the instruction at RIP is beyond the limit of CS, or cannot be fetched."""
    linear = linear_rip(v) + missing
    if is_beyond_code(v, linear):
        return arbitrate(m, v, r, 13, 3, 0, 0, 0)
    user = 1 if (v[f.GUEST_SS_ACCESS_RIGHTS] >> 5) & 3 == 3 else 0
    mem = memory(m[mc.MEM], m[mc.MEM_CELLS], m[mc.WATCH])
    _, error, _, _ = walk(v, v[f.GUEST_RFLAGS], mem, linear, FETCH, user)
    if error < 0:
        return arbitrate(m, v, r, 6, 3, -1, 0, 0)
    return arbitrate(m, v, r, 14, 3, error, linear, 0)


@jit
def fetch_again(m: Cells, v: Cells, r: Cells) -> int:
    """The guest's tables no longer lead to an instruction that the engine still found: a fault.

    A processor that has not kept the translation raises it, too.
    """
    return refuse_fetch(m, v, r, 0)


@jit
def undefined_opcode(m: Cells, v: Cells, r: Cells) -> int:
    """#UD by the engine's lights: perhaps an instruction that this processor does have."""
    word = instruction(m, v)
    if word & 0xFF == NOTHING_THERE:
        return fetch_again(m, v, r)
    missing = missing_byte(m, v)
    if missing >= 0:
        return refuse_fetch(m, v, r, missing)
    start = prefix_length(word, v[f.GUEST_CS_ACCESS_RIGHTS] & 1 << 13 != 0)
    byte = (word >> (8 * start)) & 0xFF
    if is_undefined(word, start):
        return arbitrate(m, v, r, 6, 3, -1, 0, 0)
    if byte == 0xF1:
        # This is the one #DB, also for what MOV SS has held back.
        v[f.GUEST_PENDING_DEBUG_EXCEPTIONS] = 0
        return arbitrate(m, v, r, 1, 5, -1, 0, start + 1 + m[mc.EXTRA])
    if byte & 0xFC == 0x6C and takes_block(m, v, r, word, start):
        m[mc.SWITCHED] |= mc.SWITCHED_REGISTERS
        return mc.RUNNING
    if byte & 0xFC == 0x6C:
        return execute_sensitive(m, v, r, word)
    if byte == RET_AND_RELEASE:
        m[mc.EXTRA] = 0
        return execute_sensitive(m, v, r, word)
    if in_8086_mode(v) and is_far_branch(byte, (word >> (8 * start + 8)) & 0xFF):
        return mc.ASSIST
    if byte != 0x0F and (byte != ARPL or in_8086_mode(v)):
        return arbitrate(m, v, r, 6, 3, -1, 0, 0)
    return execute_sensitive(m, v, r, word)


@jit
def protection_fault(m: Cells, v: Cells, r: Cells) -> int:
    """#GP(0) by the engine's lights: perhaps an instruction that works on VIF, or INT n.

    The engine refuses INT n in virtual-8086 mode below IOPL 3 without a look at CR4.VME.
    """
    word = instruction(m, v)
    start = prefix_length(word, is_long(v))
    if may_redirect(v, (word >> (8 * start)) & 0xFF, start + 2):
        return software_interrupt(m, v, r)
    if is_undefined(word, start) or not works_on_vif(v, (word >> (8 * start)) & 0xFF):
        return arbitrate(m, v, r, 13, 3, 0, 0, 0)
    if (word >> (8 * start)) & 0xFF == IRET:
        m[mc.EXTRA] = 0
    return execute_sensitive(m, v, r, word)


@jit
def is_taken_for_sse(m: Cells, v: Cells) -> bool:
    """INVEPT, INVVPID or INVPCID, which the engine takes for SSE instructions if CR0.TS is 1."""
    word, _ = fetch(m, v, 8)
    start = prefix_length(word, v[f.GUEST_CS_ACCESS_RIGHTS] & 1 << 13 != 0)
    return bool((word >> (8 * start)) & 0xFCFFFF == 0x80380F)


@jit
def software_interrupt(m: Cells, v: Cells, r: Cells) -> int:
    """INT n, INT3 or INTO, at RIP still."""
    word = instruction(m, v)
    if word & 0xFF == NOTHING_THERE:
        return fetch_again(m, v, r)
    start = prefix_length(word, v[f.GUEST_CS_ACCESS_RIGHTS] & 1 << 13 != 0)
    if is_undefined(word, start):
        return arbitrate(m, v, r, 6, 3, -1, 0, 0)
    byte = (word >> (8 * start)) & 0xFF
    length = start + 1 + m[mc.EXTRA]
    if byte == 0xCC:
        return arbitrate(m, v, r, 3, 6, -1, 0, length)
    if byte == 0xCE:
        return arbitrate(m, v, r, 4, 6, -1, 0, length)
    vector = (word >> (8 * start + 8)) & 0xFF
    return arbitrate(m, v, r, vector, 4, -1, 0, length + 1)


@jit
def inhibits_interrupts(m: Cells, v: Cells) -> bool:
    """Whether the instruction at RIP is STI, or a MOV or POP that loads SS."""
    word = instruction(m, v)
    start = prefix_length(word, is_long(v))
    byte = (word >> (8 * start)) & 0xFF
    return byte in (0xFB, 0x17) or (byte == 0x8E and (word >> (8 * start + 11)) & 7 == 2)


@jit
def is_done_alone(m: Cells, v: Cells, code: int) -> bool:
    """Whether the instruction that is executed alone is done, and the exception the next one's."""
    return bool(
        m[mc.STEPPING] == mc.STEP_RUNNING
        and at.SVM_EXCEPTION <= code < at.SVM_EXCEPTION + 32
        and code != at.SVM_EXCEPTION + 1
        and linear_rip(v) != m[mc.STEP_START]
    )


@jit
def is_table_write(m: Cells, v: Cells, code: int, address: int) -> bool:
    """Whether a page fault is a write to the page tables that a fault filter may judge.

    Of one to a table that none may, the journal is told no more than what the map says of it.
    """
    if not is_stopped_table_write(v, code):
        return False
    mem = memory(m[mc.MEM], m[mc.MEM_CELLS], m[mc.WATCH])
    kind, physical = entry_written(v, v[f.GUEST_RFLAGS], mem, address, (code >> 2) & 1)
    repeated = 0
    if kind != 0:
        word, _ = fetch(m, v, 8)
        if not is_reuse(v, word, is_long(v), physical):
            return True
        repeated = REPEATED
    head = cells(m[mc.HEAD], m[mc.HEAD_CELLS])
    head[HEAD_ENTRY] = facts_of_refused(v, mem, physical, repeated)
    return False


@jit
def dispatch_in_force(m: Cells, env: int, v: Cells, r: Cells, code: int, info: int) -> int:
    """`dispatch` as far as the VMCS in force is concerned."""
    m[mc.STOP_CODE] = code
    m[mc.STOP_INFO] = info
    if is_done_alone(m, v, code):
        return mc.STEPPED
    if 0x40 <= code < 0x60:
        vector = code - 0x40
        if vector == 14:
            fetched = m[mc.FAULT_KIND] == mc.FAULT_OF_FETCH
            if m[mc.NATIVE] != 0:
                address = m[mc.FAULT_ADDRESS]
                info = m[mc.FAULT_CODE]
            else:
                address = peek64(m[mc.SCRATCH] + at.VMCB_EXIT_INFO_2)
                info &= 0xFFFF
                # Which it was can only be told from where it was.
                here = linear_rip(v)
                distance = address - here
                if 0 < distance < 0x1000 and address & 0xFFF == 0 and m[mc.STEPPING] == 0:
                    if m[mc.CRAWL] != here + 1:
                        # Instructions of the block may come before one that cannot be fetched.
                        m[mc.CRAWL] = here + 1
                        m[mc.STOP_CODE] = mc.CHECK_NEXT
                        return mc.CHECKED
                    m[mc.CRAWL] = 0
                fetched = distance == 0 or (0 < distance < 15 and address & 0xFFF == 0)
                fetched = fetched or info & _FETCH != 0
            if fetched and is_beyond_code(v, address):
                # Segmentation comes before paging.
                m[mc.FAULT_KIND] = 0
                return arbitrate(m, v, r, 13, 3, 0, 0, 0)
            if not fetched:
                operand = operand_of(m, v)
                if operand == mc.OPERAND_OF_PORT:
                    # Whether there is a VM exit is decided before memory is accessed.
                    return execute_sensitive(m, v, r, instruction(m, v))
                changes = info & _WRITE == 0 and operand == mc.OPERAND_CHANGES
                if changes and info < EPT_VIOLATION:
                    info |= _WRITE
                elif changes and info & APIC_ACCESS:
                    info |= OF_WRITE
                elif changes and info & TRANSLATED:
                    info = info & ~RIGHT_READ | RIGHT_WRITE
            is_fault = info < EPT_VIOLATION and m[mc.FAULT_KIND] != mc.FAULT_JUDGED
            if is_fault and clears_table(m, v, r, info, address):
                return mc.RUNNING
            if is_fault and is_table_write(m, v, info, address):
                m[mc.STOP_INFO] = info
                m[mc.FAULT_ADDRESS] = address
                return mc.TABLE_WRITE
            m[mc.FAULT_KIND] = 0
            length = m[mc.INSTRUCTION_LENGTH] if info >= APIC_ACCESS and not fetched else 0
            return arbitrate(m, v, r, 14, 3, info, address, length)
        if m[mc.FAULT_KIND] == mc.FAULT_OF_SEGMENT:
            m[mc.FAULT_KIND] = 0
            return arbitrate(m, v, r, vector, 3, 0, 0, 0)
        if vector == 13 and m[mc.NATIVE] == 0 and info & 0xFFFF == 0 and is_long(v):
            m[mc.FAULT_KIND] = mc.FAULT_NON_CANONICAL
        if vector == 13 and m[mc.FAULT_KIND] == mc.FAULT_NON_CANONICAL:
            m[mc.FAULT_KIND] = 0
            return mc.CHECKED
        if vector == 6 or (vector == 7 and is_taken_for_sse(m, v)):
            return undefined_opcode(m, v, r)
        if vector == 1:
            causes = peek64(env + at.DR6) & _DEBUG_CAUSES
            if causes & _SINGLE_STEP:
                # The engine compares offsets, and with breakpoints of all kinds.
                here = breakpoints_met(v, r, 1 << EXECUTION, linear_rip(v), 1)
                causes = causes & ~DR6_BREAKPOINTS | here
            poke64(env + at.DR6, 0xFFFF0FF0)
            if m[mc.STEPPING] != 0 and causes & _SINGLE_STEP:
                # `trapgate.processor.stepping` may have more to report together with this.
                m[mc.STEP_CAUSES] = causes
                return mc.STEPPED
            return arbitrate(m, v, r, 1, 3, -1, causes, 0)
        if vector == 13 and info & 0xFFFF == 0 and v[f.GUEST_CR4] & (CR4_VME | CR4_PVI):
            return protection_fault(m, v, r)
        error_code = info & 0xFFFF if (_HAS_CODE >> vector) & 1 else -1
        return arbitrate(m, v, r, vector, 3, error_code, 0, 0)
    if code == at.SVM_SOFTWARE_INTERRUPT:
        return software_interrupt(m, v, r)
    if code == at.SVM_IRET:
        # `trapgate.processor.stepping` executes it, and knows when it has ended.
        v[f.GUEST_INTERRUPTIBILITY_STATE] &= ~BLOCKING_BY_NMI
        m[mc.UNBLOCKED] = 1
        m[mc.TIME] -= 1
        m[mc.STOP_CODE] = mc.CHECK_NEXT
        set_intercepts(m, env, v)
        return mc.CHECKED
    word = instruction(m, v)
    if word & 0xFF == NOTHING_THERE:
        return fetch_again(m, v, r)
    return execute_sensitive(m, v, r, word)


@jit
@inlined
def pass_exit_to_x86_vmm(m: Cells, stop: int) -> int:
    """An exit of the x86 VMM's guest is that VMM's business: the run continues there."""
    if stop == mc.EXITED and m[mc.V] != m[mc.HOST]:
        return call(m[mc.VM_LEAVE], (m[mc.SELF],))
    return stop


@jit
def dispatch(m: Cells, env: int, v: Cells, r: Cells, code: int, info: int) -> int:
    """What to do about the engine's event `code`: RUNNING, or why to stop.

    Another VMCS may be in force afterwards.
    """
    return pass_exit_to_x86_vmm(m, dispatch_in_force(m, env, v, r, code, info))


@jit
def load_state_in_force(m: Cells, env: int, r: Cells) -> None:
    """Load the state of the VMCS in force into the engine, and what else depends on it."""
    v = cells(m[mc.V], m[mc.V_CELLS])
    forget_stale_code(m)
    if m[mc.SWITCHED] == 0 and m[mc.NATIVE] != 0 and loads_segments_in_core(env):
        load_handler(m, env, v, r)
        return
    load(m, env, v, r)
    switched = m[mc.SWITCHED] & mc.SWITCHED_VMCS
    m[mc.SWITCHED] = 0
    if switched != 0:
        set_intercepts(m, env, v)
        # Where the translator is ours, translated code checks segments.
        shape = segment_shape(v) if m[mc.CPU] == 0 else 0
        if shape != 0 and shape != m[mc.TRUSTED]:
            m[mc.CHECKS] |= mc.CHECK_LIMITS
            m[mc.DEADLINE] = 0


@jit
def port(m: Cells, env: int, v: Cells, r: Cells) -> int:
    """An instruction of input or output, if it is one: the same address may have others."""
    word = instruction(m, v)
    start = prefix_length(word, is_long(v))
    byte = (word >> (8 * start)) & 0xFF
    if byte & 0xF4 == 0xE4 or byte & 0xFC == 0x6C:
        return dispatch(m, env, v, r, at.SVM_IO, 0)
    # It was counted as if it were done.
    m[mc.TIME] -= 1 if m[mc.CPU] != 0 else 0
    m[mc.STOP_CODE] = mc.CHECK_NO_PORT
    return mc.CHECKED


@jit
@inlined
def state_begin(m: Cells) -> int:
    """The address of the CPU state: live, or saved for the portable path."""
    if m[mc.NATIVE] != 0:
        return int(m[mc.ENV])
    # Reading and writing the flags makes the engine evaluate them.
    flags = m[mc.STOP_VALUE :]
    call(m[mc.REG_READ], (m[mc.UC], 25, flags.ctypes.data))
    call(m[mc.REG_WRITE], (m[mc.UC], 25, flags.ctypes.data))
    call(m[mc.CONTEXT_SAVE], (m[mc.UC], m[mc.CONTEXT]))
    return int(m[mc.ENV])


@jit
@inlined
def state_end(m: Cells) -> None:
    """Give a patched copy of the state back to the engine."""
    if m[mc.NATIVE] == 0:
        call(m[mc.CONTEXT_RESTORE], (m[mc.UC], m[mc.CONTEXT]))


@jit
def execute_in_core(m: Cells) -> None:
    """Carry out the instruction at RIP here, and leave the engine's attempt.

    On the portable path nobody should come here: `port` comes first.
    """
    if m[mc.NATIVE] == 0:
        m[mc.STOP] = mc.BROKEN
        m[mc.STOP_CODE] = at.SVM_IO
        call(m[mc.EMU_STOP], (m[mc.UC],))
        return
    env = m[mc.ENV]
    v = cells(m[mc.V], m[mc.V_CELLS])
    r = cells(m[mc.R], m[mc.R_CELLS])
    end_block_here(m)
    save(m, env, v, r)
    stop = dispatch(m, env, v, r, at.SVM_IO, 0)
    if stop == mc.RUNNING:
        load_state_in_force(m, env, r)
        poke32(m[mc.EXCEPTION_INDEX], -1)
    else:
        m[mc.STOP] = stop
        call(m[mc.EMU_STOP], (m[mc.UC],))
        poke32(m[mc.EXCEPTION_INDEX], at.EXCP_INTERRUPT)
    call(m[mc.CPU_LOOP_EXIT], (m[mc.CPU],))
