"""What runs the engine: compiled loops from one reason to stop to the next, for Python to call."""

from trapgate.compiler.dialect import Cells
from trapgate.compiler.program import jit, jit_for_python
from trapgate.compiler.raw import call, cells, memory, peek32, peek64, poke32, poke64, table
from trapgate.engine import core_calls, dispatch
from trapgate.engine import machine as mc
from trapgate.engine.guest.fetched_code import linear_rip
from trapgate.engine.guest.state import save, segment_shape
from trapgate.engine.guest.stuck_bits import force_saved_bits
from trapgate.engine.library import layout as at
from trapgate.engine.memory import coherence
from trapgate.events.exits import vm_exit
from trapgate.events.journal import ROW_WIDTH
from trapgate.paging.memory import note_page
from trapgate.sdm import cells as f
from trapgate.sdm import registers, vmx
from trapgate.sdm.controls import PRIMARY_MONITOR_TRAP_FLAG
from trapgate.sdm.interruption import TYPE_OTHER_EVENT
from trapgate.sdm.reasons import REASON_MONITOR_TRAP_FLAG
from trapgate.vmx.entry import FAILED, enter

_PREEMPTION_TIMER = 52
_DR6_BITS = 0x400F
_FLUSH_TB = 1 << 30 | 10
"""Unicorn's control of that name, to be written, without arguments."""


@jit
def execute_alone(m: Cells, env: int, v: Cells) -> int:
    """Let the next block have one instruction (portable path); what to limit the engine's count to.

    Where STI or a load of SS inhibits interrupts the engine's blocks have one instruction, and it
    keeps them apart from all others, so nothing has to be translated again. An instruction that
    inhibits interrupts itself would not do so then. The engine counts for that one, and
    forgets all translations.
    """
    hflags = peek32(env + at.HFLAGS)
    if hflags & at.HF_INHIBIT_IRQ:
        return 0
    if dispatch.inhibits_interrupts(m, v):
        call(m[mc.UC_CTL], (m[mc.UC], _FLUSH_TB))
        return 1
    poke32(env + at.HFLAGS, hflags | at.HF_INHIBIT_IRQ)
    m[mc.ALONE] = 1
    return 0


@jit
def run(m: Cells, env: int, v: Cells, r: Cells, emu_start: int) -> int:
    """Run the engine from the state in `v` and `r`; the engine's error."""
    m[mc.STOP] = mc.RUNNING
    m[mc.RESTORED] = 0
    m[mc.SWITCHED] |= mc.SWITCHED_VMCS
    dispatch.load_state_in_force(m, env, r)
    # Between runs the engine keeps all flags in one word, and takes them apart itself.
    poke64(env + at.EFLAGS, v[f.GUEST_RFLAGS])
    count = 0
    if m[mc.STEPPING] != 0:
        m[mc.STEP_START] = linear_rip(v)
        if m[mc.NATIVE] == 0:
            count = execute_alone(m, env, v)
    dispatch.state_end(m)
    return call(emu_start, (m[mc.UC], peek64(env + at.EIP), 0, 0, count))


