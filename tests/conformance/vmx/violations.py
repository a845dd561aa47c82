"""For each check of VM entry: how a good VMCS comes to just pass it, and just not.

A row changes a good VMCS of a 32-bit or 64-bit guest. Values are numbers, or functions
of the field's good value. Nothing here imports the code under test.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

Value = int | Callable[[int], int]
Changes = Mapping[str, Value]


def on(*numbers: int) -> Callable[[int], int]:
    """Set these bits."""
    mask = sum(1 << n for n in numbers)
    return lambda old: old | mask


def off(*numbers: int) -> Callable[[int], int]:
    """Clear these bits."""
    mask = sum(1 << n for n in numbers)
    return lambda old: old & ~mask


def kind(wanted: int) -> Callable[[int], int]:
    """Set the type of an access-rights field."""
    return lambda old: old & ~0xF | wanted


def event(vector: int, of_type: int, *, code: bool = False, more: int = 0) -> int:
    """A valid VM-entry interruption-information field."""
    return 1 << 31 | more | code << 11 | of_type << 8 | vector


@dataclass(frozen=True)
class Row:
    """`check` is the number that the code under test gives it; `bits` the guests that show it.

    `good` changes pass all checks; of each of `bad` this is the first that fails.
    """

    check: int
    good: Changes
    bad: tuple[Changes, ...]
    bits: tuple[int, ...] = (32, 64)


def apply(base: Mapping[str, int], changes: Changes) -> dict[str, int]:
    """`base` with the changes made."""
    fields = dict(base)
    for name, value in changes.items():
        fields[name] = value if isinstance(value, int) else value(fields[name])
    return fields


PIN, PRIMARY, SECONDARY = (
    "PIN_BASED_CONTROLS",
    "PRIMARY_PROCESSOR_BASED_CONTROLS",
    "SECONDARY_PROCESSOR_BASED_CONTROLS",
)
EXIT, ENTRY = "VM_EXIT_CONTROLS", "VM_ENTRY_CONTROLS"
HOST_COUNTERS, GUEST_COUNTERS = "HOST_IA32_PERF_GLOBAL_CTRL", "GUEST_IA32_PERF_GLOBAL_CTRL"
INFO, CODE, LENGTH = (
    "VM_ENTRY_INTERRUPTION_INFORMATION",
    "VM_ENTRY_EXCEPTION_ERROR_CODE",
    "VM_ENTRY_INSTRUCTION_LENGTH",
)
BLOCKING, ACTIVITY = "GUEST_INTERRUPTIBILITY_STATE", "GUEST_ACTIVITY_STATE"
PENDING, RFLAGS = "GUEST_PENDING_DEBUG_EXCEPTIONS", "GUEST_RFLAGS"
WIDE = 1 << 40
"""The first physical address that the processor does not have."""
HOLE, TOP = 1 << 47, (1 << 47) - 1
"""The first address that is not canonical, and the last before it."""
UPPER = (1 << 64) - (1 << 47)
"""The lowest canonical address of the upper half."""
STI, MOV_SS, SMI, NMI_BLOCKED = 1, 2, 4, 8


EPTP = "EPT_POINTER"
EPT: Changes = {PRIMARY: on(31), SECONDARY: 1 << 1, EPTP: 0x1E}
"""EPT, with structures at address 0: that anything is there is no check's business."""


def _page_rows() -> list[Row]:
    rows = []
    for check, control, name in (
        (105, on(25), "IO_BITMAP_A_ADDRESS"),
        (106, on(25), "IO_BITMAP_B_ADDRESS"),
        (107, on(28), "MSR_BITMAP_ADDRESS"),
    ):
        bad: list[Changes] = [{PRIMARY: control, name: a} for a in (0x800, 1, WIDE, 1 << 63)]
        rows.append(Row(check, {PRIMARY: control, name: 0x1000}, tuple(bad)))
    for check, area in (
        (203, "VM_EXIT_MSR_STORE"),
        (205, "VM_EXIT_MSR_LOAD"),
        (308, "VM_ENTRY_MSR_LOAD"),
    ):
        address, count = f"{area}_ADDRESS", f"{area}_COUNT"
        bad = [{count: 1, address: a} for a in (8, 1, WIDE)]
        rows.append(Row(check, {count: 0, address: WIDE | 1}, tuple(bad)))
        end: Changes = {count: 2, address: WIDE - 16}
        rows.append(Row(check + 1, {}, (end,)))
    return rows


