"""A snapshot in a file: its format, and how it is written; `saved_machine` reads it.

A file is a head of fixed size (magic, format, length of the description, digest of all that
follows), a description in JSON, and compressed parts: the arrays of the processor and the
devices, the rows of the journal that are in use, the pages of memory that are not all zeros.
Nothing in it is code.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa

from trapgate.engine import machine as stops
from trapgate.events.journal import HEAD_LENGTH, ROW_WIDTH
from trapgate.instructions import polled_ports as polled
from trapgate.sdm import cells as f
from trapgate.sdm import registers, vmx
from trapgate.vmm.cpus.identity import MSRS, cpuid
from trapgate.vmm.snapshots.snapshot import Snapshot
from trapgate.vmm.snapshots.state import SnapshotError

FORMAT = 1
MAGIC = b"TRAPSNAP"
HEAD = struct.Struct("<8sII32s")
"""Magic, format, bytes of the compressed description, digest of all that follows."""
_LEAVES = (*range(0x17), *range(0x4000_0000, 0x4000_0002), *range(0x8000_0000, 0x8000_0009))


def layout() -> str:
    """A digest of what the numbers in a file mean: the same in all machines of one version."""
    what = (
        f.ENCODINGS,
        registers.NAMES,
        stops.RUN_STATE,
        (HEAD_LENGTH, ROW_WIDTH, vmx.LENGTH, polled.LENGTH),
        sorted((name, value) for name, value in vars(polled).items() if name.isupper()),
        sorted((name, value) for name, value in vars(vmx).items() if name.isupper()),
    )
    return hashlib.sha256(repr(what).encode()).hexdigest()[:16]


def processor_model() -> str:
    """A digest of what the guest sees of the processor: CPUID, and MSRs that read as constants."""
    leaves = [cpuid(leaf, subleaf) for leaf in _LEAVES for subleaf in (0, 1)]
    return hashlib.sha256(repr((leaves, sorted(MSRS.items()))).encode()).hexdigest()[:16]


def save(snapshot: Snapshot, path: Path) -> None:
    """Write a snapshot to a file, which is there whole or not at all.

    Raises SnapshotError for a machine that cannot be saved, and if the file cannot be written.
    """
    vm = snapshot.machine
    parts: list[bytes] = []
    sizes: list[tuple[int, int]] = []

    def put(data: bytes) -> None:
        packed = pa.compress(data, codec="zstd", asbytes=True)
        parts.append(packed)
        sizes.append((len(packed), len(data)))

    values = snapshot.values()
    arrays = snapshot.processor.arrays
    for array in (*arrays, snapshot.processor.rows):
        put(array.tobytes())
    pages = []
    for numbers, contents in snapshot.processor.memory():
        pages.append(len(numbers))
        put(numbers.tobytes() + contents.tobytes())
    board = vm.board
    description = {
        "version": version("trapgate"),
        "layout": layout(),
        "processor": processor_model(),
        "engine": vm.processor.engine.kind,
        "memory": vm.processor.memory.size,
        "profile": vm.vmcs.profile,
        "number": vm.number,
        "time": snapshot.time,
        "board": [len(board.disks), len(board.cds), len(board.floppies)],
        "firmware": [board.firmware, board.bios],
        "testdev": board.testdev,
        "disks": snapshot.disks(),
        "values": values,
        "arrays": len(arrays),
        "pages": pages,
        "sizes": sizes,
    }
    text = json.dumps(description).encode()
    packed = pa.compress(text, codec="zstd", asbytes=True)
    _write(path, [struct.pack("<I", len(text)), packed, *parts], len(packed))


def _write(path: Path, parts: Sequence[bytes], description: int) -> None:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    head = HEAD.pack(MAGIC, FORMAT, description, digest.digest())
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("xb") as file:
            file.writelines((head, *parts))
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        with suppress(OSError):
            beside.unlink()
        raise SnapshotError(
            f"{path}: cannot be written ({error.strerror}); give another file"
        ) from None
