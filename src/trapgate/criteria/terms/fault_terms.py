"""A fault as z3 sees it: one term for each value of the fault information, and what holds of all.

Of a processor's fault not every combination is possible: a #UD has no error code, a page
number is an address without its low bits, RFLAGS.VM means virtual-8086 mode. These are the
facts that say so, so that what is proved of a criteria table is proved of faults that may happen,
and an example is one that may.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from trapgate.criteria.problems.codes import layout_of
from trapgate.criteria.problems.filters import filter_in
from trapgate.criteria.problems.solvers import z3_module
from trapgate.criteria.terms.table_backends import table_in, terms
from trapgate.decision import fault_values as fv
from trapgate.decision.conditions import PAGE_FAULT_BITS
from trapgate.decision.criteria_rules import Action, Rule
from trapgate.decision.fault_filters import FRAME, FRAME_64
from trapgate.decision.fault_values import FaultValue
from trapgate.sdm.controls import PIN_EXTERNAL_INTERRUPT_EXITING, PIN_NMI_EXITING
from trapgate.sdm.interruption import InterruptionType
from trapgate.sdm.pagefault import PFEC_ID, PFEC_MAP, PFEC_P, PFEC_U, PFEC_W
from trapgate.sdm.state import CR4_PAE
from trapgate.sdm.vectors import (
    AC,
    BP,
    CP,
    DB,
    ERROR_CODE_VECTORS,
    GP,
    NMI,
    NP,
    OF,
    PF,
    SS,
    TS,
    Vector,
)
from trapgate.vmcs.vmcs import Vmcs

_PE, _PG, _VM, _LMA = 1, 1 << 31, 1 << 17, 1 << 10


@dataclass(frozen=True)
class FaultTerms:
    """A fault that may happen: `present` and `values` by name, `facts` that hold of all.

    `plain` holds of those that make the best examples: exceptions outside any delivery, with
    a page fault's first five bits. `instructions` says that it is not a fault but an instruction or
    a platform event.
    """

    present: Mapping[str, Any]
    values: Mapping[str, Any]
    facts: Any
    plain: Any
    instructions: bool = False

    def fetch(self, value: FaultValue) -> tuple[Any, Any]:
        """(whether the fault has the value, the value), for `table_backends`."""
        return self.present[value.name], self.values[value.name]

    def action(self, vmcs: Vmcs) -> Any:
        """What the criteria table of a VMCS does, as a number of `Action`."""
        world = terms()
        rules = [
            rule for rule in vmcs.criteria_table if rule.about_instructions == self.instructions
        ]
        return table_in(rules, self.fetch, world, world.number(Action.NEXT))

    def exits(self, vmcs: Vmcs) -> Any:
        """Whether the fault exits under a VMCS, by its table or by its other criteria."""
        z3 = z3_module()
        action = self.action(vmcs)
        code = z3.Extract(31, 0, self.values["code"])
        kind, vector = self.values["type"], self.values["vector"]
        exits = []
        for row in Vector:
            filter_ = filter_in(vmcs, row)
            by_code = z3.And(self.present["code"], filter_.term(code))
            by_bit = z3.And(z3.Not(self.present["code"]), z3.BoolVal(filter_.control))
            exits.append(z3.And(vector == int(row), z3.Or(by_code, by_bit)))
        exception = z3.And(_is(kind, *EXCEPTION_TYPES), z3.Or(exits))
        pins = vmcs["PIN_BASED_CONTROLS"]
        others = z3.Or(
            exception,
            z3.And(
                _is(kind, InterruptionType.EXTERNAL_INTERRUPT),
                bool(pins & PIN_EXTERNAL_INTERRUPT_EXITING),
            ),
            z3.And(_is(kind, InterruptionType.NMI), bool(pins & PIN_NMI_EXITING)),
        )
        return z3.Or(action == Action.EXIT.value, z3.And(action == Action.NEXT.value, others))

    def example(self, model: Any) -> dict[str, int]:
        """The values of the fault in a model of z3's, by name."""
        return {
            name: model.eval(term, model_completion=True).as_long()
            for name, term in self.values.items()
            if bool(model.eval(self.present[name], model_completion=True))
        }


EXCEPTION_TYPES = (
    InterruptionType.HARDWARE_EXCEPTION,
    InterruptionType.PRIVILEGED_SOFTWARE_EXCEPTION,
    InterruptionType.SOFTWARE_EXCEPTION,
)
"""The interruption types that the exception bitmap speaks of."""


def _is(term: Any, *numbers: int) -> Any:
    return z3_module().Or([term == int(number) for number in numbers])


