"""Where a fault goes: (fault information, VMCS) to a disposition. Pure; nothing is carried out.

The seed's figure 2 with figure 3 for page faults, exactly as VT-x (SDM, "Exception
Bitmap" and "Page-Fault Error-Code Mask"), or for the vectors in
TRANSFER_CRITERION_VECTORS the criterion that the extension fields select. And its figure
6, with the other orders of ¶60, ¶66 and ¶67: what becomes of a fault that satisfies a
fault filter.
"""

from enum import IntEnum
from typing import NamedTuple, Protocol

from trapgate.compiler.dialect import Cells, Memory, core, inlined
from trapgate.decision.criteria_table import RULE_DELIVER, RULE_EXIT, decide_by_table
from trapgate.decision.fault_filters import (
    BY_CRITERIA_TABLE,
    BY_FAULT_FILTER,
    BY_KNOWN_TABLE,
    BY_OWN_FRAME,
    EVERY_FRAME_FILTER,
    FILTER_FIGURE_7,
    FILTER_NONE,
    FILTER_PARAGRAPH_80,
    ORDER_PARAGRAPH_60,
    ORDER_PARAGRAPH_66,
    ORDER_PARAGRAPH_67,
)
from trapgate.decision.faults import FaultInformation
from trapgate.decision.rules import (
    CRITERION_ANY_OR_MATCH,
    CRITERION_COMPARISON,
    CRITERION_EXCHANGED,
    CRITERION_FIGURE_4,
    CRITERION_FIGURE_5,
    CRITERION_MATCH_EXITS,
    CRITERION_MEMBER,
    CRITERION_WITHOUT_CONTROL,
    OPERATOR_GREATER,
    OPERATOR_GREATER_OR_EQUAL,
    OPERATOR_LESS,
    OPERATOR_LESS_OR_EQUAL,
    OPERATOR_NOT_EQUAL,
    any_or_match,
    control_bit,
    equal,
    exchanged,
    figure_3,
    figure_4,
    figure_5,
    greater,
    greater_or_equal,
    less,
    less_or_equal,
    mapped_code,
    mapped_field,
    match_exits,
    member,
    not_equal,
    without_control,
)
from trapgate.paging.frame_map import MOST_FRAMES
from trapgate.sdm import checks as ck
from trapgate.sdm.cells import (
    ALIAS_BASE,
    ALIAS_LENGTH,
    ANY_BIT_MASK,
    COMPARISON_OPERATOR,
    COMPARISON_VALUE,
    CRITERIA_TABLE_RULES,
    ERROR_CODE_FIELD_SHIFT,
    ERROR_CODE_FIELD_WIDTH,
    EXCEPTION_BITMAP,
    EXIT_THROUGH_IDT,
    FAULT_FILTER,
    FAULT_FILTER_ORDER,
    FRAME_FILTERS,
    FRAME_MAP_ADDRESS,
    FRAME_MAP_LENGTH,
    MEMBER_0,
    MEMBERS_USED,
    PAGE_FAULT_ERROR_CODE_MASK,
    PAGE_FAULT_ERROR_CODE_MATCH,
    PIN_BASED_CONTROLS,
    SECOND_ERROR_CODE_MASK,
    SECOND_ERROR_CODE_MATCH,
    TRANSFER_CRITERION,
    TRANSFER_CRITERION_VECTORS,
    VECTOR_8_ERROR_CODE_MASK,
    VECTOR_8_ERROR_CODE_MATCH,
)
from trapgate.sdm.controls import PIN_EXTERNAL_INTERRUPT_EXITING, PIN_NMI_EXITING
from trapgate.sdm.interruption import (
    TYPE_EXTERNAL_INTERRUPT,
    TYPE_HARDWARE_EXCEPTION,
    TYPE_NMI,
    TYPE_OTHER_EVENT,
    TYPE_SOFTWARE_INTERRUPT,
)
from trapgate.sdm.vectors import ERROR_CODE_VECTORS, PF
from trapgate.sdm.vmx import THROUGH_IDT, THROUGH_IDT_VECTOR


class Disposition(IntEnum):
    """Where a fault goes."""

    EXIT = 0
    """To the VMM, by a VM exit (figure 2, block 206)."""
    DELIVER = 1
    """To the guest's own handler (figure 6, block 612)."""
    COMPLETE = 2
    """Nowhere: the access completes (figure 6, block 608)."""


