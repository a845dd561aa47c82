/* A VMM that is x86 code and carries out scripts. Assembled twice, with BITS 32 and 64;
 * harness.py has the bytes, the scripts' language and the memory map.
 *
 * A multiboot image: entered in flat 32-bit protected mode, without paging. It makes itself
 * page tables (identity), goes to its mode, and executes operations of 16 bytes each:
 * 32 bits operation, 32 bits A, 64 bits B. Results are 64 bits each, appended at RESULTS.
 *
 *      as --defsym BITS=64 -o h.o harness.S
 *      ld -m elf_x86_64 -Ttext 0x100000 --oformat binary -o harness64.bin h.o
 */
        .set ORIGIN, 0x100000
        .set SCRIPT, 0x120000
        .set TABLES, 0x308000
        .set STACK, 0x320000
        .set RESULTS, 0x400000
        .set GATE, BITS / 4

        .code32
        .globl _start
_start:
        jmp     begin
        .balign 4
header: .long   0x1BADB002, 0x00010000, -(0x1BADB002 + 0x00010000)
        .long   ORIGIN + header - _start, ORIGIN, 0, 0, ORIGIN
        .long   vm_exit, count, gdt, gates, task        /* for harness.py */
begin:
        cli
        cld
        movl    $STACK, %esp
        movl    $TABLES, %edi
        movl    $0x1800, %ecx
        xorl    %eax, %eax
        rep stosl
        lgdt    ORIGIN + gdt_pointer - _start
        lidt    ORIGIN + idt_pointer - _start
        movl    $ORIGIN + gates - _start, %edi
        movl    $ORIGIN + stubs - _start, %eax
        movl    $32, %ecx
1:      movw    %ax, (%edi)
        movw    $0x08, 2(%edi)
        movw    $0x8E00, 4(%edi)
        movl    %eax, %edx
        shrl    $16, %edx
        movw    %dx, 6(%edi)
        addl    $16, %eax
        addl    $GATE, %edi
        loop    1b
        movl    $0x83, %eax
        .if BITS == 64
        movl    $TABLES + 0x1003, TABLES
        movl    $TABLES + 0x2003, TABLES + 0x1000
        movl    $TABLES + 0x2000, %edi
        movl    $64, %ecx
1:      movl    %eax, (%edi)
        addl    $0x200000, %eax
        addl    $8, %edi
        loop    1b
        movl    $0x2620, %eax           /* VMXE, OSXMMEXCPT, OSFXSR, PAE */
        movl    %eax, %cr4
        movl    $0xC0000080, %ecx
        rdmsr
        orl     $0x901, %eax            /* NXE, LME, SCE */
        wrmsr
        .else
        movl    $TABLES, %edi
        movl    $32, %ecx
1:      movl    %eax, (%edi)
        addl    $0x400000, %eax
        addl    $4, %edi
        loop    1b
        movl    $0x2610, %eax           /* VMXE, OSXMMEXCPT, OSFXSR, PSE */
        movl    %eax, %cr4
        .endif
        movl    $TABLES, %eax
        movl    %eax, %cr3
        movl    $0x80010031, %eax       /* PG, WP, NE, ET, PE */
        movl    %eax, %cr0
        ljmp    $0x08, $ORIGIN + on - _start

        .if BITS == 64
        .code64
        .macro PUT register, at
        movq    %r\register, \at(%rdi)
        .endm
        .else
        .macro PUT register, at
        movl    %e\register, \at(%edi)
        movl    $0, \at + 4(%edi)
        .endm
        .endif
on:     movl    $0x10, %eax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movw    %ax, %fs
        movw    %ax, %gs
        movl    $0x18, %eax
        ltr     %ax
        movl    $0x3A, %ecx             /* IA32_FEATURE_CONTROL: lock it, with VMX */
        rdmsr
        testb   $1, %al
        jnz     1f
        orb     $5, %al
        wrmsr
1:      movl    $SCRIPT - 16, script
        movl    $RESULTS, results

next:   movl    $STACK, %esp
        movl    script, %esi
        addl    $16, %esi
        movl    %esi, script
        movl    (%esi), %eax
        movl    4(%esi), %ebx
        .if BITS == 64
        movq    8(%rsi), %rcx
        .else
        movl    8(%esi), %ecx
        .endif
        cmpl    $1, %eax
        je      op_write
        cmpl    $2, %eax
        je      op_list
        cmpl    $3, %eax
        je      op_read
        cmpl    $4, %eax
        je      op_launch
        cmpl    $5, %eax
        je      op_resume
        cmpl    $6, %eax
        je      op_poke
        cmpl    $7, %eax
        je      op_peek
        cmpl    $8, %eax
        je      op_call
        jmp     op_end

        .if BITS == 64
