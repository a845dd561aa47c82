/* Processes. The kernel is never preempted and has one stack: a process that is not running
 * is a saved frame and an address space, nothing more. Only traps from ring 3 switch. */
#include "kernel.h"

#define STACK_TOP 0x80000000u
#define STACK_SIZE 0x10000u

extern const u8 program_image[];

static struct process processes[PROCESSES];
static u32 last_number;
static u32 kernel_directory; /* the first one, never freed: where a dying process leaves from */

struct process *current;
bool reschedule;

static struct process *process_new(void) {
    for (struct process *p = processes; p < processes + PROCESSES; p++)
        if (p->state == FREE) {
            p->number = ++last_number;
            return p;
        }
    return NULL;
}

static struct process *process_find(u32 number) {
    for (struct process *p = processes; p < processes + PROCESSES; p++)
        if (p->state != FREE && p->number == number)
            return p;
    return NULL;
}

/* Load the user program into process 1 and run it. Its pages are mapped, not copied: text
 * read-only, data copy-on-write, straight from the kernel's image. */
void process_first(const struct program *image) {
    if (image->magic != PROGRAM_MAGIC)
        panic("the user program is missing from this image", NULL);
    u32 cr3;
    __asm__ volatile("mov %%cr3, %0" : "=r"(cr3));
    kernel_directory = cr3;

    current = process_new();
    current->state = READY;
    current->directory = directory_create();
    load_cr3(current->directory);
    u32 data = image->text_end;
    space_map(USER_BASE, data - USER_BASE, false);
    if (image->bss_end > data)
        space_map(data, image->bss_end - data, true);
    space_map(STACK_TOP - STACK_SIZE, STACK_SIZE, true);
    for (u32 page = USER_BASE; page < image->data_end; page += PAGE_SIZE) {
        u32 frame = machine_base + (u32)image + (page - USER_BASE);
        table_prepare(page);
        pte_store(page, frame | PTE_P | PTE_U | (page < data ? 0 : PTE_MAY_WRITE));
    }
    current->frame = (struct frame){
        .eip = image->entry,
        .cs = USER_CODE,
        .ds = USER_DATA,
        .es = USER_DATA,
        .ss = USER_DATA,
        .esp = STACK_TOP,
        .eflags = EFLAGS_RESERVED | EFLAGS_IF,
    };
    enter_user(&current->frame);
}

u32 process_fork(const struct frame *f) {
    struct process *child = process_new();
    if (!child)
        return ~0u;
    u32 number = child->number;
    *child = *current;
    child->number = number;
    child->parent = current->number;
    child->state = READY;
    child->frame = *f;
    child->frame.eax = 0;
    child->directory = directory_create();
    space_copy_into(child->directory);
    load_cr3(current->directory); /* even if there was nothing to copy */
    return number;
}

/* Round robin from the current one on. Somebody is always ready: process 1 waits only for
 * children, and they for theirs. */
void process_switch(struct frame *f) {
    u32 from = (u32)(current - processes);
    current->frame = *f;
    reschedule = false;
    for (u32 i = 1; i <= PROCESSES; i++) {
        struct process *p = &processes[(from + i) % PROCESSES];
        if (p->state != READY)
            continue;
        if (p != current) {
            current = p;
            load_cr3(p->directory);
        }
        *f = p->frame;
        return;
    }
    panic("every process waits", f);
}

static void reap(struct process *zombie, struct frame *parent) {
    parent->eax = zombie->status;
    zombie->state = FREE;
}

void process_exit(struct frame *f, u32 status) {
    space_clear();
    load_cr3(kernel_directory);
    frame_release(current->directory);
    current->state = ZOMBIE;
    current->status = status;

    if (current->number == 1) {
        if (status == 0)
            put_text("all done\n");
        leave(status == 0 ? 0 : 1);
    }
    /* Nobody will ask for the children of the dead. */
    for (struct process *p = processes; p < processes + PROCESSES; p++)
        if (p->state == ZOMBIE && p->parent == current->number)
            p->state = FREE;
    struct process *parent = process_find(current->parent);
    if (!parent || parent->state == ZOMBIE) {
        current->state = FREE;
    } else if (parent->state == WAITING && parent->awaited == current->number) {
        reap(current, &parent->frame);
        parent->state = READY;
    }
    process_switch(f);
}

void process_wait(struct frame *f, u32 number) {
    struct process *child = process_find(number);
    if (!child || child->parent != current->number) {
        f->eax = ~0u;
    } else if (child->state == ZOMBIE) {
        reap(child, f);
    } else {
        current->state = WAITING;
        current->awaited = number;
        process_switch(f);
    }
}
