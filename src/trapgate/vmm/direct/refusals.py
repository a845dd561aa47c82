"""What machines under direct paging cannot be or do, and how much of it was asked for."""

from __future__ import annotations

from dataclasses import dataclass

from trapgate.errors import TrapgateError
from trapgate.vmm.devices.board import Board


class DirectPagingError(TrapgateError):
    """A guest or its memory is not what direct paging can do; the message says what it can."""


def demand_one_processor(board: Board | None) -> None:
    """Raise DirectPagingError for several: each would have tables of its own in use."""
    if board is not None and board.processors > 1:
        raise DirectPagingError(
            "a machine under direct paging has one processor: its VMM follows one CR3; "
            "use --paging own, or --cpus 1"
        )


def demand_no_drives(board: Board | None) -> None:
    """Raise DirectPagingError for drives: a bus master would store to page tables unseen."""
    if board is not None and (board.disks or board.cds or board.floppies):
        raise DirectPagingError(
            "with tables protected by their entries a machine has no drives: DMA goes past its "
            "VMM; use --protect frames, or an initial RAM disk"
        )


@dataclass
class DirectCounts:
    """What the VMM did about page tables: edits carried out, and what it refused."""

    edits: int = 0
    refused: int = 0
    last_refusal: str = ""
