/* Guest-physical addresses and selectors that the VMM and its guests agree upon. */
#define MEMORY		0x100000
#define IDT		0x2000
#define TSS1		0x3000
#define TSS2		0x3100
#define STACK		0x7000
#define GUEST_BASE	0x8000
#define DIRECTORY	0x10000		/* 32-bit paging */
#define POINTERS	0x11000		/* PAE paging */
#define LEVEL4		0x12000		/* 4-level paging */
#define DIRECTORY_PAE	0x13000
#define LEVEL3		0x14000
#define LOW_TABLE	0x15000		/* the first MiB, where it is */
#define LAZY_TABLE	0x16000		/* LAZY, nothing yet */
#define LOW_TABLE_PAE	0x17000
#define FRAMES		0x40000
#define PAGES		64
#define LAZY		0x400000	/* linear; backed from FRAMES on as it is touched */
#define USER_LAZY	(LAZY + PAGES * 0x1000)
#define DEVICE		0x500000	/* guest-physical; no memory there */

#define CODE32		0x08
#define DATA32		0x10
#define CODE16		0x18
#define DATA16		0x20
#define USER_CODE	0x2b
#define USER_DATA	0x33
#define CODE64		0x38
#define TASK1		0x48
#define TASK2		0x50
