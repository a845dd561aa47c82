"""Fault filtering criteria as expressions: which writes complete (figures 7 and 8, ¶80).

Written like `trapgate.rules`: operators only, so that Polars expressions, arrays and
integers are all judged by the same lines. `address` is the linear address written to,
`data` what is being written, `old` what lies there; `ptbase` and `index` are plain
integers, `index` being PTBASE[31:22]. The fault must be a write (box 706), which the
caller asks of the error code.
"""

from typing import Any

TABLES = 0xFFC00000
DIRECTORY = 0x003FF000
FRAME = 0xFFFFF000
PRESENT = 1
WRITABLE = 2


def in_tables(address: Any, ptbase: int) -> Any:
    """ADDR[31:22] == PTBASE[31:22]: a PTE or PDE of the self-mapped tables (¶75)."""
    return (address & (TABLES | ~0xFFFFFFFF & 0xFFFFFFFFFFFFFFFF)) == ptbase


def is_pde(address: Any, ptbase: int) -> Any:
    """The address is in the tables, and ADDR[21:12] == PTBASE[31:22] (¶75)."""
    index = (ptbase // 0x400000) * 0x1000
    return in_tables(address, ptbase) & ((address & DIRECTORY) == index)


def paragraph_80(address: Any, data: Any, ptbase: int) -> Any:
    """Completes a write to a PTE or PDE that does not set P (¶80)."""
    return in_tables(address, ptbase) & ((data & PRESENT) == 0)


def figure_7(address: Any, data: Any, ptbase: int) -> Any:
    """Completes a write to a PTE that does not set P (¶77-79)."""
    return paragraph_80(address, data, ptbase) & (is_pde(address, ptbase) != True)  # noqa: E712


def figure_8(address: Any, data: Any, old: Any, ptbase: int) -> Any:
    """Figure 7, or P was set, the PFN stays, and read-only does not become writable (¶81-83)."""
    pte = in_tables(address, ptbase) & (is_pde(address, ptbase) != True)  # noqa: E712
    kept = ((old & PRESENT) != 0) & (((data ^ old) & FRAME) == 0)
    tame = ((data & WRITABLE) == 0) | ((old & WRITABLE) != 0)
    return pte & (((data & PRESENT) == 0) | (kept & tame))
