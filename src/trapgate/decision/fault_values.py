"""The values of the fault information that a rule of the criteria table may ask for (¶27-32).

¶27 tells semi-static values (the state of the processor, which the fault does not change)
from dynamic ones (what is known of this very fault). A value that a fault does not have is
absent, and a clause over it is false: criteria depend on the presence of additional data values
(¶32).
"""

from dataclasses import dataclass
from typing import Final

(
    VECTOR,
    EVENT_TYPE,
    ERROR_CODE,
    INSTRUCTION_LENGTH,
    DEPTH,
    INTERRUPTED_VECTOR,
    ADDRESS,
    PAGE,
    PAGE_OFFSET,
    RIP,
    SELECTOR_INDEX,
    CPL,
    MODE,
    RFLAGS,
    CR0,
    CR3,
    CR4,
    EFER,
    RSP,
    BELOW_STACK,
    PAGE_FAULT_CODE,
    WALK_LEVEL,
    ENTRY_ADDRESS,
    ENTRY,
    PAGE_ADDRESS,
    FRAME_NUMBER,
    FRAME_TYPE,
    DATA,
    DATA_SIZE,
    TABLE_ENTRY,
    OLD_ENTRY,
    NEW_ENTRY,
    SET_BITS,
    CLEARED_BITS,
    NEW_FRAME_NUMBER,
    NEW_FRAME_TYPE,
    REASON,
    QUALIFICATION,
    LEAF,
    PORT,
    MSR,
    CONTROL_REGISTER,
    DEBUG_REGISTER,
    EXTENDED_CONTROL_REGISTER,
    INVPCID_TYPE,
    TABLE_ACCESS,
    TASK_SELECTOR,
    TASK_SOURCE,
    STARTUP_VECTOR,
) = range(49)

VALUES_END: Final = 49
"""Numbers from here on name no value."""

MODE_REAL = 0
MODE_VIRTUAL_8086 = 1
MODE_PROTECTED = 2
MODE_COMPATIBILITY = 3
MODE_64_BIT = 4
"""What MODE may be."""


@dataclass(frozen=True)
class FaultValue:
    """One value of the fault information.

    `number` is its number in a clause, `name` what conditions call it, `width` its bits.
    `dynamic` values belong to the fault, the others to the processor's state (¶27). `present`
    says which faults have it, `column` which column of a trace holds it, if one does.
    """

    number: int
    name: str
    width: int
    dynamic: bool
    present: str
    meaning: str
    column: str = ""


_ALWAYS = "always"
_PAGE_FAULT = "page faults"
_WALKED = "page faults while paging is on and EPT is off"
_WRITE = "page faults by instructions that write to one place"
_TABLE_WRITE = "page faults by writes to table entries that a fault filter may judge"
_INSTRUCTION = "intercepted instructions, task switches, INIT, start-up IPIs and SMIs"

