"""What the engine calls about instructions and exceptions: callbacks, thin shells of `dispatch`."""

from trapgate.compiler.dialect import Cells
from trapgate.compiler.kinds import INT32, INT64, UINT32, VOID
from trapgate.compiler.program import callback, jit
from trapgate.compiler.raw import call, cells, memory, peek16, peek32, peek64, poke32, poke64
from trapgate.engine import machine as mc
from trapgate.engine.dispatch import (
    arbitrate,
    dispatch,
    execute_in_core,
    load_state_in_force,
    pass_exit_to_x86_vmm,
    state_begin,
    state_end,
)
from trapgate.engine.guest.state import save
from trapgate.engine.library import layout as at
from trapgate.engine.memory.audit import is_stale
from trapgate.engine.memory.translations import use_translations, walk_always
from trapgate.engine.translator.blocks import check_block, must_stop, note_block, time_is_up
from trapgate.events.breakpoints import watches_ports
from trapgate.instructions import polled_ports
from trapgate.instructions.fast_calls import syscall, sysenter
from trapgate.instructions.intercepts import GO_ON, RAISE_UD, io_exits
from trapgate.sdm import cells as f
from trapgate.sdm import vmx
from trapgate.sdm.state import (
    BLOCKING_BY_MOV_SS,
    RFLAGS_IOPL_SHIFT,
    RFLAGS_RF,
    RFLAGS_TF,
    RFLAGS_VM,
)


@jit
def handle_exception(machine: int, number: int) -> None:
    """Deal with the engine's exception `number`, and let the guest continue or stop the engine."""
    m = cells(machine, mc.CELLS)
    env = state_begin(m)
    poke32(env + at.EXCEPTION_IS_INT, 0)
    code = number - at.EXCP_VMEXIT
    v = cells(m[mc.V], m[mc.V_CELLS])
    r = cells(m[mc.R], m[mc.R_CELLS])
    save(m, env, v, r)
    stop = mc.BROKEN
    if code >= 0:
        info = peek32(env + at.ERROR_CODE)
        use_translations(m)
        stop = dispatch(m, env, v, r, code, info)
        walk_always(m)
    if stop == mc.RUNNING:
        load_state_in_force(m, env, r)
        state_end(m)
        # Deliveries alone can continue for ever, where no handler can be fetched; no block
        # begins then, so the clock has to move and be looked at here.
        if m[mc.TIME] == m[mc.EVENT_TIME]:
            m[mc.TIME] += 1
            if m[mc.TIME] >= min(m[mc.TIMER_END], m[mc.NESTED_TIMER_END], m[mc.BUDGET_END]):
                stop = time_is_up(m)
        m[mc.EVENT_TIME] = m[mc.TIME]
    if stop != mc.RUNNING:
        m[mc.STOP] = stop
        call(m[mc.EMU_STOP], (m[mc.UC],))


@callback(VOID, INT64, UINT32, INT64)
def on_interrupt(uc: int, number: int, user: int) -> None:
    """UC_HOOK_INTR: every exception and every intercepted instruction arrives here."""
    handle_exception(user, number)


@callback(VOID, INT64, INT64, UINT32, INT64)
def on_block(uc: int, address: int, size: int, user: int) -> None:
    """UC_HOOK_BLOCK: the virtual clock, and where time can run out (portable only)."""
    m = cells(user, mc.CELLS)
    if m[mc.AUDIT] != 0 and is_stale(m, m[mc.LIVE], 0, address, size):
        call(m[mc.EMU_STOP], (uc,))
        return
    if m[mc.TIME] >= m[mc.DEADLINE] and must_stop(m):
        call(m[mc.EMU_STOP], (uc,))
        return
    blocks = cells(m[mc.BLOCKS], 2 * mc.BLOCK_SLOTS)
    slot = ((address ^ address >> 16) & (mc.BLOCK_SLOTS - 1)) * 2
    if blocks[slot] == address ^ size << 48:
        # Where translated code counts, this would be the second time.
        m[mc.TIME] += blocks[slot + 1] if m[mc.CPU] == 0 else 0
    elif check_block(m, address, size, slot):
        call(m[mc.EMU_STOP], (uc,))