VIRTUAL_APIC, THRESHOLD = "VIRTUAL_APIC_ADDRESS", "TPR_THRESHOLD"
ACCESSES: Changes = {PRIMARY: on(21, 31), SECONDARY: on(0)}
DELIVERY: Changes = {PRIMARY: on(21, 31), SECONDARY: on(9), PIN: on(0)}
POSTED: Changes = {**DELIVERY, PIN: on(0, 7), EXIT: on(15)}
LOGGED: Changes = {**EPT, SECONDARY: 1 << 1 | 1 << 17, "PML_ADDRESS": 0x1000}
SHADOWING: Changes = {PRIMARY: on(31), SECONDARY: on(14)}

CONTROLS = [
    Row(101, {PIN: on(0, 3, 5, 6)}, ({PIN: off(1)}, {PIN: on(8)}, {PIN: on(31)})),
    Row(102, {PRIMARY: on(2, 7, 31)}, ({PRIMARY: off(1)}, {PRIMARY: on(0)}, {PRIMARY: on(17)})),
    Row(
        103,
        {PRIMARY: off(31), SECONDARY: 0xFFFF_FFFF},
        ({PRIMARY: on(31), SECONDARY: 1 << 13}, {PRIMARY: on(31), SECONDARY: 1 << 31}),
    ),
    Row(104, {"CR3_TARGET_COUNT": 4}, ({"CR3_TARGET_COUNT": 5}, {"CR3_TARGET_COUNT": 1 << 31})),
    *_page_rows(),
    Row(108, {PIN: on(3, 5)}, ({PIN: on(5)},)),
    Row(109, {PIN: on(3, 5), PRIMARY: on(22), BLOCKING: on(3)}, ({PRIMARY: on(22)},)),
    Row(
        110,
        {PRIMARY: on(31), SECONDARY: on(5), "VIRTUAL_PROCESSOR_IDENTIFIER": 1},
        ({PRIMARY: on(31), SECONDARY: on(5), "VIRTUAL_PROCESSOR_IDENTIFIER": 0},),
    ),
    Row(111, {**EPT, EPTP: 0x18}, tuple({**EPT, EPTP: 0x18 | n} for n in (1, 2, 3, 4, 5, 7))),
    Row(112, {**EPT, EPTP: 0x1E}, tuple({**EPT, EPTP: 6 | n << 3} for n in (0, 1, 2, 4, 5, 7))),
    Row(
        113,
        {**EPT, EPTP: WIDE - 0x1000 | 0x5E},
        tuple({**EPT, EPTP: 0x1E | 1 << n} for n in (7, 8, 11, 40, 52, 63)),
    ),
    Row(114, {**EPT, SECONDARY: 1 << 1 | 1 << 7}, ({**EPT, SECONDARY: 1 << 7},)),
    Row(
        115,
        {PRIMARY: on(21), VIRTUAL_APIC: 0x3000},
        ({PRIMARY: on(21), VIRTUAL_APIC: 0x3001}, {PRIMARY: on(21), VIRTUAL_APIC: WIDE}),
    ),
    Row(
        116,
        {**ACCESSES, THRESHOLD: 15},
        ({**ACCESSES, THRESHOLD: 16}, {**ACCESSES, THRESHOLD: 1 << 31}),
    ),
    Row(117, {PRIMARY: on(21), THRESHOLD: 0}, ({PRIMARY: on(21), THRESHOLD: 1},)),
    Row(
        118,
        {PRIMARY: on(21, 31), SECONDARY: on(4)},
        tuple(
            {PRIMARY: lambda old: on(31)(off(21)(old)), SECONDARY: on(n), PIN: on(0)}
            for n in (4, 8, 9)
        ),
    ),
    Row(
        119,
        {**ACCESSES, "APIC_ACCESS_ADDRESS": WIDE - 0x1000},
        tuple({**ACCESSES, "APIC_ACCESS_ADDRESS": address} for address in (0x3008, WIDE)),
    ),
    Row(120, ACCESSES, ({**ACCESSES, SECONDARY: on(0, 4)},)),
    Row(121, {**DELIVERY, THRESHOLD: 0x70}, ({**DELIVERY, PIN: off(0)},)),
    Row(122, POSTED, ({**POSTED, EXIT: off(15)}, {**POSTED, SECONDARY: off(9)})),
    Row(
        123,
        {**POSTED, "POSTED_INTERRUPT_NOTIFICATION_VECTOR": 0xFF},
        ({**POSTED, "POSTED_INTERRUPT_NOTIFICATION_VECTOR": 0x100},),
    ),
    Row(
        124,
        {**POSTED, "POSTED_INTERRUPT_DESCRIPTOR_ADDRESS": WIDE - 64},
        tuple(
            {**POSTED, "POSTED_INTERRUPT_DESCRIPTOR_ADDRESS": address}
            for address in (0x3001, 0x3020, WIDE)
        ),
    ),
    Row(125, LOGGED, ({**LOGGED, SECONDARY: 1 << 17},)),
    Row(126, LOGGED, tuple({**LOGGED, "PML_ADDRESS": address} for address in (8, WIDE))),
    *(
        Row(check, {**SHADOWING, name: 0x1000}, tuple({**SHADOWING, name: a} for a in (8, WIDE)))
        for check, name in ((127, "VMREAD_BITMAP_ADDRESS"), (128, "VMWRITE_BITMAP_ADDRESS"))
    ),
    Row(129, {**EPT, SECONDARY: on(1, 22)}, ({**EPT, SECONDARY: on(22)},)),
    Row(201, {EXIT: on(12, 15, 30)}, ({EXIT: off(0)}, {EXIT: on(28)}, {EXIT: on(31)})),
    Row(
        202,
        {PIN: on(6), EXIT: on(22), "VMX_PREEMPTION_TIMER_VALUE": 0xFFFF_FFFF},
        ({EXIT: on(22)},),
    ),
    Row(301, {ENTRY: on(13, 14)}, ({ENTRY: off(0)}, {ENTRY: on(10)}, {ENTRY: on(31)})),
    Row(302, {INFO: event(6, 3)}, ({INFO: event(6, 1)}, {INFO: event(2, 1)})),
    Row(
        303,
        {INFO: event(31, 3)},
        (
            {INFO: event(1, 2)},
            {INFO: event(0xFF, 2)},
            {INFO: event(32, 3)},
            {INFO: event(255, 3)},
            {INFO: event(1, 7)},
        ),
    ),
    Row(
        304,
        {INFO: event(13, 3, code=True)},
        (
            {INFO: event(13, 3)},
            {INFO: event(6, 3, code=True)},
            {INFO: event(2, 2, code=True)},
            {INFO: event(21, 3, code=True)},
            {INFO: event(13, 6, code=True), LENGTH: 1},
            {INFO: event(13, 0, code=True), RFLAGS: on(9)},
        ),
    ),
    Row(
        305,
        {INFO: event(6, 3) & ~(1 << 31) | 1 << 12},
        tuple({INFO: event(6, 3, more=1 << n)} for n in (12, 16, 30)),
    ),
    Row(
        306,
        {INFO: event(13, 3, code=True), CODE: 0xFFFF},
        tuple({INFO: event(13, 3, code=True), CODE: 1 << n} for n in (16, 31)),
    ),
    Row(
        307,
        {INFO: event(3, 6), LENGTH: 15},
        tuple({INFO: event(3, t), LENGTH: n} for t in (4, 5, 6) for n in (0, 16, 1 << 31)),
    ),
]


