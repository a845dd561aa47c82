/* The kernel's own vocabulary, one section per source file. */
#ifndef KERNEL_H
#define KERNEL_H

#include "../abi.h"

typedef _Bool bool;
#define true 1
#define false 0
#define NULL ((void *)0)

#define PAGE_SIZE 4096u
#define PAGE_MASK 0xFFFFF000u
#define TABLE_SPAN 0x400000u /* what one page table maps */
#define ENTRIES 1024u

/* Segment selectors; the table is in cpu.c. */
#define KERNEL_CODE 0x08
#define KERNEL_DATA 0x10
#define USER_CODE 0x1B
#define USER_DATA 0x23
#define TASK_STATE 0x28
#define ABSENT_USER_DATA 0x33   /* not present, DPL 3: for #NP and #SS probes */
#define ABSENT_KERNEL_DATA 0x38 /* not present, DPL 0 */

#define EFLAGS_RESERVED 0x00000002u
#define EFLAGS_TF 0x00000100u
#define EFLAGS_IF 0x00000200u
#define EFLAGS_AC 0x00040000u

#define CR0_PE 0x00000001u
#define CR0_MP 0x00000002u
#define CR0_EM 0x00000004u
#define CR0_TS 0x00000008u
#define CR0_NE 0x00000020u
#define CR0_WP 0x00010000u
#define CR0_AM 0x00040000u
#define CR0_PG 0x80000000u

#define DB_VECTOR 1
#define PF_VECTOR 14
#define PF_WRITE 2u
#define IRQ_BASE 32 /* the PICs are remapped clear of the exceptions */
#define IRQ_COUNT 16

/* What trap.S pushes. ESP and SS exist only when the trap came from ring 3. */
struct frame {
    u32 edi, esi, ebp, unused_esp, ebx, edx, ecx, eax;
    u32 es, ds;
    u32 vector, error;
    u32 eip, cs, eflags;
    u32 esp, ss;
};

static inline bool from_user(const struct frame *f) { return (f->cs & 3) == 3; }

static inline void outb(u16 port, u8 value) {
    __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}
static inline u8 inb(u16 port) {
    u8 value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}
static inline u32 read_cr0(void) {
    u32 value;
    __asm__ volatile("mov %%cr0, %0" : "=r"(value));
    return value;
}
static inline void write_cr0(u32 value) {
    __asm__ volatile("mov %0, %%cr0" : : "r"(value) : "memory");
}
static inline u32 read_cr2(void) {
    u32 value;
    __asm__ volatile("mov %%cr2, %0" : "=r"(value));
    return value;
}
static inline void load_cr3(u32 frame) {
    __asm__ volatile("mov %0, %%cr3" : : "r"(frame) : "memory");
}

/* memory.c: gcc may call these even in freestanding code. */
void *memcpy(void *to, const void *from, __SIZE_TYPE__ count);
void *memset(void *to, int byte, __SIZE_TYPE__ count);
void page_copy(void *to, const void *from);
void page_clear(void *page);

/* console.c */
void console_start(void);
void put_char(char c);
void put_text(const char *text);
void put_hex(u32 value, int digits);
void put_decimal(u32 value);
_Noreturn void leave(u8 status);
_Noreturn void panic(const char *what, const struct frame *f);

/* cpu.c */
extern volatile u32 ticks;
void cpu_start(void);
void timer_start(void);
void irq_handle(u32 irq);

/* frames.c: physical page frames, by address. */
extern u32 machine_base; /* of the memory that starts at 0 for the kernel */
void frames_start(u32 memory_end);
u32 frame_alloc(void);
void frame_retain(u32 frame);
void frame_release(u32 frame);
bool frame_shared(u32 frame);
u16 *frame_entries_used(u32 frame); /* of a page table: how many entries are not 0 */
u32 frame_slot(u32 frame); /* of user data: the disk slot with the same bytes, or 0 */
void frame_slot_set(u32 frame, u32 slot);
void frame_slot_forget(u32 frame);

/* tables.c: the only code that edits page tables. */
#define PTE_P 0x001u
#define PTE_W 0x002u
#define PTE_U 0x004u
#define PTE_A 0x020u
#define PTE_D 0x040u
/* Bits 11:9 are software's. MAY_WRITE is what the process was promised, W is what the
 * processor is told: the difference is copy-on-write. */
#define PTE_MAY_WRITE 0x200u
#define PTE_AGE 0xC00u     /* P = 1: sweeps without an access, 0 to 3 */
#define PTE_AGE_ONE 0x400u
#define PTE_EXPLICIT 0x400u /* P = 0: MAY_WRITE counts, not the region's default */

#define TABLES_BASE 0xC0000000u /* PTE of linear address a: TABLES_BASE + (a >> 12) * 4 */
#define DIRECTORY_BASE (TABLES_BASE + (TABLES_BASE >> 12) * 4)
#define KERNEL_SPAN TABLE_SPAN /* PDE 0, the same table in every address space */

typedef volatile u32 entry;

static inline entry *pte_of(u32 address) { return (entry *)(TABLES_BASE + (address >> 12) * 4); }
static inline entry *pde_of(u32 address) { return (entry *)(DIRECTORY_BASE + (address >> 22) * 4); }

u32 tables_start(void);
u32 directory_create(void);
u32 pte_read(u32 address); /* 0 where there is no page table */
void pte_store(u32 address, u32 value);
u32 pte_exchange(u32 address, u32 value);
void pte_set_bits(u32 address, u32 bits);
void pte_clear_bits(u32 address, u32 bits);
void pte_add(u32 address, u32 amount);
bool table_present(u32 address);
void table_prepare(u32 address);
void table_release_if_empty(u32 address);
void flush_page(u32 address);

/* process.c */
#define PROCESSES 16
#define REGIONS 24

struct region {
    u32 start, end; /* page-aligned, end exclusive; start == end: unused */
    bool writable;
};

enum state { FREE, READY, WAITING, ZOMBIE };

struct process {
    enum state state;
    u32 number;
    u32 parent;
    u32 awaited; /* WAITING: for the end of this process */
    u32 status;  /* ZOMBIE: what it left */
    u32 directory;
    u32 on_fault; /* user entry point for refused accesses, 0 if none */
    struct frame frame;
    struct region regions[REGIONS];
};

extern struct process *current;
extern bool reschedule;
_Noreturn void process_first(const struct program *image);
u32 process_fork(const struct frame *f);
void process_exit(struct frame *f, u32 status);
void process_wait(struct frame *f, u32 number);
void process_switch(struct frame *f);
_Noreturn void enter_user(const struct frame *f); /* trap.S */

/* space.c */
enum outcome { RESOLVED, REFUSED };
extern u32 faults_resolved;
enum outcome space_fault(u32 address, bool write);
bool space_map(u32 address, u32 length, bool writable);
bool space_unmap(u32 address, u32 length);
bool space_protect(u32 address, u32 length, bool writable);
bool space_readable(u32 address, u32 length);
bool space_writable(u32 address, u32 length);
void space_copy_into(u32 directory);
void space_clear(void);

/* swap.c */
void slot_retain(u32 slot);
void slot_release(u32 slot);
void swap_in(u32 address, u32 pte);
u32 clock_sweep(u32 address, u32 length, bool evict);

/* syscall.c */
void syscall(struct frame *f);

/* probe.c */
bool probe_catches(struct frame *f);
void probe_arm(const struct probe *p);
u32 probe_done(void);
u32 probe_ring0(u32 number);

/* main.c */
extern u32 arguments[2];
void trap(struct frame *f);

#endif
