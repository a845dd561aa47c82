/* Workloads that change what pages may do or where they are: a garbage collector's write
 * barrier, aging, swapping. */
#include "user.h"

#define HEAP 0x50000000u
#define HEAP_PAGES 256u

/* Volatile: the barrier runs in the middle of what looks like a plain store. */
static volatile u8 dirty[HEAP_PAGES];
static volatile u32 barrier_hits;

/* The write barrier: remember the page, and let the mutator at it. */
static void barrier(u32 address) {
    u32 page = (address - HEAP) / PAGE;
    check(page < HEAP_PAGES && !dirty[page], "a refused write that should not be");
    dirty[page] = 1;
    barrier_hits++;
    protect(address & ~(PAGE - 1), 1, 1);
}

extern void refused_entry(void);

/* A collector that protects its heap, lets the mutator run, and looks only at what was
 * written to since. */
u32 collector(u32 scale) {
    u32 seed = 1959, sum = 0;
    on_refused = barrier;
    syscall(SYS_ON_FAULT, (u32)refused_entry, 0, 0);
    map(HEAP, HEAP_PAGES, 1);
    for (u32 page = 0; page < HEAP_PAGES; page++)
        *word(HEAP + page * PAGE) = page;
    for (u32 round = 0; round < 20 * scale; round++) {
        protect(HEAP, HEAP_PAGES, 0);
        for (u32 page = 0; page < HEAP_PAGES; page++)
            dirty[page] = 0;
        barrier_hits = 0;
        for (u32 i = 0; i < 400; i++) {
            u32 at = random_next(&seed) % (HEAP_PAGES * WORDS);
            u32 value = *word(HEAP + at * 4); /* reading is never refused */
            *word(HEAP + at * 4) = fold(value, i);
        }
        u32 found = 0;
        for (u32 page = 0; page < HEAP_PAGES; page++) {
            if (!dirty[page])
                continue;
            found++;
            for (u32 w = 0; w < WORDS; w += 16)
                sum = fold(sum, word(HEAP + page * PAGE)[w]);
        }
        check(found == barrier_hits, "a barrier was hit twice");
        sum = fold(sum, found);
    }
    return sum;
}

/* A working set that wanders through a region, and the clock behind it. The counts of
 * accessed and dirty pages that the kernel finds are compared with what was done. */
u32 aging(u32 scale) {
    enum { PAGES = 512 };
    static u8 used[PAGES];
    u32 seed = 1966, sum = 0;
    map(HEAP, PAGES, 1);
    for (u32 page = 0; page < PAGES; page++)
        *word(HEAP + page * PAGE) = page;
    syscall(SYS_AGE, HEAP, PAGES * PAGE, 0);
    for (u32 sweep = 0; sweep < 32 * scale; sweep++) {
        u32 accessed = 0, written = 0;
        for (u32 page = 0; page < PAGES; page++)
            used[page] = 0;
        for (u32 i = 0; i < 512; i++) {
            u32 page = (random_next(&seed) % 384 + sweep * 8) % PAGES;
            volatile u32 *data = word(HEAP + page * PAGE);
            accessed += !(used[page] & 1);
            used[page] |= 1;
            for (u32 w = 1; w < 16; w++)
                sum += data[w];
            if (i % 4 == 0) {
                written += !(used[page] & 2);
                used[page] |= 2;
                data[i % 16] = sum;
            }
        }
        u32 counts = syscall(SYS_AGE, HEAP, PAGES * PAGE, 0);
        check(counts == (accessed | written << 16), "accessed or dirty bits are not as used");
        sum = fold(sum, counts);
    }
    return sum;
}

/* More memory than is used at a time: a hot set that stays, and cold pages that go out to
 * the disk and come back. Every page knows what it must contain. */
u32 swapping(u32 scale) {
    enum { PAGES = 320, HOT = 128, COLD_A_ROUND = 16 };
    static u32 version[PAGES];
    u32 seed = 1961, sum = 0;
    map(HEAP, PAGES, 1);
    for (u32 page = 0; page < PAGES; page++)
        word(HEAP + page * PAGE)[page] = page << 16;
    for (u32 round = 0; round < 120 * scale; round++) {
        for (u32 page = 0; page < HOT; page++) {
            volatile u32 *data = word(HEAP + page * PAGE);
            check(data[page] == (page << 16 | version[page]), "a hot page is wrong");
            for (u32 w = 0; w < WORDS; w += 64)
                sum += data[w];
            if ((page + round) % 4 == 0)
                data[page] = page << 16 | ++version[page];
        }
        for (u32 i = 0; i < COLD_A_ROUND; i++) {
            u32 page = HOT + random_next(&seed) % (PAGES - HOT);
            volatile u32 *data = word(HEAP + page * PAGE) + page;
            check(*data == (page << 16 | version[page]), "a page came back wrong from the disk");
            sum = fold(sum, *data);
            if (i & 1)
                *data = page << 16 | ++version[page];
        }
        sum = fold(sum, syscall(SYS_RECLAIM, HEAP, PAGES * PAGE, 0));
    }
    return sum;
}