def table(length: int, rules: int) -> Changes:
    """A criteria table of zeros."""
    return {
        "CRITERIA_TABLE_LENGTH": length,
        "CRITERIA_TABLE_RULES": rules,
        "CRITERIA_TABLE_ADDRESS": 0x320000,
    }


EXTENSIONS = [
    Row(
        351,
        {},
        tuple({"EXIT_THROUGH_IDT": value} for value in (1, 0xFF, 1 << 31 | 1 << 8, 3 << 30)),
    ),
    Row(357, {"FAULT_FILTER": 3}, ({"FAULT_FILTER": 4},)),
    Row(358, {"FAULT_FILTER_ORDER": 3}, ({"FAULT_FILTER_ORDER": 4},)),
    Row(
        368,
        {"FRAME_MAP_ADDRESS": 0x1000, "FRAME_MAP_LENGTH": 1 << 28},
        (
            {"FRAME_MAP_ADDRESS": 0x1008, "FRAME_MAP_LENGTH": 1},
            {"FRAME_MAP_ADDRESS": 1 << 40},
            {"FRAME_MAP_LENGTH": (1 << 28) + 1},
        ),
    ),
    Row(
        369,
        {"FRAME_FILTERS": 31, "FRAME_MAP_LENGTH": 1},
        ({"FRAME_FILTERS": 32, "FRAME_MAP_LENGTH": 1}, {"FRAME_FILTERS": 1}),
    ),
    Row(
        370,
        {"ALIAS_BASE": 0x20_0000, "ALIAS_LENGTH": 0x1000, "FRAME_MAP_LENGTH": 1},
        (
            {"ALIAS_BASE": 0x10_0000},
            {"ALIAS_BASE": 1 << 40},
            {"ALIAS_LENGTH": 0x1000},
            {"ALIAS_LENGTH": 0x1008, "FRAME_MAP_LENGTH": 1},
        ),
    ),
    Row(352, {"TRANSFER_CRITERION": 8}, ({"TRANSFER_CRITERION": 9},)),
    Row(353, {"COMPARISON_OPERATOR": 5}, ({"COMPARISON_OPERATOR": 6},)),
    Row(354, {"TRANSFER_CRITERION_VECTORS": 1 << 14}, ({"TRANSFER_CRITERION_VECTORS": 1 << 6},)),
    Row(355, {"MEMBERS_USED": 0xFF}, ({"MEMBERS_USED": 0x100},)),
    Row(
        356,
        {"ERROR_CODE_FIELD_WIDTH": 1, "ERROR_CODE_FIELD_SHIFT": 31},
        (
            {"ERROR_CODE_FIELD_WIDTH": 33},
            {"ERROR_CODE_FIELD_WIDTH": 2, "ERROR_CODE_FIELD_SHIFT": 31},
        ),
    ),
    Row(360, table(16384, 1), (table(12, 1), table(16392, 1))),
    Row(361, table(512, 64), (table(520, 65), table(8, 0), table(0, 1))),
    Row(362, table(16, 2), (table(8, 2),)),
]

