/* An instruction of the guest that writes to one of its own page tables.
 *
 * Such pages are read-only in the shadow, so the write faults, and is carried out here. These
 * forms are known, as aligned doublewords: MOV, XCHG, ADD, OR, AND, SUB and XOR, with and
 * without LOCK. Any other instruction, and any in ring 3, shows that the page is a table no
 * more (or that the shadow has to be made anew): it is dropped, and the instruction begins
 * again. Where the address is, the fault says, so operands are decoded for their length only. */
#include "hypervisor.h"

#define LONGEST 15
#define ARITHMETIC_FLAGS 0x8D5u

struct decoded {
    u32 length;
    enum { STORE, EXCHANGE, ALU } kind;
    u32 operation;     /* of ALU: bits 5:3 of the opcode */
    u32 source;        /* register, if ... */
    bool immediate;
    u32 value; /* ... this is not an immediate */
};

/* The instruction's bytes, as far as the guest has them mapped; returns how many. */
static u32 fetch(u32 linear, u8 *bytes) {
    u32 count = 0;
    while (count < LONGEST) {
        const u8 *code = shadow_guest_at(linear + count);
        if (!code)
            break;
        do
            bytes[count++] = *code++;
        while (count < LONGEST && (u32)code % PAGE_SIZE);
    }
    return count;
}

static u32 dword(const u8 *bytes) {
    u32 value;
    memcpy(&value, bytes, 4);
    return value;
}

/* Length of ModRM, SIB and displacement; 0 if the operand is a register. */
static u32 operand_length(const u8 *modrm) {
    u32 mode = modrm[0] >> 6, base = modrm[0] & 7, length = 1;
    if (mode == 3)
        return 0;
    if (base == 4) {
        length++;
        base = modrm[1] & 7;
    }
    if (mode == 1)
        return length + 1;
    return mode == 2 || base == 5 ? length + 4 : length;
}

static bool decode(const u8 *bytes, struct decoded *d) {
    u32 at = 0;
    if (bytes[at] == 0xF0)
        at++;
    u8 opcode = bytes[at++];
    if (opcode == 0xA3) { /* MOV moffs32, EAX */
        *d = (struct decoded){.length = at + 4, .kind = STORE, .source = EAX};
        return true;
    }
    const u8 *modrm = bytes + at;
    u32 operand = operand_length(modrm), field = (modrm[0] >> 3) & 7;
    if (operand == 0)
        return false;
    at += operand;
    *d = (struct decoded){.length = at, .source = field, .operation = (opcode >> 3) & 7};
    switch (opcode) {
    case 0x89: d->kind = STORE; return true;
    case 0x87: d->kind = EXCHANGE; return true;
    case 0x01: case 0x09: case 0x21: case 0x29: case 0x31: d->kind = ALU; return true;
    case 0xC7: case 0x81: case 0x83:
        d->kind = opcode == 0xC7 ? STORE : ALU;
        d->operation = field;
        d->immediate = true;
        d->value = opcode == 0x83 ? (u32)(signed char)bytes[at] : dword(bytes + at);
        d->length += opcode == 0x83 ? 1 : 4;
        return d->kind == ALU || field == 0;
    default: return false;
    }
}

#define DO(instruction)                                                                           \
    __asm__ volatile("lock " instruction " %2, %0\n\tpushf\n\tpop %1"                             \
                     : "+m"(*word), "=r"(flags)                                                   \
                     : "r"(value)                                                                 \
                     : "cc", "memory")

/* Done by the same instruction, which makes the flags right too. */
static bool arithmetic(u32 operation, volatile u32 *word, u32 value) {
    u32 flags;
    switch (operation) {
    case 0: DO("addl"); break;
    case 1: DO("orl"); break;
    case 4: DO("andl"); break;
    case 5: DO("subl"); break;
    case 6: DO("xorl"); break;
    default: return false;
    }
    vmwrite(GUEST_RFLAGS,
            (vmread(GUEST_RFLAGS) & ~ARITHMETIC_FLAGS) | (flags & ARITHMETIC_FLAGS));
    return true;
}

static bool carry_out(const struct decoded *d, u32 *word, struct registers *r) {
    u32 value = d->immediate ? d->value : get_register(r, d->source);
    if (d->kind == ALU)
        return arithmetic(d->operation, word, value);
    if (d->kind == EXCHANGE)
        set_register(r, d->source, *word);
    *(volatile u32 *)word = value;
    return true;
}

void edit_table(u32 linear, struct registers *r) {
    static u32 refused_eip, refused_linear, refused_at;
    u8 bytes[LONGEST + 5] = {0};
    struct decoded d;
    u32 eip = vmread(GUEST_RIP);
    u32 *word = (u32 *)shadow_guest_at(linear & ~3u);
    if (linear % 4 == 0 && guest_ring() != 3) {
        u32 count = fetch(vmread(GUEST_CS_BASE) + eip, bytes);
        if (decode(bytes, &d) && d.length <= count && carry_out(&d, word, r)) {
            shadow_written(word);
            shadow_counts.edits++;
            skip(d.length);
            return;
        }
    }
    /* The very next exit, and the same again: dropping the page did not help. */
    if (refused_at + 1 == exit_total && refused_eip == eip && refused_linear == linear)
        give_up("cannot carry out the guest's write to a page table at %x, EIP %x, code %x %x",
                linear, eip, dword(bytes), dword(bytes + 4));
    refused_eip = eip;
    refused_linear = linear;
    refused_at = exit_total;
    shadow_drop(word);
}