VALUES: Final[tuple[FaultValue, ...]] = (
    FaultValue(VECTOR, "vector", 8, True, _ALWAYS, "the fault identifier", "vector"),
    FaultValue(EVENT_TYPE, "type", 3, True, _ALWAYS, "the interruption type", "type"),
    FaultValue(
        ERROR_CODE, "code", 32, True, "faults with an error code", "the error code", "error_code"
    ),
    FaultValue(
        INSTRUCTION_LENGTH,
        "instruction_length",
        4,
        True,
        "software interrupts and exceptions",
        "the instruction's length in bytes",
    ),
    FaultValue(DEPTH, "depth", 8, True, _ALWAYS, "how many events it is nested in", "depth"),
    FaultValue(
        INTERRUPTED_VECTOR,
        "interrupted_vector",
        8,
        True,
        "faults during the delivery of an event",
        "the vector that was being delivered",
    ),
    FaultValue(ADDRESS, "address", 64, True, _PAGE_FAULT, "the linear address", "address"),
    FaultValue(PAGE, "page", 52, True, _PAGE_FAULT, "the linear address's page number"),
    FaultValue(PAGE_OFFSET, "page_offset", 12, True, _PAGE_FAULT, "the offset in that page"),
    FaultValue(RIP, "rip", 64, False, _ALWAYS, "the address of the instruction", "rip"),
    FaultValue(
        SELECTOR_INDEX,
        "selector_index",
        13,
        True,
        "#TS, #NP, #SS and #GP",
        "bits 15:3 of the error code",
    ),
    FaultValue(CPL, "cpl", 2, False, _ALWAYS, "the current privilege level", "cpl"),
    FaultValue(
        MODE,
        "mode",
        3,
        False,
        _ALWAYS,
        "0 real-address, 1 virtual-8086, 2 protected, 3 compatibility, 4 64-bit mode",
    ),
    FaultValue(RFLAGS, "rflags", 64, False, _ALWAYS, "RFLAGS"),
    FaultValue(CR0, "cr0", 64, False, _ALWAYS, "CR0"),
    FaultValue(CR3, "cr3", 64, False, _ALWAYS, "CR3", "cr3"),
    FaultValue(CR4, "cr4", 64, False, _ALWAYS, "CR4"),
    FaultValue(EFER, "efer", 64, False, _ALWAYS, "IA32_EFER"),
    FaultValue(RSP, "rsp", 64, False, _ALWAYS, "RSP"),
    FaultValue(
        BELOW_STACK,
        "below_stack",
        64,
        True,
        _PAGE_FAULT,
        "RSP minus the linear address, modulo 2^64: small where a stack grows",
    ),
    FaultValue(
        PAGE_FAULT_CODE, "page_fault_code", 32, True, _PAGE_FAULT, "the error code of a page fault"
    ),
    FaultValue(
        WALK_LEVEL,
        "walk_level",
        3,
        True,
        _WALKED,
        "the level of the entry at which the walk ended: 1 PTE, 2 PDE, 3 PDPTE, 4 PML4E",
    ),
    FaultValue(ENTRY_ADDRESS, "entry_address", 40, True, _WALKED, "that entry's physical address"),
    FaultValue(ENTRY, "entry", 64, True, _WALKED, "that entry as it stands in memory"),
    FaultValue(
        PAGE_ADDRESS,
        "page_address",
        40,
        True,
        f"{_WALKED}, if the address is mapped",
        "the physical address that the linear address is mapped to",
    ),
    FaultValue(
        FRAME_NUMBER,
        "frame",
        28,
        True,
        f"{_WALKED}, if the address is mapped",
        "the number of that page's frame, for bitmaps of the VMM's (¶72)",
    ),
    FaultValue(
        FRAME_TYPE,
        "frame_type",
        8,
        True,
        f"{_WALKED}, if the address is mapped and there is a frame map",
        "the frame map's byte of that physical address (¶72)",
    ),
    FaultValue(
        DATA,
        "data",
        64,
        True,
        f"{_WRITE}, if they are at most eight bytes and not of a register of x87, MMX or SSE",
        "the data to be written",
    ),
    FaultValue(DATA_SIZE, "data_size", 10, True, _WRITE, "how many bytes they are"),
    FaultValue(
        TABLE_ENTRY, "table_entry", 2, True, _TABLE_WRITE, "1 for a PTE, 2 for an upper entry"
    ),
    FaultValue(OLD_ENTRY, "old_entry", 64, True, _TABLE_WRITE, "that entry", "old_value"),
    FaultValue(
        NEW_ENTRY, "new_entry", 64, True, _TABLE_WRITE, "the entry that the write makes", "data"
    ),
    FaultValue(
        SET_BITS, "set_bits", 64, True, _TABLE_WRITE, "the bits that become 1: new AND NOT old"
    ),
    FaultValue(
        CLEARED_BITS, "cleared_bits", 64, True, _TABLE_WRITE, "those that become 0: old AND NOT new"
    ),
    FaultValue(
        NEW_FRAME_NUMBER,
        "new_frame",
        28,
        True,
        f"{_TABLE_WRITE}, if it makes a present entry",
        "the number of the frame that the new entry leads to",
    ),
    FaultValue(
        NEW_FRAME_TYPE,
        "new_frame_type",
        8,
        True,
        f"{_TABLE_WRITE}, if it makes a present entry and there is a frame map",
        "the frame map's byte of the frame that the new entry leads to",
    ),
    FaultValue(
        REASON, "reason", 16, True, _INSTRUCTION, "the exit reason that it has if it exits: `HLT`"
    ),
    FaultValue(
        QUALIFICATION, "qualification", 64, True, _INSTRUCTION, "likewise the exit qualification"
    ),
    FaultValue(LEAF, "leaf", 32, True, "CPUID", "EAX"),
    FaultValue(PORT, "port", 16, True, "IN, OUT, INS and OUTS", "the first port"),
    FaultValue(MSR, "msr", 32, True, "RDMSR and WRMSR", "ECX"),
    FaultValue(
        CONTROL_REGISTER,
        "control_register",
        4,
        True,
        "MOV CR, CLTS and LMSW",
        "the control register's number",
    ),
    FaultValue(DEBUG_REGISTER, "debug_register", 3, True, "MOV DR", "the debug register's number"),
    FaultValue(EXTENDED_CONTROL_REGISTER, "xcr", 32, True, "XSETBV", "ECX"),
    FaultValue(INVPCID_TYPE, "invpcid_type", 64, True, "INVPCID", "its register operand"),
    FaultValue(
        TABLE_ACCESS,
        "table_access",
        3,
        True,
        "accesses to GDTR, IDTR, LDTR and TR",
        "0 SGDT, 1 SIDT, 2 LGDT, 3 LIDT, 4 SLDT, 5 STR, 6 LLDT, 7 LTR",
    ),
    FaultValue(TASK_SELECTOR, "task_selector", 16, True, "task switches", "the new TSS's selector"),
    FaultValue(
        TASK_SOURCE,
        "task_source",
        2,
        True,
        "task switches",
        "0 CALL, 1 IRET, 2 JMP, 3 a task gate in the IDT",
    ),
    FaultValue(
        STARTUP_VECTOR, "startup_vector", 8, True, "start-up IPIs", "its vector: where code begins"
    ),
)

BY_NAME: Final = {value.name: value for value in VALUES}

ONLY_OF_TABLE_WRITES: Final = (
    TABLE_ENTRY,
    OLD_ENTRY,
    NEW_ENTRY,
    SET_BITS,
    CLEARED_BITS,
    NEW_FRAME_NUMBER,
    NEW_FRAME_TYPE,
)
"""Values that only those faults have which a fault filter may let complete."""


OF_INSTRUCTIONS: Final = VALUES[REASON:]
"""Values that only intercepted instructions and platform events have."""
