"""What to do about an event of the running guest: the compiled decisions behind the hooks.

Compiled only; nothing here may raise. A fault is arbitrated on the spot and the guest
goes on at its handler; only VM exits and instructions that Python must decode stop
the engine.
"""

from numba import carray

from trapgate import execute as ex
from trapgate import intercepts as ix
from trapgate.core import Cells
from trapgate.engine import layout as at
from trapgate.engine import machine as mc
from trapgate.engine.compiled import compiled, jit
from trapgate.engine.raw import call, peek32, peek64, pointer, poke32, poke64
from trapgate.engine.state import (
    load,
    arm,
    head_of,
    mem_of,
    r_of,
    rows_of,
    save,
    v_of,
)
from trapgate.sdm import cells as f

_raise_event = compiled("raise_event")
_execute = compiled("execute")
_prefix_length = compiled("prefix_length")
walk = compiled("walk")
_load8 = compiled("load8")

_HAS_CODE = 0x27D00
"""Exceptions with an error code: 8, 10-14, 17 (SDM, "Exception and Interrupt Reference")."""

_DEBUG_CAUSES = 0xE00F
_SINGLE_STEP = 1 << 14
_GENERAL_DETECT = 1 << 13
_TF = 1 << 8
_MIXED = 16
"""How often a page may turn between code and data before it counts as both."""


@jit
def fetch(m: Cells, v: Cells, count: int) -> tuple[int, int]:
    """Up to eight bytes of code at RIP, little endian, and how many of them are readable."""
    mem = mem_of(m)
    rip = v[f.GUEST_RIP]
    linear = rip
    if v[f.GUEST_CS_ACCESS_RIGHTS] & 1 << 13 == 0 or v[f.GUEST_IA32_EFER] & 1 << 10 == 0:
        linear = (v[f.GUEST_CS_BASE] + rip) & 0xFFFFFFFF
    user = 1 if (v[f.GUEST_SS_ACCESS_RIGHTS] >> 5) & 3 == 3 else 0
    word = 0
    page = -1
    physical = 0
    for n in range(count):
        here = linear + n
        if here >> 12 != page:
            physical, code, _, _ = walk(
                v[f.GUEST_CR0],
                v[f.GUEST_CR3],
                v[f.GUEST_CR4],
                v[f.GUEST_IA32_EFER],
                v[f.GUEST_RFLAGS],
                mem,
                here,
                2,
                user,
            )
            if code >= 0:
                return word, n
            page = here >> 12
            physical &= ~0xFFF
        word |= _load8(mem, physical | (here & 0xFFF)) << (8 * n)
    return word, count


@jit
def forget_code_under_stack(m: Cells, v: Cells) -> None:
    """Delivery stores past the engine: translated code on the stack's page is stale."""
    linear = v[f.GUEST_RSP]
    if v[f.GUEST_IA32_EFER] & 1 << 10 == 0:
        linear = (linear + v[f.GUEST_SS_BASE]) & 0xFFFFFFFF
    physical, code, _, _ = walk(
        v[f.GUEST_CR0],
        v[f.GUEST_CR3],
        v[f.GUEST_CR4],
        v[f.GUEST_IA32_EFER],
        0x40000,
        mem_of(m),
        linear,
        0,
        0,
    )
    page = physical >> 12
    if code < 0 and 0 <= page < m[mc.MEM_CELLS] >> 9:
        pages = carray(pointer(m[mc.PAGES]), m[mc.MEM_CELLS] >> 9)
        if pages[page] & 1:
            call(m[mc.TB_INVALIDATE], (m[mc.UC], page << 12, (page + 1) << 12))


@jit
def arbitrate(
    m: Cells, v: Cells, r: Cells, vector: int, kind: int, error_code: int, address: int, length: int
) -> int:
    """One event of the guest's; what the run does next."""
    head = head_of(m)
    head[2] = m[mc.TIME]
    outcome = _raise_event(
        v, r, mem_of(m), rows_of(m), head, vector, kind, error_code, address, length, 0
    )
    if outcome != 0:
        return mc.EXITED
    if m[mc.NATIVE] != 0:
        forget_code_under_stack(m, v)
    return mc.RUNNING


