/* What the workloads have to work with. */
#ifndef USER_H
#define USER_H

#include "../abi.h"

#define PAGE 4096u
#define WORDS (PAGE / 4)

static inline u32 syscall(u32 number, u32 a, u32 b, u32 c) {
    u32 result;
    __asm__ volatile("int %1"
                     : "=a"(result)
                     : "i"(SYSCALL_VECTOR), "0"(number), "b"(a), "c"(b), "d"(c)
                     : "memory");
    return result;
}

static inline volatile u32 *word(u32 address) { return (volatile u32 *)address; }

/* A linear congruential generator: the same numbers on every machine. */
static inline u32 random_next(u32 *state) {
    *state = *state * 1664525u + 1013904223u;
    return *state >> 8;
}

/* One step of a checksum. The product comes last: without it, rounds that repeat their data
 * would cancel each other out. */
static inline u32 fold(u32 sum, u32 value) {
    return (((sum << 5) | (sum >> 27)) ^ value) * 2654435761u + 1;
}

void check(int good, const char *what);

void map(u32 address, u32 pages, int writable);
void unmap(u32 address, u32 pages);
void protect(u32 address, u32 pages, int writable);

/* Where refused accesses go; see refused() in main.c. */
extern void (*on_refused)(u32 address);

u32 demand(u32 scale);
u32 fork_tree(u32 scale);
u32 storm(u32 scale);
u32 collector(u32 scale);
u32 aging(u32 scale);
u32 swapping(u32 scale);
u32 faults(u32 scale);

#endif
