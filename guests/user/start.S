/* The program's header, its entry point, and the entry for refused accesses. */
#include "../abi.h"

        .section .header, "a"
        .long   PROGRAM_MAGIC, start, text_end, data_end, bss_end

        .text
        .globl  start
start:
        xor     %ebp, %ebp
        call    main
        mov     %eax, %ebx
        mov     $SYS_EXIT, %eax
        int     $SYSCALL_VECTOR

/* The kernel comes here with [error, address, EFLAGS, EIP] on the stack, all registers
 * being those of the refused instruction. Leave no trace, and run it again. */
        .globl  refused_entry
refused_entry:
        pusha
        pushl   36(%esp)                /* address, above PUSHA's eight and the error code */
        call    refused
        add     $4, %esp
        popa
        add     $8, %esp
        popf
        ret
        .section .note.GNU-stack, "", @progbits
