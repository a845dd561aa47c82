/* The guest: a multiboot 1 kernel, an ELF of 32 bits, put into memory of its own. */
#include "hypervisor.h"

struct guest guest;

struct elf_header {
    u32 magic, format, padding[2];
    u16 type, machine;
    u32 version, entry, programs, sections, flags;
    u16 size, program_size, program_count;
} __attribute__((packed));

struct elf_program {
    u32 type, offset, linear, physical, in_file, in_memory, flags, align;
};

struct multiboot {
    u32 flags, memory_lower, memory_upper, boot_device, command;
};

#define ELF_MAGIC 0x464C457Fu
#define ELF_32_LITTLE 0x00010101u /* class, data, version; OS 0 */
#define ELF_FORMAT_BITS 0x00FFFFFFu
#define MACHINE_386 3
#define LOADABLE 1
#define MULTIBOOT_MAGIC 0x1BADB002u
#define MULTIBOOT_SEARCH 8192u
#define INFORMATION_AT 0x1000u /* both below where a kernel may be loaded */
#define LOWEST 0x2000u

static void demand(bool good, const char *what) {
    if (!good)
        give_up("the guest is no 32-bit ELF with a multiboot header: %s", what);
}

static bool has_multiboot_header(const u8 *file, u32 size) {
    for (u32 at = 0; at + 12 <= size && at < MULTIBOOT_SEARCH; at += 4) {
        const u32 *words = (const u32 *)(file + at);
        if (words[0] == MULTIBOOT_MAGIC && words[0] + words[1] + words[2] == 0)
            return true;
    }
    return false;
}

static void load_segment(const u8 *file, u32 size, const struct elf_program *segment) {
    u32 room = guest.pages * PAGE_SIZE;
    demand(segment->offset <= size && segment->in_file <= size - segment->offset,
           "a segment is not in the file");
    demand(segment->in_file <= segment->in_memory, "a segment is larger in the file");
    if (segment->physical < LOWEST || segment->physical > room ||
        segment->in_memory > room - segment->physical)
        give_up("the guest's segment at %x, %d bytes, does not fit: give the machine more memory",
                segment->physical, segment->in_memory);
    memcpy(guest.ram + segment->physical, file + segment->offset, segment->in_file);
    memset(guest.ram + segment->physical + segment->in_file, 0,
           segment->in_memory - segment->in_file);
}

void guest_load(const u8 *file, u32 size, const char *command_line) {
    const struct elf_header *header = (const struct elf_header *)file;
    demand(size >= sizeof *header && header->magic == ELF_MAGIC &&
               (header->format & ELF_FORMAT_BITS) == ELF_32_LITTLE &&
               header->machine == MACHINE_386,
           "not an ELF for the 386");
    demand(header->program_size == sizeof(struct elf_program) && header->programs <= size &&
               header->program_count <= (size - header->programs) / sizeof(struct elf_program),
           "its program headers are not in the file");
    demand(has_multiboot_header(file, size), "no header in the first 8 KiB");
    const struct elf_program *segments = (const struct elf_program *)(file + header->programs);
    for (u32 i = 0; i < header->program_count; i++)
        if (segments[i].type == LOADABLE)
            load_segment(file, size, &segments[i]);
    guest.entry = header->entry;

    struct multiboot *information = (struct multiboot *)(guest.ram + INFORMATION_AT);
    char *line = (char *)(information + 1);
    *information = (struct multiboot){
        .flags = 1 | 4, /* memory sizes and a command line */
        .memory_lower = 639,
        .memory_upper = (guest.pages - 256) * (PAGE_SIZE / 1024),
        .command = INFORMATION_AT + sizeof *information,
    };
    memcpy(line, command_line, COMMAND_LINE);
    guest.information = INFORMATION_AT;
}
