/* The first serial port, polled, and the ways out. */
#include "hypervisor.h"

#include <stdarg.h>

#define COM1 0x3F8
#define LINE_STATUS (COM1 + 5)
#define TRANSMITTER_EMPTY 0x20
#define ALL_SENT 0x40
#define DEBUG_EXIT 0xF4
#define BOCHS_SHUTDOWN 0x8900

void report_start(void) {
    outb(COM1 + 1, 0x00); /* no interrupts */
    outb(COM1 + 3, 0x80); /* divisor latch */
    outb(COM1 + 0, 0x01); /* 115200 baud */
    outb(COM1 + 1, 0x00);
    outb(COM1 + 3, 0x03); /* 8 bits, no parity, one stop bit */
}

static void put(char c) {
    while (!(inb(LINE_STATUS) & TRANSMITTER_EMPTY)) {
    }
    outb(COM1, (u8)c);
}

static void put_decimal(u32 value) {
    if (value >= 10)
        put_decimal(value / 10);
    put((char)('0' + value % 10));
}

static void say_all(const char *format, va_list values) {
    for (const char *text = "hypervisor: "; *text; text++)
        put(*text);
    for (; *format; format++) {
        if (*format != '%') {
            put(*format);
            continue;
        }
        switch (*++format) {
        case 's':
            for (const char *text = va_arg(values, const char *); *text; text++)
                put(*text);
            break;
        case 'd':
            put_decimal(va_arg(values, u32));
            break;
        default: {
            u32 value = va_arg(values, u32);
            for (int shift = 28; shift >= 0; shift -= 4)
                put("0123456789ABCDEF"[(value >> shift) & 15]);
        }
        }
    }
    put('\n');
}

void say(const char *format, ...) {
    va_list values;
    va_start(values, format);
    say_all(format, values);
    va_end(values);
}

/* The debug-exit port ends Trapgate's machine and QEMU's. Bochs has none, but its BIOS'
 * port ends it when it is told so; elsewhere the word is lost, and the processor halts. */
void leave(u8 status) {
    while (!(inb(LINE_STATUS) & ALL_SENT)) {
    }
    outb(DEBUG_EXIT, status);
    for (const char *word = "Shutdown"; *word; word++)
        outb(BOCHS_SHUTDOWN, (u8)*word);
    for (;;)
        __asm__ volatile("cli; hlt");
}

void give_up(const char *format, ...) {
    va_list values;
    va_start(values, format);
    say_all(format, values);
    va_end(values);
    summary();
    leave(GAVE_UP);
}

/* Exceptions in root operation have no business here. */
_Noreturn void host_trap(u32 stub_return, u32 a, u32 b, u32 c);
void host_trap(u32 stub_return, u32 a, u32 b, u32 c) {
    extern char host_stubs[];
    u32 vector = (stub_return - (u32)host_stubs) / 8;
    bool error = has_error_code(vector);
    say("exception %d in the hypervisor itself, error %x at EIP %x", vector, error ? a : 0,
        error ? b : a);
    (void)c;
    leave(GAVE_UP);
}

static const char *const reason_names[REASONS] = {
    [EXIT_EXCEPTION] = "exception or NMI",
    [EXIT_EXTERNAL_INTERRUPT] = "external interrupt",
    [EXIT_TRIPLE_FAULT] = "triple fault",
    [EXIT_INTERRUPT_WINDOW] = "interrupt window",
    [EXIT_TASK_SWITCH] = "task switch",
    [EXIT_CPUID] = "CPUID",
    [EXIT_HLT] = "HLT",
    [EXIT_INVD] = "INVD",
    [EXIT_INVLPG] = "INVLPG",
    [EXIT_VMCALL] = "VMCALL",
    [EXIT_CR_ACCESS] = "control register",
    [EXIT_IO] = "I/O instruction",
    [EXIT_RDMSR] = "RDMSR",
    [EXIT_WRMSR] = "WRMSR",
};

static void say_count(const char *what, u32 count) {
    if (count > 0)
        say("%d %s", count, what);
}

/* One count a line, so that programs can read it too. */
void summary(void) {
    for (u32 i = 0; i < options.injection_count; i++) {
        const struct injection *wanted = &options.injections[i];
        if (wanted->done)
            say("injected vector %d, error %x, at exit %d: EIP %x, ring %d",
                wanted->event & EVENT_VECTOR, wanted->error, wanted->done, wanted->eip,
                wanted->ring);
        else
            say("not injected: vector %d, which was to come at exit %d",
                wanted->event & EVENT_VECTOR, wanted->at);
    }
    say("%d exits", exit_total);
    for (u32 i = 0; i < REASONS; i++)
        if (reason_names[i])
            say_count(reason_names[i], exit_counts[i]);
        else if (exit_counts[i])
            say("%d for reason %d", exit_counts[i], i);
    say_count("translations filled in", shadow_counts.filled);
    say_count("page-table edits carried out", shadow_counts.edits);
    say_count("tables dropped when their frames became something else", shadow_counts.dropped);
    say_count("times all shadow tables were given up", shadow_counts.resets);
    say_count("interrupts delivered", event_counts.interrupts);
    say_count("deliveries begun again", event_counts.reinjected);
    for (u32 vector = 0; vector < 32; vector++)
        if (event_counts.reflected[vector])
            say("%d exceptions %d given to the guest", event_counts.reflected[vector], vector);
}
