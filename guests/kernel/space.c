/* Address spaces: regions, faults, copy-on-write, protection. Works on the current one. */
#include "kernel.h"

/* Faults that were the kernel's to resolve. Spurious ones (the entry permits the access by
 * now) are left out: how many of those there are is the processor's affair, and a VMM's. */
u32 faults_resolved;

static u32 spurious_in_a_row;
#define SPURIOUS_LIMIT 1000 /* no processor is that forgetful: say so and stop */

/* Pages and tables pass through here when they have no two mappings at once. */
static u32 bounce[ENTRIES] __attribute__((aligned(4096)));

static struct region *region_at(u32 address) {
    for (struct region *r = current->regions; r < current->regions + REGIONS; r++)
        if (r->start <= address && address < r->end)
            return r;
    return NULL;
}

static struct region *region_new(u32 start, u32 end, bool writable) {
    for (struct region *r = current->regions; r < current->regions + REGIONS; r++)
        if (r->start == r->end) {
            *r = (struct region){start, end, writable};
            return r;
        }
    return NULL;
}

static bool in_user_space(u32 address, u32 length) {
    return address % PAGE_SIZE == 0 && length % PAGE_SIZE == 0 && length > 0 &&
           address >= USER_BASE && address < USER_END && length <= USER_END - address;
}

static bool may_write(const struct region *r, u32 pte) {
    if (pte & (PTE_P | PTE_EXPLICIT))
        return pte & PTE_MAY_WRITE;
    return r->writable;
}

/* Every byte in some region? The kernel may then read it: its own faults are resolved. */
bool space_readable(u32 address, u32 length) {
    if (address + length < address)
        return false;
    while (length > 0) {
        const struct region *r = region_at(address);
        if (!r)
            return false;
        u32 part = r->end - address;
        if (part >= length)
            return true;
        address += part;
        length -= part;
    }
    return true;
}

bool space_writable(u32 address, u32 length) {
    if (!space_readable(address, length))
        return false;
    for (u32 page = address & PAGE_MASK; page < address + length; page += PAGE_SIZE)
        if (!may_write(region_at(page), pte_read(page)))
            return false;
    return true;
}

/* A fresh frame, seen at the user's own address while the kernel fills it. The page is
 * writable for that moment whatever it will be, since CR0.WP binds the kernel as well. */
static void page_zero_fill(u32 address, bool writable) {
    u32 bits = PTE_P | PTE_U | (writable ? PTE_MAY_WRITE : 0);
    table_prepare(address);
    pte_store(address, frame_alloc() | bits | PTE_W);
    page_clear((void *)address);
    if (!writable) {
        pte_clear_bits(address, PTE_W);
        flush_page(address);
    }
}

/* A write to a page that the process may write to, but not in a frame that others see. */
static void page_unshare(u32 address, u32 pte) {
    u32 frame = pte & PAGE_MASK;
    if (!frame_shared(frame)) {
        pte_set_bits(address, PTE_W); /* the others are gone */
        flush_page(address);
        return;
    }
    /* Via the bounce page: two copies, but one edit instead of three. */
    page_copy(bounce, (void *)address);
    pte_store(address, frame_alloc() | (pte & ~PAGE_MASK) | PTE_W);
    flush_page(address);
    page_copy((void *)address, bounce);
    frame_release(frame);
}

enum outcome space_fault(u32 address, bool write) {
    const struct region *r = region_at(address);
    if (!r)
        return REFUSED;
    address &= PAGE_MASK;
    u32 pte = pte_read(address);
    bool writable = may_write(r, pte);
    if (write && !writable) {
        faults_resolved++;
        return REFUSED;
    }
    if ((pte & PTE_P) && !(write && !(pte & PTE_W))) {
        flush_page(address);
        if (++spurious_in_a_row > SPURIOUS_LIMIT)
            panic("page faults on a page that is mapped as it should be", NULL);
        return RESOLVED;
    }
    spurious_in_a_row = 0;
    faults_resolved++;
    if (pte & PTE_P)
        page_unshare(address, pte);
    else if (pte & PAGE_MASK)
        swap_in(address, pte);
    else
        page_zero_fill(address, writable);
    return RESOLVED;
}

