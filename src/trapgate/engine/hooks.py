"""What the engine calls while a guest runs: compiled callbacks, thin shells of `react`."""

from numba import carray, types

from trapgate.engine import layout as at
from trapgate.engine import machine as mc
from trapgate.engine.compiled import callback
from trapgate.engine.raw import call, peek16, peek32, peek64, poke32, pointer
from trapgate.engine.react import (
    dispatch,
    due,
    flat,
    instead,
    share,
    state_begin,
    state_end,
    walk,
)
from trapgate.engine.state import load, mem_of, r_of, save, v_of
from trapgate.sdm import cells as f
from trapgate.sdm import registers as reg


@callback(types.void, types.int64, types.uint32, types.int64)
def on_interrupt(uc, number, user):
    """UC_HOOK_INTR: every exception and every intercepted instruction arrives here."""
    m = carray(pointer(user), mc.CELLS)
    env = state_begin(m)
    poke32(env + at.EXCEPTION_IS_INT, 0)
    code = types.int64(number) - at.EXCP_VMEXIT
    v = v_of(m)
    r = r_of(m)
    save(m, env, v, r)
    stop = mc.BROKEN
    if code >= 0:
        info = peek32(env + at.ERROR_CODE)
        stop = dispatch(m, env, v, r, code, info)
    if stop == mc.RUNNING:
        load(m, env, v, r)
        state_end(m)
    else:
        m[mc.STOP] = stop
        call(m[mc.EMU_STOP], (m[mc.UC],))


@callback(types.void, types.int64, types.int64, types.uint32, types.int64)
def on_block(uc, address, size, user):
    """UC_HOOK_BLOCK: the virtual clock, and the one place where time can run out."""
    m = carray(pointer(user), mc.CELLS)
    if m[mc.TIME] >= m[mc.DEADLINE] and due(m):
        call(m[mc.EMU_STOP], (uc,))
        return
    blocks = carray(pointer(m[mc.BLOCKS]), 2 * mc.BLOCK_SLOTS)
    slot = ((address ^ address >> 16) & (mc.BLOCK_SLOTS - 1)) * 2
    if blocks[slot] == address ^ types.int64(size) << 48:
        m[mc.TIME] += blocks[slot + 1]
    else:
        m[mc.TIME] += (types.int64(size) + 3) >> 2


@callback(types.void, types.int64, types.int64, types.int64, types.int64)
def on_new_block(uc, block, previous, user):
    """UC_HOOK_EDGE_GENERATED: how many instructions a new block has."""
    m = carray(pointer(user), mc.CELLS)
    address = peek64(block)
    blocks = carray(pointer(m[mc.BLOCKS]), 2 * mc.BLOCK_SLOTS)
    slot = ((address ^ address >> 16) & (mc.BLOCK_SLOTS - 1)) * 2
    blocks[slot] = address ^ peek16(block + 10) << 48
    blocks[slot + 1] = peek16(block + 8)


@callback(types.uint32, types.int64, types.uint32, types.int32, types.int64)
def on_in(uc, port, size, user):
    """UC_HOOK_INSN, IN and INS: instead of the engine's doing."""
    instead(carray(pointer(user), mc.CELLS))
    return 0


@callback(types.void, types.int64, types.uint32, types.int32, types.uint32, types.int64)
def on_out(uc, port, size, value, user):
    """UC_HOOK_INSN, OUT and OUTS: instead of the engine's doing."""
    instead(carray(pointer(user), mc.CELLS))


