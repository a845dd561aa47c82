/* Start-up: what the loader says, a place for everything, and into VMX operation. */
#include "hypervisor.h"

#define MULTIBOOT_LOADED 0x2BADB002u
#define MULTIBOOT_MEMORY 0x1u
#define MULTIBOOT_COMMAND 0x4u
#define MULTIBOOT_MODULES 0x8u
#define MASTER_MASK 0x21
#define SLAVE_MASK 0xA1
#define MEGABYTE 0x100000u
#define LARGE_PAGE 0x200000u
#define LEAST_PAGES 2048u
#define MOST_PAGES 16384u /* 64 MiB: what the arrays that go by frame are made for */

struct multiboot {
    u32 flags, memory_lower, memory_upper, boot_device, command, module_count, modules;
};
struct module {
    u32 start, end;
};

extern char image_end[];
_Noreturn void enter_guest(struct registers *r);

static u32 up(u32 address, u32 multiple) { return (address + multiple - 1) & -multiple; }

_Noreturn void hypervisor_main(u32 magic, const struct multiboot *information);
_Noreturn void hypervisor_main(u32 magic, const struct multiboot *information) {
    report_start();
    if (magic != MULTIBOOT_LOADED)
        give_up("not started by a multiboot loader");
    if (!(information->flags & MULTIBOOT_MEMORY))
        give_up("the loader does not say how much memory there is");
    if (information->flags & MULTIBOOT_COMMAND)
        parse_options((const char *)information->command);
    if (!(information->flags & MULTIBOOT_MODULES) || information->module_count == 0)
        give_up("no guest: give me a multiboot kernel as a module (--initrd of trapgate run)");
    struct module module = *(const struct module *)information->modules;

    /* The image and the module, the shadow tables, the guest. The loader's information has
     * been read: it may be overwritten. */
    u32 top = MEGABYTE + information->memory_upper * 1024;
    u32 free = up(module.end > (u32)image_end ? module.end : (u32)image_end, PAGE_SIZE);
    u32 start = up((u32)shadow_start((u8 *)free, MOST_PAGES), LARGE_PAGE);
    if (top < start || (top - start) / PAGE_SIZE < LEAST_PAGES)
        give_up("%d KiB of memory are not enough: give the machine 16 MiB", top / 1024);
    guest.ram = (u8 *)start;
    guest.pages = (top - start) / LARGE_PAGE * (LARGE_PAGE / PAGE_SIZE);
    if (guest.pages > MOST_PAGES)
        guest.pages = MOST_PAGES;
    guest_load((const u8 *)module.start, module.end - module.start, options.guest_line);

    /* What the firmware left ticking would reach us with vectors of its own, and be the
     * guest's before it has set up the interrupt controllers for itself. */
    outb(MASTER_MASK, 0xFF);
    outb(SLAVE_MASK, 0xFF);
    vmx_on();
    say("policy %s, %d KiB for the guest", policy_names[options.policy], guest.pages * 4);
    shadow_paging(false, 0, false);
    static struct registers registers;
    *low(&registers, EAX) = MULTIBOOT_LOADED;
    *low(&registers, EBX) = guest.information;
    enter_guest(&registers);
}
