/* A VMM on /dev/kvm, for Linux on i386 and x86-64, without a C library: it starts the virtual
 * machines of guests.S one after the other, each in a state of its own, and prints for each
 * what its guest wrote and "ok", or what was expected. Exit status: how many were not ok.
 *
 * It is to be process 1's only child on a bare initial RAM disk, so it needs nothing else. */

#include <asm/unistd.h>
#include <linux/kvm.h>
#include <stdint.h>

#include "guests.h"

#define O_RDWR 2
#define PROT_READ_WRITE 3
#define MAP_SHARED 1
#define MAP_ANONYMOUS 0x20
#define MOST_EXITS 100000

enum { IRQCHIP = 1, INJECT = 2, STEP = 4 };
enum mode { REAL, PROTECTED, LONG };

extern const uint8_t guests[], guests_end[];

#define GUEST(name) extern const uint8_t guest_##name[];
GUEST(real) GUEST(modes) GUEST(protected) GUEST(tasks) GUEST(paging) GUEST(pae)
GUEST(timer) GUEST(window) GUEST(v86)
#ifdef __x86_64__
GUEST(long)
#endif

static const struct machine {
	const char *name;
	const uint8_t *code;
	enum mode mode;
	unsigned options;
	const char *expected;
} machines[] = {
	{"real", guest_real, REAL, 0, "ridoutscfn"},
	{"modes", guest_modes, REAL, 0, "rpgr"},
	{"protected", guest_protected, PROTECTED, 0, "pudnmw"},
	{"step", guest_protected, PROTECTED, STEP, "pudnmw"},
	{"tasks", guest_tasks, PROTECTED, 0, "tsb"},
	{"paging", guest_paging, PROTECTED, 0, "glxwDs"},
	{"pae", guest_pae, PROTECTED, 0, "glxwDs"},
	{"v86", guest_v86, PROTECTED, 0, "86#"},
	{"window", guest_window, PROTECTED, INJECT, "vn"},
	{"timer", guest_timer, PROTECTED, IRQCHIP, "kt"},
#ifdef __x86_64__
	{"long", guest_long, LONG, 0, "long"},
#endif
};

