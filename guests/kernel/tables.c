/* Page tables, edited through their own map.
 *
 * PDE 768 of every directory holds the directory's own frame. The processor, walking the
 * directory where it expects a page table, thereby shows all page tables of the current
 * address space in the 4 MiB at C0000000H, and the directory itself at C0300000H.
 *
 * Every edit of a live table is one of the functions below, at an address of that window,
 * followed by INVLPG or a CR3 load where an old translation could hurt. A frame becomes a
 * page table by a PDE that points to it, and before that it is plain data: it is cleared
 * through a passing mapping, which is gone when the PDE is written. So a VMM may keep
 * PDE 768 read-only and see each edit as a write fault there, and at no time does the
 * kernel need another writable mapping of a page-table frame. Nothing here looks at
 * accessed and dirty bits of directory entries.
 *
 * The instructions differ on purpose (MOV, XCHG, LOCK AND, OR, ADD): they are what kernels
 * use in these places, and whoever completes such writes must manage them all. */
#include "kernel.h"

#define PASSING (KERNEL_SPAN - PAGE_SIZE) /* last page of the kernel's table */
#define SELF (TABLES_BASE >> 22)

extern char image_start[], image_text_end[], stack_guard[], image_end[];

static u32 kernel_pde;

void flush_page(u32 address) {
    __asm__ volatile("invlpg (%0)" : : "r"(address) : "memory");
}

static void entry_store(entry *e, u32 value) {
    __asm__ volatile("movl %1, %0" : "=m"(*e) : "r"(value) : "memory");
}

/* Build the first address space, paging still off, and switch paging on. Write protection
 * holds for the kernel too (CR0.WP): its text is read-only, and so are shared user pages
 * when a system call writes to them. Returns the directory. */
u32 tables_start(void) {
    u32 directory = frame_alloc(), table = frame_alloc();
    page_clear((void *)directory);
    page_clear((void *)table);
    for (u32 page = (u32)image_start; page < (u32)image_end; page += PAGE_SIZE) {
        if (page == (u32)stack_guard)
            continue; /* a stack that overflows shall not write elsewhere */
        u32 access = page < (u32)image_text_end ? 0 : PTE_W;
        ((u32 *)table)[page / PAGE_SIZE] = (machine_base + page) | PTE_P | access;
    }
    kernel_pde = table | PTE_P | PTE_W;
    ((u32 *)directory)[0] = kernel_pde;
    ((u32 *)directory)[SELF] = directory | PTE_P | PTE_W;

    __asm__ volatile("mov %0, %%cr4" : : "r"(0)); /* no PSE, no PAE */
    load_cr3(directory);
    u32 cr0 = read_cr0() & ~(CR0_EM | CR0_TS);
    write_cr0(cr0 | CR0_PG | CR0_WP | CR0_AM | CR0_NE | CR0_MP);
    return directory;
}

static u32 *passing_open(u32 frame) {
    entry_store(pte_of(PASSING), frame | PTE_P | PTE_W);
    page_clear((void *)PASSING);
    return (u32 *)PASSING;
}

static void passing_close(void) {
    entry_store(pte_of(PASSING), 0);
    flush_page(PASSING);
}

/* A directory with the kernel and itself in it. It is data until CR3 is loaded with it. */
u32 directory_create(void) {
    u32 directory = frame_alloc();
    u32 *entries = passing_open(directory);
    entries[0] = kernel_pde;
    entries[SELF] = directory | PTE_P | PTE_W;
    passing_close();
    return directory;
}

bool table_present(u32 address) { return *pde_of(address) & PTE_P; }

u32 pte_read(u32 address) { return table_present(address) ? *pte_of(address) : 0; }

void table_prepare(u32 address) {
    if (table_present(address))
        return;
    u32 frame = frame_alloc();
    passing_open(frame);
    passing_close();
    entry_store(pde_of(address), frame | PTE_P | PTE_W | PTE_U);
}

void table_release_if_empty(u32 address) {
    u32 frame = *pde_of(address) & PAGE_MASK;
    if (!table_present(address) || *frame_entries_used(frame) > 0)
        return;
    entry_store(pde_of(address), 0);
    flush_page((u32)pte_of(address)); /* the table itself was mapped there */
    frame_release(frame);
}

/* Tables are given back when their last entry becomes 0, so that is counted. */
static void count_entry(u32 address, u32 old, u32 new) {
    u16 *used = frame_entries_used(*pde_of(address) & PAGE_MASK);
    *used = (u16)(*used + (new != 0) - (old != 0));
}

void pte_store(u32 address, u32 value) {
    count_entry(address, *pte_of(address), value);
    entry_store(pte_of(address), value);
}

/* For taking a page away: on a real machine the processor may set A and D until the very
 * moment P becomes 0, and only an exchange sees their last value. */
u32 pte_exchange(u32 address, u32 value) {
    u32 old = value;
    __asm__ volatile("xchg %0, %1" : "+r"(old), "+m"(*pte_of(address)) : : "memory");
    count_entry(address, old, value);
    return old;
}

void pte_set_bits(u32 address, u32 bits) {
    __asm__ volatile("lock orl %1, %0" : "+m"(*pte_of(address)) : "ri"(bits) : "memory", "cc");
}

void pte_clear_bits(u32 address, u32 bits) {
    __asm__ volatile("lock andl %1, %0" : "+m"(*pte_of(address)) : "ri"(~bits) : "memory", "cc");
}

void pte_add(u32 address, u32 amount) {
    __asm__ volatile("lock addl %1, %0" : "+m"(*pte_of(address)) : "ri"(amount) : "memory", "cc");
}