HOST = [
    Row(
        401, {"HOST_CR0": on(3)}, tuple({"HOST_CR0": c} for c in (off(0), off(5), off(31), on(32)))
    ),
    Row(
        402, {"HOST_CR4": on(2)}, tuple({"HOST_CR4": c} for c in (off(13), on(15), on(32), on(23)))
    ),
    Row(403, {}, ({"HOST_CR3": on(40)}, {"HOST_CR3": on(63)})),
    *(
        Row(n, {name: top}, ({name: HOLE}, {name: UPPER - 1}))
        for n, name, top in (
            (404, "HOST_IA32_SYSENTER_ESP", TOP),
            (405, "HOST_IA32_SYSENTER_EIP", UPPER),
        )
    ),
    Row(
        406,
        {EXIT: on(19), "HOST_IA32_PAT": 0x0706050401000706},
        tuple({EXIT: on(19), "HOST_IA32_PAT": b} for b in (2, 3 << 56, 8 << 8, 0x80 << 56)),
    ),
    Row(
        409,
        {HOST_COUNTERS: 1},
        tuple({EXIT: on(12), HOST_COUNTERS: 1 << n} for n in (49, 63)),
    ),
    Row(407, {}, tuple({EXIT: on(21), "HOST_IA32_EFER": on(n)} for n in (1, 9, 12, 63))),
    Row(
        408,
        {},
        (
            {EXIT: on(21), "HOST_IA32_EFER": lambda old: old ^ 0x100},
            {EXIT: on(21), "HOST_IA32_EFER": lambda old: old ^ 0x400},
            {EXIT: on(21), "HOST_IA32_EFER": lambda old: old ^ 0x500},
        ),
    ),
    *(
        Row(510 + n, {}, tuple({f"HOST_{name}_SELECTOR": on(b)} for b in (0, 1, 2)))
        for n, name in enumerate(("ES", "CS", "SS", "DS", "FS", "GS", "TR"))
    ),
    Row(521, {}, ({"HOST_CS_SELECTOR": 0},)),
    Row(522, {}, ({"HOST_TR_SELECTOR": 0},)),
    Row(523, {}, ({"HOST_SS_SELECTOR": 0},), bits=(32,)),
    *(
        Row(n, {}, ({f"HOST_{name}_BASE": HOLE}, {f"HOST_{name}_BASE": UPPER - 1}))
        for n, name in ((531, "FS"), (532, "GS"), (533, "GDTR"), (534, "IDTR"), (535, "TR"))
    ),
    Row(601, {}, ({ENTRY: on(9)},), bits=(32,)),
    Row(602, {EXIT: off(21)}, ({EXIT: lambda old: (old | 1 << 9) & ~(1 << 21)},), bits=(32,)),
    Row(603, {}, ({EXIT: off(9, 21)},), bits=(64,)),
    Row(604, {}, ({"HOST_CR4": off(5)},), bits=(64,)),
    Row(605, {}, ({"HOST_RIP": HOLE}, {"HOST_RIP": UPPER - 1}), bits=(64,)),
    Row(606, {}, ({"HOST_RIP": on(32)}, {"HOST_RIP": on(63)}), bits=(32,)),
    Row(607, {}, ({"HOST_CR4": on(17)},), bits=(32,)),
]