def fault_terms(rules: Iterable[Rule] = ()) -> FaultTerms:
    """A fault of which nothing more is known, as far as `rules` may see it.

    There is a frame map, and its bit in error codes, only if a rule asks for frames' types. Raises
    MissingSolverError without z3.
    """
    z3 = z3_module()
    names = {clause.value.number for rule in rules for clause in rule.clauses}
    map_bit = PFEC_MAP if names & {fv.FRAME_TYPE, fv.NEW_FRAME_TYPE} else 0
    value = {one.name: z3.BitVec(one.name, 64) for one in fv.VALUES}
    vector, kind, code = value["vector"], value["type"], value["code"]
    hardware = _is(kind, InterruptionType.HARDWARE_EXCEPTION)
    page_fault = z3.And(hardware, vector == PF)
    with_code = [n for n in range(32) if ERROR_CODE_VECTORS >> n & 1]
    has_code = z3.And(hardware, _is(vector, *with_code), value["mode"] != fv.MODE_REAL)
    walked, mapped = z3.Bool("has walk_level"), z3.Bool("has page_address")
    written = z3.Bool("has table_entry")
    present = dict.fromkeys(value, z3.BoolVal(True))
    present |= {"code": has_code, "page_fault_code": z3.And(page_fault, has_code)}
    present |= dict.fromkeys(("address", "page", "page_offset", "below_stack"), page_fault)
    present["selector_index"] = z3.And(has_code, _is(vector, TS, NP, SS, GP))
    present["instruction_length"] = z3.And(z3.UGE(kind, 4), z3.ULE(kind, 6))
    present["interrupted_vector"] = z3.Bool("has interrupted_vector")
    present |= dict.fromkeys(("walk_level", "entry_address", "entry"), walked)
    present |= {"page_address": mapped, "frame": mapped}
    present["frame_type"] = z3.And(mapped, z3.Bool("has frame_type"))
    present |= dict.fromkeys(
        ("table_entry", "old_entry", "new_entry", "set_bits", "cleared_bits"), written
    )
    present |= dict.fromkeys((one.name for one in fv.OF_INSTRUCTIONS), z3.BoolVal(False))
    stores, known = z3.Bool("has data_size"), z3.Bool("has data")
    present |= {"data_size": stores, "data": known}
    present["new_frame"] = z3.And(written, value["new_entry"] & 1 != 0)
    present["new_frame_type"] = z3.And(written, value["new_entry"] & 1 != 0, present["frame_type"])
    facts = [
        *(z3.ULE(value[one.name], (1 << one.width) - 1) for one in fv.VALUES if one.width < 64),
        *mode_facts(value),
        *_paging_facts(value),
        z3.Implies(walked, page_fault),
        z3.Implies(mapped, walked),
        z3.Implies(written, z3.And(page_fault, (code & ~(PFEC_U | map_bit)) == PFEC_P | PFEC_W)),
        z3.Implies(written, _is(value["table_entry"], 1, 2)),
        *_data_facts(value, stores, known, written),
        z3.Implies(present["interrupted_vector"], value["depth"] != 0),
        z3.Implies(walked, z3.And(z3.UGE(value["walk_level"], 1), z3.ULE(value["walk_level"], 4))),
        z3.SignExt(16, z3.Extract(47, 0, value["address"])) == value["address"],
        value["page"] == z3.LShR(value["address"], 12),
        value["page_offset"] == value["address"] & 0xFFF,
        value["below_stack"] == value["rsp"] - value["address"],
        value["page_fault_code"] == code,
        value["selector_index"] == z3.LShR(code, 3) & 0x1FFF,
        z3.Implies(mapped, value["frame"] == z3.LShR(value["page_address"], 12)),
        z3.Implies(present["new_frame"], value["new_frame"] == _frame_of(value)),
        value["set_bits"] == value["new_entry"] & ~value["old_entry"],
        value["cleared_bits"] == value["old_entry"] & ~value["new_entry"],
        *_kinds(vector, kind),
        # Selectors are checked, and CPL 3 exists, only in protected mode.
        z3.Implies(
            value["mode"] == fv.MODE_REAL, z3.Not(z3.And(hardware, _is(vector, TS, NP, AC, CP)))
        ),
        *_codes(vector, code, has_code, map_bit),
    ]
    plain = z3.And(hardware, value["depth"] == 0, z3.Or(vector != PF, z3.ULT(code, 0x20)))
    return FaultTerms(present, value, z3.And(facts), plain)


def _data_facts(value: Mapping[str, Any], stores: Any, known: Any, written: Any) -> list[Any]:
    """What there is to know about data, where they are told (`stores`) and known."""
    z3 = z3_module()
    code, size, data = value["code"], value["data_size"], value["data"]
    wide = value["cr4"] & CR4_PAE != 0
    width = z3.If(wide, _word(8), _word(4))
    whole = z3.And(size == width, value["address"] & (width - 1) == 0)
    return [
        z3.Implies(stores, z3.And(value["vector"] == PF, value["depth"] == 0)),
        z3.Implies(stores, code & (PFEC_W | PFEC_ID) == PFEC_W),
        z3.Implies(stores, size != 0),
        z3.Implies(known, z3.And(stores, _is(size, 1, 2, 4, 8))),
        *(z3.Implies(z3.And(known, size == n), data >> 8 * n == 0) for n in (1, 2, 4)),
        # A store of just one entry is that entry.
        z3.Implies(z3.And(known, written, whole), data == value["new_entry"]),
    ]


