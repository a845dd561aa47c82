# The virtual machines' code: one block, copied to GUEST_BASE of each machine's memory.
# Each guest writes a line to port E9H and halts; client.c knows the lines.

#include "guests.h"

#define AT(label) ((label) - guests + GUEST_BASE)

.macro put character
	mov	$\character, %al
	out	%al, $0xe9
.endm

	.section .rodata
	.balign	16
	.global	guests, guests_end
guests:

# ---- real mode: INT n and #DE through the vector table at 0, string output, far call, CPUID

	.code16
	.global	guest_real
guest_real:
	xor	%ax, %ax
	mov	%ax, %ds
	mov	%ax, %es
	mov	%ax, %ss
	mov	$STACK, %sp
	movw	$AT(real_service), 0x21 * 4
	movw	%ax, 0x21 * 4 + 2
	movw	$AT(real_divide), 0
	movw	%ax, 2
	put	'r'
	int	$0x21
	xor	%dx, %dx
	mov	$7, %ax
	mov	$0, %cl
	div	%cl
	mov	$AT(real_text), %si
	mov	$4, %cx
	mov	$0xe9, %dx
	cld
	rep outsb
	lcall	$GUEST_BASE >> 4, $(real_far - guests)
	sti
	pushf
	pop	%bx
	cli
	pushf
	pop	%cx
	xor	%cx, %bx
	cmp	$0x200, %bx
	jne	1f
	put	'f'
1:	xor	%eax, %eax
	cpuid
	test	%ebx, %ebx			# the first letters of the vendor
	jz	1f
	put	'n'
1:	hlt
real_service:
	put	'i'
	iret
real_divide:
	put	'd'
	push	%bp
	mov	%sp, %bp
	addw	$2, 2(%bp)		# behind the two bytes of DIV
	pop	%bp
	iret
real_far:
	put	'c'
	lret
real_text:
	.ascii	"outs"

# ---- from real mode to protected mode, to paging, and back

	.global	guest_modes
guest_modes:
	xor	%ax, %ax
	mov	%ax, %ds
	mov	%ax, %ss
	mov	$STACK, %sp
	put	'r'
	lgdtl	AT(gdt_register)
	mov	%cr0, %eax
	or	$1, %al
	mov	%eax, %cr0
	ljmpl	$CODE32, $AT(1f)
	.code32
1:	mov	$DATA32, %eax
	mov	%eax, %ds
	mov	%eax, %ss
	mov	$STACK, %esp
	put	'p'
	mov	$DIRECTORY, %eax
	mov	%eax, %cr3
	mov	%cr0, %eax
	or	$0x80000000, %eax
	mov	%eax, %cr0
	jmp	1f
1:	put	'g'
	mov	%cr0, %eax
	and	$0x7fffffff, %eax
	mov	%eax, %cr0
	ljmp	$CODE16, $AT(1f)
	.code16
1:	mov	$DATA16, %eax
	mov	%eax, %ds
	mov	%eax, %ss
	mov	%cr0, %eax
	and	$~1, %al
	mov	%eax, %cr0
	ljmp	$0, $AT(1f)
1:	xor	%ax, %ax
	mov	%ax, %ds
	mov	%ax, %ss
	mov	$STACK, %sp
	push	$AT(1f)
	ret
1:	put	'r'
	hlt

# ---- 32-bit protected mode: the first instructions of every guest below

	.code32
.macro protected
	lgdt	AT(gdt_register)
	ljmp	$CODE32, $AT(9f)
9:	mov	$DATA32, %eax
	mov	%eax, %ds
	mov	%eax, %es
	mov	%eax, %fs
	mov	%eax, %gs
	mov	%eax, %ss
	mov	$STACK, %esp
	lidt	AT(idt_register)
.endm

.macro gate vector, handler, selector=CODE32, access=0x8e00
	movl	$(\selector << 16) + AT(\handler), IDT + 8 * \vector
	movl	$\access, IDT + 8 * \vector + 4
.endm

# ---- without paging: exceptions of its own, RDTSC, MMIO, a hardware task switch

	.global	guest_protected
guest_protected:
	protected
	gate	6, invalid_opcode
	gate	0, divide
	put	'p'
	ud2
	xor	%edx, %edx
	xor	%ecx, %ecx
	div	%ecx
	mov	$500, %esi
1:	xor	%eax, %eax
	cpuid
	dec	%esi
	jnz	1b
	test	%ebx, %ebx			# the first letters of the vendor
	jz	1f
	put	'n'
1:	mov	DEVICE, %al			# the VMM answers with 'm'
	out	%al, $0xe9
	mov	$'w', %al
	mov	%al, DEVICE
	hlt
invalid_opcode:
	put	'u'
	addl	$2, (%esp)
	iret
divide:
	put	'd'
	addl	$2, (%esp)
	iret

	.global	guest_tasks
