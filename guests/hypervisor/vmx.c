/* Into VMX operation, and a VMCS for a guest in flat protected mode. */
#include "hypervisor.h"

#define CODE 0x08
#define DATA 0x10
#define TASK 0x18

bool halt_state;

/* Of the SDM's "VM-Instruction Error Numbers". */
static const char *const errors[] = {
    [1] = "VMCALL in VMX root operation",
    [2] = "VMCLEAR with invalid physical address",
    [3] = "VMCLEAR with VMXON pointer",
    [4] = "VMLAUNCH with non-clear VMCS",
    [5] = "VMRESUME with non-launched VMCS",
    [6] = "VMRESUME after VMXOFF",
    [7] = "VM entry with invalid control field(s)",
    [8] = "VM entry with invalid host-state field(s)",
    [9] = "VMPTRLD with invalid physical address",
    [10] = "VMPTRLD with VMXON pointer",
    [11] = "VMPTRLD with incorrect VMCS revision identifier",
    [12] = "VMREAD or VMWRITE from or to unsupported VMCS component",
    [13] = "VMWRITE to read-only VMCS component",
    [15] = "VMXON executed in VMX root operation",
    [26] = "VM entry with events blocked by MOV SS",
};

/* The number of the latest failure is in the current VMCS; reading it must not fail in turn. */
_Noreturn void vm_failed(const char *instruction, u32 operand, u8 carry) {
    u32 number = 0;
    if (carry)
        give_up("%s of %x: VMfailInvalid, there is no current VMCS", instruction, operand);
    __asm__ volatile("vmread %1, %0" : "=r"(number) : "r"(VM_INSTRUCTION_ERROR) : "cc");
    const char *words = number < sizeof errors / sizeof errors[0] ? errors[number] : NULL;
    give_up("%s of %x: VMfailValid, error %d: %s", instruction, operand, number,
            words ? words : "unknown");
}

_Noreturn void vm_entry_failed(u32 flags) {
    vm_failed(exit_total ? "VMRESUME" : "VMLAUNCH", 0, flags & 1);
}

static u8 vmxon_region[PAGE_SIZE] __attribute__((aligned(PAGE_SIZE)));
static u8 vmcs_region[PAGE_SIZE] __attribute__((aligned(PAGE_SIZE)));
static u8 io_bitmaps[2 * PAGE_SIZE] __attribute__((aligned(PAGE_SIZE)));
static u32 directory[ENTRIES] __attribute__((aligned(PAGE_SIZE)));

static u32 task_state[26];
static u32 segments[][2] = {
    {0, 0}, {0xFFFF, 0x00CF9B00}, {0xFFFF, 0x00CF9300}, {0, 0}, /* TASK, filled in below */
};
static u32 gates[32][2];
extern char host_stubs[], exit_gates[], host_stack_top[], vm_exit[];

struct pointer {
    u16 limit;
    u32 base;
} __attribute__((packed));

/* Segments, a task register, gates for what should not happen, and 4 GiB mapped one to one. */
static void host_setup(u32 cr0, u32 cr4) {
    u32 task = (u32)task_state;
    segments[TASK / 8][0] = task << 16 | (sizeof task_state - 1);
    segments[TASK / 8][1] = (task & 0xFF000000) | 0x8900 | ((task >> 16) & 0xFF);
    for (u32 i = 0; i < 32; i++) {
        u32 stub = options.through_idt ? (u32)exit_gates + 32 * i : (u32)host_stubs + 8 * i;
        gates[i][0] = CODE << 16 | (stub & 0xFFFF);
        gates[i][1] = (stub & 0xFFFF0000) | 0x8E00;
    }
    for (u32 i = 0; i < ENTRIES; i++)
        directory[i] = i << 22 | 0x83; /* present, writable, large */
    struct pointer gdt = {sizeof segments - 1, (u32)segments};
    struct pointer idt = {sizeof gates - 1, (u32)gates};
    __asm__ volatile("lgdt %0\n\t"
                     "lidt %1\n\t"
                     "ljmp %2, $1f\n"
                     "1:\n\t"
                     "mov %3, %%ds\n\t"
                     "mov %3, %%es\n\t"
                     "mov %3, %%ss\n\t"
                     "mov %3, %%fs\n\t"
                     "mov %3, %%gs\n\t"
                     "ltr %w4\n\t"
                     "mov %5, %%cr4\n\t"
                     "mov %6, %%cr3\n\t"
                     "mov %7, %%cr0"
                     :
                     : "m"(gdt), "m"(idt), "i"(CODE), "r"(DATA), "r"(TASK), "r"(cr4),
                       "r"(directory), "r"(cr0)
                     : "memory");
}

static u32 fixed(u32 value, u32 fixed0) {
    return (value | (u32)rdmsr(fixed0)) & (u32)rdmsr(fixed0 + 1);
}