def _frame_of(value: Mapping[str, Any]) -> Any:
    """The number of the frame that the new entry leads to."""
    z3 = z3_module()
    wide = value["cr4"] & CR4_PAE != 0
    return z3.LShR(value["new_entry"] & z3.If(wide, _word(FRAME_64), _word(FRAME)), 12)


def _word(number: int) -> Any:
    return z3_module().BitVecVal(number, 64)


def mode_facts(value: Mapping[str, Any]) -> list[Any]:
    """What the operating mode means for the registers."""
    z3 = z3_module()
    mode, cpl = value["mode"], value["cpl"]
    long = z3.UGE(mode, fv.MODE_COMPATIBILITY)
    return [
        z3.ULE(mode, fv.MODE_64_BIT),
        (mode == fv.MODE_REAL) == (value["cr0"] & _PE == 0),
        long == (value["efer"] & _LMA != 0),
        z3.Implies(mode == fv.MODE_REAL, cpl == 0),
        z3.Implies(mode == fv.MODE_VIRTUAL_8086, cpl == 3),
        z3.Implies(mode == fv.MODE_VIRTUAL_8086, value["rflags"] & _VM != 0),
        z3.Implies(mode == fv.MODE_PROTECTED, value["rflags"] & _VM == 0),
        z3.Implies(value["cr0"] & _PG != 0, value["cr0"] & _PE != 0),
    ]


def _paging_facts(value: Mapping[str, Any]) -> list[Any]:
    """What page faults mean for the registers, and the mode for their addresses."""
    z3 = z3_module()
    return [
        z3.Implies(value["vector"] == PF, value["cr0"] & _PG != 0),
        z3.Implies(value["mode"] != fv.MODE_64_BIT, z3.ULE(value["address"], 0xFFFF_FFFF)),
    ]


def _kinds(vector: Any, kind: Any) -> list[Any]:
    """Which vectors events of each interruption type have."""
    z3 = z3_module()
    exceptions = [int(one) for one in Vector if one is not Vector.NMI]
    return [
        _is(kind, 0, 2, 3, 4, 5, 6),
        z3.Implies(kind == int(InterruptionType.NMI), vector == NMI),
        z3.Implies(kind == int(InterruptionType.HARDWARE_EXCEPTION), _is(vector, *exceptions)),
        z3.Implies(kind == int(InterruptionType.PRIVILEGED_SOFTWARE_EXCEPTION), vector == DB),
        z3.Implies(kind == int(InterruptionType.SOFTWARE_EXCEPTION), _is(vector, BP, OF)),
    ]


def _codes(vector: Any, code: Any, has_code: Any, map_bit: int) -> list[Any]:
    """Which error codes each vector has; `map_bit` is PFEC_MAP or 0."""
    z3 = z3_module()
    facts = []
    for number in (n for n in range(32) if ERROR_CODE_VECTORS >> n & 1):
        layout = layout_of(number)
        occurs = layout.occurs(z3.Extract(31, 0, code))
        if number == PF and map_bit:
            occurs = z3.Or(occurs, (code & ~PFEC_U) == PFEC_P | PFEC_W | map_bit)
        inside = z3.And(occurs, code & ~(layout.window | (map_bit if number == PF else 0)) == 0)
        facts.append(z3.Implies(z3.And(has_code, vector == number), inside))
    return facts


_ORDER = ("vector", "type", "code", "address", "rip", "cpl", "mode")
_NAMED = {int(one): one.name for one in Vector}


def in_words(example: Mapping[str, int], asked: frozenset[str] = frozenset()) -> str:
    """An example of a fault on one line: what it is, and the values that were asked for."""
    vector, kind = example["vector"], InterruptionType(example["type"])
    name = f"#{_NAMED[vector]}" if kind in EXCEPTION_TYPES else kind.name.lower().replace("_", " ")
    told = [name if kind in EXCEPTION_TYPES else f"{name} {vector}"]
    if "code" in example:
        code = example["code"]
        bits = [word for word, bit in PAGE_FAULT_BITS.items() if vector == PF and code >> bit & 1]
        told.append(f"code {code:#x}" + (f" ({' '.join(bits)})" if bits else ""))
    shown = [one for one in _ORDER[3:] if one in example and one in {*asked, "address"}]
    shown += [one for one in example if one in asked and one not in _ORDER]
    told += [f"{one} {example[one]:#x}" for one in shown if one != "page_fault_code"]
    return ", ".join(told)
