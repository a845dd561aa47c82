/* Shadow page tables: what the processor walks while the guest believes it walks its own.
 *
 * The guest has two-level tables; the shadow is in PAE format, where entries have reserved
 * bits. So there are two kinds of shadow entry that fault: one that is not present, where the
 * guest's is known to be not present, and one with a reserved bit set, where the guest's is
 * yet to be looked at. The error code tells them apart (P), and so can the VMCS, by mask and
 * match: faults of the first kind need not exit. For that to be right, the shadow has to
 * follow each edit of a guest's table: a page that is shadowed as a table is nowhere writable,
 * and a write there is carried out in edit.c.
 *
 * Accessed and dirty bits are kept as the processor would: an entry is filled in when the
 * access comes, and is writable only once the guest's is dirty. Nothing has to be done at
 * INVLPG, and a MOV to CR3 takes another directory and leaves all tables be. */
#include "hypervisor.h"

#define PTE_P 0x1u
#define PTE_W 0x2u
#define PTE_U 0x4u
#define PTE_A 0x20u
#define PTE_D 0x40u
#define PTE_LARGE 0x80u
#define ABSENT 0ull                         /* the guest's entry is not present */
#define UNKNOWN ((1ull << 61) | PTE_P)      /* reserved: a fault with P and RSVD set */
#define FRAME(entry) ((u32)(entry) >> PAGE_SHIFT)

#define TABLES 256u
#define DIRECTORIES 16u
#define LARGE_REGIONS 16u /* of 4 MiB, as much memory as a guest can have; then, one for the rest */
#define NONE 0xFFFFu
#define LARGE_TABLE 0xFFFEu

/* One table of the guest, 1024 entries, is two of the shadow's; a directory is four, and the
 * four page-directory pointers, to which GUEST_CR3 points. Both are known by the guest's
 * frame. A frame may be both: directories of guests that map them into themselves are. */
typedef u64 table[ENTRIES];
typedef u64 directory[2 * ENTRIES];
static table *tables;
static directory *directories;
static u64 pointers[DIRECTORIES][4] __attribute__((aligned(32)));
static u32 table_frames[TABLES], directory_frames[DIRECTORIES]; /* NONE if it is free */

/* A large page has a shadow table as well, by its region: with CR4.PSE, entries of 4 MiB. */
static u16 large_of[LARGE_REGIONS + 1];

/* By frame of the guest: the shadow that it has, and how many writable entries map it. */
static u16 *table_of, *directory_of, *writable;
static u32 frame_count;

static u64 *plain;      /* the directory for paging off: all of the guest's memory */
static u8 nowhere[PAGE_SIZE] __attribute__((aligned(PAGE_SIZE)));
static bool paging, large_pages;
static u32 root; /* the frame of the guest's directory, with paging on */

struct shadow_counts shadow_counts;

static void start_anew(void) {
    memset(table_of, 0xFF, frame_count * sizeof *table_of);
    memset(directory_of, 0xFF, frame_count * sizeof *directory_of);
    memset(writable, 0, frame_count * sizeof *writable);
    memset(large_of, 0xFF, sizeof large_of);
    for (u32 i = 0; i < TABLES; i++)
        table_frames[i] = NONE;
    for (u32 i = 0; i < DIRECTORIES; i++)
        directory_frames[i] = NONE;
}

u8 *shadow_start(u8 *memory, u32 pages) {
    tables = (table *)memory;
    directories = (directory *)(tables + TABLES);
    plain = (u64 *)(directories + DIRECTORIES);
    table_of = (u16 *)(plain + 2 * ENTRIES);
    directory_of = table_of + pages;
    writable = directory_of + pages;
    frame_count = pages;
    start_anew();
    return (u8 *)(writable + pages);
}

static bool in_ram(u32 frame) { return frame < guest.pages; }

static u32 *table_in_ram(u32 frame) {
    if (!in_ram(frame))
        give_up("the guest's page table is at %x, where it has no memory", frame << PAGE_SHIFT);
    return (u32 *)(guest.ram + frame * PAGE_SIZE);
}

static bool is_table(u32 frame) {
    return in_ram(frame) && (table_of[frame] != NONE || directory_of[frame] != NONE);
}

static u32 host_frame(u32 frame) {
    return FRAME(in_ram(frame) ? guest.ram + frame * PAGE_SIZE : nowhere);
}

static void count_writable(u64 entry, u32 change) {
    u32 address = (u32)entry & -PAGE_SIZE;
    if ((entry & (PTE_P | PTE_W)) == (PTE_P | PTE_W) && address != (u32)nowhere)
        writable[(address - (u32)guest.ram) / PAGE_SIZE] += (u16)change;
}