guest_tasks:
	protected
	put	't'
	mov	$TASK1, %eax
	ltr	%ax
	movl	$AT(second_task), TSS2 + 32	# EIP
	movl	$2, TSS2 + 36			# EFLAGS
	movl	$STACK - 0x400, TSS2 + 56	# ESP
	movl	$DATA32, TSS2 + 72		# ES
	movl	$CODE32, TSS2 + 76
	movl	$DATA32, TSS2 + 80
	movl	$DATA32, TSS2 + 84
	lcall	$TASK2, $0
	put	'b'
	hlt
second_task:
	put	's'
	iret

# ---- paging: pages that appear at a fault, a write-protected one, ring 3, edits and INVLPG

.macro paging_guest entry_size
	gate	14, page_fault\@
	gate	0x80, system_call\@, CODE32, 0xee00
	movl	$STACK, TSS1 + 4
	movl	$DATA32, TSS1 + 8
	mov	$TASK1, %eax
	ltr	%ax
	put	'g'
	xor	%ebp, %ebp			# counts page faults
	mov	$LAZY, %edi
	mov	$PAGES, %ecx
1:	mov	%ecx, (%edi)			# not present: the handler maps a frame
	add	$0x1000, %edi
	loop	1b
	mov	$LAZY, %edi
	mov	$PAGES, %ecx
1:	cmp	%ecx, (%edi)
	jne	8f
	add	$0x1000, %edi
	loop	1b
	put	'l'
	mov	$LAZY, %edi			# swap the first two frames
	mov	LAZY_TABLE, %eax
	xchg	%eax, LAZY_TABLE + \entry_size
	mov	%eax, LAZY_TABLE
	invlpg	(%edi)
	invlpg	0x1000(%edi)
	cmpl	$PAGES - 1, (%edi)
	jne	8f
	put	'x'
	andl	$~2, LAZY_TABLE			# read-only, for ring 0 too
	mov	%cr0, %eax
	or	$0x10000, %eax
	mov	%eax, %cr0
	invlpg	(%edi)
	movl	$1234, (%edi)			# the handler makes it writable
	cmpl	$1234, (%edi)
	jne	8f
	put	'w'
	testl	$0x40, LAZY_TABLE		# the processor has set the dirty bit
	jz	8f
	put	'D'
	mov	$USER_DATA, %eax		# a segment that IRET leaves as it is
	mov	%eax, %ds
	pushl	%eax
	pushl	$STACK - 0x800
	pushl	$2
	pushl	$USER_CODE
	pushl	$AT(user\@)
	iret
8:	put	'!'
	hlt
user\@:	movl	$5, USER_LAZY
	mov	$7, %eax
	int	$0x80
	ud2
system_call\@:
	cmp	$7, %eax
	jne	8b
	cmp	$PAGES + 2, %ebp
	jne	8b
	put	's'
	hlt
page_fault\@:
	push	%eax
	push	%edx
	inc	%ebp
	mov	%cr2, %eax
	mov	%eax, %edx
	sub	$LAZY, %edx
	shr	$12, %edx
	testl	$1, 8(%esp)			# error code: P
	jnz	2f
	and	$0xfffff000, %eax
	add	$FRAMES - LAZY + 7, %eax
	mov	%eax, LAZY_TABLE(,%edx,\entry_size)
	jmp	3f
2:	orl	$2, LAZY_TABLE(,%edx,\entry_size)
3:	pop	%edx
	pop	%eax
	add	$4, %esp
	iret
.endm

	.global	guest_paging
guest_paging:
	protected
	mov	$DIRECTORY, %eax
	mov	%eax, %cr3
	mov	%cr0, %eax
	or	$0x80000000, %eax
	mov	%eax, %cr0
	jmp	1f
1:	paging_guest 4

	.global	guest_pae
guest_pae:
	protected
	mov	%cr4, %eax
	or	$0x20, %eax
	mov	%eax, %cr4
	mov	$POINTERS, %eax
	mov	%eax, %cr3
	mov	%cr0, %eax
	or	$0x80000000, %eax
	mov	%eax, %cr0
	jmp	1f
1:	paging_guest 8

# ---- interrupts: from the 8254 through KVM's own 8259, HLT in between

	.global	guest_timer
guest_timer:
	protected
	gate	0x20, tick
	put	'k'
	mov	$0x11, %al			# 8259: vectors from 20H, only IRQ 0
	out	%al, $0x20
	mov	$0x20, %al
	out	%al, $0x21
	mov	$4, %al
	out	%al, $0x21
	mov	$1, %al
	out	%al, $0x21
	mov	$0xfe, %al
	out	%al, $0x21
	mov	$0x34, %al			# 8254: 1000 Hz
	out	%al, $0x43
	mov	$1193 & 0xff, %al
	out	%al, $0x40
	mov	$1193 >> 8, %al
	out	%al, $0x40
	xor	%ebx, %ebx
