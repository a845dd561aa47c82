/* Workloads that come and go: demand paging, fork, mapping and unmapping. */
#include "user.h"

#define ARENA 0x50000000u

/* Stack pages are demand-paged too, and come from the top down. */
static u32 __attribute__((noinline)) deep(u32 depth) {
    volatile u32 frame[WORDS / 2];
    frame[0] = depth;
    u32 below = depth ? deep(depth - 1) : 0;
    return fold(below, frame[0]);
}

/* Touch every page of a region in scattered order, some by reading first, some by writing,
 * some through the kernel; then read everything back. */
u32 demand(u32 scale) {
    const u32 pages = 1024;
    u32 sum = deep(24);
    for (u32 round = 0; round < 6 * scale; round++) {
        map(ARENA, pages, 1);
        for (u32 i = 0; i < pages; i++) {
            u32 page = (i * 389 + round) % pages; /* 389 is odd: a permutation */
            u32 address = ARENA + page * PAGE;
            if (i % 8 == 0)
                check(syscall(SYS_TOUCH, address, PAGE, i & 8) == 0, "touch");
            else if (i & 1)
                check(*word(address + PAGE - 4) == 0, "a new page is not zero");
            for (u32 w = 0; w < WORDS; w += 64)
                word(address)[w] = page ^ w ^ round;
        }
        for (u32 page = 0; page < pages; page++)
            for (u32 w = 0; w < WORDS; w += 64) {
                u32 value = word(ARENA + page * PAGE)[w];
                check(value == (page ^ w ^ round), "a page lost its data");
                sum = fold(sum, value);
            }
        unmap(ARENA, pages);
    }
    return sum;
}

#define FORK_PAGES 128u

/* A child: write to some of the shared pages, give way, and see its own writes and, in
 * the other pages, the parent's. */
static u32 child_main(u32 which, u32 round) {
    u32 sum = 0;
    for (u32 page = which; page < FORK_PAGES; page += 2) {
        *word(ARENA + page * PAGE) = page * 7 + which;
        if (page % 32 < 2)
            syscall(SYS_YIELD, 0, 0, 0);
    }
    for (u32 page = 0; page < FORK_PAGES; page++) {
        u32 value = *word(ARENA + page * PAGE);
        check(value == (page % 2 == which ? page * 7 + which : page + round),
              "a write shows in another process");
        sum = fold(sum, value);
        for (u32 w = 1; w < WORDS; w += 16)
            sum += word(ARENA + page * PAGE)[w];
    }
    return sum & 0x7FFFFFFF;
}

/* Two children at a time share the parent's pages; then the parent writes to them all,
 * which by then it shares with nobody, though its entries do not know that yet. */
u32 fork_tree(u32 scale) {
    u32 sum = 0;
    map(ARENA, FORK_PAGES, 1);
    for (u32 page = 0; page < FORK_PAGES; page++)
        for (u32 w = 0; w < WORDS; w += 4)
            word(ARENA + page * PAGE)[w] = page + w;
    for (u32 round = 0; round < 12 * scale; round++) {
        u32 children[2];
        for (u32 page = 0; page < FORK_PAGES; page++)
            *word(ARENA + page * PAGE) = page + round;
        for (u32 which = 0; which < 2; which++) {
            children[which] = syscall(SYS_FORK, 0, 0, 0);
            if (children[which] == 0)
                syscall(SYS_EXIT, child_main(which, round), 0, 0);
            check(children[which] != ~0u, "fork");
        }
        for (u32 which = 0; which < 2; which++)
            sum = fold(sum, syscall(SYS_WAIT, children[which], 0, 0));
        for (u32 page = 0; page < FORK_PAGES; page++)
            check(*word(ARENA + page * PAGE) == page + round,
                  "a child's write shows in its parent");
    }
    return sum;
}

/* Small regions all over 256 MiB, so that page tables come and go as well. Eight live at a
 * time, each in a part of its own; unmapped in two steps, the middle first. */
u32 storm(u32 scale) {
    const u32 parts = 8, part_pages = 8192;
    u32 seed = 20030627, sum = 0, start[8], count[8] = {0};
    for (u32 i = 0; i < 800 * scale; i++) {
        u32 part = i % parts;
        if (count[part]) {
            u32 first = start[part], pages = count[part];
            for (u32 page = 0; page < pages; page++)
                sum = fold(sum, word(first + page * PAGE)[page]);
            if (pages > 2)
                unmap(first + PAGE, pages - 2);
            unmap(first, pages);
        }
        u32 pages = 1 + random_next(&seed) % 12;
        u32 first = random_next(&seed) % (part_pages - pages);
        first = ARENA + (part * part_pages + first) * PAGE;
        map(first, pages, 1);
        for (u32 page = 0; page < pages; page++) {
            volatile u32 *data = word(first + page * PAGE);
            for (u32 w = 0; w < WORDS; w += 64)
                check(data[w] == 0, "a new page is not zero");
            data[page] = i * 31 + page;
            for (u32 w = 64; w < WORDS; w += 64)
                data[w] = w;
        }
        start[part] = first;
        count[part] = pages;
    }
    return sum;
}
