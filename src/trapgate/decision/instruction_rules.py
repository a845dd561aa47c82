"""The criteria table for what is not a fault: instructions and platform events (¶27, ¶42).

So the redirection map can be one table, for faults, interrupts, instructions and platform events.
A rule is about these if one of its clauses asks for a value that only they have
(`fault_values.OF_INSTRUCTIONS`); all other rules are about faults and interrupts. EXIT makes
the instruction exit whatever its control says, DELIVER lets the guest execute it. What the
guest may not execute at all raises its fault first.
"""

from trapgate.compiler.dialect import Cells, core
from trapgate.decision import fault_values as fv
from trapgate.decision.clauses import masked
from trapgate.decision.criteria_table import (
    CLAUSE_BYTES,
    NEXT,
    RULE_DELIVER,
    RULE_EXIT,
    STATE_CELLS,
    clause_holds,
    operating_mode,
)
from trapgate.sdm import cells as f
from trapgate.sdm.reasons import (
    REASON_CONTROL_REGISTER_ACCESS,
    REASON_CPUID,
    REASON_GDTR_OR_IDTR_ACCESS,
    REASON_INVPCID,
    REASON_IO_INSTRUCTION,
    REASON_LDTR_OR_TR_ACCESS,
    REASON_MOV_DR,
    REASON_RDMSR,
    REASON_STARTUP_IPI,
    REASON_TASK_SWITCH,
    REASON_WRMSR,
    REASON_XSETBV,
)
from trapgate.sdm.state import AR_DPL_SHIFT


@core
def instruction_value(
    v: Cells, what: int, reason: int, qualification: int, operand: int
) -> tuple[bool, int]:
    """Whether the instruction or event has a value, and the value; see `exits_by_table`."""
    if what == fv.REASON:
        return True, reason
    if what == fv.QUALIFICATION:
        return True, qualification
    if what == fv.LEAF:
        return reason == REASON_CPUID, operand
    if what == fv.PORT:
        return reason == REASON_IO_INSTRUCTION, (qualification >> 16) & 0xFFFF
    if what == fv.MSR:
        return reason in (REASON_RDMSR, REASON_WRMSR), operand
    if what == fv.CONTROL_REGISTER:
        return reason == REASON_CONTROL_REGISTER_ACCESS, qualification & 0xF
    if what == fv.DEBUG_REGISTER:
        return reason == REASON_MOV_DR, qualification & 7
    if what == fv.EXTENDED_CONTROL_REGISTER:
        return reason == REASON_XSETBV, operand
    if what == fv.INVPCID_TYPE:
        return reason == REASON_INVPCID, operand
    if what == fv.TABLE_ACCESS:
        return reason in (REASON_GDTR_OR_IDTR_ACCESS, REASON_LDTR_OR_TR_ACCESS), operand
    if what == fv.TASK_SELECTOR:
        return reason == REASON_TASK_SWITCH, qualification & 0xFFFF
    if what == fv.TASK_SOURCE:
        return reason == REASON_TASK_SWITCH, (qualification >> 30) & 3
    if what == fv.STARTUP_VECTOR:
        return reason == REASON_STARTUP_IPI, qualification & 0xFF
    if what == fv.CPL:
        return True, (v[f.GUEST_SS_ACCESS_RIGHTS] >> AR_DPL_SHIFT) & 3
    if what == fv.MODE:
        return True, operating_mode(v)
    cell = STATE_CELLS[what]
    return (True, v[cell]) if cell >= 0 else (False, 0)


@core
def instruction_action(v: Cells, reason: int, qualification: int, operand: int) -> int:
    """What the first rule about instructions that matches does; NEXT if none does."""
    # VM entry has checked the table, so its words are where they should be.
    cell = f.TABLE_START
    for _ in range(v[f.CRITERIA_TABLE_RULES]):
        head = int(v[cell])
        cell += 1
        behind = cell + ((head >> 8) & 0xFF) * (CLAUSE_BYTES >> 3)
        matches = True
        asked = False
        while matches and cell < behind:
            word = int(v[cell])
            what = word & 0xFF
            asked = asked or what >= fv.REASON
            present, value = instruction_value(v, what, reason, qualification, operand)
            value = int(masked(value, v[cell + 1]))
            matches = present and clause_holds(v, word, value, int(v[cell + 2]), int(v[cell + 3]))
            cell += CLAUSE_BYTES >> 3
        if matches and asked:
            return head & 0xFF
        cell = behind
    return NEXT


@core
def exits_by_table(v: Cells, usual: bool, reason: int, qualification: int, operand: int) -> bool:
    """Whether an instruction or platform event exits: what the table says, else `usual`.

    It would exit with `reason` and `qualification`. `operand` is CPUID's EAX, ECX of RDMSR, WRMSR
    and XSETBV, INVPCID's type, or which access to a table register it is, else 0. `usual` is what
    the controls and bitmaps say.
    """
    if v[f.CRITERIA_TABLE_INSTRUCTIONS] == 0:
        return usual
    action = instruction_action(v, reason, qualification, operand)
    if action == RULE_EXIT:
        return True
    return usual and action != RULE_DELIVER
