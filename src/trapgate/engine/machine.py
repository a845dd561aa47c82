"""The cells through which compiled hooks and Python see one engine instance.

A hook gets one address: that of an array of 64-bit integers whose cells are named
here. They hold the addresses of the state, of the current VMCS, of memory and of the
journal, the virtual clock, and why the engine stopped.
"""

from trapgate.instructions.x87.transcendental import WORK as WORK_CELLS

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
    WATCH,
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
    TLB_HOST,
    EMU_STOP,
    CONTEXT_SAVE,
    CONTEXT_RESTORE,
    REG_READ,
    REG_WRITE,
    STEPPING,
    STEP_CAUSES,
    FAULT_KIND,
    CHECKS,
    TRUSTED,
    CRAWL,
    JOURNAL_LIMIT,
    EXTRA,
    NEW_BLOCK,
    NEW_BLOCK_SIZE,
    SEEN,
    UC_CTL,
    PATIENCE,
    SELF,
    RAISE_EVENT,
    EXECUTE,
    EVENT_TIME,
    CALL_OP,
    COUNT_OP,
    CARE,
    FORBIDDEN,
    FORBIDDEN_AT,
    PREFIXES,
    PREFIXES_END,
    SHOWN,
    SHOWN_AT,
    DESTINATION,
    ACCUMULATOR,
    KEPT_EXCHANGED,
    PAIR,
    PAIR_2,
    PAIR_3,
    PAIR_4,
    X,
    N,
    HOST,
    TIME_BIAS,
    NESTED_TIMER_END,
    PINS,
    SWITCHED,
    VM_ENTER,
    VM_LEAVE,
    UNBLOCKED,
    STORE_LINEAR,
    STORE_PHYSICAL,
    STORE_KIND,
    STORE_SIZE,
    STORE_CODE,
    STORE_RETURN,
    STORE_INDEX,
    STORE_LOW,
    FAULT_CODE,
    SHADOW,
    TRANSLATION,
    PASSED,
    STEP_START,
    ALONE,
    DEBUG_SKIP,
    DEBUG_HIT,
    BREAKPOINTS,
    BREAKPOINTS_COUNT,
    STORED_PAGE,
    STORED_BYTE,
    STORED_FROM,
    STORED_BY,
    TLB_RESET_DIRTY,
    AUDIT,
    AUDITED,
    LIVE,
    READ_ONLY,
    ADDRESS_OFF,
    X87_STATUS,
    ALIGNED,
    TRANSLATOR,
    REQUEST,
    CHECK_EXIT,
    LOOK_UP,
    SINGLE_STEP,
    HELD_BACK,
    RESTORED,
    RESTORED_OP,
    PLACE,
    BEHIND,
    X87_OPERANDS,
    X87_FAULT,
    X87_DENORMAL,
    X87_FILLED,
    X87_WRITTEN,
    PORTS,
    APIC_EXIT,
    KEPT_TIMER_END,
    INSTRUCTION_LENGTH,
    WHOLE,
    ARITHMETIC,
    X87_ROUNDED,
    X87_AT,
    X87_POINTS,
    X87_ROUNDS,
    X87_WHAT,
    X87_IMAGE,
    X87_UNDONE_BY,
    WINDOWS,
    WINDOW_0_START,
    WINDOW_0_SIZE,
    WINDOW_0_TARGET,
    WINDOW_1_START,
    WINDOW_1_SIZE,
    WINDOW_1_TARGET,
    NEW_BLOCKS_TOLD,
    PROBE_CHANGED_CODE,
    RAM_REGION,
    RAM_SECTION,
    STORES_SECTION,
    STUCK,
    STUCK_MASK,
    STUCK_VALUE,
    POLL_WAIT,
    POLL_PLACE,
    POLL_TIME,
    POLLS,
    WAITED,
    LEFT_OVER,
    SPACE,
    PARKS,
    TLB_INIT,
    TLB_FLUSH_PAGE,
    CELLS,
) = range(170)
"""V is the VMCS in force: HOST, that of the VMM in Python, or N, that of an x86 VMM, whose
VMX state X is. While N is in force TIME_BIAS is HOST's TSC offset and NESTED_TIMER_END the end
of N's preemption timer. PINS: bits PIN_*. SWITCHED: what
the engine does not know yet of another VMCS being in force, bits SWITCHED_*. VM_ENTER and
VM_LEAVE: see `core_calls`. UNBLOCKED: 1 during an IRET that has unblocked NMIs.
X87_STATUS: the x87 status word before the current instruction. X87_OPERANDS: what the one that is
being translated uses. X87_FAULT, X87_DENORMAL: see `x87.exceptions`.
X87_ROUNDED: what C1 will be (`x87.rounding`). X87_AT: the linear address of the operand in memory.
X87_UNDONE_BY: exceptions that, unmasked, leave everything as it was before the instruction.
X87_ROUNDS: 1 while an instruction is translated that computes. X87_WHAT: of the one that is being
translated, what `decode.x87_pointers` says; X87_IMAGE: of the one that is executed, if it loads or
stores an image of FXSAVE or XSAVE. X87_POINTS: 1 until the access is translated whose address
X87_AT is.
X87_FILLED, X87_WRITTEN: registers, a bit each, that were empty and read, and that it writes.
HELD_BACK: 1 + the linear address of the instruction after a MOV SS that met a data breakpoint.
SHOWN: IS_SHOWN and the byte that the translator is shown at SHOWN_AT, or 0. DESTINATION: what
CMPXCHG or an MMX instruction writes, a register's number or -1; ACCUMULATOR and KEPT_EXCHANGED:
what RAX and it held before, or RSP and RBP before ENTER. PREFIXES: what the translator is shown in
place of prefixes below PREFIXES_END (`translator_errata`). ALIGNED: 1 until the access is
translated whose address must be a multiple of 16. WHOLE: what must be allowed as a whole of what
the instruction stores, until its first access is translated (`whole_stores`). ARITHMETIC: the kind
of SSE arithmetic that it does (`sse_arithmetic`), until the helper is called that does it.
SHADOW: what blocks while the engine's flag says that something
does, as bits 1:0 of interruptibility state; -1 if nobody keeps count. TRANSLATION: where the
engine translates, while it does. PASSED: 1 + the linear address of an instruction whose breakpoint
MOV SS has suppressed.
EXTRA: prefixes of the current instruction that `dispatch.instruction` left out.
DEBUG_SKIP: 1 + the linear address of the instruction whose debugger's breakpoint is passed over
once. DEBUG_HIT: 1 + that of the one that stopped the run. BREAKPOINTS: where the addresses of a
debugger's breakpoints are, so many of them (native only).
WATCH: the cells in which stores to memory are watched (`paging.memory`), STORED_PAGE the page of
the latest store that `coherence` was told of. STORED_BYTE: the latest store of a byte among them,
STORED_FROM where the bytes without a gap before it begin, STORED_BY the code that stored them.
AUDIT: see `audit`, 0 without; AUDITED counts blocks. LEFT_OVER: 1 once not all entries of the
engine's TLB were dropped that should have been. LIVE is the state of the engine, also where
ENV is a copy.
FAULT_ADDRESS, FAULT_CODE and FAULT_KIND: the latest fault of the MMU (the code: native only).
READ_ONLY: a bit for each 16 KiB from C0000H on where stores are dropped; ADDRESS_OFF: the address
line that is held low (A20), or 0; both native only. WINDOWS: 1 if a window is open, that is, if
what a guest finds at physical WINDOW_n_START, WINDOW_n_SIZE bytes, is at WINDOW_n_TARGET (native
only).
RESTORED, BEHIND: what it means that the engine restores the state within a block, and how many
instructions of the block were after the latest one (`clock`). RESTORED_OP: in what form it found
the arithmetic flags, 0 where the CPU state says so. PLACE: the slot of PLACES for the instruction
at which translated code was left, or 0.
STEP_START: the linear address of the instruction that is executed alone. ALONE: the engine has
been told that interrupts are inhibited, so that it executes one instruction (portable only).
APIC_EXIT: the exit that a store to the virtual-APIC page has made due (`virtual_apic`), or 0;
KEPT_TIMER_END is what NESTED_TIMER_END was before it. INSTRUCTION_LENGTH: of the one that was
restored last within a block, in bytes.
STUCK: 1 + the number of the general register in which the bits STUCK_MASK are stuck as in
STUCK_VALUE, or 0 (native only).
NEW_BLOCKS_TOLD: 1 once the engine tells of new blocks (portable only). PROBE_CHANGED_CODE: 1 once a
page walk without an access has set flags in an entry whose bytes are code, too.
TLB_HOST: a function of the engine's, where the host has the RAM of a linear address.
SPACE: 1 while the engine uses the tables of a guest with a VPID (`address_spaces`). PARKS: 1 while
only translations of the tables in use are dropped. TLB_INIT: the engine's way to make new ones.
RAM_REGION, RAM_SECTION, STORES_SECTION: addresses of the engine's own (`memory_regions`).
TRANSLATOR: the cells of `emission`. REQUEST: where a request to leave translated code stands.
PORTS: where the table of ports is that are answered here (`instructions.polled_ports`), 0 without.
POLL_WAIT: how much time passes at RDTSC in a loop that waits for a time (`polling_loops`), or 0.
POLL_PLACE, POLL_TIME, POLLS: behind which RDTSC the guest was last, when, and how often one after
the other. WAITED: how much time has passed so since Python took notice.
CHECK_EXIT, LOOK_UP, SINGLE_STEP: functions of the engine's, of these names in `emission`."""

