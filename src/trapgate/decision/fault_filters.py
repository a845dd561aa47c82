"""Fault filtering criteria: which writes to a page table complete (figures 7 and 8, ¶80).

Expressions as in `trapgate.decision.rules`, and for its reasons: the same lines judge integers,
arrays, columns and bit-vectors, and the engine compiles them. Some hazards more:

* a 64-bit number may be signed (the core's cells) or not (a trace's columns), so there is
  no constant here that only one of them could hold; "the upper bits agree" is
  "only lower bits differ", and the bit of execute-disable is the caller's to give;
* a number's field is moved by multiplying what a mask has left of it, which fits.

`address` is the linear address that is written to, `ptbase` that of the self-mapped
tables (¶74); both have 32 bits for the tables of 32-bit paging, and 64 for the functions
with `_64` in their names, our extension to the recursive slot of four-level paging.
`data` is an entry as the write would leave it, `old` as it lies in memory. `write`, `pte`
and `entry` are booleans of the interpreter's own kind.
"""

from typing import Any, Final

from trapgate.compiler.dialect import core

FILTER_NONE = 0
FILTER_FIGURE_7 = 1
FILTER_FIGURE_8 = 2
FILTER_PARAGRAPH_80 = 3
"""The values of the extension field FAULT_FILTER."""

ORDER_FIGURE_6 = 0
ORDER_PARAGRAPH_60 = 1
ORDER_PARAGRAPH_66 = 2
ORDER_PARAGRAPH_67 = 3
"""The values of the extension field FAULT_FILTER_ORDER (see `decide.decide_filtered`)."""

OWN_FRAME = 1
NO_LINK = 2
KNOWN_TABLE = 4
OWN_TABLE = 8
EMPTY_TABLE = 16
EVERY_FRAME_FILTER = OWN_FRAME | NO_LINK | KNOWN_TABLE | OWN_TABLE | EMPTY_TABLE
"""Bits of the extension field FRAME_FILTERS (see `decision.frame_filters`)."""

NO_FILTER = 0
BY_FAULT_FILTER = 1
BY_OWN_FRAME = 2
BY_NO_LINK = 3
BY_KNOWN_TABLE = 4
BY_OWN_TABLE = 5
BY_EMPTY_TABLE = 6
BY_CRITERIA_TABLE = 7
"""Which filter lets a write complete."""

FILTERS: Final = {
    "none": FILTER_NONE,
    "figure-7": FILTER_FIGURE_7,
    "figure-8": FILTER_FIGURE_8,
    "paragraph-80": FILTER_PARAGRAPH_80,
}
ORDERS: Final = {
    "figure-6": ORDER_FIGURE_6,
    "paragraph-60": ORDER_PARAGRAPH_60,
    "paragraph-66": ORDER_PARAGRAPH_66,
    "paragraph-67": ORDER_PARAGRAPH_67,
}
"""What these values are called in VMCS files."""

PRESENT = 1
WRITABLE = 2
LARGE = 0x80
"""PS in an entry that may map a large page; PAT in a PTE."""

FRAME = 0xFFFFF000
FRAME_64 = 0x000FFFFFFFFFF000
"""The page frame number in an entry of 4 bytes, and of 8."""

SPAN = 0x3FFFFF
SPAN_PAE = 0x7FFFFF
SPAN_64 = 0x7FFFFFFFFF
"""The offset bits of the self-mapped tables: 4 MB, 8 MB under PAE paging, and 512 GB."""


@core
def stopped_write(code: Any) -> Any:
    """Box 706: a write, and nothing but a present page's rights stopped it.

    Whether they were those of R/W, and not of U/S, the error code does not tell.
    """
    return (code | 4) == 7


@core
def in_page_table(address: Any, ptbase: Any) -> Any:
    """ADDR[31:22] == PTBASE[31:22] (¶75)."""
    return ((address ^ ptbase) | SPAN) == SPAN


@core
def is_pte(address: Any, ptbase: Any) -> Any:
    """In the page table, and ADDR[21:12] != PTBASE[31:22], which would be a PDE (¶75)."""
    return in_page_table(address, ptbase) & ((address & 0x3FF000) * 0x400 != (ptbase & 0xFFC00000))


@core
def in_page_table_pae(address: Any, ptbase: Any) -> Any:
    """ADDR[31:23] == PTBASE[31:23]: in the tables of the four page directories."""
    return ((address ^ ptbase) | SPAN_PAE) == SPAN_PAE


@core
def is_pte_pae(address: Any, ptbase: Any) -> Any:
    """In the tables, and ADDR[22:14] != PTBASE[31:23], which would be a directory's entry."""
    return in_page_table_pae(address, ptbase) & (
        (address & 0x7FC000) * 0x200 != (ptbase & 0xFF800000)
    )


@core
def in_page_table_64(address: Any, ptbase: Any) -> Any:
    """ADDR[63:39] == PTBASE[63:39]: in the tables that the recursive slot shows."""
    return ((address ^ ptbase) | SPAN_64) == SPAN_64


@core
def is_pte_64(address: Any, ptbase: Any) -> Any:
    """In the tables, and ADDR[38:30] != PTBASE[47:39], which would be a table above."""
    return in_page_table_64(address, ptbase) & (
        (address & 0x7FC0000000) * 0x200 != (ptbase & 0xFF8000000000)
    )


@core
def figure_7(write: Any, pte: Any, data: Any) -> Any:
    """Figure 7: a write (706) to a PTE (708) that does not set P (710)."""
    return write & pte & ((data & PRESENT) == 0)


@core
def figure_8(write: Any, pte: Any, data: Any, old: Any, kept: Any, denying: Any) -> Any:
    """Figure 8: also one that finds P set (816), keeps the PFN (818) and grants nothing (820).

    `kept` are the bits that say which frame is mapped: `FRAME`, and with CR4.PSE or in
    64-bit mode `LARGE` too. `denying` are bits that take a right away by being 1, so that
    only their clearing grants one: execute-disable in 64-bit mode, else 0.
    """
    frame = ((old & PRESENT) != 0) & (((data ^ old) & kept) == 0)
    writes = ((data & WRITABLE) == 0) | ((old & WRITABLE) != 0)
    others = ((old ^ (old & data)) & denying) == 0
    return write & pte & (((data & PRESENT) == 0) | (frame & writes & others))


@core
def paragraph_80(write: Any, entry: Any, data: Any) -> Any:
    """¶80: a write to a PTE or a PDE (`entry`) that does not set P."""
    return write & entry & ((data & PRESENT) == 0)
