"""Direct paging: one VM's page tables, used by the processor as they are (¶70, ¶76).

The guest's 32-bit tables of two levels hold machine addresses, and are mapped read-only
wherever they are mapped. So each edit that no fault filter completes comes here, and is
carried out if it keeps this true of every page table and page directory:

- a present entry leads to frames of this VM's own, and nowhere else;
- a frame that is a table or a directory is in no writable mapping;
- a directory's entry leads to a page table or to a 4-MByte page;
- only the entry at PTBASE leads to the directory itself, read-only, and it leads nowhere else.

A frame becomes a table when a directory's entry first leads to it, and a directory when CR3
is first loaded with it, if it holds all that by then. It stays one, whoever unlinks it, until
the guest wants it as something else: going back to the same directory costs nothing.

A fault filter completes edits that only take mappings away. The VMM does not see them, so it
counts what it has seen (`_seen`), which is never too little, and looks again (`_look_again`)
before it refuses anything on the strength of a count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trapgate.errors import TrapgateError
from trapgate.vmm.direct.frames import DATA, FRAME_SIZE, PAGE_DIRECTORY, PAGE_TABLE, Frames

Words = NDArray[np.uint32]

ENTRIES = 1024
P, W, PS = 1, 2, 0x80
ACCESSED_AND_DIRTY = 0x60
_LINEAR = 0xFFFF_FFFF
_FRAME = 0xFFFF_F000
_LARGE_FRAME = 0xFFC0_0000
_LARGE_MUST_BE_ZERO = 0x3F_E000
"""Bits 21:13 of an entry for a 4-MByte page: reserved, or an address beyond 4 GB (PSE-36)."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why something that the guest wants of its page tables is not done."""

    reason: str


class UnseenEntryError(TrapgateError):
    """A table holds an entry that the VMM would have refused, and did not see.

    Whatever completed its store is no fault filter that direct paging can live with; stop the
    guest. `frame`, `index` and `entry` say what was found.
    """

    def __init__(self, frame: int, index: int, entry: int) -> None:
        super().__init__(
            f"entry {index} of the table in frame {frame:#x} is {entry:#x}, which leads to what is "
            "not the guest's, and the VMM has not seen it stored; use another fault filter"
        )
        self.frame, self.index, self.entry = frame, index, entry


class Fault(NamedTuple):
    """A page fault that is the guest's own: the linear address and the error code."""

    address: int
    error_code: int