RUN_STATE = (
    *(V, TIME, DEADLINE, TIMER_END, BUDGET_END, ATTENTION, STOP, STOP_CODE, STOP_INFO, STOP_VALUE),
    *(FAULT_ADDRESS, FAULT_KIND, FAULT_CODE, CHECKS, TRUSTED, CRAWL, JOURNAL_LIMIT, EXTRA),
    *(NEW_BLOCK, NEW_BLOCK_SIZE, PATIENCE, EVENT_TIME, TIME_BIAS, NESTED_TIMER_END, PINS, SWITCHED),
    *(UNBLOCKED, SHADOW, PASSED, STEP_START, ALONE, X87_STATUS, HELD_BACK, READ_ONLY, ADDRESS_OFF),
    *(APIC_EXIT, KEPT_TIMER_END, *range(WINDOWS, WINDOW_1_TARGET + 1)),
    *(DEBUG_SKIP, DEBUG_HIT, POLL_PLACE, POLL_TIME, POLLS),
)
"""What of a machine changes as its guest runs and lasts from one VM entry to the next."""

OWN_STATE = (
    *(FAULT_ADDRESS, FAULT_KIND, FAULT_CODE, CHECKS, TRUSTED, CRAWL, EXTRA, TIME_BIAS),
    *(NESTED_TIMER_END, UNBLOCKED, SHADOW, PASSED, STEP_START, ALONE, X87_STATUS, HELD_BACK),
    *(APIC_EXIT, KEPT_TIMER_END),
)
"""What of RUN_STATE is about one logical processor, where the machine has several."""

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
CHECKED = 8
"""The next instruction needs checks that the engine does not do (`trapgate.processor.stepping`)."""
STEPPED = 9
"""One instruction was executed, or the event that it caused was dealt with."""
PORT = 10
"""An instruction of input or output is about to be executed (portable path only)."""
TABLE_WRITE = 13
"""A write to page tables, for `processor.table_writes` to judge; STOP_INFO: its error code."""

