"""Copying the state of the guest between the engine and a VMCS, as VM entries and exits do.

Compiled only. `env` is the address of the engine's CPU state: the live one on the
native path, the copy inside a saved context on the portable one.
"""

from trapgate.compiler.dialect import Cells, inlined
from trapgate.compiler.program import jit, jit_for_python
from trapgate.compiler.raw import (
    call,
    cells,
    memory,
    peek16,
    peek32,
    peek64,
    poke32,
    poke64,
)
from trapgate.engine import machine as mc
from trapgate.engine.guest.address_spaces import (
    CR0_OF_PAGING,
    CR4_OF_PAGING,
    EFER_OF_PAGING,
    describe_departing,
    renew_translations,
)
from trapgate.engine.guest.segments import look_at_code_and_stack, look_at_segments
from trapgate.engine.guest.stuck_bits import force_saved_bits
from trapgate.engine.library import layout as at
from trapgate.engine.x87.exceptions import leave_unfinished
from trapgate.paging.memory import load8
from trapgate.paging.walk import load_pointers_of_entry, uses_pae_paging, walk
from trapgate.sdm import cells as f
from trapgate.sdm import registers as reg
from trapgate.sdm.state import DEBUGCTL_BTF, EFER_LMA

_CC = 0x8D5
_IF = 0x200
_RF = 1 << 16
_STI = 0xFB
_MONITOR_TRAP_FLAG = 1 << 27
_DF = 0x400
_UNUSABLE = 0x10000
_AC = 1 << 18
_VM = 1 << 17
_ES, _CS, _SS, _DS, _FS, _GS = range(6)
_AM = 1 << 18
_DPL = 0x60
_MXCSR_MASKS = 0x1F80
_BLOCKED = 3
"""Blocking by STI and by MOV SS: the engine has one flag for both."""


@jit
@inlined
def save_paging(env: int, v: Cells) -> None:
    """The part of `save` that a page walk looks at."""
    v[f.GUEST_CR0] = peek64(env + at.CR0)
    cr3 = peek64(env + at.CR3)
    if cr3 != at.POINTERS:
        v[f.GUEST_CR3] = cr3
    v[f.GUEST_CR4] = peek64(env + at.CR4)
    v[f.GUEST_IA32_EFER] = peek64(env + at.EFER)


@jit
def save_for_criteria(m: Cells, env: int, v: Cells, r: Cells) -> None:
    """The part of `save` that a criteria table may ask for."""
    for n in range(16):
        r[n] = peek64(env + at.REGS + 8 * n)
    save_paging(env, v)
    save_segments(env, v)
    v[f.GUEST_RSP] = peek64(env + at.REGS + 8 * reg.RSP)
    force_saved_bits(m, v, r)
    v[f.GUEST_RIP] = peek64(env + at.EIP)
    v[f.GUEST_RFLAGS] = rflags_of(m, env)


@jit
@inlined
def rflags_of(m: Cells, env: int) -> int:
    """RFLAGS, the lazily evaluated bits included."""
    flags = peek64(env + at.EFLAGS) & ~(_CC | _DF)
    op = peek32(env + at.CC_OP)
    if op == at.CC_OP_EFLAGS:
        flags |= peek64(env + at.CC_SRC) & _CC
    elif m[mc.CC_COMPUTE_ALL] != 0:
        flags |= call(m[mc.CC_COMPUTE_ALL], (env, op)) & _CC
    return flags | (peek32(env + at.DF) & _DF) | 2


