/* Descriptor tables, interrupt controllers, timer. */
#include "kernel.h"

struct pointer {
    u16 limit;
    u32 base;
} __attribute__((packed));

struct gate {
    u16 low, selector, type, high;
};

struct task_state {
    u32 link, esp0, ss0, others[22];
    u16 trap, io_map;
};

extern char kernel_stack_top[], stubs[], syscall_stub[];

static struct task_state task_state;

/* Flat code and data for both rings. The two absent segments are for the probes. */
static u32 segments[][2] = {
    {0, 0},
    {0x0000FFFF, 0x00CF9A00}, /* KERNEL_CODE */
    {0x0000FFFF, 0x00CF9200}, /* KERNEL_DATA */
    {0x0000FFFF, 0x00CFFA00}, /* USER_CODE */
    {0x0000FFFF, 0x00CFF200}, /* USER_DATA */
    {0, 0},                   /* TASK_STATE, filled in below */
    {0x0000FFFF, 0x00CF7200}, /* ABSENT_USER_DATA */
    {0x0000FFFF, 0x00CF1200}, /* ABSENT_KERNEL_DATA */
};

#define GATE_INTERRUPT 0x8E00 /* present, DPL 0, 32-bit interrupt gate */
#define GATE_DPL3 0x6000
#define GATE_ABSENT 0x0E00
#define ABSENT_VECTOR 0x60
#define STUB_SIZE 16
/* The table ends at the system call. Between the IRQs and it there is nothing, except a
 * gate that would be good if it were present, for a probe. */
static struct gate gates[SYSCALL_VECTOR + 1];

static void gate_set(u32 vector, const char *target, u16 type) {
    gates[vector].low = (u16)(u32)target;
    gates[vector].selector = KERNEL_CODE;
    gates[vector].type = type;
    gates[vector].high = (u16)((u32)target >> 16);
}

#define MASTER 0x20
#define SLAVE 0xA0
#define END_OF_INTERRUPT 0x20
#define READ_IN_SERVICE 0x0B
#define TIMER_IRQ 0

#define PIT_CHANNEL_0 0x40
#define PIT_MODE 0x43
#define PIT_HZ 1193182
#define TICK_HZ 100

volatile u32 ticks;

/* Needed without a timer too: what ran before may have left the PIT ticking and the PIC
 * sending it to vector 8, which is the double fault's. */
static void pic_start(void) {
    outb(MASTER, 0x11); /* ICW1: edge triggered, cascade, ICW4 follows */
    outb(SLAVE, 0x11);
    outb(MASTER + 1, IRQ_BASE); /* ICW2: vectors */
    outb(SLAVE + 1, IRQ_BASE + 8);
    outb(MASTER + 1, 0x04); /* ICW3: the slave is on line 2 */
    outb(SLAVE + 1, 0x02);
    outb(MASTER + 1, 0x01); /* ICW4: 8086 mode */
    outb(SLAVE + 1, 0x01);
    outb(MASTER + 1, 0xFF);
    outb(SLAVE + 1, 0xFF);
}

void cpu_start(void) {
    u32 base = (u32)&task_state, limit = sizeof task_state - 1;
    task_state.ss0 = KERNEL_DATA;
    task_state.esp0 = (u32)kernel_stack_top;
    task_state.io_map = sizeof task_state; /* beyond the limit: ring 3 may use no port */
    segments[TASK_STATE / 8][0] = (base << 16) | limit;
    segments[TASK_STATE / 8][1] = (base & 0xFF000000) | 0x8900 | ((base >> 16) & 0xFF);

    for (u32 vector = 0; vector < IRQ_BASE + IRQ_COUNT; vector++)
        gate_set(vector, stubs + vector * STUB_SIZE, GATE_INTERRUPT);
    /* INT3 and INTO are instructions for ring 3 too, so their gates have to admit it. */
    gates[3].type |= GATE_DPL3;
    gates[4].type |= GATE_DPL3;
    gate_set(ABSENT_VECTOR, syscall_stub, GATE_ABSENT);
    gate_set(SYSCALL_VECTOR, syscall_stub, GATE_INTERRUPT | GATE_DPL3);

    pic_start();
    struct pointer gdt = {sizeof segments - 1, (u32)segments};
    struct pointer idt = {sizeof gates - 1, (u32)gates};
    __asm__ volatile("lgdt %0\n\t"
                     "lidt %1\n\t"
                     "ljmp %2, $1f\n"
                     "1:\n\t"
                     "mov %3, %%ds\n\t"
                     "mov %3, %%es\n\t"
                     "mov %3, %%ss\n\t"
                     "mov %4, %%fs\n\t"
                     "mov %4, %%gs\n\t"
                     "lldt %w4\n\t"
                     "ltr %w5"
                     :
                     : "m"(gdt), "m"(idt), "i"(KERNEL_CODE), "r"(KERNEL_DATA), "r"(0),
                       "r"(TASK_STATE)
                     : "memory");
}

/* Start channel 0 and see it tick twice. Two, because one could have been
 * left over from before. The output says nothing of how long it took. */
void timer_start(void) {
    const u32 divisor = PIT_HZ / TICK_HZ;
    outb(PIT_MODE, 0x34); /* channel 0, both bytes, rate generator */
    outb(PIT_CHANNEL_0, (u8)divisor);
    outb(PIT_CHANNEL_0, (u8)(divisor >> 8));
    outb(MASTER + 1, (u8)~(1u << TIMER_IRQ));
    while (ticks < 2)
        __asm__ volatile("sti; hlt; cli" : : : "memory"); /* STI's shadow covers the HLT */
}

void irq_handle(u32 irq) {
    /* A line that drops before the PIC is acknowledged shows up as its lowest priority
     * (7, 15) without being in service: no end-of-interrupt for what was not begun. */
    if (irq == 7) {
        outb(MASTER, READ_IN_SERVICE);
        if (!(inb(MASTER) & 0x80))
            return;
    }
    if (irq >= 8)
        outb(SLAVE, END_OF_INTERRUPT);
    outb(MASTER, END_OF_INTERRUPT);
    if (irq == TIMER_IRQ) {
        ticks++;
        reschedule = true;
    }
}
