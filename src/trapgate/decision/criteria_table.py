"""The criteria table: rules over everything that a fault tells, the first match decides.

The seed's "programmable" criteria (¶33), of which its named embodiments are special cases
(¶38, ¶59, ¶85). A table is a sequence of rules of 64-bit words, little endian:

| word | bits | what |
|---|---|---|
| rule | 7:0 | what to do: 0 NEXT (what the other fields say), 1 EXIT, 2 DELIVER, 3 COMPLETE |
| | 15:8 | how many clauses follow; the rule matches if all of them hold |
| clause, 1st | 7:0 | which value (`decision.fault_values`) |
| | 11:8 | the operator |
| | 12 | 1: the clause holds where the operator's condition does not |
| 2nd | | mask: which bits of the value count |
| 3rd | | operand |
| 4th | | upper end of a range; bits of a bitmap; else 0 |

Other bits are 0. A bitmap is after the rules; its operand is its byte offset in the table.
The processor keeps the table with the VMCS, after its fields: VM entry of an x86 VMM's guest
reads it from CRITERIA_TABLE_ADDRESS, and a VMM in Python, whose own memory has no physical
address, puts it there.
"""

from typing import Final

import numpy as np

from trapgate.compiler.dialect import Cells, Memory, core, inlined
from trapgate.decision import fault_values as fv
from trapgate.decision.clauses import all_bits, any_bit, below_64, in_range, is_equal, masked
from trapgate.decision.fault_filters import FRAME, FRAME_64, PRESENT
from trapgate.operands.stores import stored
from trapgate.paging.frame_map import frame_byte, has_frame_map
from trapgate.paging.probe import probe
from trapgate.sdm import cells as f
from trapgate.sdm import checks as ck
from trapgate.sdm.interruption import (
    TYPE_HARDWARE_EXCEPTION,
    TYPE_SOFTWARE_EXCEPTION,
    TYPE_SOFTWARE_INTERRUPT,
)
from trapgate.sdm.pagefault import PFEC_ID, PFEC_W
from trapgate.sdm.state import AR_DPL_SHIFT, AR_L, CR0_PE, CR4_PAE, EFER_LMA, RFLAGS_VM
from trapgate.sdm.vectors import GP, NP, PF, SS, TS

NEXT = 0
RULE_EXIT = 1
RULE_DELIVER = 2
RULE_COMPLETE = 3
"""What a rule does, as its word says it."""

EQUAL = 0
BELOW = 1
BELOW_OR_EQUAL = 2
IN_RANGE = 3
ANY_BIT = 4
ALL_BITS = 5
IN_BITMAP = 6
OPERATORS_END = 7
"""The operators of clauses; their opposites are bit 12's."""

NEGATED = 1 << 12
CLAUSE_BYTES: Final = 32
TABLE_BYTES: Final = f.TABLE_CELLS * 8
"""The longest table that the processor keeps."""
MOST_RULES: Final = 64
MOST_CLAUSES: Final = 255
"""Of one rule: what eight bits can count."""

STATE_CELLS: Final = np.full(fv.VALUES_END, -1, np.int64)
"""The cell of each value that is a field of the guest's state; -1 for the others."""
for _value, _cell in (
    (fv.RIP, f.GUEST_RIP),
    (fv.RSP, f.GUEST_RSP),
    (fv.RFLAGS, f.GUEST_RFLAGS),
    (fv.CR0, f.GUEST_CR0),
    (fv.CR3, f.GUEST_CR3),
    (fv.CR4, f.GUEST_CR4),
    (fv.EFER, f.GUEST_IA32_EFER),
):
    STATE_CELLS[_value] = _cell

_ONES = -1
_SIGN = -(1 << 63)


@core
def table_word(v: Cells, offset: int) -> int:
    """The word at a byte offset of the table in the VMCS; 0 after its end."""
    if offset < 0 or offset + 8 > v[f.CRITERIA_TABLE_LENGTH]:
        return 0
    return int(v[f.TABLE_START + (offset >> 3)])


