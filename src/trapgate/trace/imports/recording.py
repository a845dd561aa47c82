"""What the readers of binary recordings share: bounded reading, and events of all CPUs in order."""

import struct
from collections.abc import Callable, Iterator
from typing import BinaryIO, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trapgate.trace.imports.assembler import Assembler
from trapgate.trace.imports.formats import Layouts
from trapgate.trace.imports.points import GAP, HAS, IS_SVM, KIND, REASON, TIME
from trapgate.trace.imports.rows import Counters

Cells = NDArray[np.int64]
Progress = Callable[[int], None]

MOST_DESCRIBED: Final = 64 << 20
"""Bytes that a recording's descriptions may take; those of today's kernels take 6 MB."""

WINDOW: Final = 1 << 18
"""Points that are held to be put in order of time."""


class DamagedError(Exception):
    """The recording is cut or damaged where it cannot be gone on; the message says where."""


class ByteReader:
    """Bytes of a recording, read one after the other; nothing is read beyond their end."""

    def __init__(self, data: bytes, what: str) -> None:
        self.data = data
        self.at = 0
        self.what = what

    def take(self, count: int) -> bytes:
        """The next bytes."""
        if count < 0 or self.at + count > len(self.data):
            raise DamagedError(f"cut short in {self.what}")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, width: int) -> int:
        """The next unsigned number, least byte first."""
        return int.from_bytes(self.take(width), "little")

    def string(self) -> bytes:
        """The next string, which a zero ends."""
        end = self.data.find(b"\0", self.at, self.at + 4096)
        if end < 0:
            raise DamagedError(f"a string without an end in {self.what}")
        found = self.data[self.at : end]
        self.at = end + 1
        return found

    def expect(self, wanted: bytes) -> None:
        """Bytes that must be there."""
        if self.take(len(wanted)) != wanted:
            raise DamagedError(f"no {wanted.rstrip(bytes(1)).decode()} in {self.what}")


def read_at(file: BinaryIO, offset: int, count: int, size: int, what: str) -> bytes:
    """Bytes of the file at an offset, of which it must have all."""
    if offset < 0 or count < 0 or offset + count > size:
        raise DamagedError(f"{what} lies beyond the file's end")
    file.seek(offset)
    found = file.read(count)
    if len(found) != count:
        raise DamagedError(f"{what} cannot be read whole")
    return found


def unpacked(data: bytes, length: int, codec: str) -> bytes:
    """Decompress to exactly `length` bytes, of which the caller has said how many it takes."""
    if codec == "zstd":
        try:
            whole: bytes = pa.decompress(data, length, codec="zstd", asbytes=True)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DamagedError(f"data that zstd does not unpack ({error})") from None
        return whole
    if codec == "zlib":
        import zlib

        try:
            stream = zlib.decompressobj()
            whole = stream.decompress(data, length)
        except zlib.error as error:
            raise DamagedError(f"data that zlib does not unpack ({error})") from None
        return whole
    raise DamagedError(f"compressed by {codec!r}, which is not known (zstd and zlib are)")


def cells_of(data: bytes) -> Cells:
    """A byte in each cell."""
    return np.frombuffer(data, np.uint8).astype(np.int64)


class PointStream:
    """Passes points, in order of time, to the pairing and the assembler."""

    def __init__(self, layouts: Layouts, assembler: Assembler) -> None:
        self._layouts = layouts
        self._assembler = assembler
        self._words: dict[int, int] = {}

    def add(self, told: Cells) -> None:
        """Points in order."""
        if not len(told):
            return
        self._assembler.timed |= bool((told[:, TIME] >= 0).any())
        told = np.ascontiguousarray(told)
        with_reason = np.flatnonzero((told[:, REASON] >= 0) & (told[:, KIND] != GAP))
        if len(with_reason):
            svm = told[with_reason, HAS] & IS_SVM != 0
            key = (told[with_reason, REASON] & 0xFFFFFFFF) | svm.astype(np.int64) << 32
            found, back = np.unique(key, return_inverse=True)
            for one in found.tolist():
                if one not in self._words:
                    is_svm = bool(one >> 32)
                    word = self._layouts.word(one & 0xFFFFFFFF, svm=is_svm)
                    self._words[one] = self._assembler.reasons.number(word, svm=is_svm)
            numbers = np.array([self._words[one] for one in found.tolist()], np.int64)
            told[with_reason, REASON] = numbers[back]
        self._assembler.take(told)


def merged_by_time(streams: list[Iterator[Cells]]) -> Iterator[Cells]:
    """Points of several CPUs in order of time, each of whose streams is in order itself."""
    held: list[list[Cells]] = [[] for _ in streams]
    open_: set[int] = set(range(len(streams)))
    while open_ or any(held):
        for n in list(open_):
            while sum(map(len, held[n])) < 2048:
                piece = next(streams[n], None)
                if piece is None:
                    open_.discard(n)
                    break
                held[n].append(piece)
        wholes = [np.concatenate(pieces) if pieces else None for pieces in held]
        # Up to here all CPUs have been read.
        ends = [
            int(whole[:, TIME].max())
            for n, whole in enumerate(wholes)
            if whole is not None and n in open_
        ]
        until = min(ends, default=None)
        ready = []
        for n, whole in enumerate(wholes):
            if whole is None:
                continue
            key = np.maximum.accumulate(whole[:, TIME])
            count = len(whole) if until is None else int(np.searchsorted(key, until, "right"))
            if count:
                ready.append((key[:count], whole[:count]))
            held[n] = [whole[count:]] if count < len(whole) else []
        if not ready:
            continue
        keys = np.concatenate([key for key, _ in ready])
        points = np.concatenate([part for _, part in ready])
        yield points[np.argsort(keys, kind="stable")]


class Window:
    """Points that come nearly in order: held in a window, and given away sorted by time."""

    def __init__(self, points: PointStream, counters: Counters) -> None:
        self._points = points
        self._counters = counters
        self._held: list[Cells] = []
        self._count = 0
        self._latest = 0

    def take(self, told: Cells) -> None:
        """More points."""
        if not len(told):
            return
        # What has no time of its own (lost events) has that of what came before.
        times = told[:, TIME]
        place = np.where(times >= 0, np.arange(len(told)), -1)
        place = np.maximum.accumulate(place)
        filled = np.where(place >= 0, times[np.maximum(place, 0)], self._latest)
        self._latest = int(filled[-1])
        told = told.copy()
        told[:, TIME] = np.where(told[:, KIND] == GAP, filled, times)
        self._held.append(told)
        self._count += len(told)
        if self._count >= WINDOW:
            self._give(self._count // 2)

    def end(self) -> None:
        """No more points."""
        self._give(self._count)

    def _give(self, count: int) -> None:
        if not self._held:
            return
        whole = np.concatenate(self._held)
        whole = whole[np.argsort(whole[:, TIME], kind="stable")]
        self._points.add(whole[:count])
        self._held = [whole[count:]] if count < len(whole) else []
        self._count = len(whole) - count


def unpack(form: str, data: bytes, what: str) -> tuple[int, ...]:
    """Numbers of a structure."""
    try:
        return struct.unpack(form, data)
    except struct.error:
        raise DamagedError(f"cut short in {what}") from None