REGISTERS = [
    Row(
        701, {"GUEST_CR0": on(29, 30, 6)}, tuple({"GUEST_CR0": c} for c in (off(5), on(32), on(63)))
    ),
    Row(701, {}, ({"GUEST_CR0": off(31)}, {"GUEST_CR0": off(0, 31)}), bits=(32,)),
    Row(
        703,
        {"GUEST_CR4": on(2)},
        tuple({"GUEST_CR4": c} for c in (off(13), on(15), on(23), on(32))),
    ),
    Row(
        704,
        {ENTRY: off(2), "GUEST_IA32_DEBUGCTL": 1 << 5},
        ({ENTRY: on(2), "GUEST_IA32_DEBUGCTL": 1 << 5}, {"GUEST_IA32_DEBUGCTL": 1 << 63}),
    ),
    Row(706, {}, ({"GUEST_CR4": off(5)},), bits=(64,)),
    Row(715, {}, ({"GUEST_CR4": on(17)},), bits=(32,)),
    Row(707, {}, ({"GUEST_CR3": on(40)}, {"GUEST_CR3": on(63)})),
    Row(
        708,
        {ENTRY: off(2), "GUEST_DR7": 1 << 32 | 0x400},
        ({ENTRY: on(2), "GUEST_DR7": 1 << 32 | 0x400}, {"GUEST_DR7": 1 << 63 | 0x400}),
    ),
    Row(
        709,
        {"GUEST_IA32_SYSENTER_ESP": TOP},
        ({"GUEST_IA32_SYSENTER_ESP": HOLE}, {"GUEST_IA32_SYSENTER_ESP": UPPER - 1}),
    ),
    Row(
        710,
        {"GUEST_IA32_SYSENTER_EIP": UPPER},
        ({"GUEST_IA32_SYSENTER_EIP": HOLE}, {"GUEST_IA32_SYSENTER_EIP": UPPER - 1}),
    ),
    Row(
        711,
        {ENTRY: on(14), "GUEST_IA32_PAT": 0x0706050401000706},
        tuple({ENTRY: on(14), "GUEST_IA32_PAT": b} for b in (2, 3 << 56, 8 << 8, 0x80 << 56)),
    ),
    Row(
        716,
        {GUEST_COUNTERS: 1},
        tuple({ENTRY: on(13), GUEST_COUNTERS: 1 << n} for n in (49, 63)),
    ),
    Row(
        712,
        {ENTRY: off(15), "GUEST_IA32_EFER": on(9)},
        tuple({ENTRY: on(15), "GUEST_IA32_EFER": on(n)} for n in (1, 9, 12, 63)),
    ),
    Row(713, {}, ({ENTRY: on(15), "GUEST_IA32_EFER": lambda old: old ^ 0x500},)),
    Row(714, {}, ({ENTRY: on(15), "GUEST_IA32_EFER": lambda old: old ^ 0x100},)),
]

SIX = ("ES", "CS", "SS", "DS", "FS", "GS")
V8086: Changes = {
    RFLAGS: on(17),
    **{f"GUEST_{name}_SELECTOR": 0x1000 for name in SIX},
    **{f"GUEST_{name}_BASE": 0x10000 for name in SIX},
    **{f"GUEST_{name}_LIMIT": 0xFFFF for name in SIX},
    **{f"GUEST_{name}_ACCESS_RIGHTS": 0xF3 for name in SIX},
}


def _rights(name: str) -> str:
    return f"GUEST_{name}_ACCESS_RIGHTS"


