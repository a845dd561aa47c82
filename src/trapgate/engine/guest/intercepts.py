"""What the engine intercepts, in its own words, from the controls of a VMCS. Compiled only."""

from trapgate.compiler.dialect import Cells
from trapgate.compiler.program import jit
from trapgate.compiler.raw import poke16, poke32, poke64
from trapgate.engine import machine as mc
from trapgate.engine.library import layout as at
from trapgate.sdm import cells as f
from trapgate.sdm.controls import (
    PIN_NMI_EXITING,
    PIN_VIRTUAL_NMIS,
    PRIMARY_PAUSE_EXITING,
    SECONDARY_PAUSE_LOOP_EXITING,
)
from trapgate.sdm.state import BLOCKING_BY_NMI


@jit
def set_intercepts(m: Cells, env: int, v: Cells) -> None:
    """Tell the engine what to intercept, from the controls in `v`."""
    primary = v[f.PRIMARY_PROCESSOR_BASED_CONTROLS]
    secondary = v[f.SECONDARY_PROCESSOR_BASED_CONTROLS]
    # These always stop the engine; whether they exit is decided afterwards.
    words = (
        1 << (at.SVM_SHUTDOWN - at.SVM_BASE)
        | 1 << (at.SVM_HLT - at.SVM_BASE)
        | 1 << (at.SVM_CPUID - at.SVM_BASE)
        | 1 << (at.SVM_SOFTWARE_INTERRUPT - at.SVM_BASE)
        | 1 << (at.SVM_RDTSC - at.SVM_BASE)
        | 1 << (at.SVM_INVD - at.SVM_BASE)
        | 1 << (at.SVM_MSR - at.SVM_BASE)
        | 1 << (at.SVM_ICEBP - at.SVM_BASE)
        | 1 << (at.SVM_MONITOR - at.SVM_BASE)
        | 1 << (at.SVM_MWAIT - at.SVM_BASE)
        | 1 << (at.SVM_WBINVD - at.SVM_BASE)
        | 1 << (at.SVM_RDPMC - at.SVM_BASE)
    )
    # A criteria table may want what no control asks for.
    table = v[f.CRITERIA_TABLE_INSTRUCTIONS] != 0
    if primary & 1 << 9 or table:
        words |= 1 << (at.SVM_INVLPG - at.SVM_BASE)
    loops = secondary & SECONDARY_PAUSE_LOOP_EXITING
    if primary & PRIMARY_PAUSE_EXITING or loops or table:
        words |= 1 << (at.SVM_PAUSE - at.SVM_BASE)
    pin = v[f.PIN_BASED_CONTROLS]
    unblocks = pin & PIN_NMI_EXITING == 0 or pin & PIN_VIRTUAL_NMIS != 0
    if unblocks and v[f.GUEST_INTERRUPTIBILITY_STATE] & BLOCKING_BY_NMI:
        # SDM, "Changes to Instruction Behavior in VMX Non-Root Operation", IRET.
        words |= 1 << (at.SVM_IRET - at.SVM_BASE)
    if secondary & 1 << 2 or table:
        # Descriptor-table exiting: reads and writes of IDTR, GDTR, LDTR, TR.
        words |= 0xFF << (at.SVM_IDTR_READ - at.SVM_BASE)
    poke64(env + at.INTERCEPT, words)
    # CR0 and CR4 have bits of the host's, they and CR3 reserved ones; CR8 is not where the
    # engine keeps it.
    read = 1 << 8
    write = 1 | 1 << 3 | 1 << 4 | 1 << 8
    if v[f.CR0_GUEST_HOST_MASK]:
        read |= 1
    if v[f.CR4_GUEST_HOST_MASK]:
        read |= 1 << 4
    if primary & 1 << 16 or m[mc.NATIVE] == 0:
        # On the portable path the engine's CR3 may be another.
        read |= 1 << 3
    if table:
        read |= 1 | 1 << 2 | 1 << 3 | 1 << 4
        write |= 1 << 2
    poke16(env + at.INTERCEPT_CR_READ, read)
    poke16(env + at.INTERCEPT_CR_WRITE, write)
    # DR6 always, for the engine's own collects causes; DR7 because of GD.
    debug = 0xFF if primary & 1 << 23 or v[f.GUEST_DR7] & 1 << 13 or table else 0xF0
    poke16(env + at.INTERCEPT_DR_READ, debug)
    poke16(env + at.INTERCEPT_DR_WRITE, debug)
    poke32(env + at.INTERCEPT_EXCEPTIONS, -1)
    poke64(env + at.VM_VMCB, at.VMCB)
