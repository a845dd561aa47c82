/* VMX instructions, each checked for failure, and the numbers of the SDM that are used here
 * (its appendices on capability reporting, field encoding and basic exit reasons). */
#ifndef VMX_H
#define VMX_H

#include "../abi.h"

#define IA32_FEATURE_CONTROL 0x03A
#define FEATURE_LOCKED 0x1
#define FEATURE_VMXON 0x4
#define IA32_VMX_BASIC 0x480
#define BASIC_TRUE_CONTROLS (1u << (55 - 32)) /* in the upper half */
#define IA32_VMX_PINBASED_CTLS 0x481
#define IA32_VMX_PROCBASED_CTLS 0x482
#define IA32_VMX_EXIT_CTLS 0x483
#define IA32_VMX_ENTRY_CTLS 0x484
#define TRUE_CTLS (0x48D - 0x481) /* from each of those to its TRUE one */
#define IA32_VMX_MISC 0x485
#define MISC_HLT_STATE (1u << 6)
#define IA32_VMX_CR0_FIXED0 0x486
#define IA32_VMX_CR0_FIXED1 0x487
#define IA32_VMX_CR4_FIXED0 0x488
#define IA32_VMX_CR4_FIXED1 0x489

#define PIN_EXTERNAL_INTERRUPT_EXITING 0x1u
#define PRIMARY_INTERRUPT_WINDOW_EXITING (1u << 2)
#define PRIMARY_HLT_EXITING (1u << 7)
#define PRIMARY_INVLPG_EXITING (1u << 9)
#define PRIMARY_CR3_LOAD_EXITING (1u << 15)
#define PRIMARY_CR3_STORE_EXITING (1u << 16)
#define PRIMARY_USE_IO_BITMAPS (1u << 25)
#define EXIT_SAVE_DEBUG_CONTROLS (1u << 2)
#define EXIT_ACKNOWLEDGE_INTERRUPT (1u << 15)
#define ENTRY_LOAD_DEBUG_CONTROLS (1u << 2)

enum field {
    GUEST_ES_SELECTOR = 0x0800, /* CS, SS, DS, FS, GS, LDTR, TR follow, two apart */
    GUEST_CS_SELECTOR = 0x0802,
    GUEST_TR_SELECTOR = 0x080E,
    HOST_ES_SELECTOR = 0x0C00, /* CS, SS, DS, FS, GS, TR follow, two apart */
    HOST_CS_SELECTOR = 0x0C02,
    HOST_TR_SELECTOR = 0x0C0C,
    IO_BITMAP_A = 0x2000,
    IO_BITMAP_B = 0x2002,
    TSC_OFFSET = 0x2010,
    VMCS_LINK_POINTER = 0x2800,
    GUEST_DEBUGCTL = 0x2802,
    PIN_BASED_CONTROLS = 0x4000,
    PRIMARY_CONTROLS = 0x4002,
    EXCEPTION_BITMAP = 0x4004,
    PAGE_FAULT_MASK = 0x4006,
    PAGE_FAULT_MATCH = 0x4008,
    CR3_TARGET_COUNT = 0x400A,
    VM_EXIT_CONTROLS = 0x400C,
    VM_EXIT_MSR_STORE_COUNT = 0x400E,
    VM_EXIT_MSR_LOAD_COUNT = 0x4010,
    VM_ENTRY_CONTROLS = 0x4012,
    VM_ENTRY_MSR_LOAD_COUNT = 0x4014,
    ENTRY_INTERRUPTION_INFORMATION = 0x4016,
    ENTRY_EXCEPTION_ERROR_CODE = 0x4018,
    ENTRY_INSTRUCTION_LENGTH = 0x401A,
    VM_INSTRUCTION_ERROR = 0x4400,
    EXIT_REASON = 0x4402,
    EXIT_INTERRUPTION_INFORMATION = 0x4404,
    EXIT_INTERRUPTION_ERROR_CODE = 0x4406,
    IDT_VECTORING_INFORMATION = 0x4408,
    IDT_VECTORING_ERROR_CODE = 0x440A,
    EXIT_THROUGH_IDT = 0x4344, /* an extension of Trapgate's; the seed's paragraph 26 */
    EXIT_INSTRUCTION_LENGTH = 0x440C,
    GUEST_ES_LIMIT = 0x4800, /* CS, SS, DS, FS, GS, LDTR, TR follow, two apart */
    GUEST_LDTR_LIMIT = 0x480C,
    GUEST_TR_LIMIT = 0x480E,
    GUEST_GDTR_LIMIT = 0x4810,
    GUEST_IDTR_LIMIT = 0x4812,
    GUEST_ES_RIGHTS = 0x4814,
    GUEST_CS_RIGHTS = 0x4816,
    GUEST_SS_RIGHTS = 0x4818,
    GUEST_LDTR_RIGHTS = 0x4820,
    GUEST_TR_RIGHTS = 0x4822,
    GUEST_INTERRUPTIBILITY = 0x4824,
    GUEST_ACTIVITY_STATE = 0x4826,
    GUEST_SYSENTER_CS = 0x482A,
    HOST_SYSENTER_CS = 0x4C00,
    CR0_MASK = 0x6000,
    CR4_MASK = 0x6002,
    CR0_SHADOW = 0x6004,
    CR4_SHADOW = 0x6006,
    EXIT_QUALIFICATION = 0x6400,
    GUEST_CR0 = 0x6800,
    GUEST_CR3 = 0x6802,
    GUEST_CR4 = 0x6804,
    GUEST_ES_BASE = 0x6806, /* CS, SS, DS, FS, GS, LDTR, TR follow, two apart */
    GUEST_CS_BASE = 0x6808,
    GUEST_GDTR_BASE = 0x6816,
    GUEST_IDTR_BASE = 0x6818,
    GUEST_DR7 = 0x681A,
    GUEST_RSP = 0x681C,
    GUEST_RIP = 0x681E,
    GUEST_RFLAGS = 0x6820,
    GUEST_PENDING_DEBUG = 0x6822,
    GUEST_SYSENTER_ESP = 0x6824,
    GUEST_SYSENTER_EIP = 0x6826,
    HOST_CR0 = 0x6C00,
    HOST_CR3 = 0x6C02,
    HOST_CR4 = 0x6C04,
    HOST_FS_BASE = 0x6C06,
    HOST_GS_BASE = 0x6C08,
    HOST_TR_BASE = 0x6C0A,
    HOST_GDTR_BASE = 0x6C0C,
    HOST_IDTR_BASE = 0x6C0E,
    HOST_SYSENTER_ESP = 0x6C10,
    HOST_SYSENTER_EIP = 0x6C12,
    HOST_RSP = 0x6C14,
    HOST_RIP = 0x6C16,
};

