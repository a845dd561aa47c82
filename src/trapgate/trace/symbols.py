"""Names for addresses: a `System.map`, or the symbol table of an ELF file."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trapgate.trace.schema import TraceError

_MAP_LINE = re.compile(r"^([0-9a-fA-F]{8,16}) ([a-zA-Z?]) (\S+)")
_CODE_TYPES: Final = frozenset("tTwWiI")
_MAGIC = b"\x7fELF"
_SYMTAB, _FUNCTION, _NOTYPE = 2, 2, 0
_REACH = 1 << 20
"""Bytes that the last symbol of a map is taken to cover, which has no end."""


class Symbols:
    """Functions sorted by address; looked up in bulk.

    Raises: TraceError if the file cannot be read or holds no function.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            content = path.read_bytes()
        except OSError as error:
            raise self._error(f"cannot be read ({error.strerror})") from None
        try:
            rows = sorted(_elf(content) if content[:4] == _MAGIC else _system_map(content))
        except (struct.error, ValueError, IndexError):
            raise self._error("a damaged ELF file") from None
        if not rows:
            raise self._error("it contains no function")
        # Of several names for one address the first in the alphabet is kept.
        self.starts: NDArray[np.uint64] = np.array([row[0] for row in rows], np.uint64)
        keep = np.concatenate([[True], self.starts[1:] != self.starts[:-1]])
        self.starts = self.starts[keep]
        kept = [row for row, wanted in zip(rows, keep, strict=True) if wanted]
        self.names: list[str] = [name for _, name, _ in kept]
        following = [*self.starts[1:].tolist(), int(self.starts[-1]) + _REACH]
        self.ends: NDArray[np.uint64] = np.array(
            [
                min(start + size, 2**64 - 1) if size else min(end, 2**64 - 1)
                for (start, _, size), end in zip(kept, following, strict=True)
            ],
            np.uint64,
        )

    def indices(self, addresses: NDArray[np.uint64]) -> NDArray[np.int32]:
        """For each address the index into `names` of the function that holds it, or -1."""
        at = np.searchsorted(self.starts, addresses, side="right") - 1
        inside = (at >= 0) & (addresses < self.ends[np.maximum(at, 0)])
        return np.where(inside, at, -1).astype(np.int32)

    def ranges(self) -> dict[str, tuple[int, int]]:
        """Where each function begins, and where it has ended."""
        places = zip(self.starts.tolist(), self.ends.tolist(), strict=True)
        return dict(zip(self.names, places, strict=True))

    def demand_match(self, addresses: NDArray[np.uint64]) -> None:
        """Raise TraceError if none of `addresses`, of which there are some, has a name."""
        if len(addresses) and (self.indices(addresses) < 0).all():
            raise TraceError(
                str(self.path),
                f"none of the trace's addresses ({int(addresses[0]):#x}, ...) lies in a "
                f"function of it, which begin at {int(self.starts[0]):#x}",
                "give the symbols of the kernel that ran (with KASLR, start it with nokaslr)",
            )

    def _error(self, problem: str) -> TraceError:
        return TraceError(str(self.path), problem, "give a System.map or an ELF with symbols")


def _system_map(content: bytes) -> Iterable[tuple[int, str, int]]:
    for line in content.decode("utf-8", "replace").splitlines():
        match = _MAP_LINE.match(line)
        if match and match[2] in _CODE_TYPES:
            yield int(match[1], 16), match[3], 0


def _elf(content: bytes) -> Iterable[tuple[int, str, int]]:
    wide, order = content[4] == 2, "<" if content[5] == 1 else ">"
    offset = struct.unpack_from(order + ("Q" if wide else "I"), content, 40 if wide else 32)[0]
    entry, count = struct.unpack_from(order + "HH", content, 58 if wide else 46)
    layout = order + ("IIQQQQIIQQ" if wide else "10I")
    sections = [struct.unpack_from(layout, content, offset + n * entry) for n in range(count)]
    for section in sections:
        if section[1] != _SYMTAB:
            continue
        start, size, link = section[4], section[5], section[6]
        names = content[sections[link][4] : sections[link][4] + sections[link][5]]
        form = struct.Struct(order + ("IBBHQQ" if wide else "IIIBBH"))
        for at in range(start, start + size - form.size + 1, form.size):
            fields = form.unpack_from(content, at)
            if wide:
                name, info, _, index, value, length = fields
            else:
                name, value, length, info, _, index = fields
            if info & 15 not in {_FUNCTION, _NOTYPE} or not index or not name:
                continue
            if info & 15 == _NOTYPE and (index >= 0xFF00 or not sections[index][2] & 4):
                continue  # a label outside of code
            text = names[name : names.index(0, name)].decode("utf-8", "replace")
            yield value, text, length