def _segment_rows() -> list[Row]:
    """Checks that several registers have in common."""
    rows = []
    for n, name in enumerate((*SIX, "LDTR", "TR")):
        rights, limit, base = _rights(name), f"GUEST_{name}_LIMIT", f"GUEST_{name}_BASE"
        # A good LDT and a good 32-bit TSS; the others are good as they are.
        ready: Changes = {rights: 0x82, limit: 0xFFFF} if name == "LDTR" else {}

        def edit(change: Callable[[int], int], name: str = name) -> Value:
            return change(0x82) if name == "LDTR" else change

        if name not in ("LDTR", "TR"):
            narrow: Changes = {**V8086, base: 0x10010}
            rows += [
                Row(820 + n, V8086, (narrow,), bits=(32,)),
                Row(840 + n, V8086, ({**V8086, limit: 0xFFFE},), bits=(32,)),
                Row(
                    850 + n,
                    V8086,
                    tuple({**V8086, rights: 0xF3 ^ 1 << b} for b in (0, 2, 4, 5, 7, 12, 16)),
                    bits=(32,),
                ),
            ]
        if name in ("FS", "GS", "LDTR", "TR"):
            beyond = tuple({**ready, base: value} for value in (HOLE, UPPER - 1))
            rows.append(Row(830 + n, {**ready, base: UPPER}, beyond))
        else:
            beyond = ({base: on(32)}, {base: on(63)})
            unusable: Changes = {} if name == "CS" else {rights: on(16), base: 1 << 32}
            rows.append(Row(830 + n, unusable, beyond))
        rows += [
            Row(870 + n, ready, ({**ready, rights: edit(lambda old: old ^ 0x10)},)),
            Row(890 + n, ready, ({**ready, rights: edit(off(7))},)),
            Row(
                900 + n,
                {**ready, rights: edit(on(12))},
                tuple({**ready, rights: edit(on(b))} for b in (8, 11, 17, 31)),
            ),
            Row(
                920 + n,
                {**ready, limit: 0xFFFF_FFFF, rights: edit(on(15))},
                tuple(
                    {**ready, limit: x, rights: edit(on(15))} for x in (0xFFFF_FFFE, 0xFFFF_F7FF)
                ),
            ),
            Row(
                930 + n,
                {**ready, limit: 0xFFFFF, rights: edit(off(15))},
                tuple({**ready, limit: x, rights: edit(off(15))} for x in (0x10_0FFF, 0x8000_0FFF)),
            ),
        ]
    return rows


SEGMENTS = [
    Row(
        806,
        {"GUEST_LDTR_SELECTOR": 4, _rights("LDTR"): 1 << 16},
        ({"GUEST_LDTR_SELECTOR": 4, _rights("LDTR"): 0x82, "GUEST_LDTR_LIMIT": 0xFFFF},),
    ),
    Row(807, {}, ({"GUEST_TR_SELECTOR": on(2)},)),
    Row(812, {}, ({"GUEST_CS_SELECTOR": on(0)}, {"GUEST_SS_SELECTOR": on(1)})),
    *_segment_rows(),
    *(
        Row(
            860 + n,
            {_rights(name): kind(3)},
            tuple({_rights(name): kind(k)} for k in (2, 8, 9, 13)),
        )
        for n, name in ((0, "ES"), (3, "DS"), (4, "FS"), (5, "GS"))
    ),
    Row(861, {_rights("CS"): kind(9)}, tuple({_rights("CS"): kind(k)} for k in (3, 7, 8, 10, 14))),
    Row(862, {_rights("SS"): kind(7)}, tuple({_rights("SS"): kind(k)} for k in (1, 2, 5, 11))),
    Row(
        866,
        {_rights("LDTR"): 0x82, "GUEST_LDTR_LIMIT": 7},
        tuple({_rights("LDTR"): 0x80 | k, "GUEST_LDTR_LIMIT": 7} for k in (0, 3, 11)),
    ),
    Row(867, {}, tuple({_rights("TR"): kind(k)} for k in (1, 2, 9))),
    Row(867, {}, ({_rights("TR"): kind(3)},), bits=(64,)),
    Row(867, {_rights("TR"): kind(3)}, (), bits=(32,)),
    *(
        Row(
            880 + n,
            {f"GUEST_{name}_SELECTOR": on(0, 1), _rights(name): on(5, 6)},
            ({f"GUEST_{name}_SELECTOR": on(0, 1)}, {f"GUEST_{name}_SELECTOR": on(0)}),
        )
        for n, name in ((0, "ES"), (3, "DS"), (4, "FS"), (5, "GS"))
    ),
    Row(881, {_rights("CS"): kind(15)}, ({_rights("CS"): on(5, 6)}, {_rights("CS"): on(5)})),
    Row(
        882,
        {},
        (
            {_rights("SS"): on(5), _rights("CS"): on(5)},
            {_rights("SS"): on(16, 6), _rights("CS"): on(6)},
        ),
    ),
    Row(911, {}, ({_rights("CS"): on(13, 14)},), bits=(64,)),
    Row(911, {_rights("CS"): on(13, 14)}, (), bits=(32,)),
    Row(947, {}, ({_rights("TR"): on(16)},)),
]

