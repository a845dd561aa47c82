/* Physical page frames, by the address that page tables need. Where the memory of this
 * machine does not begin at 0 (a VM among others whose page tables are used as they are),
 * it is seen from 0 on all the same until paging is on, and the kernel maps itself there.
 *
 * The pool begins where the kernel's identity map ends, so no frame
 * of it has a standing kernel mapping: a frame is reachable only through a page table entry
 * that was made for it. A VMM that maps page-table frames read-only relies on that. */
#include "kernel.h"

#define POOL_FRAMES 8192u /* 32 MiB are plenty; more is left alone */
#define LEAST_FRAMES 1024u

/* Frame numbers in the pool. Last in, first out: a freed page table is the next data page,
 * the hardest case for whoever tracks what frames are used for. */
static u32 pool_start;
static u16 free_frames[POOL_FRAMES];
static u32 free_count;
static u16 references[POOL_FRAMES];
static u16 entries_used[POOL_FRAMES];
static u16 slots[POOL_FRAMES];

static bool in_pool(u32 frame) {
    return frame >= pool_start && frame < pool_start + POOL_FRAMES * PAGE_SIZE;
}

static u32 index_of(u32 frame) { return (frame - pool_start) / PAGE_SIZE; }

u32 machine_base;

void frames_start(u32 memory_end) {
    u32 count = memory_end > KERNEL_SPAN ? (memory_end - KERNEL_SPAN) / PAGE_SIZE : 0;
    pool_start = machine_base + KERNEL_SPAN;
    if (count > POOL_FRAMES)
        count = POOL_FRAMES;
    if (count < LEAST_FRAMES)
        panic("less than 8 MiB of memory: give the machine more", NULL);
    while (count > 0)
        free_frames[free_count++] = (u16)--count;
}

u32 frame_alloc(void) {
    if (free_count == 0)
        panic("out of page frames: give the machine more memory", NULL);
    u32 index = free_frames[--free_count];
    references[index] = 1;
    entries_used[index] = 0;
    slots[index] = 0;
    return pool_start + index * PAGE_SIZE;
}

u32 frame_slot(u32 frame) { return in_pool(frame) ? slots[index_of(frame)] : 0; }

void frame_slot_set(u32 frame, u32 slot) { slots[index_of(frame)] = (u16)slot; }

/* The frame has been written to: what the disk has is stale. Whoever clears or leaves out
 * a dirty bit has to say so here, or an eviction would throw the write away. */
void frame_slot_forget(u32 frame) {
    u32 slot = frame_slot(frame);
    if (slot) {
        slots[index_of(frame)] = 0;
        slot_release(slot);
    }
}

/* Frames below the pool belong to the kernel's image. Processes map the user program's
 * pages from there; they are always shared and never freed. */
void frame_retain(u32 frame) {
    if (in_pool(frame))
        references[index_of(frame)]++;
}

void frame_release(u32 frame) {
    if (!in_pool(frame))
        return;
    u32 index = index_of(frame);
    if (references[index] == 0)
        panic("a page frame is released twice", NULL);
    if (--references[index] > 0)
        return;
    frame_slot_forget(frame);
    free_frames[free_count++] = (u16)index;
}

bool frame_shared(u32 frame) { return !in_pool(frame) || references[index_of(frame)] > 1; }

u16 *frame_entries_used(u32 frame) { return &entries_used[index_of(frame)]; }
