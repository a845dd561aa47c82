/* What each VM exit is answered with: a table from reasons to handlers. */
#include "hypervisor.h"

u32 exit_counts[REASONS], exit_total;

u32 guest_ring(void) { return (vmread(GUEST_SS_RIGHTS) >> 5) & 3; }

/* The instruction has been carried out here: go on behind it. */
void skip(u32 length) {
    u32 interruptibility = vmread(GUEST_INTERRUPTIBILITY);
    vmwrite(GUEST_RIP, vmread(GUEST_RIP) + length);
    if (interruptibility & 3)
        vmwrite(GUEST_INTERRUPTIBILITY, interruptibility & ~3u);
    if (vmread(GUEST_RFLAGS) & RFLAGS_TF) /* its single-step trap is still to come */
        vmwrite(GUEST_PENDING_DEBUG, vmread(GUEST_PENDING_DEBUG) | 1u << 14);
}

static void skip_it(struct registers *r) {
    (void)r;
    skip(vmread(EXIT_INSTRUCTION_LENGTH));
}

static void page_fault(struct registers *r) {
    u32 linear = vmread(EXIT_QUALIFICATION), error;
    switch (shadow_fault(linear, vmread(EXIT_INTERRUPTION_ERROR_CODE), &error)) {
    case MAPPED: break;
    case EDIT: edit_table(linear, r); break;
    case GUESTS:
        __asm__ volatile("mov %0, %%cr2" : : "r"(linear));
        event_fault(PF, error);
    }
}

static void exception(struct registers *r) {
    u32 information = vmread(EXIT_INTERRUPTION_INFORMATION);
    if ((information & EVENT_VECTOR) == PF)
        page_fault(r);
    else
        event_reflect(information);
}

static void external_interrupt(struct registers *r) {
    (void)r;
    event_interrupt(vmread(EXIT_INTERRUPTION_INFORMATION) & EVENT_VECTOR);
}

static void triple_fault(struct registers *r) {
    (void)r;
    give_up("triple fault of the guest at EIP %x", vmread(GUEST_RIP));
}

static void window_open(struct registers *r) { (void)r; }

/* Leaf 1 and 80000001H without what the shadow, or this VMM, has not got. */
static void cpuid_handler(struct registers *r) {
    u32 leaf = *low(r, EAX), out[4];
    cpuid(leaf, *low(r, ECX), out);
    if (leaf == 1) {
        out[2] &= ~(1u << 5 | 1u << 6 | 1u << 17 | 1u << 21 | 1u << 26 | 1u << 27 | 1u << 28);
        out[2] |= 1u << 31; /* there is a hypervisor */
        out[3] &= ~(1u << 6 | 1u << 9 | 1u << 12 | 1u << 13 | 1u << 16 | 1u << 17);
    } else if (leaf == 0x80000001) {
        out[3] &= ~(1u << 20 | 1u << 26 | 1u << 29);
    } else if (leaf == 0x40000000) {
        out[0] = leaf;
        memcpy(&out[1], "TrapgateX86!", 12);
    }
    *low(r, EAX) = out[0];
    *low(r, EBX) = out[1];
    *low(r, ECX) = out[2];
    *low(r, EDX) = out[3];
    skip_it(r);
}

static void hlt(struct registers *r) {
    if (!(vmread(GUEST_RFLAGS) & RFLAGS_IF)) {
        say("the guest has halted");
        summary();
        leave(0);
    }
    skip_it(r);
    event_halt();
}

static void undefined(struct registers *r) {
    (void)r;
    event_fault(UD, 0);
}

static u32 cr3; /* as the guest wrote it; the others are in their shadows */

static void paging_changed(void) {
    shadow_paging(vmread(CR0_SHADOW) & CR0_PG, cr3, vmread(CR4_SHADOW) & CR4_PSE);
}

static bool set_cr0(u32 value) {
    u32 changed = value ^ vmread(CR0_SHADOW);
    if ((value & CR0_PG && !(value & CR0_PE)) || (value & CR0_NW && !(value & CR0_CD)))
        return false;
    if (!(value & CR0_PE))
        give_up("the guest goes to real mode, which this hypervisor has not got");
    if (value & CR0_PG && !(value & CR0_WP))
        give_up("the guest's paging is without write protection (CR0.WP), which is not done here");
    vmwrite(CR0_SHADOW, value);
    vmwrite(GUEST_CR0, (value & ~(CR0_NW | CR0_CD)) | CR0_PE | CR0_ET | CR0_NE | CR0_WP | CR0_PG);
    if (changed & CR0_PG)
        paging_changed();
    return true;
}

