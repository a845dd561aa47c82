/* Aging and swapping: a clock over accessed bits, and a disk made of memory.
 *
 * A page that is out has P = 0 and its disk slot in bits 31:12, so slot 0 is never used. A
 * page that is in remembers the slot that has the same bytes, and can be evicted without
 * writing unless it is dirty. */
#include "kernel.h"

#define SLOTS 512
#define EVICTION_AGE (2 * PTE_AGE_ONE)

static u8 disk[SLOTS][4096] __attribute__((aligned(4096)));
static u16 slot_references[SLOTS];

void slot_retain(u32 slot) { slot_references[slot]++; }

void slot_release(u32 slot) { slot_references[slot]--; }

static u32 slot_alloc(void) {
    static u32 next = 1; /* go round: a disk has no reason to use a slot again at once */
    for (u32 tried = 1; tried < SLOTS; tried++) {
        u32 slot = next;
        next = next + 1 < SLOTS ? next + 1 : 1;
        if (slot_references[slot] == 0) {
            slot_references[slot] = 1;
            return slot;
        }
    }
    return 0;
}

void swap_in(u32 address, u32 pte) {
    u32 slot = pte / PAGE_SIZE, frame = frame_alloc();
    u32 may_write = pte & PTE_MAY_WRITE;
    pte_store(address, frame | PTE_P | PTE_U | PTE_W | may_write);
    page_copy((void *)address, disk[slot]);
    /* Filling it made it dirty, but the disk has the same bytes. */
    pte_clear_bits(address, may_write ? PTE_D : PTE_D | PTE_W);
    flush_page(address);
    if (slot_references[slot] == 1)
        frame_slot_set(frame, slot);
    else
        slot_release(slot); /* another process will want it as it is */
}

/* Write the page out if its slot is missing or stale, and put the slot in its place. */
static bool page_evict(u32 address, u32 pte) {
    u32 frame = pte & PAGE_MASK;
    if (frame_shared(frame))
        return false; /* there are other entries to change, and no way to find them */
    u32 slot = frame_slot(frame);
    if (slot == 0) {
        slot = slot_alloc();
        if (slot == 0)
            return false;
        page_copy(disk[slot], (void *)address);
        frame_slot_set(frame, slot);
    }
    slot_retain(slot); /* the entry's share; the frame's goes with the frame */
    pte_exchange(address, slot * PAGE_SIZE | PTE_EXPLICIT | (pte & PTE_MAY_WRITE));
    flush_page(address);
    frame_release(frame);
    return true;
}

/* One sweep of the clock. A page used since the last sweep gets age 0 and a clear accessed
 * bit; one not used grows older; with `evict`, one that was not used twice goes out.
 * Returns the number of used pages, and in bits 31:16 of dirty or evicted ones. */
u32 clock_sweep(u32 address, u32 length, bool evict) {
    u32 used = 0, others = 0;
    for (u32 page = address; page < address + length; page += PAGE_SIZE) {
        u32 pte = pte_read(page);
        if (!(pte & PTE_P))
            continue;
        if (pte & PTE_A) {
            used++;
            if (pte & PTE_D) {
                frame_slot_forget(pte & PAGE_MASK);
                others += !evict;
            }
            pte_clear_bits(page, PTE_A | PTE_D | PTE_AGE);
            flush_page(page); /* or the next access would not set A again */
        } else if (evict && (pte & PTE_AGE) >= EVICTION_AGE) {
            others += page_evict(page, pte);
        } else if ((pte & PTE_AGE) != PTE_AGE) {
            pte_add(page, PTE_AGE_ONE);
        }
    }
    return used | others << 16;
}
