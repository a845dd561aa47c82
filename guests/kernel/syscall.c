/* System calls: check what comes from user mode, then let the right file do it. */
#include "kernel.h"

static bool user_pages(u32 address, u32 length) {
    return address % PAGE_SIZE == 0 && length % PAGE_SIZE == 0 && space_readable(address, length);
}

static u32 sys_write(u32 address, u32 length) {
    if (!space_readable(address, length))
        return ~0u;
    for (u32 i = 0; i < length; i++)
        put_char(((const char *)address)[i]);
    return length;
}

/* Faults taken in ring 0 on behalf of ring 3: error codes with U = 0. */
static u32 sys_touch(u32 address, u32 length, bool write) {
    if (!user_pages(address, length) || (write && !space_writable(address, length)))
        return ~0u;
    for (u32 page = address; page < address + length; page += PAGE_SIZE) {
        volatile u8 *byte = (volatile u8 *)page;
        u8 value = *byte;
        if (write)
            *byte = value;
    }
    return 0;
}

static u32 sys_sweep(u32 address, u32 length, bool evict) {
    return user_pages(address, length) ? clock_sweep(address, length, evict) : ~0u;
}

static u32 sys_probe_arm(u32 address) {
    if (!space_readable(address, sizeof(struct probe)))
        return ~0u;
    probe_arm((const struct probe *)address);
    return 0;
}

static u32 truth(bool done) { return done ? 0 : ~0u; }

void syscall(struct frame *f) {
    u32 a = f->ebx, b = f->ecx, c = f->edx;
    switch (f->eax) {
    case SYS_EXIT: process_exit(f, a); break;
    case SYS_WRITE: f->eax = sys_write(a, b); break;
    case SYS_FORK: f->eax = process_fork(f); break;
    case SYS_WAIT: process_wait(f, a); break;
    case SYS_GETPID: f->eax = current->number; break;
    case SYS_YIELD: f->eax = 0; reschedule = true; break;
    case SYS_MAP: f->eax = truth(space_map(a, b, c)); break;
    case SYS_UNMAP: f->eax = truth(space_unmap(a, b)); break;
    case SYS_PROTECT: f->eax = truth(space_protect(a, b, c)); break;
    case SYS_TOUCH: f->eax = sys_touch(a, b, c); break;
    case SYS_AGE: f->eax = sys_sweep(a, b, false); break;
    case SYS_RECLAIM: f->eax = sys_sweep(a, b, true); break;
    case SYS_ON_FAULT: current->on_fault = a; f->eax = 0; break;
    case SYS_FAULTS: f->eax = faults_resolved; break;
    case SYS_ARGUMENT: f->eax = a < 2 ? arguments[a] : ~0u; break;
    case SYS_PROBE_ARM: f->eax = sys_probe_arm(a); break;
    case SYS_PROBE_DONE: f->eax = probe_done(); break;
    case SYS_PROBE_RING0: f->eax = probe_ring0(a); break;
    default: f->eax = ~0u; break;
    }
}
