/* The first serial port, polled, and the ways out. */
#include "kernel.h"

#define COM1 0x3F8
#define LINE_STATUS (COM1 + 5)
#define TRANSMITTER_EMPTY 0x20
#define DEBUG_EXIT 0xF4

void console_start(void) {
    outb(COM1 + 1, 0x00); /* no interrupts: output must not depend on when they come */
    outb(COM1 + 3, 0x80); /* divisor latch */
    outb(COM1 + 0, 0x01); /* 115200 baud */
    outb(COM1 + 1, 0x00);
    outb(COM1 + 3, 0x03); /* 8 bits, no parity, one stop bit */
    outb(COM1 + 2, 0x07); /* FIFOs on and empty */
    outb(COM1 + 4, 0x03); /* DTR, RTS */
}

void put_char(char c) {
    while (!(inb(LINE_STATUS) & TRANSMITTER_EMPTY)) {
    }
    outb(COM1, (u8)c);
}

void put_text(const char *text) {
    while (*text)
        put_char(*text++);
}

void put_hex(u32 value, int digits) {
    while (digits-- > 0)
        put_char("0123456789ABCDEF"[(value >> (digits * 4)) & 15]);
}

void put_decimal(u32 value) {
    if (value >= 10)
        put_decimal(value / 10);
    put_char((char)('0' + value % 10));
}

/* Tell whoever runs this machine how it went. Without a debug-exit device the write is
 * lost and the processor halts for good, interrupts off. */
void leave(u8 status) {
    outb(DEBUG_EXIT, status);
    for (;;)
        __asm__ volatile("cli; hlt");
}

void panic(const char *what, const struct frame *f) {
    put_text("panic: ");
    put_text(what);
    if (f) {
        put_text(": vector ");
        put_decimal(f->vector);
        put_text(" error ");
        put_hex(f->error, 8);
        put_text(" eip ");
        put_hex(f->eip, 8);
        put_text(" cs ");
        put_hex(f->cs, 4);
        put_text(" cr2 ");
        put_hex(read_cr2(), 8);
    }
    put_text("\n");
    leave(2);
}