REST = [
    Row(1001, {"GUEST_GDTR_BASE": UPPER}, ({"GUEST_GDTR_BASE": HOLE},)),
    Row(1002, {"GUEST_IDTR_BASE": TOP}, ({"GUEST_IDTR_BASE": UPPER - 1},)),
    Row(1003, {"GUEST_GDTR_LIMIT": 0xFFFF}, ({"GUEST_GDTR_LIMIT": 0x10000},)),
    Row(1004, {"GUEST_IDTR_LIMIT": 0xFFFF}, ({"GUEST_IDTR_LIMIT": 1 << 31},)),
    Row(1101, {}, ({"GUEST_RIP": on(32)}, {"GUEST_RIP": on(63)}), bits=(32,)),
    Row(1101, {}, ({_rights("CS"): lambda old: old ^ 0x6000, "GUEST_RIP": on(32)},), bits=(64,)),
    Row(1102, {"GUEST_RIP": HOLE}, ({"GUEST_RIP": 1 << 48},), bits=(64,)),
    Row(1102, {"GUEST_RIP": UPPER - 1}, ({"GUEST_RIP": (0xFFFF << 48) - 1},), bits=(64,)),
    Row(
        1103,
        {RFLAGS: on(0, 2, 4, 6, 7, 10, 11, 12, 13, 14, 18, 19, 20, 21)},
        (*({RFLAGS: on(n)} for n in (3, 5, 15, 22, 31, 32, 63)), {RFLAGS: off(1)}),
    ),
    Row(
        1104, {}, ({RFLAGS: on(17), **{k: x for k, x in V8086.items() if k != RFLAGS}},), bits=(64,)
    ),
    Row(1105, {INFO: event(0x30, 0), RFLAGS: on(9)}, ({INFO: event(0x30, 0)},)),
    Row(1201, {}, ({ACTIVITY: 4}, {ACTIVITY: 1 << 31})),
    Row(
        1203,
        {BLOCKING: STI, RFLAGS: on(9)},
        (
            {ACTIVITY: 1, BLOCKING: STI, RFLAGS: on(9)},
            {ACTIVITY: 2, BLOCKING: MOV_SS},
            {ACTIVITY: 3, BLOCKING: MOV_SS},
        ),
    ),
    Row(
        1204,
        {ACTIVITY: 1, INFO: event(1, 3)},
        (
            {ACTIVITY: 1, INFO: event(6, 3)},
            {ACTIVITY: 1, INFO: event(3, 6), LENGTH: 1},
            {ACTIVITY: 2, INFO: event(1, 3)},
            {ACTIVITY: 2, INFO: event(0x30, 0), RFLAGS: on(9)},
            {ACTIVITY: 3, INFO: event(2, 2)},
            {ACTIVITY: 3, INFO: event(18, 3)},
        ),
    ),
    Row(1211, {BLOCKING: NMI_BLOCKED}, tuple({BLOCKING: 1 << n} for n in (5, 6, 31))),
    Row(1212, {BLOCKING: MOV_SS}, ({BLOCKING: STI | MOV_SS, RFLAGS: on(9)},)),
    Row(1213, {BLOCKING: STI, RFLAGS: on(9)}, ({BLOCKING: STI},)),
    Row(
        1214,
        {INFO: event(0x30, 0), RFLAGS: on(9), BLOCKING: NMI_BLOCKED},
        tuple({INFO: event(0x30, 0), RFLAGS: on(9), BLOCKING: b} for b in (STI, MOV_SS)),
    ),
    Row(1215, {INFO: event(2, 2)}, ({INFO: event(2, 2), BLOCKING: MOV_SS},)),
    Row(1216, {}, ({BLOCKING: SMI},)),
    Row(
        1217,
        {INFO: event(2, 2), RFLAGS: on(9)},
        ({INFO: event(2, 2), RFLAGS: on(9), BLOCKING: STI},),
    ),
    Row(
        1218,
        {INFO: event(2, 2), BLOCKING: NMI_BLOCKED, PIN: on(3)},
        ({INFO: event(2, 2), BLOCKING: NMI_BLOCKED, PIN: on(3, 5)},),
    ),
    Row(
        1221,
        {PENDING: 0xF},
        tuple({PENDING: 1 << n} for n in (4, 11, 13, 15, 16, 63)),
    ),
    Row(
        1222,
        {PENDING: 1 << 14, RFLAGS: on(8), BLOCKING: MOV_SS},
        (
            {RFLAGS: on(8), BLOCKING: MOV_SS},
            {RFLAGS: on(8, 9), BLOCKING: STI},
            {RFLAGS: on(8), ACTIVITY: 1},
        ),
    ),
    Row(
        1223,
        {PENDING: 1 << 12 | 1, BLOCKING: MOV_SS},
        (
            {PENDING: 1 << 14, BLOCKING: MOV_SS},
            {PENDING: 1 << 14, ACTIVITY: 1},
            {PENDING: 1 << 14, RFLAGS: on(8), "GUEST_IA32_DEBUGCTL": 2, BLOCKING: MOV_SS},
        ),
    ),
    Row(
        1231,
        {},
        tuple({"VMCS_LINK_POINTER": a} for a in (0x1008, WIDE, 1 << 63, (1 << 64) - 0x1000)),
    ),
    Row(1232, {}, ({"VMCS_LINK_POINTER": 0},)),
]

