"""Core functions as Python and the hooks call them, on the cells of one machine."""

from trapgate.compiler.dialect import Cells, inlined
from trapgate.compiler.kinds import INT64
from trapgate.compiler.program import callback, jit, jit_for_python
from trapgate.compiler.raw import cells, memory, table
from trapgate.decision.frame_filters import entry_written
from trapgate.decode import emulated
from trapgate.decode.execute import advance, execute
from trapgate.engine import machine as mc
from trapgate.engine.guest.clock import set_deadline
from trapgate.engine.guest.fetched_code import linear_rip
from trapgate.engine.memory.translations import walk_always
from trapgate.events.breakpoints import hold_for_trap
from trapgate.events.delivery import raise_event, report_unblocking
from trapgate.events.exits import vm_exit
from trapgate.events.journal import (
    HEAD_CAPACITY,
    HEAD_SEQUENCE,
    ROW_DEPTH,
    ROW_TYPE,
    ROW_WIDTH,
)
from trapgate.instructions.virtual_apic import (
    has_virtual_interrupt,
    post_interrupts,
    take_virtual_interrupt,
)
from trapgate.paging.walk import walk
from trapgate.sdm import cells as f
from trapgate.sdm import controls as ct
from trapgate.sdm import vmx
from trapgate.sdm.interruption import TYPE_SOFTWARE_EXCEPTION, TYPE_SOFTWARE_INTERRUPT
from trapgate.sdm.state import DR6_BREAKPOINTS
from trapgate.vmx.entry import EXITED, FAILED, take_pending_debug
from trapgate.vmx.instructions import fail
from trapgate.vmx.transition import enter_guest, leave_guest

_FOREVER = 1 << 62
_SLICE = 1 << 26
"""Instructions after which Python looks for signals: a Ctrl-C waits no longer."""
_DELIVERED, _EXITED = 0, 1
"""Of `raise_event`."""
_ABORT_EXIT = 2
"""A triple fault, to the VMM in Python: what shuts a processor down."""


@jit_for_python
def raise_here(
    machine: int, vector: int, kind: int, error_code: int, address: int, length: int
) -> int:
    """`raise_event` on the machine's current VMCS."""
    m = cells(machine, mc.CELLS)
    v = cells(m[mc.V], m[mc.V_CELLS])
    head = cells(m[mc.HEAD], m[mc.HEAD_CELLS])
    rows = table(m[mc.ROWS], m[mc.ROWS_CAPACITY], ROW_WIDTH)
    held = held_for_handler(m, v, kind)
    outcome: int = raise_event(
        v,
        cells(m[mc.R], m[mc.R_CELLS]),
        memory(m[mc.MEM], m[mc.MEM_CELLS], m[mc.WATCH]),
        rows,
        head,
        vector,
        kind,
        error_code,
        address,
        length,
        0,
    )
    if outcome == _EXITED and m[mc.UNBLOCKED] != 0:
        report_unblocking(v, vector, kind, error_code)
    if held != 0 and outcome == _DELIVERED:
        m[mc.HELD_BACK] = 0
        latest = rows[(head[HEAD_SEQUENCE] - 1) % head[HEAD_CAPACITY]]
        if latest[ROW_DEPTH] == 0 and latest[ROW_TYPE] == kind:
            hold_for_trap(v, held)
    if outcome == _DELIVERED and v[f.GUEST_PENDING_DEBUG_EXCEPTIONS] != 0:
        outcome = trap_behind_delivery(m, v)
    return outcome


@jit
def held_for_handler(m: Cells, v: Cells, kind: int) -> int:
    """The data breakpoints that MOV SS has met right before a software interrupt, now raised.

    They trap at the handler's first instruction (SDM, "Masking Exceptions and Interrupts When
    Switching Stacks"), and are lost with an instruction that faults.
    """
    if kind not in (TYPE_SOFTWARE_INTERRUPT, TYPE_SOFTWARE_EXCEPTION) or m[mc.HELD_BACK] == 0:
        return 0
    if m[mc.HELD_BACK] != linear_rip(v) + 1:
        return 0
    return int(v[f.GUEST_PENDING_DEBUG_EXCEPTIONS] & DR6_BREAKPOINTS)