@jit
def what_blocks(m: Cells, v: Cells) -> int:
    """Blocking by STI or by MOV SS, where nobody has kept count of what executed.

    STI has enabled interrupts, and it is the byte before this instruction.
    """
    rip = v[f.GUEST_RIP] - 1
    long = v[f.GUEST_CS_ACCESS_RIGHTS] & 1 << 13 and v[f.GUEST_IA32_EFER] & 1 << 10
    linear = rip if long else (rip + v[f.GUEST_CS_BASE]) & 0xFFFFFFFF
    mem = memory(m[mc.MEM], m[mc.MEM_CELLS], m[mc.WATCH])
    physical, code, _, _ = walk(v, _AC, mem, linear, 0, 0)
    sti = v[f.GUEST_RFLAGS] & _IF and code < 0 and load8(mem, physical) == _STI
    return 1 if sti else 2


@jit
def blocking_now(m: Cells, env: int, v: Cells) -> int:
    """Interruptibility state: blocking by STI or by MOV SS ends with the next instruction."""
    blocking = int(v[f.GUEST_INTERRUPTIBILITY_STATE])
    if peek32(env + at.HFLAGS) & at.HF_INHIBIT_IRQ == 0:
        return blocking & ~_BLOCKED
    if m[mc.SHADOW] >= 0:
        return blocking & ~_BLOCKED | int(m[mc.SHADOW])
    return blocking if blocking & _BLOCKED else blocking | what_blocks(m, v)


@jit
def forget_passed_breakpoint(m: Cells, v: Cells) -> None:
    """RF is 1 only for the engine's sake if this is the instruction whose breakpoint was passed."""
    linear = v[f.GUEST_RIP]
    if v[f.GUEST_CS_ACCESS_RIGHTS] & 1 << 13 == 0 or v[f.GUEST_IA32_EFER] & 1 << 10 == 0:
        linear = (linear + v[f.GUEST_CS_BASE]) & 0xFFFFFFFF
    if m[mc.PASSED] == linear + 1:
        v[f.GUEST_RFLAGS] &= ~_RF
    m[mc.PASSED] = 0


@jit
def save_segments(env: int, v: Cells) -> None:
    """The part of `save` for segment and descriptor-table registers."""
    for n in range(8):
        segment = env + at.SEGMENTS + at.SEGMENT_SIZE * n
        v[f.GUEST_ES_SELECTOR + n] = peek16(segment + at.SELECTOR)
        v[f.GUEST_ES_BASE + n] = peek64(segment + at.BASE)
        v[f.GUEST_ES_LIMIT + n] = peek32(segment + at.LIMIT)
        rights = (peek32(segment + at.FLAGS) >> 8) & 0xF0FF
        if rights & 0x80 == 0:
            rights |= _UNUSABLE
        elif n < 6:
            # Loading a segment marks it accessed; the engine does so in memory only.
            rights |= 1
        v[f.GUEST_ES_ACCESS_RIGHTS + n] = rights
    # The engine knows only available TSSs: the busy bit lives in memory.
    v[f.GUEST_TR_ACCESS_RIGHTS] |= 2
    # The engine keeps CPL in SS's DPL only where the guest loaded SS itself.
    cpl = peek32(env + at.HFLAGS) & 3
    v[f.GUEST_SS_ACCESS_RIGHTS] = (v[f.GUEST_SS_ACCESS_RIGHTS] & ~0x60) | cpl << 5
    save_table_registers(env, v)


@jit
@inlined
def save_table_registers(env: int, v: Cells) -> None:
    """The part of `save` for GDTR and IDTR."""
    gdt = env + at.SEGMENTS + at.SEGMENT_SIZE * 8
    v[f.GUEST_GDTR_BASE] = peek64(gdt + at.BASE)
    v[f.GUEST_GDTR_LIMIT] = peek32(gdt + at.LIMIT)
    v[f.GUEST_IDTR_BASE] = peek64(gdt + at.SEGMENT_SIZE + at.BASE)
    v[f.GUEST_IDTR_LIMIT] = peek32(gdt + at.SEGMENT_SIZE + at.LIMIT)


