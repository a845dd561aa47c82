/* Multiboot 1 entry, VM entry and exit, and the traps that should never come. */
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
        mov     $host_stack_top, %esp
        push    %ebx                    /* multiboot information */
        push    %eax                    /* 2BADB002H if a multiboot loader brought us here */
        call    hypervisor_main         /* does not return */

/* enter_guest(registers): the first VM entry. Every later one is at the end of the VM exit
 * before it, which finds the host's stack empty. */
        .globl  enter_guest, vm_exit
enter_guest:
        mov     4(%esp), %esp
        popa
        vmlaunch
        jmp     entry_failed
vm_exit:
        pusha
        push    %esp
        call    handle_exit
        pop     %eax
        popa
        vmresume
entry_failed:                           /* RFLAGS say how; see vm_entry_failed */
        pushf
        pop     %eax
        mov     $host_stack_top, %esp
        push    %eax
        call    vm_entry_failed         /* does not return */

/* Exceptions in root operation: a bug, and the end. The stub's own address tells the vector;
 * an error code, if there is one, is left on the stack. */
        .globl  host_stubs
        .balign 8
host_stubs:
        .rept   32
        call    host_trapped
        .balign 8
        .endr
host_trapped:
        call    host_trap               /* does not return */

/* With exits=idt a VM exit comes through the gate of a vector, with a frame that returns to
 * HOST_RIP, and with an error code if an exception exits that has one. */
        .globl  exit_gates
        .set    WITH_ERROR_CODE, 0x227D00 /* 8, 10 to 14, 17, 21 */
        .set    vector, 0
        .balign 32
exit_gates:
        .rept   32
        .if     (WITH_ERROR_CODE >> vector) & 1
        cmpl    $vm_exit, 4(%esp)
        jne     host_stubs + 8 * vector
        add     $4, %esp
        .else
        cmpl    $vm_exit, (%esp)
        jne     host_stubs + 8 * vector
        .endif
        iret
        .balign 32
        .set    vector, vector + 1
        .endr
        .section .note.GNU-stack, "", @progbits
