/* The hypervisor's own vocabulary, one section per source file. */
#ifndef HYPERVISOR_H
#define HYPERVISOR_H

typedef unsigned long long u64;
typedef _Bool bool;
#define true 1
#define false 0
#define NULL ((void *)0)

#include "vmx.h"

#define PAGE_SIZE 4096u
#define PAGE_SHIFT 12
#define ENTRIES 1024u /* of a guest's page table or directory */

#define RFLAGS_FIXED 0x2u
#define RFLAGS_TF (1u << 8)
#define RFLAGS_IF (1u << 9)

#define CR0_PE 0x1u
#define CR0_ET 0x10u
#define CR0_NE 0x20u
#define CR0_WP 0x10000u
#define CR0_NW 0x20000000u
#define CR0_CD 0x40000000u
#define CR0_PG 0x80000000u
#define CR4_TSD (1u << 2)
#define CR4_DE (1u << 3)
#define CR4_PSE (1u << 4)
#define CR4_PAE (1u << 5)
#define CR4_OSFXSR (1u << 9)
#define CR4_OSXMMEXCPT (1u << 10)
#define CR4_VMXE (1u << 13)

enum { DB = 1, NMI = 2, UD = 6, DF = 8, TS = 10, NP = 11, SS = 12, GP = 13, PF = 14, AC = 17 };

/* The guest's general registers as PUSHA stores them: the one of encoding n is at 7 - n,
 * but for ESP, which is in the VMCS. */
struct registers {
    u32 pushed[8];
};
enum { EAX, ECX, EDX, EBX, ESP, EBP, ESI, EDI };

static inline u32 *low(struct registers *r, u32 number) { return &r->pushed[7 - number]; }
static inline u32 get_register(struct registers *r, u32 number) {
    return number == ESP ? vmread(GUEST_RSP) : *low(r, number);
}
static inline void set_register(struct registers *r, u32 number, u32 value) {
    if (number == ESP)
        vmwrite(GUEST_RSP, value);
    else
        *low(r, number) = value;
}

static inline void outb(u16 port, u8 value) {
    __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}
static inline u8 inb(u16 port) {
    u8 value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

/* memory.c (the guest kernel's): gcc may call these even in freestanding code. */
void *memcpy(void *to, const void *from, __SIZE_TYPE__ count);
void *memset(void *to, int byte, __SIZE_TYPE__ count);

/* report.c: the serial port, and the ways out. Every line begins with "hypervisor: ". */
#define GAVE_UP 3u
void report_start(void);
void say(const char *format, ...); /* %s, %d unsigned, %x eight hexadecimal digits */
_Noreturn void leave(u8 status);
_Noreturn void give_up(const char *format, ...);
void summary(void);

/* options.c: the command line; what is not for the hypervisor stays for the guest. */
enum policy { POLICY_ALL, POLICY_PF, POLICY_MATCH };
#define INJECTIONS 8
struct injection {
    u32 event; /* interruption information without the valid bit */
    u32 error;
    u32 at;     /* number of the exit, from 1 */
    bool user;  /* waits for the guest to be in ring 3 */
    u32 done;   /* at which exit it was carried out, 0 if it was not */
    u32 eip, ring;
};
#define COMMAND_LINE 1024
struct options {
    enum policy policy;
    bool through_idt; /* VM exits come through the IDT, not to an entry point */
    struct injection injections[INJECTIONS];
    u32 injection_count;
    char guest_line[COMMAND_LINE];
};
extern struct options options;
extern const char *const policy_names[];
void parse_options(const char *line);

/* guest.c: the guest's memory, and a kernel in it. */
struct guest {
    u8 *ram; /* where the guest's physical address 0 is */
    u32 pages;
    u32 entry, information; /* first EIP and EBX */
};
extern struct guest guest;
void guest_load(const u8 *file, u32 size, const char *command_line);

/* vmx.c: into VMX operation, and a VMCS for the guest. */
void vmx_on(void);
_Noreturn void vm_entry_failed(u32 flags);
extern bool halt_state; /* the processor lets VM entry put it into HLT */

/* shadow.c: the tables that the processor walks, made of those that the guest wrote. */
enum verdict { MAPPED, EDIT, GUESTS };
struct shadow_counts {
    u32 filled, edits, dropped, resets;
};
extern struct shadow_counts shadow_counts;
u8 *shadow_start(u8 *memory, u32 pages); /* returns the end of what it took */
void shadow_paging(bool on, u32 cr3, bool large); /* the guest's CR0.PG, CR3, CR4.PSE */
enum verdict shadow_fault(u32 linear, u32 error, u32 *guest_error);
u8 *shadow_guest_at(u32 linear);     /* NULL where the guest has nothing mapped */
void shadow_written(u32 *word);      /* the guest's table entry there has a new value */
void shadow_drop(u32 *word);         /* the page there is no table any more */

/* edit.c: an instruction of the guest that writes to one of its page tables. */
void edit_table(u32 linear, struct registers *r);

/* events.c: what the next VM entry delivers. */
struct event_counts {
    u32 reflected[32], interrupts, reinjected;
};
extern struct event_counts event_counts;
void events_begin(void); /* at each exit: it may have cut a delivery short */
void event_fault(u32 vector, u32 error); /* an exception of the guest's own */
void event_reflect(u32 information);     /* the exception that exited */
void event_interrupt(u32 vector);        /* the external interrupt that exited */
void event_halt(void);                   /* the guest sleeps until there is something */
void events_finish(void);
bool has_error_code(u32 vector);

/* exits.c */
extern u32 exit_counts[REASONS], exit_total;
void handle_exit(struct registers *r);
void skip(u32 length);
u32 guest_ring(void);

#endif