@core
@inlined
def fault_value(
    v: Cells,
    what: int,
    vector: int,
    kind: int,
    error_code: int,
    address: int,
    length: int,
    depth: int,
    outer: int,
) -> tuple[bool, int]:
    """Whether the fault has a value that costs no walk, and the value."""
    page_fault = vector == PF and kind == TYPE_HARDWARE_EXCEPTION
    if what == fv.VECTOR:
        return True, vector
    if what == fv.EVENT_TYPE:
        return True, kind
    if what == fv.ERROR_CODE:
        return error_code >= 0, error_code
    if what == fv.INSTRUCTION_LENGTH:
        return TYPE_SOFTWARE_INTERRUPT <= kind <= TYPE_SOFTWARE_EXCEPTION, length
    if what == fv.DEPTH:
        return True, depth
    if what == fv.INTERRUPTED_VECTOR:
        return outer >= 0, outer
    if what == fv.ADDRESS:
        return page_fault, address
    if what == fv.PAGE:
        return page_fault, (address >> 12) & 0xF_FFFF_FFFF_FFFF
    if what == fv.PAGE_OFFSET:
        return page_fault, address & 0xFFF
    if what == fv.BELOW_STACK:
        return page_fault, int(v[f.GUEST_RSP]) - address
    if what == fv.PAGE_FAULT_CODE:
        return page_fault and error_code >= 0, error_code
    if what == fv.SELECTOR_INDEX:
        has_selector = kind == TYPE_HARDWARE_EXCEPTION and vector in (TS, NP, SS, GP)
        return has_selector and error_code >= 0, (error_code >> 3) & 0x1FFF
    if what == fv.CPL:
        return True, (v[f.GUEST_SS_ACCESS_RIGHTS] >> AR_DPL_SHIFT) & 3
    if what == fv.MODE:
        return True, operating_mode(v)
    return True, v[STATE_CELLS[what]]


@core
def operating_mode(v: Cells) -> int:
    """MODE: how the processor executes code."""
    if v[f.GUEST_CR0] & CR0_PE == 0:
        return fv.MODE_REAL
    if v[f.GUEST_RFLAGS] & RFLAGS_VM:
        return fv.MODE_VIRTUAL_8086
    if v[f.GUEST_IA32_EFER] & EFER_LMA == 0:
        return fv.MODE_PROTECTED
    return fv.MODE_64_BIT if v[f.GUEST_CS_ACCESS_RIGHTS] & AR_L else fv.MODE_COMPATIBILITY


@core
@inlined
def clause_holds(v: Cells, word: int, value: int, operand: int, limit: int) -> bool:
    """Whether a clause holds for the bits of a value that its mask has left."""
    operator = (word >> 8) & 0xF
    holds = False
    if operator == EQUAL:
        holds = bool(is_equal(value, operand))
    elif operator == BELOW:
        holds = bool(below_64(value, operand, _ONES, _SIGN))
    elif operator == BELOW_OR_EQUAL:
        holds = not below_64(operand, value, _ONES, _SIGN)
    elif operator == IN_RANGE:
        holds = bool(in_range(value, operand, limit, _ONES, _SIGN))
    elif operator == ANY_BIT:
        holds = bool(any_bit(value, operand))
    elif operator == ALL_BITS:
        holds = bool(all_bits(value, operand))
    elif below_64(value, limit, _ONES, _SIGN):
        holds = (table_word(v, operand + ((value >> 6) << 3)) >> (value & 63)) & 1 != 0
    return holds != (word & NEGATED != 0)


@core
def decide_by_table(
    v: Cells,
    r: Cells,
    mem: Memory,
    vector: int,
    kind: int,
    error_code: int,
    address: int,
    length: int,
    depth: int,
    outer: int,
    table_entry: int,
    old_entry: int,
    new_entry: int,
) -> tuple[int, int]:
    """What the first rule that matches does, and its number; NEXT and -1 if none does.

    The fault is given as to `delivery.raise_event`; `outer` is the vector that was being
    delivered, or -1. `table_entry` is 0 unless a write to a table entry is to be judged, which
    would turn `old_entry` into `new_entry`; only then can a rule complete anything. Rules about
    instructions and platform events (`instruction_rules`) never match here.
    """
    walked = False
    level = 0
    entry_address = 0
    entry = 0
    page_address = 0
    page_fault = vector == PF and kind == TYPE_HARDWARE_EXCEPTION
    can_walk = page_fault and v[f.EPT_POINTER_IN_FORCE] == 0
    # What the delivery of an event writes is no instruction's.
    writes = page_fault and outer < 0 and error_code & (PFEC_W | PFEC_ID) == PFEC_W
    decoded = False
    size = 0
    known = False
    data = 0
    # VM entry has checked the table, so its words are where they should be.
    cell = f.TABLE_START
    for rule in range(v[f.CRITERIA_TABLE_RULES]):
        head = int(v[cell])
        cell += 1
        behind = cell + ((head >> 8) & 0xFF) * (CLAUSE_BYTES >> 3)
        matches = True
        while matches and cell < behind:
            word = int(v[cell])
            what = word & 0xFF
            if what < fv.WALK_LEVEL:
                present, value = fault_value(
                    v, what, vector, kind, error_code, address, length, depth, outer
                )
            elif what <= fv.FRAME_TYPE:
                if can_walk and not walked:
                    level, entry_address, entry, page_address = probe(v, mem, address)
                    walked = True
                present = level > 0
                value = level
                if what == fv.ENTRY_ADDRESS:
                    value = entry_address
                elif what == fv.ENTRY:
                    value = entry
                elif what == fv.PAGE_ADDRESS:
                    present = level > 0 and page_address >= 0
                    value = page_address
                elif what == fv.FRAME_NUMBER:
                    present = level > 0 and page_address >= 0
                    value = page_address >> 12
                elif what == fv.FRAME_TYPE:
                    present = level > 0 and page_address >= 0 and has_frame_map(v)
                    value = frame_byte(v, mem, page_address) if present else 0
            elif what <= fv.DATA_SIZE:
                if writes and not decoded:
                    size, known, data = stored(v, r, mem)
                    decoded = True
                present = size > 0
                value = size
                if what == fv.DATA:
                    present = known
                    value = data
            else:
                present = table_entry != 0 and what < fv.REASON
                value = table_entry
                if what == fv.OLD_ENTRY:
                    value = old_entry
                elif what == fv.NEW_ENTRY:
                    value = new_entry
                elif what == fv.SET_BITS:
                    value = new_entry & ~old_entry
                elif what == fv.CLEARED_BITS:
                    value = old_entry & ~new_entry
                elif what >= fv.NEW_FRAME_NUMBER:
                    present = present and new_entry & PRESENT != 0
                    frame = new_entry & (FRAME_64 if v[f.GUEST_CR4] & CR4_PAE else FRAME)
                    value = frame >> 12
                    if what == fv.NEW_FRAME_TYPE:
                        present = present and has_frame_map(v)
                        value = frame_byte(v, mem, frame) if present else 0
            value = int(masked(value, v[cell + 1]))
            matches = present and clause_holds(v, word, value, int(v[cell + 2]), int(v[cell + 3]))
            cell += CLAUSE_BYTES >> 3
        if matches:
            return head & 0xFF, rule
        cell = behind
    return NEXT, -1


