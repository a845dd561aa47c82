"""Where Unicorn 2.1.4 keeps the state of an x86 processor.

The offsets are into its CPU state, of which a saved context holds a plain copy.
`trapgate.engine.translator.calibration` proves each of them on the running library before
anything relies on them.
"""

from trapgate.engine.library.host import HOST

REGS = 0
EIP = 128
EFLAGS = 136
CC_DST = 144
CC_SRC = 152
CC_OP = 168
DF = 172
HFLAGS = 176
HFLAGS2 = 180
SEGMENTS = 184
"""ES, CS, SS, DS, FS, GS, LDTR, TR, GDTR, IDTR: selector, base, limit, flags each."""
SEGMENT_SIZE = 24
SELECTOR = 0
BASE = 8
LIMIT = 16
FLAGS = 20
CR0 = 424
CR2 = CR0 + 16
CR3 = CR0 + 24
CR4 = CR0 + 32
CR8 = CR0 + 64
EFER = 592
FPU = 600
"""From here to SYSENTER_CS: the x87, MMX and SSE state."""
FPU_OP = 752
FPU_CS = 754
FPU_DS = 756
FPU_IP = 760
FPU_DP = 768
"""The pointers to the latest x87 instruction and its operand."""
X87_FLAGS = 778
"""The exception flags of x87 arithmetic, likewise, in the order of the status word."""
X87_FLUSHES = X87_FLAGS + 2
FT0 = 784
"""The other operand of x87 arithmetic."""
SSE_FLAGS = 810
"""The exception flags that SSE instructions raised; they stay until someone clears them."""
SSE_ROUNDING = SSE_FLAGS - 1
"""How its results are rounded: 0 to nearest."""
SSE_FLUSHES = SSE_FLAGS + 2
"""1 if its results are flushed to zero where they are tiny, as in all states of the engine's
arithmetic two bytes after the flags."""
MXCSR = 816
SYSENTER_CS = 4800
SYSENTER_ESP = 4808
SYSENTER_EIP = 4816
STAR = 4824
LSTAR = 4840
CSTAR = 4848
FMASK = 4856
KERNEL_GS_BASE = 4864
TSC_AUX = 4896
XCR0 = 4904
PAT = 5280
MACHINE = 5360
"""A cell of the engine that only KVM uses: the address of the machine's cells."""
ERROR_CODE = 5384
EXCEPTION_IS_INT = 5388
DR0 = 5400
DR6 = DR0 + 48
DR7 = DR0 + 56
OLD_EXCEPTION = DR0 + 96
VM_VMCB = DR0 + 104
INTERCEPT = DR0 + 120
INTERCEPT_CR_READ = DR0 + 128
INTERCEPT_CR_WRITE = DR0 + 130
INTERCEPT_DR_READ = DR0 + 132
INTERCEPT_DR_WRITE = DR0 + 134
INTERCEPT_EXCEPTIONS = DR0 + 136
CONTEXT_SIZE = 5568
FEATURES_1_ECX = 0x1608
"""After what a context saves: the features that the translator knows, CPUID.1:ECX."""
CPU_OF_HANDLE = 0x1B8
"""In the handle: the CPU."""
CPU_SIZE = HOST.cpu_size
"""From the CPU to its x86 state (native path only)."""
CFLAGS_NEXT_TB = 24
"""In the CPU: how the next block is to be translated; the low bits limit its instructions."""
BLOCKS_FOUND = CPU_SIZE - 35096
BLOCKS_FOUND_MOST = 4096
"""In the CPU: so many blocks of translated code, by their linear addresses."""
BLOCKS_OF_PAGE = 64
"""Those of a page stand together."""
IO_PC = BLOCKS_FOUND + 0x8040
"""In the CPU: where the machine code continues that accesses a device."""

# The TLB, below the CPU state: which modes have entries, then a description of each mode (the
# engine calls it MMU index), then each mode's table: its mask and its address.
TLB_MODES = 3
TLB_CHANGED = -2192
TLB_DESCRIPTIONS = TLB_CHANGED + 32
TLB_DESCRIPTION_SIZE = 696
TLB_LARGE = 0
TLB_LARGE_MASK = 8
TLB_USED = 32
TLB_DISPLACED = 40
"""Of a description: what large pages cover, how many entries are used, how many were displaced."""
TLB_VICTIM = 48
TLB_VICTIMS = 8
"""Entries to where others are displaced."""
TLB_TABLES = -64
TLB_TABLE_SIZE = 16
TLB_ENTRY_SHIFT = 6
TLB_READ = 0
TLB_WRITE = 8
TLB_CODE = 16
"""Of an entry: the page for each kind of access, or -1. Lower bits mean that it is not simple."""
TLB_PHYSICAL = 24