NESTED_TIMER = 11
"""The preemption timer of N expired; dealt with before Python sees it."""

EXPLAIN = 12
"""A VMX instruction or a VM entry of an x86 VMM's failed, and somebody wants to know why."""

STALE = 14
"""A block was about to be executed that memory no longer holds; STOP_INFO: where (`audit`)."""

UNDROPPED = 15
"""A translation of linear addresses was left where all were to be dropped (`audit`)."""

PIN_INTERRUPT = 1
PIN_EVENT = 2
"""An NMI, INIT or SMI."""
PIN_PRIORITY = 4
"""An interrupt may wait for CR8 to change."""

SWITCHED_VMCS = 1
SWITCHED_TRANSLATIONS = 2
SWITCHED_REGISTERS = 4
"""The core may have changed any register, not only what delivering an event does."""
SWITCHED_SPACE = 8
"""A VM entry or VM exit of an x86 VMM's."""

# What STOP_CODE may hold where STOP is CHECKED; else the engine's name for a fault.
CHECK_NEXT = 0
CHECK_BLOCK = 1
CHECK_NO_PORT = 2
"""A new block, NEW_BLOCK, may hold input or output; or there was some at RIP, and is no more
(portable path only)."""

# What STEPPING may hold: not at all, about to, on the way; an event ended the instruction.
STEP_DUE = 1
STEP_RUNNING = 2
STEP_EVENT = 3

# What FAULT_KIND may hold, about the latest fault of the MMU.
FAULT_OF_FETCH = 2
FAULT_NON_CANONICAL = 4
FAULT_OF_SEGMENT = 1
"""An access that its segment does not allow (portable path only)."""
FAULT_JUDGED = 8
"""A write to page tables that no filter lets through."""

# What CHECKS may hold: which conditions make `trapgate.processor.stepping` take over.
CHECK_WATCHPOINTS = 1
CHECK_ALIGNMENT = 2
CHECK_SSE = 4
CHECK_LIMITS = 8
CHECK_TRAP = 16
CHECK_BRANCHES = 32

FAILED_VALID = -1
"""STOP_CODE after a VM entry that failed before it touched the guest (VMfailValid)."""

# What ATTENTION may hold: stop at the next block, or as soon as the guest takes interrupts.
AT_ONCE = 1
WHEN_INTERRUPTIBLE = 2