@jit
@inlined
def loads_segments_in_core(env: int) -> bool:
    """Whether the guest is in protected mode, and not in virtual-8086 mode.

    Where the translator is ours, too, every load of a segment register, LLDT, LTR and WRMSR are
    the core's then, which leaves in the VMCS what it has loaded; SWAPGS, LGDT and LIDT are not.
    """
    return bool(peek32(env + at.HFLAGS) & at.HF_PE and peek64(env + at.EFLAGS) & _VM == 0)


@jit
@inlined
def save_swapped_bases(env: int, v: Cells) -> None:
    """The bases that SWAPGS and WRFSBASE change."""
    v[f.GUEST_FS_BASE] = peek64(env + at.SEGMENTS + at.SEGMENT_SIZE * _FS + at.BASE)
    v[f.GUEST_GS_BASE] = peek64(env + at.SEGMENTS + at.SEGMENT_SIZE * _GS + at.BASE)


@jit
def save(m: Cells, env: int, v: Cells, r: Cells) -> None:
    """Save the guest's state from `env` into the VMCS `v` and the register file `r`."""
    if m[mc.X87_FILLED] != 0:
        leave_unfinished(m, env)
    if m[mc.ALONE] != 0:
        # Interrupts seemed inhibited, so that the engine would execute one instruction.
        m[mc.ALONE] = 0
        poke32(env + at.HFLAGS, peek32(env + at.HFLAGS) & ~at.HF_INHIBIT_IRQ)
    for n in range(16):
        r[n] = peek64(env + at.REGS + 8 * n)
    v[f.GUEST_RSP] = r[reg.RSP]
    force_saved_bits(m, v, r)
    v[f.GUEST_RIP] = peek64(env + at.EIP)
    v[f.GUEST_RFLAGS] = rflags_of(m, env)
    save_paging(env, v)
    if m[mc.CPU] == 0 and peek64(env + at.CR3) != at.POINTERS:
        # The engine may have switched tasks by itself.
        load_pointers_of_entry(v, memory(m[mc.MEM], m[mc.MEM_CELLS], m[mc.WATCH]))
    v[f.GUEST_INTERRUPTIBILITY_STATE] = blocking_now(m, env, v)
    if m[mc.PASSED] != 0:
        forget_passed_breakpoint(m, v)
    r[reg.CR2] = peek64(env + at.CR2)
    for n in range(4):
        r[reg.DR0 + n] = peek64(env + at.DR0 + 8 * n)
    r[reg.KERNEL_GS_BASE] = peek64(env + at.KERNEL_GS_BASE)
    if m[mc.CPU] != 0 and loads_segments_in_core(env):
        save_swapped_bases(env, v)
        save_table_registers(env, v)
        return
    save_segments(env, v)
    v[f.GUEST_IA32_SYSENTER_CS] = peek32(env + at.SYSENTER_CS)
    v[f.GUEST_IA32_SYSENTER_ESP] = peek64(env + at.SYSENTER_ESP)
    v[f.GUEST_IA32_SYSENTER_EIP] = peek64(env + at.SYSENTER_EIP)
    v[f.GUEST_IA32_PAT] = peek64(env + at.PAT)
    r[reg.STAR] = peek64(env + at.STAR)
    r[reg.LSTAR] = peek64(env + at.LSTAR)
    r[reg.CSTAR] = peek64(env + at.CSTAR)
    r[reg.FMASK] = peek64(env + at.FMASK)
    r[reg.TSC_AUX] = peek64(env + at.TSC_AUX)