@jit
def carry_out(m: Cells, v: Cells, r: Cells, word: int) -> int:
    """A sensitive instruction; what the run does next."""
    stepping = v[f.GUEST_RFLAGS] & _TF
    outcome = _execute(v, r, mem_of(m), word, m[mc.TIME])
    if outcome == ex.GO_ON:
        if stepping:
            return arbitrate(m, v, r, 1, 3, -1, _SINGLE_STEP, 0)
        return mc.RUNNING
    if outcome == ex.EXITED:
        return mc.EXITED
    if outcome == ex.HALTED:
        return mc.HALTED
    if outcome == ix.RAISE_UD:
        return arbitrate(m, v, r, 6, 3, -1, 0, 0)
    if outcome == ix.RAISE_GP:
        return arbitrate(m, v, r, 13, 3, 0, 0, 0)
    if outcome == ix.RAISE_DB:
        return arbitrate(m, v, r, 1, 3, -1, _GENERAL_DETECT, 0)
    return mc.ASSIST


@jit
def undefined(m: Cells, v: Cells, r: Cells) -> int:
    """#UD by the engine's lights: perhaps an instruction that this processor does have."""
    word, _ = fetch(m, v, 8)
    start = _prefix_length(word, v[f.GUEST_CS_ACCESS_RIGHTS] & 1 << 13 != 0)
    byte = (word >> (8 * start)) & 0xFF
    if byte == 0xF1:
        return arbitrate(m, v, r, 1, 5, -1, 0, start + 1)
    if byte != 0x0F:
        return arbitrate(m, v, r, 6, 3, -1, 0, 0)
    return carry_out(m, v, r, word)


@jit
def interrupted(m: Cells, v: Cells, r: Cells) -> int:
    """INT n, INT3 or INTO, at RIP still."""
    word, _ = fetch(m, v, 8)
    start = _prefix_length(word, v[f.GUEST_CS_ACCESS_RIGHTS] & 1 << 13 != 0)
    byte = (word >> (8 * start)) & 0xFF
    if byte == 0xCC:
        return arbitrate(m, v, r, 3, 6, -1, 0, start + 1)
    if byte == 0xCE:
        return arbitrate(m, v, r, 4, 6, -1, 0, start + 1)
    return arbitrate(m, v, r, (word >> (8 * start + 8)) & 0xFF, 4, -1, 0, start + 2)


@jit
def dispatch(m: Cells, env: int, v: Cells, r: Cells, code: int, info: int) -> int:
    """What to do about the engine's event `code`: RUNNING, or why to stop."""
    m[mc.STOP_CODE] = code
    m[mc.STOP_INFO] = info
    if 0x40 <= code < 0x60:
        vector = code - 0x40
        if vector == 14:
            if m[mc.NATIVE] != 0:
                address = m[mc.FAULT_ADDRESS]
            else:
                address = peek64(m[mc.SCRATCH] + at.VMCB_EXIT_INFO_2)
            return arbitrate(m, v, r, 14, 3, info & 0xFFFF, address, 0)
        if vector == 6:
            return undefined(m, v, r)
        if vector == 1:
            causes = peek64(env + at.DR6) & _DEBUG_CAUSES
            poke64(env + at.DR6, 0xFFFF0FF0)
            return arbitrate(m, v, r, 1, 3, -1, causes, 0)
        error_code = info & 0xFFFF if (_HAS_CODE >> vector) & 1 else -1
        return arbitrate(m, v, r, vector, 3, error_code, 0, 0)
    if code == at.SVM_SOFTWARE_INTERRUPT:
        return interrupted(m, v, r)
    if code == at.SVM_IRET:
        v[f.GUEST_INTERRUPTIBILITY_STATE] &= ~8
        arm(m, env, v)
        return mc.RUNNING
    word, _ = fetch(m, v, 8)
    return carry_out(m, v, r, word)