@callback(VOID, INT64, INT64, INT64, INT64)
def on_new_block(uc: int, block: int, previous: int, user: int) -> None:
    """UC_HOOK_EDGE_GENERATED: how many instructions a new block has (portable)."""
    m = cells(user, mc.CELLS)
    m[mc.NEW_BLOCKS_TOLD] = 1
    note_block(m, peek64(block), peek16(block + 10), peek16(block + 8))


@callback(VOID, INT64, INT64, UINT32, INT64)
def on_port(uc: int, address: int, size: int, user: int) -> None:
    """UC_HOOK_CODE, at instructions of input and output: stop before them (portable only)."""
    m = cells(user, mc.CELLS)
    m[mc.STOP] = mc.PORT
    m[mc.STOP_INFO] = address
    call(m[mc.EMU_STOP], (uc,))


@callback(VOID, INT64, INT64, UINT32, INT64)
def on_debugger_breakpoint(uc: int, address: int, size: int, user: int) -> None:
    """UC_HOOK_CODE, at a debugger's breakpoints: stop before the instruction.

    To the VMM it looks as if the preemption timer had expired.
    """
    m = cells(user, mc.CELLS)
    if m[mc.DEBUG_SKIP] == address + 1:
        m[mc.DEBUG_SKIP] = 0
        return
    m[mc.DEBUG_SKIP] = 0
    if m[mc.STEPPING] != 0:
        return
    m[mc.DEBUG_HIT] = address + 1
    m[mc.STOP] = mc.TIMER
    # The engine leaves the block as if the instruction were done.
    m[mc.TIME] -= 1 if m[mc.CPU] != 0 else 0
    call(m[mc.EMU_STOP], (uc,))


@jit
def slot_at_once(m: Cells, port: int, size: int, is_in: bool, value: int) -> int:
    """The slot that answers an access while the block continues; -1: stop there, and do it all.

    What the core would find out about the instruction, that it is permitted and exits, is asked of
    the live state. An access that takes time has to end its block.
    """
    env = m[mc.ENV]
    flags = peek64(env + at.EFLAGS)
    free = (
        m[mc.PORTS] != 0
        and m[mc.V] == m[mc.HOST]
        and cells(m[mc.X], vmx.LENGTH)[vmx.GUEST_IN_VMCS0] == 0
        and m[mc.STEPPING] | m[mc.CHECKS] == 0
        and flags & (RFLAGS_TF | RFLAGS_VM) == 0
        and not watches_ports(cells(m[mc.V], m[mc.V_CELLS]))
        and peek32(env + at.HFLAGS) & 3 <= (flags >> RFLAGS_IOPL_SHIFT) & 3
    )
    if not free:
        return -1
    p = cells(m[mc.PORTS], polled_ports.LENGTH)
    slot = polled_ports.slot_of(p, polled_ports.access(port, size, is_in), 0, value)
    if slot < 0 or p[slot + polled_ports.WAIT] != 0:
        return -1
    mem = memory(m[mc.MEM], m[mc.MEM_CELLS], m[mc.WATCH])
    return slot if io_exits(cells(m[mc.V], m[mc.V_CELLS]), mem, port, size) else -1


@callback(UINT32, INT64, UINT32, INT32, INT64)
def on_in(uc: int, port: int, size: int, user: int) -> int:
    """UC_HOOK_INSN, IN and INS: instead of the engine's doing."""
    m = cells(user, mc.CELLS)
    slot = slot_at_once(m, port, size, True, 0)
    if slot >= 0:
        return polled_ports.load(cells(m[mc.PORTS], polled_ports.LENGTH), slot, 0)
    execute_in_core(m)
    return 0


@callback(VOID, INT64, UINT32, INT32, UINT32, INT64)
def on_out(uc: int, port: int, size: int, value: int, user: int) -> None:
    """UC_HOOK_INSN, OUT and OUTS: instead of the engine's doing."""
    m = cells(user, mc.CELLS)
    slot = slot_at_once(m, port, size, False, value)
    if slot >= 0:
        polled_ports.store(cells(m[mc.PORTS], polled_ports.LENGTH), slot, 0, value)
        return
    execute_in_core(m)