@jit
def hflags_of(v: Cells, old: int) -> int:
    """The translator's flags for the state in `v`; `old` gives the bits that are not state."""
    cr0 = int(v[f.GUEST_CR0])
    cr4 = int(v[f.GUEST_CR4])
    rflags = v[f.GUEST_RFLAGS]
    cs = v[f.GUEST_CS_ACCESS_RIGHTS]
    ss = int(v[f.GUEST_SS_ACCESS_RIGHTS])
    flags = (old & at.HF_KEPT) | at.HF_GUEST
    flags |= (cr0 & 0xE) << 8
    if cr4 & 1 << 9:
        flags |= at.HF_OSFXSR
    if cr4 & 1 << 21:
        flags |= at.HF_SMAP
    if v[f.GUEST_INTERRUPTIBILITY_STATE] & _BLOCKED:
        flags |= at.HF_INHIBIT_IRQ
    if cr0 & 1 == 0:
        return flags | at.HF_ADDSEG
    flags |= at.HF_PE
    if rflags & 1 << 17:
        return flags | 3 | at.HF_ADDSEG
    flags |= (ss >> 5) & 3
    lma = v[f.GUEST_IA32_EFER] & 1 << 10
    if lma:
        flags |= at.HF_LMA
        if cs & 1 << 13:
            return flags | at.HF_CS32 | at.HF_SS32 | at.HF_CS64
    if cs & 1 << 14:
        flags |= at.HF_CS32
    if ss & 1 << 14:
        flags |= at.HF_SS32
    bases = v[f.GUEST_DS_BASE] | v[f.GUEST_ES_BASE] | v[f.GUEST_SS_BASE]
    if cs & 1 << 14 == 0 or bases != 0:
        flags |= at.HF_ADDSEG
    return flags


@jit
def load_debug_registers(m: Cells, env: int, v: Cells, r: Cells) -> None:
    """DR0-DR3, and of DR7 what the engine can do: breakpoints on execution.

    Guests never see the engine's DR6 and DR7; its DR6 only collects new causes.
    """
    old = peek64(env + at.DR7)
    new = 0x400
    for n in range(4):
        if (v[f.GUEST_DR7] >> (16 + 4 * n)) & 3 == 0 and m[mc.NATIVE] != 0:
            new |= v[f.GUEST_DR7] & (3 << (2 * n))
    moved = 0
    for n in range(4):
        moved |= peek64(env + at.DR0 + 8 * n) ^ r[reg.DR0 + n]
    if m[mc.NATIVE] != 0 and ((moved | (old ^ new)) != 0) and (old | new) & 0xFF:
        # The old breakpoints go out under the addresses that they were put in with.
        call(m[mc.UPDATE_DR7], (env, 0x400))
        for n in range(4):
            poke64(env + at.DR0 + 8 * n, r[reg.DR0 + n])
        call(m[mc.UPDATE_DR7], (env, new))
    else:
        for n in range(4):
            poke64(env + at.DR0 + 8 * n, r[reg.DR0 + n])
        poke64(env + at.DR7, new)
    poke64(env + at.DR6, 0xFFFF0FF0)


@jit
def checks_of(m: Cells, env: int, v: Cells) -> int:
    """What the next instructions need that the engine does not do; bits of CHECKS."""
    checks = 0
    dr7 = v[f.GUEST_DR7]
    if dr7 & 0xFF:
        for n in range(4):
            kind = (dr7 >> (16 + 4 * n)) & 3
            # The portable path can put no breakpoints on execution into the engine.
            mine = kind in (1, 3) or (kind == 0 and m[mc.NATIVE] == 0)
            if (dr7 >> (2 * n)) & 3 != 0 and mine:
                checks |= mc.CHECK_WATCHPOINTS
    if (
        v[f.GUEST_RFLAGS] & _AC
        and v[f.GUEST_CR0] & _AM
        and v[f.GUEST_SS_ACCESS_RIGHTS] & _DPL == _DPL
    ):
        checks |= mc.CHECK_ALIGNMENT
    if ~peek32(env + at.MXCSR) & _MXCSR_MASKS:
        checks |= mc.CHECK_SSE
    # Whoever is in force, the VMM in Python may want a trap. A debug exception may be pending
    # after MOV SS, for the end of the next instruction.
    host = cells(m[mc.HOST], m[mc.V_CELLS])
    if (
        v[f.PRIMARY_PROCESSOR_BASED_CONTROLS] & _MONITOR_TRAP_FLAG
        or host[f.PRIMARY_PROCESSOR_BASED_CONTROLS] & _MONITOR_TRAP_FLAG
        or v[f.GUEST_PENDING_DEBUG_EXCEPTIONS]
    ):
        checks |= mc.CHECK_TRAP
    if v[f.GUEST_IA32_DEBUGCTL] & DEBUGCTL_BTF:
        # The guest may set TF at any time.
        checks |= mc.CHECK_BRANCHES
    return checks