enum reason {
    EXIT_EXCEPTION = 0,
    EXIT_EXTERNAL_INTERRUPT = 1,
    EXIT_TRIPLE_FAULT = 2,
    EXIT_INTERRUPT_WINDOW = 7,
    EXIT_TASK_SWITCH = 9,
    EXIT_CPUID = 10,
    EXIT_HLT = 12,
    EXIT_INVD = 13,
    EXIT_INVLPG = 14,
    EXIT_VMCALL = 18, /* to VMXON, 27: the VMX instructions */
    EXIT_VMXON = 27,
    EXIT_CR_ACCESS = 28,
    EXIT_IO = 30,
    EXIT_RDMSR = 31,
    EXIT_WRMSR = 32,
    EXIT_INVALID_GUEST_STATE = 33,
    EXIT_MSR_LOADING = 34,
    EXIT_INVEPT = 50,
    EXIT_INVVPID = 53,
    EXIT_WBINVD = 54,
    EXIT_XSETBV = 55,
    REASONS = 64,
};
#define REASON_ENTRY_FAILED 0x80000000u

/* Interruption information: vector, type, and these bits. */
#define EVENT_VECTOR 0xFFu
#define EVENT_TYPE 0x700u
#define EVENT_EXTERNAL (0u << 8)
#define EVENT_NMI (2u << 8)
#define EVENT_EXCEPTION (3u << 8)
#define EVENT_SOFTWARE_INTERRUPT (4u << 8)
#define EVENT_SOFTWARE_EXCEPTION (6u << 8)
#define EVENT_HAS_ERROR 0x800u
#define EVENT_NMI_UNBLOCKED 0x1000u
#define EVENT_VALID 0x80000000u

/* What a VMX instruction that failed is to say of itself; vmx.c. */
_Noreturn void vm_failed(const char *instruction, u32 operand, u8 carry);

static inline u32 vmread(enum field field) {
    u32 value;
    u8 invalid, bad;
    __asm__ volatile("vmread %3, %0\n\tsetc %1\n\tsetna %2"
                     : "=r"(value), "=q"(invalid), "=q"(bad)
                     : "r"(field)
                     : "cc");
    if (__builtin_expect(bad, 0))
        vm_failed("VMREAD", field, invalid);
    return value;
}

static inline void vmwrite(enum field field, u32 value) {
    u8 invalid, bad;
    __asm__ volatile("vmwrite %2, %3\n\tsetc %0\n\tsetna %1"
                     : "=q"(invalid), "=q"(bad)
                     : "r"(value), "r"(field)
                     : "cc", "memory");
    if (__builtin_expect(bad, 0))
        vm_failed("VMWRITE", field, invalid);
}

static inline u64 rdmsr(u32 msr) {
    u32 low, high;
    __asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(msr));
    return (u64)high << 32 | low;
}
static inline void wrmsr(u32 msr, u64 value) {
    __asm__ volatile("wrmsr" : : "c"(msr), "a"((u32)value), "d"((u32)(value >> 32)));
}
static inline void cpuid(u32 leaf, u32 subleaf, u32 out[4]) {
    __asm__ volatile("cpuid"
                     : "=a"(out[0]), "=b"(out[1]), "=c"(out[2]), "=d"(out[3])
                     : "a"(leaf), "c"(subleaf));
}

#endif