op_write:
        vmwrite %rcx, %rbx
        jmp     next
op_list:
        movl    (%ebx), %eax
        testl   %eax, %eax
        js      next
        vmwrite 8(%rbx), %rax
        addl    $16, %ebx
        jmp     op_list
op_read:
        movq    $-1, %rax
        vmread  %rbx, %rax
        jmp     one_result
op_call:
        movq    %rcx, %rax
        callq   *%rbx
        jmp     returned
        .else
op_write:
        vmwrite %ecx, %ebx
        jmp     next
op_list:
        movl    (%ebx), %eax
        testl   %eax, %eax
        js      next
        vmwrite 8(%ebx), %eax
        addl    $16, %ebx
        jmp     op_list
op_read:
        movl    $-1, %eax
        vmread  %ebx, %eax
        jmp     one_result
op_call:
        movl    %ecx, %eax
        call    *%ebx
        jmp     returned
        .endif
op_launch:
        vmlaunch
        jmp     returned
op_resume:
        vmresume
        jmp     returned
op_poke:
        movl    %ecx, (%ebx)
        jmp     next
op_peek:
        movl    (%ebx), %eax
one_result:
        movl    results, %edi
        PUT     ax, 0
        addl    $8, results
        jmp     next

returned:                               /* 0, flags, (R)AX */
        pushf
        .if BITS == 64
        popq    %rcx
        .else
        popl    %ecx
        .endif
        xorl    %edx, %edx
        jmp     three_results

vm_exit:                                /* 2, the guest's (R)BX, the guest's (R)AX */
        .if BITS == 64
        movq    %rbx, %rcx
        .else
        movl    %ebx, %ecx
        .endif
        movl    $2, %edx
three_results:
        movl    $0x10, %ebx
        movw    %bx, %ds
        movw    %bx, %es
        movl    results, %edi
        PUT     dx, 0
        PUT     cx, 8
        PUT     ax, 16
        addl    $24, results
        cld
        jmp     next

/* An exception of the VMM itself: 1 and the vector in bits 15:8, the error code, CR2. */
        .balign 16
stubs:
        .set    vector, 0
        .rept   32
        .balign 16
        .if     (0x27D00 >> vector) & 1 == 0
        push    $0
        .endif
        push    $vector
        jmp     fault
        .set    vector, vector + 1
        .endr
fault:
        .if BITS == 64
        popq    %rdx
        popq    %rcx
        movq    %cr2, %rax
        .else
        popl    %edx
        popl    %ecx
        movl    %cr2, %eax
        .endif
        shll    $8, %edx
        orl     $1, %edx
        jmp     three_results

/* The end; all results go to COM1 if B is not 0. */
op_end:
        movl    results, %edx
        subl    $RESULTS, %edx
        movl    %edx, count
        jecxz   2f
        movl    %edx, %ecx
        movl    $RESULTS, %esi
        movw    $0x3FB, %dx             /* eight bits a character */
        movb    $3, %al
        outb    %al, %dx
1:      movw    $0x3FD, %dx
        inb     %dx, %al
        testb   $0x20, %al
        jz      1b
        movw    $0x3F8, %dx
        lodsb
        outb    %al, %dx
        loop    1b
1:      movw    $0x3FD, %dx
        inb     %dx, %al
        testb   $0x40, %al
        jz      1b
2:      xorl    %eax, %eax
        outb    %al, $0xF4              /* debug exit */
        movw    $0x8900, %dx            /* how Bochs is told to go */
        movl    $ORIGIN + shutdown - _start, %esi
        movl    $8, %ecx
1:      lodsb
        outb    %al, %dx
        loop    1b
        cli
        hlt
shutdown:
        .ascii  "Shutdown"

        .balign 8
script:  .long  0
results: .long  0
count:  .long   0
        .balign 8
gdt:    .quad   0
        .if BITS == 64
        .quad   0x00AF9B000000FFFF
        .else
        .quad   0x00CF9B000000FFFF
        .endif
        .quad   0x00CF93000000FFFF
        .quad   0x0000890000000067 | (((ORIGIN + task - _start) & 0xFFFFFF) << 16)
        .quad   0
gdt_pointer:
        .word   39
        .long   ORIGIN + gdt - _start, 0
idt_pointer:
        .word   32 * GATE - 1
        .long   ORIGIN + gates - _start, 0
        .balign 16
gates:  .fill   32 * GATE
task:   .fill   104