@core
def load_table(v: Cells, mem: Memory) -> bool:
    """Read the table that the VMCS names; False if it is not within memory."""
    address = v[f.CRITERIA_TABLE_ADDRESS]
    length = v[f.CRITERIA_TABLE_LENGTH]
    if length <= 0 or length > TABLE_BYTES:
        return True  # what is wrong with it `check_table` says
    first = address >> 3
    count = (length + 7) >> 3
    # In words, for the sum of an address and a length in bytes may exceed 63 bits.
    if address & 7 or address < 0 or first + count > len(mem):
        return False
    for cell in range(count):
        v[f.TABLE_START + cell] = mem[first + cell]
    return True


@core
def check_table(v: Cells) -> tuple[int, int]:
    """The check that the table in the VMCS fails (`sdm.checks`), and where: rule << 16 | clause.

    (0, 0) if it is as it should be: whole, of known parts, and nothing is completed but what only
    a write to a table entry can be. CRITERIA_TABLE_INSTRUCTIONS becomes whether a rule is about
    instructions or platform events.
    """
    length = v[f.CRITERIA_TABLE_LENGTH]
    v[f.CRITERIA_TABLE_INSTRUCTIONS] = 0
    if length == 0:
        return (ck.TABLE_RULES, 0) if v[f.CRITERIA_TABLE_RULES] != 0 else (0, 0)
    if length < 0 or length > TABLE_BYTES or length & 7:
        return ck.TABLE_LENGTH, 0
    if not 0 < v[f.CRITERIA_TABLE_RULES] <= MOST_RULES:
        return ck.TABLE_RULES, 0
    offset = 0
    for rule in range(v[f.CRITERIA_TABLE_RULES]):
        if offset + 8 > length:
            return ck.TABLE_END, rule << 16
        head = table_word(v, offset)
        offset += 8
        count = (head >> 8) & 0xFF
        if head & ~0xFFFF or head & 0xFF > RULE_COMPLETE:
            return ck.TABLE_RULE, rule << 16
        if offset + count * CLAUSE_BYTES > length:
            return ck.TABLE_END, rule << 16
        filtered = False
        instructions = False
        for n in range(count):
            word = table_word(v, offset)
            operator = (word >> 8) & 0xF
            what = word & 0xFF
            place = rule << 16 | n
            if word & ~0x1FFF or operator >= OPERATORS_END:
                return ck.TABLE_CLAUSE, place
            if what >= fv.VALUES_END:
                return ck.TABLE_VALUE, place
            operand = table_word(v, offset + 16)
            limit = table_word(v, offset + 24)
            if operator == IN_BITMAP:
                size = ((limit + 63) >> 6) << 3
                if operand & 7 or operand < 0 or limit < 0 or limit > TABLE_BYTES * 8:
                    return ck.TABLE_BITMAP, place
                if operand > length - size:  # their sum may exceed 63 bits
                    return ck.TABLE_BITMAP, place
            elif operator != IN_RANGE and limit != 0:
                return ck.TABLE_CLAUSE, place
            filtered = filtered or what >= fv.TABLE_ENTRY
            instructions = instructions or what >= fv.REASON
            offset += CLAUSE_BYTES
        if head & 0xFF == RULE_COMPLETE and (instructions or not filtered):
            return ck.TABLE_COMPLETES, rule << 16
        if instructions:
            v[f.CRITERIA_TABLE_INSTRUCTIONS] = 1
    return 0, 0