@jit
def end_hooked_call(m: Cells, env: int, v: Cells, r: Cells, outcome: int) -> None:
    """After a fast system call in a hook; the engine is about to add 2 to RIP (portable only)."""
    stop = mc.RUNNING
    if outcome == RAISE_UD:
        stop = arbitrate(m, v, r, 6, 3, -1, 0, 0)
    elif outcome != GO_ON:
        stop = arbitrate(m, v, r, 13, 3, 0, 0, 0)
    stop = pass_exit_to_x86_vmm(m, stop)
    if stop != mc.RUNNING:
        m[mc.STOP] = stop
        call(m[mc.EMU_STOP], (m[mc.UC],))
        return
    v = cells(m[mc.V], m[mc.V_CELLS])
    v[f.GUEST_RIP] -= 2
    load_state_in_force(m, env, r)
    v[f.GUEST_RIP] += 2
    state_end(m)


@callback(VOID, INT64, INT64)
def on_syscall_hook(uc: int, user: int) -> None:
    """UC_HOOK_INSN, SYSCALL (portable only)."""
    m = cells(user, mc.CELLS)
    env = state_begin(m)
    v = cells(m[mc.V], m[mc.V_CELLS])
    r = cells(m[mc.R], m[mc.R_CELLS])
    save(m, env, v, r)
    end_hooked_call(m, env, v, r, syscall(v, r, 2))


@callback(VOID, INT64, INT64)
def on_sysenter_hook(uc: int, user: int) -> None:
    """UC_HOOK_INSN, SYSENTER (portable only)."""
    m = cells(user, mc.CELLS)
    env = state_begin(m)
    v = cells(m[mc.V], m[mc.V_CELLS])
    r = cells(m[mc.R], m[mc.R_CELLS])
    save(m, env, v, r)
    end_hooked_call(m, env, v, r, sysenter(v))


@jit
def breakpoint_hit(cpu: int) -> None:
    """A breakpoint on execution: #DB with its causes.

    The engine's own handler compares DR0-DR3 with the offset in CS, not with the linear
    address, and where CS has a base it lets the processor go round for ever.
    """
    env = cpu + at.CPU_SIZE
    m = cells(peek64(env + at.MACHINE), mc.CELLS)
    linear = peek64(env + at.EIP)
    hflags = peek32(env + at.HFLAGS)
    if hflags & at.HF_CS64 == 0:
        linear = (linear + peek64(env + at.SEGMENTS + at.SEGMENT_SIZE + at.BASE)) & 0xFFFFFFFF
    if hflags & at.HF_INHIBIT_IRQ and m[mc.SHADOW] & BLOCKING_BY_MOV_SS:
        # SDM, "MOV": the next instruction's breakpoint is suppressed. RF suppresses it here.
        m[mc.PASSED] = linear + 1
        poke64(env + at.EFLAGS, peek64(env + at.EFLAGS) | RFLAGS_RF)
        poke32(m[mc.EXCEPTION_INDEX], -1)
        call(m[mc.CPU_LOOP_EXIT], (cpu,))
    dr7 = peek64(env + at.DR7)
    causes = 0
    for n in range(4):
        if dr7 & 3 << (2 * n) and peek64(env + at.DR0 + 8 * n) == linear:
            causes |= 1 << n
    poke64(env + at.DR6, 0xFFFF0FF0 | causes)
    poke32(env + at.ERROR_CODE, 0)
    poke32(m[mc.EXCEPTION_INDEX], at.EXCP_VMEXIT + at.SVM_EXCEPTION + 1)
    if causes == 0:
        m[mc.STOP] = mc.BROKEN
        m[mc.STOP_CODE] = at.SVM_EXCEPTION + 1
        call(m[mc.EMU_STOP], (m[mc.UC],))
        poke32(m[mc.EXCEPTION_INDEX], at.EXCP_INTERRUPT)
    call(m[mc.CPU_LOOP_EXIT], (cpu,))


@callback(VOID, INT64)
def on_breakpoint(cpu: int) -> None:
    """CPUClass.debug_excp_handler: see `breakpoint_hit`."""
    breakpoint_hit(cpu)
