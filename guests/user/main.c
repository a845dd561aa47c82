/* Run the wanted workloads, each in a process of its own, and print a line for each. */
#include "user.h"

static const char *const names[WORKLOAD_COUNT] = {WORKLOAD_NAMES};
static u32 (*const workloads[WORKLOAD_COUNT])(u32 scale) = {
    demand, fork_tree, storm, collector, aging, swapping, faults,
};

static const char *current_name = "none";

static char line[128];
static u32 length;

static void add(const char *text) {
    while (*text)
        line[length++] = *text++;
}

static void add_hex(u32 value) {
    for (int shift = 28; shift >= 0; shift -= 4)
        line[length++] = "0123456789ABCDEF"[(value >> shift) & 15];
}

static void add_decimal(u32 value) {
    if (value >= 10)
        add_decimal(value / 10);
    line[length++] = (char)('0' + value % 10);
}

static void line_end(void) {
    add("\n");
    syscall(SYS_WRITE, (u32)line, length, 0);
    length = 0;
}

/* The workloads look after their data: a page that comes back wrong must not go unseen. */
void check(int good, const char *what) {
    if (good)
        return;
    add("workload ");
    add(current_name);
    add(" failed: ");
    add(what);
    line_end();
    syscall(SYS_EXIT, 1, 0, 0);
}

void map(u32 address, u32 pages, int writable) {
    check(syscall(SYS_MAP, address, pages * PAGE, (u32)writable) == 0, "map");
}

void unmap(u32 address, u32 pages) {
    check(syscall(SYS_UNMAP, address, pages * PAGE, 0) == 0, "unmap");
}

void protect(u32 address, u32 pages, int writable) {
    check(syscall(SYS_PROTECT, address, pages * PAGE, (u32)writable) == 0, "protect");
}

void (*on_refused)(u32 address);

/* From refused_entry: an access that the kernel did not allow. */
void refused(u32 address);
void refused(u32 address) {
    check(on_refused != 0, "an access was refused");
    on_refused(address);
}

static void run(u32 which, u32 scale) {
    u32 before = syscall(SYS_FAULTS, 0, 0, 0);
    current_name = names[which];
    u32 sum = workloads[which](scale);
    u32 count = syscall(SYS_FAULTS, 0, 0, 0) - before;
    add("workload ");
    add(current_name);
    add(" checksum ");
    add_hex(sum);
    add(" faults ");
    add_decimal(count);
    line_end();
    syscall(SYS_EXIT, 0, 0, 0);
}

int main(void);
int main(void) {
    u32 wanted = syscall(SYS_ARGUMENT, ARGUMENT_WORKLOADS, 0, 0);
    u32 scale = syscall(SYS_ARGUMENT, ARGUMENT_SCALE, 0, 0);
    int failed = 0;
    for (u32 which = 0; which < WORKLOAD_COUNT; which++) {
        if (!(wanted >> which & 1))
            continue;
        u32 child = syscall(SYS_FORK, 0, 0, 0);
        if (child == 0)
            run(which, scale);
        failed |= syscall(SYS_WAIT, child, 0, 0) != 0;
    }
    return failed;
}
