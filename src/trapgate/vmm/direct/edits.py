"""Writes to tables under a frame map, carried out by the VMM: the store, its links, the rest.

What an instruction stores is decoded for those that kernels edit tables by (`writes`), which costs
little. Any other is tried: executed alone without the map, and its stores taken back.
"""

from __future__ import annotations

import iced_x86 as iced

from trapgate.processor.logical import signed
from trapgate.processor.operand import Operand, PageFaultError
from trapgate.processor.processor import Processor
from trapgate.processor.table_writes import attempt, walk_without_map
from trapgate.vmm.direct.frames import FRAME_SIZE
from trapgate.vmm.direct.links import Links, Refusal
from trapgate.vmm.direct.mapped_memory import GuestRange
from trapgate.vmm.direct.writes import Write, decode_write

Pieces = list[tuple[int, bytes]]
"""Guest-physical addresses and what is stored there, each within a frame."""


class Edits:
    """Edits of the tables that `links` knows, in the guest's memory `own`."""

    def __init__(self, processor: Processor, links: Links, own: GuestRange) -> None:
        self._processor = processor
        self._links = links
        self._memory = own

    def carry_out(
        self,
        guest: Operand,
        instruction: iced.Instruction,
        user: int,
        linear: int,
        physical: int,
    ) -> Refusal | None:
        """Complete the instruction at RIP; or say why not, and nothing has changed.

        `user` is 1 for a user-mode write; `linear` is where it was stopped, and leads to
        `physical`, guest-physical. Raises PageFaultError for a fault of the guest's own.
        """
        write = decode_write(guest, instruction)
        if write is None:
            return self._try(guest, instruction, user)
        if write.linear == linear and linear % FRAME_SIZE <= FRAME_SIZE - len(write.data):
            pieces = [(physical, write.data)]
        else:
            pieces = self._pieces(guest, write, user)
        refusal = self.store(pieces)
        if refusal is None:
            write.finish(guest)
        return refusal

    def _try(self, guest: Operand, instruction: iced.Instruction, user: int) -> Refusal | None:
        tried = attempt(self._processor, guest.v, user, self._memory.size)
        if tried is None:
            return Refusal(f"the instruction {instruction} is none that tables are edited by")
        refusal = self.store(tried.pieces)
        if refusal is not None:
            tried.take_back()
        return refusal

    def store(self, pieces: Pieces) -> Refusal | None:
        """Store: all of it or nothing."""
        memory, links = self._memory, self._links
        for physical, data in pieces:
            if physical + len(data) > memory.size:
                return Refusal(f"frame {physical // FRAME_SIZE:#x} is not the guest's")
        done: Pieces = []
        for physical, data in pieces:
            before = memory.read(physical, len(data)) if len(pieces) > 1 else b""
            refusal = None
            if links.is_table(physical // FRAME_SIZE):
                refusal = links.store(physical, data)
            else:
                memory.write(physical, data)
            if refusal is not None:
                if done:
                    back = self.store(done[::-1])
                    assert back is None, back
                return refusal
            done.append((physical, before))
        return None

    def _pieces(self, guest: Operand, write: Write, user: int) -> Pieces:
        """A store, frame by frame. Raises PageFaultError."""
        pieces = []
        done = 0
        while done < len(write.data):
            linear = guest.wrap(write.linear + done)
            count = min(len(write.data) - done, FRAME_SIZE - linear % FRAME_SIZE)
            physical, code = walk_without_map(guest, signed(linear), user)
            if code >= 0:
                raise PageFaultError(code, linear)
            pieces.append((physical, write.data[done : done + count]))
            done += count
        return pieces
