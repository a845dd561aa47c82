"""An intercepted instruction, INIT or SMI as z3 sees it: the like of `fault_terms`.

What the controls would do about one is known where a control decides alone. Bitmaps lie in memory,
and whether a MOV to CR0 changes a bit of the host's depends on what is written: there one truth
value stands for what equal fields do, and another for other fields.
"""

from dataclasses import dataclass
from typing import Any, Final

from trapgate.criteria.problems.solvers import z3_module
from trapgate.criteria.terms.fault_terms import FaultTerms, mode_facts
from trapgate.decision import fault_values as fv
from trapgate.decision.condition_names import INTERCEPTED
from trapgate.decision.criteria_rules import Action
from trapgate.sdm import controls as ct
from trapgate.sdm.reasons import ExitReason
from trapgate.vmcs.vmcs import Vmcs

_STATE: Final = (fv.RIP, fv.RSP, fv.CPL, fv.MODE, fv.RFLAGS, fv.CR0, fv.CR3, fv.CR4, fv.EFER)
BY_PRIMARY: Final = {
    ExitReason.HLT: ct.PRIMARY_HLT_EXITING,
    ExitReason.INVLPG: ct.PRIMARY_INVLPG_EXITING,
    ExitReason.INVPCID: ct.PRIMARY_INVLPG_EXITING,
    ExitReason.MWAIT: ct.PRIMARY_MWAIT_EXITING,
    ExitReason.MONITOR: ct.PRIMARY_MONITOR_EXITING,
    ExitReason.RDPMC: ct.PRIMARY_RDPMC_EXITING,
    ExitReason.RDTSC: ct.PRIMARY_RDTSC_EXITING,
    ExitReason.RDTSCP: ct.PRIMARY_RDTSC_EXITING,
    ExitReason.MOV_DR: ct.PRIMARY_MOV_DR_EXITING,
    ExitReason.PAUSE: ct.PRIMARY_PAUSE_EXITING,
}
BY_SECONDARY: Final = {
    ExitReason.WBINVD: ct.SECONDARY_WBINVD_EXITING,
    ExitReason.GDTR_OR_IDTR_ACCESS: ct.SECONDARY_DESCRIPTOR_TABLE_EXITING,
    ExitReason.LDTR_OR_TR_ACCESS: ct.SECONDARY_DESCRIPTOR_TABLE_EXITING,
}
_CR_BITS: Final = (
    ct.PRIMARY_CR3_LOAD_EXITING
    | ct.PRIMARY_CR3_STORE_EXITING
    | ct.PRIMARY_CR8_LOAD_EXITING
    | ct.PRIMARY_CR8_STORE_EXITING
)
BY_MORE: Final = {
    ExitReason.IO_INSTRUCTION: (
        ct.PRIMARY_USE_IO_BITMAPS | ct.PRIMARY_UNCONDITIONAL_IO_EXITING,
        ("IO_BITMAP_A_ADDRESS", "IO_BITMAP_B_ADDRESS"),
    ),
    ExitReason.RDMSR: (ct.PRIMARY_USE_MSR_BITMAPS, ("MSR_BITMAP_ADDRESS",)),
    ExitReason.WRMSR: (ct.PRIMARY_USE_MSR_BITMAPS, ("MSR_BITMAP_ADDRESS",)),
    ExitReason.CONTROL_REGISTER_ACCESS: (
        _CR_BITS,
        (
            *("CR0_GUEST_HOST_MASK", "CR0_READ_SHADOW", "CR4_GUEST_HOST_MASK", "CR4_READ_SHADOW"),
            *("CR3_TARGET_COUNT", *(f"CR3_TARGET_VALUE_{n}" for n in range(4))),
        ),
    ),
}
"""Where no control decides alone: the primary controls and the other fields that have a say."""


@dataclass(frozen=True)
class InstructionTerms(FaultTerms):
    """An instruction or platform event that may happen."""

    def exits(self, vmcs: Vmcs) -> Any:
        """Whether it exits under a VMCS, by its table or by its controls."""
        z3 = z3_module()
        action = self.action(vmcs)
        reason = self.values["reason"]
        usual = z3.Or([z3.And(reason == int(one), _usual(vmcs, one)) for one in INTERCEPTED])
        return z3.Or(action == Action.EXIT.value, z3.And(action == Action.NEXT.value, usual))


def _usual(vmcs: Vmcs, reason: ExitReason) -> Any:
    """What the controls do, as a term."""
    z3 = z3_module()
    primary = vmcs["PRIMARY_PROCESSOR_BASED_CONTROLS"]
    if reason in BY_PRIMARY:
        return z3.BoolVal(bool(primary & BY_PRIMARY[reason]))
    if reason in BY_SECONDARY:
        active = primary & ct.PRIMARY_SECONDARY_CONTROLS
        secondary = vmcs["SECONDARY_PROCESSOR_BASED_CONTROLS"] if active else 0
        return z3.BoolVal(bool(secondary & BY_SECONDARY[reason]))
    if reason in (ExitReason.OTHER_SMI, ExitReason.IO_SMI):
        return z3.BoolVal(vmcs.profile == "extended")
    if reason not in BY_MORE:
        return z3.BoolVal(True)
    bits, names = BY_MORE[reason]
    told = [primary & bits, *(vmcs[name] for name in names)]
    return z3.Bool(f"{reason.name} exits under {told}")


