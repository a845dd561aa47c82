/* A boot sector that brings a harness image from a floppy disk to 1 MB and enters it, for Bochs.
 *
 *      as -o b.o boot.S
 *      ld -m elf_x86_64 -Ttext 0x7C00 --oformat binary -o boot.bin b.o
 */
        .code16
        .globl _start
_start: jmp     1f
        .balign 4
sectors:
        .word   0                       /* how many follow: bochs.py fills it in */
1:      cli
        xorw    %ax, %ax
        movw    %ax, %ds
        movw    %ax, %ss
        movw    $0x7C00, %sp
        movw    $0x1000, %ax            /* to 10000H up */
        movw    %ax, %es
        movw    $1, %si
2:      movw    %si, %ax
        xorw    %dx, %dx
        movw    $18, %cx
        divw    %cx                     /* AX track of either side, DX sector from 0 */
        movb    %dl, %cl
        incb    %cl
        movb    %al, %dh
        andb    $1, %dh
        shrw    $1, %ax
        movb    %al, %ch
        xorb    %dl, %dl
        xorw    %bx, %bx
        movw    $0x0201, %ax
        int     $0x13
        jc      2b
        movw    %es, %ax
        addw    $0x20, %ax
        movw    %ax, %es
        incw    %si
        cmpw    sectors, %si
        jbe     2b
        cli
        inb     $0x92, %al
        orb     $2, %al
        outb    %al, $0x92
        lgdt    pointer
        movl    %cr0, %eax
        orb     $1, %al
        movl    %eax, %cr0
        ljmp    $8, $3f
        .code32
3:      movl    $0x10, %eax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movl    $0x10000, %esi
        movl    $0x100000, %edi
        movl    $0x20000, %ecx
        cld
        rep movsl
        movl    $0x100000, %eax
        jmp     *%eax
        .balign 8
gdt:    .quad   0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF
pointer:
        .word   23
        .long   gdt
        .org    510
        .word   0xAA55