@jit_for_python
def segment_shape(v: Cells) -> int:
    """A number for the limits of ES, CS, SS and DS; 0 where none of them can be exceeded."""
    shape = 0
    if v[f.GUEST_CR0] & 1 == 0 or v[f.GUEST_RFLAGS] & _VM:
        return shape
    if v[f.GUEST_IA32_EFER] & 1 << 10 and v[f.GUEST_CS_ACCESS_RIGHTS] & 1 << 13:
        return shape
    for n in range(4):
        limit = v[f.GUEST_ES_LIMIT + n]
        rights = v[f.GUEST_ES_ACCESS_RIGHTS + n]
        # Usable, code or writable data that expands up, to the end of the address space.
        flat = n == 1 or rights & (_UNUSABLE | 0xE) == 2
        if not flat or limit & 0xFFFFFFFF != 0xFFFFFFFF:
            shape = (shape * 0x9E3779B1 + (limit ^ rights << 33)) | 1
        shape = shape * 5
    return shape


@jit
def look_for_interrupts(m: Cells) -> None:
    """RFLAGS.IF may become 1: look before the next block whether something waits for that."""
    if m[mc.ATTENTION] != 0:
        m[mc.DEADLINE] = 0


@jit
@inlined
def load_flags(m: Cells, env: int, rflags: int) -> None:
    """The part of `load` for RFLAGS."""
    look_for_interrupts(m)
    poke64(env + at.EFLAGS, rflags & ~(_CC | _DF))
    poke64(env + at.CC_SRC, rflags & _CC)
    poke32(env + at.CC_OP, at.CC_OP_EFLAGS)
    poke32(env + at.DF, 1 - 2 * ((rflags >> 10) & 1))


@jit
def load_segments(env: int, v: Cells) -> None:
    """The part of `load` for the segment registers, LDTR and TR."""
    for n in range(8):
        load_segment_cache(env, v, n)


@jit
@inlined
def load_segment_cache(env: int, v: Cells, n: int) -> None:
    """The part of `load` for one segment register: 0 ES to 5 GS, 6 LDTR, 7 TR."""
    segment = env + at.SEGMENTS + at.SEGMENT_SIZE * n
    poke32(segment + at.SELECTOR, v[f.GUEST_ES_SELECTOR + n])
    poke64(segment + at.BASE, v[f.GUEST_ES_BASE + n])
    limit = v[f.GUEST_ES_LIMIT + n]
    poke32(segment + at.LIMIT, limit)
    rights = v[f.GUEST_ES_ACCESS_RIGHTS + n]
    if rights & _UNUSABLE:
        rights &= ~0x80
    if n == 6 and rights & 0x80 == 0:
        poke32(segment + at.LIMIT, 0)
    if n == 7:
        # Anything but an available TSS that is present makes the engine abort().
        rights = (rights & ~2) | 0x80
    high = (v[f.GUEST_ES_BASE + n] & 0xFF000000) | ((v[f.GUEST_ES_BASE + n] >> 16) & 0xFF)
    poke32(segment + at.FLAGS, (rights & 0xF0FF) << 8 | (limit & 0xF0000) | high)


@jit
def load_mode(m: Cells, env: int, v: Cells) -> None:
    """The part of `load` for the translator's flags, after an instruction that loaded segments.

    What blocked interrupts for the time of one instruction, ends.
    """
    load_hflags(env, v)
    look_at_segments(m, env)


