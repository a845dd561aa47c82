/* The faults that ring 3 provokes. The kernel's handler compares and resumes at NAME_next. */
#include "../probe.inc"

        .section .rodata.probes, "a"
        .balign 4
        .globl  ring3_probes, ring3_probes_end
ring3_probes:

        probe   divide, "division by zero", 0, NO_ERROR_CODE
        xor     %ecx, %ecx
divide_at:
        div     %ecx
divide_next:
        ret

        probe   quotient, "quotient too large", 0, NO_ERROR_CODE
        mov     $0x80000000, %eax
        cdq
        mov     $-1, %ecx
quotient_at:
        idiv    %ecx
quotient_next:
        ret

        probe   step, "single step", 1, NO_ERROR_CODE
        pushf
        orl     $0x100, (%esp)
        popf
        nop                             /* TF counts from the instruction after POPF */
step_at:
step_next:
        ret

        probe   breakpoint, "execution breakpoint", 1, NO_ERROR_CODE, NO_ADDRESS, SETUP_BREAKPOINT
        nop
breakpoint_at:
        nop
breakpoint_next:
        ret

        probe   int3, "INT3", 3, NO_ERROR_CODE
        int3
int3_at:                                /* a trap: past the instruction */
int3_next:
        ret

        probe   into, "INTO", 4, NO_ERROR_CODE
        mov     $0x7FFFFFFF, %eax
        inc     %eax
        into
into_at:
into_next:
        ret

        probe   bound, "BOUND", 5, NO_ERROR_CODE
        mov     $-1, %eax
bound_at:
        bound   %eax, limits            /* its gate has DPL 0: that is for INT n only */
bound_next:
        ret

        probe   undefined, "UD2", 6, NO_ERROR_CODE
undefined_at:
        ud2
undefined_next:
        ret

        probe   switched, "x87 with CR0.TS", 7, NO_ERROR_CODE, NO_ADDRESS, SETUP_TASK_SWITCHED
switched_at:
        fnop
switched_next:
        ret

        probe   absent, "absent data segment", 11, 0x30
        mov     $0x33, %eax
absent_at:
        mov     %eax, %ds
absent_next:
        ret

        probe   stack, "absent stack segment", 12, 0x30
        mov     $0x33, %eax
stack_at:
        mov     %eax, %ss
stack_next:
        ret

        probe   cli, "CLI", 13, 0
cli_at:
        cli
cli_next:
        ret

        probe   halt, "HLT", 13, 0
halt_at:
        hlt
halt_next:
        ret

        probe   port, "IN from port 80H", 13, 0
port_at:
        in      $0x80, %al
port_next:
        ret

        probe   control, "MOV to CR3", 13, 0
control_at:
        mov     %eax, %cr3
control_next:
        ret

        probe   kernel_data, "the kernel's data segment", 13, 0x10
        mov     $0x10, %eax
kernel_data_at:
        mov     %eax, %ds
kernel_data_next:
        ret

        probe   gate, "INT 20H, a gate of DPL 0", 13, 0x20*8+2
gate_at:
        int     $0x20
gate_next:
        ret

        probe   read, "read, no page table", 14, 4, 0x3FFFF008
read_at:
        mov     0x3FFFF008, %eax
read_next:
        ret

        probe   write, "write, no page table", 14, 6, 0x3FFFF00C
write_at:
        mov     %eax, 0x3FFFF00C
write_next:
        ret

        probe   page, "read, page 0", 14, 4, 0x10
page_at:
        mov     0x10, %eax
page_next:
        ret

        probe   page_write, "write, page 0", 14, 6, 0x14
page_write_at:
        mov     %eax, 0x14
page_write_next:
        ret

        probe   kernel, "read of the kernel", 14, 5, 0x100000
kernel_at:
        mov     0x100000, %eax
kernel_next:
        ret

        probe   kernel_write, "write to the kernel", 14, 7, 0x100004
kernel_write_at:
        mov     %eax, 0x100004
kernel_write_next:
        ret

        probe   table, "read of a page table", 14, 5, 0xC0300000
table_at:
        mov     0xC0300000, %eax
table_next:
        ret

        probe   text, "write to its own text", 14, 7, USER_BASE
text_at:
        lock orl $1, USER_BASE          /* read-modify-write is a write from the start */
text_next:
        ret

        probe   fetch, "jump to page 0", 14, 4, 0x20, SETUP_NONE, 0x20
        mov     $0x20, %eax
        jmp     *%eax
fetch_next:
        ret

        probe   fetch_kernel, "jump into the kernel", 14, 5, 0x100000, SETUP_NONE, 0x100000
        mov     $0x100000, %eax
        jmp     *%eax
fetch_kernel_next:
        ret

        probe   x87, "x87 division by zero", 16, NO_ERROR_CODE
        fninit
        pushl   $0x37B                  /* control word: ZE not masked */
        fldcw   (%esp)
        pop     %eax
        fld1
        fldz
        fdivrp
x87_at:
        fwait                           /* reported by the next waiting instruction */
x87_next:
        fnclex
        fninit
        ret

        probe   unaligned, "unaligned, EFLAGS.AC", 17, 0, NO_ADDRESS, SETUP_OPTIONAL
        pushf
        orl     $0x40000, (%esp)
        popf
unaligned_at:
        mov     limits + 1, %eax
unaligned_next:
        pushf                           /* if it was not raised, nobody has cleared AC */
        andl    $~0x40000, (%esp)
        popf
        ret

        .section .rodata.probes, "a"
ring3_probes_end:
        .section .rodata
        .balign 4
limits: .long   0, 8
        .section .note.GNU-stack, "", @progbits
