"""The cells through which compiled hooks and Python see one engine instance.

A hook gets one address: that of an array of 64-bit integers whose cells are named
here. They hold the addresses of the state, of the current VMCS, of memory and of the
journal, the virtual clock, and why the engine stopped.
"""

(
    NATIVE,
    UC,
    CPU,
    ENV,
    EXCEPTION_INDEX,
    V,
    V_CELLS,
    R,
    R_CELLS,
    MEM,
    MEM_CELLS,
    ROWS,
    ROWS_CAPACITY,
    HEAD,
    HEAD_CELLS,
    BLOCKS,
    PAGES,
    TIME,
    DEADLINE,
    TIMER_END,
    BUDGET_END,
    ATTENTION,
    STOP,
    STOP_CODE,
    STOP_INFO,
    STOP_VALUE,
    FAULT_ADDRESS,
    SCRATCH,
    CONTEXT,
    CC_COMPUTE_ALL,
    CPU_LOOP_EXIT,
    CPU_LOOP_EXIT_RESTORE,
    CPU_RESTORE_STATE,
    UPDATE_DR7,
    TB_INVALIDATE,
    TLB_FLUSH,
    TLB_SET_PAGE,
    EMU_STOP,
    CONTEXT_SAVE,
    CONTEXT_RESTORE,
    REG_READ,
    REG_WRITE,
    FLUSHES,
    STEPPING,
    FEATURES,
    CELLS,
) = range(46)

# Why the engine stopped (cell STOP).
RUNNING = 0
EXITED = 1
"""A VM exit; the VMCS says which."""
ASSIST = 2
"""An instruction that Python decodes; STOP_CODE is the engine's name for it."""
TIMER = 3
"""The virtual clock reached the deadline, at a block's start."""
LIMIT = 4
"""The instruction budget of the run is used up."""
ATTEND = 5
"""Python asked for attention: an event at a pin, a full journal, Ctrl-C."""
BROKEN = 6
"""The engine did what it must never do; STOP_CODE says what."""
HALTED = 7
"""HLT was executed and does not exit."""

FAILED_VALID = 2
"""STOP_CODE after a VM entry that failed before it touched the guest (VMfailValid)."""

# What ATTENTION may hold: stop at the next block, or as soon as the guest takes interrupts.
AT_ONCE = 1
WHEN_INTERRUPTIBLE = 2

BLOCK_SLOTS = 1 << 16
"""Slots of the table from a block's address to its count of instructions."""
