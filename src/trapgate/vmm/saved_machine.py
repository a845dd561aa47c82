"""A machine that was saved in a file, and continues in another process.

Nothing in a file is believed: digest, sizes and kinds are checked, and what could lead compiled
code astray is checked against the machine that is to take it (`_demand_sound`).

It is read by the version that wrote it (`snapshots.file`), on the same processor model and engine,
for the same devices; `SavedMachine` says in words what is in the way.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from trapgate.compiler.dialect import Cells
from trapgate.engine.written_pages import clear, fill
from trapgate.events.journal import (
    HEAD_CAPACITY,
    HEAD_LEVEL,
    HEAD_SEQUENCE,
    HEAD_USED,
    ROW_WIDTH,
)
from trapgate.instructions import polled_ports as polled
from trapgate.trace import TraceWriter
from trapgate.vmm.devices.board import Board
from trapgate.vmm.exits.vmm import Vmm
from trapgate.vmm.machine import VirtualMachine
from trapgate.vmm.snapshots.file import FORMAT, HEAD, MAGIC, layout, processor_model
from trapgate.vmm.snapshots.snapshot import Snapshot
from trapgate.vmm.snapshots.state import SnapshotError
from trapgate.vmm.ui.console import Console

_MOST_MEMORY = 4 << 30
_PAGE = 4096
_CELL = 8


class SavedMachine:
    """A snapshot that was read from a file; `machine` makes the machine that continues.

    Raises SnapshotError, in words, for what is not a snapshot, is damaged, or is another version's.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            data = path.read_bytes()
        except OSError as error:
            raise SnapshotError(
                f"{path}: cannot be read ({error.strerror}); give what --save wrote"
            ) from None
        if len(data) < HEAD.size + 4 or not data.startswith(MAGIC):
            raise self._error("is not a snapshot; make one with trapgate run --save")
        _, form, length, digest = HEAD.unpack_from(data)
        if form != FORMAT:
            raise self._error(f"has format {form}, and this version reads {FORMAT}; make it again")
        if hashlib.sha256(data[HEAD.size :]).digest() != digest:
            raise self._error("is damaged: cut off, or changed; make it again")
        try:
            (size,) = struct.unpack_from("<I", data, HEAD.size)
            start = HEAD.size + 4
            text = _unpacked(data[start : start + length], size)
            self._description: dict[str, Any] = dict(json.loads(text))
            self._parts: list[tuple[int, int, int]] = []
            at = start + length
            for packed, raw in self._description["sizes"]:
                self._parts.append((at, int(packed), int(raw)))
                at += int(packed)
            self._data = data
            self._demand_same_kind()
        except (KeyError, TypeError, ValueError, RecursionError, struct.error) as error:
            raise self._error(f"is not a snapshot of this version ({error!r})") from None

    def _error(self, problem: str) -> SnapshotError:
        return SnapshotError(f"{self.path}: {problem}")

    def _demand_same_kind(self) -> None:
        found, this = self._description, version("trapgate")
        if found["version"] != this:
            raise self._error(
                f"was made by Trapgate {found['version']}, and this is {this}; make it again"
            )
        if found["layout"] != layout():
            raise self._error("was made by other sources of this version; make it again")
        if found["processor"] != processor_model():
            raise self._error("was made on another processor model; make it again")
        memory = found["memory"]
        if type(memory) is not int or memory % _PAGE or not 0 < memory <= _MOST_MEMORY:
            raise self._error(f"is of a machine with {memory} bytes of memory")
        if (
            found["engine"] not in ("native", "portable")
            or found["profile"] not in ("vt-x", "extended")
            or type(found["testdev"]) is not bool
        ):
            raise self._error("is of a machine that there is not")

    @property
    def time(self) -> int:
        """The virtual time at which the machine continues."""
        return int(self._description["time"])

    @property
    def engine(self) -> str:
        """The engine that it needs: "native" or "portable"."""
        return str(self._description["engine"])

    @property
    def memory(self) -> int:
        """Bytes of memory."""
        return int(self._description["memory"])

    @property
    def drives(self) -> tuple[int, int, int]:
        """How many disks, CDs and floppies the machine had."""
        disks, cds, floppies = (int(count) for count in self._description["board"])
        return disks, cds, floppies

    @property
    def firmware(self) -> tuple[bool, bool]:
        """Whether real firmware had started the machine, and whether our own BIOS had."""
        real, own = (bool(one) for one in self._description["firmware"])
        return real, own

    @property
    def testdev(self) -> bool:
        """Whether the machine had QEMU's pc-testdev."""
        return bool(self._description["testdev"])

    def machine(
        self,
        *,
        board: Board | None = None,
        vmm: Vmm | None = None,
        console: Console | None = None,
        trace: TraceWriter | None = None,
    ) -> VirtualMachine:
        """The machine as it was saved. `board` has its drives, if it had any.

        Raises SnapshotError if the drives are others, and EngineError without its engine.
        """
        real, own = self.firmware
        board = board or Board(firmware=real, bios=own, testdev=self.testdev)
        if (board.firmware, board.bios) != (real, own):
            raise self._error("is of a machine with other firmware")
        if board.testdev != self.testdev:
            raise self._error("is of a machine with pc-testdev, or without it")
        vm = VirtualMachine(
            self._description["memory"],
            engine=self.engine,
            profile=self._description["profile"],
            number=int(self._description["number"]),
            board=board,
            vmm=vmm,
            console=console,
            trace=trace,
        )
        self.restore(vm)
        return vm

    def restore(self, vm: VirtualMachine) -> None:
        """Bring a machine that was made in the same way to the state that was saved.

        Raises SnapshotError if it is another one; it is useless then.
        """
        given = vm.board
        if (len(given.disks), len(given.cds), len(given.floppies)) != self.drives:
            disks, cds, floppies = self.drives
            raise self._error(
                f"is of a machine with {disks} disks, {cds} CDs and {floppies} floppies; give "
                "the same ones"
            )
        try:
            self._restore(vm)
        except SnapshotError as error:
            raise self._error(str(error)) from None
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise self._error(f"is not a snapshot of this machine ({error!r})") from None

    def _restore(self, vm: VirtualMachine) -> None:
        found = self._description
        if vm.processor.memory.size != found["memory"] or len(vm.cpus) != 1:
            raise SnapshotError("is of a machine with other memory or processors")
        if vm.processor.engine.kind != self.engine:
            raise SnapshotError(f"was made on the {self.engine} engine; use that")
        if vm.bios is not None:
            vm.bios.serve(vm)
        engine = vm.processor.engine
        state = found["values"]["processor"]["x87 and SSE"]
        engine.vectors.take({str(name): int(value) for name, value in state.items()})
        count = int(found["arrays"])
        arrays = [np.frombuffer(self._part(n), np.int64) for n in range(count)]
        rows = np.frombuffer(self._part(count), np.int64)
        clear(engine)
        pages = engine.page_cells.size
        for n, some in enumerate(found["pages"]):
            cells = np.frombuffer(self._part(count + 1 + n), np.int64)
            numbers, contents = cells[: int(some)], cells[int(some) :]
            if numbers.size and not 0 <= numbers.min() <= numbers.max() < pages:
                raise SnapshotError("has pages outside of memory")
            fill(engine, numbers, contents.reshape(len(numbers), _PAGE // _CELL))
        snapshot = vm.snapshot()
        _demand_sound(snapshot, arrays, rows, found["values"])
        if snapshot.disks() != found["disks"]:
            raise SnapshotError("was made with other disk images; give the same ones")
        snapshot.take(found["values"], arrays, rows)
        vm.restore(snapshot)
        vm.processor.place_devices(vm.devices.pages)

    def _part(self, number: int) -> bytes:
        at, packed, raw = self._parts[number]
        if not 0 <= raw <= _MOST_MEMORY:
            raise SnapshotError("has a part that is too large")
        return _unpacked(self._data[at : at + packed], raw)


def _unpacked(data: bytes, size: int) -> bytes:
    """What a part holds. Raises ValueError."""
    if size == 0:
        return b""
    try:
        found: bytes = pa.decompress(data, size, codec="zstd", asbytes=True)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"a part cannot be unpacked: {error}") from None
    return found


def _demand_sound(
    snapshot: Snapshot, arrays: Sequence[Cells], rows: Cells, values: Mapping[str, Any]
) -> None:
    """What compiled code takes for granted, of arrays that come from a file.

    Raises SnapshotError if it is not so.
    """
    ours = snapshot.processor.arrays
    if [array.size for array in arrays] != [array.size for array in ours]:
        raise SnapshotError("has arrays of other sizes")
    head, mine = arrays[_COUNTS], ours[_COUNTS]
    sound = (
        head[HEAD_CAPACITY] == mine[HEAD_CAPACITY]
        and 0 <= head[HEAD_USED] <= head[HEAD_CAPACITY]
        and head[HEAD_LEVEL] in (0, 1)
        and values["processor"]["sequence"] == head[HEAD_SEQUENCE] >= 0
        and rows.size == min(head[HEAD_SEQUENCE], head[HEAD_CAPACITY]) * ROW_WIDTH
        and values["processor"]["journal"] == head[HEAD_CAPACITY]
    )
    for array, own in zip(arrays[_OTHERS:], ours[_OTHERS:], strict=True):
        if own.size == polled.LENGTH:
            fixed = own.copy()
            for slot in range(polled.SLOTS):
                at = polled.HEAD + slot * polled.WIDTH
                for cell in _CHANGING:
                    fixed[at + cell] = array[at + cell]
            sound = sound and bool((fixed[: polled.QUEUE] == array[: polled.QUEUE]).all())
    if not sound:
        raise SnapshotError("has numbers that no machine has")


_CHANGING = (
    *(polled.KIND, polled.VALUE, polled.READS, polled.UNTIL),
    *(polled.START, polled.RELOAD, polled.MODE),
)
"""Of a slot of ports that are answered by the processor: all but what says where it is."""
_COUNTS = 5
"""Of a processor snapshot's arrays: the head of the journal. Before it are the VMCS, registers,
VMX state, the x86 VMM's VMCS, and the pages of devices."""
_OTHERS = 7
