"""A policy as Polars expressions over a trace's columns.

The control-transfer rules are those of `trapgate.decision.rules`, called with columns in place of
numbers. What surrounds them says only which rows they are asked about.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Any, Final

from trapgate.decision.criteria_rules import Action
from trapgate.decision.decide import REASON_EPT, REASON_TASK_GATE, REASON_TRIPLE_FAULT, REASONS
from trapgate.decision.fault_filters import (
    ORDER_PARAGRAPH_60,
    ORDER_PARAGRAPH_66,
    ORDER_PARAGRAPH_67,
)
from trapgate.decision.rules import mapped_code, mapped_field
from trapgate.replay.filters import Filters, filter_verdict
from trapgate.replay.policy import Policy
from trapgate.replay.tables import UNDECIDED, Table, action_of
from trapgate.sdm.controls import PIN_EXTERNAL_INTERRUPT_EXITING, PIN_NMI_EXITING
from trapgate.sdm.interruption import (
    TYPE_EXTERNAL_INTERRUPT,
    TYPE_HARDWARE_EXCEPTION,
    TYPE_NMI,
    TYPE_PRIVILEGED_SOFTWARE_EXCEPTION,
    TYPE_SOFTWARE_EXCEPTION,
)
from trapgate.sdm.vectors import PF
from trapgate.trace.frames import polars

if TYPE_CHECKING:
    from polars import Expr

EXCEPTIONS: Final = (
    TYPE_HARDWARE_EXCEPTION,
    TYPE_PRIVILEGED_SOFTWARE_EXCEPTION,
    TYPE_SOFTWARE_EXCEPTION,
)
"""The interruption types that the exception bitmap speaks of."""

ALWAYS_EXIT: Final = (
    REASONS[REASON_TASK_GATE],
    REASONS[REASON_TRIPLE_FAULT],
    REASONS[REASON_EPT],
)
"""Recorded reasons of exits that no criterion can prevent."""


@dataclass(frozen=True)
class Verdict:
    """What a policy says about each row, as boolean columns.

    `judged` rows either `exits`, or `completes`, or go to the guest. `unjudged` rows are
    events that it speaks of, but the trace lacks what it asks for. All others are no
    faults, or were injected, or the policy does not speak of them.
    """

    judged: Expr
    unjudged: Expr
    exits: Expr
    completes: Expr


@dataclass(frozen=True)
class Columns:
    """Which columns a frame of rows has beyond the criteria's own.

    `codes_missing`: a trace may lack error codes. `completes` names, for the
    fault filters, two columns that were computed before rows were counted together:
    what they say, and whether they cannot be asked. `tables` likewise names three for each
    criteria table (`table_flags`).
    """

    codes_missing: bool = True
    completes: dict[Filters, tuple[str, ...]] | None = None
    tables: dict[Table, tuple[str, ...]] | None = None


def recorded_exit() -> Expr:
    """Whether the recorded run exited."""
    was: Expr = polars().col("disposition") == "EXIT"
    return was


def exceptions() -> Expr:
    """Rows that the exception bitmap speaks of: exceptions that were not injected."""
    pl = polars()
    kind = pl.col("type")
    asked: Expr = _any(kind == number for number in EXCEPTIONS) & ~pl.col("injected")
    return asked


def always_exits() -> Expr:
    """Rows that exit under every policy: triple faults, task switches, and what the
    hypervisor above was given because it wants it.
    """
    pl = polars()
    wanted = pl.col("reflected").fill_null(value=False)
    always: Expr = _any(pl.col("reason") == name for name in ALWAYS_EXIT) | wanted
    return always


def verdict(policy: Policy, columns: Columns) -> Verdict:
    """The expressions of `policy` for frames with those `columns`."""
    pl = polars()
    vector = pl.col("vector")
    asked = exceptions() & policy.judges_exceptions
    exits = transfers(policy, codes_missing=columns.codes_missing) | always_exits()
    unjudged = pl.lit(value=False)
    readers = [number for number in range(32) if policy.reads_code(number)]
    if columns.codes_missing and readers:
        unjudged = _any(vector == number for number in readers) & pl.col("code_missing").fill_null(
            value=False
        )
    completes = pl.lit(value=False)
    if policy.filters_writes:
        filtered, unknown = _filter_columns(policy, columns)
        if policy.order == ORDER_PARAGRAPH_67:
            filtered, unknown = filtered & ~exits, unknown & ~exits
        elif policy.order == ORDER_PARAGRAPH_60:
            filtered, unknown = filtered & exits, unknown & exits
        elif policy.order == ORDER_PARAGRAPH_66:
            exits = exits | ((vector == PF) & ~filtered)
        unjudged = unjudged | unknown
        completes = filtered
        exits = exits & ~filtered
    unjudged = asked & unjudged
    judged = asked & ~unjudged
    if columns.codes_missing and policy.judges_exceptions:
        # An exit of an exception, and the trace does not tell of which.
        unjudged = unjudged | (vector.is_null() & pl.col("code_missing").fill_null(value=False))
    if policy.judges_interrupts:
        pins = policy.vmcs["PIN_BASED_CONTROLS"]
        kind = pl.col("type")
        for number, bit in (
            (TYPE_EXTERNAL_INTERRUPT, PIN_EXTERNAL_INTERRUPT_EXITING),
            (TYPE_NMI, PIN_NMI_EXITING),
        ):
            event = (kind == number) & ~pl.col("injected")
            judged = judged | event
            exits = (exits & (kind != number)) | (event & bool(pins & bit))
    said = Verdict(judged, unjudged, judged & exits, judged & completes)
    return _ruled(said, policy, columns) if policy.rules else said


def _ruled(said: Verdict, policy: Policy, columns: Columns) -> Verdict:
    """The verdict of the criteria table where it decides, else that of the other criteria."""
    pl = polars()
    if columns.tables is None:
        low, high, undecided = table_flags((policy.rules, policy.ptbase))
    else:
        low, high, undecided = map(pl.col, columns.tables[policy.rules, policy.ptbase])
    event = pl.col("type").is_not_null() & ~pl.col("injected") & ~always_exits()
    decided, unknown = event & (low | high), event & undecided
    others = ~decided & ~unknown
    return Verdict(
        judged=decided | (others & said.judged),
        unjudged=unknown | (others & said.unjudged),
        exits=(decided & ~high) | (others & said.exits),
        completes=(decided & low & high) | (others & said.completes),
    )


def table_flags(table: Table) -> tuple[Expr, Expr, Expr]:
    """What a criteria table does, in columns: bits 0 and 1 of the action, and "undecided"."""
    pl = polars()
    action = action_of(*table)
    low = action.is_in([Action.EXIT, Action.COMPLETE])
    high = action.is_in([Action.DELIVER, Action.COMPLETE])
    return low, high, action == pl.lit(UNDECIDED, pl.UInt8)


def transfers(policy: Policy, *, codes_missing: bool = False) -> Expr:
    """Whether the control-transfer criteria send an exception to the VMM.

    With `codes_missing` there are exceptions whose code the trace does not tell: those have
    one, and where it has no say (`Policy.reads_code`) they are judged all the same.
    """
    pl = polars()
    vector, column = pl.col("vector"), pl.col("error_code")
    code, has_code = column.fill_null(0), column.is_not_null()
    if codes_missing:
        has_code = has_code | pl.col("code_missing").fill_null(value=False)
    parts: list[Expr] = []
    constant: list[int] = []
    for number in range(32):
        control, scheme = policy.control(number), policy.scheme(number)
        if scheme is None:
            if control:
                constant.append(number)
            continue
        window, scale = policy.window(number)
        values: list[Any] = list(policy.values(number))
        asked: Any = code
        if (window, scale) != (0xFFFFFFFF, 1):
            asked = mapped_code(code, window, scale)
            # MEMBERS_USED is a set of fields, not bits of an error code.
            values = [
                value if field == "MEMBERS_USED" else mapped_field(value, window, scale)
                for field, value in zip(scheme.fields, values, strict=True)
            ]
        words = [pl.lit(value, dtype=pl.UInt32) for value in values]
        parts.append((vector == number) & scheme.function(control, has_code, asked, *words))
    if len(constant) > 4:
        parts.append(vector.is_in(constant))
    else:
        parts += [vector == number for number in constant]
    return _any(parts) if parts else pl.lit(value=False)


def _filter_columns(policy: Policy, columns: Columns) -> tuple[Expr, Expr]:
    pl = polars()
    if columns.completes is None:
        return filter_verdict(policy.filters, exceptions())
    filtered, unknown = columns.completes[policy.filters]
    return pl.col(filtered), pl.col(unknown)


def _any(parts: Iterable[Expr]) -> Expr:
    return reduce(or_, parts)