EXIT = 0
DELIVER = 1
COMPLETE = 2


class Reason(IntEnum):
    """Which criterion decided."""

    CONTROL_BIT = 0
    """The exception bitmap's bit alone."""
    FIGURE_3_MATCH = 1
    """The code matched: the control bit as it is."""
    FIGURE_3_MISMATCH = 2
    """The code did not match: the control bit inverted."""
    EXTERNAL_INTERRUPT_EXITING = 3
    NMI_EXITING = 4
    SOFTWARE_INTERRUPT = 5
    """INT n never exits by itself."""
    EXCHANGED = 6
    WITHOUT_CONTROL = 7
    FIGURE_4 = 8
    FIGURE_5 = 9
    ANY_OR_MATCH = 10
    COMPARISON = 11
    MEMBER = 12
    INJECTED = 13
    """Delivered by a VM entry; not put to any criterion."""
    TASK_GATE = 14
    """Its gate is a task gate: a task switch always exits."""
    TRIPLE_FAULT = 15
    """A fault while a double fault was being delivered."""
    OTHER_EVENT = 16
    FAULT_FILTER_FIGURE_7 = 17
    FAULT_FILTER_FIGURE_8 = 18
    FAULT_FILTER_PARAGRAPH_80 = 19
    FAULT_FILTER_ALONE = 20
    """No fault filter was satisfied, and no other criterion is asked (¶66)."""
    EPT = 21
    """EPT was in the way of its delivery: a violation or a misconfiguration."""
    CRITERIA_TABLE = 22
    """A rule of the criteria table matched."""
    OWN_FRAME = 23
    """A fault filter by the frame map: the entry leads to a frame of the guest's own."""
    NO_LINK = 24
    """Likewise: an upper table's entry leads to the same table as before, or to none."""
    MATCH_EXITS = 25
    KNOWN_TABLE = 26
    """A fault filter by the frame map: an upper table's entry leads to a known table of the level
    below."""
    OWN_TABLE = 27
    """Likewise: an entry of a table of level 2 leads to a frame of the guest's own."""
    EMPTY_TABLE = 28
    """Likewise: an upper table's entry leads to a frame without a present entry, or to a known
    table, and the processor counts."""


_MAP_ADDRESS = 0xFF_FFFF_F000
_ALIAS_BASE = 0xFF_FFE0_0000
"""Bit 20 is address line 20, which may be held low after the window."""

REASON_CONTROL_BIT = 0
REASON_FIGURE_3_MATCH = 1
REASON_FIGURE_3_MISMATCH = 2
REASON_EXTERNAL_INTERRUPT_EXITING = 3
REASON_NMI_EXITING = 4
REASON_SOFTWARE_INTERRUPT = 5
REASON_EXCHANGED = 6
REASON_WITHOUT_CONTROL = 7
REASON_FIGURE_4 = 8
REASON_FIGURE_5 = 9
REASON_ANY_OR_MATCH = 10
REASON_COMPARISON = 11
REASON_MEMBER = 12
REASON_INJECTED = 13
REASON_TASK_GATE = 14
REASON_TRIPLE_FAULT = 15
REASON_OTHER_EVENT = 16
REASON_FAULT_FILTER_FIGURE_7 = 17
REASON_FAULT_FILTER_ALONE = 20
REASON_EPT = 21
REASON_CRITERIA_TABLE = 22
REASON_OWN_FRAME = 23
REASON_KNOWN_TABLE = 26
REASON_MATCH_EXITS = 25

REASONS: dict[int, str] = {int(reason): reason.name for reason in Reason}
"""The names of the reason codes."""


