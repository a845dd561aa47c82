/* Start-up, the command line, and the one function that all traps come to. */
#include "kernel.h"

#define MULTIBOOT_LOADED 0x2BADB002u
#define MULTIBOOT_MEMORY 0x1u
#define MULTIBOOT_COMMAND 0x4u
#define MULTIBOOT_MAP 0x40u
#define SCALE_LIMIT 10000u

struct multiboot {
    u32 flags, memory_lower, memory_upper, boot_device, command;
    u32 modules[2], symbols[4];
    u32 map_length, map;
};

/* The first entry of the memory map; its start is where this machine's memory begins. */
struct map_entry {
    u32 size, start;
};

extern const struct program program_image;

u32 arguments[2] = {(1u << WORKLOAD_COUNT) - 1, 1};
static bool timer_wanted = true;
static const char *const workloads[WORKLOAD_COUNT] = {WORKLOAD_NAMES};

/* Bad command line: say what and what would be good, and leave with status 1. */
static _Noreturn void refuse(const char *what, const char *at, u32 length, const char *remedy) {
    put_text("error: ");
    put_text(what);
    put_text(" '");
    while (length-- > 0)
        put_char(*at++);
    put_text("'; ");
    put_text(remedy);
    if (!remedy[0]) {
        put_text("valid workloads: all");
        for (u32 i = 0; i < WORKLOAD_COUNT; i++) {
            put_text(", ");
            put_text(workloads[i]);
        }
    }
    put_text("\n");
    leave(1);
}

static u32 span(const char *text, char stop) {
    u32 n = 0;
    while (text[n] && text[n] != ' ' && text[n] != stop)
        n++;
    return n;
}

static bool same(const char *text, u32 length, const char *word) {
    u32 i = 0;
    while (i < length && word[i] && text[i] == word[i])
        i++;
    return i == length && !word[i];
}

static u32 parse_workloads(const char *value, u32 length) {
    u32 chosen = 0;
    for (const char *end = value + length;; value++) {
        u32 part = span(value, ','), i = 0;
        while (i < WORKLOAD_COUNT && !same(value, part, workloads[i]))
            i++;
        if (i < WORKLOAD_COUNT)
            chosen |= 1u << i;
        else if (same(value, part, "all"))
            chosen = (1u << WORKLOAD_COUNT) - 1;
        else
            refuse("unknown workload", value, part, "");
        value += part;
        if (value >= end)
            return chosen;
    }
}

static u32 parse_scale(const char *value, u32 length) {
    u32 scale = 0;
    for (u32 i = 0; i < length; i++) {
        u32 digit = (u32)(value[i] - '0');
        scale = digit <= 9 ? scale * 10 + digit : 0;
        if (digit > 9 || scale > SCALE_LIMIT)
            refuse("bad scale", value, length, "a number from 1 to 10000");
    }
    if (scale == 0)
        refuse("bad scale", value, length, "a number from 1 to 10000");
    return scale;
}

/* Words without '=' are passed over: loaders put the kernel's own name first. */
static void parse_command_line(const char *text) {
    while (*text) {
        u32 length = span(text, ' '), key = span(text, '=');
        const char *value = text + key + 1;
        if (key < length) {
            u32 rest = length - key - 1;
            if (same(text, key, "workload"))
                arguments[ARGUMENT_WORKLOADS] = parse_workloads(value, rest);
            else if (same(text, key, "scale"))
                arguments[ARGUMENT_SCALE] = parse_scale(value, rest);
            else if (same(text, length, "timer=on") || same(text, length, "timer=off"))
                timer_wanted = same(value, rest, "on");
            else
                refuse("unknown option", text, length,
                       "valid options: workload=NAME,... scale=N timer=on|off");
        }
        text += length;
        while (*text == ' ')
            text++;
    }
}

/* Multiboot's memory is readable only until paging is on: all of it is used up here. */
_Noreturn void kernel_main(u32 magic, const struct multiboot *info);
_Noreturn void kernel_main(u32 magic, const struct multiboot *info) {
    console_start();
    put_text("trapgate guest: page tables at C0000000\n");
    if (magic != MULTIBOOT_LOADED)
        panic("not started by a multiboot loader", NULL);
    if (info->flags & MULTIBOOT_COMMAND)
        parse_command_line((const char *)info->command);
    if (!(info->flags & MULTIBOOT_MEMORY))
        panic("the loader does not say how much memory there is", NULL);
    if ((info->flags & MULTIBOOT_MAP) && info->map_length > 0)
        machine_base = ((const struct map_entry *)info->map)->start;
    frames_start(0x100000 + info->memory_upper * 1024);
    cpu_start();
    tables_start();
    put_text("paging on, write protection on\n");
    if (timer_wanted) {
        timer_start();
        put_text("timer on\n");
    }
    process_first(&program_image);
}

/* An access that the process may not make. If it asked to be told, it is: its handler is
 * entered as if called at the faulting instruction, with [error, address, EFLAGS, EIP] on
 * the stack, and may mend things and go back there. Otherwise it dies. */
static void refuse_access(struct frame *f, u32 address) {
    u32 stack = f->esp - 16;
    if (from_user(f) && current->on_fault && space_writable(stack, 16)) {
        u32 *top = (u32 *)stack;
        top[0] = f->error;
        top[1] = address;
        top[2] = f->eflags;
        top[3] = f->eip;
        f->esp = stack;
        f->eip = current->on_fault;
        return;
    }
    if (!from_user(f))
        panic("page fault in the kernel", f);
    put_text("process killed: page fault at ");
    put_hex(address, 8);
    put_text(" eip ");
    put_hex(f->eip, 8);
    put_text(" error ");
    put_hex(f->error, 4);
    put_text("\n");
    process_exit(f, ~0u);
}

void trap(struct frame *f) {
    if (probe_catches(f))
        return;
    if (f->vector == PF_VECTOR) {
        u32 address = read_cr2(); /* before anything can fault again */
        if (space_fault(address, f->error & PF_WRITE) == REFUSED)
            refuse_access(f, address);
    } else if (f->vector == SYSCALL_VECTOR) {
        syscall(f);
    } else if (f->vector >= IRQ_BASE) {
        irq_handle(f->vector - IRQ_BASE);
    } else if (from_user(f)) {
        put_text("process killed: vector ");
        put_decimal(f->vector);
        put_text(" eip ");
        put_hex(f->eip, 8);
        put_text("\n");
        process_exit(f, ~0u);
    } else {
        panic("unexpected exception in the kernel", f);
    }
    if (reschedule && from_user(f) && current)
        process_switch(f);
}