@jit
@inlined
def load_hflags(env: int, v: Cells) -> None:
    """The translator's flags of `load_mode`, but for those about limits."""
    flags = hflags_of(v, peek32(env + at.HFLAGS)) & ~at.HF_INHIBIT_IRQ
    poke32(env + at.HFLAGS, flags)


@jit
def prepare_next_instruction(m: Cells, env: int, v: Cells) -> None:
    """Nothing is being delivered, and CHECKS holds what the next instructions need."""
    poke32(env + at.OLD_EXCEPTION, -1)
    poke32(env + at.EXCEPTION_IS_INT, 0)
    m[mc.CHECKS] = checks_of(m, env, v)
    if m[mc.CHECKS] != 0:
        m[mc.DEADLINE] = 0


@jit
def load_cr3(m: Cells, env: int, v: Cells) -> int:
    """The part of `load` for CR3 and the pointers of PAE paging; 0 if they have not changed."""
    cr3 = int(v[f.GUEST_CR3])
    stale = 0
    if m[mc.NATIVE] == 0 and v[f.GUEST_IA32_EFER] & EFER_LMA == 0:
        # Outside of IA-32e mode bits 63:32 are ignored (SDM, "Paging"), but not by the engine.
        cr3 &= 0xFFFFFFFF
        if uses_pae_paging(v):
            loaded = cells(m[mc.SCRATCH] + at.POINTERS - at.VMCB, 5)
            for n in range(4):
                stale |= loaded[n] ^ v[f.GUEST_PDPTE0 + n]
                loaded[n] = v[f.GUEST_PDPTE0 + n]
            stale |= loaded[4] ^ cr3
            loaded[4] = cr3
            cr3 = at.POINTERS
    stale |= peek64(env + at.CR3) ^ cr3
    poke64(env + at.CR3, cr3)
    return stale


@jit
def load(m: Cells, env: int, v: Cells, r: Cells) -> None:
    """Load the guest's state from `v` and `r` into `env`; flush what became stale."""
    if m[mc.SWITCHED] & mc.SWITCHED_SPACE:
        describe_departing(m, env)
    stale = (
        ((peek64(env + at.CR0) ^ v[f.GUEST_CR0]) & CR0_OF_PAGING)
        | ((peek64(env + at.CR4) ^ v[f.GUEST_CR4]) & CR4_OF_PAGING)
        | ((peek64(env + at.EFER) ^ v[f.GUEST_IA32_EFER]) & EFER_OF_PAGING)
        | load_cr3(m, env, v)
    )
    r[reg.RSP] = v[f.GUEST_RSP]
    for n in range(16):
        poke64(env + at.REGS + 8 * n, r[n])
    poke64(env + at.EIP, v[f.GUEST_RIP])
    load_flags(m, env, v[f.GUEST_RFLAGS])
    load_segments(env, v)
    gdt = env + at.SEGMENTS + at.SEGMENT_SIZE * 8
    poke64(gdt + at.BASE, v[f.GUEST_GDTR_BASE])
    poke32(gdt + at.LIMIT, v[f.GUEST_GDTR_LIMIT])
    poke64(gdt + at.SEGMENT_SIZE + at.BASE, v[f.GUEST_IDTR_BASE])
    poke32(gdt + at.SEGMENT_SIZE + at.LIMIT, v[f.GUEST_IDTR_LIMIT])
    poke64(env + at.CR0, v[f.GUEST_CR0])
    poke64(env + at.CR2, r[reg.CR2])
    poke64(env + at.CR4, v[f.GUEST_CR4])
    poke64(env + at.EFER, v[f.GUEST_IA32_EFER])
    poke32(env + at.SYSENTER_CS, v[f.GUEST_IA32_SYSENTER_CS])
    poke64(env + at.SYSENTER_ESP, v[f.GUEST_IA32_SYSENTER_ESP])
    poke64(env + at.SYSENTER_EIP, v[f.GUEST_IA32_SYSENTER_EIP])
    poke64(env + at.PAT, v[f.GUEST_IA32_PAT])
    poke64(env + at.STAR, r[reg.STAR])
    poke64(env + at.LSTAR, r[reg.LSTAR])
    poke64(env + at.CSTAR, r[reg.CSTAR])
    poke64(env + at.FMASK, r[reg.FMASK])
    poke64(env + at.KERNEL_GS_BASE, r[reg.KERNEL_GS_BASE])
    poke64(env + at.TSC_AUX, r[reg.TSC_AUX])
    poke64(env + at.XCR0, r[reg.XCR0])
    poke32(env + at.HFLAGS, hflags_of(v, peek32(env + at.HFLAGS)))
    if m[mc.CPU] != 0:
        look_at_segments(m, env)
    if m[mc.SHADOW] >= 0:
        m[mc.SHADOW] = v[f.GUEST_INTERRUPTIBILITY_STATE] & _BLOCKED
    load_debug_registers(m, env, v, r)
    prepare_next_instruction(m, env, v)
    if stale or m[mc.SWITCHED] & (mc.SWITCHED_TRANSLATIONS | mc.SWITCHED_SPACE):
        renew_translations(m, env)