static void set(u64 *entry, u64 value) {
    count_writable(*entry, -1u);
    count_writable(value, 1);
    *entry = value;
}

/* The shadow of an entry of which nobody has yet asked what it maps. */
static u64 unasked(u32 guest_entry) { return guest_entry & PTE_P ? UNKNOWN : ABSENT; }

/* A frame becomes a table: take write access away from whatever maps it. */
static void protect(u32 frame) {
    for (u32 t = 0; t < TABLES && writable[frame] > 0; t++)
        for (u32 i = 0; i < ENTRIES && table_frames[t] != NONE; i++)
            if ((tables[t][i] & PTE_W) && FRAME(tables[t][i]) == host_frame(frame))
                set(&tables[t][i], tables[t][i] & ~(u64)PTE_W);
}

static u32 free_of(const u32 *frames, u32 count) {
    u32 free = 0;
    for (u32 i = 0; i < count; i++)
        free += frames[i] == NONE;
    return free;
}

static u32 claim(u32 *frames, u32 frame) {
    u32 i = 0;
    while (frames[i] != NONE)
        i++;
    frames[i] = frame;
    return i;
}

static u64 *table_shadow(u32 frame) {
    const u32 *entries = table_in_ram(frame);
    if (table_of[frame] == NONE) {
        u32 t = claim(table_frames, frame);
        protect(frame);
        table_of[frame] = (u16)t;
        for (u32 i = 0; i < ENTRIES; i++)
            tables[t][i] = unasked(entries[i]);
    }
    return tables[table_of[frame]];
}

static u64 *large_shadow(u32 frame) {
    u32 region = frame / ENTRIES < LARGE_REGIONS ? frame / ENTRIES : LARGE_REGIONS;
    if (large_of[region] == NONE) {
        large_of[region] = (u16)claim(table_frames, LARGE_TABLE);
        for (u32 i = 0; i < ENTRIES; i++)
            tables[large_of[region]][i] = UNKNOWN;
    }
    return tables[large_of[region]];
}

static u32 directory_shadow(u32 frame) {
    const u32 *entries = table_in_ram(frame);
    if (directory_of[frame] == NONE) {
        u32 d = claim(directory_frames, frame);
        protect(frame);
        directory_of[frame] = (u16)d;
        for (u32 i = 0; i < ENTRIES; i++)
            directories[d][2 * i] = directories[d][2 * i + 1] = unasked(entries[i]);
        for (u32 i = 0; i < 4; i++)
            pointers[d][i] = (u32)(directories[d] + i * 512) | PTE_P;
    }
    return directory_of[frame];
}

/* Two tables and a directory are the most that one fault or edit can need. */
static void make_room(void) {
    if (free_of(table_frames, TABLES) >= 2 && free_of(directory_frames, DIRECTORIES) >= 1)
        return;
    shadow_counts.resets++;
    start_anew();
    vmwrite(GUEST_CR3, (u32)pointers[directory_shadow(root)]);
}

/* Paging off is one to one, by large pages. What lies above the guest's memory is UNKNOWN. */
static void plain_setup(void) {
    static u64 plain_pointers[4] __attribute__((aligned(32)));
    u32 pages = guest.pages / 512;
    for (u32 i = 0; i < 2 * ENTRIES; i++)
        plain[i] = i < pages ? ((u32)guest.ram + (i << 21)) | PTE_P | PTE_W | PTE_U | PTE_LARGE
                             : UNKNOWN;
    for (u32 i = 0; i < 4; i++)
        plain_pointers[i] = (u32)(plain + i * 512) | PTE_P;
    vmwrite(GUEST_CR3, (u32)plain_pointers);
}

void shadow_paging(bool on, u32 cr3, bool large) {
    if (!on || !paging || large != large_pages)
        start_anew(); /* with paging off nothing told us of edits */
    paging = on;
    large_pages = large;
    if (!on) {
        plain_setup();
        return;
    }
    root = FRAME(cr3);
    make_room();
    vmwrite(GUEST_CR3, (u32)pointers[directory_shadow(root)]);
}

/* What the guest's own tables say of an address. */
struct translation {
    u32 *pde, *pte; /* the same for a large page; no PTE where there is no table */
    u32 frame;
    bool large;
};

static bool is_large(u32 pde) { return large_pages && pde & PTE_LARGE; }