bool space_map(u32 address, u32 length, bool writable) {
    if (!in_user_space(address, length))
        return false;
    for (struct region *r = current->regions; r < current->regions + REGIONS; r++)
        if (r->start < address + length && address < r->end)
            return false;
    return region_new(address, address + length, writable) != NULL;
}

/* Take away what one entry stands for: a frame, a disk slot, or just a promise. */
static void page_drop(u32 address) {
    u32 pte = pte_exchange(address, 0);
    if (pte & PTE_P) {
        flush_page(address);
        frame_release(pte & PAGE_MASK);
    } else if (pte & PAGE_MASK) {
        slot_release(pte / PAGE_SIZE);
    }
}

static void pages_drop(u32 start, u32 end) {
    for (u32 page = start; page < end;) {
        u32 next_table = (page & ~(TABLE_SPAN - 1)) + TABLE_SPAN;
        u32 stop = next_table < end ? next_table : end;
        if (table_present(page)) {
            for (; page < stop; page += PAGE_SIZE)
                if (*pte_of(page))
                    page_drop(page);
            table_release_if_empty(stop - PAGE_SIZE);
        }
        page = stop;
    }
}

bool space_unmap(u32 address, u32 length) {
    if (!in_user_space(address, length))
        return false;
    u32 end = address + length;
    for (struct region *r = current->regions; r < current->regions + REGIONS; r++) {
        struct region old = *r;
        if (old.end <= address || end <= old.start || old.start == old.end)
            continue;
        if (old.start < address && end < old.end) { /* a hole: both sides live on */
            if (!region_new(end, old.end, old.writable))
                return false;
            r->end = address;
        } else if (old.start < address) {
            r->end = address;
        } else if (end < old.end) {
            r->start = end;
        } else {
            *r = (struct region){0, 0, false};
        }
        pages_drop(old.start > address ? old.start : address, old.end < end ? old.end : end);
    }
    return true;
}

/* Protection is kept page by page in the entries. A page never touched gets an entry with
 * P = 0 that only says what it will be. */
bool space_protect(u32 address, u32 length, bool writable) {
    if (!in_user_space(address, length) || !space_readable(address, length))
        return false;
    for (u32 page = address; page < address + length; page += PAGE_SIZE) {
        table_prepare(page);
        u32 pte = *pte_of(page);
        u32 new = writable ? pte | PTE_MAY_WRITE : pte & ~(PTE_MAY_WRITE | PTE_W);
        if (!(pte & PTE_P))
            new |= PTE_EXPLICIT;
        else if (writable && !frame_shared(pte & PAGE_MASK))
            new |= PTE_W; /* a shared page waits for the write that unshares it */
        if (new == pte)
            continue;
        pte_store(page, new);
        if (pte & PTE_P)
            flush_page(page);
    }
    return true;
}

/* Copy the current address space into `directory`, which has the kernel in it and nothing
 * else. Both end up with the same frames, read-only. Only the current space's tables can be
 * edited, so this goes to and fro, a table at a time: note the entries here, write there.
 * The CR3 loads also flush what the parent's entries no longer permit. */
void space_copy_into(u32 directory) {
    for (u32 base = USER_BASE; base < USER_END; base += TABLE_SPAN) {
        if (!table_present(base))
            continue;
        for (u32 i = 0; i < ENTRIES; i++) {
            u32 page = base + i * PAGE_SIZE, pte = *pte_of(page);
            bounce[i] = pte;
            if (pte & PTE_P) {
                if (pte & PTE_W)
                    pte_clear_bits(page, PTE_W);
                if (pte & PTE_D)
                    frame_slot_forget(pte & PAGE_MASK); /* the child's entry is born clean */
                frame_retain(pte & PAGE_MASK);
                bounce[i] = pte & ~(PTE_W | PTE_A | PTE_D | PTE_AGE);
            } else if (pte & PAGE_MASK) {
                slot_retain(pte / PAGE_SIZE);
            }
        }
        load_cr3(directory);
        table_prepare(base);
        for (u32 i = 0; i < ENTRIES; i++)
            if (bounce[i])
                pte_store(base + i * PAGE_SIZE, bounce[i]);
        load_cr3(current->directory);
    }
}

void space_clear(void) {
    for (struct region *r = current->regions; r < current->regions + REGIONS; r++)
        *r = (struct region){0, 0, false};
    pages_drop(USER_BASE, USER_END);
}
