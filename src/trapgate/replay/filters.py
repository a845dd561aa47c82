"""Fault filters on a trace's columns: which recorded writes to tables would complete.

The criteria are those of `trapgate.decision.fault_filters`, called with columns; what the filters
by a frame map look up is in `trace.schema.ENTRY_COLUMNS`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from trapgate.decision.fault_filters import (
    EMPTY_TABLE,
    FILTER_FIGURE_7,
    FILTER_FIGURE_8,
    FILTER_NONE,
    FILTER_PARAGRAPH_80,
    FRAME,
    FRAME_64,
    KNOWN_TABLE,
    LARGE,
    NO_LINK,
    OWN_FRAME,
    OWN_TABLE,
    PRESENT,
    SPAN_64,
    SPAN_PAE,
    figure_7,
    figure_8,
    in_page_table,
    in_page_table_64,
    in_page_table_pae,
    is_pte,
    is_pte_64,
    is_pte_pae,
    paragraph_80,
    stopped_write,
)
from trapgate.paging.frame_map import LEAF, LEVEL, MIXED, OWN
from trapgate.sdm.pagefault import PFEC_MAP
from trapgate.sdm.vectors import PF
from trapgate.trace.frames import polars

if TYPE_CHECKING:
    from polars import Expr

_NOTHING: Final = 1
"""In place of the address of a table: an entry leads to none."""


class Filters(NamedTuple):
    """Fields of a VMCS that say which writes to tables complete; `ptbase` 0: by a frame map."""

    fault: int
    frames: int
    ptbase: int

    @property
    def by_map(self) -> bool:
        """Whether it is the frame map that says what is a table entry."""
        return self.ptbase == 0 or self.frames != 0


def filter_verdict(filters: Filters, asked: Expr) -> tuple[Expr, Expr]:
    """(the write completes, it cannot be told) of the rows that are `asked` about: exceptions.

    With own-table a write to a last-level table, which would not fault at all, completes.
    """
    pl = polars()
    page_fault = asked & (pl.col("vector") == PF)
    return _by_map(filters, page_fault) if filters.by_map else _by_ptbase(filters, page_fault)


def _by_ptbase(filters: Filters, page_fault: Expr) -> tuple[Expr, Expr]:
    pl = polars()
    address, ptbase = pl.col("linear_address").fill_null(0), filters.ptbase
    write = page_fault & stopped_write(pl.col("error_code").fill_null(0))
    wide = _is_wide()
    if ptbase >> 32:
        base = pl.lit(ptbase, pl.UInt64)
        aligned = not ptbase & SPAN_64
        tables = in_page_table_64(address, base) & wide & aligned
        pte = tables & is_pte_64(address, base)
    else:
        # Rows of which nobody knows how wide entries are count as those of 32-bit paging.
        aligned = not ptbase & SPAN_PAE
        tables = _choose(
            wide, in_page_table_pae(address, ptbase) & aligned, in_page_table(address, ptbase)
        )
        pte = tables & _choose(wide, is_pte_pae(address, ptbase), is_pte(address, ptbase))
    missing = pl.col("data").is_null()
    if filters.fault == FILTER_FIGURE_8:
        missing = missing | pl.col("old_value").is_null()
    known = pl.col("linear_address").is_not_null()
    says = _admits(filters.fault, write, pte, tables)
    return known & ~missing & says, write & (~known | (tables & missing))


def _by_map(filters: Filters, page_fault: Expr) -> tuple[Expr, Expr]:
    pl = polars()
    code, byte = pl.col("error_code").fill_null(0), pl.col("table_byte")
    depth = pl.col("depth").fill_null(0)
    write = page_fault & (code & PFEC_MAP != 0) & stopped_write(code ^ (code & PFEC_MAP))
    write = write & (depth == 0)
    repeated = pl.col("repeated").fill_null(value=False)
    mixed = _bit(byte.fill_null(0), MIXED)
    leaf = _bit(byte.fill_null(0), LEAF) & ~mixed
    upper = ~leaf & ~mixed
    judged = write & byte.is_not_null() & ~mixed & ~repeated
    missing = pl.col("data").is_null() | pl.col("old_value").is_null()
    unknown = (write & byte.is_null()) | (judged & missing)
    says = _admits(filters.fault, judged, leaf, leaf | upper)
    says = reduce(or_, (judged & one for one in _frame_filters(filters.frames, leaf, upper)), says)
    completes = says & ~missing
    if filters.frames & OWN_TABLE:
        # Last-level tables are open, and what else the frame is decides alone.
        opened = write & leaf
        several = write & (mixed | (upper & (byte // (1 << LEVEL) == 0)))
        completes, unknown = (completes & ~several) | opened, (unknown & ~opened) | several
    elif filters.frames & KNOWN_TABLE and filters.fault == FILTER_PARAGRAPH_80:
        # What a repeated store stores is not told, nor how far it goes.
        unknown = unknown | (write & repeated)
    return completes, unknown


def _frame_filters(frames: int, leaf: Expr, upper: Expr) -> Iterator[Expr]:
    """What each filter by the frame map admits (`decision.frame_filters.filter_of`)."""
    pl = polars()
    data, old = (pl.col(name).fill_null(0) for name in ("data", "old_value"))
    level = pl.col("table_byte").fill_null(0) // (1 << LEVEL)
    byte = pl.col("frame_byte").fill_null(0)
    own = _bit(byte, OWN)
    after = _table_led_to(data)
    none = after == _NOTHING
    known = ~none & _choose(
        level == 1, _bit(byte, LEAF), (level > 1) & (byte // (1 << LEVEL) == level - 1)
    )
    if frames & OWN_FRAME:
        yield leaf & ((data & PRESENT == 0) | own)
    if frames & NO_LINK:
        yield upper & (_table_led_to(old) == after)
    if frames & OWN_TABLE:
        yield upper & (level == 1) & (none | own)
    if frames & EMPTY_TABLE:
        empty = pl.col("frame_empty").fill_null(value=False)
        yield upper & (level > 0) & (none | known | empty)
    if frames & KNOWN_TABLE:
        yield upper & known


def _admits(kind: int, write: Expr, pte: Expr, entry: Expr) -> Expr:
    """What FAULT_FILTER admits; `entry` are writes to entries of any table, `pte` of the last."""
    pl = polars()
    data, old = (pl.col(name).fill_null(0) for name in ("data", "old_value"))
    says: Any = pl.lit(value=False)
    if kind == FILTER_FIGURE_7:
        says = figure_7(write, pte, data)
    elif kind == FILTER_FIGURE_8:
        wide, large = _is_wide(), pl.col("large_pages").fill_null(value=False)
        kept = _choose(wide, _number(FRAME_64), _number(FRAME))
        kept = kept | _choose(large, _number(LARGE), _number(0))
        denying = _choose(wide, _number(1 << 63), _number(0))
        says = figure_8(write, pte, data, old, kept, denying)
    elif kind != FILTER_NONE:
        says = paragraph_80(write, entry, data)
    said: Expr = says
    return said


def _table_led_to(entry: Expr) -> Expr:
    """The address of the table that an upper entry leads to, or `_NOTHING`."""
    pl = polars()
    leads = (entry & PRESENT != 0) & ~(
        _bit(entry, LARGE) & pl.col("large_pages").fill_null(value=False)
    )
    frame = _choose(_is_wide(), entry & _number(FRAME_64), entry & FRAME)
    return _choose(leads, frame, _number(_NOTHING))


def _is_wide() -> Expr:
    wide: Expr = polars().col("entry_size").fill_null(4) == 8
    return wide


def _bit(value: Expr, bit: int) -> Expr:
    is_set: Expr = value & bit != 0
    return is_set


def _number(value: int) -> Expr:
    pl = polars()
    literal: Expr = pl.lit(value, pl.UInt64)
    return literal


def _choose(condition: Expr, one: Expr, other: Expr) -> Expr:
    chosen: Expr = polars().when(condition).then(one).otherwise(other)
    return chosen