@jit
def trap_behind_delivery(m: Cells, v: Cells) -> int:
    """The #DB of breakpoints that a handler's frame has met, as `raise_event` answers.

    The exit of the monitor trap flag comes first; the trap waits for it in the VMCS.
    """
    host = cells(m[mc.HOST], m[mc.V_CELLS])
    trapped = v[f.PRIMARY_PROCESSOR_BASED_CONTROLS] | host[f.PRIMARY_PROCESSOR_BASED_CONTROLS]
    if trapped & ct.PRIMARY_MONITOR_TRAP_FLAG:
        return _DELIVERED
    m[mc.SWITCHED] |= mc.SWITCHED_REGISTERS
    return take_pending_debug(
        v,
        cells(m[mc.R], m[mc.R_CELLS]),
        memory(m[mc.MEM], m[mc.MEM_CELLS], m[mc.WATCH]),
        table(m[mc.ROWS], m[mc.ROWS_CAPACITY], ROW_WIDTH),
        cells(m[mc.HEAD], m[mc.HEAD_CELLS]),
    )


@jit_for_python
def deliver_virtual_interrupt_here(machine: int) -> int:
    """Deliver the virtual interrupt that is recognized; not 0 if that exits."""
    m = cells(machine, mc.CELLS)
    v = cells(m[mc.V], m[mc.V_CELLS])
    mem = memory(m[mc.MEM], m[mc.MEM_CELLS], m[mc.WATCH])
    vector = take_virtual_interrupt(v, mem)
    outcome: int = raise_event(
        v,
        cells(m[mc.R], m[mc.R_CELLS]),
        mem,
        table(m[mc.ROWS], m[mc.ROWS_CAPACITY], ROW_WIDTH),
        cells(m[mc.HEAD], m[mc.HEAD_CELLS]),
        vector,
        0,
        -1,
        0,
        0,
        1,
    )
    if outcome == _DELIVERED and v[f.GUEST_PENDING_DEBUG_EXCEPTIONS] != 0:
        outcome = trap_behind_delivery(m, v)
    return outcome


@jit_for_python
def post_interrupts_here(machine: int) -> int:
    """Post interrupts to the guest of the x86 VMM, which does not run now; 0."""
    m = cells(machine, mc.CELLS)
    n = cells(m[mc.N], m[mc.V_CELLS])
    post_interrupts(n, memory(m[mc.MEM], m[mc.MEM_CELLS], m[mc.WATCH]))
    return 0


@jit_for_python
def walk_here(
    machine: int, v: Cells, rflags: int, linear: int, access: int, user: int
) -> tuple[int, int, int, int]:
    """`paging.walk.walk` in the machine's memory, in machine code, for Python to call."""
    m = cells(machine, mc.CELLS)
    mem = memory(m[mc.MEM], m[mc.MEM_CELLS], m[mc.WATCH])
    return walk(v, rflags, mem, linear, access, user)


@jit_for_python
def entry_written_here(
    machine: int, v: Cells, rflags: int, linear: int, user: int
) -> tuple[int, int]:
    """`decision.frame_filters.entry_written` likewise."""
    m = cells(machine, mc.CELLS)
    mem = memory(m[mc.MEM], m[mc.MEM_CELLS], m[mc.WATCH])
    return entry_written(v, rflags, mem, linear, user)


@jit_for_python
def end_emulated_instruction_here(machine: int) -> int:
    """`emulated.end_emulated_instruction` on VMCS 0; 0."""
    m = cells(machine, mc.CELLS)
    emulated.end_emulated_instruction(
        cells(m[mc.HOST], m[mc.V_CELLS]),
        cells(m[mc.X], vmx.LENGTH),
        cells(m[mc.N], m[mc.V_CELLS]),
    )
    return 0


@jit_for_python
def step_over_here(machine: int, length: int) -> int:
    """`emulated.step_over` on VMCS 0; 0."""
    m = cells(machine, mc.CELLS)
    emulated.step_over(
        cells(m[mc.HOST], m[mc.V_CELLS]),
        cells(m[mc.X], vmx.LENGTH),
        cells(m[mc.N], m[mc.V_CELLS]),
        length,
    )
    return 0


