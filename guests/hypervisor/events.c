/* What the next VM entry delivers: a delivery that an exit cut short, the guest's own fault,
 * a fault that the command line asks for, an interrupt. One at a time, in this order. */
#include "hypervisor.h"

struct event_counts event_counts;

static u32 event, event_error, event_length; /* interruption information as the VMCS has it */
static bool begun_again;
static u32 interrupts[8]; /* acknowledged by us, not yet the guest's */
static bool window, asleep;

#define BLOCKING_BY_STI_OR_MOV_SS 3u
#define BLOCKING_BY_NMI 8u
#define ACTIVE 0u
#define HALTED 1u

bool has_error_code(u32 vector) {
    return vector == DF || (vector >= TS && vector <= PF) || vector == AC;
}

static bool is_software(u32 information) { return (information & EVENT_TYPE) >= 4u << 8; }

void events_begin(void) {
    u32 vectoring = vmread(IDT_VECTORING_INFORMATION);
    event = 0;
    begun_again = vectoring & EVENT_VALID;
    if (!begun_again)
        return;
    event = vectoring & ~EVENT_NMI_UNBLOCKED;
    if (event & EVENT_HAS_ERROR)
        event_error = vmread(IDT_VECTORING_ERROR_CODE);
    if (is_software(event))
        event_length = vmread(EXIT_INSTRUCTION_LENGTH);
}

/* Of the SDM's "Conditions for Generating a Double Fault". */
static bool contributory(u32 vector) { return vector == 0 || (vector >= TS && vector <= GP); }

void event_fault(u32 vector, u32 error) {
    u32 first = event & EVENT_VECTOR;
    bool during = (event & (EVENT_VALID | EVENT_TYPE)) == (EVENT_VALID | EVENT_EXCEPTION);
    bool severe = contributory(vector) || vector == PF;
    begun_again = false;
    if (during && first == DF && severe)
        give_up("triple fault of the guest: exception %d while #DF was delivered", vector);
    if (during && severe && (first == PF || (contributory(first) && vector != PF))) {
        vector = DF;
        error = 0;
    }
    event = EVENT_VALID | EVENT_EXCEPTION | vector;
    if (has_error_code(vector))
        event |= EVENT_HAS_ERROR;
    event_error = error;
    event_counts.reflected[vector & 31]++;
}

void event_reflect(u32 information) {
    u32 vector = information & EVENT_VECTOR;
    if (vector == DB) { /* the exit has the causes, DR6 has them not yet */
        u32 dr6;
        __asm__ volatile("mov %%dr6, %0" : "=r"(dr6));
        dr6 = (dr6 & ~0xFu) | vmread(EXIT_QUALIFICATION);
        __asm__ volatile("mov %0, %%dr6" : : "r"(dr6));
    }
    if ((information & EVENT_NMI_UNBLOCKED) && !begun_again && vector != DF)
        vmwrite(GUEST_INTERRUPTIBILITY, vmread(GUEST_INTERRUPTIBILITY) | BLOCKING_BY_NMI);
    if (!is_software(information)) {
        u32 error =
            information & EVENT_HAS_ERROR ? vmread(EXIT_INTERRUPTION_ERROR_CODE) : 0;
        event_fault(vector, error);
        return;
    }
    event = information & ~EVENT_NMI_UNBLOCKED;
    event_length = vmread(EXIT_INSTRUCTION_LENGTH);
    event_counts.reflected[vector & 31]++;
    begun_again = false;
}

void event_interrupt(u32 vector) { interrupts[vector / 32] |= 1u << vector % 32; }

void event_halt(void) {
    asleep = halt_state;
    vmwrite(GUEST_ACTIVITY_STATE, asleep ? HALTED : ACTIVE);
}

/* The command line's wishes, as soon as the guest is in a state for them. */
static void take_injection(void) {
    for (u32 i = 0; i < options.injection_count; i++) {
        struct injection *wanted = &options.injections[i];
        u32 type = wanted->event & EVENT_TYPE;
        if (wanted->done || exit_total < wanted->at || (wanted->user && guest_ring() != 3))
            continue;
        if (type == EVENT_NMI && vmread(GUEST_INTERRUPTIBILITY) &
                                     (BLOCKING_BY_NMI | BLOCKING_BY_STI_OR_MOV_SS))
            continue;
        wanted->done = exit_total;
        wanted->eip = vmread(GUEST_RIP);
        wanted->ring = guest_ring();
        if (type == EVENT_EXTERNAL) {
            event_interrupt(wanted->event & EVENT_VECTOR);
            continue;
        }
        if ((wanted->event & EVENT_VECTOR) == PF)
            __asm__ volatile("mov %0, %%cr2" : : "r"(vmread(GUEST_CS_BASE) + wanted->eip));
        event = wanted->event | EVENT_VALID;
        event_error = wanted->error;
        return;
    }
}

static bool highest_interrupt(u32 *vector) {
    for (u32 i = 8; i-- > 0;)
        if (interrupts[i]) {
            *vector = 32 * i + 31 - (u32)__builtin_clz(interrupts[i]);
            return true;
        }
    return false;
}

static void take_interrupt(void) {
    u32 vector;
    if (!highest_interrupt(&vector) || !(vmread(GUEST_RFLAGS) & RFLAGS_IF) ||
        (vmread(GUEST_INTERRUPTIBILITY) & BLOCKING_BY_STI_OR_MOV_SS))
        return;
    interrupts[vector / 32] &= ~(1u << vector % 32);
    event = EVENT_VALID | EVENT_EXTERNAL | vector;
    event_counts.interrupts++;
}

void events_finish(void) {
    if (!event)
        take_injection();
    if (!event)
        take_interrupt();
    u32 vector;
    bool waiting = highest_interrupt(&vector);
    if (waiting != window) {
        vmwrite(PRIMARY_CONTROLS, vmread(PRIMARY_CONTROLS) ^ PRIMARY_INTERRUPT_WINDOW_EXITING);
        window = waiting;
    }
    if (!event)
        return;
    event_counts.reinjected += begun_again;
    vmwrite(ENTRY_INTERRUPTION_INFORMATION, event);
    if (event & EVENT_HAS_ERROR)
        vmwrite(ENTRY_EXCEPTION_ERROR_CODE, event_error);
    if (is_software(event))
        vmwrite(ENTRY_INSTRUCTION_LENGTH, event_length);
    if (asleep)
        vmwrite(GUEST_ACTIVITY_STATE, ACTIVE);
    asleep = false;
}