@callback(types.void, types.int64, types.int64)
def on_syscall(uc, user):
    """UC_HOOK_INSN, SYSCALL (SDM, "SYSCALL - Fast System Call"); the engine adds 2 to RIP."""
    m = carray(pointer(user), mc.CELLS)
    env = state_begin(m)
    v = v_of(m)
    r = r_of(m)
    save(m, env, v, r)
    star = r[reg.STAR] >> 32
    code64 = v[f.GUEST_CS_ACCESS_RIGHTS] & 1 << 13 != 0
    if v[f.GUEST_IA32_EFER] & 1 << 10:
        r[reg.RCX] = v[f.GUEST_RIP] + 2
        r[reg.R11] = v[f.GUEST_RFLAGS] & ~0x10000
        v[f.GUEST_RIP] = (r[reg.LSTAR] if code64 else r[reg.CSTAR]) - 2
        v[f.GUEST_RFLAGS] = (v[f.GUEST_RFLAGS] & ~r[reg.FMASK] & ~0x10000) | 2
        flat(v, 1, star & 0xFFFC, 0xA09B)
    else:
        r[reg.RCX] = (v[f.GUEST_RIP] + 2) & 0xFFFFFFFF
        v[f.GUEST_RIP] = (r[reg.STAR] & 0xFFFFFFFF) - 2
        v[f.GUEST_RFLAGS] &= ~0x30200
        flat(v, 1, star & 0xFFFC, 0xC09B)
    flat(v, 2, (star & 0xFFFC) + 8, 0xC093)
    load(m, env, v, r)
    state_end(m)


@callback(types.void, types.int64, types.int64)
def on_sysenter(uc, user):
    """UC_HOOK_INSN, SYSENTER (SDM, "SYSENTER - Fast System Call"); the engine adds 2 to RIP."""
    m = carray(pointer(user), mc.CELLS)
    env = state_begin(m)
    v = v_of(m)
    r = r_of(m)
    save(m, env, v, r)
    selector = v[f.GUEST_IA32_SYSENTER_CS] & 0xFFFC
    long = v[f.GUEST_IA32_EFER] & 1 << 10 != 0
    v[f.GUEST_RFLAGS] &= ~0x30200
    v[f.GUEST_RIP] = v[f.GUEST_IA32_SYSENTER_EIP] - 2
    v[f.GUEST_RSP] = v[f.GUEST_IA32_SYSENTER_ESP]
    flat(v, 1, selector, 0xA09B if long else 0xC09B)
    flat(v, 2, selector + 8, 0xC093)
    load(m, env, v, r)
    state_end(m)


@callback(
    types.uint64,
    types.int64,
    types.int64,
    types.int32,
    types.int32,
    types.int32,
    types.boolean,
    types.int64,
)
def on_tlb_fill(cpu, address, size, access, mmu_index, probe, return_address):
    """The MMU's refill: our own page walk, one choke point for translation and protection.

    Each physical page is kept either code or fast-writable data, because the engine
    takes every store to an executable page down its slow path.
    """
    env = cpu + at.CPU_SIZE
    m = carray(pointer(peek64(env + at.MACHINE)), mc.CELLS)
    mem = mem_of(m)
    access_kind = types.int64(access)
    cr0 = peek64(env + at.CR0)
    efer = peek64(env + at.EFER)
    user = 1 if mmu_index == 1 else 0
    vector = 14
    physical = 0
    prot = 0
    page_size = 4096
    if efer & 1 << 10 and address >> 47 != 0 and address >> 47 != -1:
        vector = 13
        code = 0
    else:
        physical, code, prot, page_size = walk(
            cr0,
            peek64(env + at.CR3),
            peek64(env + at.CR4),
            efer,
            0x40000 if mmu_index == 2 else 0,
            mem,
            address,
            access_kind,
            user,
        )
    if code < 0:
        page = physical >> 12
        if 0 <= page < m[mc.MEM_CELLS] >> 9:
            prot = share(m, page, access_kind, prot)
        call(
            m[mc.TLB_SET_PAGE],
            (cpu, address & ~0xFFF, physical & ~0xFFF, prot, types.int64(mmu_index), page_size),
        )
        return 1
    if probe:
        return 0
    m[mc.FAULT_ADDRESS] = address
    poke32(env + at.ERROR_CODE, code)
    poke32(m[mc.EXCEPTION_INDEX], at.EXCP_VMEXIT + 0x40 + vector)
    call(m[mc.CPU_LOOP_EXIT_RESTORE], (cpu, return_address))
    return 0


@callback(types.uint64, types.int64, types.int64, types.uint32, types.int64)
def on_absent_read(uc, offset, size, user):
    """Physical memory that isn't there reads as all ones."""
    return (1 << (8 * types.int64(size))) - 1 if size < 8 else -1


@callback(types.void, types.int64, types.int64, types.uint32, types.uint64, types.int64)
def on_absent_write(uc, offset, size, value, user):
    """Stores to physical memory that isn't there are dropped."""