# A block of translated code, after its linear address.
TB_CS_BASE = 8
TB_FLAGS = 0x10
TB_SIZE = 0x14
"""Bytes of its source, 16 bits."""
TB_ICOUNT = 0x16
TB_CFLAGS = 0x18
TB_CODE = 0x20
"""Where its machine code is, and its size."""
TB_COUNT = 0x7FFF
"""Bits of TB_CFLAGS: at most so many instructions, 0 without a limit."""

CC_OP_EFLAGS = 1

# Bits of hflags, which select the code that the translator makes.
HF_INHIBIT_IRQ = 1 << 3
HF_CS32 = 1 << 4
HF_SS32 = 1 << 5
HF_ADDSEG = 1 << 6
HF_PE = 1 << 7
HF_EM = 1 << 10
HF_TS = 1 << 11
HF_LMA = 1 << 14
HF_CS64 = 1 << 15
HF_GUEST = 1 << 21
HF_OSFXSR = 1 << 22
HF_SMAP = 1 << 23
HF_IOBPT = 1 << 24
HF_LIMITED = 1 << 27
"""DS, ES or SS is not flat. The engine does not use this bit nor the next, but keeps them, and
keeps apart blocks that differ in them."""
HF_CODE_LIMITED = 1 << 28
"""Code can reach beyond the limit of CS."""
HF_GUESTS_SET = 1 << 29
"""Translations are those of a guest with a VPID (`address_spaces`); likewise."""
HF_KEPT = 63 << 24
"""I/O breakpoints and MPX, the engine's own business, and the three above."""

# Exception numbers of the execution loop.
EXCP_INTERRUPT = 0x10000
EXCP_VMEXIT = 0x100

# The scratch page that interception writes fault addresses to, and its MSR bitmap.
VMCB = 0xF_FFFF_0000_0000 >> 4
VMCB_PAGES = 8
STORES = VMCB + VMCB_PAGES * 0x1000
"""The page after it: what is written there is judged first (see `table_stores`)."""
NOWHERE = STORES + 0x1000
"""After it, where loads give all ones and stores are dropped."""
APIC_ACCESSES = NOWHERE + 0x1000
"""After it: what stands for the APIC-access page of an x86 VMM's guest (see `apic_page`)."""
VIDEO = APIC_ACCESSES + 0x1000
"""After it: what stands for the window to a VGA's planes, where that is open."""
VIDEO_SIZE = 0x10000
VIDEO_WINDOW = 0xA0000
"""Where the guest finds it."""
VMCB_EXIT_INFO_2 = 0x80
POINTERS = VMCB + (VMCB_PAGES - 1) * 0x1000
"""In the last scratch page: the pointers of PAE paging that the guest's CR3 and its likes loaded,
and CR3 itself. On the portable path the engine's CR3 is this address then, for its walks read the
pointers from memory each time."""
VMCB_MSRPM_BASE = 0x48

# Codes of intercepted events, as EXCP_VMEXIT + code (AMD64 Manual, volume 2, appendix
# "SVM Intercept Exit Codes").
SVM_READ_CR = 0x00
SVM_WRITE_CR = 0x10
SVM_READ_DR = 0x20
SVM_WRITE_DR = 0x30
SVM_EXCEPTION = 0x40
SVM_BASE = 0x60
"""The event of bit 0 of INTERCEPT."""
SVM_IDTR_READ = 0x66
SVM_RDTSC = 0x6E
SVM_RDPMC = 0x6F
SVM_CPUID = 0x72
SVM_IRET = 0x74
SVM_SOFTWARE_INTERRUPT = 0x75
SVM_INVD = 0x76
SVM_PAUSE = 0x77
SVM_HLT = 0x78
SVM_INVLPG = 0x79
SVM_IO = 0x7B
SVM_MSR = 0x7C
SVM_TASK_SWITCH = 0x7D
SVM_SHUTDOWN = 0x7F
SVM_ICEBP = 0x88
SVM_WBINVD = 0x89
SVM_MONITOR = 0x8A
SVM_MWAIT = 0x8B