@jit
def execute_here(machine: int, word: int) -> int:
    """`execute` on the machine's current VMCS."""
    m = cells(machine, mc.CELLS)
    outcome: int = execute(
        cells(m[mc.V], m[mc.V_CELLS]),
        cells(m[mc.R], m[mc.R_CELLS]),
        memory(m[mc.MEM], m[mc.MEM_CELLS], m[mc.WATCH]),
        cells(m[mc.X], vmx.LENGTH),
        cells(m[mc.N], m[mc.V_CELLS]),
        word,
        m[mc.TIME] + m[mc.TIME_BIAS],
    )
    return outcome


@jit
def set_timers(m: Cells, v: Cells) -> None:
    """The preemption timer of the VMCS `v`, whose guest is about to run, and the TSC's bias."""
    host = cells(m[mc.HOST], m[mc.V_CELLS])
    m[mc.TIME_BIAS] = 0
    if host[f.PRIMARY_PROCESSOR_BASED_CONTROLS] & ct.PRIMARY_TSC_OFFSETTING:
        m[mc.TIME_BIAS] = host[f.TSC_OFFSET]
    m[mc.NESTED_TIMER_END] = _FOREVER
    if v[f.PIN_BASED_CONTROLS] & ct.PIN_PREEMPTION_TIMER:
        m[mc.NESTED_TIMER_END] = m[mc.TIME] + v[f.VMX_PREEMPTION_TIMER_VALUE]


@jit
def set_clock(m: Cells) -> None:
    """Before a VM entry by the VMM in Python: its preemption timer, and when to stop and look."""
    host = cells(m[mc.HOST], m[mc.V_CELLS])
    pin = host[f.PIN_BASED_CONTROLS]
    primary = host[f.PRIMARY_PROCESSOR_BASED_CONTROLS]
    m[mc.TIMER_END] = _FOREVER
    if pin & ct.PIN_PREEMPTION_TIMER:
        m[mc.TIMER_END] = m[mc.TIME] + host[f.VMX_PREEMPTION_TIMER_VALUE]
    m[mc.BUDGET_END] = m[mc.TIME] + _SLICE
    waiting = 0
    if primary & ct.PRIMARY_INTERRUPT_WINDOW_EXITING:
        waiting = mc.WHEN_INTERRUPTIBLE
    if m[mc.PINS] & mc.PIN_INTERRUPT:
        exiting = pin & ct.PIN_EXTERNAL_INTERRUPT_EXITING
        waiting |= mc.AT_ONCE if exiting else mc.WHEN_INTERRUPTIBLE
    if primary & ct.PRIMARY_NMI_WINDOW_EXITING or m[mc.PINS] & mc.PIN_EVENT:
        waiting |= mc.AT_ONCE
    m[mc.ATTENTION] = waiting
    set_deadline(m)
    if waiting != 0:
        m[mc.DEADLINE] = 0


@jit
def look_ahead(m: Cells) -> None:
    """When the engine has to stop and look, with the VMCS now in force."""
    host = cells(m[mc.HOST], m[mc.V_CELLS])
    v = cells(m[mc.V], m[mc.V_CELLS])
    primary = v[f.PRIMARY_PROCESSOR_BASED_CONTROLS]
    awaited = host[f.PRIMARY_PROCESSOR_BASED_CONTROLS] & ct.PRIMARY_INTERRUPT_WINDOW_EXITING
    waiting = 0
    if primary & ct.PRIMARY_INTERRUPT_WINDOW_EXITING:
        waiting = mc.WHEN_INTERRUPTIBLE
    if awaited or m[mc.PINS] & mc.PIN_INTERRUPT:
        exiting = v[f.PIN_BASED_CONTROLS] & ct.PIN_EXTERNAL_INTERRUPT_EXITING
        waiting |= mc.AT_ONCE if exiting else mc.WHEN_INTERRUPTIBLE
    if primary & ct.PRIMARY_NMI_WINDOW_EXITING or m[mc.PINS] & mc.PIN_EVENT:
        waiting |= mc.AT_ONCE
    if has_virtual_interrupt(v, memory(m[mc.MEM], m[mc.MEM_CELLS], m[mc.WATCH])):
        waiting |= mc.WHEN_INTERRUPTIBLE
    m[mc.ATTENTION] = waiting
    set_deadline(m)
    if waiting != 0 or m[mc.STEPPING] != 0:
        # What was executed alone ends at the next block.
        m[mc.DEADLINE] = 0


