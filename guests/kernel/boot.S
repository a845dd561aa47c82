/* Multiboot 1 entry: 32-bit protected mode, paging off, flat segments of the loader's.
 * The kernel is linked where it is loaded (1 MiB) and maps itself one to one, so there
 * is no moment at which the address of the running code changes. */

        .section .multiboot, "a"
        .set    FLAGS, 0x00000003       /* modules page-aligned; memory sizes wanted */
        .align  4
        .long   0x1BADB002
        .long   FLAGS
        .long   -(0x1BADB002 + FLAGS)

        .text
        .globl  start
start:
        cli
        cld
        mov     $kernel_stack_top, %esp
        push    %ebx                    /* multiboot information */
        push    %eax                    /* 2BADB002H if a multiboot loader brought us here */
        call    kernel_main             /* does not return */

/* The user program, linked by itself for USER_BASE. Its pages are mapped from here,
 * copy-on-write, which is why it must not share a page with anything else. */
        .section .program, "a"
        .align  4096
        .globl  program_image
program_image:
        .incbin "program.bin"
        .align  4096
        .globl  program_image_end
program_image_end:
        .section .note.GNU-stack, "", @progbits