1:	sti
	hlt
	cli
	cmp	$10, %ebx
	jb	1b
	put	't'
	out	%al, $0xf4			# leave: HLT stays in KVM here
	hlt
tick:
	inc	%ebx
	mov	$0x20, %al
	out	%al, $0x20
	iret

# ---- interrupts that the VMM injects as soon as the window is open

	.global	guest_window
guest_window:
	protected
	gate	0x30, injected
	put	'v'
	xor	%ebx, %ebx
1:	sti
	nop
	cli
	jmp	1b
injected:
	inc	%ebx
	cmp	$20, %ebx
	je	1f
	iret
1:	put	'n'
	hlt

# ---- virtual-8086 mode within the guest

	.global	guest_v86
guest_v86:
	protected
	gate	13, general_protection
	movl	$STACK, TSS1 + 4
	movl	$DATA32, TSS1 + 8
	mov	$TASK1, %eax
	ltr	%ax
	put	'8'
	pushl	$0				# GS, FS, DS, ES
	pushl	$0
	pushl	$0
	pushl	$0
	pushl	$0				# SS, ESP
	pushl	$STACK - 0x800
	pushl	$0x23002			# VM, IOPL 3
	pushl	$GUEST_BASE >> 4
	pushl	$v86_code - guests
	iret
general_protection:
	put	'#'
	hlt
	.code16
v86_code:
	mov	$GUEST_BASE >> 4, %ax
	mov	%ax, %ds
	cmpb	$0xb8, v86_code - guests	# its own first byte
	jne	1f
	put	'6'
1:	hlt					# #GP in virtual-8086 mode

# ---- long mode

#ifdef __x86_64__
	.code64
	.global	guest_long
guest_long:
	mov	$STACK, %esp
	lgdt	AT(gdt_register)
	pushq	$CODE64
	pushq	$AT(1f)
	lretq
1:	mov	$DATA32, %eax
	mov	%eax, %ds
	mov	%eax, %es
	mov	%eax, %ss
	lidt	AT(idt_register)
	movl	$(CODE64 << 16) + AT(page_fault), IDT + 16 * 14
	movl	$0x8e00, IDT + 16 * 14 + 4
	movl	$0, IDT + 16 * 14 + 8
	put	'l'
	mov	$LAZY, %edi
	mov	$PAGES, %ecx
1:	mov	%rcx, (%rdi)
	add	$0x1000, %edi
	loop	1b
	cmpq	$1, -0x1000(%rdi)
	jne	8f
	put	'o'
	mov	$0xc0000082, %ecx		# LSTAR; SYSCALL from ring 0
	lea	AT(2f), %rax
	xor	%edx, %edx
	wrmsr
	mov	$0xc0000081, %ecx
	xor	%eax, %eax
	mov	$CODE64, %edx
	wrmsr
	mov	$0xc0000084, %ecx
	xor	%eax, %eax
	xor	%edx, %edx
	wrmsr
	mov	$0xc0000080, %ecx
	rdmsr
	or	$1, %eax
	wrmsr
	syscall
	jmp	8f
2:	put	'n'
	mov	$0xc0000101, %ecx		# GS base, SWAPGS
	mov	$LAZY, %eax
	xor	%edx, %edx
	wrmsr
	mov	$0xc0000102, %ecx
	mov	$LAZY + 0x1000, %eax
	wrmsr
	swapgs
	cmpq	$PAGES - 1, %gs:0
	jne	8f
	put	'g'
	hlt
8:	put	'!'
	hlt
page_fault:
	push	%rax
	push	%rdx
	mov	%cr2, %rax
	mov	%eax, %edx
	sub	$LAZY, %edx
	shr	$12, %edx
	and	$0xfffff000, %eax
	add	$FRAMES - LAZY + 7, %eax
	mov	%rax, LAZY_TABLE(,%rdx,8)
	pop	%rdx
	pop	%rax
	add	$8, %rsp
	iretq
#endif

# ---- tables

	.balign	8
gdt:
	.quad	0
	.quad	0x00cf9b000000ffff	# CODE32
	.quad	0x00cf93000000ffff	# DATA32
	.quad	0x00009b000000ffff	# CODE16
	.quad	0x000093000000ffff	# DATA16
	.quad	0x00cffb000000ffff	# USER_CODE
	.quad	0x00cff3000000ffff	# USER_DATA
	.quad	0x00af9b000000ffff	# CODE64
	.quad	0x00cf93000000ffff	# what SYSCALL takes for SS
	.quad	0x0000890000000067 + (TSS1 << 16)
	.quad	0x0000890000000067 + (TSS2 << 16)
gdt_end:
gdt_register:
	.word	gdt_end - gdt - 1
	.long	AT(gdt), 0
idt_register:
	.word	0xfff
	.long	IDT, 0
guests_end:

	.section .note.GNU-stack, "", @progbits