@jit_for_python
def run_until_stopped(machine: int, emu_start: int) -> int:
    """Run the guest whose state lies in the VMCS until the engine stops; the engine's error."""
    m = cells(machine, mc.CELLS)
    r = cells(m[mc.R], m[mc.R_CELLS])
    env = m[mc.ENV]
    error = 0
    exited = m[mc.STOP] == mc.EXITED and m[mc.V] != m[mc.HOST]
    if exited and dispatch.pass_exit_to_x86_vmm(m, mc.EXITED) != mc.RUNNING:
        return 0
    m[mc.STOP] = mc.PORT
    v = cells(m[mc.V], m[mc.V_CELLS])
    while m[mc.STOP] in (mc.PORT, mc.NESTED_TIMER):
        due = m[mc.APIC_EXIT]
        if (
            m[mc.STOP] == mc.NESTED_TIMER
            or due != 0
            or (v[f.GUEST_ACTIVITY_STATE] in (1, 2) and m[mc.TIME] >= m[mc.NESTED_TIMER_END])
        ):
            if due == 0:
                vm_exit(v, _PREEMPTION_TIMER, 0, 0)
            else:
                vm_exit(v, due & 0xFFFF, due >> 16, 0)
                m[mc.NESTED_TIMER_END] = m[mc.KEPT_TIMER_END]
                m[mc.APIC_EXIT] = 0
            m[mc.STOP] = dispatch.pass_exit_to_x86_vmm(m, mc.EXITED)
            if m[mc.STOP] != mc.RUNNING:
                return 0
            v = cells(m[mc.V], m[mc.V_CELLS])
        if v[f.GUEST_ACTIVITY_STATE] != 0:
            m[mc.STOP] = mc.HALTED
            return 0
        error = run(m, env, v, r, emu_start)
        # Hooks may have put another VMCS in force.
        v = cells(m[mc.V], m[mc.V_CELLS])
        if m[mc.STOP] == mc.NESTED_TIMER:
            save(m, dispatch.state_begin(m), v, r)
        elif m[mc.STOP] == mc.PORT:
            save(m, dispatch.state_begin(m), v, r)
            stop = dispatch.port(m, env, v, r)
            v = cells(m[mc.V], m[mc.V_CELLS])
            if stop != mc.RUNNING:
                m[mc.STOP] = stop
                return error
            if m[mc.STEPPING] != 0:
                m[mc.STOP] = mc.STEPPED
                return error
    stop = m[mc.STOP]
    if stop == mc.RUNNING or (stop >= mc.TIMER and stop not in (mc.HALTED, mc.EXPLAIN)):
        save(m, dispatch.state_begin(m), v, r)
    if stop == mc.TIMER:
        # An exit to the VMM in Python, whoever's guest was running.
        if m[mc.V] != m[mc.HOST]:
            dispatch.move_to_vmcs0(m)
        vm_exit(cells(m[mc.HOST], m[mc.V_CELLS]), _PREEMPTION_TIMER, 0, 0)
        m[mc.STOP] = mc.EXITED
        m[mc.STOP_CODE] = 0
    if stop == mc.RUNNING:
        if m[mc.STEPPING] != 0 and error == 0:
            m[mc.STOP] = mc.STEPPED
        else:
            m[mc.STOP] = mc.BROKEN
            m[mc.STOP_INFO] = error
    return error


@jit_for_python
def step(machine: int, emu_start: int) -> int:
    """Execute one instruction; whether it was (1), or an event was dealt with instead (0).

    STOP is STEPPED, or what else stopped the engine.
    """
    m = cells(machine, mc.CELLS)
    m[mc.STEPPING] = mc.STEP_DUE
    m[mc.STEP_CAUSES] = 0
    m[mc.DEADLINE] = 0
    time = m[mc.TIME]
    if m[mc.NATIVE] != 0:
        poke32(m[mc.CPU] + at.CFLAGS_NEXT_TB, 1)
    run_until_stopped(machine, emu_start)
    done = m[mc.STEPPING] != mc.STEP_EVENT
    m[mc.STEPPING] = 0
    again = m[mc.STOP_CODE] in (mc.CHECK_NEXT, mc.CHECK_NO_PORT)
    m[mc.TIME] = time if m[mc.STOP] == mc.CHECKED and again else time + 1
    return 1 if done else 0


@jit
def resume_x86_guest(m: Cells) -> int:
    """Continue with the x86 VMM's guest after the VMM in Python has served it; RUNNING or EXITED.

    What that VMM injects is an event like any other to the VMCS of the x86 VMM.
    """
    host = cells(m[mc.HOST], m[mc.V_CELLS])
    r = cells(m[mc.R], m[mc.R_CELLS])
    dispatch.move_from_vmcs0(m)
    m[mc.TIME_BIAS] = 0
    if host[f.PRIMARY_PROCESSOR_BASED_CONTROLS] & 1 << 3:
        m[mc.TIME_BIAS] = host[f.TSC_OFFSET]
    core_calls.look_ahead(m)
    info = host[f.VM_ENTRY_INTERRUPTION_INFORMATION]
    v = cells(m[mc.V], m[mc.V_CELLS])
    if info & 1 << 31 == 0:
        causes = v[f.GUEST_PENDING_DEBUG_EXCEPTIONS] & _DR6_BITS
        if causes == 0 or v[f.GUEST_INTERRUPTIBILITY_STATE] & 2:
            return mc.RUNNING
        v[f.GUEST_PENDING_DEBUG_EXCEPTIONS] = 0
        return dispatch.arbitrate(m, v, r, 1, 3, -1, causes, 0)
    host[f.VM_ENTRY_INTERRUPTION_INFORMATION] = info & ~(1 << 31)
    if (info >> 8) & 7 == TYPE_OTHER_EVENT:
        # The trap is the x86 VMM's, if it has asked for it, or else that of the VMM in Python.
        if v[f.PRIMARY_PROCESSOR_BASED_CONTROLS] & PRIMARY_MONITOR_TRAP_FLAG == 0:
            dispatch.move_to_vmcs0(m)
            v = host
        vm_exit(v, REASON_MONITOR_TRAP_FLAG, 0, 0)
        return mc.EXITED
    error_code = host[f.VM_ENTRY_EXCEPTION_ERROR_CODE] if info & 1 << 11 else -1
    vector = info & 0xFF
    kind = (info >> 8) & 7
    address = r[registers.CR2] if vector == 14 and kind == 3 else 0
    length = host[f.VM_ENTRY_INSTRUCTION_LENGTH]
    return dispatch.arbitrate(m, v, r, vector, kind, error_code, address, length)