class GuestTables:
    """What VM number `vm` maps, in the 32-bit words of `memory`, whose frames are `frames`.

    `slot` is PTBASE[31:22], the one directory entry that may lead to the directory itself;
    None allows each. `large_pages` is CR4.PSE. Whoever asks for something here, granted or
    refused, has to `settle` it with the processor before the guest runs on.
    """

    def __init__(self, memory: Words, frames: Frames, vm: int, *, slot: int | None = None) -> None:
        self.vm = vm
        self.slot = slot
        self.frames = frames
        self.directory: int | None = None
        self.large_pages = False
        self._stale = False
        """Whether the processor may still translate by what is no longer so."""
        self._stored: list[tuple[int, int]] = []
        """Address and size of what was stored for the guest, of which there may be code."""
        self._memory = memory
        self._word = memoryview(memory.data)
        self._owner = memoryview(frames.owner.data)
        self._type = memoryview(frames.type.data)
        self._references = memoryview(frames.references.data)
        self._writable = memoryview(frames.writable.data)
        self._seen: Words = np.zeros((4, ENTRIES), np.uint32)
        self._rows: dict[int, int] = {}
        self._unused = list(range(len(self._seen)))
        self._busy = -1
        """The table or directory that is being changed, so that counts and contents differ."""

    def keep(self) -> Callable[[], None]:
        """What is known of the tables and frames now: a way back to that, memory aside."""
        mine = {
            name: getattr(self, name) for name in ("directory", "large_pages", "_stale", "_busy")
        }
        copies = {
            name: getattr(self, name).copy() for name in ("_stored", "_rows", "_unused", "_seen")
        }
        frames = self.frames.arrays()
        then = [array.copy() for array in frames]

        def back() -> None:
            for name, value in mine.items():
                setattr(self, name, value)
            for name, copy in copies.items():
                setattr(self, name, copy.copy())
            for array, content in zip(frames, then, strict=True):
                array[:] = content

        return back

    def settle(self, flush: Callable[[], None], forget: Callable[[int, int], None]) -> None:
        """Have translations flushed and code of stored places forgotten, as far as needed."""
        if self._stale:
            self._stale = False
            flush()
        for address, size in self._stored:
            forget(address, size)
        self._stored.clear()

    # What the VMM asks for. Each gives None if it is done, or else why not.

    def load_cr3(self, cr3: int) -> Refusal | None:
        """Let the directory at `cr3` be the current one."""
        frame = cr3 >> 12
        if self.directory == frame:
            return None
        refusal = self._become_directory(frame)
        if refusal is None:
            if self.directory is not None:
                self._references[self.directory] -= 1
            self.directory = frame
        return refusal

    def forget_all(self) -> None:
        """Let all tables be data again: the guest has no paging, or is gone."""
        if self.directory is not None:
            self._references[self.directory] -= 1
            self.directory = None
        for frame in [f for f in self._rows if self._type[f] == PAGE_DIRECTORY]:
            self._forget(frame)
        for frame in tuple(self._rows):
            self._forget(frame)

    def set_large_pages(self, wanted: bool) -> Refusal | None:
        """CR4.PSE: what bit 7 of a directory's entry means, so all is validated anew."""
        if wanted == self.large_pages:
            return None
        directory = self.directory
        self.forget_all()
        self.large_pages = wanted
        if directory is None:
            return None
        refusal = self.load_cr3(directory << 12)
        if refusal is not None:
            self.large_pages = not wanted
            back = self.load_cr3(directory << 12)
            assert back is None, back
        return refusal

    def is_table(self, frame: int) -> bool:
        """Whether the frame is a page table or page directory."""
        return 0 <= frame < len(self._type) and self._type[frame] >= PAGE_TABLE

    def store(self, linear: int, data: bytes, *, write_protect: bool) -> Refusal | Fault | None:
        """Carry out a store of the supervisor's at `linear`, all of it or nothing.

        `write_protect` is the guest's own idea of CR0.WP. The processor would set accessed
        and dirty bits, so they are set.
        """
        pieces: list[tuple[int, bytes]] = []
        leaves = []
        room = FRAME_SIZE - (linear & FRAME_SIZE - 1)
        for start, part in ((linear, data[:room]), (linear + room & _LINEAR, data[room:])):
            if not part:
                continue
            leaf, frame, writable = self.look_up(start)
            if leaf < 0:
                return Fault(start, W)
            if write_protect and not writable and not self.is_table(frame):
                return Fault(start, P | W)
            pieces.append((frame << 12 | start & FRAME_SIZE - 1, part))
            leaves.append(leaf)
        done: list[tuple[int, bytes]] = []
        memory = memoryview(self._memory.data).cast("B")
        for address, part in pieces:
            before = bytes(memory[address : address + len(part)])
            if self.is_table(address >> 12):
                refusal = self.edit(address, part)
                if refusal is not None:
                    for at, old in reversed(done):
                        self._undo(at, old)
                    return refusal
            else:
                memory[address : address + len(part)] = part
                self._stored.append((address, len(part)))
            done.append((address, before))
        for leaf in leaves:
            if self._word[leaf] & ACCESSED_AND_DIRTY != ACCESSED_AND_DIRTY:
                self._word[leaf] |= ACCESSED_AND_DIRTY
                self._stored.append((leaf << 2, 4))
        return None

    def _undo(self, address: int, data: bytes) -> None:
        if self.is_table(address >> 12):
            back = self.edit(address, data)
            assert back is None, back
        else:
            self._memory.view(np.uint8)[address : address + len(data)] = np.frombuffer(
                data, np.uint8
            )
            self._stored.append((address, len(data)))

    def look_up(self, linear: int) -> tuple[int, int, bool]:
        """Where the current directory leads: which word of memory says so, the frame, R/W.

        The first is -1 where nothing is mapped.
        """
        if self.directory is None:
            return -1, 0, False
        upper = self.directory << 10 | linear >> 22
        pde = self._word[upper]
        if not pde & P:
            return -1, 0, False
        if self._is_large(pde):
            return upper, pde >> 12 & ~0x3FF | linear >> 12 & 0x3FF, bool(pde & W)
        lower = pde >> 12 << 10 | linear >> 12 & 0x3FF
        pte = self._word[lower]
        if not pte & P:
            return -1, 0, False
        return lower, pte >> 12, bool(pde & pte & W)

    def edit(self, address: int, data: bytes) -> Refusal | None:
        """Store `data` at a machine address inside one table or directory of this VM's."""
        frame = address >> 12
        first = address >> 2
        last = (address + len(data) - 1) >> 2
        words = bytearray(self._memory[first : last + 1].tobytes())
        words[address & 3 : (address & 3) + len(data)] = data
        if self._type[frame] == PAGE_DIRECTORY:
            self._look_again(frame)
        done: list[tuple[int, int]] = []
        refusal = None
        self._references[frame] += 1  # it stays what it is until the last of them is in
        self._busy = frame
        for n in range(last - first + 1):
            new = int.from_bytes(words[4 * n : 4 * n + 4], "little")
            index = first + n & ENTRIES - 1
            old = self._word[first + n]
            refusal = self._edit_entry(frame, index, new)
            if refusal is not None:
                break
            done.append((index, old))
        else:
            done.clear()
        for index, old in reversed(done):
            back = self._edit_entry(frame, index, old)
            assert back is None, back
        self._references[frame] -= 1
        self._busy = -1
        return refusal

    # One entry.

    def _edit_entry(self, frame: int, index: int, new: int) -> Refusal | None:
        if self._type[frame] == PAGE_DIRECTORY:
            new = self._tame(frame, new)
        old = int(self._seen[self._rows[frame], index])
        self._count(frame, index, old, -1)
        refusal = self._claim(frame, index, new) if new & P else None
        if refusal is not None:
            # Not just counted again: on the way it may have become data.
            back = self._claim(frame, index, old) if old & P else None
            assert back is None, back
            return refusal
        self._put(frame, index, new)
        return None

    def _put(self, frame: int, index: int, entry: int) -> None:
        self._seen[self._rows[frame], index] = entry
        place = frame << 10 | index
        if self._word[place] != entry:
            self._word[place] = entry
            self._stored.append((place << 2, 4))

    def _tame(self, directory: int, entry: int) -> int:
        """The entry as it may stand: a directory shows itself to the guest read-only (¶76)."""
        if entry & P and not self._is_large(entry) and entry >> 12 == directory:
            return entry & ~W
        return entry

    def _is_large(self, entry: int) -> bool:
        return bool(entry & PS) and self.large_pages

    def _claim(self, frame: int, index: int, entry: int) -> Refusal | None:
        """Count a present `entry`, if it may stand in `frame`."""
        if self._type[frame] == PAGE_DIRECTORY:
            large = self._is_large(entry)
            itself = not large and entry >> 12 == frame
            if self.slot is not None and itself != (index == self.slot):
                if itself:
                    return Refusal(
                        f"entry {index} leads to the directory itself, PTBASE is for entry "
                        f"{self.slot}; set PTBASE to {index << 22:#x}"
                    )
                return Refusal(f"entry {index}, at PTBASE, leads elsewhere than to the directory")
            if itself:
                return None
            return self._claim_large(entry) if large else self._become_table(entry >> 12)
        target = entry >> 12
        if target >= len(self._owner) or self._owner[target] != self.vm:
            return Refusal(f"frame {target:#x} is not the guest's")
        if entry & W:
            if self._type[target] >= PAGE_TABLE and not self._release(target):
                return Refusal(f"frame {target:#x} is a page table and would be writable")
            self._writable[target] += 1
        return None

    def _claim_large(self, entry: int) -> Refusal | None:
        if entry & _LARGE_MUST_BE_ZERO:
            return Refusal(f"bits 21:13 of {entry:#x} are not 0")
        first = entry >> 12 & ~0x3FF
        chosen = slice(first, first + ENTRIES)
        if first + ENTRIES > len(self._owner) or (self.frames.owner[chosen] != self.vm).any():
            return Refusal(f"4 MiB from frame {first:#x} are not all the guest's")
        if entry & W:
            refusal = self._release_all(
                first + np.flatnonzero(self.frames.type[chosen] >= PAGE_TABLE)
            )
            if refusal is not None:
                return refusal
            self.frames.writable[chosen] += 1
        return None

    def _release_all(self, targets: NDArray[np.int64]) -> Refusal | None:
        for target in targets.tolist():
            if self._type[target] >= PAGE_TABLE and not self._release(target):
                return Refusal(f"frame {target:#x} is a page table and would be writable")
        return None

    def _count(self, frame: int, index: int, entry: int, by: int) -> None:
        """Count an entry without asking whether it may stand.

        Raises UnseenEntryError for one to what is not the guest's: nobody has let it stand.
        """
        if not entry & P:
            return
        if entry >> 12 >= len(self._owner) or self._owner[entry >> 12] != self.vm:
            raise UnseenEntryError(frame, index, entry)
        if self._type[frame] != PAGE_DIRECTORY:
            if entry & W:
                self._writable[entry >> 12] += by
        elif self._is_large(entry):
            if entry & W:
                first = entry >> 12 & ~0x3FF
                self.frames.writable[first : first + ENTRIES] += by
        elif entry >> 12 != frame:
            self._references[entry >> 12] += by

    # Whole tables.

    def _become_table(self, frame: int) -> Refusal | None:
        """Make `frame` a page table, and count one directory's entry that leads to it."""
        refusal = self._may_become(frame, PAGE_TABLE)
        if refusal is not None:
            return refusal
        if self._type[frame] != PAGE_TABLE:
            entries = self._memory[frame << 10 : frame + 1 << 10]
            present = entries[entries & P != 0]
            targets = (present >> 12).astype(np.int64)
            if (targets >= len(self._owner)).any() or (self.frames.owner[targets] != self.vm).any():
                return Refusal(f"page table {frame:#x} maps frames that are not the guest's")
            writable = targets[present & W != 0]
            self._type[frame], self._references[frame] = PAGE_TABLE, 1
            refusal = self._release_all(writable)
            self._references[frame] = 0
            if refusal is not None:
                self._type[frame] = DATA
                return refusal
            np.add.at(self.frames.writable, writable, 1)
            row = self._new_row(frame)
            self._seen[row] = entries
        self._references[frame] += 1
        return None

    def _become_directory(self, frame: int) -> Refusal | None:
        """Make `frame` a page directory, and count that CR3 leads to it."""
        refusal = self._may_become(frame, PAGE_DIRECTORY)
        if refusal is not None:
            return refusal
        new = self._type[frame] != PAGE_DIRECTORY
        self._type[frame] = PAGE_DIRECTORY
        self._references[frame] += 1
        if not new:
            return None
        entries = self._memory[frame << 10 : frame + 1 << 10]
        row = self._new_row(frame)
        self._seen[row] = np.where(entries & P, 0, entries)
        self._busy = frame
        for index in np.flatnonzero(entries & P).tolist():
            entry = self._tame(frame, int(entries[index]))
            refusal = self._claim(frame, index, entry)
            if refusal is not None:
                self._references[frame] -= 1
                self._forget(frame)
                break
            self._put(frame, index, entry)
        self._busy = -1
        return refusal

    def _may_become(self, frame: int, kind: int) -> Refusal | None:
        if frame >= len(self._owner) or self._owner[frame] != self.vm:
            return Refusal(f"frame {frame:#x} is not the guest's")
        now = self._type[frame]
        if now == kind:
            return None
        if now != DATA and not self._release(frame):
            return Refusal(f"frame {frame:#x} is in use as a table of the other level")
        if self._writable[frame] and self._is_writable(frame):
            return Refusal(f"frame {frame:#x} is mapped writable")
        return None

    def _release(self, frame: int) -> bool:
        """Let a table be data again, if nothing leads to it; whether it is."""
        if self._references[frame]:
            leads_here = frame << 12 | P
            for other in self._tables_with(leads_here, _FRAME | P):
                if self._type[other] == PAGE_DIRECTORY and other != frame:
                    self._look_again(other)
                    if not self._references[other]:
                        self._forget(other)
        if self._references[frame]:
            return False
        self._forget(frame)
        return True

    def _is_writable(self, frame: int) -> bool:
        """Whether a mapping lets the guest write to `frame`, to the latest knowledge."""
        holders = list(self._tables_with(frame << 12 | P | W, _FRAME | P | W))
        if self.large_pages:
            wanted = frame << 12 & _LARGE_FRAME | P | W | PS
            holders += self._tables_with(wanted, _LARGE_FRAME | P | W | PS)
        for holder in holders:
            if holder in self._rows:
                self._look_again(holder)
                if self._writable[frame]:
                    self._release(holder)
        return self._writable[frame] != 0

    def _tables_with(self, entry: int, mask: int) -> Iterator[int]:
        """The tables with an entry that is `entry` under `mask`, as far as was seen."""
        found = ((self._seen ^ np.uint32(entry)) & np.uint32(mask) == 0).any(axis=1)
        return iter([frame for frame, row in self._rows.items() if found[row]])

    def _look_again(self, frame: int) -> None:
        """Count what stands in a table now: a filter may have completed edits of it."""
        if frame == self._busy:
            return
        seen = self._seen[self._rows[frame]]
        now = self._memory[frame << 10 : frame + 1 << 10]
        for index in np.flatnonzero((seen ^ now) & ~np.uint32(ACCESSED_AND_DIRTY)).tolist():
            self._count(frame, index, int(seen[index]), -1)
            self._count(frame, index, int(now[index]), 1)
            seen[index] = now[index]

    def _forget(self, frame: int) -> None:
        """Let a table be data: what it leads to is led to once less."""
        row = self._rows.pop(frame)
        seen = self._seen[row]
        for index in np.flatnonzero(seen & P).tolist():
            self._count(frame, index, int(seen[index]), -1)
        seen[:] = 0
        self._unused.append(row)
        self._type[frame] = DATA
        self._stale = True

    def _new_row(self, frame: int) -> int:
        if not self._unused:
            count = len(self._seen)
            self._seen = np.concatenate((self._seen, np.zeros_like(self._seen)))
            self._unused = list(range(count, 2 * count))
        row = self._rows[frame] = self._unused.pop()
        self._stale = True
        return row