#define POINTER_INSTRUCTION(instruction, region)                                                  \
    do {                                                                                          \
        u64 pointer = (u32)(region);                                                              \
        u8 invalid, bad;                                                                          \
        __asm__ volatile(instruction " %2\n\tsetc %0\n\tsetna %1"                                 \
                         : "=q"(invalid), "=q"(bad)                                               \
                         : "m"(pointer)                                                           \
                         : "cc", "memory");                                                       \
        if (bad)                                                                                  \
            vm_failed(instruction, (u32)pointer, invalid);                                        \
    } while (0)

static u32 control(u32 msr, u32 wanted, const char *which) {
    if ((u32)(rdmsr(IA32_VMX_BASIC) >> 32) & BASIC_TRUE_CONTROLS)
        msr += TRUE_CTLS;
    u64 capability = rdmsr(msr);
    u32 missing = wanted & ~(u32)(capability >> 32);
    if (missing)
        give_up("this processor has not got the %s controls %x", which, missing);
    return wanted | (u32)capability;
}

static void write_all(const u32 (*pairs)[2], u32 count) {
    for (u32 i = 0; i < count; i++)
        vmwrite(pairs[i][0], pairs[i][1]);
}
#define WRITE_ALL(pairs) write_all(pairs, sizeof(pairs) / sizeof(pairs)[0])

static void controls_setup(void) {
    bool every = options.policy == POLICY_ALL, match = options.policy == POLICY_MATCH;
    io_bitmaps[0xF4 / 8] = 1 << (0xF4 % 8); /* the debug exit: a summary comes first */
    const u32 controls[][2] = {
        {PIN_BASED_CONTROLS,
         control(IA32_VMX_PINBASED_CTLS, PIN_EXTERNAL_INTERRUPT_EXITING, "pin-based")},
        {PRIMARY_CONTROLS,
         control(IA32_VMX_PROCBASED_CTLS,
                 PRIMARY_HLT_EXITING | PRIMARY_CR3_LOAD_EXITING | PRIMARY_CR3_STORE_EXITING |
                     PRIMARY_USE_IO_BITMAPS | (every ? PRIMARY_INVLPG_EXITING : 0),
                 "processor-based")},
        {VM_EXIT_CONTROLS,
         control(IA32_VMX_EXIT_CTLS, EXIT_SAVE_DEBUG_CONTROLS | EXIT_ACKNOWLEDGE_INTERRUPT,
                 "VM-exit")},
        {VM_ENTRY_CONTROLS,
         control(IA32_VMX_ENTRY_CTLS, ENTRY_LOAD_DEBUG_CONTROLS, "VM-entry")},
        /* Page faults exit if P in the error code is as the policy wants: with `match`, a
         * shadow entry that is not present stands for one of the guest's that is not either,
         * and the fault is the guest's; what the shadow has yet to fill in has a reserved bit
         * set, which faults with P = 1. */
        {EXCEPTION_BITMAP, every ? 0xFFFFFFFF : 1u << PF},
        {PAGE_FAULT_MASK, match ? 1 : 0},
        {PAGE_FAULT_MATCH, match ? 1 : 0},
        {IO_BITMAP_A, (u32)io_bitmaps},
        {IO_BITMAP_A + 1, 0},
        {IO_BITMAP_B, (u32)io_bitmaps + PAGE_SIZE},
        {IO_BITMAP_B + 1, 0},
        {TSC_OFFSET, 0},
        {TSC_OFFSET + 1, 0},
        {CR3_TARGET_COUNT, 0},
        {VM_EXIT_MSR_STORE_COUNT, 0},
        {VM_EXIT_MSR_LOAD_COUNT, 0},
        {VM_ENTRY_MSR_LOAD_COUNT, 0},
        {ENTRY_INTERRUPTION_INFORMATION, 0},
        {ENTRY_EXCEPTION_ERROR_CODE, 0},
        {ENTRY_INSTRUCTION_LENGTH, 0},
        /* Of CR0 the guest keeps MP, EM, TS, ET and AM, of CR4 nothing. */
        {CR0_MASK, CR0_PE | CR0_NE | CR0_WP | CR0_NW | CR0_CD | CR0_PG},
        {CR4_MASK, 0xFFFFFFFF},
        {CR0_SHADOW, CR0_PE | CR0_ET},
        {CR4_SHADOW, 0},
    };
    WRITE_ALL(controls);
}