RING_3: Changes = {
    **{f"GUEST_{name}_SELECTOR": on(0, 1) for name in SIX},
    **{_rights(name): on(5, 6) for name in SIX},
}
REST.append(Row(1202, {**RING_3}, ({**RING_3, ACTIVITY: 1},)))

UNRESTRICTED: Changes = {**EPT, SECONDARY: 1 << 1 | 1 << 7}
CS, SS = _rights("CS"), _rights("SS")
WITH_EPT = [
    Row(
        701,
        {**UNRESTRICTED, "GUEST_CR0": off(0, 31)},
        ({**UNRESTRICTED, "GUEST_CR0": off(0, 5, 31)}, {**EPT, "GUEST_CR0": off(0, 31)}),
        bits=(32,),
    ),
    Row(701, {**UNRESTRICTED, "GUEST_CR0": off(31)}, (), bits=(32,)),
    Row(702, {}, ({**UNRESTRICTED, "GUEST_CR0": off(0)},)),
    Row(705, {}, ({**UNRESTRICTED, "GUEST_CR0": off(31)},), bits=(64,)),
    Row(861, {**UNRESTRICTED, CS: kind(3)}, ({**EPT, CS: kind(3)},)),
    Row(881, {}, ({**UNRESTRICTED, CS: 0xC0B3, SS: 0xC0B3},), bits=(32,)),
    Row(
        882,
        {**UNRESTRICTED, "GUEST_SS_SELECTOR": on(0)},
        (
            {**EPT, "GUEST_SS_SELECTOR": on(0), "GUEST_CS_SELECTOR": on(0)},
            {**UNRESTRICTED, "GUEST_CR0": off(0, 31), CS: 0xC0BB, SS: 0xC0B3},
        ),
        bits=(32,),
    ),
    Row(1104, {}, ({**UNRESTRICTED, **V8086, "GUEST_CR0": off(0, 31)},), bits=(32,)),
    *(
        Row(
            1310 + n,
            {**EPT, "GUEST_CR4": on(5), f"GUEST_PDPTE{n}": 0x1001},
            tuple(
                {**EPT, "GUEST_CR4": on(5), f"GUEST_PDPTE{n}": 0x1001 | 1 << b}
                for b in (1, 2, 5, 8, 40, 63)
            ),
            bits=(32,),
        )
        for n in range(4)
    ),
]

ROWS = [*CONTROLS, *HOST, *REGISTERS, *SEGMENTS, *REST, *WITH_EPT]
"""All but the extensions', which exist only where the processor says so."""