@jit
@inlined
def has_segment(env: int, v: Cells, n: int) -> bool:
    """Whether segment register `n` is loaded as `load_segment_cache` would, not LDTR nor TR."""
    segment = env + at.SEGMENTS + at.SEGMENT_SIZE * n
    rights = v[f.GUEST_ES_ACCESS_RIGHTS + n]
    if rights & _UNUSABLE:
        rights &= 0xF07F
    return bool(
        peek32(segment + at.SELECTOR) == v[f.GUEST_ES_SELECTOR + n]
        and (peek32(segment + at.FLAGS) >> 8) & 0xF0FF == rights
        and peek32(segment + at.LIMIT) == v[f.GUEST_ES_LIMIT + n]
        and peek64(segment + at.BASE) == v[f.GUEST_ES_BASE + n]
    )


@jit
def load_code_and_stack(m: Cells, env: int, v: Cells) -> None:
    """The part of `load` for CS, SS, RIP, RSP and the translator's flags, in protected mode."""
    poke64(env + at.REGS + 8 * reg.RSP, v[f.GUEST_RSP])
    poke64(env + at.EIP, v[f.GUEST_RIP])
    before = peek32(env + at.HFLAGS)
    if has_segment(env, v, _CS) and has_segment(env, v, _SS):
        # Within a ring, mostly: neither the mode changes nor what segments allow.
        poke32(env + at.HFLAGS, before & ~at.HF_INHIBIT_IRQ)
        return
    load_segment_cache(env, v, _CS)
    load_segment_cache(env, v, _SS)
    load_hflags(env, v)
    if before & at.HF_CS64:
        # What 64-bit code loaded into the others, nobody has looked at.
        look_at_segments(m, env)
    else:
        look_at_code_and_stack(m, env)


@jit
def load_data_segments(env: int, v: Cells) -> bool:
    """The part of `load` for ES, DS, FS and GS; whether one of them was not loaded already."""
    loaded = False
    for n in (_ES, _DS, _FS, _GS):
        if not has_segment(env, v, n):
            load_segment_cache(env, v, n)
            loaded = True
    return loaded


@jit
def load_handler(m: Cells, env: int, v: Cells, r: Cells) -> None:
    """The part of `load` that event delivery needs in protected mode, #DB aside.

    No other segment than CS and SS is loaded, and no translation becomes stale.
    """
    load_flags(m, env, v[f.GUEST_RFLAGS])
    load_code_and_stack(m, env, v)
    poke64(env + at.CR2, r[reg.CR2])
    m[mc.SHADOW] = min(0, m[mc.SHADOW])
    prepare_next_instruction(m, env, v)
