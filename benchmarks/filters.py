"""What a write to a page table costs: completed by a fault filter, or by a VM exit each.

There is no peer, so these count the processor's time, which others on the machine spoil less.
"""

import functools
import struct
import time

from benchmarks.measure import Benchmark, SkipSide, rate
from trapgate.decision.fault_filters import FILTERS
from trapgate.errors import EngineError
from trapgate.processor.processor import Processor
from trapgate.processor.vm_exit import VmExit
from trapgate.sdm.reasons import ExitReason
from trapgate.vmcs.vmcs import Vmcs

_MEMORY = 1 << 20
_CODE, _DIRECTORY, _TABLE, _EDITED = 0x10000, 0x2000, 0x3000, 0x4000
_PTBASE = 0xC0000000
_ENTRY = _PTBASE + 0x1000 + 0x40
"""The linear address of the entry that is edited, in the second page table."""

STORE = bytes.fromhex("8907")
"""MOV [EDI], EAX: stores an entry that is not present."""
CLEAR = bytes.fromhex("8327df")
"""AND dword [EDI], ~20H: clears the accessed flag, as a page ager does."""

table_stores = Benchmark(
    "table-stores", "MOV to a page-table entry that the VMM has mapped read-only", "writes/s",
    "higher", "0.3 us completed, a fifth of an exit",
)  # fmt: skip
table_clears = Benchmark(
    "table-clears", "AND that clears an accessed flag, the same way", "writes/s", "higher",
    "0.3 us completed, a fifth of an exit",
)  # fmt: skip
FILTER_BENCHMARKS = (table_stores, table_clears)


def _prepared(edit: bytes, count: int, engine: str, *, writable: bool) -> tuple[Processor, Vmcs]:
    """A guest that makes `edit` `count` times and then leaves with a VMCALL."""
    try:
        processor = Processor(_MEMORY, engine=engine)
    except EngineError as why:
        raise SkipSide(str(why)) from None
    slot = _DIRECTORY | (3 if writable else 1)
    identity = struct.pack("<256I", *(n << 12 | 3 for n in range(256)))
    for address, data in (
        (_DIRECTORY, struct.pack("<2I", _TABLE | 3, _EDITED | 3)),
        (_DIRECTORY + 4 * (_PTBASE >> 22), struct.pack("<I", slot)),
        (_TABLE, identity),
        (_EDITED, struct.pack("<I", 0x23) * 1024),
        (_CODE, edit + b"\x49\x75" + bytes([0xFD - len(edit)]) + b"\x0f\x01\xc1"),
    ):
        processor.memory.write(address, data)
    vmcs = Vmcs()
    vmcs.set_flat_segments(32)
    vmcs["GUEST_RIP"], vmcs["GUEST_CR3"], vmcs["GUEST_CR0"] = _CODE, _DIRECTORY, 0x80010031
    vmcs["GUEST_LDTR_ACCESS_RIGHTS"] = 1 << 16
    vmcs["EXCEPTION_BITMAP"] = 1 << 14
    registers = processor.registers
    registers.rcx, registers.rdi, registers.rax = count, _ENTRY, 0x12344
    return processor, vmcs


def seconds_of(edit: bytes, count: int, engine: str, *, filtered: bool) -> float:
    """Seconds that `count` edits take, completed by figure 8, or of a page that is writable."""
    processor, vmcs = _prepared(edit, count, engine, writable=not filtered)
    if filtered:
        vmcs["FAULT_FILTER"], vmcs["PTBASE"] = FILTERS["figure-8"], _PTBASE
    began = time.process_time()
    outcome = processor.vmlaunch(vmcs)
    seconds = time.process_time() - began
    if not (isinstance(outcome, VmExit) and outcome.reason is ExitReason.VMCALL):
        raise SkipSide(f"the guest did not get to its end: {outcome}")
    return seconds


def seconds_of_exits(edit: bytes, count: int, engine: str) -> float:
    """Seconds of the same where each edit exits, and a plain loop stores what it means."""
    processor, vmcs = _prepared(edit, count, engine, writable=False)
    table = processor.memory
    began = time.process_time()
    outcome = processor.vmlaunch(vmcs)
    while isinstance(outcome, VmExit) and outcome.reason is ExitReason.EXCEPTION_OR_NMI:
        at = _EDITED + (outcome.qualification & 0xFFF)
        (old,) = struct.unpack("<I", table.read(at, 4))
        new = processor.registers.rax if edit is STORE else old & ~0x20
        table.write(at, struct.pack("<I", new))
        vmcs["GUEST_RIP"] += len(edit)
        outcome = processor.vmresume(vmcs)
    seconds = time.process_time() - began
    if not (isinstance(outcome, VmExit) and outcome.reason is ExitReason.VMCALL):
        raise SkipSide(f"the guest did not get to its end: {outcome}")
    return seconds


def _add(benchmark: Benchmark, edit: bytes) -> None:
    sides = (
        ("trapgate native", "native", True, 1),
        ("trapgate portable", "portable", True, 1000),
        ("trapgate native, writable page", "native", False, 1),
    )
    for name, engine, filtered, less in sides:
        run = functools.partial(seconds_of, edit, engine=engine, filtered=filtered)
        counts = (100_000 // less, 2_100_000 // less)
        benchmark.side(name)(functools.partial(rate, run, *counts))
    for engine in ("native", "portable"):
        run = functools.partial(seconds_of_exits, edit, engine=engine)
        benchmark.side(f"trapgate {engine}, an exit each")(
            functools.partial(rate, run, 1_000, 41_000)
        )


_add(table_stores, STORE)
_add(table_clears, CLEAR)