static void host_state(u32 cr0, u32 cr4) {
    const u32 host[][2] = {
        {HOST_CR0, cr0},
        {HOST_CR3, (u32)directory},
        {HOST_CR4, cr4},
        {HOST_FS_BASE, 0},
        {HOST_GS_BASE, 0},
        {HOST_TR_SELECTOR, TASK},
        {HOST_TR_BASE, (u32)task_state},
        {HOST_GDTR_BASE, (u32)segments},
        {HOST_IDTR_BASE, (u32)gates},
        {HOST_SYSENTER_CS, 0},
        {HOST_SYSENTER_ESP, 0},
        {HOST_SYSENTER_EIP, 0},
        {HOST_RSP, (u32)host_stack_top},
        {HOST_RIP, (u32)vm_exit},
    };
    WRITE_ALL(host);
    if (options.through_idt) /* what no exception causes comes by the last vector */
        vmwrite(EXIT_THROUGH_IDT, 1u << 31 | 31);
    for (u32 i = 0; i < 6; i++) /* ES, CS, SS, DS, FS, GS */
        vmwrite(HOST_ES_SELECTOR + 2 * i, i == 1 ? CODE : DATA);
}

/* As multiboot has it: flat segments, paging off, interrupts off. That paging is on all the
 * same is between us and the processor; CR0_SHADOW is what the guest sees. */
static void guest_state(void) {
    for (u32 i = 0; i < 8; i++) { /* ES, CS, SS, DS, FS, GS, LDTR, TR */
        vmwrite(GUEST_ES_SELECTOR + 2 * i, i < 6 ? (i == 1 ? CODE : DATA) : 0);
        vmwrite(GUEST_ES_BASE + 2 * i, 0);
        vmwrite(GUEST_ES_LIMIT + 2 * i, i < 6 ? 0xFFFFFFFF : 0xFFFF);
        vmwrite(GUEST_ES_RIGHTS + 2 * i, i == 1 ? 0xC09B : 0xC093);
    }
    const u32 state[][2] = {
        {GUEST_LDTR_RIGHTS, 0x10000}, /* unusable */
        {GUEST_TR_RIGHTS, 0x8B},      /* a busy task-state segment */
        {GUEST_CR0, fixed(CR0_PE | CR0_ET | CR0_NE | CR0_WP | CR0_PG, IA32_VMX_CR0_FIXED0)},
        {GUEST_CR4, fixed(CR4_PAE | CR4_VMXE, IA32_VMX_CR4_FIXED0)},
        {GUEST_GDTR_BASE, 0},
        {GUEST_GDTR_LIMIT, 0},
        {GUEST_IDTR_BASE, 0},
        {GUEST_IDTR_LIMIT, 0},
        {GUEST_DR7, 0x400},
        {GUEST_RSP, 0},
        {GUEST_RIP, guest.entry},
        {GUEST_RFLAGS, RFLAGS_FIXED},
        {GUEST_INTERRUPTIBILITY, 0},
        {GUEST_ACTIVITY_STATE, 0},
        {GUEST_PENDING_DEBUG, 0},
        {GUEST_SYSENTER_CS, 0},
        {GUEST_SYSENTER_ESP, 0},
        {GUEST_SYSENTER_EIP, 0},
        {GUEST_DEBUGCTL, 0},
        {GUEST_DEBUGCTL + 1, 0},
        {VMCS_LINK_POINTER, 0xFFFFFFFF},
        {VMCS_LINK_POINTER + 1, 0xFFFFFFFF},
    };
    WRITE_ALL(state);
}

void vmx_on(void) {
    u32 leaf[4], cr0, cr4;
    cpuid(1, 0, leaf);
    if (!(leaf[2] & (1u << 5)))
        give_up("this processor has no VMX (CPUID leaf 1, ECX bit 5)");
    u64 feature = rdmsr(IA32_FEATURE_CONTROL);
    if (!(feature & FEATURE_LOCKED))
        wrmsr(IA32_FEATURE_CONTROL, feature | FEATURE_LOCKED | FEATURE_VMXON);
    else if (!(feature & FEATURE_VMXON))
        give_up("IA32_FEATURE_CONTROL is locked, and VMXON not allowed");
    halt_state = rdmsr(IA32_VMX_MISC) & MISC_HLT_STATE;

    __asm__ volatile("mov %%cr0, %0\n\tmov %%cr4, %1" : "=r"(cr0), "=r"(cr4));
    cr0 = fixed((cr0 | CR0_PE | CR0_NE | CR0_PG) & ~(CR0_CD | CR0_NW), IA32_VMX_CR0_FIXED0);
    cr4 = fixed((cr4 & ~CR4_PAE) | CR4_PSE | CR4_VMXE, IA32_VMX_CR4_FIXED0);
    host_setup(cr0, cr4);

    *(u32 *)vmxon_region = *(u32 *)vmcs_region = (u32)rdmsr(IA32_VMX_BASIC);
    POINTER_INSTRUCTION("vmxon", vmxon_region);
    POINTER_INSTRUCTION("vmclear", vmcs_region);
    POINTER_INSTRUCTION("vmptrld", vmcs_region);
    controls_setup();
    host_state(cr0, cr4);
    guest_state();
}
