"""Criteria tables on a trace's columns: what the first rule that matches does with each row.

The operators are those that the processor runs (`trapgate.decision.clauses`), called with columns.
What a trace does not tell is null, and Polars' `&` and `|` are Kleene's: a rule of which one clause
is false does not match, whatever the others would have said. A row is undecided only where the
answer hangs on what is not known.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Any, Final

from trapgate.criteria.terms.table_backends import Backend, rule_in
from trapgate.decision import fault_values as fv
from trapgate.decision.criteria_rules import Action, Rule
from trapgate.decision.fault_filters import (
    in_page_table,
    in_page_table_64,
    is_pte,
    is_pte_64,
    stopped_write,
)
from trapgate.decision.fault_values import FaultValue
from trapgate.sdm.interruption import TYPE_HARDWARE_EXCEPTION, TYPE_SOFTWARE_INTERRUPT
from trapgate.sdm.pagefault import PFEC_ID, PFEC_MAP, PFEC_W
from trapgate.sdm.vectors import GP, NP, PF, SS, TS
from trapgate.trace.frames import polars

if TYPE_CHECKING:
    from polars import Expr

Table = tuple[tuple[Rule, ...], int]
"""The rules, and the PTBASE that says what writes to table entries are; 0 if nothing does."""

UNDECIDED: Final = 4
"""What `action_of` says where the trace lacks what a rule asks for."""

NOT_IN_TRACES: Final = frozenset(
    (
        *(fv.INSTRUCTION_LENGTH, fv.MODE, fv.RFLAGS, fv.CR0, fv.CR4, fv.EFER, fv.RSP),
        *(fv.BELOW_STACK, fv.WALK_LEVEL, fv.ENTRY_ADDRESS, fv.ENTRY, fv.PAGE_ADDRESS),
        *(fv.FRAME_NUMBER, fv.FRAME_TYPE, fv.DATA, fv.DATA_SIZE),
        *range(fv.REASON, fv.VALUES_END),
    )
)
"""Values that no trace has a column for."""


def columns() -> Backend:
    """Polars expressions of unsigned 64-bit numbers and of truth values, both perhaps null."""
    pl = polars()

    def member(value: Any, bitmap: bytes) -> Any:
        return value.is_in([n for n in range(8 * len(bitmap)) if bitmap[n >> 3] >> (n & 7) & 1])

    return Backend(
        number=lambda number: pl.lit(number, pl.UInt64),
        both=lambda one, other: one & other,
        either=lambda one, other: one | other,
        inverse=lambda truth: ~truth,
        choose=lambda condition, one, other: pl.when(condition).then(one).otherwise(other),
        member=member,
        true=pl.lit(value=True),
    )


def action_of(rules: Sequence[Rule], ptbase: int = 0) -> Expr:
    """For each row the number of the `Action` of the first rule that matches, or UNDECIDED.

    NEXT where none matches. `ptbase` is where tables of 32-bit paging are self-mapped.
    """
    pl = polars()
    world = columns()
    known = _Values(ptbase)
    result: Expr = pl.lit(Action.NEXT.value, pl.UInt8)
    for rule in reversed(rules):
        holds = rule_in(rule, known.fetch, world)
        action = pl.lit(rule.action.value, pl.UInt8)
        undecided = holds.is_null() & (result != action)
        result = (
            pl.when(holds)
            .then(action)
            .when(undecided)
            .then(pl.lit(UNDECIDED, pl.UInt8))
            .otherwise(result)
        )
    return result


def missing(rules: Sequence[Rule]) -> tuple[str, ...]:
    """The names of values that the rules ask for and no trace has a column for."""
    asked = {clause.value for rule in rules for clause in rule.clauses}
    return tuple(value.name for value in fv.VALUES if value in asked & _UNKNOWN)


_UNKNOWN: Final = {value for value in fv.VALUES if value.number in NOT_IN_TRACES}


class _Values:
    """Which rows have a value, and the value: expressions, null where a trace does not tell."""

    def __init__(self, ptbase: int) -> None:
        pl = polars()
        self._ptbase = ptbase
        self._null = pl.lit(None, pl.UInt64)
        self._always = pl.lit(value=True)
        self._vector, self._type = pl.col("vector"), pl.col("type")
        self._code = pl.col("error_code")
        unknown = pl.when(pl.col("code_missing").fill_null(value=False)).then(None)
        # False or null is null, True or null is True.
        self._has_code = self._code.is_not_null() | unknown.otherwise(pl.lit(value=False))
        self._exception = self._type == TYPE_HARDWARE_EXCEPTION
        self._page_fault = self._exception & (self._vector == PF)

    def fetch(self, value: FaultValue) -> tuple[Expr, Expr]:
        """(whether rows have the value, the value)."""
        pl = polars()
        present, found = self._present_and_value(value.number)
        return present, found.cast(pl.UInt64)

    def _present_and_value(self, what: int) -> tuple[Expr, Expr]:
        pl = polars()
        address = pl.col("linear_address")
        match what:
            case fv.VECTOR:
                return self._always, self._vector
            case fv.EVENT_TYPE:
                return self._always, self._type
            case fv.ERROR_CODE:
                return self._has_code, self._code
            case fv.DEPTH | fv.RIP | fv.CPL | fv.CR3:
                return self._always, pl.col(fv.VALUES[what].name)
            case fv.INTERRUPTED_VECTOR:
                met = pl.col("interrupted_vector")
                nested = pl.when(pl.col("depth") > 0).then(None).otherwise(pl.lit(value=False))
                return met.is_not_null() | nested, met
            case fv.ADDRESS:
                return self._page_fault, address
            case fv.PAGE:
                return self._page_fault, address // 4096
            case fv.PAGE_OFFSET:
                return self._page_fault, address & 0xFFF
            case fv.PAGE_FAULT_CODE:
                return self._page_fault & self._has_code, self._code
            case fv.SELECTOR_INDEX:
                named = reduce(or_, (self._vector == number for number in (TS, NP, SS, GP)))
                index = self._code // 8 & 0x1FFF
                return self._exception & named & self._has_code, index
            case _ if what in fv.ONLY_OF_TABLE_WRITES:
                return self._of_table_write(what)
            case fv.DATA | fv.DATA_SIZE:
                writes = (self._code & (PFEC_W | PFEC_ID)) == PFEC_W
                told = self._page_fault & writes & (pl.col("depth") == 0)
                return told & pl.lit(None, pl.Boolean), self._null
            case fv.INSTRUCTION_LENGTH:
                software = (self._type >= TYPE_SOFTWARE_INTERRUPT) & (self._type <= 6)
                return software, self._null
            case _ if what >= fv.REASON:
                # The rows of traces are faults and interrupts.
                return pl.lit(value=False), self._null
            case fv.MODE | fv.RFLAGS | fv.CR0 | fv.CR4 | fv.EFER | fv.RSP:
                return self._always, self._null
        return self._page_fault, self._null

    def _of_table_write(self, what: int) -> tuple[Expr, Expr]:
        pl = polars()
        data, old = pl.col("data"), pl.col("old_value")
        by_map = self._code & PFEC_MAP
        write = self._page_fault & stopped_write(self._code ^ by_map)
        kind, size = pl.col("table_entry"), pl.col("entry_size")
        if self._ptbase:
            # Traces of earlier versions do not tell: then it is 32-bit paging.
            address, base = pl.col("linear_address"), pl.lit(self._ptbase, pl.UInt64)
            wide = self._ptbase >> 32
            inside = in_page_table_64(address, base) if wide else in_page_table(address, base)
            write = write & (by_map == 0) & (inside | kind.is_not_null())
            last = is_pte_64(address, base) if wide else is_pte(address, base)
            by_address = pl.when(last).then(1).otherwise(2)
            kind, size = pl.coalesce(kind, by_address), size.fill_null(4)
        else:
            # Without PTBASE a row with data is one that the processor has judged. One with the
            # map's byte alone is of a table that nobody judges.
            unknown = (
                pl.when(pl.col("table_byte").is_null()).then(None).otherwise(pl.lit(value=False))
            )
            write = write & (data.is_not_null() | unknown)
        values = {
            fv.TABLE_ENTRY: kind,
            fv.OLD_ENTRY: old,
            fv.NEW_ENTRY: data,
            # The bits that one of two numbers has alone.
            fv.SET_BITS: data ^ (data & old),
            fv.CLEARED_BITS: old ^ (data & old),
            fv.NEW_FRAME_NUMBER: pl.when(size == 8)
            .then(data // 4096 & 0xFFFFFFFFFF)
            .when(size == 4)
            .then(data // 4096 & 0xFFFFF),
            fv.NEW_FRAME_TYPE: pl.col("frame_byte"),
        }
        if what in (fv.NEW_FRAME_NUMBER, fv.NEW_FRAME_TYPE):
            known = size.is_not_null() | pl.lit(None, pl.Boolean)
            write = write & (data & 1 != 0) & known
        if what == fv.NEW_FRAME_TYPE:
            write = write & (by_map != 0)
        return write, values[what]


def unjudgeable(rules: Sequence[Rule]) -> Iterator[str]:
    """For each rule that asks for what no trace has, a sentence that says so."""
    for number, rule in enumerate(rules):
        names = missing([rule])
        if names:
            yield f"rule {number} asks for {', '.join(names)}, which traces do not have"