@core
def decide_fault(v: Cells, vector: int, kind: int, error_code: int) -> tuple[int, int]:
    """The (disposition, reason) of a fault; `kind` is its interruption type, code -1 if none.

    No fault filter is satisfied; where one may be, `decide_filtered` is asked. Whether the
    guest can take an interrupt now (RFLAGS.IF, blocking) is not asked here.
    """
    if kind == TYPE_SOFTWARE_INTERRUPT:
        return DELIVER, REASON_SOFTWARE_INTERRUPT
    if kind == TYPE_EXTERNAL_INTERRUPT:
        if control_bit(v[PIN_BASED_CONTROLS], PIN_EXTERNAL_INTERRUPT_EXITING):
            return EXIT, REASON_EXTERNAL_INTERRUPT_EXITING
        return DELIVER, REASON_EXTERNAL_INTERRUPT_EXITING
    if kind == TYPE_NMI:
        if control_bit(v[PIN_BASED_CONTROLS], PIN_NMI_EXITING):
            return EXIT, REASON_NMI_EXITING
        return DELIVER, REASON_NMI_EXITING
    if kind == TYPE_OTHER_EVENT:
        return EXIT, REASON_OTHER_EVENT
    weight = 1 << (vector & 31)
    control = control_bit(v[EXCEPTION_BITMAP], weight)
    if error_code >= 0:
        if (
            vector == PF
            and v[FAULT_FILTER_ORDER] == ORDER_PARAGRAPH_66
            and v[FAULT_FILTER] | v[FRAME_FILTERS] != FILTER_NONE
        ):
            return EXIT, REASON_FAULT_FILTER_ALONE
        if (v[TRANSFER_CRITERION_VECTORS] & weight) != 0:
            return transfer_by_extension(v, vector, control, error_code)
        if vector == PF:
            mask = v[PAGE_FAULT_ERROR_CODE_MASK]
            match = v[PAGE_FAULT_ERROR_CODE_MATCH]
            reason = REASON_FIGURE_3_MISMATCH
            if (error_code & mask) == match:
                reason = REASON_FIGURE_3_MATCH
            if figure_3(control, True, error_code, mask, match):
                return EXIT, reason
            return DELIVER, reason
    if control:
        return EXIT, REASON_CONTROL_BIT
    return DELIVER, REASON_CONTROL_BIT


