/* One stub per vector. All gates are interrupt gates: the kernel runs with IF clear from
 * entry to IRET, which is what lets it do with a single stack and no locks. */

#define KERNEL_DATA 0x10

        .text
/* These vectors come with an error code; the others get a zero so that all frames match. */
        .set    WITH_ERROR, (1<<8) | (1<<10) | (1<<11) | (1<<12) | (1<<13) | (1<<14) | (1<<17)

        .macro  stub vector
        .balign 16
stub_\vector:
        .if     (\vector > 31) || !((WITH_ERROR >> \vector) & 1)
        push    $0
        .endif
        push    $\vector
        jmp     common
        .endm

        .altmacro
        .macro  stub_range first, last
        .set    i, \first
        .rept   \last - \first + 1
        stub    %i
        .set    i, i + 1
        .endr
        .endm

        .globl  stubs, syscall_stub     /* vectors 0 to 47, 16 bytes apart */
        .balign 16
stubs:
        stub_range 0, 47
        .balign 16
syscall_stub:
        push    $0
        push    $0x80
        /* falls through */
common:
        push    %ds
        push    %es
        pusha
        mov     $KERNEL_DATA, %eax
        mov     %eax, %ds
        mov     %eax, %es
        cld
        push    %esp
        call    trap
        add     $4, %esp
trap_return:
        popa
        pop     %es
        pop     %ds
        add     $8, %esp                /* vector and error code */
        iret

/* enter_user(frame): return from a trap that never happened. */
        .globl  enter_user
enter_user:
        mov     4(%esp), %esp
        jmp     trap_return
        .section .note.GNU-stack, "", @progbits