static bool translate(u32 linear, struct translation *t) {
    u32 index = (linear >> PAGE_SHIFT) % ENTRIES;
    t->pde = t->pte = table_in_ram(root) + (linear >> 22);
    t->large = is_large(*t->pde);
    if (!(*t->pde & PTE_P))
        return false;
    if (!t->large)
        t->pte = table_in_ram(FRAME(*t->pde)) + index;
    t->frame = t->large ? (FRAME(*t->pde) & -ENTRIES) + index : FRAME(*t->pte);
    return *t->pte & PTE_P;
}

u8 *shadow_guest_at(u32 linear) {
    struct translation t = {.frame = linear >> PAGE_SHIFT};
    if ((paging && !translate(linear, &t)) || !in_ram(t.frame))
        return NULL;
    return guest.ram + t.frame * PAGE_SIZE + linear % PAGE_SIZE;
}

/* Whose page fault? `error` is the processor's, from the shadow. If the guest's own tables
 * permit the access, the shadow learns of it (MAPPED), unless it is a write to one of them
 * (EDIT). If they do not, the fault is the guest's, with `guest_error`. */
enum verdict shadow_fault(u32 linear, u32 error, u32 *guest_error) {
    u32 access = error & (PTE_W | PTE_U);
    struct translation t;
    if (!paging)
        give_up("the guest, paging off, touches %x, where it has no memory", linear);
    make_room();
    *guest_error = access;
    if (!translate(linear, &t))
        return GUESTS;
    *guest_error = access | PTE_P;
    if (access & ~(*t.pde & *t.pte))
        return GUESTS; /* CR0.WP is set: it holds in ring 0 too */

    *t.pde |= PTE_A;
    *t.pte |= PTE_A | (access & PTE_W ? PTE_D : 0);
    /* The directory's entry has its own rights, which the processor combines with those in
     * the table. The table of a large page is for all who map it: its one dirty bit counts here. */
    u64 *shadow = t.large ? large_shadow(t.frame) : table_shadow(FRAME(*t.pde));
    u32 rights = *t.pde & (PTE_W | PTE_U);
    if (t.large && !(*t.pde & PTE_D))
        rights &= ~PTE_W;
    u64 *directory = directories[directory_shadow(root)] + 2 * (linear >> 22);
    for (u32 half = 0; half < 2; half++)
        directory[half] = (u32)(shadow + 512 * half) | rights | PTE_P;
    if ((access & PTE_W) && is_table(t.frame))
        return EDIT;
    rights = t.large ? PTE_W | PTE_U : *t.pte & (PTE_W | PTE_U);
    if (is_table(t.frame) || !(t.large || *t.pte & PTE_D))
        rights &= ~PTE_W;
    set(shadow + (linear >> PAGE_SHIFT) % ENTRIES,
        (u64)host_frame(t.frame) << PAGE_SHIFT | rights | PTE_P);
    shadow_counts.filled++;
    return MAPPED;
}

void shadow_written(u32 *word) {
    u32 offset = (u32)word - (u32)guest.ram, frame = offset / PAGE_SIZE;
    u32 index = offset % PAGE_SIZE / sizeof *word, t = table_of[frame], d = directory_of[frame];
    if (t != NONE)
        set(&tables[t][index], unasked(*word));
    if (d != NONE) {
        directories[d][2 * index] = directories[d][2 * index + 1] = unasked(*word);
        /* Shadow a new table at once: when the guest begins to fill it, through a mapping
         * of its own, that mapping had better be read-only already. */
        if ((*word & PTE_P) && !is_large(*word) && in_ram(FRAME(*word)))
            table_shadow(FRAME(*word));
    }
}

void shadow_drop(u32 *word) {
    u32 frame = ((u32)word - (u32)guest.ram) / PAGE_SIZE, t = table_of[frame];
    shadow_counts.dropped++;
    if (t != NONE) {
        for (u32 i = 0; i < ENTRIES; i++)
            set(&tables[t][i], ABSENT);
        for (u32 d = 0; d < DIRECTORIES; d++)
            for (u32 i = 0; i < 2 * ENTRIES && directory_frames[d] != NONE; i++)
                if ((directories[d][i] & PTE_P) &&
                    (u32)directories[d][i] - (u32)tables[t] < sizeof tables[t])
                    directories[d][i] = UNKNOWN;
        table_frames[t] = NONE;
        table_of[frame] = NONE;
    }
    if (directory_of[frame] != NONE) {
        directory_frames[directory_of[frame]] = NONE;
        directory_of[frame] = NONE;
        if (frame == root)
            vmwrite(GUEST_CR3, (u32)pointers[directory_shadow(root)]);
    }
}
