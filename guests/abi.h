/* What the kernel and the user program agree on: system calls, the header of the
 * program image, and the description of a fault probe. Read by C and by GAS. */
#ifndef ABI_H
#define ABI_H

/* User space is [USER_BASE, USER_END): PDEs 256 to 767. The page tables begin at USER_END. */
#define USER_BASE 0x40000000
#define USER_END 0xC0000000

/* int $0x80: number in EAX, arguments in EBX, ECX, EDX, result in EAX (-1 is failure). */
#define SYSCALL_VECTOR 0x80
#define SYS_EXIT 0        /* (status): never returns */
#define SYS_WRITE 1       /* (bytes, length): to the console */
#define SYS_FORK 2        /* (): the child's number, 0 in the child */
#define SYS_WAIT 3        /* (process): its exit status, once it has one */
#define SYS_GETPID 4      /* () */
#define SYS_YIELD 5       /* (): let the next process run */
#define SYS_MAP 6         /* (address, length, writable): reserve, filled with zeros on demand */
#define SYS_UNMAP 7       /* (address, length): give back whatever is mapped there */
#define SYS_PROTECT 8     /* (address, length, writable) */
#define SYS_TOUCH 9       /* (address, length, write): the kernel faults the pages in */
#define SYS_AGE 10        /* (address, length): one sweep of the clock; accessed | dirty << 16 */
#define SYS_RECLAIM 11    /* (address, length): a sweep that evicts; accessed | evicted << 16 */
#define SYS_ON_FAULT 12   /* (entry): where refused accesses go, 0 for death */
#define SYS_FAULTS 13     /* (): page faults that this kernel has resolved so far */
#define SYS_ARGUMENT 14   /* (which): ARGUMENT_ below, from the command line */
#define SYS_PROBE_ARM 15  /* (probe): expect this fault next */
#define SYS_PROBE_DONE 16 /* (): print the verdict; PROBE_ below */
#define SYS_PROBE_RING0 17 /* (number): the same for the kernel's own, PROBE_NO_MORE at the end */

#define ARGUMENT_WORKLOADS 0 /* bit n: workload n of WORKLOAD_NAMES is wanted */
#define ARGUMENT_SCALE 1

#define PROBE_RIGHT 0
#define PROBE_ABSENT 1 /* an optional fault that this processor does not raise */
#define PROBE_WRONG 2
#define PROBE_NO_MORE 3

/* The order is the order of execution. The command line is parsed by the kernel, the
 * workloads run in user mode: both use this list. */
#define WORKLOAD_NAMES "demand", "fork", "storm", "protect", "aging", "swap", "faults"
#define WORKLOAD_COUNT 7

#define PROGRAM_MAGIC 0x50415254 /* "TRAP", as the bytes stand in memory */

/* struct probe, for the assembly sources that build the tables. */
#define NO_ERROR_CODE 0xFFFFFFFF
#define NO_ADDRESS 0xFFFFFFFF
#define SETUP_NONE 0
#define SETUP_TASK_SWITCHED 1 /* CR0.TS set, so that x87 instructions raise #NM */
#define SETUP_BREAKPOINT 2    /* DR0 at `at`, enabled for execution */
#define SETUP_OPTIONAL 4      /* emulators commonly leave this fault out: absence is no error */

#ifndef __ASSEMBLER__

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;

/* One fault to provoke, and what the handler has to find. `code` is called as a
 * function; the fault's saved EIP must be `at`; the handler resumes at `next`. */
struct probe {
    char text[40];
    u32 vector;
    u32 error;   /* NO_ERROR_CODE if the vector has none */
    u32 address; /* CR2 of a page fault, NO_ADDRESS otherwise */
    u32 at;
    u32 next;
    u32 code;
    u32 setup;
};

/* At the start of the program image, which is laid out for USER_BASE: text, then from
 * `text_end` initialised data, then from `data_end` zeros. All multiples of 4096. */
struct program {
    u32 magic;
    u32 entry;
    u32 text_end;
    u32 data_end;
    u32 bss_end;
};

#endif
#endif
