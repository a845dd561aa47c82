/* The faults that the kernel provokes in ring 0. Pushing a #PF, #GP and so on without a
 * change of ring leaves ESP and SS out of the frame: the other half of delivery. */
#include "../probe.inc"

        .section .rodata.probes, "a"
        .balign 4
        .globl  ring0_probes, ring0_probes_end
ring0_probes:

        probe   divide, "division by zero", 0, NO_ERROR_CODE
        xor     %ecx, %ecx
divide_at:
        div     %ecx
divide_next:
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
        mov     $9, %eax
bound_at:
        bound   %eax, limits
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

        probe   gate, "absent gate", 11, 0x60*8+2
gate_at:
        int     $0x60
gate_next:
        ret

        probe   stack, "absent stack segment", 12, 0x38
        mov     $0x38, %eax
stack_at:
        mov     %eax, %ss
stack_next:
        ret

        probe   beyond, "selector beyond the GDT", 13, 0x1000
        mov     $0x1000, %eax
beyond_at:
        mov     %eax, %ds
beyond_next:
        ret

        probe   null, "null stack selector", 13, 0
        xor     %eax, %eax
null_at:
        mov     %eax, %ss
null_next:
        ret

        probe   typeless, "gate of no type", 13, 0x61*8+2
typeless_at:
        int     $0x61
typeless_next:
        ret

        probe   vector, "gate beyond the IDT", 13, 0x90*8+2
vector_at:
        int     $0x90
vector_next:
        ret

        probe   read, "read, no page table", 14, 0, 0x3FFFF008
read_at:
        mov     0x3FFFF008, %eax
read_next:
        ret

        probe   write, "write, no page table", 14, 2, 0x3FFFF00C
write_at:
        mov     %eax, 0x3FFFF00C
write_next:
        ret

        probe   page, "read, page 0", 14, 0, 0x10
page_at:
        mov     0x10, %eax
page_next:
        ret

        probe   text, "write to its own text", 14, 3, 0x100000
text_at:
        mov     %eax, 0x100000
text_next:
        ret

        probe   user, "write to the user's text", 14, 3, USER_BASE
user_at:
        lock orl $1, USER_BASE          /* read-modify-write is a write from the start */
user_next:
        ret

        probe   fetch, "jump to page 0", 14, 0, 0x20, SETUP_NONE, 0x20
        mov     $0x20, %eax
        jmp     *%eax
fetch_next:
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

        .section .rodata.probes, "a"
ring0_probes_end:
        .section .rodata
limits: .long   0, 8
        .section .note.GNU-stack, "", @progbits