@jit_for_python
def enter_and_run(machine: int, emu_start: int) -> int:
    """VM entry, then the guest; -1 if the entry itself ended it, else as `go`."""
    m = cells(machine, mc.CELLS)
    core_calls.set_clock(m)
    head = cells(m[mc.HEAD], m[mc.HEAD_CELLS])
    head[2] = m[mc.TIME]
    x = cells(m[mc.X], vmx.LENGTH)
    force_saved_bits(m, cells(m[mc.V], m[mc.V_CELLS]), cells(m[mc.R], m[mc.R_CELLS]))
    if x[vmx.GUEST_IN_VMCS0] != 0:
        m[mc.STOP] = resume_x86_guest(m)
        if m[mc.STOP] == mc.EXITED and m[mc.V] == m[mc.HOST]:
            return -1
        return run_until_stopped(machine, emu_start)
    outcome = enter(
        cells(m[mc.V], m[mc.V_CELLS]),
        cells(m[mc.R], m[mc.R_CELLS]),
        memory(m[mc.MEM], m[mc.MEM_CELLS], m[mc.WATCH]),
        table(m[mc.ROWS], m[mc.ROWS_CAPACITY], ROW_WIDTH),
        head,
    )
    if outcome != 0:
        m[mc.STOP] = mc.EXITED
        m[mc.STOP_CODE] = mc.FAILED_VALID if outcome == FAILED else outcome
        return -1
    m[mc.STOP] = mc.RUNNING
    return run_until_stopped(machine, emu_start)


@jit_for_python
def move_state_to_vmcs0(machine: int) -> int:
    """See `dispatch.move_to_vmcs0`; 0."""
    dispatch.move_to_vmcs0(cells(machine, mc.CELLS))
    return 0


@jit_for_python
def move_state_from_vmcs0(machine: int) -> int:
    """See `dispatch.move_from_vmcs0`; 0."""
    dispatch.move_from_vmcs0(cells(machine, mc.CELLS))
    return 0


@jit_for_python
def set_clock_now(machine: int) -> int:
    """See `core_calls.set_clock`; 0."""
    core_calls.set_clock(cells(machine, mc.CELLS))
    return 0


@jit_for_python
def look_ahead_now(machine: int) -> int:
    """See `core_calls.look_ahead`; 0."""
    core_calls.look_ahead(cells(machine, mc.CELLS))
    return 0


@jit_for_python
def shape_now(machine: int) -> int:
    """`segment_shape` of the current VMCS."""
    m = cells(machine, mc.CELLS)
    return segment_shape(cells(m[mc.V], m[mc.V_CELLS]))


@jit_for_python
def flush(machine: int) -> int:
    """Flush the engine's TLB; 0."""
    m = cells(machine, mc.CELLS)
    return call(m[mc.TLB_FLUSH], (m[mc.CPU],))


@jit_for_python
def invalidate_code(machine: int, start: int, end: int) -> int:
    """Drop what was translated from physical [start, end); 0."""
    m = cells(machine, mc.CELLS)
    pages = coherence.pages_of(m)
    for page in range(start >> 12, min((end + 0xFFF) >> 12, len(pages))):
        note_page(coherence.watch_of(m), len(pages), page)
        if pages[page] & coherence.CODE:
            coherence.forget_range(m, max(start, page << 12), min(end, (page + 1) << 12))
    return 0