def instruction_terms() -> InstructionTerms:
    """An instruction or event of which nothing more is known. Raises MissingSolverError."""
    z3 = z3_module()
    value = {one.name: z3.BitVec(one.name, 64) for one in fv.VALUES}
    reason, qualification = value["reason"], value["qualification"]

    def one_of(*reasons: ExitReason) -> Any:
        return z3.Or([reason == int(one) for one in reasons])

    present = dict.fromkeys(value, z3.BoolVal(False))
    present |= {fv.VALUES[number].name: z3.BoolVal(True) for number in _STATE}
    present |= dict.fromkeys(("reason", "qualification"), z3.BoolVal(True))
    present |= {
        "leaf": one_of(ExitReason.CPUID),
        "port": one_of(ExitReason.IO_INSTRUCTION),
        "msr": one_of(ExitReason.RDMSR, ExitReason.WRMSR),
        "control_register": one_of(ExitReason.CONTROL_REGISTER_ACCESS),
        "debug_register": one_of(ExitReason.MOV_DR),
        "xcr": one_of(ExitReason.XSETBV),
        "invpcid_type": one_of(ExitReason.INVPCID),
        "table_access": one_of(*_TABLE_ACCESSES),
        "task_selector": one_of(ExitReason.TASK_SWITCH),
        "task_source": one_of(ExitReason.TASK_SWITCH),
        "startup_vector": one_of(ExitReason.STARTUP_IPI),
    }
    alone = one_of(
        *(ExitReason(r) for r in INTERCEPTED if r not in _QUALIFIED and r not in _OPERANDS)
    )
    facts = [
        *(z3.ULE(value[one.name], (1 << one.width) - 1) for one in fv.VALUES if one.width < 64),
        *mode_facts(value),
        one_of(*INTERCEPTED),
        z3.Implies(z3.Or(alone, *(present[one] for one in _BY_OPERAND)), qualification == 0),
        z3.Implies(present["port"], value["port"] == z3.LShR(qualification, 16) & 0xFFFF),
        z3.Implies(present["control_register"], value["control_register"] == qualification & 0xF),
        z3.Implies(
            present["control_register"],
            z3.Or([value["control_register"] == n for n in (0, 2, 3, 4, 8)]),
        ),
        z3.Implies(present["debug_register"], value["debug_register"] == qualification & 7),
        # LDTR and TR have the greater numbers.
        z3.Implies(
            present["table_access"],
            z3.UGE(value["table_access"], 4) == one_of(ExitReason.LDTR_OR_TR_ACCESS),
        ),
        z3.Implies(
            present["task_source"],
            z3.And(
                value["task_selector"] == qualification & 0xFFFF,
                qualification == value["task_selector"] | value["task_source"] << 30,
            ),
        ),
        z3.Implies(present["startup_vector"], qualification == value["startup_vector"]),
        # Which instructions only ring 0 has; MOV DR is put to the controls first.
        z3.Implies(one_of(*_PRIVILEGED), value["cpl"] == 0),
    ]
    return InstructionTerms(present, value, z3.And(facts), value["mode"] == fv.MODE_PROTECTED, True)


_OPERANDS: Final = (*(ExitReason.CPUID, ExitReason.RDMSR, ExitReason.WRMSR, ExitReason.XSETBV),)
_BY_OPERAND: Final = ("leaf", "msr", "xcr")
"""What names an instruction whose qualification is 0."""
_TABLE_ACCESSES: Final = (ExitReason.GDTR_OR_IDTR_ACCESS, ExitReason.LDTR_OR_TR_ACCESS)
_QUALIFIED: Final = (
    *(ExitReason.INVLPG, ExitReason.CONTROL_REGISTER_ACCESS, ExitReason.MOV_DR),
    *(ExitReason.IO_INSTRUCTION, ExitReason.IO_SMI, ExitReason.MWAIT, ExitReason.INVEPT),
    *(ExitReason.INVPCID, *_TABLE_ACCESSES, ExitReason.TASK_SWITCH, ExitReason.STARTUP_IPI),
    *(ExitReason.INVVPID, *map(ExitReason, range(ExitReason.VMCLEAR, ExitReason.VMXON + 1))),
)
"""Those whose qualification says something."""
_PRIVILEGED: Final = (
    *(ExitReason.HLT, ExitReason.INVD, ExitReason.INVLPG, ExitReason.WBINVD),
    *(ExitReason.RDMSR, ExitReason.WRMSR, ExitReason.CONTROL_REGISTER_ACCESS),
    *(ExitReason.MONITOR, ExitReason.MWAIT, ExitReason.XSETBV, ExitReason.INVPCID),
)


_OPERAND_NAMES: Final = (
    *("leaf", "port", "msr", "control_register", "debug_register", "xcr", "invpcid_type"),
    *("table_access", "task_selector", "task_source", "startup_vector"),
)


def instruction_in_words(example: dict[str, int], asked: frozenset[str] = frozenset()) -> str:
    """An example on one line: what it is, and the values that were asked for."""
    told = [ExitReason(example["reason"]).name]
    shown: list[str] = [one for one in _OPERAND_NAMES if one in example]
    shown += [one for one in example if one in asked and one not in (*shown, "reason")]
    return ", ".join(told + [f"{one} {example[one]:#x}" for one in shown])