@jit
def state_begin(m: Cells) -> int:
    """The address of the CPU state: live, or saved for the portable path."""
    if m[mc.NATIVE] != 0:
        return m[mc.ENV]
    # Reading and writing the flags makes the engine evaluate them.
    flags = m[mc.STOP_VALUE :]
    call(m[mc.REG_READ], (m[mc.UC], 25, flags.ctypes.data))
    call(m[mc.REG_WRITE], (m[mc.UC], 25, flags.ctypes.data))
    call(m[mc.CONTEXT_SAVE], (m[mc.UC], m[mc.CONTEXT]))
    return m[mc.ENV]


@jit
def state_end(m: Cells) -> None:
    """Give a patched copy of the state back to the engine."""
    if m[mc.NATIVE] == 0:
        call(m[mc.CONTEXT_RESTORE], (m[mc.UC], m[mc.CONTEXT]))


@jit
def due(m: Cells) -> bool:
    """Whether the run has to stop at this block's start; STOP says why."""
    if m[mc.TIME] >= m[mc.BUDGET_END]:
        m[mc.STOP] = mc.LIMIT
        return True
    if m[mc.TIME] >= m[mc.TIMER_END]:
        m[mc.STOP] = mc.TIMER
        return True
    attention = m[mc.ATTENTION]
    if attention & 1:
        m[mc.STOP] = mc.ATTEND
        return True
    if attention & 2 and m[mc.NATIVE] != 0:
        # Something waits for the guest to be interruptible.
        env = m[mc.ENV]
        if peek64(env + at.EFLAGS) & 0x200 and peek32(env + at.HFLAGS) & at.HF_INHIBIT_IRQ == 0:
            m[mc.STOP] = mc.ATTEND
            return True
    elif attention & 2:
        flags = m[mc.STOP_VALUE :]
        call(m[mc.REG_READ], (m[mc.UC], 25, flags.ctypes.data))
        if m[mc.STOP_VALUE] & 0x200:
            m[mc.STOP] = mc.ATTEND
            return True
    return False


@jit
def instead(m: Cells) -> None:
    """Carry out the instruction at RIP here, and leave the engine's attempt (native only)."""
    env = m[mc.ENV]
    v = v_of(m)
    r = r_of(m)
    save(m, env, v, r)
    stop = dispatch(m, env, v, r, at.SVM_IO, 0)
    if stop == mc.RUNNING:
        load(m, env, v, r)
        poke32(m[mc.EXCEPTION_INDEX], -1)
    else:
        m[mc.STOP] = stop
        call(m[mc.EMU_STOP], (m[mc.UC],))
        poke32(m[mc.EXCEPTION_INDEX], at.EXCP_INTERRUPT)
    call(m[mc.CPU_LOOP_EXIT], (m[mc.CPU],))


@jit
def flat(v: Cells, n: int, selector: int, rights: int) -> None:
    v[f.GUEST_ES_SELECTOR + n] = selector
    v[f.GUEST_ES_BASE + n] = 0
    v[f.GUEST_ES_LIMIT + n] = 0xFFFFFFFF
    v[f.GUEST_ES_ACCESS_RIGHTS + n] = rights


@jit
def share(m: Cells, page: int, access: int, prot: int) -> int:
    """Decide whether `page` is code or data from now on; the protection its entry may have.

    Cells of PAGES: bit 0 code, bit 1 fast-writable data, from bit 8 how often it turned.
    """
    pages = carray(pointer(m[mc.PAGES]), m[mc.MEM_CELLS] >> 9)
    state = pages[page]
    if state >> 8 >= _MIXED:
        pages[page] = state | 1
        return prot
    if access == 2:
        if state & 2:
            state = (state + 0x100) & ~2
            call(m[mc.TLB_FLUSH], (m[mc.CPU],))
        pages[page] = state | 1
        return prot & ~2
    if access == 1 and state & 1:
        state = (state + 0x100) & ~1
        call(m[mc.TB_INVALIDATE], (m[mc.UC], page << 12, (page + 1) << 12))
        call(m[mc.TLB_FLUSH], (m[mc.CPU],))
    if state & 1:
        prot &= ~2
    elif prot & 2:
        state |= 2
    pages[page] = state
    return prot & ~4


@jit
def save_guest(machine: int) -> int:
    """Save the state of the guest into the VMCS and registers; 0."""
    m = carray(pointer(machine), mc.CELLS)
    save(m, state_begin(m), v_of(m), r_of(m))
    return 0