@jit
@inlined
def put_in_force(m: Cells, address: int) -> None:
    """Put the VMCS at `address` in force."""
    m[mc.V] = address
    m[mc.SWITCHED] |= mc.SWITCHED_VMCS | mc.SWITCHED_SPACE
    if m[mc.STEPPING] != 0:
        m[mc.STEPPING] = mc.STEP_EVENT
    look_ahead(m)


@jit
def leave_here(machine: int) -> int:
    """The VM exit that N records, to the x86 VMM; what the run does next."""
    m = cells(machine, mc.CELLS)
    # It may go through that VMM's IDT, in its address space.
    walk_always(m)
    host = cells(m[mc.HOST], m[mc.V_CELLS])
    n = cells(m[mc.N], m[mc.V_CELLS])
    timer = m[mc.NESTED_TIMER_END] - m[mc.TIME]
    abort = leave_guest(
        cells(m[mc.X], vmx.LENGTH),
        host,
        n,
        cells(m[mc.R], m[mc.R_CELLS]),
        memory(m[mc.MEM], m[mc.MEM_CELLS], m[mc.WATCH]),
        cells(m[mc.HEAD], m[mc.HEAD_CELLS]),
        m[mc.TIME] + m[mc.TIME_BIAS],
        min(max(timer, 0), 0xFFFF_FFFF),
    )
    m[mc.TIME_BIAS] = 0
    m[mc.NESTED_TIMER_END] = _FOREVER
    put_in_force(m, m[mc.HOST])
    if abort != 0:
        vm_exit(host, _ABORT_EXIT, 0, 0)
        return mc.EXITED
    return mc.RUNNING


@jit
def enter_from_here(machine: int) -> int:
    """The VM entry that an x86 VMM asks for; what the run does next."""
    m = cells(machine, mc.CELLS)
    walk_always(m)
    host = cells(m[mc.HOST], m[mc.V_CELLS])
    n = cells(m[mc.N], m[mc.V_CELLS])
    x = cells(m[mc.X], vmx.LENGTH)
    head = cells(m[mc.HEAD], m[mc.HEAD_CELLS])
    head[2] = m[mc.TIME]
    outcome = enter_guest(
        x,
        host,
        n,
        cells(m[mc.R], m[mc.R_CELLS]),
        memory(m[mc.MEM], m[mc.MEM_CELLS], m[mc.WATCH]),
        table(m[mc.ROWS], m[mc.ROWS_CAPACITY], ROW_WIDTH),
        head,
    )
    if outcome == FAILED:
        fail(x, host, n, x[vmx.INSTRUCTION], x[vmx.ERROR])
        advance(host, x[vmx.ENTRY_LENGTH])
        return mc.RUNNING
    set_timers(m, n)
    if outcome == EXITED:
        return leave_here(machine)
    put_in_force(m, m[mc.N])
    if n[f.GUEST_ACTIVITY_STATE] != 0:
        return mc.HALTED
    return mc.RUNNING


@callback(INT64, INT64)
def enter_from_here_c(machine: int) -> int:
    """See `enter_from_here`."""
    return enter_from_here(machine)


@callback(INT64, INT64)
def leave_here_c(machine: int) -> int:
    """See `leave_here`."""
    return leave_here(machine)


@callback(INT64, INT64, INT64, INT64, INT64, INT64, INT64)
def raise_event_c(
    machine: int, vector: int, kind: int, error_code: int, address: int, length: int
) -> int:
    """See `raise_here`."""
    return raise_here(machine, vector, kind, error_code, address, length)


@callback(INT64, INT64, INT64)
def execute_c(machine: int, word: int) -> int:
    """See `execute_here`."""
    return execute_here(machine, word)