LONGEST_BLOCK = 512
"""Instructions of a block, at most."""

BLOCK_SLOTS = 1 << 16
"""Slots of the table from a block's address to its count of instructions."""

# Checks of segments (native path): what a segment allows (`segments`) ...
SEGMENTS_SEEN = CELLS
"""Six cells: limits and rights that the others were made of."""
SEGMENT_LOWS = SEGMENTS_SEEN + 6
"""Six cells: the lowest offset in each segment."""
SEGMENT_BOUNDS = SEGMENT_LOWS + 6
"""Eight cells a segment: how many offsets from the lowest one on a load of 1, 2, 4, 8 bytes may
have, and a store. 0 where nothing is allowed."""
# ... and what is known while a block is translated (`checked_accesses`).
ACCESSES = SEGMENT_BOUNDS + 6 * 8
"""Which accesses of the block are checked, ACCESSES_*."""
OPERAND = ACCESSES + 1
"""The temporary with the operand's linear address, 0 if it needs no check."""
OPERAND_SEGMENT = OPERAND + 1
OPERAND_OFFSET = OPERAND + 2
"""A temporary with the operand's offset in the segment; 0 if the block has none yet."""
OPERAND_CHECKED = OPERAND + 3
"""... with the address to use, linear or poisoned."""
OPERAND_BOUND = OPERAND + 4
BRANCH_IS_FAR = OPERAND + 5
"""Whether the instruction, if a branch, may lead beyond the limit of CS: 1, or FAR_UNNAMED."""
FAR_UNNAMED = 2
"""... and leaves its block without naming it: LOOP and JCXZ, and with RFLAGS.RF all."""
CHANGES_OPERAND = OPERAND + 6
"""1 if the instruction writes to memory what it has read there."""
NARROW = OPERAND + 7
"""1 if of an operand of 64 bits only the lower half is to be loaded."""
BRANCHES = OPERAND + 8
"""1 if the instruction is a near branch outside 64-bit mode."""
X87_KEPT = OPERAND + 9
"""18 cells: the x87 registers, their tags and the top of the stack before an instruction."""
PUSHES_FLAGS = X87_KEPT + 18
"""1 if the instruction is PUSHF; then where the function stands that its flags come from."""
VECTOR = PUSHES_FLAGS + 1
"""Two cells: an operand of SSE arithmetic as it is to be taken (`sse_arithmetic`)."""
PRODUCTS = VECTOR + 2
"""Four cells: the products that DPPS and DPPD add, and where their factors are copied to."""
WORK = PRODUCTS + 4
"""Cells to compute transcendental functions in (`instructions.x87.transcendental`)."""
X87_EMPTIED = WORK + WORK_CELLS
"""16 cells: what was in x87 registers that were empty and read, mantissa and the rest."""
PLACES = X87_EMPTIED + 16
PLACE_SLOTS = 64
PLACE_CELLS = 4
"""Slots for places in machine code that were looked up (`clock`): the place; ..."""
PLACE_RIP = 1
PLACE_COUNTS = 2
"""... how many instructions of the block are after in bits 63:16, the instruction's length in
15:8, and the form of the flags in 7:0; ..."""
PLACE_OPERAND = 3
"""... and one of these, or 0 where nobody has asked yet."""
OPERAND_OTHER = 1
OPERAND_CHANGES = 2
"""It is read, and then written."""
OPERAND_OF_PORT = 3
"""It comes from a port, or goes there: INS, OUTS."""
ENTRIES = PLACES + PLACE_SLOTS * PLACE_CELLS
"""How many entries of the engine's TLB were set since all were dropped (`tlb`); more than
ENTRIES_MOST where nobody counts. After it page, rights and mode of each; then the same for the
other tables, where SPACE is 1."""
ENTRIES_MOST = 32
ENTRIES_CELLS = 1 + ENTRIES_MOST
SPACE_CELLS = 11
PARKED = ENTRIES + 2 * ENTRIES_CELLS
"""What the parked translations are for, in the words of `address_spaces.describe`: 0 if nothing."""
DEPARTING = PARKED + SPACE_CELLS
ARRIVING = DEPARTING + SPACE_CELLS
PARKED_TABLES = ARRIVING + SPACE_CELLS
PARKED_TABLES_CELLS = 272
CELLS = PARKED_TABLES + PARKED_TABLES_CELLS

IS_SHOWN = 0x100

# What ACCESSES may hold.
ACCESSES_UNCHECKED = 0
"""64-bit code: segments have no limits."""
ACCESSES_OF_CS_FS_GS = 1
"""32-bit code whose ES, SS and DS are flat."""
ACCESSES_ALL = 2