static long call(long number, long a, long b, long c, long d, long e, long f)
{
	long answer;
#ifdef __x86_64__
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;
	__asm__ volatile("syscall" : "=a"(answer)
			 : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
#else
	/* Six arguments and EBP, which the compiler does not give away. */
	long registers[] = {a, f};
	__asm__ volatile("push %%ebp\n\tmov 4(%%ebx), %%ebp\n\tmov (%%ebx), %%ebx\n\t"
			 "int $0x80\n\tpop %%ebp"
			 : "=a"(answer), "+b"((long){(long)registers})
			 : "a"(number), "c"(b), "d"(c), "S"(d), "D"(e) : "memory");
#endif
	return answer;
}

static long control(long file, unsigned long request, unsigned long argument)
{
	return call(__NR_ioctl, file, request, argument, 0, 0, 0);
}

static uint8_t *map(long file, unsigned long size)
{
	long flags = file < 0 ? MAP_SHARED | MAP_ANONYMOUS : MAP_SHARED;
#ifdef __x86_64__
	return (uint8_t *)call(__NR_mmap, 0, size, PROT_READ_WRITE, flags, file, 0);
#else
	return (uint8_t *)call(__NR_mmap2, 0, size, PROT_READ_WRITE, flags, file, 0);
#endif
}

static void print(const char *text)
{
	unsigned long length = 0;
	while (text[length])
		length++;
	call(__NR_write, 1, (long)text, length, 0, 0, 0);
}

static void print_number(long number)
{
	char text[24], *at = text + sizeof text;
	unsigned long rest = number < 0 ? -(unsigned long)number : (unsigned long)number;
	*--at = 0;
	do
		*--at = '0' + rest % 10;
	while (rest /= 10);
	if (number < 0)
		*--at = '-';
	print(at);
}

static int equal(const char *a, const char *b)
{
	while (*a && *a == *b)
		a++, b++;
	return *a == *b;
}

/* Page tables of all three kinds: the first MiB where it is, and an empty table for LAZY. */
static void make_tables(uint8_t *memory)
{
	uint32_t *directory = (uint32_t *)(memory + DIRECTORY);
	uint32_t *low = (uint32_t *)(memory + LOW_TABLE);
	uint64_t *low_pae = (uint64_t *)(memory + LOW_TABLE_PAE);
	uint64_t *directory_pae = (uint64_t *)(memory + DIRECTORY_PAE);
	for (unsigned page = 0; page < MEMORY >> 12; page++) {
		low[page] = page << 12 | 7;
		low_pae[page] = page << 12 | 7;
	}
	directory[0] = LOW_TABLE | 7;
	directory[LAZY >> 22] = LAZY_TABLE | 7;
	directory_pae[0] = LOW_TABLE_PAE | 7;
	directory_pae[LAZY >> 21] = LAZY_TABLE | 7;
	*(uint64_t *)(memory + POINTERS) = DIRECTORY_PAE | 1;
	*(uint64_t *)(memory + LEVEL3) = DIRECTORY_PAE | 7;
	*(uint64_t *)(memory + LEVEL4) = LEVEL3 | 7;
}

static long set_state(long cpu, const struct machine *machine)
{
	struct kvm_sregs special;
	struct kvm_regs general = {.rip = machine->code - guests + GUEST_BASE, .rflags = 2};
	long failed = control(cpu, KVM_GET_SREGS, (unsigned long)&special);
	special.cs.base = 0;
	special.cs.selector = 0;
	if (machine->mode != REAL) {
		struct kvm_segment flat = {.limit = 0xffffffff, .selector = CODE32, .type = 11,
					   .present = 1, .s = 1, .db = 1, .g = 1};
		special.cs = flat;
		flat.selector = DATA32;
		flat.type = 3;
		special.ds = special.es = special.fs = special.gs = special.ss = flat;
		special.cr0 |= 1;
	}
	if (machine->mode == LONG) {
		special.cs.selector = CODE64;
		special.cs.db = 0;
		special.cs.l = 1;
		special.cr3 = LEVEL4;
		special.cr4 |= 0x20;
		special.cr0 |= 0x80000000;
		special.efer |= 0x500;
	}
	failed |= control(cpu, KVM_SET_SREGS, (unsigned long)&special);
	return failed | control(cpu, KVM_SET_REGS, (unsigned long)&general);
}

/* CPUID of the host's. */
static long set_cpuid(long kvm, long cpu)
{
	static struct {
		struct kvm_cpuid2 head;
		struct kvm_cpuid_entry2 entries[128];
	} found;
	found.head.nent = 128;
	return control(kvm, KVM_GET_SUPPORTED_CPUID, (unsigned long)&found) |
	       control(cpu, KVM_SET_CPUID2, (unsigned long)&found);
}

static long run(long kvm, const struct machine *machine, char *output, unsigned room)
{
	long vm = control(kvm, KVM_CREATE_VM, 0);
	uint64_t identity = 0xfffbc000;
	uint8_t *memory = map(-1, MEMORY);
	struct kvm_userspace_memory_region region = {
		.memory_size = MEMORY, .userspace_addr = (unsigned long)memory};
	struct kvm_pit_config pit = {0};
	struct kvm_guest_debug debug = {.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP};
	struct kvm_interrupt interrupt = {0x30};
	for (long n = 0; n < guests_end - guests; n++)
		memory[GUEST_BASE + n] = guests[n];
	make_tables(memory);
	long failed = vm < 0;
	failed |= control(vm, KVM_SET_TSS_ADDR, 0xfffbd000);
	failed |= control(vm, KVM_SET_IDENTITY_MAP_ADDR, (unsigned long)&identity);
	failed |= control(vm, KVM_SET_USER_MEMORY_REGION, (unsigned long)&region);
	if (machine->options & IRQCHIP) {
		failed |= control(vm, KVM_CREATE_IRQCHIP, 0);
		failed |= control(vm, KVM_CREATE_PIT2, (unsigned long)&pit);
	}
	long cpu = control(vm, KVM_CREATE_VCPU, 0);
	struct kvm_run *state =
		(struct kvm_run *)map(cpu, control(kvm, KVM_GET_VCPU_MMAP_SIZE, 0));
	failed |= cpu < 0 || set_cpuid(kvm, cpu) || set_state(cpu, machine);
	if (failed) {
		print("no machine ");
		return -1;
	}
	unsigned steps = 0;
	for (unsigned length = 0, exits = 0; exits < MOST_EXITS; exits++) {
		if (machine->options & STEP)
			control(cpu, KVM_SET_GUEST_DEBUG, (unsigned long)&debug);
		if (machine->options & INJECT) {
			state->request_interrupt_window = 1;
			if (state->ready_for_interrupt_injection)
				control(cpu, KVM_INTERRUPT, (unsigned long)&interrupt);
		}
		long answer = control(cpu, KVM_RUN, 0);
		if (answer < 0)
			return answer;
		switch (state->exit_reason) {
		case KVM_EXIT_IO:
			if (state->io.port == 0xf4)
				return 0;
			for (unsigned n = 0; n < state->io.count * state->io.size; n++)
				if (length < room - 1)
					output[length++] =
						((char *)state)[state->io.data_offset + n];
			output[length] = 0;
			break;
		case KVM_EXIT_MMIO:
			if (!state->mmio.is_write)
				state->mmio.data[0] = 'm';
			else if (length < room - 1)
				output[length++] = state->mmio.data[0], output[length] = 0;
			break;
		case KVM_EXIT_IRQ_WINDOW_OPEN:
			break;
		case KVM_EXIT_DEBUG:
			steps++;
			break;
		case KVM_EXIT_HLT:
			return (machine->options & STEP) && steps < 100 ? -2 : 0;
		case KVM_EXIT_FAIL_ENTRY:
			print("failed VM entry ");
			print_number(state->fail_entry.hardware_entry_failure_reason);
			return -3;
		default:
			print("exit reason ");
			print_number(state->exit_reason);
			print(" ");
			print_number(state->internal.suberror);
			return -4;
		}
	}
	return -5;
}

__attribute__((noreturn, used)) void begin(void)
{
	long bad = 0;
	long kvm = call(__NR_open, (long)"/dev/kvm", O_RDWR, 0, 0, 0, 0);
	print("KVM API ");
	print_number(control(kvm, KVM_GET_API_VERSION, 0));
	print("\n");
	for (unsigned n = 0; n < sizeof machines / sizeof *machines; n++) {
		static char output[64];
		output[0] = 0;
		print("machine ");
		print(machines[n].name);
		print(": ");
		long answer = run(kvm, &machines[n], output, sizeof output);
		print(output);
		if (!answer && equal(output, machines[n].expected)) {
			print(" ok\n");
			continue;
		}
		print(" is not ");
		print(machines[n].expected);
		print(", status ");
		print_number(answer);
		print("\n");
		bad++;
	}
	print_number(bad);
	print(" machines failed\n");
	for (;;)
		call(__NR_exit, bad, 0, 0, 0, 0, 0);
}

__asm__(".global _start\n_start:\n\t"
#ifdef __x86_64__
	"and $-16, %rsp\n\t"
#else
	"and $-16, %esp\n\t"
#endif
	"call begin\n");