@core
def decide_event(
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
    """The (disposition, reason) of an event by the criteria table, else by `decide_fault`.

    The arguments are `criteria_table.decide_by_table`'s. A fault that comes here cannot
    be completed any more: a rule that would have is passed over like NEXT.
    """
    if v[CRITERIA_TABLE_RULES] != 0:
        action, _ = decide_by_table(
            v,
            r,
            mem,
            vector,
            kind,
            error_code,
            address,
            length,
            depth,
            outer,
            table_entry,
            old_entry,
            new_entry,
        )
        if action == RULE_EXIT:
            return EXIT, REASON_CRITERIA_TABLE
        if action == RULE_DELIVER:
            return DELIVER, REASON_CRITERIA_TABLE
    return decide_fault(v, vector, kind, error_code)


@core
@inlined
def decide_filtered(v: Cells, error_code: int, which: int) -> tuple[int, int]:
    """The (disposition, reason) of a page fault that satisfies the fault filter `which`.

    A rule of the criteria table that completes is not a filter: it decides alone.

    | order | what would exit | what would go to the guest |
    |---|---|---|
    | figure 6: the filter first | completes | completes |
    | ¶60: the criteria first, then the filter for what would exit | completes | is delivered |
    | ¶66: the filter alone | completes | completes |
    | ¶67: the criteria first, then the filter for the rest | exits | completes |

    ¶60 only says "after the control transfer filtering criteria". As ¶67 is the case of
    faults that stay with the guest, ¶60 is made the other one here.
    """
    if which == BY_CRITERIA_TABLE:
        return COMPLETE, REASON_CRITERIA_TABLE
    disposition, reason = decide_fault(v, PF, TYPE_HARDWARE_EXCEPTION, error_code)
    order = v[FAULT_FILTER_ORDER]
    if disposition == EXIT and order == ORDER_PARAGRAPH_67:
        return disposition, reason
    if disposition == DELIVER and order == ORDER_PARAGRAPH_60:
        return disposition, reason
    if which >= BY_KNOWN_TABLE:
        return COMPLETE, REASON_KNOWN_TABLE + which - BY_KNOWN_TABLE
    if which != BY_FAULT_FILTER:
        return COMPLETE, REASON_OWN_FRAME + which - BY_OWN_FRAME
    return COMPLETE, REASON_FAULT_FILTER_FIGURE_7 + v[FAULT_FILTER] - FILTER_FIGURE_7


@core
def pair_slot(vector: int) -> int:
    """Which of the per-vector extension pairs is `vector`'s; -1 for 14 and those without one."""
    if vector == 8:
        return 0
    if 10 <= vector <= 13:
        return vector - 9
    if vector == 17:
        return 5
    if vector == 21:
        return 6
    return -1


@core
def transfer_by_extension(v: Cells, vector: int, control: bool, error_code: int) -> tuple[int, int]:
    """The (disposition, reason) by the criterion in the extension fields; the code is present."""
    window = 0xFFFFFFFF
    scale = 1
    if v[ERROR_CODE_FIELD_WIDTH] != 0:
        width = min(v[ERROR_CODE_FIELD_WIDTH], 32)
        window = (1 << width) - 1
        scale = 1 << min(v[ERROR_CODE_FIELD_SHIFT], 32 - width)
    slot = pair_slot(vector)
    mask = v[PAGE_FAULT_ERROR_CODE_MASK]
    match = v[PAGE_FAULT_ERROR_CODE_MATCH]
    if slot >= 0:
        mask = v[VECTOR_8_ERROR_CODE_MASK + slot]
        match = v[VECTOR_8_ERROR_CODE_MATCH + slot]
    mask = mapped_field(mask, window, scale)
    match = mapped_field(match, window, scale)
    code = mapped_code(error_code, window, scale)
    criterion = v[TRANSFER_CRITERION]
    if criterion == CRITERION_EXCHANGED:
        exits = exchanged(control, True, code, mask, match)
        reason = REASON_EXCHANGED
    elif criterion == CRITERION_WITHOUT_CONTROL:
        exits = without_control(control, True, code, mask, match)
        reason = REASON_WITHOUT_CONTROL
    elif criterion == CRITERION_MATCH_EXITS:
        exits = match_exits(control, True, code, mask, match)
        reason = REASON_MATCH_EXITS
    elif criterion == CRITERION_FIGURE_4:
        second_mask = mapped_field(v[SECOND_ERROR_CODE_MASK], window, scale)
        second_match = mapped_field(v[SECOND_ERROR_CODE_MATCH], window, scale)
        exits = figure_4(control, True, code, mask, match, second_mask, second_match)
        reason = REASON_FIGURE_4
    elif criterion == CRITERION_FIGURE_5:
        any_mask = mapped_field(v[ANY_BIT_MASK], window, scale)
        exits = figure_5(control, True, code, any_mask, mask, match)
        reason = REASON_FIGURE_5
    elif criterion == CRITERION_ANY_OR_MATCH:
        any_mask = mapped_field(v[ANY_BIT_MASK], window, scale)
        exits = any_or_match(control, True, code, any_mask, mask, match)
        reason = REASON_ANY_OR_MATCH
    elif criterion == CRITERION_COMPARISON:
        value = mapped_field(v[COMPARISON_VALUE], window, scale)
        exits = compared(v[COMPARISON_OPERATOR], control, code, value)
        reason = REASON_COMPARISON
    elif criterion == CRITERION_MEMBER:
        exits = member(
            control,
            True,
            code,
            v[MEMBERS_USED],
            mapped_field(v[MEMBER_0], window, scale),
            mapped_field(v[MEMBER_0 + 1], window, scale),
            mapped_field(v[MEMBER_0 + 2], window, scale),
            mapped_field(v[MEMBER_0 + 3], window, scale),
            mapped_field(v[MEMBER_0 + 4], window, scale),
            mapped_field(v[MEMBER_0 + 5], window, scale),
            mapped_field(v[MEMBER_0 + 6], window, scale),
            mapped_field(v[MEMBER_0 + 7], window, scale),
        )
        reason = REASON_MEMBER
    else:
        exits = figure_3(control, True, code, mask, match)
        reason = REASON_FIGURE_3_MISMATCH
        if (code & mask) == match:
            reason = REASON_FIGURE_3_MATCH
    if exits:
        return EXIT, reason
    return DELIVER, reason


@core
def compared(operator: int, control: bool, code: int, value: int) -> bool:
    """The comparison (¶38) that COMPARISON_OPERATOR selects."""
    if operator == OPERATOR_NOT_EQUAL:
        return bool(not_equal(control, True, code, value))
    if operator == OPERATOR_LESS:
        return bool(less(control, True, code, value))
    if operator == OPERATOR_LESS_OR_EQUAL:
        return bool(less_or_equal(control, True, code, value))
    if operator == OPERATOR_GREATER:
        return bool(greater(control, True, code, value))
    if operator == OPERATOR_GREATER_OR_EQUAL:
        return bool(greater_or_equal(control, True, code, value))
    return bool(equal(control, True, code, value))


@core
def check_extension_fields(v: Cells) -> int:
    """Check that the extension fields hold only what is implemented: 0, or the check's number.

    Bits without a meaning must be 0, selectors must be known, a narrow field must lie
    within the 32 bits of an error code, and only vectors with an error code can be given
    a criterion. PTBASE may be anything: a filter whose conditions (¶74) do not hold is
    never satisfied.
    """
    if v[FAULT_FILTER] > FILTER_PARAGRAPH_80:
        return ck.EXTENSION_FILTER
    if v[FAULT_FILTER_ORDER] > ORDER_PARAGRAPH_67:
        return ck.EXTENSION_FILTER_ORDER
    if v[FRAME_MAP_ADDRESS] & ~_MAP_ADDRESS or v[FRAME_MAP_LENGTH] > MOST_FRAMES:
        return ck.FRAME_MAP
    if v[FRAME_FILTERS] & ~EVERY_FRAME_FILTER or (
        v[FRAME_FILTERS] != 0 and v[FRAME_MAP_LENGTH] == 0
    ):
        return ck.FRAME_FILTERS
    if (
        v[ALIAS_BASE] & ~_ALIAS_BASE
        or v[ALIAS_LENGTH] & ~_MAP_ADDRESS
        or (v[ALIAS_LENGTH] != 0 and v[FRAME_MAP_LENGTH] == 0)
    ):
        return ck.ALIAS
    through_idt = v[EXIT_THROUGH_IDT]
    if through_idt & ~(THROUGH_IDT | THROUGH_IDT_VECTOR) or (
        through_idt & THROUGH_IDT == 0 and through_idt != 0
    ):
        return ck.EXTENSION_RESERVED
    if v[TRANSFER_CRITERION] > CRITERION_MATCH_EXITS:
        return ck.EXTENSION_CRITERION
    if v[COMPARISON_OPERATOR] > OPERATOR_GREATER_OR_EQUAL:
        return ck.EXTENSION_OPERATOR
    if (v[TRANSFER_CRITERION_VECTORS] & ~ERROR_CODE_VECTORS) != 0:
        return ck.EXTENSION_VECTORS
    if (v[MEMBERS_USED] & ~0xFF) != 0:
        return ck.EXTENSION_MEMBERS
    width = v[ERROR_CODE_FIELD_WIDTH]
    shift = v[ERROR_CODE_FIELD_SHIFT]
    if width > 32 or shift > 31 or width + shift > 32:
        return ck.EXTENSION_CODE_FIELD
    return 0


class Decision(NamedTuple):
    """A disposition and the criterion it comes from."""

    disposition: Disposition
    reason: Reason

    def __repr__(self) -> str:
        """In words: <exits: figure 3 match>."""
        verb = {"EXIT": "exits", "DELIVER": "is delivered", "COMPLETE": "completes"}
        reason = self.reason.name.lower().replace("_", " ")
        return f"<{verb[self.disposition.name]}: {reason}>"


class ControlFields(Protocol):
    """A VMCS: a cell for each field, laid out as `sdm.cells` says."""

    cells: Cells


def decide(fault: FaultInformation, vmcs: ControlFields, *, filtered: bool = False) -> Decision:
    """Where `fault` goes under `vmcs` (figures 2 and 6).

    `filtered` says that the fault satisfies the fault filter that `vmcs` selects, which
    takes the guest's tables to find out (`trapgate.decision.self_map`).
    """
    code = -1 if fault.error_code is None else fault.error_code
    if filtered and vmcs.cells[FAULT_FILTER] != FILTER_NONE and fault.vector == PF:
        disposition, reason = decide_filtered(vmcs.cells, code, BY_FAULT_FILTER)
    else:
        disposition, reason = decide_fault(vmcs.cells, fault.vector, fault.type, code)
    return Decision(Disposition(disposition), Reason(reason))