static bool set_cr3(u32 value) {
    cr3 = value;
    if (vmread(CR0_SHADOW) & CR0_PG)
        paging_changed();
    return true;
}

static bool set_cr4(u32 value) {
    u32 changed = value ^ vmread(CR4_SHADOW);
    if (value & ~(CR4_TSD | CR4_DE | CR4_PSE | CR4_OSFXSR | CR4_OSXMMEXCPT))
        return false;
    vmwrite(CR4_SHADOW, value);
    vmwrite(GUEST_CR4, (value & ~CR4_PSE) | CR4_PAE | CR4_VMXE);
    if (changed & CR4_PSE)
        paging_changed();
    return true;
}

static void control_register(struct registers *r) {
    enum { TO, FROM, CLTS, LMSW };
    u32 qualification = vmread(EXIT_QUALIFICATION);
    u32 number = qualification & 15, kind = (qualification >> 4) & 3;
    u32 which = (qualification >> 8) & 15;
    bool good = true;
    if (kind == FROM) {
        set_register(r, which, cr3);
    } else if (kind == TO) {
        u32 value = get_register(r, which);
        good = number == 0 ? set_cr0(value) : number == 3 ? set_cr3(value) : set_cr4(value);
    } else {
        give_up("CLTS or LMSW that exits, qualification %x", qualification);
    }
    if (good)
        skip_it(r);
    else
        event_fault(GP, 0);
}

/* Only the debug exit gets here: the guest leaves. */
static void io(struct registers *r) {
    u32 qualification = vmread(EXIT_QUALIFICATION);
    if (qualification & 8) { /* IN */
        *low(r, EAX) |= 0xFF;
        skip_it(r);
        return;
    }
    u8 status = (u8)*low(r, EAX);
    say("the guest exited with status %d", status);
    summary();
    leave(status);
}

/* The MSRs that a guest without long mode, APIC and such may find. */
static const struct {
    u32 msr;
    enum field field;
} msrs[] = {
    {0x174, GUEST_SYSENTER_CS},
    {0x175, GUEST_SYSENTER_ESP},
    {0x176, GUEST_SYSENTER_EIP},
};

static void msr(struct registers *r) {
    bool write = vmread(EXIT_REASON) == EXIT_WRMSR;
    for (u32 i = 0; i < sizeof msrs / sizeof msrs[0]; i++) {
        if (msrs[i].msr != *low(r, ECX))
            continue;
        if (write) {
            vmwrite(msrs[i].field, *low(r, EAX));
        } else {
            *low(r, EAX) = vmread(msrs[i].field);
            *low(r, EDX) = 0;
        }
        skip_it(r);
        return;
    }
    event_fault(GP, 0);
}

static void (*const handlers[REASONS])(struct registers *) = {
    [EXIT_EXCEPTION] = exception,
    [EXIT_EXTERNAL_INTERRUPT] = external_interrupt,
    [EXIT_TRIPLE_FAULT] = triple_fault,
    [EXIT_INTERRUPT_WINDOW] = window_open,
    [EXIT_CPUID] = cpuid_handler,
    [EXIT_HLT] = hlt,
    [EXIT_INVD] = skip_it,
    [EXIT_INVLPG] = skip_it,
    [EXIT_VMCALL ... EXIT_VMXON] = undefined,
    [EXIT_CR_ACCESS] = control_register,
    [EXIT_IO] = io,
    [EXIT_RDMSR] = msr,
    [EXIT_WRMSR] = msr,
    [EXIT_INVEPT] = undefined,
    [EXIT_INVVPID] = undefined,
    [EXIT_WBINVD] = skip_it,
};

void handle_exit(struct registers *r) {
    u32 reason = vmread(EXIT_REASON);
    if (reason & REASON_ENTRY_FAILED)
        give_up("VM entry failed: reason %d, qualification %x", reason & 0xFFFF,
                vmread(EXIT_QUALIFICATION));
    exit_total++;
    if (reason >= REASONS || !handlers[reason])
        give_up("a VM exit without a handler: reason %d, qualification %x, EIP %x", reason,
                vmread(EXIT_QUALIFICATION), vmread(GUEST_RIP));
    exit_counts[reason]++;
    events_begin();
    handlers[reason](r);
    events_finish();
}
